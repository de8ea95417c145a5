"""Minimum-energy crossing points: surfaces with known ones, and what is refused."""

import json
import warnings

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength
from crossing_cases import (
    BENT,
    BOTH,
    OFFSET,
    SINGLET,
    TRIPLET,
    WIDE,
    Pairs,
    bent_and_wide,
    distances,
    lowest_crossing,
    methylene,
    well,
)

import mlff
from mlff.crossing import CrossingOptions, find_crossing, profile
from mlff.errors import InputError, InputTypeError, MlffWarning, StateError

QUIET = CrossingOptions(progress=False, minima=False)
STIFF = [("bond", 0, 1, 1.08), ("bond", 0, 2, 1.08)]


def search(atoms=None, calculator=None, states=BOTH, constraints=(), **options):
    options = {"fmax": 1e-5, "options": QUIET, **options}
    atoms = methylene() if atoms is None else atoms
    calculator = bent_and_wide() if calculator is None else calculator
    return find_crossing(atoms, calculator, states, constraints, **options)


def turned(atoms):
    out = atoms.copy()
    out.rotate(71.0, (1.0, 0.3, -0.8))
    out.translate((3.0, -20.0, 0.7))
    return out


# Surfaces with known crossings


def test_two_harmonic_wells_cross_where_arithmetic_says():
    found = search()
    assert found.converged
    assert found.reason == found.outside == ""
    np.testing.assert_allclose(distances(found.atoms), lowest_crossing(), atol=1e-5)
    off = lowest_crossing() - BENT
    expected = 0.5 * 8.0 * off @ off
    assert found.energies == pytest.approx((expected, expected), abs=1e-4)
    assert abs(found.gap) < 1e-4
    assert found.fmax < 1e-5


def test_a_diatomic_crosses_at_its_one_point():
    calculator = Pairs({SINGLET: well([0.9]), TRIPLET: well([1.3], energy=0.2)})
    found = search(Atoms("N2", [[0, 0, 0], [0, 0, 1.2]]), calculator)
    assert distances(found.atoms) == pytest.approx([1.1 + 0.2 / (8.0 * 0.4)], abs=1e-5)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param((1.1, 1.1, 180.0), id="linear"),
        pytest.param((0.7, 0.7, 100.0), id="short"),
        pytest.param((1.9, 1.7, 120.0), id="long"),
        pytest.param((0.8, 2.2, 60.0), id="askew"),
        pytest.param((1.12217916, 1.12217916, 95.8694), id="on the seam"),
    ],
)
def test_far_and_symmetric_starts_lead_to_the_same_point(start):
    found = search(methylene(*start))
    assert found.converged
    np.testing.assert_allclose(distances(found.atoms), lowest_crossing(), atol=1e-5)
    assert found.n_calls < 25


def test_where_the_start_lies_and_points_does_not_matter():
    here, there = search(), search(turned(methylene()))
    np.testing.assert_allclose(distances(there.atoms), distances(here.atoms), atol=1e-5)
    assert there.atoms.positions[0] == pytest.approx([3.0, -20.0, 0.7], abs=0.2)


def test_a_search_can_be_repeated_and_changes_nothing_that_it_was_given():
    atoms = methylene()
    atoms.info["charge"] = 7  # not of the search
    before = atoms.copy()
    first, second = search(atoms), search(atoms)
    np.testing.assert_array_equal(first.atoms.positions, second.atoms.positions)
    assert atoms == before
    assert atoms.info == before.info


def test_the_order_of_states_does_not_matter():
    forward, backward = search(), search(states=BOTH[::-1])
    np.testing.assert_allclose(
        distances(backward.atoms), distances(forward.atoms), atol=1e-5
    )
    np.testing.assert_allclose(backward.difference, -forward.difference, atol=1e-3)


def test_states_of_two_charges_may_cross():
    states = [(0, 1), (1, 2)]
    found = search(calculator=bent_and_wide(states), states=states)
    assert found.converged
    np.testing.assert_allclose(distances(found.atoms), lowest_crossing(), atol=1e-5)
    assert [(s.charge, s.multiplicity) for s in found.states] == states


