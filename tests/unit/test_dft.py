"""Labels of single molecules: physics, and every way in which PySCF can mislead.

Numbers in test names are items of the list of failures that the package guards against.
"""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mlff import dft, scf, units
from mlff.dft import (
    DFTSettings,
    NotConverged,
    canonical,
    check_input,
    input_hash,
    label,
)
from mlff.errors import InputError, InputTypeError, StateError
from mlff.state import set_state

pytest.importorskip("pyscf")
pytestmark = pytest.mark.pyscf

FAST = {"basis": "sto-3g", "grid_level": 1}


def diatomic(symbols: str, distance: float, charge: int = 0, spin: int = 1) -> Atoms:
    atoms = Atoms(symbols, positions=[[0.1, -0.2, 0.3], [0.1, -0.2, 0.3 + distance]])
    return set_state(atoms, charge, spin)


def bent(name: str, charge: int, spin: int) -> Atoms:
    atoms = molecule(name)
    atoms.set_initial_magnetic_moments(None)
    atoms.rattle(0.05, seed=3)
    return set_state(atoms, charge, spin)


@pytest.fixture
def no_scf(monkeypatch):
    """Any attempt to compute is a failure of the test."""

    def refuse(*arguments):
        raise AssertionError("SCF was started")

    monkeypatch.setattr(dft, "solve", refuse)


# Physics


@pytest.mark.parametrize(
    ("name", "charge", "spin"),
    [("H2O", 0, 1), ("CH2_s3B1d", 0, 3), ("H2O", 1, 2)],
    ids=["singlet", "triplet", "charged doublet"],
)
def test_forces_are_the_derivative_of_the_energy(name, charge, spin):
    # A coarse grid: without its response the forces would be wrong by 1e-2 eV/Å.
    settings = DFTSettings(basis="sto-3g", grid_level=0, stability=False)
    atoms = bent(name, charge, spin)
    forces = label(atoms, settings).arrays["REF_forces"]
    rng = np.random.default_rng(7)
    for _ in range(3):
        direction = rng.normal(size=(len(atoms), 3))
        direction /= np.linalg.norm(direction)
        energies = []
        for step in (1e-3, -1e-3):
            moved = atoms.copy()
            moved.positions += step * direction
            energies.append(label(moved, settings).info["REF_energy"])
        slope = (energies[0] - energies[1]) / 2e-3
        assert -slope == pytest.approx((forces * direction).sum(), abs=1e-4)


def test_energy_is_that_of_pyscf_converted_to_ev():
    from pyscf import dft as pyscf_dft
    from pyscf import gto

    atoms = diatomic("OH", 0.97, spin=2)
    found = label(atoms, DFTSettings(basis="sto-3g", xc="pbe"))
    mol = gto.M(
        atom=list(zip(atoms.symbols, atoms.positions, strict=True)),
        basis="sto-3g",
        spin=1,
        verbose=0,
    )
    field = pyscf_dft.UKS(mol, xc="pbe").run(conv_tol=1e-10)
    assert found.info["REF_energy"] == pytest.approx(27.211386245988 * field.e_tot)
    # Restricted open-shell would give 0.75 exactly.
    assert found.info["s_squared"] > 0.7501


def test_methylene_has_the_energies_that_the_shipped_data_were_made_with():
    # Also guards the meaning of "b3lyp5": plain "b3lyp" lies 0.79 eV lower.
    atoms = Atoms("CHH", positions=[[0, 0, 0], [0.95, 0, 0], [0, 0.95, 0]])
    singlet = label(set_state(atoms, 0, 1), DFTSettings())
    assert singlet.info["REF_energy"] == pytest.approx(-1062.612236, abs=1e-5)
    assert singlet.arrays["REF_forces"][0, 0] == pytest.approx(-7.599958, abs=1e-4)


