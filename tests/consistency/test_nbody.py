"""N-body runs: they learn, survive kills bit for bit, and refuse what is not theirs.

As a script (``python test_nbody.py out data.npz``) it trains in children that kill
themselves after ever more optimizer steps, until one ends.
"""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlff.cli import main
from mlff.errors import DataError, InputError, MlffWarning
from mlff.nbody import NBodyConfig, NBodyTraining, fit_nbody
from mlff.nbody.data import load_nbody
from mlff.nbody.networks import all_edges
from mlff.nbody.trainer import NBodyTrainer
from mlff.tensorfile import load_tensors
from mlff.trainer import TrainingDiverged

RECIPE = Path(__file__).parents[2] / "data_gen" / "nbody.py"
NETWORK = {"name": "cmret", "n_features": 8, "n_layers": 1, "n_radial": 6, "n_heads": 2}


def toy(data, out, **changes) -> NBodyConfig:
    training = NBodyTraining(
        epochs=6, batch_size=8, rate=5e-3, schedule="cosine", validate_every=2
    )
    config = NBodyConfig(
        out=str(out), data=str(data), variant="D", network=NETWORK, training=training
    )
    return dataclasses.replace(config, **changes)


def changed(config, **training) -> NBodyConfig:
    new = dataclasses.replace(config.training, **training)
    return dataclasses.replace(config, training=new)


def make_data(path: Path, variant: str, sizes: tuple[int, int, int]) -> Path:
    """Call the recipe in a process of its own: it is no module of the package."""
    code = (
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import nbody; made = nbody.make(sys.argv[3], json.loads(sys.argv[4]))\n"
        "nbody.write(Path(sys.argv[2]), *made)"
    )
    command = [sys.executable, "-c", code, str(RECIPE.parent), str(path), variant]
    subprocess.run([*command, json.dumps(sizes)], check=True)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nbody")
    return make_data(folder / "d.npz", "D", (200, 40, 60))


@pytest.fixture(scope="module")
def b_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nbody")
    return make_data(folder / "b.npz", "B", (20, 0, 8))


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("nbody") / "d.npz", "D", (36, 10, 14))


def outcome(out) -> tuple[dict[str, torch.Tensor], str, dict]:
    """All that a run leaves but times."""
    tensors = load_tensors(Path(out) / "last.safetensors")[0]
    metrics = json.loads((Path(out) / "metrics.json").read_text())
    del metrics["wall_s"], metrics["cpu_s"]
    return tensors, (Path(out) / "log.csv").read_text(), metrics


def assert_same(one, other):
    tensors, log, metrics = outcome(one)
    others, other_log, other_metrics = outcome(other)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[key], others[key]) for key in tensors)
    assert (log, metrics) == (other_log, other_metrics)


# Learning


@pytest.mark.slow
def test_a_short_run_beats_the_best_straight_line(data, tmp_path):
    config = toy(data, tmp_path / "run")
    config = dataclasses.replace(
        config,
        network={"name": "painn", "n_features": 16, "n_layers": 2, "n_radial": 8},
    )
    config = changed(
        config,
        epochs=80,
        batch_size=25,
        rate=1e-2,
        schedule="cosine",
        clip_norm=1.0,
    )
    result = fit_nbody(config, progress=False)
    straight = result.metrics["trivial_mse"]["best x + a v"]
    assert result.metrics["test_mse"]["best"]["positions"] < straight
    assert result.metrics["test_mse"]["last"]["positions"] < straight


