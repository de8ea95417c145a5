"""Committees: means, deviations, which potentials fit together, files, memory."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from calculator_cases import crystal
from committee_cases import HEADS, INFO, member
from scipy.spatial.transform import Rotation

import mlff
import mlff.nn.stacked
from mlff import errors
from mlff.batch import AtomsBatch
from mlff.committee import Committee
from mlff.errors import InputError, InputTypeError, MlffWarning, ModelFileError
from mlff.forcefield import ForceField
from mlff.forcefield.memory import peak_bytes
from mlff.models import MODELS
from mlff.neighbors import neighbor_list
from mlff.potential import load
from mlff.tensorfile import load_tensors, save_tensors
from mlff.testing.cases import sample_systems


@pytest.fixture(scope="module")
def members():
    return [member(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def committee(members):
    return Committee(members)


@pytest.fixture(params=["at once", "one by one"])
def way(request, monkeypatch):
    """Both ways to run through the members, whatever the size of a batch."""
    many = 10**6 if request.param == "at once" else 0
    monkeypatch.setattr(mlff.nn.stacked, "MANY_ATOMS", many)


def carbene():
    atoms = molecule("CH2_s3B1d")
    atoms.set_initial_magnetic_moments(None)
    return atoms


def graph_of(potential, systems=None, backend="auto"):
    batch = AtomsBatch.from_atoms(sample_systems() if systems is None else systems)
    return batch, neighbor_list(batch, potential.cutoff, backend)


def expect_close(found, expected, limit=1e-10):
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((found - expected).abs().max()) <= limit * scale


def expect_members(members, batch, edges, properties):
    """What the members of a committee say is what each says alone; so is the mean."""
    whole = Committee(members)
    found = whole.members(batch, edges, properties)
    mean = whole(batch, edges, properties)
    alone = [one(batch, edges, properties) for one in members]
    assert tuple(found) == tuple(properties)
    for name in properties:
        each = torch.stack([one[name] for one in alone])
        assert found[name].shape == each.shape
        assert found[name].dtype == torch.float64
        assert not found[name].requires_grad
        assert float(each.std(0).max()) > 0, f"members agree about {name}"
        expect_close(found[name], each)
        expect_close(mean[name], each.mean(0))


# What members say


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", MODELS)
def test_members_of_every_family_say_what_each_says_alone(name):
    some = [member(seed, name) for seed in range(3)]
    for backend in ("all_pairs", "matscipy"):
        batch, edges = graph_of(some[0], backend=backend)
        expect_members(some, batch, edges, ("energy", "forces", "energies"))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("attention", ["softmax", "silu"])
def test_stress_of_members_is_that_of_each_alone(attention):
    options = {"scope": "local", "cutoff": 3.0, "attention": attention}
    some = [member(seed, **options) for seed in range(2)]
    batch, edges = graph_of(some[0], [crystal(), crystal()])
    expect_members(some, batch, edges, ("stress", "energy"))


@pytest.mark.usefixtures("way")
def test_other_heads_of_members_are_those_of_each_alone():
    some = [member(seed, heads=HEADS) for seed in range(3)]
    batch, edges = graph_of(some[0])
    names = ("dipole", "dipole_norm", "polarizability", "polarizability_norm")
    expect_members(some, batch, edges, (*names, "spatial_extent", "energy"))


@pytest.mark.usefixtures("way")
def test_atoms_without_neighbors_have_deviations_too(committee):
    far = Atoms("CH", positions=[[0, 0, 0], [0, 0, 3 * committee.cutoff]])
    systems = [far, Atoms("C")]
    for atoms, spin in zip(systems, (2, 3), strict=True):
        atoms.info.update(charge=0, spin=spin)
    batch, edges = graph_of(committee, systems, "matscipy")
    assert edges.n_edges == 0
    out = committee(batch, edges, ("forces", "energy_deviation", "forces_deviation"))
    assert not out["forces"].any()
    assert not out["forces_deviation"].any()
    assert (out["energy_deviation"] > 1e-3).all()


def test_deviations_are_sample_standard_deviations(members, committee):
    batch, edges = graph_of(committee)
    alone = [one(batch, edges) for one in members]
    found = committee.deviations(batch, edges)
    assert list(found) == ["energy", "forces"]
    for name, values in found.items():
        each = np.array([one[name].numpy() for one in alone])
        np.testing.assert_allclose(values, each.std(0, ddof=1), rtol=1e-9, atol=1e-12)
        assert values.max() > 1e-3


def test_members_that_are_the_same_do_not_deviate_and_are_warned_of(
    members, tmp_path, forget_warnings
):
    with pytest.warns(MlffWarning, match="members 0 and 1 of the committee have the"):
        twins = Committee([members[0]] * 3)
    batch, edges = graph_of(twins)
    alone = members[0](batch, edges)
    expect_close(twins(batch, edges)["forces"], alone["forces"], 1e-14)
    for values in twins.deviations(batch, edges).values():
        assert float(values.max()) < 1e-12
    twins.save(tmp_path / "twins.safetensors")
    errors._said.clear()
    with pytest.warns(MlffWarning, match="members 0 and 1 of the committee have the"):
        load(tmp_path / "twins.safetensors")


def test_forces_are_the_derivative_of_the_mean_energy(committee):
    systems = sample_systems()[:2]
    batch, edges = graph_of(committee, systems)
    forces = committee(batch, edges)["forces"]
    step = 1e-5
    for atom, axis in ((0, 2), (5, 0)):
        energies = []
        for sign in (1, -1):
            positions = batch.positions.clone()
            positions[atom, axis] += sign * step
            moved = batch.replace(positions=positions)
            energies.append(committee(moved, edges, ("energy",))["energy"].sum())
        numeric = -(energies[0] - energies[1]) / (2 * step)
        assert float(numeric) == pytest.approx(float(forces[atom, axis]), abs=1e-6)


@pytest.mark.usefixtures("way")
def test_hessians_are_the_mean_of_those_of_the_members(members, committee):
    atoms = sample_systems()[1]
    expected = np.mean([mlff.hessians([atoms], one)[0] for one in members], axis=0)
    np.testing.assert_allclose(
        mlff.hessians([atoms], committee)[0], expected, rtol=1e-9, atol=1e-9
    )


def test_weights_of_all_members_get_their_gradients(members, committee):
    batch, edges = graph_of(committee)
    some = Committee(members).requires_grad_(True)
    out = some(batch, edges, create_graph=True)
    expect_close(out["forces"].detach(), committee(batch, edges)["forces"])
    (gradient,) = torch.autograd.grad(
        out["forces"].square().sum(), [some.heads["energy"].stack.module.linear.weight]
    )
    assert (gradient.flatten(1).abs().max(1).values > 0).all()
    with pytest.raises(InputError, match="create_graph"):
        some(batch, edges, ("energy_deviation",), create_graph=True)


# Symmetry and states


def test_energy_deviations_are_the_same_however_a_molecule_is_turned(committee):
    systems = sample_systems()
    turned = [atoms.copy() for atoms in systems]
    matrix = Rotation.random(random_state=3).as_matrix()
    for atoms in turned:
        atoms.positions = atoms.positions @ matrix.T + 7.0
    before, after = (mlff.deviations(committee, some) for some in (systems, turned))
    by_component = 0.0
    for one, other in zip(before, after, strict=True):
        assert other["energy"] == pytest.approx(one["energy"], abs=1e-9)
        norms = [np.linalg.norm(d["forces"], axis=1) for d in (one, other)]
        np.testing.assert_allclose(*norms, atol=1e-9)
        by_component = max(by_component, np.abs(one["forces"] - other["forces"]).max())
    assert by_component > 1e-3  # components alone are not the same


def test_deviations_follow_the_order_of_the_atoms(committee):
    atoms = sample_systems()[3]
    order = np.random.default_rng(0).permutation(len(atoms))
    one, other = mlff.deviations(committee, [atoms, atoms[order]])
    assert other["energy"] == pytest.approx(one["energy"], abs=1e-10)
    np.testing.assert_allclose(other["forces"], one["forces"][order], atol=1e-10)


def test_charge_and_spin_reach_every_member(committee):
    states = [(0, 1), (0, 3), (1, 2), (-1, 2)]
    charges, spins = zip(*states, strict=True)
    found = mlff.predict(
        *(committee, [carbene()] * 4, ("energy",)),
        charge=charges,
        spin=spins,
        members=True,
    )
    energies = np.array([one["energy"] for one in found])
    assert energies.shape == (4, 3)
    for of_member in energies.T:
        assert np.diff(np.sort(of_member)).min() > 1e-6
    deviations = mlff.deviations(committee, [carbene()] * 4, charge=charges, spin=spins)
    assert len({round(one["energy"], 9) for one in deviations}) == 4


def test_deviation_of_a_gap_is_that_of_the_gaps_of_the_members(members, committee):
    asked = ([carbene()] * 2, ("energy",))
    alone = [mlff.predict(one, *asked, charge=0, spin=[1, 3]) for one in members]
    gaps = [first["energy"] - second["energy"] for first, second in alone]
    first, second = (
        one["energy"]
        for one in mlff.predict(committee, *asked, charge=0, spin=[1, 3], members=True)
    )
    np.testing.assert_allclose(first - second, gaps, atol=1e-10)
    apart = mlff.deviations(committee, [carbene()] * 2, charge=0, spin=[1, 3])
    careless = np.hypot(*(one["energy"] for one in apart))
    assert np.std(first - second, ddof=1) < 0.5 * careless  # errors are correlated


# Who takes a committee


def test_prediction_gives_deviations_beside_means_also_in_several_calls(committee):
    systems = sample_systems()
    names = ("energy", "forces", "energy_deviation", "forces_deviation")
    whole = mlff.predict(committee, systems, names)
    split = mlff.predict(committee, systems, names, max_atoms_per_call=9)
    each = mlff.predict(committee, systems, members=True, max_atoms_per_call=9)
    told = mlff.deviations(committee, systems, max_atoms_per_call=9)
    for atoms, one, other, stacked, apart in zip(
        systems, whole, split, each, told, strict=True
    ):
        assert stacked["forces"].shape == (3, len(atoms), 3)
        assert isinstance(apart["energy"], float)
        np.testing.assert_allclose(stacked["forces"].mean(0), one["forces"], atol=1e-10)
        np.testing.assert_allclose(
            stacked["energy"].std(ddof=1), one["energy_deviation"], atol=1e-10
        )
        np.testing.assert_allclose(apart["forces"], one["forces_deviation"], atol=1e-9)
        for name in names:
            np.testing.assert_allclose(other[name], one[name], atol=1e-9)


def test_the_calculator_tells_deviations_apart_from_its_results(committee, members):
    atoms, other = sample_systems()[1], sample_systems()[0]
    calculator = mlff.MLFFCalculator(committee)
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    assert not [name for name in calculator.results if "deviation" in name]
    expected = mlff.deviations(committee, [atoms, other])
    for given, wanted in ((None, expected[0]), (other, expected[1])):
        found = calculator.deviations(given)
        assert found["energy"] == pytest.approx(wanted["energy"], abs=1e-10)
        np.testing.assert_allclose(found["forces"], wanted["forces"], atol=1e-10)
    assert atoms.get_potential_energy() == energy
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    plain = atoms.copy()
    plain.info.clear()
    charged = mlff.MLFFCalculator(committee, charge=1, spin=2).deviations(plain)
    assert charged["energy"] == pytest.approx(expected[0]["energy"], abs=1e-10)
    with pytest.raises(InputTypeError, match=r"mlff.Committee"):
        mlff.MLFFCalculator(members[0]).deviations(atoms)
    with pytest.raises(InputError, match="`atoms` is needed"):
        mlff.MLFFCalculator(committee).deviations()


def test_one_potential_has_no_deviations_and_says_so(members):
    atoms = sample_systems()[1]
    for ask in (
        lambda: mlff.deviations(members[0], [atoms]),
        lambda: mlff.predict(members[0], [atoms], members=True),
    ):
        with pytest.raises(InputTypeError, match=r"needs a committee.*got Potential"):
            ask()
    with pytest.raises(InputError, match="gives no energy_deviation"):
        mlff.predict(members[0], [atoms], ("energy_deviation",))


# Which potentials fit together


def _other(**changes):
    def made():
        one = member(5)
        one.info = dataclasses.replace(INFO, **changes)
        return one

    return made


def _moved_references():
    one = member(5)
    one.references[6] += 0.5
    return one


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: member(5, n_features=16), r"model.n_features: 8 and 16"),
        (lambda: member(5, "painn"), r"model.name: 'cmret' and 'painn'"),
        (lambda: member(5, heads=HEADS), "heads"),
        (lambda: member(5, dtype=torch.float32), "precision.*float32"),
        (_other(elements=(1, 6, 8)), r"elements: \(1, 6\) and \(1, 6, 8\)"),
        (_other(states=((0, 1),)), "states"),
        (_other(level_of_theory="other"), "level of theory: test and other"),
        (_moved_references, "references, by up to 0.5 eV"),
    ],
)
def test_members_of_another_kind_are_refused_and_the_difference_named(
    members, made, named
):
    with pytest.raises(InputError, match=f"member 0 and member 1 differ in.*{named}"):
        Committee([members[0], made()])


def test_disjoint_compositions_are_no_committee(members):
    some = [member(0), member(1)]
    for one, formula in zip(some, ("CH2", "C2H4"), strict=True):
        one.info = dataclasses.replace(INFO, formulas=(formula,))
    with pytest.raises(InputError, match=r"compositions: \['CH2'\] and \['C2H4'\]"):
        Committee(some)


def test_a_committee_needs_several_potentials(members, committee):
    for given in ([], members[:1], members * 30):
        with pytest.raises(InputError, match="2 … 64 potentials"):
            Committee(given)
    for given in (members[0], "ch2", ["ch2", "ch2"], [committee, committee], None):
        with pytest.raises(InputTypeError, match="`members` must be a list of"):
            Committee(given)


def test_a_committee_has_seen_what_all_members_have():
    some = [member(0), member(1)]
    seen = (
        (("C2H4", "CH2", "CH4"), {"C-H": (0.9, 1.5), "H-C": (0.8, 1.2)}, "first"),
        (("CH2", "CH4"), {"C-H": (1.0, 1.6), "H-H": (1.0, 2.0)}, "second"),
    )
    for one, (formulas, region, data) in zip(some, seen, strict=True):
        one.info = dataclasses.replace(
            *(one.info,),
            formulas=formulas,
            region=region,
            provenance={"data": data},
            metrics={"test": 1},
        )
    info = Committee(some).info
    assert info.formulas == ("CH2", "CH4")
    assert info.region == {"C-H": (1.0, 1.5)}
    assert info.provenance["member 1"] == {"data": "second"}
    assert info.metrics == {}


# Files


def test_the_file_of_a_committee_gives_the_same_numbers(committee, tmp_path):
    path = tmp_path / "committee.safetensors"
    digest = committee.save(path)
    batch, edges = graph_of(committee)
    names = committee.properties[:3] + committee.properties[-2:]
    expected = committee(batch, edges, names)
    for loaded in (
        load(path),
        Committee.load(path, expected_sha256=digest),
        mlff.MLFFCalculator(path).potential,
    ):
        assert isinstance(loaded, Committee)
        assert loaded.info == committee.info
        assert loaded.config == committee.config
        assert not any(p.requires_grad for p in loaded.parameters())
        found = loaded(batch, edges, names)
        assert all(torch.equal(found[name], expected[name]) for name in names)
    assert load(path, dtype=torch.float32).dtype == torch.float32


def test_members_are_read_from_their_files(
    members, committee, tmp_path, forget_warnings
):
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for path, one in zip(paths, members, strict=True):
        one.save(path)
    batch, edges = graph_of(committee)
    expected = committee(batch, edges)["forces"]
    for loaded in (Committee.load(paths), load(",".join(map(str, paths)))):
        assert torch.equal(loaded(batch, edges)["forces"], expected)
    with pytest.warns(MlffWarning, match="the same weights"):
        assert load("ch2,ch2").n_members == 2
    with pytest.raises(ModelFileError, match="not an mlff committee"):
        Committee.load(paths[0])
    with pytest.raises(ModelFileError, match=r"missing.safetensors"):
        load(f"{paths[0]},missing.safetensors")
    with pytest.raises(InputError, match="expected_sha256"):
        Committee.load(paths, expected_sha256="0" * 64)


@pytest.mark.parametrize("n_members", [None, 1, 4, 10**9, "3"])
def test_a_file_with_another_number_of_members_is_refused(
    committee, tmp_path, n_members
):
    path = tmp_path / "committee.safetensors"
    committee.save(path)
    tensors, header = load_tensors(path)
    header["config"]["members"] = n_members
    save_tensors(path, tensors, header)
    with pytest.raises(ModelFileError, match=r"members|tensor"):
        load(path)


# Memory and passes


def test_memory_is_counted_for_all_members(members, committee):
    systems = sample_systems()
    batch, edges = graph_of(committee, systems)
    asked = ("energy", "forces")
    one = peak_bytes(members[0], batch, edges, asked)
    for wanted in (asked, (*asked, "forces_deviation")):
        ratio = peak_bytes(committee, batch, edges, wanted) / one
        assert 2.5 < ratio < 3.6  # M members, and what they share


def test_systems_are_split_for_all_members(members, committee):
    systems = sample_systems()[4:] * 12
    batch = AtomsBatch.from_atoms(systems)
    bound = 2**22
    few, many = (
        len(ForceField(one, batch, memory_bytes=bound).parts)
        for one in (members[0], committee)
    )
    assert few < many <= 4 * few
    forces = ForceField(committee, batch, memory_bytes=bound)(batch).forces
    whole = committee(*graph_of(committee, systems))["forces"]
    expect_close(forces, whole, 1e-12)


def test_forces_and_their_deviations_come_from_one_pass(committee, monkeypatch):
    systems = sample_systems()
    batch = AtomsBatch.from_atoms(systems)
    forcefield = ForceField(committee, batch, deviation=True)
    passes = []
    original = Committee.members

    def counted(self, part, *rest):
        passes.append(part.n_systems)
        return original(self, part, *rest)

    monkeypatch.setattr(Committee, "members", counted)
    found = forcefield(batch)
    assert sum(passes) == len(systems)
    told = mlff.deviations(committee, systems)
    norms = np.concatenate([np.linalg.norm(one["forces"], axis=1) for one in told])
    np.testing.assert_allclose(found.deviation, norms, atol=1e-10)
    assert ForceField(committee, batch)(batch).deviation is None
