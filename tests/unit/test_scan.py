"""Scans: how axes are written, what a grid is, and what a surface says of itself."""

import csv
import dataclasses

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from committee_cases import member

import mlff
from mlff.coordinates import Coordinate, values
from mlff.demo import methylene
from mlff.errors import InputError, InputTypeError, MlffWarning, StateError
from mlff.report.scans import scan_table
from mlff.scanning import Axis, ScanOptions, Surface, scan
from mlff.scanning.axes import read_axes
from mlff.scanning.grid import geometries, targets

QUIET = ScanOptions(progress=False)
STATES = [(0, 1), (0, 3)]


@pytest.fixture(scope="module")
def ch2() -> mlff.Potential:
    return mlff.load("ch2", dtype=torch.float64)


# Axes


def test_an_axis_is_text_or_tuples():
    for given in (
        "angle 1 0 2 90 180 46",
        ("angle", 1, 0, 2, 90, 180, 46),
        [("angle", 1, 0, 2, 90, 180, 46)],
        ["angle 1 0 2 90 180 46"],
    ):
        axis = Axis.of(given)
        assert axis.coordinates == (Coordinate("angle", (1, 0, 2)),)
        np.testing.assert_allclose(axis.values[:, 0], np.linspace(90, 180, 46))
    assert str(axis) == "angle 1-0-2, 90 to 180 degrees, 46 points"
    assert Axis.of(axis) is axis


def test_coordinates_that_move_together_share_values_or_have_their_own():
    both = Axis.of("bond 0 1 + bond 0 2 0.9 1.4 21")
    same = Axis.of([("bond", 0, 1), ("bond", 0, 2, 0.9, 1.4, 21)])
    np.testing.assert_array_equal(both.values, same.values)
    np.testing.assert_array_equal(both.values[:, 0], both.values[:, 1])
    assert both.together
    assert both.name == "bonds 0-1 and 0-2"
    apart = Axis.of("bond 0 1 0.9 1.4 3 + angle 1 0 2 90 180 3")
    np.testing.assert_allclose(apart.values, [[0.9, 90], [1.15, 135], [1.4, 180]])
    assert not apart.together
    assert "0.9 to 1.4 Å, 90 to 180 degrees" in str(apart)
    mixed = Axis.of("bond 0 1 + bond 0 2 1 2 3 + bond 0 3 5 6 3")
    np.testing.assert_allclose(mixed.values[0], [1, 1, 5])


def test_values_of_an_axis_may_be_anything_but_changed():
    axis = Axis((Coordinate.of("bond 0 1"),), np.array([[1.0], [1.1], [1.5]]))
    assert len(axis) == 3
    with pytest.raises(ValueError, match="read-only"):
        axis.values[0] = 2.0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("bnd 0 1 1 2 3", "first word.*bond.*'bnd'"),
        ("bond 0 1", "needs first value, last value"),
        ("bond 0 1 1 2", "first value, last value and number of points, got 1 2"),
        ("bond 0 1 1 2 x", "the number of points an integer"),
        ("bond 0 1 1 2 3.5", "the number of points an integer"),
        ("bond 0 1 a 2 3", "must be numbers"),
        ("bond 0 1 1 2 1", "at least 2 points, got 1"),
        ("bond 0 1 1 1 5", "both 1"),
        ("bond 0 1 0 2 5", "bond 0-1: a length must be positive, got 0 Å"),
        ("bond 0 1 1 inf 5", "finite"),
        ("angle 1 0 2 90 181 5", "0 … 180°, got 181°"),
        ("angle 1 0 1 90 120 5", "twice"),
        ("bond 0 1 1 2 3 + bond 0 2 1 2 4", "3 points, but.*have 4"),
        ("bond 0 1 1 2 1000000000", "1,000,000,000 points"),
        ((["bond"], 0, 1, 1, 2, 3), "first word.*bond"),
        ("", "like"),
        ((), "like"),
        ([], "like"),
        (7, "like"),
        ([7], "like"),
    ],
)
def test_what_is_no_axis_is_refused(given, told):
    with pytest.raises((InputError, InputTypeError), match=told):
        Axis.of(given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "is empty"),
        ("angle 1 0 2 90 180 46", "list of axes"),
        (("angle", 1, 0, 2, 90, 180, 46), "list of axes"),
        (["bond 0 3 1 2 3"], "no atom 3; the molecule has 3, and the first is 0"),
        (["bond 0 1 1 2 3", "bond 1 0 1 2 3"], "bond 1-0 is scanned twice"),
        (["bond 0 1 + bond 0 1 1 2 3"], "bond 0-1 is scanned twice"),
        (
            ["angle 1 0 2 90 120 2", "bond 1 2 1 2 2", "bond 0 1 + bond 0 2 1 2 2"],
            "bond 0-2 follows from angle 1-0-2, bond 1-2, bond 0-1",
        ),
    ],
)
def test_axes_that_a_molecule_cannot_have_are_refused(given, told):
    with pytest.raises((InputError, InputTypeError), match=told):
        read_axes(given, methylene(1.1, 100, 1))


