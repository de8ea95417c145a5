"""A run that is stopped, killed or continued ends like one that was not."""

import dataclasses
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
import torch
from toy_training import (
    MODEL,
    Stop,
    changed,
    contents,
    toy_config,
    trainer_of,
    write_toy_data,
)

from mlff.errors import DataError, InputError
from mlff.testing.labelled import labelled_frames
from mlff.train import TrainConfig, fit


@pytest.fixture(scope="module")
def data_file(tmp_path_factory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("data") / "toy.xyz")


@pytest.fixture
def config(data_file, tmp_path) -> TrainConfig:
    return toy_config(data_file, tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(data_file, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """Files of whole runs, by the precision of the network."""
    out = {}
    for dtype in ("float32", "float64"):
        folder = tmp_path_factory.mktemp("whole") / "run"
        fit(toy_config(data_file, folder, dtype=dtype), progress=False)
        out[dtype] = contents(folder)
    return out


@pytest.mark.parametrize(
    ("dtype", "step"),
    [("float32", 0), ("float32", 8), ("float32", 15), ("float64", 19)],
)
def test_a_run_stopped_and_resumed_ends_with_the_same_bytes(
    config, undisturbed, monkeypatch, capsys, dtype, step
):
    config = dataclasses.replace(config, dtype=dtype)
    stop = Stop(monkeypatch, step, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fit(config, progress=False)
    assert f"everything up to epoch {step // 5}" in capsys.readouterr().err
    assert not stop.left
    fit(config, progress=False)
    assert contents(config.out) == undisturbed[dtype]


def test_resuming_a_finished_run_changes_nothing(config):
    fit(config, progress=False)
    before = contents(config.out)
    again = fit(config, progress=False)
    assert contents(config.out) == before
    assert again.epochs == 4


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_same_bytes(config, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        f'out = "killed"\nseed = 7\n[data]\nfiles = ["{config.data.files[0]}"]\n'
        "train = 24\nvalidation = 8\ntest = 12\n"
        '[model]\nname = "cmret"\nn_features = 8\nn_layers = 1\nn_heads = 2\n'
        "[training]\nepochs = 12\nbatch_size = 5\nema_decay = 0.9\n"
    )
    script = Path(__file__).with_name("killed_training.py")
    done = subprocess.run(
        [sys.executable, script, path, "20"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kills, resumed, folders = map(int, done.stdout.split())
    assert kills == 20
    assert resumed >= 5
    expected = contents(tmp_path / "killed")
    for folder in range(folders):
        assert contents(tmp_path / f"killed_{folder}") == expected
        assert not list((tmp_path / f"killed_{folder}").glob(".*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "seed: 7 → 8"),
        ({"dtype": "float64"}, "dtype: 'float32' → 'float64'"),
        ({"model": {**MODEL, "n_features": 16}}, r"model\.n_features: 8 → 16"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(config, change, message):
    fit(changed(config, epochs=1), progress=False)
    other = changed(dataclasses.replace(config, **change), epochs=1)
    with pytest.raises(InputError, match=message):
        fit(other, progress=False)
    with pytest.raises(InputError, match=r"training\.epochs: 1 → 4"):
        fit(config, progress=False)


def test_a_run_is_not_resumed_on_other_data(config, tmp_path):
    path = tmp_path / "copy.xyz"
    frames = labelled_frames(44)
    ase.io.write(path, frames, format="extxyz")
    data = dataclasses.replace(config.data, files=(str(path),))
    config = changed(dataclasses.replace(config, data=data), epochs=1)
    fit(config, progress=False)
    frames[3].info["REF_energy"] += 1e-3
    ase.io.write(path, frames, format="extxyz")
    with pytest.raises(DataError, match="content of the files has changed"):
        fit(config, progress=False)


def test_an_existing_run_is_not_overwritten(config):
    config = changed(config, epochs=1)
    fit(config, progress=False)
    with pytest.raises(InputError, match="holds a run"):
        fit(config, resume=False, progress=False)


@pytest.mark.parametrize("name", ["best.safetensors", "parity.png"])
def test_a_folder_with_results_of_something_else_is_not_touched(config, name):
    out = Path(config.out)
    out.mkdir()
    for file in (name, ".film.part"):
        (out / file).write_bytes(b"precious")
    with pytest.raises(InputError, match=rf"{name}.* of something else"):
        fit(config, progress=False)
    for file in (name, ".film.part"):
        assert (out / file).read_bytes() == b"precious"


def test_a_folder_in_use_is_refused(config):
    out = Path(config.out)
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="in use by another run"):
            fit(config, progress=False)
    finally:
        os.close(handle)


def test_a_folder_that_cannot_be_made_is_an_error_before_any_work(config, tmp_path):
    (tmp_path / "file").write_text("")
    wrong = dataclasses.replace(config, out=str(tmp_path / "file" / "run"))
    with pytest.raises(InputError, match="cannot be used"):
        fit(wrong, progress=False)


def test_a_checkpoint_holds_everything_that_an_epoch_depends_on(config, tmp_path):
    run, other = trainer_of(config), trainer_of(dataclasses.replace(config, seed=8))
    run.run_epoch()
    run.best_epoch, run.best_loss, run.history = 1, 0.5, [{"epoch": 1}]
    run.save(tmp_path / "last.safetensors")
    other.restore(tmp_path / "last.safetensors")
    for name in ("epoch", "saved_epoch", "best_epoch", "best_loss", "history"):
        assert getattr(other, name) == getattr(run, name), name
    for kind in ("potential", "average"):
        expected, found = getattr(run, kind), getattr(other, kind)
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name
    moments = other.optimizer.state_dict()["state"]
    for index, state in run.optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[index][k], v) for k, v in state.items())


def test_a_potential_is_no_checkpoint(config, tmp_path):
    run = trainer_of(config)
    run.potential.save(tmp_path / "last.safetensors")
    with pytest.raises(InputError, match="not the checkpoint of a training run"):
        run.restore(tmp_path / "last.safetensors")
