"""The command line: what each verb does, prints and returns, and how it fails."""

import argparse
import json
import shlex
import tomllib
import warnings
from pathlib import Path

import ase.io
import pytest
from ase import Atoms

from mlff import __version__, cli
from mlff.cli import describe, learn, main
from mlff.errors import InputError, MlffWarning
from mlff.potential import Potential, TrainingInfo
from mlff.state import read_state
from mlff.testing.labelled import labelled_frames

MODEL = {"name": "cmret", "n_features": 8, "n_layers": 1, "n_heads": 2, "n_radial": 8}

RUN = """
out = "run"
seed = 3

[data]
files = ["toy.xyz"]
train = 8
validation = 4
test = 8

[model]
name = "cmret"
n_features = 8
n_layers = 1
n_heads = 2
n_radial = 8

[training]
epochs = 2
batch_size = 4
"""


@pytest.fixture
def toy(tmp_path) -> Path:
    path = tmp_path / "toy.xyz"
    ase.io.write(path, labelled_frames(20), format="extxyz")
    return path


@pytest.fixture
def model(tmp_path) -> Path:
    info = TrainingInfo(
        elements=(1, 6),
        states=((0, 1), (0, 3), (1, 1)),
        region={"C-H": (0.95, 1.204), "H-H": (1.3, 2.2), "H-C-H": (89.96, 140.0)},
        level_of_theory="toy",
        provenance={"config": {"seed": 3}},
        metrics={
            "test": {
                "all": {
                    "n_systems": 500,
                    "energy_mae_meV": 0.25,
                    "energy_rmse_meV": 0.5,
                    "energy_max_meV": 1.0,
                    "forces_mae_meV_per_A": 2.5,
                    "forces_rmse_meV_per_A": 5.0,
                    "forces_max_meV_per_A": 10.0,
                }
            }
        },
    )
    path = tmp_path / "model.safetensors"
    Potential.build(MODEL, {1: -13.6, 6: -1030.0}, info).save(path)
    return path


def refusal(capsys, *argv: str | Path) -> str:
    """The one line that a refused command prints."""
    assert main([str(part) for part in argv]) == 2
    streams = capsys.readouterr()
    lines = streams.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mlff: error: ")
    return lines[0]


# Help


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mlff {__version__}\n"


