"""Constant pressure for many systems at once: stochastic cell rescaling.

Bernetti, Bussi, J. Chem. Phys. 153, 114107 (2020), isotropic; Del Tatto, Raiteri,
Bernetti, Bussi, Appl. Sci. 12, 1139 (2022), fully flexible. The volume obeys an
equation of first order in time, so it relaxes without ringing, and the noise makes the
ensemble the right one. Derived here for cell vectors as rows h, positions r and
momenta p as rows, and the internal pressure tensor

    Π = (Σ p ⊗ p / m) / V − σ                                                     (1)

with the instantaneous momenta and the stress σ = (∂U/∂ε)/V of the potential.

A symmetric strain ε moves h → h e^ε, r → r e^ε, p → p e^(−ε), which leaves dr dp as it
is. K + U falls by V Π:dε. What is sampled is exp(−(K + U + P V)/k_B T) dr dp dV, and
for flexible cells V^(−2) dh in place of dV, which gives the same density of volumes
(Martyna, Tobias, Klein, J. Chem. Phys. 101, 4177 (1994)); the measure is V times the
invariant one of the group of matrices, dh/V³. The diffusion that leaves it invariant
with a coefficient D ∝ 1/V has the Ito drift D ∇ln(density) + ∇D. In it the factor V of
the measure adds D·1, and the gradient of D takes it away, so that what remains is

    dε = (β/3τ) (Π − P 1) dt + sqrt(2 k_B T β / (3 V τ)) dW,  h ← h e^(dε)        (2)

in which dW is symmetric: variance dt on the diagonal, dt/2 elsewhere. The exponential
makes (2) exact in mean and variance to first order without a further Ito term. Its
trace is the isotropic equation,

    d ln V = (β/τ) (tr Π/3 − P) dt + sqrt(2 k_B T β / (V τ)) dW                   (3)

whose noise becomes independent of the volume for λ = sqrt(V), where Ito's rule gives

    dλ = (βλ/2τ) (tr Π/3 − P + k_B T/2V) dt + sqrt(k_B T β / 2τ) dW.              (4)

A step is half a kick and half a drift, thermostat, the strain of (2) or (4) with the
momenta there and σ of the step's beginning, half a drift, one force call and half a
kick. Run backwards it takes σ of its end; hence the work of the barostat is counted
with the mean of both,

    heat += [K(p e^(−ε)) − K(p)] + ½ (V₀ σ₀ + V₁ σ₁):ε,                           (5)

and U + K − heat is constant but for the error of integration, as without a barostat.
It is the conserved quantity of both papers, in which P V cancels, up to a term
proportional to Δt that does not accumulate.

Scaling about the origin or about the center of mass, as here, moves the same relative
positions, momenta and cells. All momenta count in (1): for an ideal gas of N atoms the
density of volumes is V^N exp(−P V/k_B T), and V^(N−1) exp(−P V/k_B T) for a thermostat
that removes the motion of the center of mass.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from ase import units
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.dynamics.integrators import Integrator, Langevin, VelocityRescaling, is_number
from mlff.dynamics.noise import normal
from mlff.dynamics.phase import BAROSTAT, MDState
from mlff.dynamics.schedules import Target, at_time, check_target
from mlff.errors import InputError, InputTypeError
from mlff.forcefield import ForceField

# Rows of noise that no atom has.
_SIZE, _SHAPE = -1, -2

# Terms and squarings of the exponential: a strain of 0.5 is exact to rounding.
_TERMS, _SQUARINGS = 8, 4


@dataclass(frozen=True, kw_only=True)
class CellRescaling(Integrator):
    """What both barostats share; use one of the subclasses.

    Only β/τ enters the dynamics: with the right order of magnitude of β the volume
    relaxes within about τ, and the ensemble is right for any.

    Attributes:
        thermostat: with its time step, temperature and seed.
        pressure_GPa: P, GPa; a number, one per system, or a function of the time in fs.
        compressibility_per_GPa: β, 1/GPa, a number or one per system: 0.45 for water,
            about 0.01 for silicon, 0.1 for a molecular crystal.
        time_constant_fs: τ, fs; longer than a vibration that changes the pressure.
        timestep_fs: that of the thermostat.
        seed: that of the thermostat.
        remove_motion: that of the thermostat.
    """

    thermostat: Langevin | VelocityRescaling
    pressure_GPa: Target
    compressibility_per_GPa: float | Sequence[float]
    time_constant_fs: float = 1000.0
    timestep_fs: float = field(init=False)
    seed: int | Sequence[int] = field(init=False)
    remove_motion: bool = field(init=False)

    def __post_init__(self) -> None:
        thermostat = self.thermostat
        if not isinstance(thermostat, (Langevin, VelocityRescaling)):
            raise InputTypeError(
                "`thermostat` must be a Langevin or VelocityRescaling, got "
                f"{type(thermostat).__name__}"
            )
        for name in ("timestep_fs", "seed", "remove_motion"):
            object.__setattr__(self, name, getattr(thermostat, name))
        super().__post_init__()
        tau = self.time_constant_fs
        if not (is_number(tau) and self.timestep_fs < tau < 1e9):
            raise InputError(
                f"`time_constant_fs` must exceed the time step of {self.timestep_fs:g} "
                f"fs, got {tau!r}; 500 to 5000 fs is usual"
            )

    @property
    def needs_stress(self) -> bool:
        """See :class:`Integrator`."""
        return True

    def initial_temperature(self) -> Target | None:
        """See :class:`Integrator`."""
        return self.thermostat.initial_temperature()

    def check(self, batch: AtomsBatch) -> None:
        """See :class:`Integrator`."""
        self.thermostat.check(batch)
        check_target(self.pressure_GPa, batch.n_systems, "pressure_GPa", lowest=None)
        name, value = "compressibility_per_GPa", self.compressibility_per_GPa
        if callable(value):
            raise InputError(f"`{name}` must be a number or one per system")
        check_target(value, batch.n_systems, name)
        if bool((torch.as_tensor(value) <= 0).any()):
            raise InputError(f"`{name}` must be positive, got {value!r}")
        flat = (~batch.pbc.all(1)).nonzero()[:, 0].tolist()
        if flat:
            raise InputError(
                "pressure needs systems that are periodic along all three cell "
                f"vectors; not so for systems {flat[:5]}: run them apart, without a "
                "barostat"
            )

    def init(
        self,
        batch: AtomsBatch,
        forcefield: ForceField,
        *,
        masses: Tensor,
        momenta: Tensor,
        mobile: Tensor,
    ) -> MDState:
        """See :class:`Integrator`; all atoms must be mobile, and there must be stress.

        Raises:
            InputError: also for fixed atoms and for a force field without stress.
        """
        fixed = batch.system[~mobile].unique().tolist()
        if fixed:
            raise InputError(
                "a barostat moves every atom with the cell, but atoms are fixed in "
                f"systems {fixed[:5]}; take the constraint or the barostat away"
            )
        state = super().init(
            batch, forcefield, masses=masses, momenta=momenta, mobile=mobile
        )
        if state.stress is None:
            raise InputError(
                "`forcefield` gives no stress, which a barostat needs: make it with "
                "stress=True"
            )
        return state

    def step(self, state: MDState, forcefield: ForceField) -> MDState:
        """See :class:`Integrator`."""
        half = 0.5 * self.timestep
        middle = self.thermostat.thermostatted(state.kicked(half).drifted(half))
        work_before = _volume(middle.batch)[:, None, None] * _stress(middle)
        strain = self._strain(middle)
        moved, turn = _strained(middle, strain)
        after = moved.drifted(half)
        after = after.evaluated(forcefield(after.batch))
        work_after = _volume(after.batch)[:, None, None] * _stress(after)
        # The strain as seen in the frame that the system is turned to.
        turned = turn.mT @ strain @ turn
        work = 0.5 * ((work_before * strain) + (work_after * turned)).sum((1, 2))
        work = work + moved.kinetic_energy() - middle.kinetic_energy()
        after = after.replace(heat=after.heat + work, step=after.step + 1)
        return after.kicked(half)

    @abstractmethod
    def _strain(self, state: MDState) -> Tensor:
        """Return the strain ε of a step, symmetric, (n_systems, 3, 3)."""

    def _terms(self, state: MDState) -> tuple[Tensor, Tensor]:
        """Return (β Δt/τ) (Π − P 1) and (β Δt/τ) k_B T / V.

        (n_systems, 3, 3) and (n_systems,).
        """
        batch, heat, device = state.batch, state.heat, state.momenta.device
        time_fs = state.step * self.timestep_fs
        pressure = at_time(
            self.pressure_GPa, time_fs, heat, "pressure_GPa", lowest=None
        )
        temperature = at_time(
            self.thermostat.temperature_K, time_fs, heat, "temperature_K"
        )
        beta = at_time(
            self.compressibility_per_GPa, 0.0, heat, "compressibility_per_GPa"
        )
        volume = _volume(batch)
        # Products with a tensor on the device take numbers without a copy to it.
        every = torch.ones_like(volume)
        rate = every * beta * (self.timestep_fs / self.time_constant_fs / units.GPa)
        outer = every * pressure * units.GPa
        velocities = state.momenta / state.masses[:, None]
        kinetic = batch.total(state.momenta[:, :, None] * velocities[:, None, :])
        excess = kinetic / volume[:, None, None] - _stress(state)
        one = torch.eye(3, dtype=torch.float64, device=device)
        excess = excess - outer[:, None, None] * one
        diffusion = rate * units.kB * temperature / volume
        return rate[:, None, None] * excess, diffusion


@dataclass(frozen=True, kw_only=True)
class IsotropicCellRescaling(CellRescaling):
    """Constant pressure with a cell that keeps its shape: liquids, cubic crystals.

    Equation (4) of this module, from the equation for the square root of the volume
    of Bernetti and Bussi (2020). Arguments are those of :class:`CellRescaling`.
    """

    def _strain(self, state: MDState) -> Tensor:
        return _dilation(state, *self._terms(state))


@dataclass(frozen=True, kw_only=True)
class FlexibleCellRescaling(CellRescaling):
    """Constant pressure with a cell free in lengths and angles: solids.

    Equation (2) of this module, from Del Tatto et al. (2022), its trace in the form of
    equation (4). The strain is symmetric, so that a step does not rotate the system;
    what two strains in a row rotate is turned back with cell, positions and momenta, so
    that the first cell vector and the plane of the first two keep their directions. A
    liquid does not resist shear and its cell would flatten with time: use
    :class:`IsotropicCellRescaling` there. Arguments are those of
    :class:`CellRescaling`.
    """

    def _strain(self, state: MDState) -> Tensor:
        drift, diffusion = self._terms(state)
        row = torch.full_like(state.seed, _SHAPE)
        noise = normal(state.seed, state.step, row, 9, BAROSTAT).unflatten(1, (3, 3))
        noise = 0.5 * (noise + noise.mT)
        shape = (drift + torch.sqrt(6.0 * diffusion)[:, None, None] * noise) / 3.0
        one = torch.eye(3, dtype=shape.dtype, device=shape.device)
        return _dilation(state, drift, diffusion) + shape - _trace(shape) * one / 3.0


def _dilation(state: MDState, drift: Tensor, diffusion: Tensor) -> Tensor:
    """Return the strain of equation (4), of which both barostats change the volume."""
    row = torch.full_like(state.seed, _SIZE)
    noise = normal(state.seed, state.step, row, 1, BAROSTAT)[:, :, None]
    diffusion = diffusion[:, None, None]
    change = (_trace(drift) / 3.0 + 0.5 * diffusion) / 2.0  # dλ/λ
    change = change + torch.sqrt(0.5 * diffusion) * noise
    one = torch.eye(3, dtype=drift.dtype, device=drift.device)
    return (2.0 / 3.0) * torch.log1p(change) * one


def _trace(matrix: Tensor) -> Tensor:
    """Trace of each matrix, (n_systems, 1, 1)."""
    return matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def _volume(batch: AtomsBatch) -> Tensor:
    return torch.linalg.det(batch.cell).abs()


def _stress(state: MDState) -> Tensor:
    assert state.stress is not None  # checked in init
    return state.stress


def _strained(state: MDState, strain: Tensor) -> tuple[MDState, Tensor]:
    """Strain cell, positions about the center of mass, and momenta; turn them back.

    Returns:
        The state, and the rotation by which it was turned, (n_systems, 3, 3).
    """
    batch, masses = state.batch, state.masses[:, None]
    stretch = _exponential(strain)
    cell = batch.cell @ stretch
    turn = _frame(cell).mT @ _frame(batch.cell)
    center = (batch.total(masses * batch.positions) / batch.total(masses))[batch.system]
    outward = (stretch @ turn)[batch.system]
    inward = (_exponential(-strain) @ turn)[batch.system]
    arm = batch.positions - center
    positions = center + torch.einsum("ax,axy->ay", arm, outward)
    momenta = torch.einsum("ax,axy->ay", state.momenta, inward)
    batch = batch.replace(positions=positions, cell=cell @ turn)
    return state.replace(batch=batch, momenta=momenta), turn


def _frame(cell: Tensor) -> Tensor:
    """Return three unit vectors along the first, second and third cell vector.

    Orthonormalized in this order, as rows, (n_systems, 3, 3).
    """
    first = cell[:, 0] / torch.linalg.vector_norm(cell[:, 0], dim=1, keepdim=True)
    normal_ = torch.linalg.cross(cell[:, 0], cell[:, 1])
    third = normal_ / torch.linalg.vector_norm(normal_, dim=1, keepdim=True)
    return torch.stack((first, torch.linalg.cross(third, first), third), dim=1)


def _exponential(matrix: Tensor) -> Tensor:
    """Return e^matrix; ``torch.linalg.matrix_exp`` would wait for the device."""
    one = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    small = matrix * 2.0**-_SQUARINGS
    out = one.expand_as(matrix)
    for k in range(_TERMS, 0, -1):
        out = one + small @ out / k
    for _ in range(_SQUARINGS):
        out = out @ out
    return out
