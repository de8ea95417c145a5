"""The file of finished frames: whole or cut off, never torn, never another's."""

import errno
import fcntl
import os

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.constraints import FixAtoms

from mlff.errors import InputError
from mlff.relaxation.framelog import FrameLog, check_frame


def frames():
    out = []
    for index, name in enumerate(("H2O", "CH4", "C2H6", "H2")):
        atoms = molecule(name)
        atoms.info.update(index=index, text='a = b, "c"')
        out.append(atoms)
    out[1].set_constraint(FixAtoms([2]))
    return out


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.numbers, other.numbers)
        assert np.abs(one.positions - other.positions).max() < 1e-8
        assert one.info == other.info
        assert len(one.constraints) == len(other.constraints)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.xyz"


def test_what_was_appended_is_there_for_everyone_and_for_the_next_run(path):
    with FrameLog(path) as log:
        assert log.frames == []
        log.append(frames()[:1])
        same(ase.io.read(path, index=":"), frames()[:1])
        log.append(frames()[1:3])
    with FrameLog(path, resume=True) as log:
        same(log.frames, frames()[:3])
        log.append(frames()[3:])
    same(ase.io.read(path, index=":"), frames())


def test_wherever_a_kill_cut_the_file_only_whole_frames_remain(path):
    with FrameLog(path) as log:
        log.append(frames())
    content = path.read_bytes()
    ends = np.cumsum([len(b"".join(part)) for part in parts(content)])
    last = range(ends[-2], len(content) + 1)
    for cut in (*range(0, ends[-2], 17), *ends, *last):
        path.write_bytes(content[:cut])
        whole = int((ends <= cut).sum())
        with FrameLog(path, resume=True) as log:
            assert len(log.frames) == whole
            assert path.read_bytes() == content[:cut]  # only looked at so far
            log.begin()
            assert path.stat().st_size == (ends[whole - 1] if whole else 0)
            log.append(frames()[whole:])
        assert path.read_bytes() == content


def parts(content):
    """Lines of each frame."""
    lines = content.splitlines(keepends=True)
    while lines:
        n = int(lines[0]) + 2
        yield lines[:n]
        lines = lines[n:]


def test_a_file_that_is_there_is_not_touched_unless_told_what_to_do(path):
    path.write_text("1\n\nH 0 0 0\n")
    with pytest.raises(InputError, match="exists"):
        FrameLog(path)
    assert path.read_text() == "1\n\nH 0 0 0\n"
    with FrameLog(path, overwrite=True) as log:
        log.append(frames())
    same(ase.io.read(path, index=":"), frames())


@pytest.mark.parametrize("content", ["precious\n", "2\nH 0 0 0\nx", "\n\n", "-1\n\n"])
def test_what_is_no_extended_xyz_is_not_cut(path, content):
    path.write_text(content)
    if content[0] == "2":
        with FrameLog(path, resume=True) as log:
            assert log.frames == []
        return
    with pytest.raises(InputError, match="not extended XYZ"):
        FrameLog(path, resume=True)
    assert path.read_text() == content


def test_a_file_in_use_by_another_run_is_refused(path):
    with FrameLog(path) as log:
        log.append(frames()[:1])
        for options in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(InputError, match="in use by another run"):
                FrameLog(path, **options)
        log.append(frames()[1:])
    with path.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    same(ase.io.read(path, index=":"), frames())


def test_places_that_cannot_be_written_are_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        FrameLog(tmp_path / "absent" / "log.xyz")
    with pytest.raises(InputError, match=r"must end in \.xyz"):
        FrameLog(tmp_path / "log.traj")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_frames_before_it(path, monkeypatch):
    with FrameLog(path) as log:
        log.append(frames()[:2])
        whole = path.read_bytes()

        def full(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="what was finished before is safe"):
            log.append(frames()[2:])
        monkeypatch.undo()
        assert path.read_bytes() == whole
        log.append(frames()[2:])
    same(ase.io.read(path, index=":"), frames())


def test_a_frame_that_cannot_be_written_is_found_before_it_is_time(path):
    with FrameLog(path):
        atoms = frames()[1]
        check_frame(atoms, "system 7")
        atoms.set_array("odd", np.ones((5, 2, 2)))
        with pytest.raises(InputError, match="system 7: extended XYZ cannot hold"):
            check_frame(atoms, "system 7")
        assert path.stat().st_size == 0
