"""``mlff crossing``: what it writes, and what it refuses."""

import json
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.build import molecule
from crossing_cases import BOTH, SINGLET, TRIPLET, Pairs, distances, methylene, well

import mlff
from mlff.cli import main
from mlff.report.crossing import crossing_table

RUN = ["crossing", "ch2.xyz", "--states", "0,1 0,3", "--out", "out", "--quiet"]
HELD = ["--fix", "bond 0 1 1.00", "--fix", "bond 0 2 1.00"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Methylene without a state, as the working directory."""
    ase.io.write(tmp_path / "ch2.xyz", methylene(1.1, 1.1, 120.0), format="extxyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content():
    return json.loads(Path("out/crossing.json").read_text())


def test_a_crossing_is_told_drawn_and_written(folder, capsys):
    assert main([*RUN, "--model", "ch2", *HELD]) == 0
    out = capsys.readouterr().out
    assert Path("out/crossing.txt").read_text() in out
    assert "angle H1–C0–H2, degrees" in out
    assert "above its minimum" in out
    found = ase.io.read("out/crossing.xyz")
    assert found.get_distance(0, 1) == pytest.approx(1.0, abs=1e-6)
    assert found.get_angle(1, 0, 2) == pytest.approx(94.96, abs=0.05)
    written = content()
    assert written["converged"]
    assert abs(written["gap_eV"]) < 1e-4
    assert written["states"] == [[0, 1], [0, 3]]
    assert len(written["minima"]) == 2
    assert Path("out/crossing.png").read_bytes()[:4] == b"\x89PNG"
    assert not Path("out/crossing_dft.xyz").exists()


def test_options_reach_the_search(folder, monkeypatch):
    asked = {}
    whole = mlff.find_crossing

    def find_crossing(atoms, source, states, constraints, **options):
        asked.update(options, states=states, constraints=constraints)
        return whole(atoms, source, states, constraints, **options)

    monkeypatch.setattr("mlff.crossing.find_crossing", find_crossing)
    options = ["--fmax", "0.01", "--gap-eV", "0.001", "--max-steps", "30"]
    options += ["--rattle-A", "0", "--no-minima", "--fix", "bond 0 1"]
    assert main([*RUN, "--model", "ch2", *options]) == 0
    assert asked["fmax"] == 0.01
    assert asked["max_steps"] == 30
    assert asked["options"] == mlff.CrossingOptions(
        gap_eV=0.001, rattle_A=0.0, minima=False, progress=False
    )
    assert asked["constraints"] == ["bond 0 1"]
    assert asked["states"] == [[0, 1], [0, 3]]
    assert content()["minima"] == []


def test_states_that_do_not_cross_end_with_one(folder, capsys):
    held = [*HELD, "--fix", "angle 1 0 2 120"]
    assert main([*RUN, "--model", "ch2", *held]) == 1
    assert "no crossing found" in capsys.readouterr().out
    written = content()
    assert not written["converged"]
    assert "do not cross" in written["reason"]
    assert written["smallest_gap_eV"] > 0.1


def test_nothing_is_replaced_unless_told_to(folder, capsys):
    command = [*RUN, "--model", "ch2", "--no-minima"]
    assert main(command) == 0
    old = Path("out/crossing_dft.xyz")
    old.write_text("of a command with DFT")
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert not old.exists()


@pytest.mark.slow
@pytest.mark.pyscf
def test_dft_stands_beside_the_model(folder, capsys):
    pytest.importorskip("pyscf")
    level = ["--xc", "hf", "--basis", "sto-3g"]
    command = [*RUN, "--model", "ch2", "--no-minima", "--dft-check", "--dft", *level]
    assert main([*command, "--fmax", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "DFT, hf/sto-3g" in out
    assert "crossing by" in out
    written = content()
    # Another level: the point of the model is not one of its crossings.
    assert abs(written["dft_check"]["gap_eV"]) > 0.1
    assert written["dft_check"]["positions_A"] == written["positions_A"]
    assert abs(written["dft_crossing"]["gap_eV"]) < 1e-4
    own = ase.io.read("out/crossing_dft.xyz")
    assert own.get_angle(1, 0, 2) != pytest.approx(99.9, abs=0.5)


@pytest.mark.pyscf
def test_dft_alone_needs_no_model(folder, capsys):
    pytest.importorskip("pyscf")
    ase.io.write("ch2.xyz", Atoms("NH", [[0, 0, 0], [0, 0, 1.1]]), format="extxyz")
    level = ["--xc", "hf", "--basis", "sto-3g", "--states", "0,3 1,2"]
    assert main([*RUN, "--dft", *level, "--no-minima", "--max-steps", "3"]) == 1
    assert "bond N0–H1, Å" in capsys.readouterr().out
    assert content()["states"] == [[0, 3], [1, 2]]
    assert Path("out/crossing.png").exists()


def test_mistakes_end_with_one_line(folder, capsys):
    def refused(*arguments):
        assert main([*RUN, *arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    model = ("--model", "ch2")
    assert "give --model, or --dft" in refused()
    assert "only with --model" in refused("--dft", "--dft-check")
    assert "--basis: only with --dft" in refused(*model, "--basis", "sto-3g")
    assert "two different" in refused(*model, "--states", "0,1 0,1")
    assert "does not fit" in refused(*model, "--states", "0,1 0,2")
    assert "bond, angle, dihedral" in refused(*model, "--fix", "stretch 0 1 1")
    assert "`fmax`" in refused(*model, "--fmax", "0")
    assert "`gap_eV`" in refused(*model, "--gap-eV", "-1")
    assert "no functions for" in refused(*model, "--dft", "--basis", "nonsense")
    assert "no folder" in refused(*model, "--out", "a/b")
    ase.io.write("ch2.xyz", [methylene(), methylene()], format="extxyz")
    assert "holds 2 frames" in refused(*model)
    with pytest.raises(SystemExit):
        refused(*model, "--states", "0,1,3")
    assert "charge,multiplicity pairs" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_model_that_forgot_its_level_needs_it_told(folder, capsys):
    potential = mlff.load("ch2")
    info = potential.info
    object.__setattr__(info, "level_of_theory", "toy")
    potential.save("toy.safetensors")
    assert main([*RUN, "--model", "toy.safetensors", "--dft-check"]) == 2
    assert "give xc and basis" in capsys.readouterr().err


def test_tables_of_larger_molecules_end():
    atoms = molecule("C6H6")
    rest = distances(atoms)
    parallel = Pairs({SINGLET: well(rest), TRIPLET: well(rest, energy=0.3)})
    options = mlff.CrossingOptions(progress=False, minima=False)
    found = mlff.find_crossing(atoms, parallel, BOTH, options=options)
    # 12 bonds and 3 angles at each carbon atom.
    assert "… 6 more" in crossing_table(found)
