"""Phase space: the state of a run of many systems, and functions of it.

Momenta are in amu Å per ASE time; temperatures and degrees of freedom follow what a
run keeps fixed. Nothing here makes a force call or waits for the device.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from ase import units
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.dynamics.noise import normal
from mlff.forcefield import Evaluation

#: Streams of noise; see :func:`mlff.dynamics.noise.normal`.
THERMOSTAT, INITIAL, BAROSTAT = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class MDState:
    """Everything that a run consists of between two steps.

    Attributes:
        batch: the systems; positions and, under pressure, cells move.
        momenta: (n_atoms, 3), amu Å per ASE time.
        masses: (n_atoms,), amu.
        mobile: atoms that may move, (n_atoms,), bool.
        energy: potential energy, (n_systems,), eV.
        forces: (n_atoms, 3), eV/Å; zero on atoms that may not move.
        stress: (n_systems, 3, 3), eV/Å³, or ``None``.
        outside: systems outside the region seen in training, (n_systems,), or ``None``.
        deviation: of the force on each atom over the members of a committee, eV/Å, zero
            on atoms that may not move, (n_atoms,); or ``None``.
        heat: energy put in by thermostat and barostat, (n_systems,), eV.
        dof: degrees of freedom N_f of the kinetic energy, (n_systems,), float64.
        seed: of the noise, (n_systems,), int64.
        step: number of steps made.
    """

    batch: AtomsBatch
    momenta: Tensor
    masses: Tensor
    mobile: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor | None
    outside: Tensor | None
    deviation: Tensor | None = None
    heat: Tensor
    dof: Tensor
    seed: Tensor
    step: int

    def kinetic_energy(self) -> Tensor:
        """Return K = Σ p²/2m of each system, (n_systems,), eV."""
        return self.batch.total(0.5 * self.momenta.square().sum(1) / self.masses)

    def temperature(self) -> Tensor:
        """Return 2 K / (N_f k_B) of each system, (n_systems,), K; 0 without N_f."""
        kinetic = 2.0 * self.kinetic_energy() / units.kB
        return torch.where(self.dof > 0, kinetic / self.dof.clamp(min=1.0), 0.0)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{**content, **changes})

    def evaluated(self, evaluation: Evaluation) -> Self:
        """Return a copy with the energies and forces of its positions."""
        return self.replace(
            energy=evaluation.energy,
            forces=evaluation.forces * self.mobile[:, None],
            stress=evaluation.stress,
            outside=evaluation.outside,
            deviation=None
            if evaluation.deviation is None
            else evaluation.deviation * self.mobile,
        )

    def kicked(self, time: float) -> Self:
        """Return p + F·time."""
        return self.replace(momenta=self.momenta + time * self.forces)

    def drifted(self, time: float) -> Self:
        """Return r + p/m·time."""
        moved = self.batch.positions + time * self.momenta / self.masses[:, None]
        return self.replace(batch=self.batch.replace(positions=moved))


def without_motion(state: MDState) -> MDState:
    """Take out the motion of whole systems, where nothing holds them.

    The momentum of the center of mass, and for systems without periodic axis the
    angular momentum about it; of systems with a fixed atom neither.
    """
    batch = state.batch
    free, turns = _motions(batch, state.mobile)
    masses = state.masses[:, None]
    mass = batch.total(masses)
    velocity = batch.total(state.momenta) / mass * free[:, None]
    momenta = state.momenta - masses * velocity[batch.system]
    center = batch.total(masses * batch.positions) / mass
    arm = batch.positions - center[batch.system]
    angular = batch.total(torch.linalg.cross(arm, momenta))
    square = batch.total(masses[:, 0] * arm.square().sum(1))
    one = torch.eye(3, dtype=arm.dtype, device=arm.device)
    inertia = square[:, None, None] * one - batch.total(
        masses[:, :, None] * arm[:, :, None] * arm[:, None, :]
    )
    # A linear molecule has no inertia about its axis, nor angular momentum: a speck
    # keeps the inverse finite and moves nothing.
    speck = (1e-13 * square + 1e-12)[:, None, None] * one
    inverse = torch.linalg.inv_ex(inertia + speck).inverse
    turning = torch.einsum("sxy,sy->sx", inverse, angular) * turns[:, None]
    momenta = momenta - masses * torch.linalg.cross(turning[batch.system], arm)
    return state.replace(momenta=momenta)


def _motions(batch: AtomsBatch, mobile: Tensor) -> tuple[Tensor, Tensor]:
    """Whether translation and rotation are conserved, (n_systems,) each."""
    fixed = batch.total((~mobile).to(torch.int64))
    free = fixed == 0
    return free, free & ~batch.pbc.any(1)


def degrees_of_freedom(
    batch: AtomsBatch, mobile: Tensor, remove_motion: bool
) -> Tensor:
    """Return N_f of each system, (n_systems,), float64.

    Args:
        batch: the systems.
        mobile: atoms that may move, (n_atoms,), bool.
        remove_motion: whether :func:`without_motion` is applied.
    """
    dof = 3 * batch.total(mobile.to(torch.int64))
    if remove_motion:
        free, turns = _motions(batch, mobile)
        counts = batch.counts()
        rotations = torch.where(counts == 2, 2, 3) * (counts > 1)
        dof = dof - 3 * free.to(torch.int64) - rotations * turns
    return dof.double()


def per_atom(value: Tensor | float, batch: AtomsBatch) -> Tensor | float:
    """Return a value of each system at its atoms, (n_atoms,); one number stays one."""
    return value[batch.system] if isinstance(value, Tensor) else value


def thermal_momenta(state: MDState, temperature: Tensor | float, stream: int) -> Tensor:
    """Return momenta of the Maxwell–Boltzmann distribution, zero on fixed atoms.

    Args:
        state: whose masses, seeds and step.
        temperature: K; one, or (n_systems,).
        stream: of the noise.

    Returns:
        (n_atoms, 3), amu Å per ASE time.
    """
    batch = state.batch
    each = per_atom(temperature, batch)
    width = torch.sqrt(units.kB * each * state.masses) * state.mobile
    seed = state.seed[batch.system]
    return width[:, None] * normal(seed, state.step, batch.slot, 3, stream)


def chi_squares(state: MDState) -> tuple[Tensor, Tensor]:
    """Return a normal number and the sum of N_f − 1 squares of others.

    The squares are those of the first N_f − 1 of three numbers for each mobile atom.

    Returns:
        (n_systems,) each.
    """
    batch = state.batch
    seed = state.seed[batch.system]
    noise = normal(seed, state.step, batch.slot, 3, THERMOSTAT)
    rank = torch.cumsum(state.mobile.to(torch.int64), 0) - 1
    before = batch.total(state.mobile.to(torch.int64))
    rank = rank - (before.cumsum(0) - before)[batch.system]
    place = 3 * rank[:, None] + torch.arange(3, device=noise.device)
    wanted = state.mobile[:, None] & (place < state.dof[batch.system, None] - 1)
    others = batch.total((noise.square() * wanted).sum(1))
    row = torch.full_like(state.seed, -1)
    return normal(state.seed, state.step, row, 1, THERMOSTAT)[:, 0], others