def test_dipole_is_about_the_centre_of_nuclear_charge():
    atoms = diatomic("OH", 1.03, charge=1, spin=3)
    settings = DFTSettings(**FAST, stability=False)
    here = label(atoms, settings).info["REF_dipole"]
    atoms.positions += [3.0, -5.0, 7.0]
    there = label(atoms, settings).info["REF_dipole"]
    np.testing.assert_allclose(here, there, atol=1e-4)
    # O+ at the proton's side: the hydrogen end is the positive one.
    assert here[2] > 0.1
    assert np.abs(here[:2]).max() < 1e-3


def test_dipole_of_an_ion_with_one_atom_is_zero():
    atoms = set_state(Atoms("He", positions=[[1.0, 2.0, 3.0]]), 1, 2)
    dipole = label(atoms, DFTSettings(**FAST)).info["REF_dipole"]
    assert np.abs(dipole).max() < 1e-6


def test_dipole_of_a_neutral_molecule_is_that_of_pyscf():
    atoms = bent("H2O", 0, 1)
    settings = DFTSettings(**FAST)
    field = scf.solve(canonical(atoms), check_input(atoms, settings), settings).field
    debye = field.dip_moment(unit="Debye", verbose=0)
    found = label(atoms, settings).info["REF_dipole"]
    np.testing.assert_allclose(found, debye * units.DEBYE, atol=1e-5)


@pytest.mark.parametrize(
    ("symbols", "charge", "spin"), [("H", 0, 2), ("He", 0, 1), ("H2", 0, 3)]
)
def test_a_basis_without_virtual_orbitals_is_labelled_without_a_gap(
    symbols, charge, spin
):
    distance = 0.8 * np.arange(len(Atoms(symbols)))[:, None] * [0, 0, 1]
    atoms = set_state(Atoms(symbols, positions=distance), charge, spin)
    found = label(atoms, DFTSettings(basis="sto-3g"))
    assert found.info["stable"] is True
    assert ("gap_eV" in found.info) == (symbols == "H2" or spin == 2)


def test_core_potentials_come_with_the_basis_that_was_made_for_them():
    atoms = diatomic("HI", 1.6)
    settings = DFTSettings(basis="def2-svp", grid_level=0, stability=False)
    field = scf.solve(atoms, check_input(atoms, settings), settings).field
    assert field.mol.nelectron == 26
    dipole = label(atoms, settings).info["REF_dipole"]
    # 0.45 D by experiment; the origin does not matter for a neutral molecule.
    assert 0.2 < np.linalg.norm(dipole) / units.DEBYE < 0.8


# 47: what does not converge is never a number


@pytest.mark.parametrize("max_cycles", [1, 2, 3])
def test_47_scf_that_does_not_converge_is_an_error(max_cycles):
    settings = DFTSettings(**FAST, max_cycles=max_cycles)
    with pytest.raises(NotConverged, match=f"in {max_cycles} cycles"):
        label(diatomic("OH", 0.97, spin=2), settings)


@pytest.mark.parametrize(
    ("atoms", "max_cycles", "rung"),
    [
        (diatomic("NO", 1.15, spin=2), 6, "level shift"),
        (set_state(Atoms("B"), 0, 2), 8, "second order"),
    ],
    ids=["level shift", "second order"],
)
def test_47_every_rung_of_the_ladder_leads_to_the_same_label(atoms, max_cycles, rung):
    settings = {"basis": "sto-3g", "grid_level": 0, "stability": False}
    easy = label(atoms, DFTSettings(**settings)).info
    hard = label(atoms, DFTSettings(**settings, max_cycles=max_cycles)).info
    assert (easy["scf_rung"], hard["scf_rung"]) == ("diis", rung)
    assert hard["REF_energy"] == pytest.approx(easy["REF_energy"], abs=1e-6)
    # A level shift left in place would widen the gap by 8 eV.
    assert hard["gap_eV"] == pytest.approx(easy["gap_eV"], abs=1e-2)


def test_47_non_finite_forces_are_an_error(monkeypatch):
    monkeypatch.setattr(dft, "_forces", lambda *_: np.full((2, 3), np.nan))
    with pytest.raises(NotConverged, match="not finite"):
        label(diatomic("H2", 0.74), DFTSettings(**FAST))


# 48, 49: the functional and the reference are what the label says


