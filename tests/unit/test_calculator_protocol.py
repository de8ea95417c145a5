"""MLFFCalculator and the rules of ASE and torch under abuse.

Each name begins with its number in the list of abuses (26–35) in the reliability goals
of the project.
"""

import copy
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list as ase_neighbor_list
from calculator_cases import (
    build,
    carbene,
    crystal,
    energy_of,
    expect_refusal,
    forces_of,
    with_state,
)
from numpy.testing import assert_allclose

from mlff.batch import AtomsBatch
from mlff.calculator import MLFFCalculator
from mlff.errors import (
    InputError,
)
from mlff.inference import predict
from mlff.neighbors import neighbor_list

pytestmark = pytest.mark.usefixtures("forget_warnings")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, "float16", torch.int64]
)
def test_26_precisions_that_cannot_resolve_forces_are_refused(molecular, dtype):
    with pytest.raises(InputError, match="float32 or float64"):
        MLFFCalculator(molecular, dtype=dtype)


@pytest.mark.parametrize("kind", [int, np.float32, np.float16])
def test_26_positions_of_any_type_are_computed_in_double(molecular, kind):
    atoms = with_state(Atoms("CO", [[0, 0, 0], [0, 0, 1]]))
    expected = energy_of(atoms, molecular)
    atoms.arrays["positions"] = atoms.positions.astype(kind)
    atoms.calc = MLFFCalculator(molecular)
    assert atoms.get_potential_energy() == expected
    assert atoms.get_forces().dtype == np.float64
    atoms.arrays["positions"] = (2 * atoms.positions).astype(kind)
    twice = with_state(Atoms("CO", [[0, 0, 0], [0, 0, 2]]))
    assert atoms.get_potential_energy() == energy_of(twice, molecular)


def test_27_a_batch_of_anything_gives_what_the_calculator_gives(local):
    systems = [
        carbene(),
        crystal(),
        with_state(Atoms("C", cell=[9, 9, 9]), spin=3),
        with_state(molecule("C6H6"), charge=1, spin=2),
        with_state(Atoms("CO", [[0, 0, 0], [0, 0, 9.0]])),  # no neighbors
        with_state(molecule("CH3CH2OCH3"), charge=-1, spin=2),
    ]
    found = predict(local, systems, ("energy", "forces"))
    for atoms, result in zip(systems, found, strict=True):
        assert result["energy"] == pytest.approx(energy_of(atoms, local), abs=1e-10)
        assert_allclose(result["forces"], forces_of(atoms, local), atol=1e-9)


def test_28_no_systems_are_an_empty_answer(molecular):
    assert predict(molecular, []) == []
    assert AtomsBatch.from_atoms([]).n_systems == 0


def test_29_no_neighbor_is_ever_cut_off(local):
    atoms = with_state(Atoms("C", cell=np.eye(3) * 0.9, pbc=True))
    edges = neighbor_list(AtomsBatch.from_atoms([atoms]), local.cutoff)
    count = len(ase_neighbor_list("i", atoms, local.cutoff))
    assert count > 140
    assert edges.n_edges == count
    larger = atoms.repeat((2, 1, 3))
    assert_allclose(energy_of(larger, local), 6 * energy_of(atoms, local), rtol=1e-12)


def test_30_a_calculator_shared_by_two_systems_keeps_them_apart(molecular):
    first, second = carbene(), with_state(molecule("CH4"), charge=1, spin=2)
    first.calc = second.calc = MLFFCalculator(molecular)
    for _ in range(2):
        for atoms in (first, second):
            assert atoms.get_potential_energy() == energy_of(atoms, molecular)
            assert atoms.get_forces().shape == (len(atoms), 3)


def test_30_atoms_grown_and_shrunk_in_place_are_new(molecular):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    atoms.get_potential_energy()
    atoms.extend(Atoms("H2", [[0.9, 0.1, 0.6], [-0.8, 0.2, 0.9]]))
    assert atoms.get_potential_energy() == energy_of(atoms, molecular)
    del atoms[[1, 2]]
    assert atoms.get_potential_energy() == energy_of(atoms, molecular)


def test_31_stress_of_a_molecule_is_not_implemented(local):
    atoms = carbene()
    atoms.calc = MLFFCalculator(local)
    energy = atoms.get_potential_energy()
    for ask in (atoms.get_stress, lambda: atoms.get_properties(["energy", "stress"])):
        with pytest.raises(PropertyNotImplementedError, match="periodic"):
            ask()
    assert atoms.calc.results["energy"] == energy  # what is right is kept
    assert "stress" not in atoms.calc.results
    atoms.positions[0] += 0.1
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    assert atoms.calc.state_used is None  # ASE has dropped the old results


