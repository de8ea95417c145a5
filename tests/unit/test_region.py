"""The region seen in training: how it is measured, stored, and found to be left."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

import mlff
from mlff.batch import AtomsBatch, edge_vectors
from mlff.errors import InputError, ModelFileError
from mlff.neighbors import BACKENDS, all_pairs, neighbor_list
from mlff.potential import Potential, TrainingInfo
from mlff.region import Region
from mlff.tensorfile import load_tensors, save_tensors

CUTOFF = 4.0


def methylene(first=1.1, second=1.1, angle=120.0):
    radians = math.radians(angle)
    place = [second * math.cos(radians), second * math.sin(radians), 0.0]
    return Atoms("CHH", [[0, 0, 0], [first, 0, 0], place])


def batch_of(*systems):
    states = [(0, 1 + sum(a.numbers) % 2) for a in systems]
    charge, spin = zip(*states, strict=True)
    return AtomsBatch.from_atoms(list(systems), list(charge), list(spin))


def region_of(*systems, **margins):
    region = Region.from_batch(batch_of(*systems), CUTOFF)
    return dataclasses.replace(region, **margins)


def left(region, *systems, backend="auto", cutoff=CUTOFF):
    batch = batch_of(*systems)
    edges = neighbor_list(batch, cutoff, backend)
    lengths = torch.linalg.vector_norm(edge_vectors(batch, edges), dim=1)
    found = region.outside(batch, edges, lengths)
    reasons = region.reasons(batch)
    assert [bool(text) for text in reasons] == found.tolist()
    return found.tolist()


# What is measured


def test_ranges_of_methylene_are_its_bonds_and_angles():
    wide, narrow = methylene(1.0, 1.2, 120.0), methylene(1.1, 1.1, 60.0)
    found = region_of(wide, narrow).to_json()
    apart = math.sqrt(1.0 + 1.2**2 + 1.0 * 1.2)
    assert found.keys() == {"H-H", "H-C", "C-H", "H-H-C", "H-C-H"}
    assert found["C-H"] == pytest.approx((1.0, 1.1))  # of each C, the nearer H
    assert found["H-C"] == pytest.approx((1.0, 1.2))
    assert found["H-H"] == pytest.approx((1.1, apart))
    assert found["H-C-H"] == pytest.approx((60.0, 120.0))
    # A triangle of equal sides, and the sharpest corner of the other, by the sine rule.
    sharp = math.degrees(math.asin(math.sin(math.radians(120.0)) / apart))
    assert found["H-H-C"] == pytest.approx((sharp, 60.0))


def test_ranges_of_water_are_by_the_element_that_looks():
    water = Atoms("OHH", [[0, 0, 0], [0.95, 0, 0], [0, 1.0, 0]])
    far = Atoms("OHH", [[0, 0, 0], [0.97, 0, 0], [0, 6.0, 0]])
    found = region_of(water, far).to_json()
    assert found["O-H"] == pytest.approx((0.95, 0.97))
    assert found["H-O"] == pytest.approx((0.95, CUTOFF))  # one of them sees none
    assert found["H-O-H"] == pytest.approx((90.0, 90.0))


def test_an_element_that_a_molecule_lacks_widens_no_range():
    """Otherwise hydrogen molecules in the data would let CH2 lose its hydrogen."""
    alone, pair = Atoms("H"), Atoms("HH", [[0, 0, 0], [0.74, 0, 0]])
    bound = region_of(methylene(), alone, pair, Atoms("C"))
    assert bound.to_json()["H-C"] == pytest.approx((1.1, 1.1))
    assert "C-C" not in bound.to_json()
    assert left(bound, methylene(1.1, 2.0), alone, pair, pair) == [True] + 3 * [False]


def test_atoms_of_a_crystal_see_images_of_themselves():
    chain = Atoms("C", cell=[1.4, 9.0, 9.0], pbc=[True, False, False])
    found = region_of(chain).to_json()
    assert found["C-C"] == pytest.approx((1.4, 1.4))
    assert found["C-C-C"] == pytest.approx((180.0, 180.0))
    thin = Atoms("C", cell=[9.0, 9.0, 9.0], pbc=True)
    assert region_of(thin).to_json() == {"C-C": (CUTOFF, CUTOFF)}
    assert region_of(Atoms("C", cell=[1.4, 9.0, 9.0])).to_json() == {}


def test_many_systems_are_measured_in_parts_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    systems = []
    for _ in range(10):
        atoms = molecule(rng.choice(["CH4", "H2O", "C2H6", "CH3OH"]))
        atoms.rattle(0.1, rng=rng)
        systems.append(atoms)
    whole = region_of(*systems).ranges
    assert len(whole) == 14
    monkeypatch.setattr("mlff.region._ATOMS_AT_ONCE", 7)
    parts = region_of(*systems).ranges
    assert parts.keys() == whole.keys()
    assert all(parts[key] == pytest.approx(whole[key], abs=1e-5) for key in whole)


def test_what_was_seen_is_inside_without_a_margin():
    inside, _ = mixture()
    region = region_of(*inside, margin_A=0.0, margin_degrees=0.0)
    assert left(region, *inside) == [False] * 4


def test_an_empty_batch_has_no_region():
    assert Region.from_batch(AtomsBatch.from_atoms([]), CUTOFF).ranges == {}


# Who is outside


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_a_bond_may_be_outside_by_the_margin_and_not_by_a_millionth_more(margin):
    seen = [methylene(1.0, 1.0, 100.0), methylene(1.2, 1.2, 100.0)]
    region = region_of(*seen, margin_A=margin, margin_degrees=90.0)
    low, high = 1.0 - margin, 1.2 + margin
    bonds = [low - 1e-6, low + 1e-6, high - 1e-6, high + 1e-6]
    assert left(region, *(methylene(1.1, bond, 100.0) for bond in bonds)) == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("margin", [0.0, 15.0])
def test_an_angle_may_be_outside_by_the_margin_and_not_by_a_millionth_more(margin):
    seen = [methylene(angle=100.0), methylene(angle=140.0)]
    region = region_of(*seen, margin_A=0.5, margin_degrees=margin)
    low, high = 100.0 - margin, 140.0 + margin
    angles = [low - 1e-6, low + 1e-6, high - 1e-6, high + 1e-6]
    assert left(region, *(methylene(angle=angle) for angle in angles)) == [
        True,
        False,
        False,
        True,
    ]
    silent = dataclasses.replace(region, margin_degrees=math.inf)
    assert not any(left(silent, *(methylene(angle=angle) for angle in angles)))


def test_flat_methylene_with_short_bonds_is_outside():
    """All its distances were seen: it is the angle that was not."""
    region = region_of(methylene(1.0, 1.0, 90.0), methylene(1.2, 1.2, 140.0))
    flat = methylene(1.1, 1.1, 180.0)
    assert left(region, flat, methylene()) == [True, False]
    assert region.reasons(batch_of(flat, methylene()))[0] == (
        "H-C-H is 180.0°, seen 90.0 … 140.0°"
    )
    silent = dataclasses.replace(region, margin_degrees=math.inf)
    assert left(silent, flat, methylene()) == [False, False]


@pytest.mark.parametrize(
    ("gap", "outside"), [(1.3 + 1e-6, True), (3.99, True), (4.01, True), (50.0, True)]
)
def test_an_atom_that_leaves_is_outside_within_the_cutoff_and_beyond(gap, outside):
    region = region_of(methylene(1.0, 1.2, 100.0), margin_degrees=math.inf)
    assert left(region, methylene(1.1, gap, 100.0), methylene(1.1, 1.1, 100.0)) == [
        outside,
        False,
    ]
    assert region.reasons(batch_of(methylene(1.1, 50.0)))[0].endswith(
        "> 4 Å, seen 1.000 … 1.200 Å"
    )


def test_none_in_reach_is_inside_where_training_had_it():
    far = Atoms("CO", [[0, 0, 0], [5.0, 0, 0]])
    near = Atoms("CO", [[0, 0, 0], [1.1, 0, 0]])
    assert left(region_of(far, near), near, far, far, far) == 4 * [False]
    assert left(region_of(near), near, far, near, near) == [False, True, False, False]
    assert left(region_of(far), near, far, near, near) == [True, False, True, True]


def test_pairs_and_elements_that_were_not_seen_are_outside():
    region = region_of(methylene(), molecule("H2O"))
    strange = Atoms("CO", [[0, 0, 0], [1.1, 0, 0]])
    unknown = Atoms("NH", [[0, 0, 0], [1.0, 0, 0]])
    assert left(region, strange, unknown, methylene(), methylene()) == [
        True,
        True,
        False,
        False,
    ]
    assert region.reasons(batch_of(strange, unknown)) == [
        "C-O was not in the training data",
        "another element-H was not in the training data",
    ]


def test_what_is_not_a_number_is_outside():
    region = region_of(methylene())
    batch = batch_of(methylene(), methylene())
    edges = all_pairs(batch, CUTOFF)
    broken = batch.positions.clone()
    broken[4, 1] = math.nan
    batch = batch.replace(positions=broken)
    lengths = torch.linalg.vector_norm(edge_vectors(batch, edges), dim=1)
    assert region.outside(batch, edges, lengths).tolist() == [False, True]


# On any list of edges


def mixture():
    """Sizes differ; the first half is inside, then one of each kind of departure."""
    ethane, water = molecule("C2H6"), molecule("H2O")
    inside = [ethane, water, methylene(), Atoms("CO", [[0, 0, 0], [1.1, 0, 0]])]
    torn, squeezed, flat, gone = (a.copy() for a in inside)
    torn.positions[7] += [0.6, 0.0, 0.0]
    squeezed.positions[1] = squeezed.positions[0] + [0, 0.7, 0.0]
    flat = methylene(angle=175.0)
    gone.positions[1, 0] = 7.0
    return inside, [torn, squeezed, flat, gone, Atoms("O")]


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("reach", [CUTOFF, CUTOFF + 3.0])
def test_every_list_of_edges_gives_the_same_answer(backend, reach):
    inside, outside = mixture()
    region = region_of(*inside)
    batch = batch_of(*inside, *outside)
    expected = [False] * 4 + [True] * 4 + [False]
    assert left(region, *inside, *outside, backend=backend, cutoff=reach) == expected
    edges = neighbor_list(batch, reach, backend)
    if backend == "all_pairs":
        assert edges.has_fill
    # In another order, and with the lengths that fill has as vectors: zero.
    order = torch.randperm(edges.n_edges)
    mixed = dataclasses.replace(
        edges,
        i=edges.i[order],
        j=edges.j[order],
        shift=None if edges.shift is None else edges.shift[order],
        degree=None,
    )
    lengths = torch.linalg.vector_norm(edge_vectors(batch, mixed), dim=1)
    assert region.outside(batch, mixed, lengths).tolist() == expected


def test_periodic_and_free_systems_in_one_batch():
    chain = Atoms("C2", [[0, 0, 0], [1.4, 0, 0]], cell=[2.8, 9, 9], pbc=[1, 0, 0])
    pair = Atoms("C2", [[0, 0, 0], [1.4, 0, 0]])
    bent = Atoms("C3", [[0, 0, 0], [1.4, 0, 0], [1.4, 1.4, 0]])
    region = region_of(chain)
    assert region.to_json()["C-C"] == pytest.approx((1.4, 1.4))
    stretched = chain.copy()
    stretched.set_cell([3.3, 9, 9], scale_atoms=True)
    wrapped = chain.copy()
    wrapped.positions[0, 0] += 28.0  # ten cells away: the same crystal
    answer = left(region, chain, pair, bent, stretched, wrapped, pair)
    assert answer == [False, False, True, True, False, False]


def test_single_atoms_have_nothing_to_leave():
    region = region_of(methylene())
    assert left(region, Atoms("C"), Atoms("H")) == [False, False]


def test_float32_distances_are_good_enough():
    region = region_of(methylene(), margin_A=0.1)
    batch = batch_of(methylene(1.1, 1.199), methylene(1.1, 1.201))
    edges = all_pairs(batch, CUTOFF)
    lengths = torch.linalg.vector_norm(edge_vectors(batch, edges), dim=1).float()
    assert region.outside(batch, edges, lengths).tolist() == [False, True]


def test_the_check_never_looks_at_a_value():
    """Tensors without values cannot be read back: no step waits for the device."""
    region = region_of(methylene())
    inside, outside = mixture()
    batch = batch_of(*inside, *outside)
    edges = neighbor_list(batch, CUTOFF).to("meta")
    lengths = torch.empty(edges.n_edges, device="meta", dtype=torch.float64)
    found = region.outside(batch.to("meta"), edges, lengths)
    assert (found.shape, found.dtype) == ((batch.n_systems,), torch.bool)


# Stored and read


def test_json_gives_back_the_same_region():
    region = region_of(methylene(1.0, 1.2, 120.0), molecule("H2O"), molecule("C2H6"))
    assert Region.from_json(region.to_json(), CUTOFF) == region
    other = Region.from_json(region.to_json(), 3.0, margin_A=0.2, margin_degrees=5)
    assert (other.cutoff, other.margin_A, other.margin_degrees) == (3.0, 0.2, 5)
    assert other.ranges == region.ranges


@pytest.mark.parametrize(
    "content",
    [
        {"C": (1, 2)},
        {"C-Xx": (1, 2)},
        {"C-H-C-H": (1, 2)},
        {"C-H": (1,)},
        {"C-H": 1.0},
        {"C-H": (2, 1)},
        {"C-H": ("a", 1)},
        {"C-H": (math.nan, 1)},
        {6: (1, 2)},
    ],
    ids=str,
)
def test_what_is_no_range_is_refused(content):
    with pytest.raises(InputError, match="`region` must hold entries like"):
        Region.from_json(content, CUTOFF)


@pytest.mark.parametrize("name", ["margin_A", "margin_degrees"])
@pytest.mark.parametrize("margin", [-0.1, math.nan])
def test_margins_are_not_negative(name, margin):
    with pytest.raises(InputError, match=name):
        Region(ranges={}, cutoff=CUTOFF, **{name: margin})


def toy_potential(**info):
    model = {"name": "cmret", "n_features": 8, "n_layers": 1, "n_radial": 8}
    known = TrainingInfo(elements=(1, 6), states=((0, 1), (0, 3)), **info)
    return Potential.build(model, {}, known)


def test_a_model_file_keeps_the_region(tmp_path):
    region = region_of(methylene())
    path = tmp_path / "p.safetensors"
    toy_potential(region=region.to_json()).save(path)
    loaded = mlff.load(path)
    assert Region.from_json(loaded.info.region, CUTOFF) == region


def test_a_file_from_before_loads_and_says_that_it_records_no_region(tmp_path):
    path = tmp_path / "p.safetensors"
    toy_potential().save(path)
    tensors, header = load_tensors(path)
    del header["info"]["region"]
    save_tensors(path, tensors, header)
    loaded = mlff.load(path)
    assert loaded.info.region == {}
    with pytest.raises(InputError, match=r"records no region.*train the model again"):
        Region.from_json(loaded.info.region, loaded.cutoff)


@pytest.mark.parametrize("region", [{"C-H": [1]}, {"C-H": "ab"}, [1, 2], 3, None])
def test_a_file_with_another_kind_of_region_is_refused(tmp_path, region):
    path = tmp_path / "p.safetensors"
    toy_potential().save(path)
    tensors, header = load_tensors(path)
    header["info"]["region"] = region
    save_tensors(path, tensors, header)
    with pytest.raises(ModelFileError, match="unusable header"):
        mlff.load(path)
