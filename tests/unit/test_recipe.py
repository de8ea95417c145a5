"""Run files, learning rates, and the decay of averaged weights."""

from pathlib import Path

import numpy as np
import pytest

from mlff.errors import InputError, InputTypeError
from mlff.potential import Potential, TrainingInfo
from mlff.recipe import TrainConfig, TrainingConfig, ema_decay, learning_rate

ROOT = Path(__file__).parents[2]

# Settings

TOML = """
out = "run"
[data]
files = ["toy.xyz"]
train = 24
validation = 8
[model]
name = "cmret"
[training]
epochs = 3
"""


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("epochs", "epoch", InputError, r"`training\.epoch`; did you mean `epochs`"),
        ("[data]", "[date]", InputError, r"`date`; did you mean `data`"),
        ("epochs = 3", "", InputError, r"`training\.epochs` is missing"),
        (
            "epochs = 3",
            "epochs = 3.5",
            InputTypeError,
            r"epochs` must be int, got 3\.5",
        ),
        (
            "epochs = 3",
            "epochs = true",
            InputTypeError,
            "epochs` must be int, got True",
        ),
        ("epochs = 3", "epochs = 0", InputError, "epochs` must be at least 1"),
        ('["toy.xyz"]', '"toy.xyz"', InputTypeError, "must be a list of strings"),
        ("epochs = 3", "epochs = 3\nrate = -1", InputError, "rate` must be > 0"),
        ("epochs = 3", "epochs = 3\nhuber_delta = -1", InputError, "huber_delta` must"),
        ("epochs = 3", "epochs = 3\nfloor = 1.0", InputError, "floor` must be ≤ rate"),
        (
            "epochs = 3",
            'epochs = 3\nschedule = "x"',
            InputError,
            "schedule` must be one",
        ),
        ("train = 24", 'train = 24\nsplit = "x"', InputError, r"data\.split` must be"),
        ("train = 24", "train = 24\nreferences = {X9 = 1.0}", InputError, "X9"),
        ("train = 24", "train = 24\nreferences = {H = nan}", InputError, "be finite"),
        (
            "train = 24",
            'train = 24\nreferences = {H = "a"}',
            InputTypeError,
            r"references\.H` must be a number",
        ),
        ("[data]", "seed = 9223372036854775808\n[data]", InputError, "seed` must lie"),
        ('name = "cmret"', "", InputError, r"`model\.name` is missing"),
        ("[training]", "[training", InputError, "not TOML"),
        ('out = "run"', 'out = "run"\ndtype = "half"', InputError, "dtype"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(tmp_path, old, new, error, message):
    assert old in TOML
    path = tmp_path / "run.toml"
    path.write_text(TOML.replace(old, new))
    with pytest.raises(error, match=message):
        TrainConfig.load(path)


def test_runs_of_older_versions_go_on(tmp_path):
    """What they do not mention is not part of what a run is, if it does nothing."""
    (tmp_path / "run.toml").write_text(TOML)
    content = TrainConfig.load(tmp_path / "run.toml").identity()
    assert not {"huber_delta", "property_weights"} & content["training"].keys()
    (tmp_path / "run.toml").write_text(TOML + "huber_delta = 0.1\n")
    content = TrainConfig.load(tmp_path / "run.toml").identity()
    assert content["training"]["huber_delta"] == 0.1


def test_paths_in_a_run_file_are_relative_to_it(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    config = TrainConfig.load(tmp_path / "run.toml")
    assert config.out == str(tmp_path / "run")
    assert config.data.files == (str(tmp_path / "toy.xyz"),)


def test_a_table_of_keys_and_units_is_read(tmp_path):
    keys = '[data.keys]\nenergy = "e"\nenergy_unit = "Hartree"\n[model]'
    (tmp_path / "run.toml").write_text(TOML.replace("[model]", keys))
    found = TrainConfig.load(tmp_path / "run.toml").data.keys
    assert found is not None
    assert (found.energy, found.energy_unit) == ("e", "Hartree")
    assert found.forces_unit == "eV/Ang"


@pytest.mark.parametrize("name", ["train_ch2.toml", "train_ch2_symmetric.toml"])
def test_the_recipes_of_the_shipped_model_use_all_of_its_data(name):
    config = TrainConfig.load(ROOT / "data_gen" / name)
    data = config.data
    assert (data.train + data.validation, data.test) == (1500, 500)
    info = TrainingInfo(elements=(1, 6), states=((0, 1), (0, 3)))
    assert Potential.build(config.model, {}, info).cutoff > 0


# Schedules


def test_the_cosine_schedule_warms_up_and_ends_at_its_floor():
    settings = TrainingConfig(epochs=100, rate=1e-3, floor=1e-5, warmup_epochs=10)
    rates = [learning_rate(settings, step, 8) for step in range(800)]
    assert rates[0] == pytest.approx(1e-3 / 80)
    assert rates[39] == pytest.approx(0.5e-3)
    assert max(rates) == rates[79] == pytest.approx(1e-3)
    assert rates[440] == pytest.approx(0.5 * (1e-3 + 1e-5))
    assert rates[-1] == pytest.approx(1e-5, rel=1e-3)
    assert np.all(np.diff(rates[80:]) < 0)


def test_the_cyclic_schedule_is_that_of_the_paper():
    """Two cycles: 1e-6 … 1e-4 and 1e-8 … 1e-6, each up and down in straight lines."""
    settings = TrainingConfig(epochs=100, schedule="cyclic", rate=1e-4, floor=1e-6)
    rates = [learning_rate(settings, step, 8) for step in range(800)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[100] == pytest.approx(0.5 * (1e-6 + 1e-4))
    assert max(rates) == rates[200] == pytest.approx(1e-4)
    assert rates[300] == pytest.approx(rates[100])
    assert rates[400] == min(rates) == pytest.approx(1e-8)
    assert max(rates[400:]) == rates[600] == pytest.approx(1e-6)


def test_the_average_forgets_its_start_and_then_decays_as_told():
    settings = TrainingConfig(epochs=1, ema_decay=0.99)
    assert ema_decay(settings, 0) == pytest.approx(0.1)
    assert ema_decay(settings, 90) == pytest.approx(0.91)
    assert ema_decay(settings, 10**6) == 0.99
