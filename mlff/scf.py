"""A Kohn-Sham solution that converged to a minimum, by PySCF, or an error.

Knows the failure modes of SCF: PySCF returns an energy, and a gradient, whether or not
it converged, reads a restricted calculation of an open shell as restricted open-shell,
and leaves out the core potentials that a basis set was made for. PySCF is imported only
when a function is called.
"""

import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from ase import Atoms

from mlff.errors import InputError, MlffError
from mlff.state import State

# An unstable solution is followed down this many times.
_DESCENTS = 3

# A descent that gains less (Hartree) went along a flat direction: a density that breaks
# the symmetry of a linear molecule turns about the axis, and only the grid resists.
_FLAT = 1e-6

# Level of the grid for the stability analysis: a third of the time of level 3, with
# eigenvalues of small molecules within 1e-4 Hartree.
_STABILITY_GRID = 1


class NotConverged(MlffError, RuntimeError):
    """The SCF did not converge by any rung of the ladder; there is no label."""


@dataclass(frozen=True, kw_only=True)
class DFTSettings:
    """How a label is computed. Every field is part of the input hash.

    Attributes:
        xc: exchange-correlation functional as PySCF names it. ``"b3lyp5"`` is B3LYP
            with VWN5, which PySCF called ``"b3lyp"`` before version 2.3.
        basis: basis set as PySCF names it; its effective core potentials, where it
            has some, are used with it.
        reference: ``"auto"`` (restricted for singlets, unrestricted otherwise),
            ``"restricted"`` (singlets only) or ``"unrestricted"``.
        grid_level: PySCF's integration grid, 0 … 9.
        convergence: SCF energy threshold, Hartree.
        max_cycles: SCF cycles on each rung of the ladder.
        stability: analyse whether the solution is a minimum, and follow it down if
            it is not.
        polarizability: compute it too, which takes six more SCF runs.
    """

    xc: str = "b3lyp5"
    basis: str = "cc-pvdz"
    reference: str = "auto"
    grid_level: int = 3
    convergence: float = 1e-10
    max_cycles: int = 100
    stability: bool = True
    polarizability: bool = False

    def __post_init__(self) -> None:
        if self.reference not in ("auto", "restricted", "unrestricted"):
            raise InputError(
                "`reference` must be 'auto', 'restricted' or 'unrestricted', got "
                f"{self.reference!r}"
            )
        if not 0 <= self.grid_level <= 9:
            raise InputError(f"`grid_level` must be 0 … 9, got {self.grid_level}")
        if not 0 < self.convergence < 1:
            raise InputError(
                "`convergence` must lie between 0 and 1 Hartree, got "
                f"{self.convergence}"
            )
        if self.max_cycles < 1:
            raise InputError(f"`max_cycles` must be at least 1, got {self.max_cycles}")

    def identity(self) -> dict[str, Any]:
        """Return what decides a label.

        What an older version did not know is left out where it is off, so that its
        labels are still recognised.
        """
        content = asdict(self)
        if not self.polarizability:
            del content["polarizability"]
        return content

    def restricted(self, multiplicity: int) -> bool:
        """Return whether a state of this multiplicity is computed restricted."""
        if self.reference == "restricted" and multiplicity != 1:
            raise InputError(
                f"`reference`='restricted' needs a singlet, got multiplicity "
                f"{multiplicity}: restricted open-shell is not offered; use 'auto'"
            )
        if self.reference == "auto":
            return multiplicity == 1
        return self.reference == "restricted"

    def level_of_theory(self, multiplicity: int) -> str:
        """Return the name of the level, e.g. ``"RKS-b3lyp5/cc-pvdz"``."""
        kind = "RKS" if self.restricted(multiplicity) else "UKS"
        return f"{kind}-{self.xc}/{self.basis}"