def test_a_dihedral_over_atoms_in_line_is_refused():
    with pytest.raises(InputError, match="dihedral 2-0-1-3 has no meaning"):
        read_axes(["dihedral 2 0 1 3 0 90 3"], molecule("C2H2"))


# Grids


def test_points_of_a_grid_are_in_c_order_and_have_their_values():
    ethane = molecule("C2H6")
    ethane.rattle(0.05, seed=1)
    spec = [
        "dihedral 2 0 1 5 -180 120 4",
        "bond 0 1 + bond 0 2 1.1 1.6 3",
        ["angle 3 0 1 95 120 2"],
    ]
    axes = read_axes(spec, ethane)
    wanted = targets(axes)
    assert wanted.shape == (24, 4)
    np.testing.assert_allclose(wanted[:6, 0], -180)
    np.testing.assert_allclose(wanted[:4, 3], [95, 120, 95, 120])
    np.testing.assert_allclose(wanted[:4, 1], [1.1, 1.1, 1.35, 1.35])
    grid = geometries(ethane, axes)
    assert grid.reached.all()
    every = [one for axis in axes for one in axis.coordinates]
    found = values(grid.positions.numpy(), every)
    off = found - wanted
    off[:, 0] -= 360 * np.round(off[:, 0] / 360)
    assert np.abs(off).max() < 1e-6


def test_what_is_not_scanned_stays_as_it_was():
    ethane = molecule("C2H6")
    spec = ["dihedral 2 0 1 5 -180 180 5", "bond 0 1 1.3 1.7 3"]
    grid = geometries(ethane, read_axes(spec, ethane))
    still = [Coordinate.of(t) for t in ("bond 0 2", "angle 2 0 3", "angle 5 1 0")]
    found = values(grid.positions.numpy(), still)
    assert np.abs(found - values(ethane.positions, still)).max() < 1e-9


def test_coordinates_around_a_triangle_are_reached_where_they_can_be():
    spec = ["bond 1 2 0.5 3.0 6", "bond 0 1 + bond 0 2 1.0 1.2 2"]
    axes = read_axes(spec, methylene(1.1, 100, 1))
    grid = geometries(methylene(1.1, 100, 1), axes)
    wanted = targets(axes)
    possible = wanted[:, 0] <= wanted[:, 1] + wanted[:, 2]
    np.testing.assert_array_equal(grid.reached, possible)
    assert 0 < possible.sum() < len(possible)
    every = [one for axis in axes for one in axis.coordinates]
    found = values(grid.positions.numpy()[possible], every)
    assert np.abs(found - wanted[possible]).max() < 1e-6


# Surfaces


def surface_of(energies, axes, states=STATES, **changes) -> Surface:
    """A surface with given energies and no other content."""
    energies = np.array(energies, float)
    atoms = Atoms("CHH", [[0, 0, 0], [1.1, 0, 0], [0, 1.1, 0]])
    content = {
        "atoms": atoms,
        "axes": tuple(map(Axis.of, axes)),
        "states": tuple(states),
        "energies": energies,
        "positions": np.broadcast_to(atoms.positions, (*energies.shape, 3, 3)),
        "converged": np.ones(energies.shape, bool),
        "outside": None,
        "remarks": np.full(energies.shape, "", object),
        "forces": None,
        "members": None,
        "relaxed": False,
        "unseen": (),
        "seconds": 0.0,
    }
    return Surface(**{**content, **changes})


ANGLES, BONDS = "angle 1 0 2 90 130 5", "bond 0 1 + bond 0 2 1.0 1.2 3"


