"""Hessians, dipole derivatives and normal modes against differences and by hand."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from ase.vibrations import Vibrations as Displacements
from ase.vibrations import VibrationsData
from forcefield_cases import crystal
from harmonic_cases import PER_CM, built, relaxed, shining

import mlff
from mlff.batch import AtomsBatch
from mlff.errors import InputError, InputTypeError, MlffWarning
from mlff.harmonic import Vibrations, vibrations
from mlff.hessian import derivatives, hessians
from mlff.spectra import KM_PER_MOL
from mlff.testing.cases import sample_systems

ANYWHERE = {"fmax": np.inf}


def stated(atoms, charge=0, spin=1):
    atoms.info = {"charge": charge, "spin": spin}
    atoms.set_initial_magnetic_moments(None)
    return atoms


def differences(potential, atoms, name, step=1e-4):
    """Central differences with respect to every coordinate, (3n, …)."""
    moved = []
    for k in range(3 * len(atoms)):
        for sign in (1, -1):
            moved.append(atoms.copy())
            moved[-1].positions[k // 3, k % 3] += sign * step
    found = np.array([p[name] for p in mlff.predict(potential, moved, (name,))])
    return (found[::2] - found[1::2]) / (2 * step)


@pytest.fixture(scope="module")
def found():
    return derivatives(AtomsBatch.from_atoms(sample_systems()), built())


def test_hessians_are_differences_of_forces(found):
    for atoms, one in zip(sample_systems(), found, strict=True):
        n = len(atoms)
        rows = -differences(built(), atoms, "forces").reshape(3 * n, 3 * n)
        assert np.abs(rows).max() > 0.1
        assert one.hessian == pytest.approx(rows, abs=1e-6)
        assert (one.hessian == one.hessian.T).all()
        assert one.hessian.dtype == np.float64


def test_derivatives_of_dipoles_are_differences_about_a_fixed_point(found):
    for atoms, one in zip(sample_systems(), found, strict=True):
        rows = differences(built(), atoms, "dipole")
        # Dipoles are about the center of nuclear charge, which moves with the atoms.
        share = np.repeat(atoms.numbers / atoms.numbers.sum(), 3)[:, None]
        rows += atoms.info["charge"] * share * np.tile(np.eye(3), (len(atoms), 1))
        assert one.dipole_derivatives == pytest.approx(rows, abs=1e-7)


def test_a_shift_moves_the_dipole_of_an_ion_by_its_charge(found):
    charges = [atoms.info["charge"] for atoms in sample_systems()]
    assert len(set(charges)) > 2
    for charge, one in zip(charges, found, strict=True):
        total = one.dipole_derivatives.reshape(-1, 3, 3).sum(0)
        assert total == pytest.approx(charge * np.eye(3), abs=1e-10)


def test_company_and_order_do_not_matter(found):
    systems = sample_systems()
    for k in (0, 2):
        (alone,) = hessians([systems[k]], built())
        assert alone == pytest.approx(found[k].hessian, abs=1e-10)
    for one, backwards in zip(
        found, reversed(hessians(systems[::-1], built())), strict=True
    ):
        assert backwards == pytest.approx(one.hessian, abs=1e-10)


def test_a_full_device_halves_the_call(found, monkeypatch):
    from mlff.hessian import _Curved

    whole, sizes = _Curved.forward, []

    def limited(self, batch, *args, **options):
        sizes.append(batch.n_systems)
        if batch.n_systems > 2 and not batch.positions.is_meta:
            raise MemoryError
        return whole(self, batch, *args, **options)

    monkeypatch.setattr(_Curved, "forward", limited)
    again = hessians(sample_systems(), built())
    assert max(sizes) > 2
    for one, hessian in zip(found, again, strict=True):
        assert hessian == pytest.approx(one.hessian, abs=1e-10)


def test_periodic_hessians_are_differences_and_have_no_dipoles():
    crystals = [crystal(5, 0, 5.0), crystal(4, 1, 4.5)]
    mixed = [crystals[0], *sample_systems()[:1], crystals[1], *sample_systems()[1:2]]
    batch = AtomsBatch.from_atoms(mixed)
    found = derivatives(batch, built("local"))
    for atoms, one in zip(mixed, found, strict=True):
        rows = -differences(built("local"), atoms, "forces")
        assert one.hessian == pytest.approx(rows.reshape(one.hessian.shape), abs=1e-6)
        assert (one.dipole_derivatives is None) == atoms.pbc.any()
    with pytest.warns(MlffWarning, match=r"system 1: .*treated as bent"):
        cell, ion, *_ = vibrations(mixed, built("local"), **ANYWHERE)
    assert len(cell.frequencies) == 3 * len(crystals[0]) - 3
    assert cell.intensities is None
    assert ion.intensities is not None


def test_no_grad_and_inference_mode_of_a_caller_do_no_harm(found):
    with torch.inference_mode():
        (one, _) = hessians(sample_systems()[:2], built())
    assert one == pytest.approx(found[0].hessian, abs=1e-10)


@pytest.fixture(scope="module")
def methylenes():
    return vibrations(relaxed(), shining())


def test_frequencies_of_methylene_are_those_of_finite_differences(methylenes, tmp_path):
    for atoms, one in zip(relaxed(), methylenes, strict=True):
        slow = atoms.copy()
        slow.calc = mlff.MLFFCalculator(shining())
        moved = Displacements(slow, name=tmp_path / str(len(one.modes)), delta=0.002)
        moved.clean()
        moved.run()
        expected = moved.get_frequencies().real[-3:]
        assert one.frequencies == pytest.approx(expected, abs=0.1)
        assert one.zero_point_energy == pytest.approx(
            expected.sum() * units.invcm / 2, abs=1e-4
        )
    singlet, triplet = methylenes
    assert abs(singlet.frequencies[0] - triplet.frequencies[0]) > 200


def test_float32_costs_a_hundredth_of_a_wavenumber(methylenes):
    again = vibrations(relaxed(), mlff.load("ch2"))
    for one, other in zip(methylenes, again, strict=True):
        assert other.frequencies == pytest.approx(one.frequencies, abs=0.01)
        assert other.intensities is None


def test_ase_reads_the_same_from_the_data(methylenes):
    for one in methylenes:
        frequencies = one.data.get_frequencies().real
        assert frequencies[-3:] == pytest.approx(one.frequencies, abs=1e-3)
        again = VibrationsData.fromdict(one.data.todict())
        assert (again.get_hessian() == one.data.get_hessian()).all()
    assert [one.data.get_atoms().info["spin"] for one in methylenes] == [1, 3]


def test_modes_are_orthonormal_and_free_of_overall_motion(methylenes):
    for one in methylenes:
        atoms = one.data.get_atoms()
        flat = one.modes.reshape(3, -1)
        assert flat @ flat.T == pytest.approx(np.eye(3), abs=1e-12)
        momenta = one.modes * np.sqrt(atoms.get_masses())[:, None]
        assert np.abs(momenta.sum(1)).max() < 1e-12
        arms = atoms.positions - atoms.get_center_of_mass()
        assert np.abs(np.cross(arms, momenta).sum(1)).max() < 1e-12


def test_a_linear_saddle_has_two_imaginary_bends_of_four_modes():
    start = stated(Atoms("CHH", [[0, 0, 0], [1.07, 0, 0], [-1.07, 0, 0]]), spin=3)
    options = mlff.RelaxOptions(progress=False)
    (line,) = mlff.relax([start], shining(), 1e-3, options=options)
    assert line.converged
    assert line.atoms.get_angle(1, 0, 2) > 179.9
    (one,) = vibrations([line.atoms], shining())
    bends, stretches = one.frequencies[:2], one.frequencies[2:]
    assert (bends < -100).all()
    assert bends[1] == pytest.approx(bends[0], abs=1e-3)
    assert (stretches > 2000).all()
    energy = stretches.sum() * units.invcm / 2
    assert one.zero_point_energy == pytest.approx(energy)


@pytest.mark.parametrize(
    ("name", "charge", "spin", "n_modes"),
    [
        ("C", 0, 3, 0),
        ("CH", 0, 2, 1),
        ("C2H2", 0, 1, 7),
        ("CH3", 1, 1, 6),
        ("CH4", 1, 2, 9),
    ],
)
def test_as_many_modes_as_there_are_vibrations(name, charge, spin, n_modes):
    atoms = Atoms("C") if name == "C" else molecule(name)
    stated(atoms, charge, spin)
    atoms.rotate(40, (1, 2, 3))
    (one,) = vibrations([atoms], built(), **ANYWHERE)
    assert one.frequencies.shape == one.reduced_masses.shape == (n_modes,)
    assert one.modes.shape == (n_modes, len(atoms), 3)
    assert one.intensities.shape == (n_modes,)
    assert np.isfinite(one.frequencies).all()
    assert np.isfinite(one.intensities).all()


def test_a_symmetric_ion_has_degenerate_modes():
    (one,) = vibrations([stated(molecule("CH4"), 1, 2)], built(), **ANYWHERE)
    # Of a tetrahedron: a threefold set, one of its own, a twofold and a threefold set.
    gaps = np.diff(np.sort(one.frequencies))
    assert (gaps < 1e-4).sum() == 5
    assert (gaps > 1).sum() == 3
    assert (one.intensities > 1e-6).sum() == 6  # those of T2


def test_a_diatomic_follows_by_hand():
    atoms = stated(Atoms("CH", [[0, 0, 0], [0, 0, 0.9]]), spin=2)
    (one,) = vibrations([atoms], built(), **ANYWHERE)
    step, moved = 1e-3, []
    for length in (0.9 - step, 0.9, 0.9 + step):
        moved.append(atoms.copy())
        moved[-1].positions[1, 2] = length
    found = mlff.predict(built(), moved, ("energy", "dipole"))
    below, here, above = (f["energy"] for f in found)
    stiffness = (below - 2 * here + above) / step**2
    slope = (found[2]["dipole"] - found[0]["dipole"]) / (2 * step)
    carbon, hydrogen = atoms.get_masses()
    mass = carbon * hydrogen / (carbon + hydrogen)
    wavenumber = np.sqrt(abs(stiffness) / mass) / PER_CM
    assert wavenumber > 50
    assert abs(one.frequencies[0]) == pytest.approx(wavenumber, rel=1e-4)
    assert np.sign(one.frequencies[0]) == np.sign(stiffness)
    ends = carbon**2 + hydrogen**2  # of the displacements, over the total mass
    reduced = carbon * hydrogen * (carbon + hydrogen) / ends
    assert one.reduced_masses == pytest.approx([reduced])
    expected = KM_PER_MOL * (slope**2).sum() / mass
    assert one.intensities == pytest.approx([expected], rel=1e-4)


def test_fixed_atoms_do_not_vibrate():
    free = stated(molecule("C2H4"))
    held = free.copy()
    held.set_constraint(FixAtoms([0, -1]))
    whole, part = vibrations([free, held], built(), **ANYWHERE)
    assert len(whole.frequencies) == 12
    assert len(part.frequencies) == 12
    assert (part.modes[:, [0, 5]] == 0).all()
    assert part.data.get_indices().tolist() == [1, 2, 3, 4]
    expected = part.data.get_energies() / units.invcm
    signed = np.sort(expected.real - expected.imag)
    assert part.frequencies == pytest.approx(signed, abs=1e-6)


def test_isotopes_count():
    light, heavy = relaxed()[1], relaxed()[1].copy()
    heavy.set_masses([12.011, 2.014, 2.014])
    first, second = vibrations([light, heavy], shining())
    assert (second.frequencies < 0.8 * first.frequencies).all()
    assert second.zero_point_energy < 0.8 * first.zero_point_energy


def test_an_animation_swings_about_the_start(methylenes):
    one = methylenes[0]
    frames = one.animation(-1, amplitude_A=0.2, n_frames=8)
    moves = np.array([f.positions for f in frames]) - frames[0].positions
    assert np.linalg.norm(moves, axis=2).max() == pytest.approx(0.2)
    assert moves.sum(0) == pytest.approx(np.zeros((3, 3)), abs=1e-12)
    assert frames[3].info["spin"] == 1
    with pytest.raises(InputError, match="`mode` must be below 3, got 3"):
        one.animation(3)


def test_the_state_may_be_given_and_nothing_given_is_modified():
    atoms = relaxed()[1].copy()
    atoms.info = {}
    atoms.set_initial_charges(None)
    atoms.set_initial_magnetic_moments(None)
    before = atoms.copy()
    (one,) = vibrations([atoms], shining(), charge=0, spin=3)
    assert one.data.get_atoms().info["spin"] == 3
    assert atoms == before
    assert atoms.info == {}
    assert set(atoms.arrays) == set(before.arrays)


def test_results_attached_to_the_input_do_not_get_in_the_way():
    atoms = relaxed()[1].copy()
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((3, 3)))
    (one,) = vibrations([atoms], shining())
    assert one.data.get_atoms().calc is None


def test_no_systems_no_vibrations():
    assert vibrations([], built()) == []
    assert hessians([], built()) == []


def test_public_names():
    assert mlff.vibrations is vibrations
    assert mlff.hessians is hessians
    assert mlff.Vibrations is Vibrations
    assert callable(mlff.vibrations)
    assert callable(mlff.infrared)


def test_what_is_not_at_rest_is_told_to_relax():
    moved = relaxed()[0].copy()
    moved.positions[1] *= 1.1
    with pytest.raises(InputError, match=r"system 1: the largest force.*mlff\.relax"):
        vibrations([relaxed()[0], moved], shining())
    assert len(vibrations([relaxed()[0], moved], shining(), fmax=100.0)) == 2


def test_errors_name_what_is_wrong():
    bound = stated(molecule("CH4"))
    bound.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="system 1: constraint FixBondLength"):
        vibrations([stated(molecule("CH4")), bound], built(), **ANYWHERE)
    with pytest.raises(InputError, match="were not in the training data"):
        hessians([stated(molecule("H2O"))], built())
    with pytest.raises(InputTypeError, match="`potential`"):
        hessians([stated(molecule("CH4"))], "ch2")
    ghost = stated(molecule("CH4"))
    for mass in (0.0, np.inf, np.nan, -1.0):
        ghost.set_masses([12.0, 1.0, mass, 1.0, 1.0])
        text = f"system 1: masses must be positive and finite, got {mass:g}; set"
        with pytest.raises(InputError, match=text):
            vibrations([stated(molecule("CH4")), ghost], built(), **ANYWHERE)
    near = stated(Atoms("HH", [[0, 0, 0], [0, 0, 1e-5]]))
    with pytest.raises(InputError, match=r"at least 0\.001 Å"):
        vibrations([near], built())


@pytest.mark.parametrize("fmax", ["a", None, True, [0.05]])
def test_the_largest_force_is_a_number(fmax):
    with pytest.raises(InputTypeError, match="`fmax` must be a number, eV/Å, got"):
        vibrations([stated(molecule("CH4"))], built(), fmax=fmax)


@pytest.mark.parametrize("fmax", [0.0, -1.0, np.nan])
def test_the_largest_force_is_positive(fmax):
    with pytest.raises(InputError, match="`fmax` must be positive, eV/Å, got"):
        vibrations([stated(molecule("CH4"))], built(), fmax=fmax)


def bent(offset):
    """Methylene whose carbon is farthest from the best line by this, Å."""
    height = 1.5 * offset  # the mean of all three lies on the line
    places = [[0, height, 0], [1.07, 0, 0], [-1.07, 0, 0]]
    atoms = stated(Atoms("CHH", places), spin=3)
    atoms.rotate(40, (1, 2, 3))
    return atoms


@pytest.mark.parametrize(
    ("offset", "treated", "n_modes"),
    [(0.02, "linear, with 5", 4), (0.048, "linear", 4), (0.06, "bent, with 6", 3)],
)
def test_almost_linear_molecules_are_told_how_they_were_treated(
    offset, treated, n_modes
):
    text = f"system 1: atoms are up to {offset:.3f} Å off a line.*treated as {treated}"
    with pytest.warns(MlffWarning, match=text):
        _, one = vibrations([bent(0.0), bent(offset)], built(), **ANYWHERE)
    assert len(one.frequencies) == n_modes


def test_linear_and_bent_molecules_and_those_held_are_not_warned_of():
    held = bent(0.05)
    held.set_constraint(FixAtoms([1]))
    crystal_line = bent(0.05)
    crystal_line.set_cell([9.0, 9.0, 9.0])
    crystal_line.pbc = True
    systems = [bent(0.009), bent(0.11), held, crystal_line]
    found = vibrations(systems, built("local"), **ANYWHERE)  # warnings are errors
    assert [len(one.frequencies) for one in found] == [4, 3, 6, 6]


@pytest.mark.parametrize("ask", [hessians, vibrations])
def test_a_potential_without_energies_is_refused_before_any_work(ask, monkeypatch):
    monkeypatch.setattr("mlff.hessian.check_contacts", lambda batch: 1 / 0)
    with pytest.raises(InputError, match="energ"):
        ask([stated(molecule("CH4"))], built(heads=("dipole",)))
