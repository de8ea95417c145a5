"""``mlff vibrations``: what it writes, and what it refuses."""

import csv
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.io.jsonio import decode
from ase.vibrations import VibrationsData
from harmonic_cases import relaxed, ringing, shining

import mlff
from mlff.cli import main
from mlff.harmonic import vibrations

RUN = ["vibrations", "ch2.xyz", "--out", "out", "--model"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Singlet and triplet methylene at rest, as the working directory."""
    frames = [atoms.copy() for atoms in relaxed()]
    ase.io.write(tmp_path / "ch2.xyz", frames, format="extxyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder) -> str:
    shining().save("dipoles.safetensors")
    return "dipoles.safetensors"


def rows() -> list[dict[str, str]]:
    with Path("out/vibrations.csv").open() as file:
        return list(csv.DictReader(file))


def test_frequencies_modes_and_hessians_are_written(folder, capsys):
    assert main([*RUN, "ch2"]) == 0
    out = capsys.readouterr().out
    assert Path("out/vibrations.txt").read_text() in out
    assert "imaginary" not in out
    assert "km/mol" not in out
    expected = vibrations(relaxed(), mlff.load("ch2"))
    found = [float(row["wavenumber_per_cm"]) for row in rows()]
    assert found == pytest.approx(
        np.concatenate([one.frequencies for one in expected]), abs=0.05
    )
    assert [row["multiplicity"] for row in rows()] == ["1"] * 3 + ["3"] * 3
    assert {row["intensity_km_per_mol"] for row in rows()} == {""}
    assert list(Path("out").glob("*.png")) == []
    frames = ase.io.read("out/modes/1_CH2.xyz", ":")
    assert len(frames) == 60
    assert frames[20].info["mode"] == 1
    assert frames[20].info["spin"] == 3
    assert frames[25].info["wavenumber_per_cm"] == pytest.approx(found[4])
    assert frames[25].get_distance(0, 1) != pytest.approx(frames[20].get_distance(0, 1))
    data = decode(Path("out/hessians/1_CH2.json").read_text())
    assert isinstance(data, VibrationsData)
    assert data.get_frequencies().real[-3:] == pytest.approx(found[3:], abs=0.01)
    again = VibrationsData.read("out/hessians/1_CH2.json")
    assert (again.get_hessian() == data.get_hessian()).all()


def test_a_run_adds_its_spectrum(folder, model, capsys):
    expected = vibrations(relaxed(), shining())
    ringing(
        "trajectory.h5",
        expected[:1] * 2,
        wavenumbers=expected[0].frequencies,
        temperature=300.0,
        n_frames=400,
    )
    options = ["--trajectory", "trajectory.h5", "--resolution-per-cm", "50"]
    assert main([*RUN, model, *options]) == 0
    assert "km/mol" in capsys.readouterr().out
    found = [float(row["intensity_km_per_mol"]) for row in rows()]
    assert found == pytest.approx(
        np.concatenate([one.intensities for one in expected]), rel=1e-3
    )
    names = sorted(path.name for path in Path("out").glob("*.png"))
    assert names == ["infrared_CH2_0_1.png", "infrared_CH2_0_3.png"]
    with_run = Path("out/infrared_CH2_0_1.png").read_bytes()
    assert main([*RUN, model, "--force"]) == 0
    assert Path("out/infrared_CH2_0_1.png").read_bytes() != with_run


def test_nothing_is_replaced_unless_told_to(folder, capsys):
    assert main([*RUN, "ch2"]) == 0
    old = Path("out/modes/9_old.xyz")
    old.write_text("of a command with more systems")
    assert main([*RUN, "ch2"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*RUN, "ch2", "--force"]) == 0
    assert not old.exists()


def test_mistakes_end_with_one_line(folder, model, capsys):
    def refused(*arguments):
        assert main([*RUN, *arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "has no dipoles" in refused("ch2", "--trajectory", "run")
    assert "cannot read" in refused(model, "--trajectory", "nothing.h5")
    assert "no folder" in refused("ch2", "--out", "a/b")
    assert "is not a folder" in refused("ch2", "--out", "ch2.xyz")
    assert "relax it first" in refused("ch2", "--fmax", "1e-9")
    triplets = vibrations(relaxed(), shining())[1:] * 2
    ringing("t.h5", triplets, wavenumbers=[9.0] * 3, temperature=1, n_frames=5)
    ase.io.write("one.xyz", relaxed()[0], format="extxyz")
    arguments = ["vibrations", "one.xyz", *RUN[2:], model, "--trajectory", "t.h5"]
    assert main(arguments) == 2
    assert "CH2, charge +0, multiplicity 3" in capsys.readouterr().err
    assert not Path("out/vibrations.csv").exists()


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """Labels of the curves of every picture, by its title."""
    found = {}

    def draw(path, curves, sticks=None, title=""):
        found[title] = list(curves)

    monkeypatch.setattr("mlff.spectra.plot_infrared", draw)
    return found


def heavy(atoms):
    atoms = atoms.copy()
    atoms.set_masses([12.011, 2.01410178, 2.01410178])
    return atoms


def run_of_both(folder) -> list[str]:
    """A run of triplet CH2, CD2 and CD2 again, as options."""
    light = relaxed()[1]
    systems = vibrations([light, heavy(light), heavy(light)], shining())
    options = {"wavenumbers": [900.0] * 3, "temperature": 300, "n_frames": 200}
    ringing(folder / "both.h5", systems, **options)
    return ["--trajectory", "both.h5", "--resolution-per-cm", "200"]


def test_dynamics_of_other_isotopes_is_left_out(folder, model, drawn, monkeypatch):
    asked, whole = [], mlff.infrared

    def infrared(*arguments, systems, **options):
        asked.append(systems)
        return whole(*arguments, systems=systems, **options)

    monkeypatch.setattr("mlff.spectra.infrared", infrared)
    options = run_of_both(folder)
    assert main([*RUN, model, *options]) == 0
    assert asked == [[0]]
    triplet = "CH2, charge +0, multiplicity 3"
    assert drawn[triplet] == ["harmonic, system 1", "dynamics"]
    assert drawn["CH2, charge +0, multiplicity 1"] == ["harmonic, system 0"]
    light = relaxed()[1]
    ase.io.write("ch2.xyz", [light, heavy(light)], format="extxyz")
    assert main([*RUN, model, *options, "--force"]) == 0
    assert asked[1:] == [[0], [1, 2]]
    assert drawn[triplet][2:] == [
        "dynamics, masses of system 0",
        "dynamics, masses of system 1",
    ]


def test_a_run_of_other_isotopes_is_no_run_of_the_structures(folder, model, capsys):
    mixed = relaxed()[1].copy()
    mixed.set_masses([12.011, 2.014, 1.008])
    ase.io.write("ch2.xyz", mixed, format="extxyz")
    assert main([*RUN, model, *run_of_both(folder)]) == 2
    err = capsys.readouterr().err
    assert "masses C 12.011, H 2.014)" in err
    assert (
        "are CH2, charge +0, multiplicity 3 (masses C 12.011, H 2.014, H 1.008" in err
    )
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--width-per-cm", value) for value in ("0", "nan", "inf", "-1")),
        *(("--fmax", value) for value in ("0", "nan")),
        *(("--resolution-per-cm", value) for value in ("-3", "4500")),
        *(("--skip-fs", value) for value in ("-1", "inf")),
        ("--temperature-K", "0"),
    ],
)
def test_numbers_are_refused_before_any_work(tmp_path, capsys, option, value):
    out = str(tmp_path / "out")
    # Neither the structures nor the run are there: nothing has been read.
    arguments = ["vibrations", "no.xyz", "--out", out, "--model", "ch2"]
    assert main([*arguments, "--trajectory", "no.h5", f"{option}={value}"]) == 2
    err = capsys.readouterr().err
    assert f"{option} must be positive and " in err
    assert f"got {value}" in err
    assert not Path(out).exists()


@pytest.mark.parametrize(
    "option", ["--resolution-per-cm", "--skip-fs", "--temperature-K"]
)
def test_options_of_dynamics_need_a_run(tmp_path, capsys, option):
    arguments = ["vibrations", "no.xyz", "--out", str(tmp_path), "--model", "ch2"]
    assert main([*arguments, f"{option}=0"]) == 2
    assert f"{option}: only with --trajectory" in capsys.readouterr().err
