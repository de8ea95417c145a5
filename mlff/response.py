"""How the electrons of a converged molecule are spread, and how a field moves them.

Knows one-electron properties that PySCF does not give by itself. PySCF is imported by
what made the mean field.
"""

from typing import Any

import numpy as np

from mlff import units
from mlff.errors import MlffError

Array = np.ndarray[Any, Any]

#: Strength of the electric field of the finite differences, atomic units.
FIELD = 2e-3

#: Dipoles and energies in the field may disagree by this part of the polarizability,
#: and by this much, atomic units: else the response is not linear.
LINEAR = 0.03, 0.1

# SCF thresholds in a field, Hartree and its gradient: differences of dipoles need more
# than energies do.
_CONVERGENCE, _GRADIENT = 1e-12, 1e-7


class NotConvergedInField(MlffError, RuntimeError):
    """The SCF in an electric field did not converge; there is no polarizability."""


def center_of_nuclear_charge(field: Any) -> Array:
    """Return ``Σ Z r / ΣZ`` over all nuclei, (3,), Bohr; core potentials hide none."""
    from pyscf.data.elements import charge

    molecule = field.mol
    numbers = np.array([charge(molecule.atom_symbol(k)) for k in range(molecule.natm)])
    out: Array = numbers @ molecule.atom_coords() / numbers.sum()
    return out


def spatial_extent(field: Any) -> float:
    """Return ⟨R²⟩ = ∫ ρ(r) |r − r0|² of the electrons, Å².

    Args:
        field: converged mean field of PySCF.

    Returns:
        About r0, the center of nuclear charge; electrons of core potentials are left
        out.
    """
    with field.mol.with_common_orig(center_of_nuclear_charge(field)):
        integrals = field.mol.intor("int1e_r2")
    return float(np.einsum("ij,ji", integrals, _density(field))) * units.BOHR**2


def polarizability(field: Any) -> Array:
    """Return the static polarizability by central differences of the dipole.

    ``α_xy = (μ_x(F_y) − μ_x(−F_y)) / 2F`` with F = :data:`FIELD`; six SCF runs from the
    density without a field, so that they stay with its solution. Their energies must
    say the same: ``α_xx = −(E(F_x) + E(−F_x) − 2 E(0)) / F²``.

    Args:
        field: converged mean field of PySCF.

    Returns:
        Volumes α/(4πε₀), symmetrized, (3, 3), Å³.

    Raises:
        NotConvergedInField: one of the six did not converge, or went another way.
    """
    rows = []
    for axis in range(3):
        plus, minus = (_in_field(field, axis, sign * FIELD) for sign in (1, -1))
        rows.append((plus[0] - minus[0]) / (2 * FIELD))
        curvature = -(plus[1] + minus[1] - 2 * field.e_tot) / FIELD**2
        relative, absolute = LINEAR
        found = rows[-1][axis]
        if abs(curvature - found) > relative * abs(found) + absolute:
            raise NotConvergedInField(
                f"in an electric field along {'xyz'[axis]} dipoles say "
                f"{found * units.BOHR**3:.4g} Å³ and energies "
                f"{curvature * units.BOHR**3:.4g} Å³: the response to "
                f"{FIELD:g} atomic units is not linear (another state lies close): "
                "there is no polarizability"
            )
    alpha = np.array(rows) * units.BOHR**3
    out: Array = 0.5 * (alpha + alpha.T)
    return out


def _in_field(field: Any, axis: int, strength: float) -> tuple[Array, float]:
    """Electronic dipole (3,) and energy of the solution in a field, atomic units."""
    positions = field.mol.intor_symmetric("int1e_r", comp=3)
    hamiltonian = field.get_hcore() + strength * positions[axis]
    moved = field.copy()
    moved.get_hcore = lambda *_: hamiltonian
    moved.conv_tol, moved.conv_tol_grad = _CONVERGENCE, _GRADIENT
    moved.kernel(dm0=field.make_rdm1())
    if not moved.converged:
        moved = moved.newton()
        moved.kernel(dm0=field.make_rdm1())
    if not moved.converged:
        raise NotConvergedInField(
            f"the SCF in an electric field of {strength:g} atomic units along "
            f"{'xyz'[axis]} did not converge: there is no polarizability"
        )
    dipole: Array = -np.einsum("xij,ji->x", positions, _density(moved))
    return dipole, float(moved.e_tot)


def _density(field: Any) -> Array:
    """Density matrix of both spins together."""
    density: Array = np.asarray(field.make_rdm1())
    return density if density.ndim == 2 else density.sum(0)
