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
    from mlff.errors import MlffError, MlffWarning
    from mlff.inference import predict
    from mlff.models import MODELS, build_model
    from mlff.potential import Potential, TrainingInfo, load
    from mlff.state import read_state, set_state
    from mlff.train import TrainConfig, evaluate, fit

__version__ = "0.1.0"

# Name → module that defines it.
_PUBLIC = {
    "AtomsBatch": "batch",
    "MLFFCalculator": "calculator",
    "MODELS": "models",
    "MlffError": "errors",
    "MlffWarning": "errors",
    "Potential": "potential",
    "SumCalculator": "calculator",
    "TrainConfig": "train",
    "TrainingInfo": "potential",
    "build_model": "models",
    "evaluate": "train",
    "fit": "train",
    "load": "potential",
    "predict": "inference",
    "read_state": "state",
    "set_state": "state",
}
_MODULES = ("dft", "testing")

__all__ = [
    "MODELS",
    "AtomsBatch",
    "MLFFCalculator",
    "MlffError",
    "MlffWarning",
    "Potential",
    "SumCalculator",
    "TrainConfig",
    "TrainingInfo",
    "build_model",
    "dft",
    "evaluate",
    "fit",
    "load",
    "predict",
    "read_state",
    "set_state",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"mlff.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return import_module(f"mlff.{name}")
    raise AttributeError(f"module 'mlff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