def test_gaps_minima_and_crossings_follow_from_the_energies():
    surface = surface_of([[5, 4, 3, 4, 5], [6, 4.5, 2, 1, 1.5]], [ANGLES])
    np.testing.assert_allclose(surface.gap(*STATES), [-1, -0.5, 1, 3, 3.5])
    np.testing.assert_allclose(surface.gap(*STATES[::-1]), [1, 0.5, -1, -3, -3.5])
    low = surface.minimum((0, 3))
    assert (low.index, low.values, low.energy) == ((3,), (120.0,), 1.0)
    assert surface.relative().min() == 0.0
    (crossing,) = surface.crossings(*STATES)
    assert crossing.values[0] == pytest.approx(100 + 10 / 3)
    assert crossing.energy == pytest.approx(4 - 1 / 3)
    (same,) = surface.crossings(*STATES[::-1])
    assert (same.values, same.energy) == (crossing.values, pytest.approx(same.energy))


def test_a_crossing_at_a_point_of_the_grid_is_found_once():
    surface = surface_of([[1, 1, 1, 1, 1], [3, 2, 1, 0, -1]], [ANGLES])
    (crossing,) = surface.crossings(*STATES)
    assert crossing.values == (110.0,)
    apart = surface_of([[1, 1, 1, 1, 1], [3, 2, 1.5, 2, 3]], [ANGLES])
    assert apart.crossings(*STATES) == []


def test_crossings_of_a_map_lie_between_neighbors_the_lowest_first():
    bond = np.linspace(1.0, 1.2, 3)
    angle = np.linspace(90, 130, 5)
    lower = np.add.outer(angle / 100, (bond - 1.1) ** 2)
    gap = np.subtract.outer(angle, 100 * bond)
    surface = surface_of([lower, lower + gap], [ANGLES, BONDS])
    found = surface.crossings(*STATES)
    assert found == sorted(found, key=lambda point: point.energy)
    for point in found:
        a, b, also_b = point.values
        assert b == pytest.approx(also_b)
        assert a == pytest.approx(100 * b)
    assert len(found) == len({point.values for point in found}) >= 3


def test_points_that_are_not_good_count_for_nothing():
    energies = np.array([[5, 4, 3, 4, 5], [6, 4.5, -9, 1, np.nan]])
    converged = np.ones((2, 5), bool)
    converged[1, 2] = False
    surface = surface_of(energies, [ANGLES], converged=converged)
    assert surface.minimum((0, 3)).energy == 1.0
    assert np.isnan(surface.gap(*STATES)).tolist() == [False, False, True, False, True]
    assert np.nanmin(surface.relative()) == 0.0
    assert surface.energies[1, 2] == -9.0  # but it is there
    nothing = surface_of(energies, [ANGLES], converged=np.zeros((2, 5), bool))
    with pytest.raises(InputError, match="no point of the state"):
        nothing.minimum((0, 1))
    with pytest.raises(InputError, match=r"one of \[\(0, 1\), \(0, 3\)\]"):
        surface.energy((0, 5))


def test_deviations_of_a_gap_are_those_of_the_gaps_of_the_members():
    members = np.random.default_rng(0).normal(size=(2, 5, 4))
    shared = members + np.array([3.0, -3.0, 5.0, 0.0])  # an error of both states
    surface = surface_of(shared.mean(-1), [ANGLES], members=shared)
    np.testing.assert_allclose(surface.deviations, shared.std(-1, ddof=1))
    expected = (members[1] - members[0]).std(-1, ddof=1)
    np.testing.assert_allclose(surface.gap_deviation(*STATES), expected)
    assert surface_of(shared.mean(-1), [ANGLES]).gap_deviation(*STATES) is None


