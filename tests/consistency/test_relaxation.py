"""Relaxing in a batch: the minima that ASE finds one by one, whoever flies along."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.optimize import BFGS
from ase.optimize import LBFGS as ASE_LBFGS
from moving import molecules, random_potential

import mlff
from mlff import relaxation
from mlff.dynamics.limits import Limits
from mlff.errors import DataError, InputError, InputTypeError
from mlff.forcefield import ForceField
from mlff.potential import Potential
from mlff.relaxation import RelaxOptions, flight
from mlff.relaxation import relax as relax_with_bar
from mlff.relaxation.optimizers import FIRE, LBFGS
from mlff.state import set_state


def relax(systems, potential, fmax=0.01, *, options=None, **settings):
    options = {"progress": False, **(options or {})}
    return relax_with_bar(
        systems, potential, fmax, options=RelaxOptions(**options), **settings
    )


@pytest.fixture(scope="module")
def ch2() -> Potential:
    return mlff.load("ch2", dtype=torch.float64)


@pytest.fixture(scope="module")
def anything() -> Potential:
    return random_potential()


def rattled(n: int) -> list[Atoms]:
    """Molecules without symmetry: one on a ridge falls to the side of a rounding."""
    out = molecules(n)
    for index, atoms in enumerate(out):
        atoms.rattle(0.05, seed=index)
    return out


def methylenes(n: int, seed: int = 5) -> list[Atoms]:
    """Distorted singlets and triplets, in turn."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(n):
        atoms = molecule("CH2_s1A1d")
        atoms.positions += rng.normal(0.0, 0.08, (3, 3))
        out.append(set_state(atoms, 0, 1 + 2 * (index % 2)))
    return out


def relaxed_by_ase(atoms, potential, kind=BFGS, fmax=0.01, steps=500):
    out = atoms.copy()
    out.calc = mlff.MLFFCalculator(potential)
    optimizer = kind(out, logfile=None)
    optimizer.run(fmax=fmax, steps=steps)
    return out, optimizer.nsteps


def shape(atoms):
    """What does not change under motion of the whole."""
    return np.sort(atoms.get_all_distances()[np.triu_indices(len(atoms), 1)])