def test_48_the_two_meanings_of_b3lyp_are_told_apart():
    atoms = diatomic("H2", 0.74)
    energies = [
        label(atoms, DFTSettings(xc=xc, **FAST)).info["REF_energy"]
        for xc in ("b3lyp5", "b3lyp")
    ]
    assert abs(energies[0] - energies[1]) > 0.1
    vwn5, vwn_rpa = "7", "402"
    assert vwn5 in dft.functional("b3lyp5")["libxc"]
    assert vwn_rpa in dft.functional("b3lyp")["libxc"]


@pytest.mark.parametrize(
    ("reference", "spin", "kind"),
    [
        ("auto", 1, "RKS"),
        ("auto", 3, "UKS"),
        ("unrestricted", 1, "UKS"),
        ("restricted", 1, "RKS"),
    ],
)
def test_49_restricted_or_not_follows_the_rule_and_is_stated(reference, spin, kind):
    settings = DFTSettings(reference=reference, **FAST, stability=False)
    atoms = diatomic("O2", 1.21, spin=spin)
    solution = scf.solve(atoms, check_input(atoms, settings), settings)
    assert type(solution.field).__name__ == kind
    assert label(atoms, settings).info["level_of_theory"] == f"{kind}-b3lyp5/sto-3g"


def test_49_restricted_open_shell_is_refused(no_scf):
    with pytest.raises(InputError, match="restricted open-shell is not offered"):
        label(diatomic("O2", 1.21, spin=3), DFTSettings(reference="restricted"))


# 50: spin contamination and instability


def test_50_a_broken_symmetry_singlet_is_found_and_flagged():
    atoms = diatomic("H2", 2.0)
    restricted = label(atoms, DFTSettings(**FAST)).info
    broken = label(atoms, DFTSettings(**FAST, reference="unrestricted")).info
    assert restricted["stable"] is True
    assert restricted["stable_uks"] is False
    assert restricted["s_squared"] == 0.0
    assert broken["stable"] is True
    assert broken["scf_rung"] == "diis, instability followed"
    assert broken["contaminated"] is True
    assert 0.1 < broken["s_squared"] < 1.1
    assert broken["REF_energy"] < restricted["REF_energy"] - 0.1


def test_50_a_clean_triplet_is_not_flagged():
    found = label(diatomic("O2", 1.21, spin=3), DFTSettings(**FAST)).info
    assert found["contaminated"] is False
    assert found["s_squared"] == pytest.approx(2.0, abs=0.01)
    assert "stable_uks" not in found


def test_50_following_an_instability_never_raises_the_energy():
    # Degenerate orbitals on a grid: DIIS would often end above where it began.
    settings = {"basis": "sto-3g", "xc": "m062x"}
    followed = 0
    for distance in (0.97, 1.01, 1.05):
        atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, distance]])
        set_state(atoms, 0, 2)
        above = label(atoms, DFTSettings(**settings, stability=False)).info
        below = label(atoms, DFTSettings(**settings)).info
        followed += below["scf_rung"].endswith("instability followed")
        assert below["REF_energy"] <= above["REF_energy"] + 1e-7
    assert followed


# 51, 52 and the states: refused before any work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"basis": "cc-pvdx"}, "`basis`='cc-pvdx' has no functions for H"),
        ({"basis": ""}, "`basis`='' has no functions"),
        ({"xc": "b4lyp"}, "`xc`='b4lyp' is unknown to PySCF"),
        ({"xc": ""}, "`xc`='' names no functional"),
    ],
)
def test_51_unknown_names_are_refused_before_any_work(settings, message, no_scf):
    with pytest.raises(InputError, match=message):
        label(diatomic("OH", 0.97, spin=2), DFTSettings(**settings))


def test_51_an_element_outside_the_basis_is_refused(no_scf):
    with pytest.raises(InputError, match="no functions for I"):
        label(diatomic("HI", 1.6), DFTSettings(basis="cc-pvdz"))


def test_51_a_dispersion_correction_without_its_package_is_refused(no_scf):
    if scf.find_spec("pyscf.dispersion") is not None:
        pytest.skip("pyscf-dispersion is installed")
    with pytest.raises(InputError, match="pip install pyscf-dispersion"):
        label(diatomic("H2", 0.74), DFTSettings(xc="b3lyp-d3bj"))


