import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from mlff.batch import MAX_COORDINATE, AtomsBatch, Edges, edge_vectors
from mlff.errors import InputError, InputTypeError, StateError

PER_ATOM = ("numbers", "positions", "system", "slot")
PER_SYSTEM = ("cell", "pbc", "charge", "multiplicity")
COUNTS = ("n_systems", "max_atoms", "periodic")


def systems():
    """Sizes 3, 2, 5 and 1: each with its own state, cell and periodic axes."""
    carbene = Atoms("CH2", [[0, 0, 0.1], [0, 0.98, -0.3], [0, -0.98, -0.3]])
    carbene.info = {"charge": 0, "spin": 3}
    hydroxide = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], cell=[4, 5, 0], pbc=[1, 1, 0])
    hydroxide.info = {"charge": -1, "spin": 1}
    corners = [[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    methane = Atoms("CH4", 0.63 * np.array(corners))
    methane.info = {"charge": 1, "spin": 2}
    helium = Atoms("He", cell=[[3, 0, 0], [1, 3, 0], [0, 1, 3]], pbc=True)
    helium.info = {"charge": 0, "spin": 1}
    return [carbene, hydroxide, methane, helium]


def assert_same(a, b):
    for name in PER_ATOM + PER_SYSTEM:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        assert left.equal(right), name
    for name in COUNTS:
        assert getattr(a, name) == getattr(b, name), name


# What a batch holds


def test_every_field_has_its_type_and_one_row_per_atom_or_system():
    batch = AtomsBatch.from_atoms(systems())
    axes = {f.name: f.metadata.get("per") for f in dataclasses.fields(AtomsBatch)}
    expected = dict.fromkeys(PER_ATOM, "atom") | dict.fromkeys(PER_SYSTEM, "system")
    assert axes == expected | dict.fromkeys(COUNTS)
    for name, shape, dtype in [
        ("numbers", (11,), torch.int64),
        ("positions", (11, 3), torch.float64),
        ("system", (11,), torch.int64),
        ("slot", (11,), torch.int64),
        ("cell", (4, 3, 3), torch.float64),
        ("pbc", (4, 3), torch.bool),
        ("charge", (4,), torch.int64),
        ("multiplicity", (4,), torch.int64),
    ]:
        tensor = getattr(batch, name)
        assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype), name
    assert (batch.n_systems, batch.n_atoms, batch.max_atoms) == (4, 11, 5)
    assert batch.periodic


def test_systems_follow_one_another_in_the_order_given():
    given = systems()
    batch = AtomsBatch.from_atoms(given)
    assert batch.system.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3]
    assert batch.slot.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 0]
    assert batch.counts().tolist() == [3, 2, 5, 1]
    assert batch.numbers.tolist() == [6, 1, 1, 8, 1, 6, 1, 1, 1, 1, 2]
    for index, atoms in enumerate(given):
        mine = batch.system == index
        np.testing.assert_array_equal(batch.positions[mine], atoms.positions)
        np.testing.assert_array_equal(batch.cell[index], atoms.cell.array)
        np.testing.assert_array_equal(batch.pbc[index], atoms.pbc)


def test_each_system_has_its_own_state():
    batch = AtomsBatch.from_atoms(systems())
    assert batch.charge.tolist() == [0, -1, 1, 0]
    assert batch.multiplicity.tolist() == [3, 1, 2, 1]


def test_state_is_given_once_for_all_or_once_per_system():
    bare = [
        Atoms("He2", [[0, 0, 0], [0, 0, 2.0]]),
        Atoms("He"),
        Atoms("Be"),
        Atoms("C"),
    ]
    same = AtomsBatch.from_atoms(bare, charge=0, spin=np.int64(3))
    assert same.multiplicity.tolist() == [3, 3, 3, 3]
    own = AtomsBatch.from_atoms(
        bare, charge=[1, -1, 0, 2], spin=torch.tensor([2, 2, 3, 1])
    )
    assert own.charge.tolist() == [1, -1, 0, 2]
    assert own.multiplicity.tolist() == [2, 2, 3, 1]