def largest_gap(first, second):
    return max(
        np.abs(a.atoms.positions - b.atoms.positions).max()
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_both_states_of_methylene_reach_the_minima_of_ase(ch2, optimizer):
    systems = methylenes(8)
    for one, start in zip(
        relax(systems, ch2, 1e-4, optimizer=optimizer), systems, strict=True
    ):
        expected, _ = relaxed_by_ase(start, ch2, fmax=1e-4)
        assert one.converged
        assert one.reason == ""
        assert abs(one.energy - expected.get_potential_energy()) < 1e-7
        assert np.abs(shape(one.atoms) - shape(expected)).max() < 1e-4


def test_lbfgs_takes_no_more_steps_than_that_of_ase(ch2):
    systems = methylenes(12)
    ours = [one.n_steps for one in relax(systems, ch2)]
    theirs = [relaxed_by_ase(a, ch2, ASE_LBFGS)[1] for a in systems]
    assert np.mean(ours) <= 1.05 * np.mean(theirs)
    assert max(ours) <= 1.5 * max(theirs)


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_what_is_reported_is_what_the_potential_says(anything, optimizer):
    systems = rattled(13)
    found = relax(systems, anything, 0.02, optimizer=optimizer, max_steps=200)
    before = mlff.predict(anything, systems)
    after = mlff.predict(anything, [one.atoms for one in found])
    for one, old, new in zip(found, before, after, strict=True):
        assert one.converged
        assert one.energy < old["energy"] + 1e-6
        assert abs(one.energy - new["energy"]) < 1e-9
        fmax = np.linalg.norm(new["forces"], axis=1).max()
        assert abs(one.fmax - fmax) < 1e-9
        assert fmax < 0.02
        assert one.atoms.get_potential_energy() == one.energy
        assert one.atoms.get_potential_energy(force_consistent=True) == one.energy
        assert np.abs(one.atoms.get_forces() - new["forces"]).max() < 1e-9


def test_nothing_given_is_changed_and_all_of_it_is_kept(anything):
    systems = rattled(6)
    systems[2].set_constraint(FixAtoms([0]))
    systems[3].info["name"] = "mine"
    systems[4].set_array("label", np.arange(len(systems[4])))
    before = [(a.copy(), dict(a.info)) for a in systems]
    found = relax(systems, anything, 0.05)
    for atoms, (copy, info), one in zip(systems, before, found, strict=True):
        assert atoms == copy
        assert atoms.info == info
        assert atoms.calc is None
        assert one.atoms.info == info
        assert one.atoms.arrays.keys() == atoms.arrays.keys()
        assert np.array_equal(one.atoms.get_momenta(), atoms.get_momenta())
    assert found[2].atoms.constraints[0].index.tolist() == [0]
    assert found[4].atoms.arrays["label"].tolist() == list(range(len(systems[4])))


def test_a_state_given_as_an_argument_is_used_and_written_into_the_result(ch2):
    atoms = methylenes(2)[:1] * 2
    bare = [Atoms(a.numbers, a.positions) for a in atoms]
    found = relax(bare, ch2, charge=0, spin=[1, 3])
    assert [one.atoms.info["spin"] for one in found] == [1, 3]
    assert [one.atoms.info["charge"] for one in found] == [0, 0]
    assert found[0].energy - found[1].energy > 0.3
    assert "spin" not in bare[0].info


class Counted(ForceField):
    """Remembers how many systems each call evaluated."""

    calls: list[int]

    def __call__(self, batch):
        self.calls.append(batch.n_systems)
        return super().__call__(batch)


@pytest.fixture
def calls(monkeypatch):
    Counted.calls = []
    monkeypatch.setattr(flight, "ForceField", Counted)
    return Counted.calls


@pytest.mark.parametrize(("optimizer", "max_steps"), [("lbfgs", 30), ("fire", 20)])
def test_in_flight_is_all_at_once_is_one_by_one(anything, calls, optimizer, max_steps):
    systems = rattled(17)
    settings = {"fmax": 0.05, "optimizer": optimizer, "max_steps": max_steps}
    at_once = relax(systems, anything, **settings)
    assert calls[0] == 17
    assert {one.converged for one in at_once} == {True, False}
    calls.clear()
    in_flight = relax(systems, anything, **settings, options={"max_systems": 5})
    assert max(calls) == 5
    alone = [relax([a], anything, **settings)[0] for a in systems]
    for other in (in_flight, alone):
        assert [one.n_steps for one in other] == [one.n_steps for one in at_once]
        assert [one.reason for one in other] == [one.reason for one in at_once]
        assert largest_gap(other, at_once) < 1e-9


def test_it_does_not_matter_how_often_the_host_looks(anything, monkeypatch):
    systems = rattled(9)
    expected = relax(systems, anything, 0.05, max_steps=20)
    for often in (3, 7):
        monkeypatch.setitem(relaxation.CHECK_EVERY, "cpu", often)
        found = relax(systems, anything, 0.05, max_steps=20)
        assert [one.n_steps for one in found] == [one.n_steps for one in expected]
        assert largest_gap(found, expected) < 1e-9
        assert max(one.n_steps for one in found) <= 20


def test_a_thousand_conformers_cost_what_their_steps_cost(ch2, calls):
    systems = methylenes(64)
    found = relax(systems, ch2, optimizer="fire", options={"max_systems": 20})
    needed = sum(one.n_steps + 1 for one in found)
    assert needed <= sum(calls) <= 1.15 * needed
    assert max(calls) == 20


def test_fixed_atoms_hold_and_do_not_count(ch2):
    systems = methylenes(4)
    systems[1].set_constraint(FixAtoms([0, 1]))
    systems[2].set_constraint(FixAtoms([0, 1, 2]))
    found = relax(systems, ch2)
    assert all(one.converged for one in found)
    assert np.array_equal(found[1].atoms.positions[:2], systems[1].positions[:2])
    assert not np.array_equal(found[1].atoms.positions[2], systems[1].positions[2])
    assert found[2].n_steps == 0
    assert found[2].fmax == 0.0
    forces = found[1].atoms.get_forces(apply_constraint=False)
    assert np.linalg.norm(forces[2]) < 0.01 < np.linalg.norm(forces[:2])


def test_other_constraints_are_refused_by_name(ch2):
    systems = methylenes(4)
    systems[2].set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="system 2: constraint FixBondLength"):
        relax(systems, ch2)