def test_gradients_of_the_result_are_those_of_the_surfaces():
    """Finite differences of the gap and of the mean energy, not from the search."""
    found, calculator = search(), bent_and_wide()

    def energies(positions):
        out = []
        for charge, spin in BOTH:
            atoms = Atoms("CH2", positions)
            atoms.calc = calculator
            out.append(mlff.set_state(atoms, charge, spin).get_potential_energy())
        return np.array(out)

    step = 1e-5
    for atom, axis in ((0, 0), (1, 1), (2, 0)):
        shift = np.zeros((3, 3))
        shift[atom, axis] = step
        slopes = energies(found.atoms.positions + shift)
        slopes -= energies(found.atoms.positions - shift)
        slopes /= 2 * step
        assert found.difference[atom, axis] == pytest.approx(
            slopes[0] - slopes[1], abs=1e-6
        )
        assert found.mean[atom, axis] == pytest.approx(slopes.mean(), abs=1e-6)


def test_many_atoms_take_few_geometries():
    rng = np.random.default_rng(3)
    start = molecule("C2H4")
    rest = [distances(Atoms(positions=start.positions + move)) for move in
            rng.normal(scale=0.1, size=(2, 6, 3))]  # fmt: skip
    stiff = 40 * np.exp(-1.5 * (distances(start) - 1.0)) + 0.5
    calculator = Pairs(
        {
            SINGLET: well(rest[0], stiff),
            TRIPLET: well(rest[1], 1.2 * stiff, 1.0),
        }
    )
    found = search(start, calculator, fmax=0.002)
    assert found.converged
    assert found.n_calls < 70
    # No neighbor on the seam is lower: it is a minimum, not a saddle.
    for move in rng.normal(scale=0.05, size=(5, 6, 3)):
        moved = start.copy()
        moved.positions = found.atoms.positions + move
        near = search(moved, calculator, fmax=0.002)
        assert near.energies[0] > found.energies[0] - 1e-3


def test_minima_are_those_of_the_wells():
    options = CrossingOptions(progress=False)
    found = search(fmax=1e-4, options=options, constraints=STIFF)
    first, second = found.minima
    assert first.converged
    assert second.converged
    assert [first.energy, second.energy] == pytest.approx([0.0, OFFSET], abs=1e-6)
    np.testing.assert_allclose(distances(first.atoms), BENT, atol=1e-4)
    np.testing.assert_allclose(distances(second.atoms), WIDE, atol=1e-4)
    assert found.heights == pytest.approx(
        (found.energies[0], found.energies[0] - OFFSET), abs=1e-4
    )
    assert second.atoms.info["spin"] == 3
    assert second.atoms.get_potential_energy() == second.energy


# What is held


def test_held_coordinates_have_their_values():
    constraints = ["bond 0 1 1.05", ("angle", 1, 0, 2, 101.0)]
    found = search(constraints=constraints)
    assert found.converged
    assert found.atoms.get_distance(0, 1) == pytest.approx(1.05, abs=1e-6)
    assert found.atoms.get_angle(1, 0, 2) == pytest.approx(101.0, abs=1e-6)
    assert np.abs(found.residuals).max() < 1e-6
    # One freedom and one gap: the other bond follows, whatever the energy.
    free = found.atoms.get_distance(0, 2)
    square = 1.05**2 + free**2 - 2 * 1.05 * free * np.cos(np.deg2rad(101.0))
    q = np.array([1.05, free, np.sqrt(square)])
    gap = 8.0 * (WIDE - BENT) @ (q - 0.5 * (BENT + WIDE)) - OFFSET
    assert gap == pytest.approx(0.0, abs=1e-4)


def test_held_coordinates_leave_the_lowest_of_what_remains():
    found = search(constraints=["bond 0 1 1.05"])
    d, middle = WIDE - BENT, 0.5 * (BENT + WIDE)
    # The nearest point to the middle on the line where plane and bond length meet.
    rows = np.array([8.0 * d, [1.0, 0.0, 0.0]])
    target = np.array([8.0 * d @ middle + OFFSET, 1.05])
    q = middle + np.linalg.pinv(rows) @ (target - rows @ middle)
    np.testing.assert_allclose(distances(found.atoms), q, atol=1e-5)


def test_a_value_that_is_left_out_is_that_of_the_start():
    found = search(methylene(1.04, 1.1, 105.0), constraints=["bond 0 1"])
    assert found.atoms.get_distance(0, 1) == pytest.approx(1.04, abs=1e-6)


def test_dihedrals_are_held_across_their_cut():
    start = molecule("H2O2")
    rest = distances(start)
    stiff = np.full(6, 10.0)
    calculator = Pairs(
        {SINGLET: well(rest, stiff), TRIPLET: well(rest + 0.1, stiff, -0.2)}
    )
    options = {"constraints": ["dihedral 2 0 1 3 -179.0"], "fmax": 0.002}
    found = search(start, calculator, **options)
    assert found.converged
    assert found.atoms.get_dihedral(2, 0, 1, 3) == pytest.approx(181.0, abs=1e-6)