def test_uniform_means_equal_sizes():
    helium = Atoms("He2", [[0, 0, 0], [0, 0, 2.0]])
    assert AtomsBatch.from_atoms([helium, helium], charge=0, spin=1).uniform
    assert not AtomsBatch.from_atoms(systems()).uniform


def test_no_systems_make_an_empty_batch():
    batch = AtomsBatch.from_atoms([])
    assert (batch.n_systems, batch.n_atoms, batch.max_atoms) == (0, 0, 0)
    assert batch.positions.shape == (0, 3)
    assert batch.cell.shape == (0, 3, 3)
    assert batch.pbc.shape == (0, 3)
    assert batch.counts().shape == (0,)
    assert not batch.periodic


def test_users_atoms_and_the_batch_share_nothing():
    given = systems()
    before = [atoms.copy() for atoms in given]
    batch = AtomsBatch.from_atoms(given)
    kept = batch.positions.clone()
    for atoms, copy in zip(given, before, strict=True):
        assert atoms == copy
        assert atoms.info == copy.info
        assert set(atoms.arrays) == set(copy.arrays)
        atoms.positions += 1.0
        atoms.cell *= 2.0
    assert batch.positions.equal(kept)
    for tensor in (batch.positions, batch.cell, batch.numbers):
        tensor += 1
    np.testing.assert_allclose(given[0].positions, before[0].positions + 1.0)
    one = systems()[:1]
    AtomsBatch.from_atoms(one).positions.add_(1.0)
    assert one[0] == systems()[0]


def test_a_batch_is_frozen():
    batch = AtomsBatch.from_atoms(systems())
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.charge = batch.charge + 1


# What a batch refuses


def spoiled(change):
    atoms = systems()[1]
    change(atoms)
    return atoms


def _set(array, index, value):
    def change(atoms):
        getattr(atoms, array)[index] = value

    return change


BAD_GEOMETRY = {
    "position not a number": (_set("positions", (1, 2), math.nan), r"finite.*\[1\]"),
    "position infinite": (_set("positions", (0, 0), -math.inf), r"finite.*\[0\]"),
    "position huge": (_set("positions", (0, 0), 1e12), r"within ±1e\+06 Å, got 1e\+12"),
    "cell not a number": (
        _set("cell", (0, 0), math.nan),
        r"`atoms.cell` must be finite",
    ),
    "cell infinite": (_set("cell", (2, 2), math.inf), r"`atoms.cell` must be finite"),
    "ghost atom": (_set("numbers", 1, 0), r"1 … 118, got \[0\]"),
    "element 119": (_set("numbers", 1, 119), r"1 … 118, got \[119\]"),
    "periodic without a cell": (_set("pbc", 2, True), r"cell vectors \[2\], which are"),
    "collinear cell": (_set("cell", 1, [8.0, 0, 0]), r"singular.*linearly dependent"),
    "no atoms": (lambda atoms: atoms.__delitem__([0, 1]), r"`atoms` is empty"),
}


@pytest.mark.parametrize("name", BAD_GEOMETRY)
def test_geometry_without_meaning_is_refused_and_the_system_named(name):
    change, text = BAD_GEOMETRY[name]
    with pytest.raises(InputError, match=text) as alone:
        AtomsBatch.from_atoms([spoiled(change)])
    assert not str(alone.value).startswith("system")
    others = systems()
    others[1] = spoiled(change)
    with pytest.raises(InputError, match=r"system 1: .*" + text):
        AtomsBatch.from_atoms(others)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_periodic_axis_needs_its_cell_vector(axis):
    cell = np.diag([4.0, 5.0, 6.0])
    cell[axis] = 0.0
    atoms = Atoms("He2", [[0, 0, 0], [0, 0, 2.0]], cell=cell)
    for pbc in (np.arange(3) == axis, True):
        atoms.pbc = pbc
        with pytest.raises(InputError, match=rf"cell vectors \[{axis}\]"):
            AtomsBatch.from_atoms([atoms], charge=0, spin=1)
    atoms.pbc = np.arange(3) != axis
    AtomsBatch.from_atoms([atoms], charge=0, spin=1)


