"""Evaluation step after step: the same numbers, in the order given, without waiting."""

import math

import pytest
import torch
from ase.build import molecule
from forcefield_cases import (
    LARGE,
    MIXED,
    alone,
    built,
    counted,
    crystal,
    moved,
    shuffled,
)
from torch.utils._python_dispatch import TorchDispatchMode

from mlff.batch import AtomsBatch
from mlff.errors import InputError
from mlff.forcefield import ForceField
from mlff.testing.cases import sample_systems


@pytest.fixture
def potential():
    return built()


@pytest.mark.parametrize(
    ("systems", "memory_bytes"),
    [(MIXED, None), (MIXED, 2**20), (MIXED, 2**21), (LARGE, None), (LARGE, 2**23)],
)
def test_results_are_those_of_every_system_alone_in_the_order_given(
    systems, memory_bytes
):
    potential = built("local")
    batch = AtomsBatch.from_atoms(shuffled(systems))
    forcefield = ForceField(potential, batch, memory_bytes=memory_bytes)
    if memory_bytes:
        assert len(forcefield.parts) > 2
    assert sorted(torch.cat(forcefield.parts).tolist()) == list(range(len(systems)))
    for step in range(3):
        batch = moved(batch, step)
        out, reference = forcefield(batch), alone(potential, batch)
        torch.testing.assert_close(out.energy, reference["energy"], rtol=0, atol=1e-9)
        torch.testing.assert_close(out.forces, reference["forces"], rtol=0, atol=1e-8)
    assert out.stress is None
    assert out.outside is None
    assert not out.forces.requires_grad


def test_stress_follows_a_cell_that_changes():
    potential = built("local")
    batch = AtomsBatch.from_atoms([crystal(8, 0), crystal(20, 1), crystal(12, 2)] * 2)
    forcefield = ForceField(potential, batch, stress=True, memory_bytes=2**23)
    for scale in (1.0, 0.999, 0.95):
        now = batch.replace(cell=batch.cell * scale, positions=batch.positions * scale)
        stress = alone(potential, now, ("stress",))["stress"]
        torch.testing.assert_close(forcefield(now).stress, stress, rtol=0, atol=1e-9)


def test_like_systems_share_one_call_and_need_no_sorting(potential):
    batch = AtomsBatch.from_atoms([molecule("CH4")] * 50, charge=0, spin=1)
    forcefield = ForceField(potential, batch)
    calls = counted(potential)
    for step in range(3):
        forcefield(moved(batch, step))
    assert calls == [50] * 3
    assert forcefield.builds == 1
    assert forcefield.parts[0].tolist() == list(range(50))


def test_parts_of_like_systems_stay_in_order(potential):
    batch = AtomsBatch.from_atoms([molecule("CH4")] * 50, charge=0, spin=1)
    parts = ForceField(potential, batch, memory_bytes=2**21).parts
    assert len(parts) > 2
    assert torch.cat(parts).tolist() == list(range(50))


def test_the_same_systems_are_cut_in_the_same_way(potential):
    batch = AtomsBatch.from_atoms(shuffled(MIXED))
    first, second = (ForceField(potential, batch, memory_bytes=2**21) for _ in "ab")
    assert [p.tolist() for p in first.parts] == [p.tolist() for p in second.parts]


class Looks(TorchDispatchMode):
    """Records the operations for which a host waits for a device."""

    WAITING = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "bincount")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITING:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("systems", "flags"), [(MIXED, 0), ([crystal(8, 0), crystal(20, 1)], 1)]
)
def test_a_step_waits_for_the_device_once_for_each_list(systems, flags):
    potential = built("local")
    batch = AtomsBatch.from_atoms(systems)
    forcefield = ForceField(potential, batch)
    forcefield(batch)
    with Looks() as looks:
        forcefield(moved(batch, 0, 0.001))
    assert len(looks.found) == flags * len(forcefield.parts)
    with Looks() as looks:
        forcefield.refresh()
        forcefield(batch)
    assert (len(looks.found) > flags) == bool(flags)


def test_lists_are_kept_until_atoms_have_moved_or_they_are_forgotten():
    potential = built("local")
    batch = AtomsBatch.from_atoms([crystal(8, 0), *sample_systems(), crystal(20, 1)])
    forcefield = ForceField(potential, batch, skin=0.5)
    for _ in range(3):
        forcefield(moved(batch, 0, 0.01))
    assert forcefield.builds == 2  # one of all pairs, one of crystals
    forcefield.refresh()
    forcefield(batch)
    assert forcefield.builds == 3
    forcefield(moved(batch, 0, 1.0))
    assert forcefield.builds == 4