def test_coincident_atoms_are_refused_by_system(ch2):
    systems = methylenes(4)
    systems[3].positions[2] = systems[3].positions[1]
    with pytest.raises(InputError, match="system 3: atoms 1 and 2"):
        relax(systems, ch2)


class Spoiled(Potential):
    """No numbers for cations, an abyss for anions whose atoms come close."""

    def forward(self, batch, edges, properties=("energy", "forces"), **options):
        out = super().forward(batch, edges, properties, **options)
        dead = batch.charge == 1
        out["energy"] = torch.where(dead, torch.nan, out["energy"])
        rows = dead[batch.system, None]
        out["forces"] = torch.where(rows, torch.nan, out["forces"])
        deep = (batch.charge == -1)[batch.system, None] & (batch.slot == 0)[:, None]
        steep = 1e5 * (batch.positions[:, :1] - 0.3).clamp(min=0) + 3.0
        pull = torch.nn.functional.pad(steep, (0, 2))
        out["forces"] = torch.where(deep, out["forces"] + pull, out["forces"])
        fall = batch.total(torch.where(deep, -3.0 * batch.positions, 0.0))[:, 0]
        out["energy"] = out["energy"] + fall
        return out


@pytest.fixture(scope="module")
def spoiled(anything) -> Potential:
    return Spoiled(
        anything.model, dict(anything.heads.items()), {}, anything.info
    ).eval()


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_bad_systems_are_reported_and_the_others_do_not_notice(
    anything, spoiled, optimizer
):
    systems = rattled(12)
    good = [k for k, a in enumerate(systems) if a.info["charge"] == 0]
    settings = {"fmax": 0.05, "optimizer": optimizer, "max_steps": 90}
    found = relax(systems, spoiled, **settings)
    expected = relax([systems[k] for k in good], anything, **settings)
    assert largest_gap([found[k] for k in good], expected) < 1e-9
    for start, one in zip(systems, found, strict=True):
        if start.info["charge"] == 1:
            assert one.reason == "energy or forces not finite"
            assert one.n_steps == 0
            assert np.isnan(one.energy)
            assert np.isnan(one.fmax)
            assert one.atoms.calc is None
            assert np.array_equal(one.atoms.positions, start.positions)
        if start.info["charge"] == -1:
            assert one.reason == "forces beyond max_force_eV_per_A"
            assert not one.converged
            assert 0.28 < one.atoms.positions[0, 0] < 0.302
            assert np.isfinite(one.atoms.get_forces()).all()
            assert one.n_steps < 90


def test_systems_that_leave_the_region_seen_in_training_stop_if_asked(ch2):
    systems = methylenes(4)
    assert relax(systems, ch2)[1].atoms.get_angle(1, 0, 2) > 130
    region = {"C-H": (0.5, 2.0), "H-C": (0.5, 2.0), "H-H": (0.5, 3.0)}
    region["H-C-H"] = (20.0, 120.0)
    info = dataclasses.replace(ch2.info, region=region)
    narrow = mlff.load("ch2", dtype=torch.float64)
    narrow.info = info
    limits = Limits(region="freeze", margin_degrees=0.0)
    found = relax(systems, narrow, options={"limits": limits})
    assert [one.converged for one in found] == [True, False, True, False]
    for one in found[1::2]:
        assert one.reason == "outside the region seen in training"
        assert 110 < one.atoms.get_angle(1, 0, 2) <= 120


def test_steps_are_limited_for_each_system(anything, ch2):
    systems = methylenes(5)
    found = relax(systems, ch2, max_steps=3)
    assert {one.n_steps for one in found} == {3}
    assert {one.reason for one in found} == {"not converged in 3 steps"}
    still = relax(systems, ch2, max_steps=0)
    for start, one in zip(systems, still, strict=True):
        assert np.array_equal(one.atoms.positions, start.positions)
        assert one.n_steps == 0
        start.calc = mlff.MLFFCalculator(ch2)
        assert abs(one.energy - start.get_potential_energy()) < 1e-9