def test_fixed_atoms_stay():
    start = methylene()
    start.set_constraint(FixAtoms([0, 2]))
    found = search(start)
    assert found.converged
    np.testing.assert_array_equal(
        found.atoms.positions[[0, 2]], start.positions[[0, 2]]
    )
    assert isinstance(found.atoms.constraints[0], FixAtoms)
    assert found.atoms.get_distance(0, 2) == pytest.approx(1.1)


def test_values_of_atoms_that_are_fixed_cannot_be_changed():
    start = methylene()
    start.set_constraint(FixAtoms([0, 1]))
    with pytest.raises(InputError, match="cannot be met together"):
        search(start, constraints=["bond 0 1 1.2"])


@pytest.mark.parametrize(
    ("constraint", "says"),
    [("angle 1 0 2", "no derivative"), ("dihedral 1 0 2 3", "no meaning")],
)
def test_values_of_a_linear_start_cannot_be_held(constraint, says):
    start = Atoms("CHCH", [[0, 0, 0], [-1.1, 0, 0], [1.2, 0, 0], [2.3, 0, 0]])
    with pytest.raises(InputError, match=says):
        search(start, constraints=[constraint])


# States that do not cross


def above(base, center, least):
    """A well over another surface, never nearer to it than ``least``."""
    bump = well(center, 4.0, least)

    def values(q):
        return tuple(a + b for a, b in zip(base(q), bump(q), strict=True))

    return values


def test_a_loose_threshold_does_not_make_a_sloping_gap_flat():
    found = search(fmax=100.0)
    assert found.converged
    assert abs(found.gap) < 1e-4


def test_parallel_states_end_with_a_report():
    calculator = Pairs({SINGLET: well(BENT), TRIPLET: well(BENT, energy=0.3)})
    found = search(calculator=calculator)
    assert not found.converged
    assert found.smallest_gap == pytest.approx(0.3)
    assert "do not cross" in found.reason
    assert "-0.3000 eV" in found.reason
    assert found.n_calls < 5
    assert "no crossing found" in str(found)


def test_states_that_only_come_near_end_where_they_are_nearest():
    base = well(BENT)
    calculator = Pairs({SINGLET: base, TRIPLET: above(base, WIDE, 0.25)})
    found = search(calculator=calculator, fmax=1e-3)
    assert not found.converged
    assert "do not cross" in found.reason
    assert found.smallest_gap == pytest.approx(0.25, abs=1e-5)
    np.testing.assert_allclose(distances(found.atoms), WIDE, atol=1e-3)


def test_no_freedom_left_means_no_crossing():
    held = [*STIFF, ("angle", 1, 0, 2, 100.0)]
    found = search(constraints=held)
    assert not found.converged
    assert "with these coordinates held" in found.reason


def test_too_few_steps_are_told():
    found = search(methylene(1.9, 1.7, 120.0), max_steps=2)
    assert not found.converged
    assert "not there after 2 steps" in found.reason
    assert found.n_calls <= 3


def test_a_calculator_that_fails_on_the_way_shortens_the_steps():
    """Nothing longer than 1.2 Å: the well is inside, most of the way is not."""

    class Fragile(Pairs):
        refused = 0

        def calculate(self, atoms=None, *arguments, **options):
            if distances(atoms)[:2].max() > 1.2:
                self.refused += 1
                raise RuntimeError("no convergence")
            super().calculate(atoms, *arguments, **options)

    wells = {SINGLET: well([1.15, 1.15, 1.6]), TRIPLET: well([1.0, 1.0, 2.1])}
    calculator = Fragile(wells)
    found = search(methylene(1.0, 1.0, 170.0), calculator, fmax=1e-3)
    assert found.converged
    wells[SINGLET] = well([1.6, 1.6, 2.0])
    found = search(methylene(1.0, 1.0, 170.0), calculator, fmax=1e-3)
    assert calculator.refused
    assert not found.converged
    assert "no convergence" in found.reason


# A potential


@pytest.fixture(scope="module")
def ch2():
    return mlff.load("ch2")


