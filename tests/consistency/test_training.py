"""Training: loss, steps, a whole run, and what must stop it."""

import csv
import dataclasses
import json
import math
from itertools import chain
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from toy_training import MODEL, Stop, changed, toy_config, trainer_of, write_toy_data

import mlff
from mlff.data import fit_references, load_dataset
from mlff.errors import DataError, InputError, MlffWarning
from mlff.evaluation import Residuals
from mlff.potential import Potential
from mlff.recipe import ema_decay, learning_rate
from mlff.region import Region
from mlff.state import set_state
from mlff.testing.labelled import label_toy, labelled_frames
from mlff.train import TrainConfig, TrainingConfig, TrainingDiverged, fit


@pytest.fixture(scope="module")
def data_file(tmp_path_factory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("data") / "toy.xyz")


@pytest.fixture
def config(data_file, tmp_path) -> TrainConfig:
    return toy_config(data_file, tmp_path / "run")


# Loss and step


def test_the_loss_is_equation_15():
    errors = Residuals(
        values={
            "energy": torch.tensor([0.1, -0.3], dtype=torch.float64),
            "forces": torch.tensor([[1.0, 0.0, 2.0]] * 7, dtype=torch.float64),
        }
    )
    expected = 0.2 * (0.01 + 0.09) / 2 + 0.8 * (1.0 + 4.0) / 3
    assert float(errors.loss(**TrainingConfig(epochs=1).loss)) == pytest.approx(
        expected, rel=1e-14
    )
    assert TrainingConfig(epochs=1).energy_weight == 0.2
    assert TrainingConfig(epochs=1).forces_weight == 0.8


