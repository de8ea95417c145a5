"""Trajectory files that are damaged, foreign or hostile."""

import json
import random
import warnings

import h5py
import pytest
from trajectory_cases import HEADER, N_ATOMS, frame, layout, same, write

from mlff.errors import DataError, MlffWarning
from mlff.trajectory import Trajectory, TrajectoryWriter
from mlff.trajectory import file as trajectory_file


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "run.h5")


def place(path, name, row):
    """Where a row of a column begins in the file."""
    with h5py.File(path) as file:
        dataset = file[f"frames/{name}"]
        row_bytes = dataset.nbytes // len(dataset)
        return dataset.id.get_offset() + row * row_bytes


def flip(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def silently(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MlffWarning)
        return Trajectory(path)


# Frames


COLUMNS = (*layout().frame_shapes(), "checksum")


@pytest.mark.parametrize("name", COLUMNS)
def test_a_bit_that_flipped_in_a_frame_ends_the_whole_ones_there(path, name):
    flip(path, place(path, name, 4) + 1, bit=5)
    with pytest.warns(MlffWarning, match="frame 4 .* 4 whole .* 2 after it"):
        trajectory = Trajectory(path)
    assert trajectory.n_frames == 4
    assert all(same(trajectory.frame(k), frame(k)) for k in range(4))


def test_a_damaged_last_frame_is_as_one_that_was_not_finished(path):
    flip(path, place(path, "momenta", 6))
    assert Trajectory(path).n_frames == 6


def test_frames_that_changed_places_are_not_whole(path):
    # Each is whole in itself, checksum included.
    content = bytearray(path.read_bytes())
    for name in COLUMNS:
        a, b, c = (place(path, name, k) for k in (2, 3, 4))
        content[a:b], content[b:c] = content[b:c], content[a:b]
    path.write_bytes(content)
    assert silently(path).n_frames == 2


def test_checksums_that_are_gone_are_noticed(path):
    # A sector of zeros; without care the run would look as if it had not begun.
    content = bytearray(path.read_bytes())
    content[place(path, "checksum", 0) : place(path, "checksum", 10)] = bytes(80)
    path.write_bytes(content)
    with pytest.warns(MlffWarning, match="frame 0 .* 6 after it"):
        assert Trajectory(path).n_frames == 0


def test_resuming_makes_damaged_frames_again(path, tmp_path):
    flip(path, place(path, "positions", 3))
    with pytest.warns(MlffWarning, match="3 after it"):
        writer = TrajectoryWriter.resume(path)
    with writer:
        assert writer.n_frames == 3
        # Old frames that are still in the file are no longer taken for whole.
        writer.append(frame(3))
        assert Trajectory(path).n_frames == 4
        for k in range(4, 7):
            writer.append(frame(k))
    assert path.read_bytes() == write(tmp_path / "whole.h5").read_bytes()


def test_extending_leaves_damaged_frames_behind(path):
    flip(path, place(path, "heat", 3))
    with (
        pytest.warns(MlffWarning, match="3 after it"),
        TrajectoryWriter.resume(path, n_frames=20) as writer,
    ):
        assert writer.n_frames == 3
    assert Trajectory(path).n_frames == 3


def test_a_frame_cut_off_anywhere_is_not_there(path, tmp_path, monkeypatch):
    # Each prefix of what writing a frame does, write by write.
    writes = []
    real = trajectory_file.os.pwrite
    with TrajectoryWriter.resume(path) as writer:
        monkeypatch.setattr(
            trajectory_file.os,
            "pwrite",
            lambda file, data, at: writes.append((at, bytes(data))) or len(data),
        )
        writer.append(frame(7))
        monkeypatch.setattr(trajectory_file.os, "pwrite", real)
    assert len(writes) == len(COLUMNS)
    for count in range(len(writes) + 1):
        torn = bytearray(path.read_bytes())
        for at, data in writes[:count]:
            torn[at : at + len(data)] = data
        copy = tmp_path / "torn.h5"
        copy.write_bytes(torn)
        assert Trajectory(copy).n_frames == 7 + (count == len(writes))


# Everything else


def test_whatever_is_damaged_no_wrong_number_is_read(path):
    content = path.read_bytes()
    copy = path.with_name("copy.h5")
    draw = random.Random(5)
    outcomes = []
    for _ in range(300):
        damaged = bytearray(content)
        at = draw.randrange(len(content))
        kind = draw.choice(("flip", "cut", "zeros"))
        if kind == "flip":
            damaged[at] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del damaged[at:]
        else:
            damaged[at : at + 512] = bytes(len(damaged[at : at + 512]))
        copy.write_bytes(damaged)
        try:
            found = silently(copy)
        except DataError:
            outcomes.append(kind)
            continue
        assert found.header == HEADER
        assert found.layout.differences(layout()) == ()
        assert all(same(found.frame(k), frame(k)) for k in range(found.n_frames))
        outcomes.append(found.n_frames)
    # All that can happen did.
    assert {"flip", "cut", "zeros", *range(8)} <= set(outcomes)


@pytest.mark.parametrize("name", ["systems/masses", "systems/names", "systems/header"])
def test_a_bit_that_flipped_in_what_stays_is_an_error(path, name):
    with h5py.File(path) as file:
        at = file[name].id.get_offset()
    flip(path, at + 3)
    with pytest.raises(DataError, match="SHA-256"):
        Trajectory(path)
    with pytest.raises(DataError, match="SHA-256"):
        TrajectoryWriter.resume(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*a\.h5: No such file"):
        Trajectory(tmp_path / "a.h5")


@pytest.mark.parametrize("content", [b"", b"3\nCH2\n", b"\x89HDF\r\n\x1a\n" * 1000])
def test_a_foreign_file_is_an_error(tmp_path, content):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(DataError, match="not a trajectory of mlff"):
        Trajectory(tmp_path / "a.h5")


def test_foreign_hdf5_is_an_error(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames/positions"] = [[0.0]]
    with pytest.raises(DataError, match="not a trajectory of mlff"):
        Trajectory(tmp_path / "a.h5")


def test_a_newer_version_is_an_error_that_says_so(path):
    content = path.read_bytes().replace(b"mlff-trajectory 1 ", b"mlff-trajectory 2 ", 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"version 2 .* this mlff reads 1: install"):
        Trajectory(path)


HOSTILE = {
    "no systems": lambda index: index.pop("systems"),
    "a list": lambda index: index.update(systems=[1, 2]),
    "no room": lambda index: index.update(capacity=0),
    "less than no room": lambda index: index.update(capacity=-(10**9)),
    "too much room": lambda index: index.update(capacity=10**15),
    "half a frame": lambda index: index.update(capacity=1.5),
    "text": lambda index: index.update(capacity="many"),
    "outside": lambda index: index["frames"].update(positions=10**12),
    "before the file": lambda index: index["frames"].update(positions=-8),
    "no integer": lambda index: index["frames"].update(positions=10**30),
    "missing": lambda index: index["frames"].pop("momenta"),
    "huge": lambda index: index["systems"].update(masses=[0, 10**15]),
    "negative": lambda index: index["systems"].update(masses=[0, -8]),
    "far": lambda index: index["systems"].update(masses=[10**30, 8]),
    "odd": lambda index: index["systems"].update(masses=[5000, 7]),
    "deep": lambda index: index.update(systems=json.loads("[" * 900 + "]" * 900)),
}


def with_other_index(path, change):
    """Change the index and make its checksum again, as one would who means harm."""
    content = path.read_bytes()
    index = json.loads(content[:4096].split(b"\n", 1)[1])
    change(index)
    text = json.dumps(index).encode()
    places = index.get("systems")
    parts = [
        content[place : place + count]
        for place, count in (places.values() if isinstance(places, dict) else [])
        if 0 <= place < 10**18 and 0 <= count < 10**6
    ]
    digest = trajectory_file._digest(text, parts)
    head = f"mlff-trajectory 1 {digest}\n".encode() + text
    path.write_bytes(head.ljust(4096)[:4096] + content[4096:])
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_that_lies_is_an_error(path, name):
    with pytest.raises(DataError, match="damaged"):
        Trajectory(with_other_index(path, HOSTILE[name]))


def test_an_index_that_is_only_written_again_is_read(path):
    assert Trajectory(with_other_index(path, lambda index: None)).n_frames == 7
    honest = with_other_index(path, lambda index: index.update(capacity=5))
    assert Trajectory(honest).n_frames == 5


def test_the_first_bytes_are_a_line_and_json(path):
    first, text = path.read_bytes()[:4096].split(b"\n", 1)
    name, version, digest = first.split()
    assert (name, version, len(digest)) == (b"mlff-trajectory", b"1", 64)
    index = json.loads(text)
    assert index["capacity"] == 10
    with h5py.File(path) as file:
        assert file.attrs["format"] == "mlff-trajectory"
        for column, offset in index["frames"].items():
            assert file[f"frames/{column}"].id.get_offset() == offset
        assert file["frames/momenta"].shape == (10, N_ATOMS, 3)
