"""DFT labels with PySCF: one geometry and one state in, energy, forces and proof out.

Knows the input, the record and the units of a label; :mod:`mlff.scf` knows how to get
one. :class:`DFTCalculator` is the same for ASE. What does not converge is an error,
never a number. PySCF is imported only when a label is computed.

Restricted or unrestricted Kohn-Sham follows the multiplicity (``reference="auto"``)
and is stated in every label; restricted open-shell is never used. Forces contain the
response of the integration grid, so that they are the derivative of the energy.

Energies in eV, forces in eV/Å, dipoles in e·Å and the spatial extent in Å² about the
centre of nuclear charge, polarizability volumes in Å³.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from mlff import units
from mlff.errors import InputError, InputTypeError, MlffError
from mlff.response import NotConvergedInField, polarizability, spatial_extent
from mlff.scf import DFTSettings, NotConverged, Solution, functional, solve
from mlff.state import State, read_state

__all__ = [
    "DFTCalculator",
    "DFTSettings",
    "NotConverged",
    "canonical",
    "check_input",
    "functional",
    "input_hash",
    "label",
]

#: Version of the recipe; part of every input hash, raised when numbers would change.
RECIPE = 1

#: Two nuclei closer than this (Å) are refused: SCF happily converges to nonsense.
MIN_DISTANCE = 0.2

#: |<S²> − S(S+1)| above this is flagged as spin contamination.
CONTAMINATION_LIMIT = 0.1

#: Keys of ``info`` that :func:`label` writes, beside ``REF_*`` and the state; what an
#: earlier labelling left under these names is dropped.
LABEL_KEYS = (
    "s_squared",
    "contaminated",
    "gap_eV",
    "scf_rung",
    "stable",
    "stable_uks",
    "level_of_theory",
    "code",
    "input_hash",
)


def canonical(atoms: Atoms) -> Atoms:
    """Return a copy with positions as an extended XYZ file holds them (1e-8 Å).

    What is labelled is then exactly what the file says was labelled. Labels that the
    frame already carries are dropped: they belong to another calculation.
    """
    out = atoms.copy()
    out.calc = None
    out.positions = np.round(out.positions, 8) + 0.0
    for store in (out.info, out.arrays):
        for key in list(store):
            if key in LABEL_KEYS or str(key).startswith("REF_"):
                del store[key]
    return out


def input_hash(atoms: Atoms, state: State, settings: DFTSettings) -> str:
    """Return the hash of everything that decides a label: atoms, state, settings."""
    content = {
        "recipe": RECIPE,
        "numbers": atoms.numbers.tolist(),
        "positions": [[f"{x:.8f}" for x in row] for row in atoms.positions],
        "charge": state.charge,
        "multiplicity": state.multiplicity,
        "settings": settings.identity(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def check_input(atoms: Atoms, settings: DFTSettings) -> State:
    """Return the state to label, or raise before any work is done.

    Raises:
        InputError: no atoms, a ghost atom, no electrons, not finite, periodic, two
            nuclei closer than ``MIN_DISTANCE``, an unknown basis or functional, an
            impossible state, or no PySCF.
    """
    if len(atoms) == 0:
        raise InputError("`atoms` is empty: there is nothing to label")
    if (atoms.numbers < 1).any() or (atoms.numbers > 118).any():
        raise InputError(
            f"`atoms` must hold atomic numbers 1 … 118 only, got "
            f"{sorted(set(atoms.numbers.tolist()))}: ghost atoms are not supported"
        )
    if not np.isfinite(atoms.positions).all():
        raise InputError("`atoms.positions` must be finite")
    if atoms.pbc.any():
        raise InputError("`atoms` is periodic; labels are for molecules (pbc=False)")
    if len(atoms) > 1:
        distances = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
        if distances.min() < MIN_DISTANCE:
            raise InputError(
                f"two nuclei are {distances.min():.4f} Å apart, closer than "
                f"{MIN_DISTANCE} Å: SCF converges to nonsense there"
            )
    state = read_state(atoms, strict=True)
    if state.charge == atoms.numbers.sum():
        raise InputError(f"`charge`={state.charge} leaves no electron to compute")
    settings.restricted(state.multiplicity)
    _check_names(settings.xc, settings.basis, tuple(sorted(set(atoms.symbols))))
    return state


@lru_cache
def _check_names(xc: str, basis: str, symbols: tuple[str, ...]) -> None:
    functional(xc)
    from pyscf import gto

    for symbol in symbols:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advertises another package
                gto.basis.load(basis, symbol)
        except Exception as error:
            raise InputError(
                f"`basis`={basis!r} has no functions for {symbol} in PySCF: "
                + " ".join(str(error).split())
            ) from error


def label(atoms: Atoms, settings: DFTSettings | None = None) -> Atoms:
    """Return a copy of ``atoms`` with DFT energy, forces, dipole and provenance.

    Args:
        atoms: a molecule with its charge and multiplicity in ``atoms.info``.
        settings: level of theory; B3LYP (VWN5) / cc-pVDZ if not given.

    Returns:
        A copy whose ``info`` holds ``charge``, ``spin`` (2S+1), ``REF_energy`` (eV),
        ``REF_dipole`` (e·Å) and ``REF_spatial_extent`` (⟨R²⟩, Å²) about the centre of
        nuclear charge, ``REF_polarizability`` (Å³) if asked for, ``s_squared``,
        ``contaminated``, ``scf_rung`` (which rung of the ladder converged), ``gap_eV``
        (HOMO-LUMO; absent if the basis has no virtual orbital), ``stable`` (a minimum
        for its kind of reference; one that is not has been followed down, and is
        flagged if that did not end), ``stable_uks`` (restricted references only:
        whether an unrestricted solution lies lower; the restricted one is kept, for a
        surface must not change its reference half-way), ``level_of_theory``, ``code``
        and ``input_hash``; ``arrays`` holds ``REF_forces`` (n_atoms, 3), eV/Å.

    Raises:
        InputError: see :func:`check_input`.
        NotConverged: the SCF did not converge; there is no label.
    """
    settings = settings or DFTSettings()
    atoms = canonical(atoms)
    state = check_input(atoms, settings)
    solution = solve(atoms, state, settings)
    forces = _forces(solution.field, settings)
    energy = float(solution.field.e_tot) * units.HARTREE
    if not (math.isfinite(energy) and np.isfinite(forces).all()):
        raise NotConverged("SCF converged but energy or forces are not finite")
    out = atoms.copy()
    for key in ("initial_charges", "initial_magmoms"):
        out.arrays.pop(key, None)
    out.arrays["REF_forces"] = forces
    out.info.update(
        charge=state.charge,
        spin=state.multiplicity,
        REF_energy=energy,
        REF_dipole=_dipole(solution.field, atoms),
        REF_spatial_extent=spatial_extent(solution.field),
        **_evidence(solution, state),
        level_of_theory=settings.level_of_theory(state.multiplicity),
        code=_code(),
        input_hash=input_hash(atoms, state, settings),
    )
    if settings.polarizability:
        try:
            out.info["REF_polarizability"] = polarizability(solution.field)
        except NotConvergedInField as error:
            raise NotConverged(f"{error}; label this one without it") from error
    if solution.stable is not None:
        out.info["stable"] = solution.stable
    if solution.stable_uks is not None:
        out.info["stable_uks"] = solution.stable_uks
    return out


def _forces(field: Any, settings: DFTSettings) -> np.ndarray[Any, Any]:
    """Forces with the response of the grid, (n_atoms, 3), eV/Å."""
    gradients = field.nuc_grad_method()
    # Pure Hartree-Fock has no grid, and PySCF fails to differentiate none.
    gradients.grid_response = bool(functional(settings.xc)["libxc"])
    return np.ascontiguousarray(-gradients.kernel() * units.HARTREE_PER_BOHR)


def _evidence(solution: Solution, state: State) -> dict[str, Any]:
    """What shows whether the state found is the state asked for."""
    s_squared = float(solution.field.spin_square()[0])
    spin = 0.5 * (state.multiplicity - 1)
    found: dict[str, Any] = {
        "s_squared": round(s_squared, 6) + 0.0,
        "contaminated": abs(s_squared - spin * (spin + 1)) > CONTAMINATION_LIMIT,
    }
    gap = _gap(solution.field)
    if gap is not None:
        found["gap_eV"] = round(gap * units.HARTREE, 6)
    return {**found, "scf_rung": solution.rung}


def _dipole(field: Any, atoms: Atoms) -> np.ndarray[Any, Any]:
    """Dipole about the centre of nuclear charge, (3,), e·Å."""
    centre = atoms.numbers @ field.mol.atom_coords() / atoms.numbers.sum()
    about_origin = np.asarray(field.dip_moment(unit="AU", verbose=0))
    return (about_origin - field.mol.charge * centre) * units.BOHR


def _gap(field: Any) -> float | None:
    """Lowest virtual minus highest occupied orbital energy over both spins, Ha."""
    energies, occupations = np.ravel(field.mo_energy), np.ravel(field.mo_occ)
    virtual = energies[occupations == 0]
    if not len(virtual):
        return None
    return float(virtual.min() - energies[occupations > 0].max())


def _code() -> str:
    import pyscf

    return f"pyscf-{pyscf.__version__}"


class DFTCalculator(Calculator):
    """Labels as a calculator of ASE: for relaxations, crossings and scans by DFT.

    Charge and spin are read from ``atoms.info`` at each call, as the calculator of a
    model does, so that one serves all states of a molecule. Results are compared by
    value with what they were computed from: positions, numbers, and the charge and
    multiplicity. What does not converge is an error (:class:`NotConverged`), and leaves
    no results. Dipoles are about the center of nuclear charge.

    Attributes:
        settings: level of theory.
        labelled: the last frame as :func:`label` returned it, with what shows whether
            the state is the one asked for; ``None`` if there are no results.

    Args:
        settings: level of theory; B3LYP (VWN5) / cc-pVDZ if not given.

    Raises:
        InputTypeError: ``settings`` are something else.
    """

    implemented_properties = ["energy", "free_energy", "forces", "dipole"]  # noqa: RUF012
    discard_results_on_any_change = True

    def __init__(self, settings: DFTSettings | None = None) -> None:
        if settings is not None and not isinstance(settings, DFTSettings):
            raise InputTypeError(
                "`settings` must be mlff.dft.DFTSettings, for example "
                f"DFTSettings(xc='b3lyp5', basis='cc-pvdz'), got {settings!r}"
            )
        self.settings = DFTSettings() if settings is None else settings
        self.labelled: Atoms | None = None
        self._input: dict[str, bytes | State] = {}
        super().__init__()

    def _get_name(self) -> str:
        return "mlff-dft"

    def reset(self) -> None:
        """Forget all results."""
        super().reset()
        self._input, self.labelled = {}, None

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Return the names of what changed since the results were computed.

        Args:
            atoms: the system.
            tol: not used: the comparison is exact.
        """
        try:
            now = _decisive(atoms)
        except MlffError:  # which calculate() raises, after ASE has cleared the results
            return list(all_changes)
        return [name for name, value in now.items() if self._input.get(name) != value]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Label a system; called by ASE.

        Args:
            atoms: the system, not modified; that of the last results if not given.
            properties: what has to be among the results.
            system_changes: not used: what changed is found by value.

        Raises:
            InputError: whatever is wrong with the system.
            NotConverged: the SCF did not converge.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError("`atoms` is needed: there are no results to refer to")
        self.reset()
        found = _decisive(atoms)
        labelled = label(atoms, self.settings)
        super().calculate(atoms, properties, system_changes)
        energy = labelled.info["REF_energy"]
        self.results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "forces": labelled.arrays["REF_forces"].copy(),
            "dipole": labelled.info["REF_dipole"].copy(),
        }
        self._input, self.labelled = found, labelled


def _decisive(atoms: Atoms) -> dict[str, bytes | State]:
    """What decides the results, by the names that ``check_state`` reports."""
    return {
        "numbers": atoms.numbers.tobytes(),
        "pbc": atoms.pbc.tobytes(),
        "info": read_state(atoms, strict=True),
        "positions": atoms.positions.tobytes(),
    }
