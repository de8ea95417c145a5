"""Reading trajectories: series, systems as ASE objects, bounded memory."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms
from trajectory_cases import HEADER, N_ATOMS, STATES, SYSTEMS, frame, layout, write

from mlff.batch import AtomsBatch
from mlff.errors import InputError, InputTypeError
from mlff.state import read_state
from mlff.trajectory import Trajectory, TrajectoryWriter


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("trajectory") / "run.h5")


@pytest.fixture
def trajectory(path):
    return Trajectory(path)


FRAMES = [frame(k) for k in range(7)]


def test_series_have_a_row_per_frame_and_a_column_per_system(trajectory):
    for name in ("energy", "kinetic", "heat", "status", "status_step"):
        expected = np.array([getattr(f, name) for f in FRAMES])
        assert np.array_equal(getattr(trajectory, name), expected), name
        assert not getattr(trajectory, name).flags.writeable
    assert trajectory.steps.tolist() == [0, 4, 8, 12, 16, 20, 24]
    assert trajectory.times_fs.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert trajectory.names == layout().names


def test_conserved_energy_leaves_out_the_heat(trajectory):
    expected = [f.energy + f.kinetic - f.heat for f in FRAMES]
    assert np.array_equal(trajectory.conserved, expected)


def test_temperature_counts_degrees_of_freedom_and_is_zero_without(trajectory):
    found, kinetic = trajectory.temperature, trajectory.kinetic
    assert found[:, 0] == pytest.approx(2 * kinetic[:, 0] / (9 * units.kB))
    assert found[:, 1] == pytest.approx(2 * kinetic[:, 1] / (3 * units.kB))
    assert not found[:, 3].any()


def test_gaps_are_upper_minus_lower(trajectory):
    energies = np.array([f.state_energies for f in FRAMES])
    assert np.array_equal(trajectory.state_energies, energies)
    assert trajectory.states == STATES
    found = trajectory.gaps((0, 3), (0, 1))
    assert np.array_equal(found, energies[..., 1] - energies[..., 0])
    with pytest.raises(InputError, match=r"\(0, 5\) was not recorded"):
        trajectory.gaps((0, 5), (0, 1))


def test_without_states_there_are_no_gaps(tmp_path):
    plain = Trajectory(write(tmp_path / "a.h5", states=()))
    assert plain.state_energies.shape == (7, 5, 0)
    with pytest.raises(InputError, match="not recorded"):
        plain.gaps((0, 1), (0, 3))


@pytest.mark.parametrize("system", range(len(SYSTEMS)))
def test_one_system_is_read_alone(trajectory, system):
    first, last = layout().ptr[system : system + 2]
    positions = np.array([f.positions[first:last] for f in FRAMES])
    momenta = np.array([f.momenta[first:last] for f in FRAMES])
    masses = layout().masses[first:last, None]
    for k in (system, system - len(SYSTEMS)):
        assert np.array_equal(trajectory.positions(k), positions)
        assert np.array_equal(trajectory.momenta(k), momenta)
        assert np.array_equal(trajectory.velocities(k), momenta / masses)
        assert np.array_equal(trajectory.cell(k), [f.cell[system] for f in FRAMES])


def test_large_rows_are_read_in_part(tmp_path):
    # 13 times the systems: rows that are longer than what is read whole.
    n = 13 * 1000
    wide = layout(
        numbers=np.ones(n, int),
        ptr=np.array([0, 4000, 4007, 9000, 12_000, n]),
        masses=np.ones(n),
        mobile=np.ones(n, bool),
    )
    path = tmp_path / "wide.h5"
    with TrajectoryWriter.create(path, wide, HEADER, n_frames=4) as writer:
        for k in range(3):
            writer.append(frame(k, wide))
    expected = [frame(k, wide).positions[4000:4007] for k in range(3)]
    assert np.array_equal(Trajectory(path).positions(1), expected)


def test_without_variable_cells_the_first_holds(tmp_path):
    fixed = Trajectory(write(tmp_path / "a.h5", variable_cell=False))
    assert np.array_equal(fixed.cell(1), 7 * [np.diag([9.0, 9, 9])])
    assert np.array_equal(fixed.atoms(1).cell.array, np.diag([9.0, 9, 9]))


def test_atoms_carry_all_that_a_system_is(trajectory):
    for system, numbers in enumerate(SYSTEMS):
        first, last = layout().ptr[system : system + 2]
        for k in (0, 3, -1):
            atoms, expected = trajectory.atoms(system, k), FRAMES[k]
            assert atoms.numbers.tolist() == numbers
            assert np.array_equal(atoms.positions, expected.positions[first:last])
            assert np.array_equal(atoms.get_momenta(), expected.momenta[first:last])
            assert np.array_equal(atoms.get_masses(), layout().masses[first:last])
            assert np.array_equal(atoms.cell.array, expected.cell[system])
            assert np.array_equal(atoms.pbc, layout().pbc[system])
            assert atoms.get_potential_energy() == expected.energy[system]
            assert atoms.info["step"] == expected.step
            assert atoms.info["time_fs"] == 0.5 * expected.step
            assert "status" not in atoms.info
    state = read_state(trajectory.atoms(2))
    assert (state.charge, state.multiplicity) == (0, 3)


def test_fixed_atoms_stay_fixed_and_keep_what_they_were_given(trajectory):
    atoms = trajectory.atoms(4)
    (constraint,) = atoms.constraints
    assert isinstance(constraint, FixAtoms)
    assert constraint.index.tolist() == [0, 3]
    assert not trajectory.atoms(0).constraints


def test_usual_masses_are_not_written_into_atoms(tmp_path):
    masses = Atoms(np.concatenate(SYSTEMS)).get_masses()
    usual = Trajectory(write(tmp_path / "a.h5", masses=masses))
    assert not usual.atoms(0).has("masses")


def test_a_batch_made_of_a_frame_is_the_batch_that_ran(trajectory):
    batch = AtomsBatch.from_atoms([s[-1] for s in trajectory])
    assert np.array_equal(batch.positions, FRAMES[-1].positions)
    assert np.array_equal(batch.cell, FRAMES[-1].cell)
    assert np.array_equal(batch.charge, layout().charge)
    assert np.array_equal(batch.multiplicity, layout().multiplicity)


def test_a_trajectory_is_a_sequence_of_sequences_of_atoms(trajectory):
    assert len(trajectory) == len(list(trajectory)) == 5
    frames = trajectory[2]
    assert len(frames) == 7
    assert [a.info["step"] for a in frames] == trajectory.steps.tolist()
    assert [a.info["step"] for a in frames[::-3]] == [24, 12, 0]
    assert frames[-1] == trajectory.atoms(2, 6)
    assert list(trajectory[-1])[3] == trajectory.atoms(4, 3)


def test_stopped_systems_say_so(tmp_path):
    status = np.array([0, 0, 3, 0, 0], np.int8)
    step = np.array([-1, -1, 6, -1, -1])

    def stopped(k):
        if k < 2:
            return frame(k)
        return frame(k, status=status, status_step=step)

    trajectory = Trajectory(write(tmp_path / "a.h5", frame=stopped))
    assert trajectory.status[:, 2].tolist() == [0, 0, 3, 3, 3, 3, 3]
    assert trajectory.status_step[-1, 2] == 6
    assert trajectory.atoms(2, 2).info["status"] == 3
    assert "status" not in trajectory.atoms(2, 1).info


def test_what_is_not_there_is_refused(trajectory):
    for call in (
        lambda: trajectory.atoms(5),
        lambda: trajectory.atoms(0, 7),
        lambda: trajectory.atoms(0, -8),
        lambda: trajectory.frame(7),
        lambda: trajectory.positions(-6),
    ):
        with pytest.raises(InputError, match="must lie in"):
            call()
    with pytest.raises(InputTypeError, match="integer"):
        trajectory.atoms(1.0)
    for call in (lambda: trajectory[5], lambda: trajectory[0][7]):
        with pytest.raises(IndexError):
            call()


def test_an_empty_trajectory_has_systems_and_no_frames(tmp_path):
    empty = Trajectory(write(tmp_path / "a.h5", n=0))
    assert empty.energy.shape == (0, 5)
    assert empty.positions(0).shape == (0, 3, 3)
    assert list(empty[0]) == []
    with pytest.raises(InputError, match="`frame`"):
        empty.atoms(0)


def test_the_file_is_let_go_with_its_reader(path):
    def opened():
        links = [os.path.realpath(f"/proc/self/fd/{k}") for k in range(200)]
        return links.count(str(path))

    before = opened()
    trajectory = Trajectory(path)
    assert opened() == before + 1
    del trajectory
    gc.collect()
    assert opened() == before


def test_reading_needs_no_torch_and_little_memory(tmp_path):
    # 100 MB of frames, checked and read one system at a time.
    n, frames = 50_000, 20
    large = layout(
        numbers=np.ones(n, int),
        ptr=np.array([0, 9, 20_000, 20_001, 30_000, n]),
        masses=np.ones(n),
        mobile=np.ones(n, bool),
    )
    path = tmp_path / "large.h5"
    with TrajectoryWriter.create(path, large, HEADER, n_frames=frames) as writer:
        for k in range(frames):
            writer.append(frame(k, large))
    assert n * 48 * frames > 45e6
    code = f"""
import resource, sys
from mlff.trajectory import Trajectory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
trajectory = Trajectory({str(path)!r})
assert trajectory.n_frames == {frames}
trajectory.positions(0), trajectory.energy
for atoms in trajectory[2]:
    pass
assert "torch" not in sys.modules
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    # A block of 16 MiB, twice, and HDF5.
    assert float(done.stdout) < 48


def test_a_frame_is_a_place_to_start_from(trajectory, tmp_path):
    fixed = Trajectory(write(tmp_path / "a.h5", variable_cell=False))
    for found in (trajectory.frame(3), fixed.frame(3)):
        assert found.step == 12
        assert found.positions.shape == (N_ATOMS, 3)
        arrays = [value for value in vars(found).values() if value is not found.step]
        assert all(array.flags.writeable for array in arrays)