def test_with_a_huber_delta_large_errors_count_linearly_and_smoothly():
    """e² up to δ, then the tangent of e² at δ: δ (2 |e| − δ)."""
    settings = TrainingConfig(epochs=1, energy_weight=1.0, huber_delta=0.5).loss

    def loss(value):
        energy = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        zero = torch.zeros((1, 3), dtype=torch.float64)
        out = Residuals(values={"energy": energy, "forces": zero}).loss(**settings)
        out.backward()
        return out.item(), energy.grad.item()

    assert loss(0.3) == pytest.approx((0.09, 0.6))
    assert loss(-2.0) == pytest.approx((0.5 * (4.0 - 0.5), -1.0))
    assert loss(0.5 - 1e-9) == pytest.approx(loss(0.5 + 1e-9), abs=1e-8)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_step_clips_and_then_takes_the_rate_of_the_schedule(config, optimizer):
    run = trainer_of(
        changed(config, clip_norm=1e-3, optimizer=optimizer, weight_decay=0.1)
    )
    before = [p.detach().clone() for p in run.potential.parameters()]
    run._take_step(2, torch.arange(5))
    gradients = [p.grad for p in run.potential.parameters()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    assert norm == pytest.approx(1e-3, rel=1e-4)
    rate = learning_rate(config.training, 2, run.steps_per_epoch)
    decay = 1 - 0.1 * rate * (optimizer == "adamw")
    for old, new in zip(before, run.potential.parameters(), strict=True):
        gradient = new.grad
        # The first step of Adam is the sign of the gradient, softened by epsilon.
        step = rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(new.detach(), old * decay - step)


def test_every_epoch_sees_every_system_once_in_another_order(config, monkeypatch):
    run = trainer_of(config)
    seen: list[list[int]] = []
    monkeypatch.setattr(
        run, "_take_step", lambda step, rows: seen.append(rows.tolist()) or 0.0
    )
    run.run_epoch()
    run.run_epoch()
    assert [len(rows) for rows in seen] == [5, 5, 5, 5, 4] * 2
    first, second = list(chain(*seen[:5])), list(chain(*seen[5:]))
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second


def test_training_leaves_the_random_state_of_the_process_alone(config):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    trainer_of(config).run_epoch()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_averaged_weights_follow_the_trained_ones(config):
    run = trainer_of(config)
    expected = [p.detach().clone() for p in run.potential.parameters()]
    rows = torch.arange(24).split(5)
    for step in range(3):
        run._take_step(step, rows[step])
        decay = ema_decay(config.training, step)
        for mean, new in zip(expected, run.potential.parameters(), strict=True):
            mean.mul_(decay).add_(new.detach(), alpha=1 - decay)
    for mean, found in zip(expected, run.average.parameters(), strict=True):
        torch.testing.assert_close(found, mean)


def test_without_averaging_the_trained_weights_are_kept(config):
    run = trainer_of(changed(config, ema_decay=0.0))
    run.run_epoch()
    for new, found in zip(
        run.potential.parameters(), run.average.parameters(), strict=True
    ):
        assert torch.equal(new, found)


# A whole run


def test_training_learns_and_leaves_a_potential_with_its_history(config):
    wider = dataclasses.replace(config, model={**MODEL, "n_features": 16})
    result = fit(changed(wider, epochs=60, validate_every=5), progress=False)
    out = Path(config.out)
    data = load_dataset(config.data.files)
    constant = float((data.energy - _reference_energies(data)).abs().mean())
    test = result.metrics["test"]["all"]
    assert test["n_systems"] == 12
    assert test["energy_mae_meV"] < 0.5 * 1e3 * constant
    assert test["forces_mae_meV_per_A"] < 0.5 * 1e3 * float(data.forces.abs().mean())

    loaded = mlff.load(out / "best.safetensors")
    assert loaded.info.elements == (1, 6)
    assert loaded.info.states == ((0, 1), (0, 3), (1, 1))
    assert loaded.info.level_of_theory == "toy"
    assert loaded.info.metrics == result.metrics
    assert loaded.info.provenance["config"]["seed"] == 7
    assert loaded.info.provenance["versions"]["torch"] == torch.__version__

    run = json.loads((out / "run.json").read_text())
    assert len(run["split"]["indices"]["train"]) == 24
    assert run["split"]["hash"] == loaded.info.provenance["split"]["hash"]
    learned_from = data.select(run["split"]["indices"]["train"]).batch
    assert Region.from_json(loaded.info.region, loaded.cutoff) == Region.from_batch(
        learned_from, loaded.cutoff
    )
    rows = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(5, 61, 5))
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    assert result.best_epoch == int(best["epoch"])
    for picture in ("loss.png", "parity.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


def _reference_energies(data):
    references = fit_references(data)
    per_atom = torch.tensor([references[z] for z in data.batch.numbers.tolist()])
    return torch.zeros(len(data), dtype=torch.float64).index_add(
        0, data.batch.system, per_atom.double()
    )


def test_the_metrics_of_each_state_are_those_of_its_predictions(config, data_file):
    result = fit(changed(config, epochs=1), progress=False)
    frames = ase.io.read(data_file, ":")
    plot = Path(config.out) / "all.png"
    found = mlff.evaluate(result.potential, data_file, plot=plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sum(row["n_systems"] for name, row in found.items() if name != "all") == 44
    predicted = mlff.predict(result.potential, frames)
    chosen = [k for k, a in enumerate(frames) if a.info["spin"] == 3]
    energy = [predicted[k]["energy"] - frames[k].info["REF_energy"] for k in chosen]
    forces = np.concatenate(
        [predicted[k]["forces"] - frames[k].arrays["REF_forces"] for k in chosen]
    )
    row = found["charge +0, multiplicity 3"]
    assert row["n_systems"] == len(chosen) == 11
    assert row["energy_mae_meV"] == pytest.approx(1e3 * np.abs(energy).mean(), rel=1e-4)
    assert row["energy_max_meV"] == pytest.approx(1e3 * np.abs(energy).max(), rel=1e-4)
    rmse = 1e3 * np.sqrt(np.square(forces).mean())
    assert row["forces_rmse_meV_per_A"] == pytest.approx(rmse, rel=1e-4)


def test_a_test_set_of_its_own_is_measured_whole(config, tmp_path):
    path = tmp_path / "other.xyz"
    ase.io.write(path, labelled_frames(10, seed=9), format="extxyz")
    data = dataclasses.replace(config.data, test=0, test_files=(str(path),))
    result = fit(
        changed(dataclasses.replace(config, data=data), epochs=1), progress=False
    )
    assert result.metrics["test"]["all"]["n_systems"] == 10


def test_a_test_set_with_other_elements_stops_before_training(config, tmp_path):
    path = tmp_path / "water.xyz"
    frames = labelled_frames(10, seed=9, species=[("H2O", 0, 1)])
    ase.io.write(path, frames, format="extxyz")
    data = dataclasses.replace(config.data, test=0, test_files=(str(path),))
    with pytest.raises(InputError, match=r"\['O'\] were not in the training data"):
        fit(dataclasses.replace(config, data=data), progress=False)


def test_a_test_set_of_another_level_of_theory_stops_before_training(config, tmp_path):
    path = tmp_path / "other.xyz"
    frames = labelled_frames(10, seed=9)
    for atoms in frames:
        atoms.info["level_of_theory"] = "other"
    ase.io.write(path, frames, format="extxyz")
    data = dataclasses.replace(config.data, test=0, test_files=(str(path),))
    with pytest.raises(DataError, match="'other'"):
        fit(dataclasses.replace(config, data=data), progress=False)


def test_test_systems_that_copy_training_systems_are_told(config, tmp_path):
    frames = labelled_frames(44)
    for atoms in labelled_frames(44)[:20]:
        mirrored = Atoms(atoms.numbers, atoms.positions * [1, 1, -1])
        state = {key: atoms.info[key] for key in ("charge", "spin")}
        frames.append(label_toy(set_state(mirrored, **state)))
    path = tmp_path / "mirrored.xyz"
    ase.io.write(path, frames, format="extxyz")
    data = dataclasses.replace(config.data, files=(str(path),), train=40, test=16)
    leaky = dataclasses.replace(config, data=data)
    with pytest.warns(MlffWarning, match=r"of 16 test systems copy"):
        assert fit(changed(leaky, epochs=1), progress=False).overlap > 0
    clean = dataclasses.replace(data, split="symmetry")
    clean = dataclasses.replace(leaky, data=clean, out=config.out + "_clean")
    assert fit(changed(clean, epochs=1), progress=False).overlap == 0


def test_patience_stops_a_run_that_no_longer_improves(config):
    still = changed(config, epochs=30, rate=1e-12, floor=0.0, ema_decay=0.0, patience=3)
    result = fit(still, progress=False)
    assert result.epochs < 30
    assert result.epochs == result.best_epoch + 3


def test_given_reference_energies_are_used(config):
    data = dataclasses.replace(config.data, references={"H": -13.6, "C": -1030.0})
    given = changed(dataclasses.replace(config, data=data), epochs=1)
    references = fit(given, progress=False).potential.references
    assert references[6] == -1030.0
    assert references[1] == -13.6


def test_an_unknown_model_option_stops_before_training(config):
    wrong = dataclasses.replace(config, model={**MODEL, "n_feature": 8})
    with pytest.raises(InputError, match="did you mean 'n_features'"):
        fit(wrong, progress=False)


# Divergence


def poison(monkeypatch, coordinate: float) -> None:
    """Make the forces of one system impossible, known by a coordinate."""
    forward = Potential.forward

    def poisoned(self, batch, edges, properties, **options):
        out = forward(self, batch, edges, properties, **options)
        bad = (batch.positions[:, 0] == coordinate)[:, None]
        return {**out, "forces": torch.where(bad, math.nan, out["forces"])}

    monkeypatch.setattr(Potential, "forward", poisoned)


def test_a_loss_that_is_not_finite_stops_the_step_and_names_the_system(
    config, monkeypatch
):
    run = trainer_of(config)
    run.run_epoch()
    before = [p.detach().clone() for p in run.potential.parameters()]
    poison(monkeypatch, float(run.train.select([13]).batch.positions[0, 0]))
    with pytest.raises(TrainingDiverged, match=r"on toy\.xyz, frame 13\. "):
        run._take_step(5, torch.tensor([2, 9, 13, 20]))
    for old, new in zip(before, run.potential.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_run_that_diverges_keeps_its_last_checkpoint(config, monkeypatch):
    stop = Stop(monkeypatch, 15, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fit(config, progress=False)
    assert not stop.left
    before = (Path(config.out) / "last.safetensors").read_bytes()
    split = json.loads((Path(config.out) / "run.json").read_text())["split"]
    frames = ase.io.read(config.data.files[0], ":")
    chosen = frames[split["indices"]["train"][0]]
    poison(monkeypatch, float(chosen.positions[0, 0]))
    with pytest.raises(TrainingDiverged, match="checkpoint of epoch 3"):
        fit(config, progress=False)
    assert (Path(config.out) / "last.safetensors").read_bytes() == before


def test_exploding_weights_are_an_error_and_not_a_result(config):
    with pytest.raises(TrainingDiverged, match="not finite"):
        fit(changed(config, rate=1e25, floor=1e25, warmup_epochs=0), progress=False)
