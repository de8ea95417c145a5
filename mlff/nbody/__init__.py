"""Where charged particles go: the models of the package on another task.

Five particles of charges ±1 fly freely; from positions, velocities and charges at one
time a network predicts how far they come (and how their velocities change) in a fixed
time. ``data_gen/nbody.py`` makes the data, ``mlff train`` with ``task = "nbody"`` runs
:func:`fit_nbody`. No units: masses and the Coulomb constant are 1.
"""

from mlff.nbody.fit import NBodyResult, fit_nbody
from mlff.nbody.networks import NBodyModel, build_network
from mlff.nbody.recipe import NBodyConfig, NBodyTraining

__all__ = [
    "NBodyConfig",
    "NBodyModel",
    "NBodyResult",
    "NBodyTraining",
    "build_network",
    "fit_nbody",
]