def test_periodic_systems_relax_in_their_cells():
    potential = random_potential(scope="local", cutoff=3.0)
    systems = []
    for index in range(4):
        atoms = molecule(("CH4", "H2O", "CH3OH", "C2H6")[index])
        atoms.set_cell([6.0, 6.5, 7.0])
        atoms.pbc = (True, index % 2 == 0, True)
        atoms.positions += (5.5, 0.0, 0.0)
        systems.append(set_state(atoms, 0, 1))
    found = relax(systems, potential, 0.02)
    for start, one in zip(systems, found, strict=True):
        assert one.converged
        assert np.array_equal(one.atoms.cell.array, start.cell.array)
        (expected,) = mlff.predict(potential, [one.atoms])
        assert np.linalg.norm(expected["forces"], axis=1).max() < 0.02 + 1e-9
        assert abs(expected["energy"] - one.energy) < 1e-9


def test_no_systems_give_no_results(ch2):
    assert relax([], ch2) == []


def test_settings_of_an_optimizer_are_those_given(ch2):
    systems = methylenes(4)
    short = relax(systems, ch2, optimizer=LBFGS(max_step_A=0.01), max_steps=4)
    for start, one in zip(systems, short, strict=True):
        moved = np.linalg.norm(one.atoms.positions - start.positions, axis=1)
        assert moved.max() <= 0.04 + 1e-9
    assert relax(systems, ch2, optimizer=FIRE(timestep=0.05))[0].converged


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fmax": 0}, "`fmax` must be a positive number"),
        ({"fmax": np.nan}, "`fmax` must be a positive number"),
        ({"fmax": "tight"}, "`fmax` must be a positive number"),
        ({"max_steps": -1}, "`max_steps` must be an integer ≥ 0"),
        ({"max_steps": 2.5}, "`max_steps` must be an integer ≥ 0"),
        ({"optimizer": "newton"}, r"one of \['fire', 'lbfgs'\]"),
        ({"options": {"max_systems": 0}}, "`max_systems` must be an integer ≥ 1"),
        ({"options": {"resume": True}}, "`resume` needs `out`"),
        ({"options": {"out": "x.csv"}}, r"must end in \.xyz"),
    ],
)
def test_settings_that_mean_nothing_are_refused(ch2, settings, named):
    with pytest.raises(InputError, match=named):
        relax(methylenes(2), ch2, **settings)


def test_the_name_of_a_potential_is_not_one(ch2):
    with pytest.raises(InputTypeError, match=r"mlff\.load"):
        relax(methylenes(2), "ch2")


def test_the_bar_says_how_far_it_is(ch2, capsys):
    relax_with_bar(methylenes(6), ch2)
    text = capsys.readouterr().err
    assert "6/6" in text
    assert "6 converged" in text
    assert "largest force" in text


# The file of results


def same(first, second):
    """Equal but for the eight decimals of the file."""
    for one, other in zip(first, second, strict=True):
        assert (one.converged, one.reason) == (other.converged, other.reason)
        assert one.n_steps == other.n_steps
        assert np.abs(one.atoms.positions - other.atoms.positions).max() < 2e-8
        assert one.atoms.info == other.atoms.info
        assert one.energy == pytest.approx(other.energy, abs=1e-9, nan_ok=True)
        assert one.fmax == pytest.approx(other.fmax, abs=1e-9, nan_ok=True)
        assert (one.atoms.calc is None) == (other.atoms.calc is None)
        if one.atoms.calc is not None:
            gap = one.atoms.get_forces() - other.atoms.get_forces()
            assert np.abs(gap).max() < 2e-8


@pytest.fixture
def batch_of_all_kinds():
    systems = rattled(9)
    systems[3].set_constraint(FixAtoms([1]))
    systems[4].info.update(name='with, "quotes" and = signs', energy=-1.0)
    systems[5].set_array("forces", np.ones((len(systems[5]), 3)))
    return systems


