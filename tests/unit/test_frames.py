"""Reading files: whole frames or an error, whatever a file holds."""

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from mlff.data import label_dataset, load_dataset, read_frames
from mlff.errors import DataError, MlffWarning
from mlff.testing.labelled import labelled_frames


@pytest.fixture
def frames() -> list[Atoms]:
    return labelled_frames(40)


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz"])
def test_an_extended_xyz_file_gives_back_what_was_written(tmp_path, frames, suffix):
    path = tmp_path / f"data{suffix}"
    ase.io.write(path, frames, format="extxyz")
    data = load_dataset(path)
    expected = label_dataset(frames)
    np.testing.assert_allclose(data.forces, expected.forces, rtol=0, atol=1e-8)
    np.testing.assert_allclose(data.energy, expected.energy, rtol=0, atol=1e-8)
    assert torch.equal(data.batch.charge, expected.batch.charge)
    assert data.names[3] == f"data{suffix}, frame 3"


def test_calculator_results_are_read_without_the_constraints(tmp_path, frames):
    expected = label_dataset(frames)
    for atoms in frames:
        energy, forces = atoms.info.pop("REF_energy"), atoms.arrays.pop("REF_forces")
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        atoms.set_constraint(FixAtoms([0, 1]))
    path = tmp_path / "data.traj"
    ase.io.write(path, frames)
    data = load_dataset(path)
    assert torch.equal(data.forces, expected.forces)
    assert torch.equal(data.energy, expected.energy)


@pytest.mark.parametrize("suffix", [".db", ".json"])
def test_a_database_with_the_keys_of_the_cmret_sets_is_read(tmp_path, frames, suffix):
    path = tmp_path / f"ch2{suffix}"
    with ase.db.connect(path) as database:
        for atoms in frames:
            content = {
                "E": np.array([atoms.info["REF_energy"]]),
                "F": atoms.arrays["REF_forces"],
                "Q": atoms.info["charge"],
                "S": (atoms.info["spin"] - 1) / 2,
            }
            database.write(Atoms(atoms.numbers, atoms.positions), data=content)
    data, expected = load_dataset(path), label_dataset(frames)
    np.testing.assert_allclose(data.energy, expected.energy, rtol=0, atol=1e-9)
    np.testing.assert_allclose(data.forces, expected.forces, rtol=0, atol=1e-9)
    assert torch.equal(data.batch.multiplicity, expected.batch.multiplicity)


def test_several_files_are_one_data_set(tmp_path, frames):
    ase.io.write(tmp_path / "a.xyz", frames[:15], format="extxyz")
    ase.io.write(tmp_path / "b.xyz", frames[15:], format="extxyz")
    data = load_dataset([tmp_path / "a.xyz", tmp_path / "b.xyz"])
    assert len(data) == 40
    assert data.names[15] == "b.xyz, frame 0"


def test_a_file_cut_at_any_byte_of_its_last_frame_gives_every_whole_frame(tmp_path):
    """A number that was cut must never be read as another number."""
    original = Atoms("CH", [[0.0, 0.0, 0.0], [1.12345678, -2.5, 11.0]])
    path = tmp_path / "data.xyz"
    ase.io.write(path, [original] * 3, format="extxyz")
    content = path.read_bytes()
    start = len(content) * 2 // 3
    for end in range(start + 1, len(content)):
        path.write_bytes(content[:end])
        with pytest.warns(MlffWarning, match="2 whole frames kept, 1 dropped"):
            found = read_frames(path)
        assert len(found) == 2
        assert all(np.array_equal(a.positions, original.positions) for a in found)
    path.write_bytes(content[:start])
    assert len(read_frames(path)) == 2


def test_a_torn_trajectory_gives_its_whole_frames_and_their_count(tmp_path, frames):
    path = tmp_path / "data.traj"
    ase.io.write(path, frames)
    whole = path.read_bytes()
    for part in (0.2, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.warns(MlffWarning) as caught:
            found = read_frames(path)
        counts = f"{len(found)} whole frames kept, {40 - len(found)} dropped"
        assert counts in str(caught[0].message)
        assert 40 * part - 6 < len(found) <= 40 * part
        for atoms, original in zip(found, frames, strict=False):
            assert np.array_equal(atoms.positions, original.positions)


def test_blank_lines_between_frames_lose_nothing(tmp_path, frames):
    path = tmp_path / "data.xyz"
    ase.io.write(path, frames[:4], format="extxyz")
    text = path.read_text()
    path.write_text(text + "\n\n" + text + "\n")
    assert len(read_frames(path)) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1000000000\nProperties=species:S:1:pos:R:3\n", "at most 1000000"),
        (b"two\nx\n", "starts with its number of atoms, .*'two'"),
        (b"2\n" + b"x" * 2**21 + b"\n", "line 2: longer than"),
        (b"9" * 2**21 + b"\n", "line 1: longer than"),
        (b"1\nProperties=species:S:1:pos:R:3\nH 0 0 zero\n", r"frame 0 \(line 1\)"),
        (b"1\nProperties=species:S:1:pos:R:3\nH 0 0\n", r"frame 0 \(line 1\)"),
        (b"1\n\xff\xfe\nH 0 0 0\n", "not text"),
    ],
)
def test_a_hostile_or_broken_frame_is_an_error_that_names_its_line(
    tmp_path, content, message
):
    path = tmp_path / "data.xyz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_frames(path)


def test_only_listed_formats_are_read_whatever_the_content(tmp_path, frames):
    path = tmp_path / "data.pkl"
    ase.io.write(path, frames, format="extxyz")
    with pytest.raises(DataError, match="`format` must be one of"):
        read_frames(path)
    assert len(read_frames(path, format="extxyz")) == 40
    with pytest.raises(DataError, match="`format` must be one of"):
        read_frames(path, format="vasp")


@pytest.mark.parametrize("suffix", [".traj", ".db", ".json"])
def test_a_file_of_another_kind_is_a_clear_error(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match="not a whole ASE"):
        read_frames(path)


def test_a_missing_file_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_dataset(tmp_path / "absent.xyz")
