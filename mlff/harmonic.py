"""Harmonic vibrations: normal modes, frequencies, infrared intensities.

With the Hessian H, masses m and ``W = m^-1/2 H m^-1/2``, normal modes are eigenvectors
of W in the space of motions that deform the molecule. That space is the complement of
translations ``√m e`` and rotations ``√m (e × (r − r_com))``, so that the modes are
exactly as many as there are vibrations and know nothing of overall motion (Wilson,
Decius and Cross, Molecular Vibrations, 1955, chapter 2).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units

from mlff.batch import AtomsBatch
from mlff.constraints import mobile_atoms
from mlff.errors import InputError, InputTypeError, MlffWarning
from mlff.hessian import Array, Derivatives, derivatives
from mlff.potential import Potential
from mlff.spectra import KM_PER_MOL
from mlff.state import set_state

if TYPE_CHECKING:
    from ase.vibrations import VibrationsData

#: A molecule is linear if no atom is farther from a line than this, Å: a bend leaves a
#: relaxed one by less, and the rotation about its axis would be that bend.
LINEAR = 0.05

#: Between these distances from a line, Å, it takes a closer look: there is a warning.
DOUBTFUL = 0.01, 0.1

#: ħ sqrt(eV/amu)/Å, eV: energy of the quantum of a mode with eigenvalue 1.
_QUANTUM = units._hbar * 1e10 / math.sqrt(units._e * units._amu)


@dataclass(frozen=True, kw_only=True)
class Vibrations:
    """Harmonic vibrations of one system, by ascending frequency.

    Attributes:
        data: atoms with their state and the Hessian of those that may move, as it is:
            ASE finds overall motion in it too.
        frequencies: of vibrations alone, (n_modes,), cm⁻¹; imaginary ones are negative.
        modes: mass-weighted displacements, (n_modes, n_atoms, 3), each of norm 1;
            divided by √m they are Cartesian.
        reduced_masses: (n_modes,), amu: one over the squared norm of the Cartesian
            displacements, as is usual for normal modes; of a diatomic that is not
            ``m m' / (m + m')``.
        intensities: of fundamentals in the double harmonic approximation,
            ``N_A |∂μ/∂Q|² / (12 ε₀ c²)``, (n_modes,), km/mol; ``None`` without dipoles.
        zero_point_energy: half the sum of the quanta of real frequencies, eV.
    """

    data: "VibrationsData"
    frequencies: Array
    modes: Array
    reduced_masses: Array
    intensities: Array | None
    zero_point_energy: float

    def animation(
        self, mode: int, *, amplitude_A: float = 0.3, n_frames: int = 20
    ) -> list[Atoms]:
        """Return a period of one mode, to be looked at.

        Args:
            mode: index.
            amplitude_A: largest displacement of an atom, Å.
            n_frames: frames of the period.

        Raises:
            InputError: no such mode.
        """
        n_modes = len(self.frequencies)
        if not -n_modes <= mode < n_modes:
            raise InputError(f"`mode` must be below {n_modes}, got {mode}")
        atoms = self.data.get_atoms()
        shift = self.modes[mode] / np.sqrt(atoms.get_masses())[:, None]
        shift *= amplitude_A / np.linalg.norm(shift, axis=1).max()
        frames = []
        for k in range(n_frames):
            frame = atoms.copy()
            frame.positions += math.sin(2.0 * math.pi * k / n_frames) * shift
            frames.append(frame)
        return frames


def vibrations(
    systems: Sequence[Atoms],
    potential: Potential,
    *,
    fmax: float = 0.05,
    charge: Any = None,
    spin: Any = None,
) -> list[Vibrations]:
    """Return the harmonic vibrations of each system, evaluated together.

    Overall motion is projected out: of a molecule 6 degrees of freedom, 5 of a linear
    one, 3 of an atom and of a periodic system (whose modes are those of its cell, at
    the Γ point). Where ``FixAtoms`` holds an atom, nothing is projected out, and the
    others vibrate against it.

    Args:
        systems: ASE systems at stationary points, each with its charge and spin (2S+1)
            in ``info``; masses are ``atoms.get_masses()``.
        potential: on the device to run on; with a dipole head there are intensities.
        fmax: largest force that may be left on an atom that may move, eV/Å.
        charge: total charge, e: one for all or one per system; read from each
            ``atoms.info`` unless given, and in agreement with it.
        spin: multiplicity 2S+1, likewise.

    Returns:
        One per system, in order.

    Raises:
        InputError: a system that is not at a stationary point, has constraints other
            than ``FixAtoms``, or masses that are not positive; the text names it. A
            potential without energies.
        InputTypeError: not a potential, or ``fmax`` is not a number.

    Warns:
        MlffWarning: a molecule is almost linear, see :data:`DOUBTFUL`; the text says
            how it was treated.
    """
    _check_fmax(fmax)
    batch = AtomsBatch.from_atoms(systems, charge, spin)
    sizes = batch.counts().tolist()
    mobile = [own.numpy() for own in mobile_atoms(systems).split(sizes)]
    for index, (atoms, own) in enumerate(zip(systems, mobile, strict=True)):
        masses = atoms.get_masses()[own]
        bad = masses[~(np.isfinite(masses) & (masses > 0))]
        if len(bad):
            raise InputError(
                f"system {index}: masses must be positive and finite, got {bad[0]:g}; "
                "set them with set_masses, or hold atoms with FixAtoms"
            )
    found = derivatives(batch, potential)
    states = zip(batch.charge.tolist(), batch.multiplicity.tolist(), strict=True)
    for index, (atoms, one, own) in enumerate(zip(systems, found, mobile, strict=True)):
        _check_stationary(index, one.forces[own], fmax)
        if own.all() and not atoms.pbc.any():
            _warn_if_doubtful(index, atoms.positions)
    return [
        _analyzed(set_state(atoms.copy(), *state), own, one)
        for atoms, state, own, one in zip(systems, states, mobile, found, strict=True)
    ]


def _check_fmax(fmax: Any) -> None:
    if isinstance(fmax, bool) or not isinstance(fmax, Real):
        raise InputTypeError(f"`fmax` must be a number, eV/Å, got {fmax!r}")
    if not float(fmax) > 0:
        raise InputError(f"`fmax` must be positive, eV/Å, got {fmax!r}")


def _warn_if_doubtful(index: int, positions: Array) -> None:
    from_line = _line(positions)[1]
    if DOUBTFUL[0] < from_line < DOUBTFUL[1]:
        linear = from_line < LINEAR
        warnings.warn(
            f"system {index}: atoms are up to {from_line:.3f} Å off a line; it was "
            f"treated as {'linear' if linear else 'bent'}, with {5 if linear else 6} "
            f"overall motions (linear is below {LINEAR:g} Å): relax it further, or "
            "straighten it",
            MlffWarning,
            stacklevel=3,
        )


def _check_stationary(index: int, forces: Array, fmax: float) -> None:
    largest = np.linalg.norm(forces, axis=1).max(initial=0.0)
    if not largest <= fmax:
        raise InputError(
            f"system {index}: the largest force is {largest:.3g} eV/Å, but harmonic "
            f"vibrations are those about a stationary point (`fmax`={fmax:g} eV/Å): "
            "relax it first with mlff.relax, or pass a larger `fmax`"
        )


def _analyzed(atoms: Atoms, mobile: Array, found: Derivatives) -> Vibrations:
    from ase.vibrations import VibrationsData  # draws in matplotlib

    indices = np.flatnonzero(mobile)
    rows = np.repeat(mobile, 3)
    hessian = found.hessian[np.ix_(rows, rows)]
    roots = np.repeat(np.sqrt(atoms.get_masses()[indices]), 3)
    overall = np.zeros((len(roots), 0))
    if mobile.all():
        overall = _overall_motion(atoms)
    basis = np.linalg.qr(overall, mode="complete")[0][:, overall.shape[1] :]
    weighted = hessian / roots[:, None] / roots
    squares, vectors = np.linalg.eigh(basis.T @ weighted @ basis)
    columns = (basis @ vectors).T
    quanta = _QUANTUM * np.sign(squares) * np.sqrt(np.abs(squares))
    cartesian = columns / roots
    intensities = None
    if found.dipole_derivatives is not None:
        slopes = cartesian @ found.dipole_derivatives[rows]
        intensities = KM_PER_MOL * np.square(slopes).sum(1)
    modes = np.zeros((len(quanta), len(atoms), 3))
    modes[:, indices] = columns.reshape(len(quanta), len(indices), 3)
    return Vibrations(
        data=VibrationsData.from_2d(atoms, hessian, indices.tolist()),
        frequencies=quanta / units.invcm,
        modes=modes,
        reduced_masses=1.0 / np.square(cartesian).sum(1),
        intensities=intensities,
        zero_point_energy=0.5 * float(quanta[quanta > 0].sum()),
    )


def _overall_motion(atoms: Atoms) -> Array:
    """Mass-weighted motions that deform nothing, as columns, (3 n_atoms, 3 to 6)."""
    roots = np.sqrt(atoms.get_masses())[:, None]
    moves = [roots * direction for direction in np.eye(3)]
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        moves += [roots * np.cross(axis, arms) for axis in _rotations(atoms.positions)]
    return np.stack([move.ravel() for move in moves], axis=1)


def _rotations(positions: Array) -> Array:
    """Axes about which a molecule turns, (0, 2 or 3, 3): not about that it lies on."""
    if len(positions) == 1:
        return np.zeros((0, 3))
    axes, from_line = _line(positions)
    return axes[1:] if from_line < LINEAR else axes


def _line(positions: Array) -> tuple[Array, float]:
    """Axes, the first along the best line, and the largest distance from it, Å."""
    arms = positions - positions.mean(0)
    axes: Array = np.linalg.svd(arms, full_matrices=True)[2]
    return axes, float(np.linalg.norm(arms @ axes[1:].T, axis=1).max())
