"""How systems are cut into calls: what that costs, what it needs, and a full device."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from forcefield_cases import MIXED, alone, built, crystal, shuffled

import mlff.forcefield.memory
import mlff.forcefield.plan
from mlff.batch import AtomsBatch
from mlff.errors import InputError
from mlff.forcefield import ForceField
from mlff.forcefield.memory import free_bytes, is_out_of_memory, peak_bytes
from mlff.forcefield.plan import _by_size
from mlff.inference import predict
from mlff.neighbors import neighbor_list
from mlff.testing.cases import sample_systems

# What a device that is full raises, by kind.
FULL = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 8 bytes. Error code 12"
    ),
    "python": MemoryError(),
}


@pytest.fixture
def potential():
    return built()


@pytest.mark.parametrize("call_rows", [0, 20, 200, 10**6])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_cut_of_the_sorted_systems_costs_less(call_rows, seed):
    rng = np.random.default_rng(seed)
    sizes = sorted(rng.choice([1, 2, 4, 7, 8, 20], rng.integers(2, 11)).tolist())

    def cost(groups):
        padded = sum(sum(sizes[k] for k in g) * sizes[g[-1]] for g in groups)
        return padded + call_rows * len(groups)

    n = len(sizes)
    least = min(
        cost([[*range(a, b)] for a, b in itertools.pairwise((0, *cut, n))])
        for cut in itertools.chain.from_iterable(
            itertools.combinations(range(1, n), r) for r in range(n)
        )
    )
    found = _by_size(list(range(n)), sizes, call_rows)
    assert [k for group in found for k in group] == list(range(n))
    assert cost(found) == least


def test_small_batches_of_any_sizes_share_a_call_and_large_ones_do_not(potential):
    few = AtomsBatch.from_atoms(sample_systems())
    assert len(ForceField(potential, few).parts) <= 2
    many = AtomsBatch.from_atoms(shuffled(sample_systems() * 60))
    sizes = [
        many.counts()[part].unique().tolist()
        for part in ForceField(potential, many).parts
    ]
    assert [12] in sizes
    assert all(len(found) <= 2 for found in sizes)


@pytest.mark.parametrize("most", [1, 9, 30])
def test_a_prediction_keeps_to_the_atoms_allowed_in_a_call(potential, most):
    predict(potential, MIXED)  # counts the memory, once
    calls = []
    potential.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    predict(potential, shuffled(MIXED), max_atoms_per_call=most)
    assert sum(batch.n_systems for batch in calls) == len(MIXED)
    assert all(b.n_atoms <= most or b.n_systems == 1 for b in calls)


# Memory


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("memory_bytes", [2**22, 2**23])
def test_calls_keep_within_the_bound_and_use_it(scope, memory_bytes):
    potential = built(scope, torch.float32)
    batch = AtomsBatch.from_atoms(shuffled(sample_systems() * 60))
    forcefield = ForceField(potential, batch, memory_bytes=memory_bytes)
    used = []
    for part in forcefield.parts:
        some = batch.select(part)
        edges = neighbor_list(some, potential.cutoff, "all_pairs")
        used.append(peak_bytes(potential, some, edges, ("energy", "forces")))
    most = mlff.forcefield.plan.ROOM * max(used)
    assert 0.7 * memory_bytes < most <= 1.05 * memory_bytes


def test_a_system_that_does_not_fit_is_refused_with_what_it_needs():
    potential = built("local")
    batch = AtomsBatch.from_atoms([*sample_systems(), crystal(27, 0)])
    text = r"system 5 with 27 atoms needs about 0\.\d+ GiB .*0.000977 GiB may .*cpu"
    with pytest.raises(InputError, match=text):
        ForceField(potential, batch, memory_bytes=2**20)


def test_more_is_counted_for_forces_and_for_more_atoms(potential):
    batch = AtomsBatch.from_atoms(sample_systems())
    edges = neighbor_list(batch, potential.cutoff)
    both = peak_bytes(potential, batch, edges, ("energy", "forces"))
    assert both > 1.5 * peak_bytes(potential, batch, edges, ("energy",))
    twice = AtomsBatch.concat([batch, batch])
    edges = neighbor_list(twice, potential.cutoff)
    assert peak_bytes(potential, twice, edges, ("energy", "forces")) == pytest.approx(
        2 * both, rel=0.02
    )


def test_counting_does_not_touch_the_potential(potential):
    batch = AtomsBatch.from_atoms(sample_systems())
    before = {k: v.clone() for k, v in potential.state_dict().items()}
    ForceField(potential, batch)
    assert potential.device.type == "cpu"
    assert all(v.equal(before[k]) for k, v in potential.state_dict().items())


def breaking(potential, error, largest):
    """Let calls of more than so many systems fail, and record all that are made."""
    calls = []

    def limited(_, args):
        if args[0].positions.device.type != "meta":  # where calls are only counted
            calls.append(args[0].n_systems)
            if args[0].n_systems > largest:
                raise error

    potential.register_forward_pre_hook(limited)
    return calls


@pytest.mark.parametrize("kind", FULL)
def test_a_full_device_halves_the_part_and_loses_no_step(potential, kind):
    systems = shuffled(MIXED)
    batch = AtomsBatch.from_atoms(systems)
    forcefield = ForceField(potential, batch, memory_bytes=2**30)
    assert max(map(len, forcefield.parts)) > 8
    reference = alone(potential, batch)
    calls = breaking(potential, FULL[kind], 4)
    for _ in range(2):
        out = forcefield(batch)
        torch.testing.assert_close(out.energy, reference["energy"], rtol=0, atol=1e-9)
        torch.testing.assert_close(out.forces, reference["forces"], rtol=0, atol=1e-8)
    assert max(map(len, forcefield.parts)) <= 4
    assert sorted(torch.cat(forcefield.parts).tolist()) == list(range(len(systems)))
    # The second step makes no call in vain.
    assert sum(calls[-len(forcefield.parts) :]) == len(systems)


@pytest.mark.parametrize("kind", FULL)
def test_one_system_that_meets_a_full_device_is_an_error_that_says_so(potential, kind):
    batch = AtomsBatch.from_atoms(MIXED)
    forcefield = ForceField(potential, batch)
    breaking(potential, FULL[kind], 0)
    with pytest.raises(
        InputError, match=r"system \d+ with \d+ atoms needs about .*GiB"
    ):
        forcefield(batch)


def test_other_errors_of_a_call_are_not_taken_for_a_full_device(potential):
    batch = AtomsBatch.from_atoms(MIXED)
    forcefield = ForceField(potential, batch)
    calls = breaking(potential, RuntimeError("shapes do not match"), 4)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        forcefield(batch)
    assert len(calls) == 1


def test_a_prediction_goes_on_when_the_device_is_full(potential):
    reference = [r["energy"] for r in predict(potential, MIXED)]
    breaking(potential, FULL["gpu"], 4)
    mlff.forcefield.plan._counted.clear()
    found = [r["energy"] for r in predict(potential, MIXED)]
    np.testing.assert_allclose(found, reference, atol=1e-9)


LIMITED = """
import resource, torch
from mlff.batch import AtomsBatch
from mlff.forcefield import ForceField
from mlff.potential import load
from ase import Atoms