def verbs() -> dict[str, argparse.ArgumentParser]:
    parser = cli._parser()
    (group,) = (
        action
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return group.choices


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert f"example:\n  mlff {verb}" in capsys.readouterr().out


def test_the_examples_in_the_help_are_valid_commands():
    for verb, parser in verbs().items():
        for line in parser.epilog.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["mlff"]:
                assert words[1] == verb
                parser.parse_args(words[2:])


def test_defaults_told_in_the_help_are_those_of_the_functions():
    pytest.importorskip("pyscf")
    from mlff.dft import DFTSettings

    help_of = {action.dest: action.help for action in verbs()["label"]._actions}
    for name in ("xc", "basis", "reference", "grid_level"):
        assert help_of[name].endswith(f"({getattr(DFTSettings(), name)})")


def test_no_verb_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "VERB" in capsys.readouterr().err


# Errors


def test_errors_are_one_line_without_a_traceback(tmp_path, capsys):
    line = refusal(capsys, "info", tmp_path / "absent.safetensors")
    assert "absent.safetensors" in line


def test_an_error_of_several_lines_is_told_in_one(monkeypatch, capsys, model):
    def fail(_):
        raise InputError("first\nsecond\n  third")

    monkeypatch.setattr(describe, "_info", fail)
    assert refusal(capsys, "info", model).endswith("first second third")


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(monkeypatch, model):
    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(describe, "_info", fail)
    with pytest.raises(ZeroDivisionError):
        main(["info", str(model)])


@pytest.mark.parametrize("verb", ["label", "train"])
def test_ctrl_c_says_how_to_go_on(verb, monkeypatch, capsys, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(learn, f"_{verb}", stop)
    options = ["--out", str(tmp_path / "out.xyz")] if verb == "label" else []
    assert main([verb, "anything", *options]) == 130
    error = capsys.readouterr().err
    assert "kept: run the same command again to continue" in error


def test_warnings_are_one_line_on_stderr(monkeypatch, capsys, model):
    def warn(_):
        warnings.warn("half of it", MlffWarning, stacklevel=1)
        warnings.warn("another package", FutureWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(describe, "_info", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["info", str(model)])
    assert capsys.readouterr().err.splitlines() == [
        "mlff: warning: half of it",
        "mlff: warning: FutureWarning: another package",
    ]


# label


@pytest.mark.pyscf
def test_label_computes_the_state_and_level_asked_for(tmp_path, capsys):
    pytest.importorskip("pyscf")
    frames = [Atoms("H2", positions=[[0, 0, 0], [0, 0, d]]) for d in (0.7, 0.8)]
    structures, out = tmp_path / "h2.xyz", tmp_path / "labels.xyz"
    ase.io.write(structures, frames, format="extxyz")
    command = ["label", str(structures), "--out", str(out), "--basis", "sto-3g"]
    assert main([*command, "--charge", "0", "--spin", "3", "--grid-level", "1"]) == 0
    assert "2 labels (2 × charge +0, multiplicity 3)" in capsys.readouterr().out
    for frame in ase.io.read(out, ":"):
        assert read_state(frame, strict=True).multiplicity == 3
        assert frame.info["level_of_theory"] == "UKS-b3lyp5/sto-3g"
    settings = json.loads((tmp_path / "labels.xyz.provenance.json").read_text())
    assert settings["settings"]["grid_level"] == 1
    line = refusal(capsys, *command, "--charge", "0", "--spin", "1")
    assert "--force" in line


@pytest.mark.pyscf
def test_label_without_a_state_tells_which_options_give_it(tmp_path, capsys):
    pytest.importorskip("pyscf")
    ase.io.write(tmp_path / "h.xyz", Atoms("H"), format="extxyz")
    command = ("label", tmp_path / "h.xyz", "--out", tmp_path / "out.xyz")
    line = refusal(capsys, *command)
    assert "h.xyz, frame 0: no charge and no spin" in line
    assert "--charge and --spin" in line
    line = refusal(capsys, *command, "--charge", "0", "--spin", "1")
    assert "1 electrons" in line
    assert not (tmp_path / "out.xyz.journal.jsonl").exists()


@pytest.mark.pyscf
def test_label_refuses_a_state_that_the_file_contradicts(tmp_path, capsys, toy):
    pytest.importorskip("pyscf")
    line = refusal(capsys, "label", toy, "--out", tmp_path / "out.xyz", "--charge", "0")
    assert "frame 3: conflicting values of the charge" in line


@pytest.mark.pyscf
def test_label_returns_1_and_the_reasons_when_frames_fail(
    tmp_path, capsys, toy, monkeypatch
):
    pytest.importorskip("pyscf")
    from mlff import labels

    report = labels.LabelReport([], [(3, "NotConverged: no")], 1, 0)
    monkeypatch.setattr(labels, "label_frames", lambda *_, **__: report)
    assert main(["label", str(toy), "--out", str(tmp_path / "out.xyz")]) == 1
    assert capsys.readouterr().err == "frame 3: NotConverged: no\n"


# info, evaluate, train


def test_info_tells_what_a_model_is_for_and_how_wrong_it_is(model, capsys):
    from mlff.tensorfile import load_tensors

    assert main(["info", str(model)]) == 0
    out = capsys.readouterr().out
    assert "elements    H, C\n" in out
    assert "charge +0, multiplicity 3; charge +1, multiplicity 1" in out
    assert "labels      toy\n" in out
    assert "region      nearest neighbors, Å: C-H 0.95 … 1.20, H-H 1.30 … 2.20\n" in out
    assert "            angles, degrees: H-C-H 90.0 … 140.0\n" in out
    assert "n_features: 8" in out
    assert "seed: 3" in out
    assert "0.250" in out
    (digest,) = (
        line.split()[1] for line in out.splitlines() if line.startswith("sha256")
    )
    load_tensors(model, expected_sha256=digest)


@pytest.mark.parametrize("name", ["ch2", "states"])
def test_info_names_the_card_of_a_shipped_model(name, capsys):
    assert main(["info", name]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x[:4] == "card")
    card = Path(line.split()[1].rstrip(":")).read_text()
    assert card.startswith(f"# {name}\n")


def test_info_without_a_model_lists_the_shipped_ones(monkeypatch, capsys, model):
    monkeypatch.setattr("mlff.potential.shipped", lambda: {"toy": model})
    assert main(["info"]) == 0
    assert capsys.readouterr().out.split() == ["toy", str(model)]


def test_evaluate_prints_a_line_per_state_and_writes_what_it_is_told(
    model, toy, tmp_path, capsys
):
    out, plot = tmp_path / "errors.json", tmp_path / "parity.png"
    command = ["evaluate", str(model), str(toy), "--out", str(out), "--plot", str(plot)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "all",
        "charge +0, multiplicity 1",
        "charge +0, multiplicity 3",
        "charge +1, multiplicity 1",
    ]
    errors = json.loads(out.read_text())
    assert errors["all"]["n_systems"] == 20
    assert f"{errors['all']['energy_mae_meV']:10.3f}" in lines[1]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "errors.json exists" in refusal(capsys, *command)
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [("--out", "none/a.json", "no folder"), ("--plot", "a.foo", "must end in one of")],
)
def test_evaluate_refuses_before_the_work_what_it_could_not_write_after_it(
    model, toy, tmp_path, capsys, option, name, message
):
    assert main(["evaluate", str(model), str(toy), option, str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_evaluate_takes_keys_and_units(model, toy, tmp_path, capsys):
    command = ["evaluate", str(model), str(toy), "--out", str(tmp_path / "a.json")]
    assert main([*command, "--energy-unit", "kcal/mol", "--trust-labels"]) == 0
    errors = json.loads((tmp_path / "a.json").read_text())
    assert errors["all"]["energy_mae_meV"] > 1e5
    line = refusal(capsys, *command, "--force", "--energy-key", "total")
    assert "total" in line


@pytest.mark.slow
def test_train_leaves_a_model_that_info_reads_and_continues(toy, tmp_path, capsys):
    run = tmp_path / "run.toml"
    run.write_text(RUN)
    assert main(["train", str(run)]) == 0
    out = capsys.readouterr().out
    best = tmp_path / "run" / "best.safetensors"
    assert str(best) in out
    assert "validation\n" in out
    assert "test\n" in out
    before = best.read_bytes()
    assert main(["train", str(run)]) == 0
    assert best.read_bytes() == before
    assert main(["info", str(best)]) == 0
    assert "errors      test" in capsys.readouterr().out


def test_train_refuses_a_key_that_it_does_not_know(tmp_path, capsys):
    (tmp_path / "run.toml").write_text(RUN.replace("epochs", "epoch"))
    assert "epochs" in refusal(capsys, "train", tmp_path / "run.toml")


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    import mlff.demo

    seen = {}
    monkeypatch.setattr(
        mlff.demo, "run_demo", lambda out, **options: seen.update(out=out, **options)
    )
    assert main(["demo", "--out", str(tmp_path), "--picoseconds", "0.5"]) == 0
    assert seen == {"out": str(tmp_path), "picoseconds": 0.5}


def test_the_console_script_is_this_function():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"mlff": "mlff.cli:main"}
    assert project["project"]["version"] == __version__