def test_51_without_pyscf_the_error_says_how_to_get_it(no_scf, monkeypatch):
    monkeypatch.setattr(scf, "find_spec", lambda name: None)
    dft._check_names.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'mlff\[dft\]'"):
        label(diatomic("H2", 0.74), DFTSettings())


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "empty"),
        (Atoms("XH", positions=[[0, 0, 0], [0, 0, 1]]), "1 … 118"),
        (Atoms("H", positions=[[0, 0, np.nan]]), "finite"),
        (Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]], pbc=True), "periodic"),
    ],
    ids=["empty", "ghost", "nan", "periodic"],
)
def test_51_systems_that_are_no_molecule_are_refused(atoms, message, no_scf):
    atoms.info.update(charge=0, spin=1)
    with pytest.raises(InputError, match=message):
        label(atoms, DFTSettings())


@pytest.mark.parametrize("distance", [0.0, 1e-3, 0.19])
def test_52_overlapping_nuclei_are_refused(distance, no_scf):
    with pytest.raises(InputError, match=r"closer than 0\.2 Å"):
        label(diatomic("H2", distance), DFTSettings())


def test_52_close_nuclei_are_not():
    check_input(diatomic("H2", 0.21), DFTSettings())


@pytest.mark.parametrize(
    ("info", "error", "message"),
    [
        ({}, StateError, "no charge and no spin"),
        ({"charge": 0}, StateError, "no spin"),
        ({"charge": 0.5, "spin": 2}, StateError, "integral"),
        ({"charge": "0", "spin": 2}, InputTypeError, "must be one"),
        ({"charge": 0, "spin": 1}, StateError, "9 electrons"),
        ({"charge": 0, "spin": 20}, StateError, "must lie in 1 … 10"),
        ({"charge": 9, "spin": 1}, InputError, "no electron"),
        ({"charge": 10, "spin": 2}, StateError, "nuclear charge"),
        ({"charge": 0, "spin": 2, "multiplicity": 4}, StateError, "conflicting"),
    ],
)
def test_states_that_cannot_be_are_refused_before_any_work(
    info, error, message, no_scf
):
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 0.97]], info=info)
    with pytest.raises(error, match=message):
        label(atoms, DFTSettings())