atoms = Atoms("CH2", [[0, 0, 0], [1.1, 0, 0], [-0.5, 1, 0]])
atoms.info.update(charge=0, spin=3)
potential = load("ch2")
batch = AtomsBatch.from_atoms([atoms] * 2000)
forcefield = ForceField(potential, batch, memory_bytes=2**40)
assert len(forcefield.parts) == 1
ForceField(potential, batch.select([0, 1]))(batch.select([0, 1]))
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 100 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
energy = forcefield(batch).energy
assert float(energy.std()) < 1e-4
print(len(forcefield.parts))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space")
def test_memory_that_really_ends_halves_the_parts():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2


PEAK = """
import resource, sys, torch
import numpy as np
from mlff.batch import AtomsBatch
from mlff.forcefield.memory import peak_bytes
from mlff.neighbors import neighbor_list
from mlff.potential import Potential, TrainingInfo
from ase import Atoms

scope, n, copies = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
edge = (n / 0.1) ** (1 / 3)
atoms = Atoms(f"C{n}", edge * rng.random((n, 3)), cell=[edge] * 3, pbc=scope == "local")
info = TrainingInfo(elements=(6,), states=((0, 1),))
options = {"name": "cmret", "n_features": 32, "n_layers": 3, "scope": scope}
potential = Potential.build(options, {}, info).requires_grad_(False)

def memory(line):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(dict(line.split(":") for line in lines)[line].split()[0])

small = AtomsBatch.from_atoms([atoms[:3]], charge=0, spin=1)
potential(small, neighbor_list(small, potential.cutoff))
batch = AtomsBatch.from_atoms([atoms] * copies, charge=0, spin=1)
edges = neighbor_list(batch, potential.cutoff)
counted = peak_bytes(potential, batch, edges, ("energy", "forces"))
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
potential(batch, edges)
print((memory("VmHWM") - before) / counted)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [("global", "3", "3000"), ("global", "21", "100"), ("local", "1500", "1")]
)
def test_what_is_counted_is_what_a_process_takes(case):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *case], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0.8 < float(done.stdout) < mlff.forcefield.plan.ROOM


def test_free_memory_is_a_sensible_number():
    assert 2**26 < free_bytes(torch.device("cpu")) < 2**46


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("1000\n", "700\n", 350), ("max\n", "700\n", 2**62)]
)
def test_the_limit_of_a_control_group_counts(limit, used, left, tmp_path):
    for name, text in {
        "memory.max": limit,
        "memory.current": used,
        "memory.stat": "anon 650\ninactive_file 50\n",
    }.items():
        (tmp_path / name).write_text(text)
    found = mlff.forcefield.memory._left_in(
        tmp_path, *mlff.forcefield.memory._GROUP_FILES[""]
    )
    assert found == left


def test_a_full_device_is_told_from_other_errors():
    assert all(is_out_of_memory(error) for error in FULL.values())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 must have the same dtype"))
    assert not is_out_of_memory(ValueError("out of memory"))