@pytest.mark.parametrize(
    "change",
    [
        _set("positions", (0, 0), -MAX_COORDINATE),
        _set("cell", 2, [8.0, 0, 0]),  # parallel, but not periodic
        _set("cell", (0, 0), -4.0),  # left-handed
        _set("cell", 1, [3.9999, 0.01, 0]),  # very skewed
        _set("numbers", 1, 117),
    ],
)
def test_unusual_but_meaningful_geometry_is_accepted(change):
    atoms = spoiled(change)
    batch = AtomsBatch.from_atoms([atoms, atoms], check_parity=False)
    np.testing.assert_array_equal(batch.positions[:2], atoms.positions)


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"charge": 0.5}, StateError, "must be integral, got 0.5"),
        ({"spin": 2}, StateError, "does not fit 10 electrons"),
        ({"spin": "singlet"}, InputTypeError, "must be .*, got 'singlet'"),
        ({"charge": 20}, StateError, "within ±9"),
        ({"total_charge": 1}, StateError, "conflicting values of the charge"),
    ],
)
def test_an_impossible_state_is_refused_with_its_own_error_and_the_system_named(
    changed, error, text
):
    given = systems()
    given[1].info |= changed
    with pytest.raises(error, match="system 1: .*" + text):
        AtomsBatch.from_atoms(given)


def test_arguments_may_not_contradict_what_a_system_carries():
    with pytest.raises(StateError, match=r"system 1: conflicting values of the charge"):
        AtomsBatch.from_atoms(systems(), charge=0)


def test_strict_refuses_a_state_that_nobody_wrote():
    given = systems()
    del given[2].info["spin"]
    with pytest.raises(StateError, match="system 2: no spin"):
        AtomsBatch.from_atoms(given, strict=True)


def test_parity_is_not_checked_on_request():
    given = systems()
    given[1].info["spin"] = 2
    batch = AtomsBatch.from_atoms(given, check_parity=False)
    assert batch.multiplicity.tolist() == [3, 2, 2, 1]


@pytest.mark.parametrize("name", ["charge", "spin"])
def test_one_value_per_system_means_exactly_one(name):
    with pytest.raises(InputError, match=rf"`{name}` must be one value .*\(4\), got 2"):
        AtomsBatch.from_atoms(systems(), **{name: [1, 1]})


def test_one_atoms_object_is_not_a_list_of_systems():
    with pytest.raises(InputTypeError, match="must be a list of Atoms, got"):
        AtomsBatch.from_atoms(systems()[0])


# Selecting, joining, moving


@pytest.mark.parametrize(
    "chosen", [[2, 0], [3, 2, 1, 0], [1, 1], [0, 1, 3, 0, 2], [3, 3, 0, 3]]
)
def test_selection_is_the_batch_of_the_selected_systems(chosen):
    given = systems()
    batch = AtomsBatch.from_atoms(given)
    expected = AtomsBatch.from_atoms([given[index] for index in chosen])
    assert_same(batch.select(chosen), expected)
    assert_same(batch.select(torch.tensor(chosen)), expected)
    assert_same(batch.select(np.array(chosen)), expected)


def test_selection_recounts_the_largest_system_and_the_periodic_ones():
    batch = AtomsBatch.from_atoms(systems())
    free = batch.select([0, 2])
    assert (free.max_atoms, free.periodic) == (5, False)
    periodic = batch.select([1, 3])
    assert (periodic.max_atoms, periodic.periodic) == (2, True)
    nothing = batch.select([])
    assert (nothing.n_systems, nothing.n_atoms, nothing.max_atoms) == (0, 0, 0)


