"""Writing trajectories: what goes in, in what order, and what a disk may do."""

import errno
import os
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest
from trajectory_cases import HEADER, N_ATOMS, SYSTEMS, frame, layout, same, write

import mlff.trajectory.guard as guard
from mlff.batch import AtomsBatch
from mlff.errors import DataError, InputError, MlffError
from mlff.trajectory import Layout, Trajectory, TrajectoryWriter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def create(path, n_frames=10, **changes):
    return TrajectoryWriter.create(path, layout(), HEADER, n_frames=n_frames, **changes)


def leftovers(path):
    return sorted(p.name for p in path.parent.iterdir() if p.name != path.name)


# What is written is what is read


def test_every_frame_comes_back_to_the_last_bit(path):
    trajectory = Trajectory(write(path))
    assert trajectory.n_frames == 7
    assert all(same(trajectory.frame(k), frame(k)) for k in range(7))
    assert trajectory.header == HEADER
    assert trajectory.layout.differences(layout()) == ()
    assert leftovers(path) == []


def test_without_cells_and_states_a_frame_comes_back_with_the_first_cells(path):
    fixed = layout(variable_cell=False, states=())
    trajectory = Trajectory(write(path, variable_cell=False, states=()))
    found = trajectory.frame(-1)
    assert np.array_equal(found.cell, fixed.cell)
    assert found.state_energies.shape == (len(SYSTEMS), 0)
    assert np.array_equal(found.positions, frame(6).positions)


def test_any_hdf5_program_finds_names_units_and_rows(path):
    write(path)
    with h5py.File(path) as file:
        positions = file["frames/positions"]
        assert positions.shape == (10, N_ATOMS, 3)
        assert positions.attrs["unit"] == "Angstrom"
        assert np.array_equal(positions[3], frame(3).positions)
        assert file["systems/multiplicity"][:].tolist() == [1, 1, 3, 5, 2]
        assert b"VelocityVerlet" in file["systems/header"][()]


def test_equal_runs_give_equal_files(path, tmp_path):
    one, other = write(path), write(tmp_path / "other.h5")
    assert one.read_bytes() == other.read_bytes()


def test_the_size_of_a_frame_is_what_the_file_grows_by(path, tmp_path):
    small, large = write(path, capacity=100), write(tmp_path / "b.h5", capacity=300)
    growth = large.stat().st_size - small.stat().st_size
    assert abs(growth / 200 - layout().frame_bytes) < 1


def test_room_for_frames_takes_no_disk_before_they_come(path):
    with create(path, n_frames=100_000) as writer:
        writer.append(frame(0))
    assert path.stat().st_size > 50e6
    assert path.stat().st_blocks * 512 < 1e6


def test_a_layout_is_made_of_a_batch(atoms_batch):
    n, m = atoms_batch.n_atoms, atoms_batch.n_systems
    ones = atoms_batch.positions.new_ones
    made = Layout.from_batch(
        atoms_batch,
        masses=ones(n),
        mobile=ones(n).bool(),
        dof=3 * ones(m),
        seed=ones(m).long(),
    )
    assert made.ptr.tolist() == [0, 3, 5]
    assert made.charge.tolist() == [0, -1]
    assert made.multiplicity.tolist() == [3, 1]
    assert made.names == ("0", "1")
    assert made.numbers.tolist() == [6, 1, 1, 8, 1]


@pytest.fixture
def atoms_batch():
    from ase import Atoms

    ch2 = Atoms("CH2", positions=np.eye(3), info={"charge": 0, "spin": 3})
    oh = Atoms("OH", positions=np.eye(3)[:2], info={"charge": -1, "spin": 1})
    return AtomsBatch.from_atoms([ch2, oh])