def test_methylene_crosses_where_published(ch2):
    found = search(methylene(1.1, 1.1, 120.0), ch2, fmax=1e-3)
    assert found.converged
    assert found.outside == ""
    assert found.atoms.get_distance(0, 1) == pytest.approx(1.127, abs=0.005)
    assert found.atoms.get_angle(1, 0, 2) == pytest.approx(99.9, abs=0.5)
    assert found.n_calls < 15


def test_a_linear_start_bends(ch2):
    bent = search(methylene(1.1, 1.1, 110.0), ch2, constraints=STIFF)
    linear = search(methylene(1.08, 1.08, 180.0), ch2, constraints=STIFF)
    assert linear.converged
    assert linear.atoms.get_angle(1, 0, 2) == pytest.approx(
        bent.atoms.get_angle(1, 0, 2), abs=0.02
    )


def test_a_crossing_outside_of_training_is_looked_for_inside(ch2):
    inside = search(methylene(1.56, 1.17, 149.6), ch2, fmax=1e-3)
    assert inside.outside == ""
    assert inside.atoms.get_distance(0, 1) == pytest.approx(1.128, abs=0.005)
    held = ["bond 0 1 1.5", "bond 0 2 1.5"]
    outside = search(methylene(1.5, 1.5, 100.0), ch2, constraints=held)
    assert "1.500 Å, seen 0.950 … 1.200 Å" in outside.outside
    assert "energies mean little" in str(outside)


def test_untrained_states_are_warned_about(ch2, forget_warnings):
    with pytest.warns(
        MlffWarning, match="CH2, charge \\+1, multiplicity 2, was not in"
    ):
        found = search(methylene(), ch2, states=[(0, 1), (1, 2)], fmax=1e-3)
    assert found.converged
    assert abs(found.gap) < 1e-4
    (told,) = found.unseen
    assert "multiplicity 2, was not in the training data" in told
    assert told in str(found)
    assert found.to_json()["unseen_in_training"] == [told]
    assert search(methylene(), mlff.MLFFCalculator(ch2)).unseen == ()


# The result


def test_the_result_is_written_and_told(tmp_path):
    options = CrossingOptions(progress=False)
    found = search(constraints=STIFF, fmax=1e-3, options=options)
    text = str(found)
    assert "held bond 0-1 = 1.08 Å" in text
    assert "eV above its minimum" in text
    assert "meV" in text
    found.write(tmp_path / "c.xyz")
    frame = ase.io.read(tmp_path / "c.xyz")
    np.testing.assert_allclose(frame.positions, found.atoms.positions, atol=1e-8)
    np.testing.assert_allclose(
        frame.arrays["gap_gradient"], found.difference, atol=1e-7
    )
    assert frame.info["gap_eV"] == found.gap
    assert frame.info["above_other_minimum_eV"] == found.heights[1]
    assert (frame.info["charge"], frame.info["spin"]) == SINGLET
    assert (frame.info["other_charge"], frame.info["other_spin"]) == TRIPLET
    content = json.loads(json.dumps(found.to_json()))
    assert content["energies_eV"] == list(found.energies)
    assert content["held"][0]["coordinate"] == "bond 0-1"
    assert content["minima"][1]["crossing_above_it_eV"] == found.heights[1]


def test_the_line_through_the_crossing_keeps_what_is_held():
    found = search(constraints=STIFF)
    places, energies = profile(found, bent_and_wide(), reach_A=0.01, n_points=3)
    assert places.tolist() == [-0.01, 0.0, 0.01]
    assert energies[1] == pytest.approx(found.energies, abs=1e-9)
    gaps = energies[:, 0] - energies[:, 1]
    assert gaps[0] < 0 < gaps[2]
    # Bonds change to second order only, so that the slope is that of the bend.
    free = profile(search(), bent_and_wide(), reach_A=0.01, n_points=3)[1]
    assert gaps[2] - gaps[0] < free[2, 0] - free[2, 1] - (free[0, 0] - free[0, 1])


# What is refused


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ([(0, 1)], "two different"),
        ([(0, 1), (0, 1)], "two different"),
        ([(0, 1), (0, 3), (1, 2)], "two different"),
        ([(0, 1), 3], "must hold"),
        ([(0, 1), (0, 2, 3)], "must hold"),
        ([(0, 1), (0.5, 3)], "integral"),
        (None, "two different"),
        ([(0, 1), (0, 2)], "does not fit 8 electrons"),
        ([(0, 1), (1, 3)], "does not fit 7 electrons"),
        ([(0, 1), (0, 99)], "must lie in"),
    ],
)
def test_states_that_cannot_be_are_refused(states, says):
    with pytest.raises((InputError, StateError), match=says):
        search(states=states)


