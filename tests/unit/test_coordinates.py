"""Internal coordinates: what ASE measures, derivatives by differences, round trips."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mlff.coordinates import (
    Coordinate,
    defined,
    jacobian,
    moving_atoms,
    placed,
    residuals,
    set_coordinate,
    values,
)
from mlff.errors import InputError, InputTypeError

#: In ethane: along the chain, between substituents, and improper.
ETHANE = tuple(
    map(
        Coordinate.of,
        (
            "bond 0 1",
            "bond 2 5",
            "angle 2 0 1",
            "angle 2 0 3",
            "dihedral 2 0 1 5",
            "dihedral 3 0 1 7",
            "dihedral 2 0 3 4",
        ),
    )
)


def ethanes(n: int = 4) -> np.ndarray:
    """Distorted geometries, (n, 8, 3)."""
    noise = np.random.default_rng(1).normal(0.0, 0.15, (n, 8, 3))
    return molecule("C2H6").positions + noise


def measured(positions: np.ndarray, one: Coordinate) -> float:
    atoms = Atoms("C2H6", positions)
    measure = {
        "bond": atoms.get_distance,
        "angle": atoms.get_angle,
        "dihedral": atoms.get_dihedral,
    }
    return measure[one.kind](*one.atoms)


def test_values_are_those_of_ase():
    found = values(ethanes(), ETHANE)
    assert found.shape == (4, 7)
    for positions, row in zip(ethanes(), found, strict=True):
        for one, value in zip(ETHANE, row, strict=True):
            off = value - measured(positions, one)
            turns = off / 360 if one.kind == "dihedral" else 0.0
            assert off - 360 * round(turns) == pytest.approx(0.0, abs=1e-9)
    assert (np.abs(found[:, 4:]) <= 180).all()


def test_a_positive_dihedral_turns_clockwise_along_its_axis():
    # Seen along +x, from y (up) clockwise is towards +z.
    positions = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 0.8, 0.6]], float)
    (value,) = values(positions, [Coordinate.of("dihedral 0 1 2 3")])
    assert value == pytest.approx(np.degrees(np.arctan2(0.6, 0.8)))


def test_derivatives_are_differences():
    positions, step = ethanes(2), 1e-5
    found = jacobian(positions, ETHANE)
    assert found.shape == (2, 7, 8, 3)
    expected = np.zeros_like(found)
    for atom, axis in np.ndindex(8, 3):
        shift = np.zeros((8, 3))
        shift[atom, axis] = step
        before = values(positions - shift, ETHANE)
        after = residuals(positions + shift, ETHANE, before)
        expected[:, :, atom, axis] = after / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_derivatives_are_those_of_autograd():
    positions = torch.from_numpy(ethanes(2)).requires_grad_(True)
    found = jacobian(positions.detach(), ETHANE)
    for row in range(len(ETHANE)):
        (expected,) = torch.autograd.grad(
            values(positions, ETHANE)[:, row].sum(), positions
        )
        torch.testing.assert_close(found[:, row], expected, rtol=0, atol=1e-10)


def test_arrays_and_tensors_one_and_many_give_the_same():
    positions = ethanes()
    for function in (values, jacobian, defined):
        many = function(positions, ETHANE)
        assert isinstance(many, np.ndarray)
        tensor = function(torch.from_numpy(positions), ETHANE)
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(many, tensor.numpy())
        for row, one in zip(many, positions, strict=True):
            np.testing.assert_allclose(row, function(one, ETHANE), rtol=0, atol=1e-12)
    assert values(positions, []).shape == (4, 0)


def test_residuals_of_dihedrals_go_the_short_way_round():
    positions = set_coordinate(molecule("C2H6"), "dihedral 2 0 1 5", 179.0).positions
    pair = [Coordinate.of("dihedral 2 0 1 5"), Coordinate.of("angle 2 0 1")]
    angle = values(positions, pair)[1]
    off = residuals(positions, pair, [-178.0, angle - 350.0])
    np.testing.assert_allclose(off, [-3.0, 350.0], atol=1e-9)


def test_a_straight_angle_is_exact_and_bends_in_some_plane():
    positions = np.array([[1.1, 0, 0], [0, 0, 0], [-0.9, 0, 0]])
    one = [Coordinate.of("angle 0 1 2")]
    assert values(positions, one)[0] == 180.0
    rows = np.radians(jacobian(positions, one)[0])
    assert np.linalg.norm(rows[0]) == pytest.approx(1 / 1.1)
    assert np.linalg.norm(rows[2]) == pytest.approx(1 / 0.9)
    assert np.abs(rows[:, 0]).max() < 1e-12
    assert np.abs(rows.sum(0)).max() < 1e-12


@pytest.mark.parametrize("target", [0.0, 1e-7, 30.0, 179.9999, 180.0])
def test_angles_close_to_a_line_keep_their_digits(target):
    atoms = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.3, 0.9, 0]])
    bent = set_coordinate(atoms, ("angle", 1, 0, 2), target)
    found = values(bent.positions, [Coordinate.of("angle 1 0 2")])[0]
    assert found == pytest.approx(target, abs=1e-8)


def test_a_straight_molecule_can_be_bent():
    straight = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.96, 0, 0]])
    bent = set_coordinate(straight, "angle 1 0 2", 104.0)
    assert bent.get_angle(1, 0, 2) == pytest.approx(104.0)
    assert bent.get_distance(0, 2) == pytest.approx(0.96)


@pytest.mark.parametrize("name", ["C2H6", "CH3CHO", "CH3SiH3", "C3H8", "H2O2"])
def test_setting_a_coordinate_is_read_back_and_moves_bodies(name):
    rng = np.random.default_rng(len(name))
    for trial in range(5):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=trial)
        kind, n = [("bond", 2), ("angle", 3), ("dihedral", 4)][trial % 3]
        one = Coordinate(kind, tuple(rng.permutation(len(atoms))[:n]))
        target = {"bond": 1.7, "angle": 77.0, "dihedral": -133.0}[kind]
        before = atoms.positions.copy()
        out = set_coordinate(atoms, one, target)
        off = residuals(out.positions, [one], [target])
        assert off[0] == pytest.approx(0.0, abs=1e-9)
        np.testing.assert_array_equal(atoms.positions, before)
        moving = moving_atoms(atoms, one)
        assert moving[one.atoms[-1]]
        assert not moving[one.atoms[0]]
        for part in (moving, ~moving):
            np.testing.assert_allclose(
                out[part].get_all_distances(),
                atoms[part].get_all_distances(),
                atol=1e-9,
            )


def test_the_fragment_behind_a_bond_moves():
    ethane = molecule("C2H6")
    own = set(np.flatnonzero(ethane.get_distances(1, range(8)) < 1.3))
    for text in ("bond 0 1", "angle 2 0 1", "dihedral 2 0 1 5"):
        moving = moving_atoms(ethane, Coordinate.of(text))
        assert set(np.flatnonzero(moving)) == own
    out = set_coordinate(ethane, "dihedral 2 0 1 5", 10.0)
    turned = [out.get_dihedral(2, 0, 1, k) for k in (5, 6, 7)]
    apart = np.sort(np.diff(np.sort(np.mod(turned, 360))))
    np.testing.assert_allclose(apart, [120.0, 120.0], atol=0.1)


def test_in_a_ring_an_atom_moves_with_its_own_substituents():
    benzene = molecule("C6H6")
    (hydrogen,) = np.flatnonzero(
        (benzene.numbers == 1) & (benzene.get_distances(1, range(12)) < 1.3)
    )
    moving = moving_atoms(benzene, Coordinate.of("bond 0 1"))
    assert set(np.flatnonzero(moving)) == {1, hydrogen}


def test_a_molecule_beside_another_moves_as_a_whole():
    pair = molecule("H2O") + molecule("CH4")
    pair.positions[3:] += (4.0, 0.0, 0.0)
    third = molecule("H2")
    third.positions += (0.0, 9.0, 0.0)
    moving = moving_atoms(pair + third, Coordinate.of("bond 0 3"))
    assert set(np.flatnonzero(moving)) == {3, 4, 5, 6, 7}


def test_atoms_of_no_chain_move_alone():
    water = molecule("H2O")
    assert set(np.flatnonzero(moving_atoms(water, Coordinate.of("bond 1 2")))) == {2}


def test_many_geometries_are_placed_at_once():
    positions = torch.from_numpy(ethanes())
    one = Coordinate.of("dihedral 2 0 1 5")
    moving = torch.from_numpy(moving_atoms(molecule("C2H6"), one))
    wanted = torch.tensor([-170.0, 0.0, 60.0, 400.0], dtype=torch.float64)
    out = placed(positions, one, wanted, moving)
    assert residuals(out, [one], wanted[:, None]).abs().max() < 1e-9
    for row in range(4):
        alone = placed(positions[row], one, wanted[row], moving)
        torch.testing.assert_close(out[row], alone, rtol=0, atol=1e-12)


def test_what_has_no_meaning_is_told():
    positions = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0], [2, 1, 0]], float)
    ask = ("bond 0 1", "bond 3 4", "angle 0 1 2", "dihedral 0 1 2 3", "angle 2 3 4")
    found = defined(positions, [Coordinate.of(text) for text in ask])
    assert found.tolist() == [True, False, True, False, False]
    atoms = Atoms("C5", positions)
    with pytest.raises(InputError, match="dihedral 0-1-2-3 has no meaning"):
        set_coordinate(atoms, "dihedral 0 1 2 3", 10.0)


def test_a_coordinate_is_the_same_from_both_ends():
    for text, other in (
        ("bond 0 1", "bond 1 0"),
        ("angle 1 0 2", "angle 2 0 1"),
        ("dihedral 2 0 1 5", "dihedral 5 1 0 2"),
    ):
        one, back = Coordinate.of(text), Coordinate.of(other)
        assert one.same_as(back)
        off = residuals(ethanes(), [one], values(ethanes(), [back]))
        assert np.abs(off).max() < 1e-9
    assert not Coordinate.of("angle 1 0 2").same_as(Coordinate.of("angle 0 1 2"))


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ("bnd 0 1", InputError, "one of.*bond.*'bnd'"),
        ("bond 0", InputError, "2 indices"),
        ("angle 0 1", InputError, "3 indices"),
        ("bond 0 0", InputError, "twice"),
        ("bond 0 -1", InputError, "begin with 0"),
        ("bond 0 x", InputError, "'x'"),
        (("bond", 0, 1.0), InputError, "indices of atoms, got 1.0"),
        ((["bond"], 0, 1), InputError, "one of.*bond"),
        ("", InputTypeError, "like"),
        (7, InputTypeError, "like"),
    ],
)
def test_what_is_no_coordinate_is_refused(given, error, told):
    with pytest.raises(error, match=told):
        Coordinate.of(given)


@pytest.mark.parametrize(
    ("text", "value", "told"),
    [
        ("bond 0 1", 0.0, "positive"),
        ("bond 0 1", -1.0, "positive"),
        ("angle 1 0 2", 181.0, "0 … 180"),
        ("angle 1 0 2", -1.0, "0 … 180"),
        ("dihedral 2 0 1 5", float("nan"), "finite"),
        ("bond 0 8", 1.0, "no atom 8; the molecule has 8"),
    ],
)
def test_values_and_atoms_that_cannot_be_are_refused(text, value, told):
    with pytest.raises(InputError, match=told):
        set_coordinate(molecule("C2H6"), text, value)