def test_a_run_leaves_its_history_and_errors(few, tmp_path):
    config = toy(few, tmp_path / "run")
    result = fit_nbody(config, progress=False)
    names = {p.name for p in result.out.iterdir()}
    assert names == {
        *("run.json", "last.safetensors", "log.csv", "metrics.json", "loss.png"),
    }
    metrics = json.loads((result.out / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics))
    assert (metrics["epochs"], metrics["steps"]) == (6, 24)
    assert metrics["wall_s"] > 0
    assert 0 < metrics["parameters_used"] < metrics["parameters"]
    log = (result.out / "log.csv").read_text()
    rows = list(csv.DictReader(log.splitlines()))
    assert [row["epoch"] for row in rows] == ["2", "4", "6"]
    losses = [float(row["validation_positions"]) for row in rows]
    assert metrics["validation_loss"] == min(losses)
    assert metrics["best_epoch"] == 2 * (losses.index(min(losses)) + 1)
    run = json.loads((result.out / "run.json").read_text())
    assert run["data"]["variant"] == "D"
    assert run["config"]["network"] == NETWORK


def test_the_returned_network_is_the_best_one(few, tmp_path):
    result = fit_nbody(toy(few, tmp_path / "run"), progress=False)
    test = load_nbody(few, "D").test
    windows = test.first_windows()
    edges = all_edges(14, 5, torch.device("cpu"))
    with torch.no_grad():
        moved = result.network(
            windows.positions, windows.velocities, windows.charges, edges
        )[0]
    error = (moved - windows.displacements).square().mean()
    expected = result.metrics["test_mse"]["best"]["positions"]
    assert float(error) == pytest.approx(expected, rel=1e-4)


def test_a_variant_without_validation_counts_its_last_epoch(b_data, tmp_path):
    config = toy(b_data, tmp_path / "run", variant="B", predict_velocity=True)
    result = fit_nbody(config, progress=False)
    assert set(result.metrics["test_mse"]) == {"last"}
    assert result.metrics["test_mse"]["last"]["velocities"] > 0
    assert result.metrics["validation_loss"] is None


# Steps


def trainer_of(config) -> NBodyTrainer:
    return NBodyTrainer(config, load_nbody(config.data, config.variant).train)


def test_every_epoch_sees_every_trajectory_once_from_another_start(
    b_data, tmp_path, monkeypatch
):
    config = toy(b_data, tmp_path, variant="B", predict_velocity=True)
    run = trainer_of(config)
    cut = run.train.windows
    seen = []

    def watched(systems, starts):
        seen.append((systems.tolist(), starts.tolist()))
        return cut(systems, starts)

    monkeypatch.setattr(type(run.train), "windows", lambda _, *a: watched(*a))
    run.run_epoch()
    run.run_epoch()
    (first, first_starts), (second, second_starts) = seen
    assert len(set(first)) == len(set(second)) == 16  # two batches of 20, whole ones
    assert first != second
    assert first_starts != second_starts
    assert max(first_starts + second_starts) <= 42


def test_the_loss_is_the_mean_over_positions_and_velocities(b_data, tmp_path):
    config = toy(b_data, tmp_path, variant="B", predict_velocity=True)
    run = trainer_of(config)
    batch = next(run.train.first_windows().split(8 * 5))
    # The network starts with no motion.
    expected = torch.cat((batch.displacements, batch.accelerations)).square().mean()
    torch.testing.assert_close(run._take_step(0, batch), expected)