def test_finished_systems_are_in_the_file_and_come_back(
    spoiled, batch_of_all_kinds, tmp_path, calls
):
    settings = {"fmax": 0.002, "max_steps": 26, "optimizer": "fire"}
    out = tmp_path / "relaxed.xyz"
    first = relax(batch_of_all_kinds, spoiled, **settings, options={"out": out})
    assert len({one.reason for one in first}) == 4
    frames = ase.io.read(out, index=":")
    assert sorted(f.info["relax_system"] for f in frames) == list(range(9))
    for frame in frames:
        one = first[frame.info["relax_system"]]
        assert frame.info["relax_converged"] == one.converged
        assert frame.info["spin"] == one.atoms.info["spin"]
        if one.atoms.calc is not None:
            assert frame.get_potential_energy() == pytest.approx(one.energy)
    content = out.read_bytes()
    calls.clear()
    options = {"out": out, "resume": True}
    second = relax(batch_of_all_kinds, spoiled, **settings, options=options)
    assert calls == []
    same(first, second)
    assert out.read_bytes() == content


def test_wherever_a_file_was_cut_it_is_gone_on_with(ch2, tmp_path):
    systems = methylenes(4)
    whole = tmp_path / "whole.xyz"
    expected = relax(systems, ch2, options={"out": whole})
    content = whole.read_bytes()
    assert content.count(b"\n") == 4 * 5
    out = tmp_path / "cut.xyz"
    for cut in (0, 1, 60, len(content) // 2, len(content) - 40, len(content) - 1):
        out.write_bytes(content[:cut])
        options = {"out": out, "resume": True}
        same(expected, relax(systems, ch2, options=options))
        assert len(ase.io.read(out, index=":")) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"fmax": 0.02},
        {"max_steps": 400},
        {"optimizer": "fire"},
        {"optimizer": LBFGS(memory=5)},
        {"limits": Limits(max_force_eV_per_A=50.0)},
        {"systems": "moved"},
        {"systems": "another state"},
        {"systems": "fixed"},
        {"systems": "fewer"},
        {"potential": "other weights"},
    ],
)
def test_another_relaxation_is_not_resumed(ch2, tmp_path, change):
    out, systems = tmp_path / "out.xyz", methylenes(4)
    relax(systems, ch2, options={"out": out})
    content = out.read_bytes()
    options = {"out": out, "resume": True}
    settings = dict(change)
    which = settings.pop("systems", None)
    if which == "moved":
        systems[2].positions[1, 1] += 1e-9
    elif which == "another state":
        set_state(systems[2], 0, 3)
    elif which == "fixed":
        systems[2].set_constraint(FixAtoms([2]))
    elif which == "fewer":
        systems = systems[:2]
    if "limits" in settings:
        options["limits"] = settings.pop("limits")
    potential = ch2
    if settings.pop("potential", None):
        potential = mlff.load("ch2", dtype=torch.float64)
        potential.references[6] += 1.0
    with pytest.raises(InputError, match="other systems or other settings"):
        relax(systems, potential, **settings, options=options)
    assert out.read_bytes() == content


def test_an_existing_file_is_replaced_only_if_asked(ch2, tmp_path):
    out = tmp_path / "out.xyz"
    out.write_text("precious\n")
    with pytest.raises(InputError, match="exists; resume it, overwrite it"):
        relax(methylenes(2), ch2, options={"out": out})
    with pytest.raises(InputError, match="not extended XYZ"):
        relax(methylenes(2), ch2, options={"out": out, "resume": True})
    assert out.read_text() == "precious\n"
    relax(methylenes(2), ch2, options={"out": out, "overwrite": True})
    assert len(ase.io.read(out, index=":")) == 2


def test_what_a_file_cannot_hold_is_an_error_before_any_step(ch2, tmp_path, calls):
    systems = methylenes(4)
    systems[2].set_array("odd", np.ones((3, 2, 2)))
    with pytest.raises(InputError, match="system 2: extended XYZ cannot hold"):
        relax(systems, ch2, options={"out": tmp_path / "out.xyz"})
    assert calls == []
    assert len(relax(systems, ch2)) == 4