@pytest.mark.parametrize(
    ("constraints", "says"),
    [
        (["stretch 0 1 1.0"], "bond, angle, dihedral"),
        ([3], "bond, angle, dihedral"),
        ("bond 0 1 1.0", "must be a list"),
        (None, "must be a list"),
        ([(["bond"], 0, 1, 1.0)], "bond, angle, dihedral"),
        (["bond 0 1 long"], "one value in Å"),
        (["bond 0 1 1.0 2.0"], "one value in Å"),
        (["bond 0 5 1.0"], "no atom 5"),
        (["bond 0 0 1.0"], "named twice"),
        (["bond 0 1 -1.0"], "must be positive"),
        (["bond 0 1 nan"], "finite"),
        (["angle 1 0 2 200"], "0 … 180"),
        (["angle 1 0 2 180"], "no derivative"),
        (["bond 0 1 1.0", "bond 1 0 1.1"], "given twice"),
        (["bond 0 1 1.0", "bond 0 2 1.0", "bond 1 2 2.5"], "cannot be met together"),
    ],
)
def test_constraints_that_cannot_hold_are_refused(constraints, says):
    calculator = bent_and_wide()
    with pytest.raises(InputError, match=says):
        search(calculator=calculator, constraints=constraints)
    assert calculator.asked == []


def test_a_calculator_that_ignores_the_state_is_refused():
    class Blind(Pairs):
        def calculate(self, atoms=None, *arguments, **options):
            super().calculate(mlff.set_state(atoms.copy(), *SINGLET), *arguments)

    with pytest.raises(InputError, match=r"does not read atoms\.info"):
        search(calculator=Blind({SINGLET: well(BENT)}))
    with pytest.raises(InputError, match="EMT gives the same energies"):
        search(molecule("H2O"), EMT())


def test_states_that_agree_at_one_geometry_are_no_reason_to_refuse():
    """Both value and slope agree at the start; elsewhere they do not."""
    start = methylene()
    q = distances(start)
    wells = {SINGLET: well(q, 8.0), TRIPLET: well(q, 5.0)}
    options = CrossingOptions(progress=False, minima=False, rattle_A=0.0)
    found = search(start, Pairs(wells), options=options)
    assert found.converged


def test_a_calculator_without_forces_is_refused():
    class Scalar(Pairs):
        implemented_properties = ("energy",)

    wells = {SINGLET: well(BENT), TRIPLET: well(WIDE)}
    with pytest.raises(InputError, match="Scalar gives no"):
        search(calculator=Scalar(wells))


def test_energies_that_are_no_numbers_are_refused():
    wells = {SINGLET: well(BENT), TRIPLET: well(WIDE, energy=float("nan"))}
    with pytest.raises(InputError, match="not finite at the start"):
        search(calculator=Pairs(wells))


def test_what_is_no_potential_is_refused(ch2):
    with pytest.raises(InputTypeError, match="must be a Potential"):
        search(calculator="ch2")
    with pytest.raises(InputTypeError, match="CrossingOptions"):
        search(options={"progress": False})
    with pytest.raises(InputError, match="not in the training data"):
        search(molecule("H2O"), ch2)


def test_molecules_that_cannot_be_searched_are_refused():
    held = methylene()
    held.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="FixBondLength"):
        search(held)
    held.set_constraint(FixAtoms([0, 1, 2]))
    with pytest.raises(InputError, match="none may move"):
        search(held)
    with pytest.raises(InputError, match="empty"):
        search(Atoms())
    boxed = methylene()
    boxed.set_cell([9, 9, 9])
    boxed.pbc = True
    with pytest.raises(InputError, match="periodic"):
        search(boxed)


@pytest.mark.parametrize(
    "options",
    [
        {"fmax": 0.0},
        {"fmax": float("nan")},
        {"fmax": "small"},
        {"max_steps": -1},
        {"max_steps": 2.5},
    ],
)
def test_numbers_that_mean_nothing_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        search(**options)


@pytest.mark.parametrize("options", [{"gap_eV": 0.0}, {"rattle_A": -1.0}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        CrossingOptions(**options)


def test_a_bar_shows_gap_and_gradient(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(options=CrossingOptions(minima=False))
    err = capsys.readouterr().err
    assert "crossing" in err
    assert "gap" in err
    assert "eV/Å" in err
