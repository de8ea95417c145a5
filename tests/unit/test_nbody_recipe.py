"""Run files of the N-body task."""

from pathlib import Path

import pytest

from mlff.cli import main
from mlff.errors import InputError, InputTypeError
from mlff.nbody import NBodyConfig, NBodyTraining, build_network

ROOT = Path(__file__).parents[2]

TOML = """
task = "nbody"
out = "run"
data = "c.npz"
variant = "C"
[network]
name = "cmret"
[training]
epochs = 3
"""


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("epochs", "epoch", InputError, r"`training\.epoch`; did you mean `epochs`"),
        ("[network]", "[net]", InputError, r"unknown key `net`"),
        ("epochs = 3", "", InputError, r"`training\.epochs` is missing"),
        ("epochs = 3", "epochs = 0", InputError, r"training\.epochs` must be at least"),
        ("epochs = 3", "epochs = 3\nrate = 0.0", InputError, r"training\.rate`"),
        ("epochs = 3", "epochs = 3\nclip_norm = -1", InputError, r"clip_norm` must be"),
        (
            "epochs = 3",
            'epochs = 3\nschedule = "x"',
            InputError,
            "'constant', 'cosine'",
        ),
        ("epochs = 3", 'epochs = 3\noptimizer = "x"', InputError, "'adam', 'adamw'"),
        ('name = "cmret"', "", InputError, r"`network\.name` is missing"),
        ('"c.npz"', "3", InputTypeError, "`data` must be str"),
        ('out = "run"', 'out = "run"\ndtype = "half"', InputError, "`dtype`"),
        ('out = "run"', 'out = "run"\nseed = -1', InputError, "`seed`"),
        ('"nbody"', '"n-body"', InputError, "`task` must be 'nbody'"),
        (
            'name = "cmret"',
            'name = "painn"\npredict_velocity = true',
            InputError,
            r"`predict_velocity`=True .* a key of the run file, not of \[network\]",
        ),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(tmp_path, old, new, error, message):
    assert old in TOML
    path = tmp_path / "run.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(error, match=message):
        NBodyConfig.load(path)


def test_paths_are_relative_to_the_run_file(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    config = NBodyConfig.load(tmp_path / "run.toml")
    assert config.out == str(tmp_path / "run")
    assert config.data == str(tmp_path / "c.npz")
    assert config.identity()["data"] == "c.npz"
    assert "out" not in config.identity()


def test_the_rate_is_constant_or_falls_to_zero():
    assert NBodyTraining(epochs=1, rate=0.1).rate_at(0.7) == 0.1
    falling = NBodyTraining(epochs=1, rate=0.1, schedule="cosine")
    assert falling.rate_at(0.0) == 0.1
    assert falling.rate_at(0.5) == pytest.approx(0.05)
    assert falling.rate_at(1.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("train_nbody_egnn.toml", 134_020), ("train_nbody_attention.toml", 115_851)],
)
def test_the_recipes_are_of_the_published_networks(name, parameters):
    config = NBodyConfig.load(ROOT / "data_gen" / name)
    network = build_network(predict_velocity=config.predict_velocity, **config.network)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"nbody"', '"n-body"', "`task` must be 'nbody'"),
        ("epochs = 3", "epochs = 0", "`training.epochs`"),
        ("task", "tasks", "unknown key `tasks`"),
        ("variant", "variant", "python data_gen/nbody.py C"),
    ],
)
def test_the_command_line_refuses_a_run_file_in_one_line(
    tmp_path, capsys, old, new, message
):
    path = tmp_path / "run.toml"
    path.write_text(TOML.replace(old, new))
    assert main(["train", str(path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()