def test_what_had_finished_when_a_run_was_stopped_is_in_the_file(
    ch2, tmp_path, monkeypatch
):
    systems, out = methylenes(24), tmp_path / "out.xyz"
    expected = relax(systems, ch2)
    step = LBFGS.step
    left = itertools.count(8, -1)

    def stopped(self, *args):
        if next(left) == 0:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(LBFGS, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        relax(systems, ch2, options={"out": out})
    monkeypatch.undo()
    finished = [one.n_steps for one in expected if one.n_steps < 8]
    assert 0 < len(finished) < 24
    assert len(ase.io.read(out, index=":")) == len(finished)
    found = relax(systems, ch2, options={"out": out, "resume": True})
    same(expected, found)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import ase.io
import torch
from test_relaxation import methylenes, relax
import mlff
from mlff.relaxation.optimizers import FIRE

folder, random_state = Path(sys.argv[2]), random.Random(3)
potential = mlff.load("ch2", dtype=torch.float64)
systems = methylenes(20)
method = FIRE(max_timestep=0.2)

def run(out):
    options = {"out": out, "resume": True, "max_systems": 6}
    return relax(systems, potential, optimizer=method, options=options)

begun = time.monotonic()
whole = run(folder / "whole.xyz")
duration = time.monotonic() - begun
kills, chain, most = 0, 0, []
while kills < 20:
    chain, ends = chain + 1, 0
    out = folder / f"killed_{chain}.xyz"
    while True:
        pid = os.fork()
        if pid == 0:
            run(out)
            os._exit(0)
        time.sleep(random_state.uniform(0.02, 0.35) * duration)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills, ends = kills + 1, ends + 1
    most.append(ends)
print(kills, chain, max(most))
"""


@pytest.mark.slow
def test_a_relaxation_killed_again_and_again_loses_nothing(ch2, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, Path(__file__).parent, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kills, chains, most = map(int, done.stdout.split())
    assert kills >= 20
    assert most >= 2
    expected = {
        f.info["relax_system"]: f for f in ase.io.read(tmp_path / "whole.xyz", ":")
    }
    assert len(expected) == 20
    for chain in range(1, chains + 1):
        frames = ase.io.read(tmp_path / f"killed_{chain}.xyz", index=":")
        assert sorted(f.info["relax_system"] for f in frames) == list(range(20))
        for frame in frames:
            other = expected[frame.info["relax_system"]]
            for name, value in other.info.items():
                if name == "relax_check":  # of digits that rounding may change
                    continue
                assert frame.info[name] == pytest.approx(value, abs=1e-9), name
            assert np.abs(frame.positions - other.positions).max() < 2e-8


@pytest.mark.parametrize("content", [b"important notes", b"1\n\nH 0 0 0"])
def test_a_file_of_others_is_not_touched(ch2, tmp_path, content):
    path = tmp_path / "notes.xyz"
    path.write_bytes(content)
    options = RelaxOptions(out=path, resume=True, progress=False)
    with pytest.raises(InputError):
        relax_with_bar(methylenes(2), ch2, options=options)
    assert path.read_bytes() == content


def test_a_changed_result_is_not_taken_for_one(ch2, tmp_path):
    path = tmp_path / "done.xyz"
    systems = methylenes(2)
    relax_with_bar(systems, ch2, options=RelaxOptions(out=path, progress=False))
    content = path.read_bytes()
    resumed = RelaxOptions(out=path, resume=True, progress=False)
    relax_with_bar(systems, ch2, options=resumed)
    digits = [k for k, c in enumerate(content) if chr(c) in "1234"]
    refused = 0
    for place in digits[40::7]:
        path.write_bytes(content[:place] + b"9" + content[place + 1 :])
        before = path.read_bytes()
        try:
            found = relax_with_bar(systems, ch2, options=resumed)
        except (InputError, DataError):
            refused += 1
            assert path.read_bytes() == before
        else:  # charges and the like, which are taken from the systems
            assert all(one.converged for one in found)
    assert refused > 10


def test_integer_positions_relax_as_all_others(ch2):
    atoms = methylenes(1)[0]
    atoms.arrays["positions"] = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    other = atoms.copy()
    other.arrays["positions"] = other.positions.astype(float)
    (one,), (two,) = (relax([a], ch2) for a in (atoms, other))
    assert one.converged
    assert np.array_equal(one.atoms.positions, two.atoms.positions)
    assert one.atoms.positions.dtype == np.float64