def test_31_a_model_without_periodic_meaning_advertises_no_stress():
    potential = build(attention="silu")
    calculator = MLFFCalculator(potential)
    assert "stress" not in calculator.implemented_properties
    with pytest.raises(PropertyNotImplementedError):
        calculator.get_stress(carbene())
    expect_refusal(crystal(), potential, InputError, "periodic")


def test_31_a_slab_without_volume_has_no_stress_and_one_with_volume_has(local):
    slab = crystal()
    slab.pbc = (True, True, False)
    slab.calc = MLFFCalculator(local)
    assert np.isfinite(slab.get_stress()).all()
    slab.cell[2] = 0.0
    assert np.isfinite(slab.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="volume"):
        slab.get_stress()


@pytest.mark.parametrize("name", ["dipole", "charges", "magmoms", "stresses"])
def test_31_properties_that_the_model_has_not_are_not_implemented(molecular, name):
    calculator = MLFFCalculator(molecular)
    assert name not in calculator.implemented_properties
    with pytest.raises(PropertyNotImplementedError):
        calculator.get_property(name, carbene())


def test_32_constraints_touch_only_what_ase_applies_them_to(molecular):
    atoms = carbene()
    free = forces_of(atoms, molecular)
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = MLFFCalculator(molecular)
    assert not atoms.get_forces()[0].any()
    assert_allclose(atoms.get_forces(apply_constraint=False), free)
    assert_allclose(atoms.calc.results["forces"], free)


@pytest.mark.parametrize("device", ["cuda:99", "mps", "xpu", "nowhere"])
def test_33_a_device_that_is_not_here_is_refused_with_those_that_are(molecular, device):
    with pytest.raises(InputError, match=r"device.*'cpu'"):
        MLFFCalculator(molecular, device=device)


GLOBAL_STATE = """
import os, random, sys
import numpy as np, torch
from ase import Atoms

def look():
    return {
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "device": torch.get_default_device(),
        "seed of torch": hash(tuple(torch.get_rng_state().tolist())),
        "seed of python": hash(random.getstate()),
        "seed of numpy": hash(str(np.random.get_state())),
        "floating point": str(np.geterr()),
        "environment": dict(os.environ),
    }

torch.set_num_threads(1)
before = look()
from mlff import MLFFCalculator
atoms = Atoms("CH2", [[0, 0, 0], [0, 1, 1], [0, -1, 1]], info={"charge": 0, "spin": 3})
atoms.calc = MLFFCalculator(sys.argv[1])
atoms.get_forces()
after = look()
changed = [name for name in before if before[name] != after[name]]
sys.exit(f"changed: {changed}" if changed else 0)
"""


@pytest.mark.slow
def test_34_global_state_of_torch_is_left_alone_by_import_and_call(molecular, tmp_path):
    path = tmp_path / "model.safetensors"
    molecular.save(path)
    command = [sys.executable, "-c", GLOBAL_STATE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_34_settings_of_the_caller_do_not_change_the_numbers(molecular):
    potential = copy.deepcopy(molecular).to(torch.float32)
    atoms = carbene()
    energy, forces = energy_of(atoms, potential), forces_of(atoms, potential)

    def expect_the_same():
        atoms.calc = MLFFCalculator(potential)
        assert atoms.get_potential_energy() == energy
        np.testing.assert_array_equal(atoms.get_forces(), forces)
        atoms.positions[:] += 0.0
        atoms.calc.reset()
        np.testing.assert_array_equal(atoms.get_forces(), forces)

    with torch.no_grad():
        expect_the_same()
    with torch.inference_mode():
        expect_the_same()
    with torch.autocast("cpu", torch.bfloat16):
        expect_the_same()
    torch.set_default_dtype(torch.float64)
    try:
        expect_the_same()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_35_copies_are_independent(molecular, copied):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    atoms.get_forces()
    other = atoms.copy()
    other.calc = copied(atoms.calc)
    assert other.calc.check_state(atoms) == []
    assert other.get_potential_energy() == atoms.get_potential_energy()
    other.positions[0] += 0.1
    assert other.get_potential_energy() != atoms.get_potential_energy()
    assert atoms.calc.check_state(atoms) == []


@pytest.mark.slow
def test_35_a_calculator_works_in_spawned_processes(molecular):
    atoms = carbene()
    atoms.calc = MLFFCalculator(molecular)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        energy = pool.submit(atoms.get_potential_energy).result()
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
