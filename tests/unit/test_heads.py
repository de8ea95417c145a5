"""Dipole, polarizability and spatial extent: symmetry, origin, charge, and the file."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError

import mlff
from mlff.batch import AtomsBatch
from mlff.errors import InputError
from mlff.heads import HEADS, centered
from mlff.models.base import Features
from mlff.neighbors import neighbor_list
from mlff.potential import Potential, TrainingInfo
from mlff.testing.cases import sample_systems

INFO = TrainingInfo(
    elements=(1, 6),
    states=tuple((q, m) for q in range(-2, 3) for m in range(1, 6)),
)
MODEL = {"name": "cmret", "n_features": 16, "n_layers": 2, "n_radial": 8}
NAMES = ("dipole", "polarizability", "spatial_extent")
DERIVED = ("dipole_norm", "isotropic_polarizability", "polarizability_norm")


def built(heads=tuple(HEADS), dtype=torch.float64, **options) -> Potential:
    torch.manual_seed(0)
    return Potential.build({**MODEL, **options}, {}, INFO, dtype, heads=heads)


@pytest.fixture(scope="module")
def potential() -> Potential:
    return built()


def values(potential, systems, names=NAMES):
    batch = AtomsBatch.from_atoms(systems)
    return potential(batch, neighbor_list(batch, potential.cutoff), names)


def turned(systems, matrix, shift=(0.0, 0.0, 0.0)):
    out = [atoms.copy() for atoms in systems]
    for atoms in out:
        atoms.positions = atoms.positions @ matrix.T + shift
    return out


@pytest.mark.parametrize("mirrored", [False, True])
def test_properties_turn_with_the_molecule(potential, mirrored):
    matrix, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    matrix *= np.linalg.det(matrix) * (-1 if mirrored else 1)
    systems = sample_systems()
    here, there = values(potential, systems), values(potential, turned(systems, matrix))
    assert float(here["dipole"].abs().max()) > 1e-2
    q = torch.from_numpy(matrix)
    expected = {
        "dipole": here["dipole"] @ q.T,
        "polarizability": q @ here["polarizability"] @ q.T,
        "spatial_extent": here["spatial_extent"],
    }
    for name, value in expected.items():
        torch.testing.assert_close(there[name], value, rtol=0, atol=1e-10)


def test_nothing_depends_on_where_an_ion_is(potential):
    systems = [a for a in sample_systems() if a.info["charge"] != 0]
    assert len(systems) > 1
    moved = turned(systems, np.eye(3), (300.0, -200.0, 100.0))
    here, there = values(potential, systems), values(potential, moved)
    for name in NAMES:
        torch.testing.assert_close(there[name], here[name], rtol=0, atol=1e-8)


def test_order_and_company_of_systems_do_not_matter(potential):
    systems = sample_systems()
    together = values(potential, systems)
    for k, atoms in enumerate(systems):
        alone = values(potential, [atoms[::-1]])
        for name in NAMES:
            torch.testing.assert_close(
                alone[name][0], together[name][k], rtol=0, atol=1e-10
            )


def test_partial_charges_add_up_to_the_charge_of_an_ion(potential):
    """With equal atoms each carries the same share of the charge."""
    batch = AtomsBatch.from_atoms(sample_systems())
    flat = torch.zeros(batch.n_atoms, 16, dtype=torch.float64)
    features = Features(scalars=flat, vectors=flat[:, None].expand(-1, 4, -1))
    head = potential.heads["dipole"]
    charges = batch.charge.double() / batch.counts()
    expected = batch.total(charges[batch.system, None] * centered(batch))
    torch.testing.assert_close(head(features, batch), expected, rtol=0, atol=1e-12)


def test_a_constant_site_polarizability_is_isotropic():
    head = HEADS["polarizability"](16).double()
    torch.nn.init.zeros_(head.vector.weight)
    torch.nn.init.zeros_(head.scalar.weight)
    torch.nn.init.ones_(head.scalar.bias)
    batch = AtomsBatch.from_atoms(sample_systems())
    flat = torch.rand(batch.n_atoms, 16, dtype=torch.float64)
    out = head(Features(scalars=flat, vectors=flat[:, None].expand(-1, 4, -1)), batch)
    counts = batch.counts().double()
    expected = counts[:, None, None] * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(out, expected)


def test_derived_properties_follow_from_the_tensors(potential):
    out = values(potential, sample_systems(), (*NAMES, *DERIVED))
    alpha = out["polarizability"].numpy()
    assert np.allclose(alpha, alpha.transpose(0, 2, 1), atol=1e-14)
    found = {name: out[name].numpy() for name in DERIVED}
    norm = np.linalg.norm(out["dipole"].numpy(), axis=1)
    assert np.allclose(found["dipole_norm"], norm)
    trace = np.trace(alpha, axis1=1, axis2=2)
    assert np.allclose(found["isotropic_polarizability"], trace / 3)
    assert np.allclose(found["polarizability_norm"], np.sqrt((alpha**2).sum((1, 2))))
    assert set(values(potential, sample_systems(), DERIVED)) == set(DERIVED)


def test_an_atom_alone_has_an_extent_but_no_dipole(potential):
    atoms = Atoms("C", positions=[[1.0, 2.0, 3.0]])
    atoms.info.update(charge=1, spin=2)
    out = values(potential, [atoms])
    assert float(out["dipole"].abs().max()) < 1e-12
    assert abs(float(out["spatial_extent"])) > 1e-6


def test_dipoles_have_exact_derivatives(potential):
    atoms = sample_systems()[1]
    batch = AtomsBatch.from_atoms([atoms])
    edges = neighbor_list(batch, potential.cutoff)
    start = batch.positions.clone().requires_grad_(True)
    moving = batch.replace(positions=start)
    dipole = potential(moving, edges, ("dipole",), create_graph=True)["dipole"]
    (gradient,) = torch.autograd.grad(dipole[0, 0], start)
    step, numeric = 1e-5, torch.zeros_like(gradient)
    for index in range(gradient.numel()):
        for sign in (1, -1):
            moved = batch.positions.clone()
            moved.view(-1)[index] += sign * step
            value = potential(batch.replace(positions=moved), edges, ("dipole",))
            numeric.view(-1)[index] += sign * value["dipole"][0, 0] / (2 * step)
    torch.testing.assert_close(gradient, numeric, rtol=0, atol=1e-8)


def test_files_keep_the_heads(potential, tmp_path):
    path = tmp_path / "p.safetensors"
    potential.save(path)
    loaded = Potential.load(path)
    assert loaded.properties == potential.properties
    names = ("energy", *NAMES)
    first, second = (values(p, sample_systems(), names) for p in (potential, loaded))
    for name in names:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-12)


def test_a_potential_may_know_a_dipole_only():
    dipole = built(heads=("dipole",))
    assert dipole.properties == ("dipole", "dipole_norm")
    (out,) = mlff.predict(dipole, sample_systems()[:1], ("dipole", "dipole_norm"))
    assert np.linalg.norm(out["dipole"]) == pytest.approx(out["dipole_norm"])
    with pytest.raises(InputError, match=r"among .'dipole', 'dipole_norm'.*'energy'"):
        mlff.predict(dipole, sample_systems())
    atoms = sample_systems()[0]
    atoms.calc = mlff.MLFFCalculator(dipole)
    assert np.array_equal(atoms.get_dipole_moment(), out["dipole"])
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy()


def test_heads_that_do_not_exist_are_named():
    with pytest.raises(InputError, match=r"`heads` must be among .*magnetization"):
        built(heads=("magnetization",))
    with pytest.raises(InputError, match="`heads` must be one or several of"):
        built(heads=())


def test_periodic_systems_have_no_dipole():
    local = built(scope="local")
    atoms = molecule("CH4", cell=[6.0] * 3, pbc=True)
    atoms.info.update(charge=0, spin=1)
    with pytest.raises(InputError, match="a periodic system does not have"):
        mlff.predict(local, [atoms], ("energy", "dipole"))
    atoms.calc = mlff.MLFFCalculator(local)
    assert np.isfinite(atoms.get_potential_energy())
    assert "dipole" not in atoms.calc.results
    with pytest.raises(PropertyNotImplementedError, match="periodic"):
        atoms.get_dipole_moment()


def test_ase_reads_dipoles_of_molecules(potential):
    atoms = sample_systems()[1]
    atoms.calc = mlff.MLFFCalculator(potential)
    atoms.get_potential_energy()
    expected = values(potential, [atoms], ("dipole",))["dipole"][0].numpy()
    assert np.allclose(atoms.get_dipole_moment(), expected, atol=1e-12)


def test_what_has_no_energy_moves_nothing_and_leaves_no_file(tmp_path):
    dipole, systems = built(heads=("dipole",)), sample_systems()
    run, relaxed = tmp_path / "run.h5", tmp_path / "out.xyz"
    nve = mlff.VelocityVerlet(timestep_fs=0.5)
    with pytest.raises(InputError, match="gives no energy"):
        mlff.run_md(systems, dipole, nve, n_steps=1, trajectory=run)
    with pytest.raises(InputError, match="gives no energy"):
        mlff.relax(systems, dipole, options=mlff.RelaxOptions(out=relaxed))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "references", [{-1: 5.0}, {500: 1.0}, {1: float("nan")}, {"H": 1.0}, {1: "low"}]
)
def test_references_must_be_energies_of_elements(references):
    with pytest.raises(InputError, match="`references` must hold finite energies"):
        Potential.build(MODEL, references, INFO)


@pytest.mark.parametrize(
    "options",
    [
        {"name": ["cmret"]},
        {"basis": ["bessel"]},
        {"envelope": {}},
        {"attention": ["softmax"]},
        {"scope": ["local"]},
        {"charge_spin": ["none"]},
        {"temperature": "1"},
        {"temperature": True},
        {"cutoff": 1e-300},
    ],
)
def test_options_of_a_strange_type_are_named(options):
    with pytest.raises(InputError, match=f"`{next(iter(options))}`"):
        built(**options)


def test_a_precision_that_cannot_be_saved_is_refused():
    with pytest.raises(InputError, match="`dtype` must be"):
        built(dtype=torch.float16)