def test_selection_carries_gradients():
    batch = AtomsBatch.from_atoms(systems())
    free = batch.replace(positions=batch.positions.clone().requires_grad_())
    free.select([2, 0]).positions.sum().backward()
    touched = free.positions.grad[:, 0].bool()
    assert touched.equal((batch.system == 2) | (batch.system == 0))


def test_parts_joined_are_the_whole():
    given = systems()
    whole = AtomsBatch.from_atoms(given)
    singles = [AtomsBatch.from_atoms([atoms]) for atoms in given]
    assert_same(AtomsBatch.concat(singles), whole)
    assert_same(AtomsBatch.concat([whole.select([0, 1]), whole.select([2, 3])]), whole)
    empty = AtomsBatch.from_atoms([])
    assert_same(AtomsBatch.concat([empty, whole, empty]), whole)
    twice = AtomsBatch.concat([whole, whole])
    assert_same(twice, AtomsBatch.from_atoms(given + given))


def test_nothing_cannot_be_joined():
    with pytest.raises(InputError, match="`batches` is empty"):
        AtomsBatch.concat([])


def test_a_move_takes_every_tensor_and_keeps_every_count():
    batch = AtomsBatch.from_atoms(systems())
    assert_same(batch.to("cpu"), batch)
    moved = batch.to("meta")
    for name in PER_ATOM + PER_SYSTEM:
        assert getattr(moved, name).device.type == "meta", name
    assert [getattr(moved, n) for n in COUNTS] == [getattr(batch, n) for n in COUNTS]


def test_edges_move_with_their_layout():
    index, shift = torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.float64)
    edges = Edges(i=index, j=index.flip(0), shift=shift, degree=1, has_fill=True)
    moved = edges.to("meta")
    tensors = (moved.i, moved.j, moved.shift)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (moved.degree, moved.has_fill, moved.n_edges) == (1, True, 2)
    assert Edges(i=index, j=index, shift=None).to("cpu").shift is None


def test_replacing_a_field_leaves_the_others_and_the_original():
    batch = AtomsBatch.from_atoms(systems())
    other = batch.replace(charge=batch.charge + 1)
    assert other.charge.tolist() == [1, 0, 2, 1]
    assert batch.charge.tolist() == [0, -1, 1, 0]
    assert other.positions is batch.positions


# Vectors


def test_vectors_point_from_receiver_to_sender_plus_shift_times_cell_rows():
    batch = AtomsBatch.from_atoms(systems())
    shift = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, -2]], dtype=torch.float64)
    edges = Edges(i=torch.tensor([0, 3, 10]), j=torch.tensor([1, 4, 10]), shift=shift)
    expected = [[0, 0.98, -0.4], [0, 5, 0.97], [3, -2, -6]]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(edge_vectors(batch, edges), expected, rtol=0, atol=1e-12)


def test_vectors_are_differentiable_in_positions_and_cell():
    batch = AtomsBatch.from_atoms(systems())
    shift = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, -2]], dtype=torch.float64)
    edges = Edges(i=torch.tensor([0, 3, 10]), j=torch.tensor([1, 4, 10]), shift=shift)

    def vectors(positions, cell):
        return edge_vectors(batch.replace(positions=positions, cell=cell), edges)

    inputs = (batch.positions.requires_grad_(), batch.cell.requires_grad_())
    assert torch.autograd.gradcheck(vectors, inputs)


def test_a_mask_selects_the_systems_it_marks():
    systems = [molecule("H2O"), molecule("CH4"), molecule("C2H4"), molecule("NH3")]
    batch = AtomsBatch.from_atoms(systems, charge=0, spin=1)
    marked = batch.select(torch.tensor([True, False, True, False]))
    assert torch.equal(marked.numbers, batch.select([0, 2]).numbers)
    with pytest.raises(InputError, match="mask of 4 systems"):
        batch.select(torch.tensor([True, False]))
