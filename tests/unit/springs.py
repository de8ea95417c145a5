"""Systems held by springs: forces without a network, for tests of what moves atoms."""

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from mlff.batch import AtomsBatch
from mlff.forcefield import Evaluation
from mlff.state import set_state

SPINS = {"H": 2, "O2": 3}
NAMES = ("H2O", "CH4", "C6H6", "H2", "CH3OH")


class Springs:
    """Every atom is tied to where it started, or every pair to its distance."""

    def __init__(self, batch: AtomsBatch, constant: float = 20.0, internal=False):
        self.start = batch.positions.clone()
        self.constant = constant
        self.internal = internal
        self.calls = 0

    def __call__(self, batch: AtomsBatch) -> Evaluation:
        self.calls += 1
        positions = batch.positions.detach().requires_grad_(True)
        with torch.enable_grad():
            if self.internal:
                same = batch.system[:, None] == batch.system[None, :]
                i, j = torch.triu(same, 1).nonzero(as_tuple=True)
                now = (positions[i] - positions[j]).norm(dim=1)
                then = (self.start[i] - self.start[j]).norm(dim=1)
                each = 0.5 * self.constant * (now - then) ** 2
                energy = torch.zeros(batch.n_systems, dtype=torch.float64)
                energy = energy.index_add(0, batch.system[i], each)
            else:
                away = (positions - self.start).square().sum(1)
                energy = batch.total(0.5 * self.constant * away)
            (gradient,) = torch.autograd.grad(energy.sum(), positions)
        return Evaluation(
            energy=energy.detach(), forces=-gradient, stress=None, outside=None
        )

    def refresh(self) -> None:
        pass


def systems(names=NAMES) -> list[Atoms]:
    out = []
    for name in names:
        out.append(set_state(molecule(name), 0, SPINS.get(name, 1)))
    return out


def started(integrator, names=NAMES, seed=0, heat_K=None, fixed=(), **springs):
    """A state at step 0 and its force field."""
    found = systems(names)
    batch = AtomsBatch.from_atoms(found)
    rng = np.random.default_rng(seed)
    masses = np.concatenate([atoms.get_masses() for atoms in found])
    momenta = np.zeros((len(masses), 3))
    if heat_K is not None:
        momenta = rng.normal(size=momenta.shape)
        momenta *= np.sqrt(8.617333e-5 * heat_K * masses)[:, None]
    mobile = torch.ones(len(masses), dtype=torch.bool)
    mobile[list(fixed)] = False
    forcefield = Springs(batch, **springs)
    state = integrator.init(
        batch,
        forcefield,
        masses=torch.from_numpy(masses),
        momenta=torch.from_numpy(momenta),
        mobile=mobile,
    )
    return state, forcefield
