"""``mlff relax``: what it writes, and what it refuses."""

import csv
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

import mlff
from mlff.cli import main
from mlff.demo import methylene
from mlff.state import read_state

RUN = ["--model", "ch2", "--fmax", "0.005", "--quiet", "--out", "run"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where four distorted molecules lie, as the working directory."""
    places = [(1.05, 100, 1), (1.15, 120, 3), (1.12, 110, 1), (1.10, 140, 3)]
    frames = [methylene(*place) for place in places]
    ase.io.write(tmp_path / "ch2.xyz", frames, format="extxyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_a_relaxation_leaves_structures_in_order_and_a_table(folder, capsys):
    assert main(["relax", "ch2.xyz", *RUN]) == 0
    out = capsys.readouterr().out
    assert Path("run/summary.txt").read_text() in out
    relaxed = ase.io.read("run/relaxed.xyz", ":")
    assert [read_state(atoms).multiplicity for atoms in relaxed] == [1, 3, 1, 3]
    assert all(atoms.info["converged"] for atoms in relaxed)
    angles = np.array([atoms.get_angle(1, 0, 2) for atoms in relaxed])
    assert angles[[0, 2]] == pytest.approx(angles[0], abs=0.3)
    assert angles[[1, 3]] == pytest.approx(angles[1], abs=0.3)
    assert angles[1] - angles[0] > 20
    potential = mlff.load("ch2")
    for atoms, row in zip(relaxed, table("run/summary.csv"), strict=True):
        assert float(row["energy_eV"]) == pytest.approx(atoms.get_potential_energy())
        assert row["converged"] == "True"
        (found,) = mlff.predict(potential, [atoms])
        # A file of eight decimals is where it was, but for them.
        fmax = np.linalg.norm(found["forces"], axis=1).max()
        assert fmax == pytest.approx(float(row["fmax_eV_per_A"]), abs=1e-4)
        assert fmax < 0.0051


def test_a_run_file_says_what_options_say(folder):
    assert main(["relax", "ch2.xyz", *RUN, "--optimizer", "fire"]) == 0
    Path("run.toml").write_text(
        'structures = ["ch2.xyz"]\nout = "other"\nmodel = "ch2"\n'
        'fmax = 0.005\noptimizer = "fire"\n'
    )
    assert main(["relax", "run.toml", "--quiet"]) == 0
    first, second = table("run/summary.csv"), table("other/summary.csv")
    assert first == second
    assert max(int(row["steps"]) for row in first) > 15  # L-BFGS takes 10


def test_what_has_not_converged_is_told_and_exits_with_1(folder, capsys):
    assert main(["relax", "ch2.xyz", *RUN, "--max-steps", "3"]) == 1
    rows = table("run/summary.csv")
    assert [row["converged"] for row in rows].count("False") >= 2
    relaxed = ase.io.read("run/relaxed.xyz", ":")
    for atoms, row in zip(relaxed, rows, strict=True):
        assert str(bool(atoms.info["converged"])) == row["converged"]
        assert bool(row["reason"]) == (row["converged"] == "False")
    assert "not converged: " in capsys.readouterr().out


def test_a_stopped_relaxation_goes_on_to_the_same_end(folder, capsys, monkeypatch):
    from mlff.relaxation.framelog import FrameLog

    assert main(["relax", "ch2.xyz", *RUN]) == 0
    whole = Path("run/relaxed.xyz").read_bytes()
    append = FrameLog.append

    def stop(self, frames):
        append(self, frames)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FrameLog, "append", stop)
        assert main(["relax", "ch2.xyz", *RUN, "--force"]) == 130
    assert "run the same command with --resume" in capsys.readouterr().err
    assert 0 < len(ase.io.read("run/finished.xyz", ":")) < 4
    assert main(["relax", "ch2.xyz", *RUN, "--resume"]) == 0
    assert Path("run/relaxed.xyz").read_bytes() == whole


def test_what_is_there_is_replaced_only_by_force(folder, capsys):
    assert main(["relax", "ch2.xyz", *RUN]) == 0
    assert main(["relax", "ch2.xyz", *RUN]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["relax", "ch2.xyz", *RUN, "--force"]) == 0
    assert len(ase.io.read("run/finished.xyz", ":")) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ch2.xyz", "--model", "ch2"), "give --out"),
        (("stateless.xyz", *RUN), "frame 0: no charge and no spin"),
        (("ch2.xyz", *RUN, "--fmax", "0"), "`fmax` must be a positive number"),
        (("ch2.xyz", *RUN, "--optimizer", "bfgs"), "['fire', 'lbfgs']"),
        (("ch2.xyz", *RUN, "--max-steps", "-1"), "`max_steps` must be an integer"),
        (("ch2.xyz", *RUN, "--max-force-eV-per-A", "0"), "`max_force_eV_per_A`"),
        (("bad.toml", *RUN), "unknown key `fmaxx`; did you mean `fmax`"),
        (("neon.xyz", *RUN), "elements ['Ne'] were not in the training data"),
    ],
)
def test_mistakes_are_told_in_one_line_before_any_step(folder, capsys, words, message):
    ase.io.write("stateless.xyz", Atoms("CHH", positions=np.eye(3)), format="extxyz")
    neon = mlff.set_state(Atoms("Ne"), charge=0, spin=1)
    ase.io.write("neon.xyz", neon, format="extxyz")
    Path("bad.toml").write_text('structures = ["ch2.xyz"]\nfmaxx = 1.0\n')
    assert main(["relax", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlff: error: ")
    assert message in line
    assert not Path("run/summary.csv").exists()
