"""Trajectories as files for other programs."""

import ase.io
import numpy as np
import pytest
from ase.constraints import FixAtoms
from trajectory_cases import HEADER, SYSTEMS, frame, layout, write

import mlff.trajectory as module
from mlff.errors import InputError
from mlff.frames import read_frames
from mlff.state import read_state
from mlff.trajectory import Trajectory, TrajectoryWriter


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    return Trajectory(write(tmp_path_factory.mktemp("trajectory") / "run.h5"))


NAMES = ["0_CH2", "1_HO", "2_CH2", "3_Fe", "4_CH4"]


@pytest.mark.parametrize(("format", "suffix"), [("extxyz", "xyz"), ("traj", "traj")])
def test_every_system_gets_a_file_that_other_programs_read(
    trajectory, tmp_path, format, suffix
):
    files = trajectory.export(tmp_path / "out", format)
    assert [f.name for f in files] == [f"{name}.{suffix}" for name in NAMES]
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    for system, file in enumerate(files):
        for frames in (ase.io.read(file, ":"), read_frames(file)):
            assert len(frames) == 7
            for found, expected in zip(frames, trajectory[system], strict=True):
                check_equal(found, expected, 0 if format == "traj" else 1e-10)


def check_equal(found, expected, tolerance):
    assert found.numbers.tolist() == expected.numbers.tolist()
    for read in (
        lambda a: a.positions,
        lambda a: a.get_momenta(),
        lambda a: a.get_masses(),
    ):
        assert read(found) == pytest.approx(read(expected), abs=tolerance, rel=0)
    assert np.array_equal(found.cell.array, expected.cell.array)
    assert np.array_equal(found.pbc, expected.pbc)
    assert found.get_potential_energy() == expected.get_potential_energy()
    assert found.calc.results.keys() == {"energy", "free_energy"}
    assert read_state(found) == read_state(expected)
    for key, kind in {
        "charge": int,
        "spin": int,
        "step": int,
        "time_fs": float,
    }.items():
        assert found.info[key] == expected.info[key]
        assert isinstance(found.info[key], (kind, np.integer, np.floating))
    assert isinstance(found.info["charge"], (int, np.integer))
    fixed = [c.index.tolist() for c in found.constraints if isinstance(c, FixAtoms)]
    assert fixed == [c.index.tolist() for c in expected.constraints]


def test_extended_xyz_without_cell_momenta_of_one_atom_and_usual_masses(tmp_path):
    atoms = module.Atoms(np.concatenate(SYSTEMS))
    path = write(
        tmp_path / "run.h5",
        variable_cell=False,
        cell=np.zeros((5, 3, 3)),
        pbc=np.zeros((5, 3), bool),
        masses=atoms.get_masses(),
        mobile=np.ones(len(atoms), bool),
    )
    (file,) = Trajectory(path).export(tmp_path / "iron.xyz", systems=3)
    head = file.read_text().splitlines()[:3]
    assert head[0] == "1"
    assert "Lattice" not in head[1]
    assert "Properties=species:S:1:pos:R:3:momenta:R:3 " in head[1]
    assert head[2].split()[0] == "Fe"
    (found, *_) = ase.io.read(file, ":")
    assert not found.pbc.any()
    assert not found.has("masses")


def test_a_file_is_chosen_by_its_suffix(trajectory, tmp_path):
    for name, system in (("a.traj", 1), ("b.extxyz", -1)):
        (file,) = trajectory.export(tmp_path / name, systems=system)
        assert file == tmp_path / name
        found = read_frames(file)[-1]
        assert found.numbers.tolist() == SYSTEMS[system]


