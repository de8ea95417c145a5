"""``mlff scan``: what it writes, and what it refuses."""

import csv
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from matplotlib.image import imread

import mlff
from mlff.cli import main
from mlff.demo import methylene
from mlff.report.scans import Reference, axis_label, scan_table, state_name
from mlff.scanning import Axis, ScanOptions, scan

ANGLE = ["--coordinate", "angle 1 0 2 90 150 7"]
BONDS = ["--coordinate", "bond 0 1 + bond 0 2 1.0 1.25 3"]
RUN = ["--model", "ch2", "--states", "0,1 0,3", "--quiet", "--out", "out"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where a molecule without a state lies, as the working directory."""
    plain = methylene(1.1, 100, 1)
    plain = Atoms(plain.numbers, plain.positions)
    ase.io.write(tmp_path / "ch2.xyz", plain, format="xyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def refused(capsys, *told: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("mlff: error: ")
    for text in told:
        assert text in error


def test_a_scan_leaves_a_table_points_settings_and_a_picture(folder, capsys):
    assert main(["scan", "ch2.xyz", *ANGLE, *RUN]) == 0
    out = capsys.readouterr().out
    assert "angle 1-0-2, 90 to 150 degrees, 7 points" in out
    assert Path("out/summary.txt").read_text() in out
    assert "singlet (0, 1)  7 of 7" in out
    assert "crossing at " in out
    rows = table("out/surface.csv")
    assert [float(row["angle_1_0_2_degrees"]) for row in rows] == [
        *(90, 100, 110, 120, 130, 140, 150)
    ]
    found = ase.io.read("out/points.xyz", ":")
    assert len(found) == 14
    for atoms, row in zip(found, rows * 2, strict=True):
        state = f"{atoms.info['charge']}_{atoms.info['spin']}"
        energy = float(row[f"energy_{state}_eV"])
        assert atoms.get_potential_energy() == pytest.approx(energy)
    settings = json.loads(Path("out/scan.json").read_text())
    assert settings["scan"]["coordinates"] == [ANGLE[1]]
    assert settings["scan"]["states"] == [[0, 1], [0, 3]]
    assert settings["versions"]["mlff"] == mlff.__version__
    assert Path("out/surface.png").stat().st_size > 10_000
    assert not Path("out/reference.csv").exists()


def test_two_coordinates_make_a_map_and_three_a_table(folder, capsys):
    assert main(["scan", "ch2.xyz", *ANGLE, *BONDS, *RUN]) == 0
    assert len(table("out/surface.csv")) == 21
    assert Path("out/surface.png").exists()
    assert "lowest crossing at " in capsys.readouterr().out
    spec = ["angle 1 0 2 95 110 2", "bond 0 1 1.0 1.1 2", "bond 0 2 1.0 1.1 3"]
    axes = [word for text in spec for word in ("--coordinate", text)]
    assert main(["scan", "ch2.xyz", *axes, *RUN, "--force"]) == 0
    assert len(table("out/surface.csv")) == 12
    assert not Path("out/surface.png").exists()


def test_a_run_file_says_what_options_say(folder):
    options = ["--relax", "--fmax", "0.002", "--dtype", "float64"]
    assert main(["scan", "ch2.xyz", *ANGLE, *RUN, *options]) == 0
    Path("run.toml").write_text(
        f'structures = "ch2.xyz"\nout = "other"\nmodel = "ch2"\nstates = "0,1 0,3"\n'
        f'coordinates = ["{ANGLE[1]}"]\nrelax = true\nfmax = 0.002\n'
        'dtype = "float64"\n'
    )
    assert main(["scan", "run.toml", "--quiet"]) == 0
    assert table("out/surface.csv") == table("other/surface.csv")
    rigid = [*ANGLE, *RUN[:-1], "rigid", "--dtype", "float64"]
    assert main(["scan", "ch2.xyz", *rigid]) == 0
    lower = [
        float(relaxed["energy_0_1_eV"]) < float(stiff["energy_0_1_eV"])
        for relaxed, stiff in zip(
            table("out/surface.csv"), table("rigid/surface.csv"), strict=True
        )
    ]
    assert all(lower)


def test_a_folder_is_not_overwritten_but_gone_on_with(folder, capsys):
    assert main(["scan", "ch2.xyz", *ANGLE, *RUN, "--relax"]) == 0
    before = table("out/surface.csv")
    capsys.readouterr()
    assert main(["scan", "ch2.xyz", *ANGLE, *RUN, "--relax"]) == 2
    refused(capsys, "out/scan.json exists", "--resume", "--force")
    again = ["scan", "ch2.xyz", *ANGLE, *RUN, "--relax", "--resume"]
    assert main(again) == 0
    for row, old in zip(table("out/surface.csv"), before, strict=True):
        energy, expected = float(row["energy_0_3_eV"]), float(old["energy_0_3_eV"])
        assert energy == pytest.approx(expected, abs=1e-4)
    capsys.readouterr()
    assert main([*again, "--fmax", "0.1"]) == 2
    refused(capsys, "other settings", "fmax: 0.01 → 0.1")
    for damaged in ("{", "[]", '{"scan": 5}'):
        Path("out/scan.json").write_text(damaged)
        assert main(again) == 2
        refused(capsys, "damaged", "--force")
    assert main(["scan", "ch2.xyz", *ANGLE, *RUN, "--force"]) == 0
    assert not Path("out/relaxed.xyz").exists()


def test_a_stopped_scan_that_replaces_another_goes_on(folder, monkeypatch):
    from mlff.relaxation.framelog import FrameLog

    relaxed = ["scan", "ch2.xyz", *RUN, "--relax"]
    assert main([*relaxed, *BONDS]) == 0

    def stops(log, frames):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FrameLog, "append", stops)
        assert main([*relaxed, *ANGLE, "--force"]) == 130
    assert main([*relaxed, *ANGLE, "--resume"]) == 0
    assert len(table("out/surface.csv")) == 7


@pytest.mark.filterwarnings("ignore::mlff.errors.MlffWarning")
def test_many_states_have_lines_of_their_own(folder):
    axis = ["--coordinate", "angle 1 0 2 100 120 3"]
    states = ["--states", "0,1 0,3 0,5 1,2 1,4 -1,2 -1,4 2,1"]
    assert main(["scan", "ch2.xyz", *axis, *RUN, *states]) == 0
    assert len(imread("out/surface.png"))
    unseen = json.loads(Path("out/scan.json").read_text())["unseen_in_training"]
    assert len(unseen) == 6


def test_a_stopped_relaxed_scan_says_how_to_go_on(folder, capsys, monkeypatch):
    from mlff.relaxation.framelog import FrameLog

    append = FrameLog.append

    def stops(log, frames):
        append(log, frames)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FrameLog, "append", stops)
        assert main(["scan", "ch2.xyz", *ANGLE, *RUN, "--relax"]) == 130
    assert "--resume" in capsys.readouterr().err
    kept = len(ase.io.read("out/relaxed.xyz", ":"))
    assert 0 < kept <= 14
    assert main(["scan", "ch2.xyz", *ANGLE, *RUN, "--relax"]) == 2
    refused(capsys, "out/relaxed.xyz exists")
    assert main(["scan", "ch2.xyz", *ANGLE, *RUN, "--relax", "--resume"]) == 0
    assert len(table("out/surface.csv")) == 7


def test_points_without_a_result_are_told_and_exit_with_1(folder, capsys):
    options = ["--relax", "--max-steps", "1", "--fmax", "0.0001"]
    assert main(["scan", "ch2.xyz", *ANGLE, *RUN, *options]) == 1
    out = capsys.readouterr().out
    assert "points: not converged in 1 steps" in out
    rows = table("out/surface.csv")
    lost = [row for row in rows if row["converged_0_1"] == "False"]
    assert lost
    assert all(row["remark_0_1"] == "not converged in 1 steps" for row in lost)
    assert all(row["energy_0_1_eV"] for row in lost)
    assert all(row["gap_0_1_minus_0_3_eV"] == "" for row in lost)
    assert Path("out/surface.png").exists()


def test_what_lies_outside_the_region_of_training_is_told(folder, capsys):
    axis = ["--coordinate", "angle 1 0 2 120 180 4"]
    assert main(["scan", "ch2.xyz", *axis, *RUN]) == 0
    assert "4 of 8 are outside the region seen in training" in capsys.readouterr().out
    rows = table("out/surface.csv")
    assert [row["outside_0_1"] for row in rows] == ["False"] * 2 + ["True"] * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --coordinate, or `coordinates`"),
        (["--coordinate", "angle 1 0 3 90 120 3"], "no atom 3"),
        (["--coordinate", "bond 0 1 1.0 1.2"], "number of points"),
        ([*ANGLE, "--xc", "pbe"], "ask for some with `dft`"),
        ([*ANGLE, "--dft", "1"], "at least 2 points"),
        ([*ANGLE, "--dft", "2", "--xc", "nonsense"], "nonsense"),
        ([*ANGLE, "--states", "0,2"], "does not fit 8 electrons"),
        ([*ANGLE, "--optimizer", "bfgs", "--relax"], "must be one of"),
        ([*ANGLE, "--fmax", "0.1"], "`fmax` is of a relaxed scan"),
        ([*ANGLE, "--workers", "2"], "`workers` is of DFT points"),
        ([*ANGLE, "--out", "no/where"], "no folder"),
        ([*ANGLE, "--out", ""], "--out is empty"),
    ],
)
def test_what_cannot_be_scanned_is_refused_and_leaves_nothing(
    folder, capsys, arguments, told
):
    assert main(["scan", "ch2.xyz", *RUN, *arguments]) == 2
    refused(capsys, told)
    assert not list(folder.glob("out/*"))


def test_files_of_none_or_many_molecules_are_refused(folder, capsys):
    frames = [methylene(1.1, angle, 1) for angle in (100, 110, 120, 130)]
    ase.io.write("many.xyz", frames, format="extxyz")
    assert main(["scan", "many.xyz", *ANGLE, *RUN]) == 2
    refused(capsys, "many.xyz holds 4 structures")
    alone = [word for word in RUN if word not in ("--states", "0,1 0,3")]
    assert main(["scan", "ch2.xyz", *ANGLE, *alone]) == 2
    refused(capsys, "no charge and no spin", "pass --states")
    ase.io.write("one.xyz", frames[0], format="extxyz")
    assert main(["scan", "one.xyz", *ANGLE, *alone]) == 0
    assert "energy_0_1_eV" in table("out/surface.csv")[0]


def test_relaxations_hold_what_the_command_names(folder):
    frames = [methylene(1.2, angle, 3) for angle in (100, 110, 120, 150)]
    ase.io.write("many.xyz", frames, format="extxyz")
    run = ["relax", "many.xyz", "--model", "ch2", "--quiet", "--out", "relaxed"]
    assert main([*run, "--hold", "angle 1 0 2"]) == 0
    for atoms, angle in zip(
        ase.io.read("relaxed/relaxed.xyz", ":"), (100, 110, 120, 150), strict=True
    ):
        assert atoms.get_angle(1, 0, 2) == pytest.approx(angle, abs=1e-4)
        assert atoms.get_distance(0, 1) < 1.15


@pytest.mark.pyscf
def test_dft_points_lie_beside_the_model(folder, capsys):
    pytest.importorskip("pyscf")
    dft = ["--dft", "2", "--xc", "hf", "--basis", "sto-3g", "--reference", "auto"]
    axis = ["--coordinate", "angle 1 0 2 100 140 5"]
    only = ["--model", "ch2", "--states", "0,3", "--quiet", "--out", "out"]
    assert main(["scan", "ch2.xyz", *axis, *only, *dft]) == 0
    out = capsys.readouterr().out
    # Another level of theory: its zero is moved to the model's at the lower point.
    assert "against hf/sto-3g at 2 points, its zero shifted" in out
    rows = table("out/reference.csv")
    assert [float(row["angle_1_0_2_degrees"]) for row in rows] == [100, 140]
    off = [float(row["model_minus_reference_eV"]) for row in rows]
    lower = np.argmin([float(row["model_eV"]) for row in rows])
    assert off[lower] == pytest.approx(0.0, abs=1e-9)
    assert abs(off[1 - lower]) > 1e-3
    labels = ase.io.read("out/dft.xyz", ":")
    assert {atoms.info["level_of_theory"] for atoms in labels} == {"UKS-hf/sto-3g"}
    # Nothing is computed twice.
    again = ["scan", "ch2.xyz", *axis, *only, *dft, "--resume"]
    assert main(again) == 0
    assert table("out/reference.csv") == rows


# What the report says


def test_states_and_axes_have_names():
    assert state_name((0, 1)) == "singlet (0, 1)"
    assert state_name((1, 2)) == "doublet (+1, 2)"
    assert state_name((-1, 9)) == "multiplicity 9 (-1, 9)"
    symbols = ["C", "H", "H"]
    assert axis_label(Axis.of("angle 1 0 2 90 180 3"), symbols) == (
        "angle H1–C0–H2, degrees"
    )
    both = Axis.of("bond 0 1 + bond 0 2 1 2 3")
    assert axis_label(both, symbols) == "bonds C0–H1 and C0–H2, Å"
    apart = Axis.of("bond 0 1 1 2 3 + angle 1 0 2 90 120 3")
    assert axis_label(apart, symbols) == "bond C0–H1, Å, with H1–C0–H2"


def test_errors_against_a_reference_are_told_by_region():
    surface = scan(
        methylene(1.1, 100, 1),
        mlff.load("ch2"),
        ["angle 1 0 2 120 180 4"],
        [(0, 1), (0, 3)],
        options=ScanOptions(progress=False),
    )
    off = np.array([[0.001, 0.003, 0.1, 0.2], [0.0, np.nan, np.nan, -0.4]])
    reference = Reference("some/level", surface.energies - off, True)
    told = scan_table(surface, reference)
    assert "against some/level at 6 points:" in told
    inside = "singlet (0, 1), in the region seen in training, 2 points: MAE 2.00 meV"
    assert inside in told
    assert "singlet (0, 1), outside, 2 points: MAE 150.00 meV, largest 200.00" in told
    assert "triplet (0, 3), outside, 1 points: MAE 400.00 meV" in told
    far = Reference("other/level", reference.energies - 123.0, False)
    np.testing.assert_allclose(
        far.shifted(surface)[0, 1:] - far.shifted(surface)[0, 0],
        np.diff(surface.energies[0] - off[0]).cumsum(),
        atol=1e-9,
    )