def named_level(level: str) -> dict[str, str]:
    """Return the settings that the name of a level stands for.

    Args:
        level: like ``"b3lyp5/cc-pvdz"``, or ``"UKS-b3lyp5/def2-svpd"`` where singlets
            are unrestricted too.

    Returns:
        ``xc``, ``basis`` and, for the latter, ``reference``; empty if the name is
        another.
    """
    kind, _, rest = level.rpartition("KS-")
    xc, _, basis = rest.rpartition("/")
    if not xc or not basis or kind not in ("", "R", "U"):
        return {}
    settings = {"xc": xc, "basis": basis}
    return {**settings, "reference": "unrestricted"} if kind == "U" else settings


def is_level(settings: DFTSettings, level: str) -> bool:
    """Return whether settings are those that the name of a level stands for.

    Spelling does not count; a grid that is coarser than usual is another level.
    """
    named = {"reference": "auto", **named_level(level)}
    own = {name: getattr(settings, name) for name in named}
    alike = {k: _plain(v) for k, v in named.items()} == {
        k: _plain(v) for k, v in own.items()
    }
    return "xc" in named and alike and settings.grid_level >= DFTSettings.grid_level


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def functional(xc: str) -> dict[str, Any]:
    """Return what a functional's name means to the installed PySCF.

    Names have changed their meaning between versions (``"b3lyp"``); the composition
    has not.

    Args:
        xc: as in :class:`DFTSettings`.

    Returns:
        ``exact_exchange`` (full range, long range, range parameter), ``libxc`` (weight
        by libxc identifier) and ``dispersion`` (``None`` if there is none).

    Raises:
        InputError: unknown, empty, or in need of a package that is not installed.
    """
    if find_spec("pyscf") is None:
        raise InputError("labels need PySCF: install it with pip install 'mlff[dft]'")
    from pyscf.dft import libxc
    from pyscf.scf import dispersion

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exchange, components = libxc.parse_xc(xc)
            correction = dispersion.parse_disp(xc)[1]
    except Exception as error:
        raise InputError(f"`xc`={xc!r} is unknown to PySCF: {error}") from error
    if not components and not any(exchange):
        raise InputError(f"`xc`={xc!r} names no functional")
    if correction and find_spec("pyscf.dispersion") is None:
        raise InputError(
            f"`xc`={xc!r} includes a dispersion correction, which needs "
            "pip install pyscf-dispersion"
        )
    return {
        "exact_exchange": [float(x) for x in exchange],
        "libxc": {str(int(number)): float(weight) for number, weight in components},
        "dispersion": correction,
    }


@dataclass(frozen=True)
class Solution:
    """A converged mean field.

    Attributes:
        field: PySCF's mean-field object.
        rung: which rung of the ladder converged it.
        stable: whether it is a minimum for its kind of reference; ``None`` if not
            analysed.
        stable_uks: whether no unrestricted solution lies lower; ``None`` if not
            analysed or unrestricted already.
    """

    field: Any
    rung: str
    stable: bool | None = None
    stable_uks: bool | None = None


def solve(atoms: Atoms, state: State, settings: DFTSettings) -> Solution:
    """Converge one state of one molecule and, if asked to, analyse its stability.

    A solution that is not a minimum is followed down within its kind of reference. A
    restricted one stays restricted where an unrestricted one lies lower, because a
    surface must not change its reference half-way; the finding is returned.

    Raises:
        NotConverged: no rung of the ladder converged.
    """
    restricted = settings.restricted(state.multiplicity)
    field, rung = _converge(_mean_field(atoms, state, settings))
    if not settings.stability:
        return Solution(field, rung)
    field, descents, stable = _follow_down(field, restricted)
    if descents:
        rung += ", instability followed"
    stable_uks = _stable_towards_unrestricted(field) if restricted else None
    return Solution(field, rung, stable, stable_uks)