def test_training_leaves_the_random_state_of_the_process_alone(few, tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    trainer_of(toy(few, tmp_path)).run_epoch()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_that_is_no_number_stops_the_run(few, tmp_path):
    config = changed(toy(few, tmp_path / "run"), rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"lower `training\.rate`"):
        fit_nbody(config, progress=False)


# Stopping and going on


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(few, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit_nbody(toy(few, whole), progress=False)
    command = [sys.executable, __file__, str(killed), str(few)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    kills, resumed = map(int, done.stdout.split())
    assert kills >= 4
    assert resumed >= 2
    assert_same(whole, killed)


def test_dropout_is_resumed_as_well(few, tmp_path):
    network = {"name": "published_demetar", "n_features": 16, "n_heads": 2}
    short = changed(toy(few, tmp_path / "cut", network=network), schedule="constant")
    torch.manual_seed(1)
    fit_nbody(dataclasses.replace(short, out=str(tmp_path / "whole")), progress=False)
    torch.manual_seed(2)  # as good as another process
    stop = NBodyTrainer.run_epoch

    def stopped(run):
        if run.epoch == 4:
            raise KeyboardInterrupt
        return stop(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NBodyTrainer, "run_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit_nbody(short, progress=False)
    fit_nbody(short, progress=False)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_measured_again_without_training(few, tmp_path, monkeypatch):
    config = toy(few, tmp_path / "run")
    first = fit_nbody(config, progress=False)
    monkeypatch.delattr(NBodyTrainer, "run_epoch")
    again = fit_nbody(config, progress=False)
    assert again.metrics == first.metrics


def test_a_folder_is_kept_for_the_run_that_it_holds(few, data, tmp_path):
    config = toy(few, tmp_path / "run")
    fit_nbody(config, progress=False)
    with pytest.raises(InputError, match=r"config\.training\.rate: 0\.005 → 0\.1"):
        fit_nbody(changed(config, rate=0.1), progress=False)
    with pytest.raises(InputError, match=r"data\.sha256"):
        fit_nbody(dataclasses.replace(config, data=str(data)), progress=False)
    with pytest.raises(InputError, match="or resume it"):
        fit_nbody(config, resume=False, progress=False)
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace(torch.__version__, "1.0"))
    with pytest.warns(MlffWarning, match="begun with"):
        fit_nbody(config, progress=False)
    path.unlink()
    with pytest.raises(InputError, match="of something else"):
        fit_nbody(config, progress=False)


def test_settings_that_do_not_fit_the_data_are_errors(few, tmp_path):
    config = toy(few, tmp_path / "run")
    with pytest.raises(InputError, match="more than the 36 training trajectories"):
        fit_nbody(changed(config, batch_size=37), progress=False)
    with pytest.raises(DataError, match="holds variant 'D'"):
        fit_nbody(dataclasses.replace(config, variant="C"), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_damaged_description_of_a_run_is_an_error_that_names_it(few, tmp_path):
    config = toy(few, tmp_path / "run")
    fit_nbody(config, progress=False)
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run\.json is damaged: `config` is missing"):
        fit_nbody(config, progress=False)


def test_an_incomplete_file_is_refused_before_training(few, tmp_path, monkeypatch):
    monkeypatch.delattr(NBodyTrainer, "run_epoch")
    path = tmp_path / "d.npz"
    with np.load(few) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    del meta["baselines"]
    np.savez(path, meta=json.dumps(meta), **arrays)
    with pytest.raises(DataError, match=r"d\.npz: `baselines` is missing"):
        fit_nbody(toy(path, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_the_command_line_trains_and_shows_trivial_answers_beside(
    few, tmp_path, capsys
):
    path = tmp_path / "run.toml"
    path.write_text(
        f'task = "nbody"\nout = "run"\ndata = "{few}"\nvariant = "D"\n'
        '[network]\nname = "published_egnn"\nn_features = 8\nn_layers = 1\n'
        "[training]\nepochs = 2\nbatch_size = 12\n"
    )
    assert main(["train", str(path)]) == 0
    told = capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for shown in (
        metrics["test_mse"]["best"]["positions"],
        metrics["trivial_mse"]["best x + a v"],
    ):
        assert f"{shown:.5f}" in told
    assert "2 epochs" in told


def kill_until_done(out: str, data: str) -> None:
    """Train in children, each killed after more steps than the one before."""
    import matplotlib.figure  # noqa: F401  (imported once, not in every child)
    import torch._dynamo  # noqa: F401

    kills = resumed = 0
    step = NBodyTrainer._take_step
    while True:
        limit, taken = 3 + 2 * kills, [0]

        def counted(*arguments, taken=taken, limit=limit):
            taken[0] += 1
            if taken[0] > limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments)

        child = os.fork()
        if child == 0:
            status = 1
            try:
                NBodyTrainer._take_step = counted
                fit_nbody(toy(data, out), progress=False)
                status = 0
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
        kills += 1
        resumed += (Path(out) / "last.safetensors").exists()
    print(kills, resumed)


if __name__ == "__main__":
    kill_until_done(*sys.argv[1:])