def test_the_table_has_a_line_for_each_point_with_all_digits(tmp_path):
    energies = np.arange(30.0).reshape(2, 5, 3) / 7
    energies[1, 0, 1] = np.nan
    remarks = np.full((2, 5, 3), "", object)
    remarks[1, 0, 1] = "energy not finite"
    outside = energies > 3
    surface = surface_of(energies, [ANGLES, BONDS], remarks=remarks, outside=outside)
    surface.write_csv(tmp_path / "surface.csv")
    with (tmp_path / "surface.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    found = [[float(r[c]) for c in list(r)[:3]] for r in rows]
    np.testing.assert_allclose(found, surface.values.reshape(15, 3))
    assert list(rows[0])[:3] == ["angle_1_0_2_degrees", "bond_0_1_A", "bond_0_2_A"]
    assert [float(r["energy_0_1_eV"]) for r in rows] == energies[0].ravel().tolist()
    assert rows[1]["energy_0_3_eV"] == rows[1]["gap_0_1_minus_0_3_eV"] == ""
    assert rows[1]["remark_0_3"] == "energy not finite"
    assert float(rows[4]["gap_0_1_minus_0_3_eV"]) == pytest.approx(-15 / 7)
    assert [r["outside_0_3"] for r in rows][-1] == "True"


def test_frames_carry_their_state_and_place(ch2, tmp_path):
    spec = ["angle 1 0 2 100 120 3", BONDS]
    options = dataclasses.replace(QUIET, forces=True)
    surface = scan(methylene(1.1, 100, 1), ch2, spec, STATES, options=options)
    frames = list(surface.frames())
    ase.io.write(tmp_path / "points.xyz", frames, format="extxyz")
    back = ase.io.read(tmp_path / "points.xyz", ":")
    assert len(back) == 18
    for k, atoms in enumerate(back):
        assert (atoms.info["charge"], atoms.info["spin"]) == STATES[k // 9]
        place = tuple(atoms.info["scan_point"])
        at = (k // 9, *place)
        assert atoms.get_potential_energy() == pytest.approx(surface.energies[at])
        np.testing.assert_allclose(atoms.get_forces(), surface.forces[at], atol=1e-7)
        angle = atoms.info["angle_1_0_2_degrees"]
        assert atoms.get_angle(1, 0, 2) == pytest.approx(angle, abs=1e-4)


# What a scan refuses, and what it marks


def test_atoms_on_top_of_each_other_are_marked_and_the_others_stand(ch2):
    surface = scan(
        methylene(1.1, 100, 1), ch2, ["angle 1 0 2 0 120 5"], STATES, options=QUIET
    )
    assert surface.good.tolist() == [[False, True, True, True, True]] * 2
    assert np.isnan(surface.energies[:, 0]).all()
    assert surface.remarks[0, 0].startswith("atoms 1 and 2 are ")
    assert (surface.remarks[:, 1:] == "").all()


def test_points_that_no_geometry_has_are_marked_and_the_others_stand(ch2):
    spec = ["bond 1 2 1.0 3.0 5", "bond 0 1 + bond 0 2 1.0 1.2 2"]
    for relax in (False, True):
        surface = scan(
            methylene(1.1, 100, 1), ch2, spec, STATES, relax=relax, options=QUIET
        )
        assert surface.good[0].tolist() == [[True, True]] * 3 + [[False] * 2] * 2
        assert "no geometry has these values" in surface.remarks[1, 4, 0]
        assert np.isnan(surface.positions[0, 4]).all()
        assert len(list(surface.frames())) == 12


def test_a_dihedral_that_is_undefined_at_some_points_is_marked_there():
    potential = random_potential()
    peroxide = molecule("H2O2")
    h, o, other_o, other_h = (
        peroxide.get_all_distances()[2].argsort().tolist()[i] for i in (0, 1, 2, 3)
    )
    spec = [f"angle {h} {o} {other_o} 100 180 3", f"dihedral {h} {o} {other_o} "]
    spec[1] += f"{other_h} 0 90 2"
    surface = scan(peroxide, potential, spec, [(0, 1)], options=QUIET)
    assert surface.good[0].tolist() == [[True, True], [True, True], [False, False]]


def random_potential() -> mlff.Potential:
    info = mlff.TrainingInfo(elements=(1, 8), states=((0, 1), (0, 3)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = {"name": "cmret", "n_features": 8, "n_layers": 1, "n_radial": 8}
        return mlff.Potential.build(model, {}, info, torch.float64).eval()


def test_the_state_is_that_of_the_molecule_unless_states_are_given(ch2):
    triplet = methylene(1.1, 120, 3)
    surface = scan(triplet, ch2, ["angle 1 0 2 110 130 3"], options=QUIET)
    assert surface.states == ((0, 3),)
    both = scan(triplet, ch2, ["angle 1 0 2 110 130 3"], STATES, options=QUIET)
    np.testing.assert_allclose(both.energies[1], surface.energies[0], atol=1e-9)


def test_nothing_given_is_changed(ch2):
    atoms = methylene(1.1, 120, 3)
    before = atoms.copy()
    surface = scan(atoms, ch2, [ANGLES], STATES, relax=True, options=QUIET)
    assert atoms == before
    assert atoms.info == before.info
    assert surface.atoms == before


@pytest.mark.parametrize(
    ("states", "error", "told"),
    [
        ([(0, 2)], StateError, "does not fit 8 electrons"),
        ([(99, 1)], StateError, "nuclear charge"),
        ([(0, 1), (0, 1)], InputError, "twice"),
        ([], InputError, "list of"),
        ("0,1", InputError, "list of"),
        ([(0,)], InputError, "integers"),
        ([(0, 1.5)], InputError, "integers"),
        ([(False, 1)], InputError, "integers"),
    ],
)
def test_states_that_cannot_be_are_refused(ch2, states, error, told):
    with pytest.raises(error, match=told):
        scan(methylene(1.1, 100, 1), ch2, [ANGLES], states, options=QUIET)


def test_an_unseen_state_is_warned_of_and_remembered(ch2, forget_warnings):
    states = [(0, 1), (1, 2)]
    with pytest.warns(MlffWarning, match=r"CH2, charge \+1, multiplicity 2, was not"):
        surface = scan(methylene(1.1, 100, 1), ch2, [ANGLES], states, options=QUIET)
    (told,) = surface.unseen
    assert told.startswith("CH2, charge +1, multiplicity 2, was not in the training")
    assert told in scan_table(surface)
    assert (
        scan(methylene(1.1, 100, 1), ch2, [ANGLES], STATES, options=QUIET).unseen == ()
    )


def test_states_that_a_model_does_not_tell_apart_are_warned_of(forget_warnings):
    blind = member(0, "painn", charge_spin="none")
    with pytest.warns(MlffWarning, match="same energy at every point"):
        scan(methylene(1.1, 100, 1), blind, [ANGLES], STATES, options=QUIET)


def test_what_a_rigid_scan_would_not_write_is_refused(ch2, tmp_path):
    options = ScanOptions(out=tmp_path / "points.xyz", progress=False)
    with pytest.raises(InputError, match="`out` is for relaxed scans"):
        scan(methylene(1.1, 100, 1), ch2, [ANGLES], STATES, options=options)
    with pytest.raises(InputTypeError, match="`relax` must be True or False"):
        scan(methylene(1.1, 100, 1), ch2, [ANGLES], STATES, relax="no")


def test_molecules_that_cannot_be_scanned_are_refused(ch2):
    good = methylene(1.1, 100, 1)

    def refused(told, error=InputError, potential=ch2, **changes):
        atoms = good.copy()
        relax = changes.pop("relax", False)
        for name, value in changes.items():
            setattr(atoms, name, value)
        with pytest.raises(error, match=told):
            scan(atoms, potential, [ANGLES], STATES, relax=relax, options=QUIET)

    refused("is periodic; a scan is of one molecule", pbc=True, cell=np.eye(3) * 9)
    refused("must be finite", positions=np.full((3, 3), np.nan))
    refused("elements .*Si", numbers=[14, 1, 1])
    refused("FixAtoms|constraints", constraints=[FixAtoms([0])], relax=True)
    refused("must be a Potential", InputTypeError, potential="ch2")
    with pytest.raises(InputTypeError, match="ASE Atoms"):
        scan("ch2.xyz", ch2, [ANGLES], STATES)
    with pytest.raises(InputTypeError, match="ScanOptions"):
        scan(good, ch2, [ANGLES], STATES, options={"fmax": 0.1})


def test_a_grid_beyond_the_memory_is_refused_with_its_size(ch2):
    spec = [
        "angle 1 0 2 90 120 1000",
        "bond 0 1 1.0 1.2 1000",
        "bond 0 2 1.0 1.2 1000",
    ]
    told = "1,000 × 1,000 × 1,000 = 1,000,000,000 points in 2 states.* GiB"
    with pytest.raises(InputError, match=told):
        scan(methylene(1.1, 100, 1), ch2, spec, STATES, options=QUIET)