@pytest.mark.parametrize(
    "settings",
    [
        {"reference": "ROKS"},
        {"grid_level": 10},
        {"max_cycles": 0},
        {"convergence": 0.0},
        {"convergence": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match=f"`{next(iter(settings))}` must"):
        DFTSettings(**settings)


# The record


def test_a_label_is_a_copy_that_keeps_what_the_frame_says():
    atoms = diatomic("H2", 0.74)
    atoms.info["config_type"] = "scan"
    before = atoms.copy()
    found = label(atoms, DFTSettings(**FAST))
    assert atoms == before
    assert atoms.info == before.info
    assert found.info["config_type"] == "scan"
    assert found.info["charge"] == 0
    assert found.info["spin"] == 1
    assert found.arrays["REF_forces"].dtype == np.float64
    assert found.info["code"].startswith("pyscf-")


def test_labels_of_an_earlier_calculation_do_not_survive():
    first = label(diatomic("H2", 2.0), DFTSettings(**FAST))
    first.info["REF_stress"] = 1.0
    first.set_array("REF_charges", np.zeros(2))
    again = label(first, DFTSettings(**FAST, reference="unrestricted", stability=False))
    assert "stable" in first.info
    for stale in ("stable", "stable_uks", "REF_stress"):
        assert stale not in again.info
    assert "REF_charges" not in again.arrays


def test_the_hash_sees_everything_that_decides_a_label_and_nothing_else():
    def of(distance=0.74, charge=0, spin=1, symbols="H2", note=None, **settings):
        atoms = canonical(diatomic(symbols, distance, charge, spin))
        atoms.info["note"] = note
        chosen = DFTSettings(**settings)
        return input_hash(atoms, dft.read_state(atoms), chosen)

    assert of() == of(note="anything") == of(distance=0.74 + 1e-11)
    different = [
        of(distance=0.75),
        of(spin=3),
        of(charge=2, symbols="He2"),
        of(charge=1, spin=2),
        of(xc="pbe"),
        of(basis="sto-3g"),
        of(grid_level=4),
        of(max_cycles=50),
        of(stability=False),
        of(reference="unrestricted"),
        of(convergence=1e-9),
    ]
    assert len({of(), *different}) == len(different) + 1


def test_the_hash_of_the_shipped_recipe_has_not_changed():
    # The journals of running and finished jobs are keyed by it.
    atoms = Atoms("CHH", positions=[[0, 0, 0], [0.95, 0, 0], [0, 0.95, 0]])
    atoms = canonical(set_state(atoms, 0, 1))
    found = input_hash(atoms, dft.read_state(atoms), DFTSettings())
    assert found == "5bfee8aef3992503b17978d2c4f3f3ef"


# Response


def test_the_extent_of_a_hydrogen_atom_is_three_bohr_squared():
    atoms = set_state(Atoms("H", positions=[[5.0, -3.0, 1.0]]), 0, 2)
    settings = DFTSettings(xc="hf", basis="cc-pv5z", stability=False)
    found = label(atoms, settings).info["REF_spatial_extent"]
    assert found == pytest.approx(3.0 * units.BOHR**2, rel=2e-3)


def test_the_extent_does_not_depend_on_where_an_ion_is():
    atoms = bent("H2O", 1, 2)
    settings = DFTSettings(**FAST)
    here = label(atoms, settings).info["REF_spatial_extent"]
    atoms.positions += [3.0, -2.0, 5.0]
    assert label(atoms, settings).info["REF_spatial_extent"] == pytest.approx(here)


@pytest.mark.parametrize(("name", "spin"), [("H2O", 1), ("CH2_s3B1d", 3)])
def test_the_polarizability_is_the_curvature_of_the_energy_in_a_field(name, spin):
    """Second differences of energies, which share nothing with those of dipoles."""
    atoms = bent(name, 0, spin)
    settings = DFTSettings(xc="hf", basis="6-31g", polarizability=True, stability=False)
    found = label(atoms, settings).info["REF_polarizability"]
    assert np.allclose(found, found.T)
    state = check_input(atoms, settings)
    field = scf.solve(atoms, state, settings).field
    positions, step = field.mol.intor_symmetric("int1e_r", comp=3), 0.01
    for axis in range(3):
        energies = []
        for strength in (-step, 0.0, step):
            moved = field.copy()
            matrix = field.get_hcore() + strength * positions[axis]
            moved.get_hcore = lambda *_, matrix=matrix: matrix
            moved.conv_tol = 1e-13
            energies.append(moved.kernel(dm0=field.make_rdm1()))
        curvature = -(energies[0] - 2 * energies[1] + energies[2]) / step**2
        alpha = curvature * units.BOHR**3
        assert found[axis, axis] == pytest.approx(alpha, rel=5e-3)


def test_labels_without_polarizability_keep_their_hash():
    """A journal of an older version is still recognised."""
    assert "polarizability" not in DFTSettings().identity()
    assert DFTSettings(polarizability=True).identity()["polarizability"] is True


def test_a_field_that_does_not_converge_gives_no_label(monkeypatch):
    settings = DFTSettings(**FAST, polarizability=True, stability=False, max_cycles=20)
    monkeypatch.setattr("mlff.response._CONVERGENCE", -1.0)
    with pytest.raises(NotConverged, match=r"in an electric field of 0\.002"):
        label(bent("H2O", 0, 1), settings)


def test_a_response_that_is_not_linear_is_no_polarizability():
    """A charge that hops between two far atoms: eight times more in a smaller field."""
    atoms = diatomic("Li2", 8.0, charge=1, spin=2)
    settings = DFTSettings(xc="hf", basis="6-31g", polarizability=True)
    with pytest.raises(NotConverged, match="is not linear"):
        label(atoms, settings)