def test_a_forgotten_list_gives_the_numbers_of_a_fresh_force_field():
    """To the last bit: this is what a resumed run relies on."""
    potential = built("local")
    batch = AtomsBatch.from_atoms(LARGE)
    forcefield = ForceField(potential, batch)
    forcefield(batch)
    here = moved(batch, 1)
    forcefield.refresh()
    old, new = forcefield(here), ForceField(potential, batch)(here)
    assert old.energy.equal(new.energy)
    assert old.forces.equal(new.forces)


@pytest.mark.parametrize("memory_bytes", [None, 2**23])
def test_state_energies_are_those_of_systems_in_these_states(memory_bytes):
    potential = built("local")
    batch = AtomsBatch.from_atoms(shuffled(LARGE))
    forcefield = ForceField(potential, batch, memory_bytes=memory_bytes)
    states = [(0, 1), (0, 3), (1, 2)]
    energies = forcefield.state_energies(batch, states)
    for column, (charge, multiplicity) in enumerate(states):
        state = batch.replace(
            charge=torch.full_like(batch.charge, charge),
            multiplicity=torch.full_like(batch.multiplicity, multiplicity),
        )
        expected = alone(potential, state, ("energy",))["energy"]
        torch.testing.assert_close(energies[:, column], expected, rtol=0, atol=1e-9)
    assert (energies[:, 0] - energies[:, 1]).abs().min() > 1e-6
    # The states of the systems themselves are as they were.
    own = alone(potential, batch, ("energy",))["energy"]
    torch.testing.assert_close(forcefield(batch).energy, own, rtol=0, atol=1e-9)


class FarFromOrigin:
    """Stands for the region of training: systems with an atom beyond 20 Å."""

    def outside(self, batch, edges, distances):
        assert distances.shape == (edges.n_edges,)
        assert not distances.requires_grad
        far = (batch.positions.norm(dim=1) > 20).to(torch.int64)
        return batch.total(far) > 0


def test_systems_outside_the_region_are_told_in_the_order_given():
    potential = built("local")
    batch = AtomsBatch.from_atoms(shuffled(LARGE))
    shift = torch.zeros(batch.n_systems, 1)
    shift[[1, 4]] = 100.0
    batch = batch.replace(positions=batch.positions + shift[batch.system])
    forcefield = ForceField(
        potential, batch, region=FarFromOrigin(), memory_bytes=2**23
    )
    outside = forcefield(batch).outside
    assert outside.dtype == torch.bool
    assert outside.nonzero()[:, 0].tolist() == [1, 4]


@pytest.mark.parametrize(
    ("broken", "bad"),
    [
        ("positions", math.nan),
        ("positions", math.inf),
        ("positions", -1e9),
        ("cell", math.nan),
        ("cell", math.inf),
    ],
)
def test_a_system_without_meaning_spoils_no_other(bad, broken):
    potential = built("local")
    batch = AtomsBatch.from_atoms(LARGE)
    forcefield = ForceField(potential, batch)
    good = forcefield(batch)
    content = getattr(batch, broken).clone()
    rows = [0, 17] if broken == "positions" else [0, 2]
    systems = batch.system[rows].tolist() if broken == "positions" else rows
    content[rows] = bad
    out = forcefield(batch.replace(**{broken: content}))
    lost = torch.zeros(batch.n_systems, dtype=torch.bool)
    lost[systems] = True
    assert out.energy.isnan().equal(lost)
    assert out.forces.isnan().all(1).equal(lost[batch.system])
    kept = ~lost
    torch.testing.assert_close(out.energy[kept], good.energy[kept], rtol=0, atol=1e-9)
    # And when it is back, it is back.
    torch.testing.assert_close(forcefield(batch).energy, good.energy, rtol=0, atol=1e-9)


def test_other_systems_are_refused(potential):
    batch = AtomsBatch.from_atoms(MIXED)
    forcefield = ForceField(potential, batch)
    with pytest.raises(
        InputError, match=r"same 15 systems with .* atoms .* got 4 with"
    ):
        forcefield(batch.select([0, 1, 2, 4]))


def test_no_systems_and_systems_on_another_device_are_refused(potential):
    with pytest.raises(InputError, match="`batch` is empty"):
        ForceField(potential, AtomsBatch.from_atoms([]))
    with pytest.raises(InputError, match=r"on meta, but the potential on cpu.*\.to\("):
        ForceField(potential, AtomsBatch.from_atoms(MIXED).to("meta"))