def _core_potentials(basis: str, symbols: set[str]) -> dict[str, str]:
    """Effective core potentials that a basis set is made for.

    Without them PySCF fills the core with valence functions, converges, and is wrong
    by hundreds of Hartree.
    """
    from pyscf import gto

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advertises another package
        return {s: basis for s in symbols if gto.basis.load_ecp(basis, s)}


def _mean_field(atoms: Atoms, state: State, settings: DFTSettings) -> Any:
    from pyscf import dft, gto

    molecule = gto.M(
        atom=[
            (s, tuple(r)) for s, r in zip(atoms.symbols, atoms.positions, strict=True)
        ],
        unit="Angstrom",
        basis=settings.basis,
        ecp=_core_potentials(settings.basis, set(atoms.symbols)),
        charge=state.charge,
        spin=state.multiplicity - 1,
        symmetry=False,
        verbose=0,
    )
    restricted = settings.restricted(state.multiplicity)
    field = dft.RKS(molecule) if restricted else dft.UKS(molecule)
    field.xc = settings.xc
    field.grids.level = settings.grid_level
    field.conv_tol = settings.convergence
    field.conv_tol_grad = settings.convergence**0.5
    field.max_cycle = settings.max_cycles
    # No checkpoint file: a killed worker would leave it behind.
    field.chkfile = field._chkfile = None
    return field


def _converge(field: Any) -> tuple[Any, str]:
    """Climb the ladder DIIS → damping and level shift → second order."""
    field.kernel()
    if field.converged:
        return field, "diis"
    field.level_shift, field.damp, field.diis_start_cycle = 0.3, 0.5, 8
    field.kernel(dm0=field.make_rdm1())
    density = field.make_rdm1()
    # The shift is taken off again: only the bare equations define a label.
    field.level_shift, field.damp, field.diis_start_cycle = 0.0, 0.0, 1
    field.kernel(dm0=density)
    if field.converged:
        return field, "level shift"
    second = field.newton()
    second.kernel(dm0=density)
    if second.converged:
        return second.undo_soscf(), "second order"
    raise NotConverged(
        f"SCF did not converge in {field.max_cycle} cycles with DIIS, with level shift "
        "and damping, nor to second order"
    )


def _follow_down(field: Any, restricted: bool) -> tuple[Any, int, bool]:
    """Leave saddle points of the energy, staying restricted if the field is.

    Returns:
        The field, how often it was followed down, and whether it is a minimum.
    """
    from pyscf.scf.stability import rhf_internal, uhf_internal

    analyse = rhf_internal if restricted else uhf_internal
    stable, descents = not _has_rotations(field), 0
    while not stable:
        # with_symmetry=False starts the search from an asymmetric vector. The default
        # keeps the symmetry of the orbitals, and so calls a restricted solution of
        # stretched H2 stable in the unrestricted space.
        orbitals, stable = analyse(
            _on_coarse_grid(field), with_symmetry=False, return_status=True
        )
        if stable or descents == _DESCENTS:
            break
        before = field.e_tot
        second = field.newton()  # goes down only, unlike DIIS
        second.kernel(orbitals, field.mo_occ)
        if not second.converged:
            raise NotConverged("SCF did not converge after an instability was followed")
        field, descents = second.undo_soscf(), descents + 1
        stable = before - field.e_tot < _FLAT
    return field, descents, bool(stable)


def _on_coarse_grid(field: Any) -> Any:
    coarse = field.copy()
    coarse.grids = type(field.grids)(field.mol)
    coarse.grids.level = min(field.grids.level, _STABILITY_GRID)
    return coarse


def _stable_towards_unrestricted(field: Any) -> bool:
    if not _has_rotations(field):
        return True
    return bool(field.stability(internal=False, external=True, return_status=True)[3])


def _has_rotations(field: Any) -> bool:
    """Whether any spin has an occupied and a virtual orbital to mix."""
    return any(
        (spin > 0).any() and (spin == 0).any() for spin in np.atleast_2d(field.mo_occ)
    )