def test_systems_are_exported_in_the_order_asked_for(trajectory, tmp_path):
    files = trajectory.export(tmp_path, systems=[3, 0, 3])
    assert [f.name for f in files] == ["3_Fe.xyz", "0_CH2.xyz"]


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("all.xyz", {}, "one file, but 5"),
        ("a.xyz", {"format": "traj", "systems": 0}, "format"),
        ("out", {"format": "pdb"}, "format"),
        ("out", {"systems": 5}, "systems"),
        ("out", {"systems": [0.5]}, "integer"),
    ],
)
def test_what_cannot_be_exported_is_refused(trajectory, tmp_path, name, options, text):
    with pytest.raises((InputError, TypeError), match=text):
        trajectory.export(tmp_path / name, **options)
    assert not (tmp_path / name).is_file()


def test_existing_files_are_replaced_only_by_force(trajectory, tmp_path):
    (tmp_path / "4_CH4.xyz").write_text("mine")
    with pytest.raises(InputError, match=r"4_CH4\.xyz exists"):
        trajectory.export(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["4_CH4.xyz"]
    assert (tmp_path / "4_CH4.xyz").read_text() == "mine"
    trajectory.export(tmp_path, force=True)
    assert len(read_frames(tmp_path / "4_CH4.xyz")) == 7


def test_a_place_that_is_a_file_is_refused(trajectory, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot make folder"):
        trajectory.export(tmp_path / "taken")


def test_frames_of_stopped_systems_are_left_out(tmp_path):
    def stopped(k):
        status = np.array([0, 0, 2 * (k > 3), 1, 0], np.int8)
        return frame(k, status=status, energy=np.full(5, np.nan if k > 3 else -1.0))

    trajectory = Trajectory(write(tmp_path / "run.h5", frame=stopped))
    files = trajectory.export(tmp_path / "out", systems=[2, 3])
    assert [f.name for f in files] == ["2_CH2.xyz"]
    assert [a.info["step"] for a in read_frames(files[0])] == [0, 4, 8, 12]


def test_a_failed_export_leaves_the_old_file_and_nothing_else(
    trajectory, tmp_path, monkeypatch
):
    (tmp_path / "0_CH2.xyz").write_text("mine")

    def tear(path, template, pieces):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(module.WRITERS, "extxyz", tear)
    with pytest.raises(OSError, match=r"No space.*0_CH2\.xyz"):
        trajectory.export(tmp_path, force=True)
    assert [f.name for f in tmp_path.iterdir()] == ["0_CH2.xyz"]
    assert (tmp_path / "0_CH2.xyz").read_text() == "mine"


def test_names_of_files_come_from_index_and_formula_alone(tmp_path):
    names = ["../../etc/x", "/abs", "a\0b", "", "x" * 5000]
    trajectory = Trajectory(write(tmp_path / "run.h5", names=names))
    assert trajectory.names == tuple(names)
    files = trajectory.export(tmp_path / "out")
    assert [f.name for f in files] == [f"{name}.xyz" for name in NAMES]


def test_indices_are_padded_so_that_files_sort(tmp_path):
    n = 12
    many = layout(
        numbers=np.ones(2 * n, int),
        ptr=2 * np.arange(n + 1),
        masses=np.ones(2 * n),
        mobile=np.ones(2 * n, bool),
        cell=np.zeros((n, 3, 3)),
        pbc=np.zeros((n, 3), bool),
        charge=np.zeros(n, int),
        multiplicity=np.ones(n, int),
        dof=np.ones(n),
        seed=np.zeros(n, int),
        names=list("abcdefghijkl"),
    )
    path = tmp_path / "run.h5"
    with TrajectoryWriter.create(path, many, HEADER, n_frames=2) as writer:
        writer.append(frame(0, many))
    files = Trajectory(path).export(tmp_path / "out", systems=[2, 11])
    assert [f.name for f in files] == ["02_H2.xyz", "11_H2.xyz"]


def test_long_systems_are_exported_piece_by_piece(trajectory, tmp_path, monkeypatch):
    (whole,) = trajectory.export(tmp_path / "a.xyz", systems=4)
    monkeypatch.setattr(module, "_PIECE", 500)
    (pieces,) = trajectory.export(tmp_path / "b.xyz", systems=4)
    assert whole.read_bytes() == pieces.read_bytes()
    assert len(list(trajectory._pieces(4, 7))) == 4
