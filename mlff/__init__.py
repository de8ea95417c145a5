"""mlff: an ASE calculator and force field for molecules whose charge and spin matter.

Public names are loaded when they are first used, so that importing the package costs
little and the command line answers at once. Units: eV, Å, e; ``spin`` is 2S+1.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff import dft, testing
    from mlff.batch import AtomsBatch
    from mlff.calculator import MLFFCalculator, SumCalculator
    from mlff.committee import Committee
    from mlff.crossing import Crossing, CrossingOptions, find_crossing
    from mlff.dft import DFTCalculator
    from mlff.dynamics.barostats import FlexibleCellRescaling, IsotropicCellRescaling
    from mlff.dynamics.integrators import Langevin, VelocityRescaling, VelocityVerlet
    from mlff.dynamics.limits import Limits
    from mlff.dynamics.schedules import Ramp
    from mlff.errors import MlffError, MlffWarning
    from mlff.harmonic import Vibrations, vibrations
    from mlff.hessian import hessians
    from mlff.inference import deviations, predict
    from mlff.md import MDOptions, run_md
    from mlff.models import MODELS, build_model
    from mlff.potential import Potential, TrainingInfo, load
    from mlff.relaxation import RelaxOptions, relax
    from mlff.relaxation.optimizers import FIRE, LBFGS
    from mlff.scanning import Axis, ScanOptions, Surface, scan
    from mlff.spectra import Spectrum, broadened, infrared, plot_infrared
    from mlff.state import read_state, set_state
    from mlff.train import TrainConfig, evaluate, fit, fit_committee
    from mlff.trajectory import Trajectory

__version__ = "0.1.0"

# Name → module that defines it.
_PUBLIC = {
    "AtomsBatch": "batch",
    "Axis": "scanning",
    "Committee": "committee",
    "Crossing": "crossing",
    "CrossingOptions": "crossing",
    "DFTCalculator": "dft",
    "FIRE": "relaxation.optimizers",
    "FlexibleCellRescaling": "dynamics.barostats",
    "IsotropicCellRescaling": "dynamics.barostats",
    "LBFGS": "relaxation.optimizers",
    "Langevin": "dynamics.integrators",
    "Limits": "dynamics.limits",
    "MDOptions": "md",
    "MLFFCalculator": "calculator",
    "MODELS": "models",
    "MlffError": "errors",
    "MlffWarning": "errors",
    "Potential": "potential",
    "Ramp": "dynamics.schedules",
    "RelaxOptions": "relaxation",
    "ScanOptions": "scanning",
    "Spectrum": "spectra",
    "SumCalculator": "calculator",
    "Surface": "scanning",
    "TrainConfig": "train",
    "TrainingInfo": "potential",
    "Trajectory": "trajectory",
    "VelocityRescaling": "dynamics.integrators",
    "VelocityVerlet": "dynamics.integrators",
    "Vibrations": "harmonic",
    "broadened": "spectra",
    "build_model": "models",
    "deviations": "inference",
    "evaluate": "train",
    "find_crossing": "crossing",
    "fit": "train",
    "fit_committee": "train",
    "hessians": "hessian",
    "infrared": "spectra",
    "load": "potential",
    "plot_infrared": "spectra",
    "predict": "inference",
    "read_state": "state",
    "relax": "relaxation",
    "run_md": "md",
    "scan": "scanning",
    "set_state": "state",
    "vibrations": "harmonic",
}
_MODULES = ("dft", "testing")

__all__ = [
    "FIRE",
    "LBFGS",
    "MODELS",
    "AtomsBatch",
    "Axis",
    "Committee",
    "Crossing",
    "CrossingOptions",
    "DFTCalculator",
    "FlexibleCellRescaling",
    "IsotropicCellRescaling",
    "Langevin",
    "Limits",
    "MDOptions",
    "MLFFCalculator",
    "MlffError",
    "MlffWarning",
    "Potential",
    "Ramp",
    "RelaxOptions",
    "ScanOptions",
    "Spectrum",
    "SumCalculator",
    "Surface",
    "TrainConfig",
    "TrainingInfo",
    "Trajectory",
    "VelocityRescaling",
    "VelocityVerlet",
    "Vibrations",
    "broadened",
    "build_model",
    "deviations",
    "dft",
    "evaluate",
    "find_crossing",
    "fit",
    "fit_committee",
    "hessians",
    "infrared",
    "load",
    "plot_infrared",
    "predict",
    "read_state",
    "relax",
    "run_md",
    "scan",
    "set_state",
    "testing",
    "vibrations",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"mlff.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return import_module(f"mlff.{name}")
    raise AttributeError(f"module 'mlff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