def test_layouts_say_in_what_they_differ():
    assert layout().differences(layout(seed=np.zeros(5, int))) == ("seed",)
    assert layout().differences(layout(states=())) == ("states",)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ptr": [0, 3, 3, 8, 9, 14]}, "ptr"),
        ({"ptr": [0]}, "ptr"),
        ({"masses": np.ones(3)}, "masses"),
        ({"numbers": np.zeros(14, int)}, "numbers"),
        ({"charge": np.full(5, 0.5)}, "charge"),
        ({"names": ["one"]}, "names"),
        ({"states": [(0, 1), (0, 1)]}, "states"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(changes, text):
    with pytest.raises(InputError, match=f"`{text}`"):
        layout(**changes)


# Order and number of frames


def test_a_frame_that_does_not_fit_is_refused_and_the_next_one_taken(path):
    with create(path) as writer:
        writer.append(frame(0))
        for wrong in (
            {"positions": np.zeros((3, 3))},
            {"status": np.zeros(5)},
            {"step": 0},
        ):
            with pytest.raises(InputError, match=f"`frame.{next(iter(wrong))}`"):
                writer.append(frame(1, **wrong))
        writer.append(frame(1))
    assert same(Trajectory(path).frame(-1), frame(1))


def test_a_full_file_takes_no_more_until_it_is_extended(path):
    with create(path, n_frames=np.int64(2)) as writer:
        writer.append(frame(0))
        writer.append(frame(1))
        with pytest.raises(InputError, match="full"):
            writer.append(frame(2))
    with TrajectoryWriter.resume(path, n_frames=3) as writer:
        writer.append(frame(2))
    assert Trajectory(path).n_frames == 3


def test_a_closed_writer_writes_no_more(path):
    with create(path) as writer:
        pass
    writer.close()
    with pytest.raises(InputError, match="closed"):
        writer.append(frame(0))


# Going on


def test_resuming_continues_after_the_last_frame(path, tmp_path):
    write(path, n=3)
    with TrajectoryWriter.resume(path) as writer:
        assert writer.n_frames == 3
        assert same(writer.last, frame(2))
        with pytest.raises(InputError, match="must rise"):
            writer.append(frame(2))
        for k in range(3, 7):
            writer.append(frame(k))
    assert path.read_bytes() == write(tmp_path / "whole.h5").read_bytes()


def test_a_file_without_frames_has_no_last_one(path):
    write(path, n=0)
    with TrajectoryWriter.resume(path) as writer:
        assert writer.last is None
        writer.append(frame(0))
        assert same(writer.last, frame(0))


def test_an_extended_file_equals_one_that_was_made_longer(path, tmp_path):
    write(path, n=5, capacity=5)
    with TrajectoryWriter.resume(path, n_frames=10) as writer:
        assert writer.capacity == 10
        for k in range(5, 7):
            writer.append(frame(k))
    assert path.read_bytes() == write(tmp_path / "whole.h5").read_bytes()
    assert leftovers(path) == ["whole.h5"]


def test_a_reader_keeps_its_frames_while_the_file_is_extended(path):
    trajectory = Trajectory(write(path, n=5, capacity=5))
    with TrajectoryWriter.resume(path, n_frames=50) as writer:
        writer.append(frame(5))
        assert trajectory.n_frames == 5
        assert all(same(trajectory.frame(k), frame(k)) for k in range(5))
        assert same(Trajectory(path).frame(5), frame(5))


def test_asking_for_less_room_than_there_is_changes_nothing(path):
    before = write(path).read_bytes()
    TrajectoryWriter.resume(path, n_frames=2).close()
    assert path.read_bytes() == before


def test_extending_streams(path):
    # 48 MB of frames; the copy may hold a block of 16 MiB and little else.
    atoms = 100_000
    code = f"""
import resource
import numpy as np
from trajectory_cases import HEADER, frame, layout
from mlff.trajectory import Trajectory, TrajectoryWriter
n = {atoms}
large = layout(
    numbers=np.ones(n, int), ptr=[0, n - 9, n - 4, n - 3, n - 2, n],
    masses=np.ones(n), mobile=np.ones(n, bool),
)
with TrajectoryWriter.create({str(path)!r}, large, HEADER, n_frames=10) as writer:
    for k in range(10):
        writer.append(frame(k, large))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with TrajectoryWriter.resume({str(path)!r}, n_frames=11) as writer:
    assert writer.n_frames == 10
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    assert float(run(code)) < 40


def run(code):
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": here},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# One writer


def test_a_second_writer_is_refused_and_readers_are_not(path):
    with create(path) as writer:
        writer.append(frame(0))
        for attempt in (
            lambda: TrajectoryWriter.resume(path),
            lambda: create(path, force=True),
        ):
            with pytest.raises(InputError, match="in use"):
                attempt()
        assert Trajectory(path).n_frames == 1
        with h5py.File(path) as file:
            assert file["frames/step"][0] == 0
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r+")
        writer.append(frame(1))
        assert Trajectory(path).n_frames == 2
    TrajectoryWriter.resume(path).close()


def test_a_writer_in_another_process_is_refused(path):
    with create(path) as writer:
        code = f"""
from mlff.errors import InputError
from mlff.trajectory import Trajectory, TrajectoryWriter
assert Trajectory({str(path)!r}).n_frames == 0
try:
    TrajectoryWriter.resume({str(path)!r})
except InputError as error:
    print(error)
"""
        assert "in use" in run(code)
        writer.append(frame(0))


def test_what_a_killed_writer_leaves_hinders_nobody(path):
    code = f"""
import os
from trajectory_cases import HEADER, frame, layout
from mlff.trajectory import TrajectoryWriter
writer = TrajectoryWriter.create({str(path)!r}, layout(), HEADER, n_frames=10)
writer.append(frame(0))
os._exit(0)
"""
    run(code)
    assert leftovers(path) == [".run.h5.lock"]
    guard.temporary_path(path, "new").write_bytes(b"half a copy")
    with TrajectoryWriter.resume(path) as writer:
        writer.append(frame(1))
    assert Trajectory(path).n_frames == 2
    assert leftovers(path) == []


def test_a_writer_that_is_forgotten_lets_go(path):
    writer = create(path)
    writer.append(frame(0))
    del writer
    with TrajectoryWriter.resume(path) as writer:
        assert writer.n_frames == 1


def test_a_failed_opening_lets_go(path):
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError) as caught:
        TrajectoryWriter.resume(path)
    # Even while the error, and with it all that it refers to, is still there.
    create(path, force=True).close()
    assert caught.value is not None


# Targets


def test_an_existing_file_is_replaced_only_by_force(path):
    before = write(path).read_bytes()
    with pytest.raises(InputError, match="exists; resume"):
        create(path)
    assert path.read_bytes() == before
    create(path, force=True).close()
    assert Trajectory(path).n_frames == 0


def test_places_that_cannot_be_written_are_refused(path, tmp_path):
    for place in (tmp_path / "missing" / "run.h5", tmp_path):
        with pytest.raises(InputError, match=str(place)):
            create(place, force=True)
    with pytest.raises(DataError, match="no such file"):
        TrajectoryWriter.resume(path)
    assert leftovers(path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folders_and_files_are_refused(path):
    write(path).chmod(0o444)
    with pytest.raises(InputError, match="cannot write"):
        TrajectoryWriter.resume(path)
    path.parent.chmod(0o555)
    try:
        with pytest.raises(InputError, match="cannot write"):
            create(path.with_name("other.h5"))
    finally:
        path.parent.chmod(0o755)


def test_a_folder_that_refuses_new_files_is_refused(path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(guard.os, "open", refuse)
    with pytest.raises(InputError, match=r"cannot write .*run\.h5: Permission denied"):
        create(path)


def test_a_file_that_must_not_be_written_is_not_resumed(path, monkeypatch):
    write(path)
    real = os.open

    def refuse(place, *arguments, **options):
        if place == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(place, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(InputError, match=r"cannot write .*run\.h5: Permission"):
            TrajectoryWriter.resume(path)
    TrajectoryWriter.resume(path).close()


@pytest.mark.parametrize(
    ("header", "n_frames"),
    [
        ({}, 5),
        ({"timestep_fs": -1.0}, 5),
        ({"timestep_fs": 1.0, "x": object()}, 5),
        (HEADER, 0),
        (HEADER, 1.5),
    ],
)
def test_headers_and_counts_that_cannot_be_are_refused(path, header, n_frames):
    with pytest.raises(InputError, match=r"header|n_frames"):
        TrajectoryWriter.create(path, layout(), header, n_frames=n_frames)
    assert leftovers(path) == []
    assert not path.exists()


def test_a_link_is_followed(path, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path.symlink_to(scratch / "real.h5")
    write(path, n=2, capacity=2)
    TrajectoryWriter.resume(path, n_frames=4).close()
    assert path.is_symlink()
    assert Trajectory(path).n_frames == 2


# Full disks


def test_a_run_too_large_for_the_disk_is_refused_before_it_starts(path, monkeypatch):
    free = 20 * layout().frame_bytes
    monkeypatch.setattr(guard.shutil, "disk_usage", lambda folder: Usage(free))
    with pytest.raises(OSError, match=r"need .* GB") as caught:
        create(path, n_frames=21)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert not path.exists()
    create(path, n_frames=20).close()
    with pytest.raises(OSError, match="need"):
        TrajectoryWriter.resume(path, n_frames=21)
    TrajectoryWriter.resume(path).close()


class Usage:
    def __init__(self, free):
        self.free = free


@pytest.mark.parametrize("room", [0, 5, 100, 500, 900])
def test_a_disk_that_fills_up_costs_no_frame(path, room, monkeypatch, tmp_path):
    with create(path) as writer:
        for k in range(3):
            writer.append(frame(k))
        with monkeypatch.context() as patch:
            fill(patch, room)
            with pytest.raises(OSError, match=r"No space.*3 frames.*resume") as caught:
                writer.append(frame(3))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert Trajectory(path).n_frames == 3
    with TrajectoryWriter.resume(path) as writer:
        for k in range(3, 7):
            writer.append(frame(k))
    assert path.read_bytes() == write(tmp_path / "whole.h5").read_bytes()


def test_after_a_full_disk_the_same_writer_may_try_again(path, monkeypatch):
    with create(path) as writer:
        writer.append(frame(0))
        with monkeypatch.context() as patch:
            fill(patch, 300)
            with pytest.raises(OSError, match="No space"):
                writer.append(frame(1))
        writer.append(frame(1))
    assert same(Trajectory(path).frame(1), frame(1))


def fill(patch, room):
    """Let a disk take only so many bytes more."""
    real, left = os.pwrite, [room]

    def pwrite(file, data, place):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(file, data[: left[0]], place)
        left[0] -= done
        return done

    patch.setattr(os, "pwrite", pwrite)


def test_a_bound_on_file_sizes_is_an_error_that_names_the_file(path):
    write(path, n=3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TrajectoryWriter.resume(path) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        try:
            with pytest.raises(OSError, match="resume") as caught:
                writer.append(frame(3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert Trajectory(path).n_frames == 3


def test_a_disk_full_while_making_or_extending_leaves_the_old_file(path):
    before = write(path, n=5, capacity=5).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        for attempt in (
            lambda: create(path, force=True),
            lambda: TrajectoryWriter.resume(path, n_frames=20),
        ):
            with pytest.raises(OSError, match=r"run\.h5") as caught:
                attempt()
            assert not isinstance(caught.value, MlffError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert leftovers(path) == []


def test_a_disk_that_fails_later_is_an_error_when_closing(path, monkeypatch):
    writer = create(path)
    writer.append(frame(0))

    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        writer.close()
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    TrajectoryWriter.resume(path).close()
