"""An N-body run: from a run file to mean squared errors, resumable at any moment.

A run folder holds ``run.json`` (settings, data, versions), ``last.safetensors`` (the
checkpoint, replaced atomically at every validation; the best weights are in it),
``log.csv``, and at the end ``metrics.json`` and ``loss.png``. A run that was killed and
resumed ends with the bits of one that was not (CPU, same versions, one thread); only
the times differ.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from mlff.device import DTYPES, check_device
from mlff.nbody.data import STRAIGHT, NBodyData, Trajectories, load_nbody
from mlff.nbody.recipe import NBodyConfig
from mlff.nbody.trainer import NBodyTrainer
from mlff.runfolder import (
    RUN,
    check_same,
    claimed,
    read_run,
    versions,
    warn_of_versions,
    write_json,
    write_log,
)
from mlff.trainer import TrainingDiverged

_COLUMNS = (
    "epoch",
    "rate",
    "train_loss",
    "validation_positions",
    "validation_velocities",
)
_OUTPUTS = ("last.safetensors", "log.csv", "loss.png", "metrics.json")


@dataclass(frozen=True, kw_only=True)
class NBodyResult:
    """What an N-body run made.

    Attributes:
        network: with the weights of the smallest validation loss, or, where a variant
            has no validation set, of the last epoch.
        metrics: as in ``metrics.json``.
        out: folder of the run.
    """

    network: nn.Module
    metrics: dict[str, Any]
    out: Path


def fit_nbody(
    config: NBodyConfig | str | Path, *, resume: bool = True, progress: bool = True
) -> NBodyResult:
    """Train a network on charged particles, or continue where a run was stopped.

    Args:
        config: the run, or its TOML file.
        resume: continue the run in ``config.out`` if there is one; otherwise its
            presence is an error.
        progress: show a bar with the errors.

    Returns:
        The best network and its errors; the same is in the folder.

    Raises:
        InputError: settings that cannot be used, or a folder that is in use, holds
            another run, or cannot be written.
        DataError: a file of other data.
        TrainingDiverged: the loss is not a number.
    """
    if not isinstance(config, NBodyConfig):
        config = NBodyConfig.load(config)
    device, dtype = check_device(config.device), DTYPES[config.dtype]
    data = load_nbody(config.data, config.variant)
    run = NBodyTrainer(config, data.train.to(device, dtype))
    out = Path(config.out)
    with claimed(out, _OUTPUTS):
        _enter(out, _identity(config, data), resume)
        if (out / "last.safetensors").exists():
            run.restore(out / "last.safetensors")
        validation = data.validation and data.validation.to(device, dtype)
        try:
            _train(run, validation, out, progress)
        except KeyboardInterrupt:
            print(
                f"stopped; {out} holds everything up to epoch {run.saved_epoch}: "
                "run the same command to continue",
                file=sys.stderr,
            )
            raise
        return _finish(run, data, out)


def _enter(out: Path, identity: dict[str, Any], resume: bool) -> None:
    """Write what the run is, or compare with what lies there."""
    before = read_run(out, _OUTPUTS, resume)
    if before is None:
        write_json(out / RUN, identity)
        return
    warn_of_versions(out, before.pop("versions"), identity.pop("versions"))
    check_same(out, before, identity)


def _identity(config: NBodyConfig, data: NBodyData) -> dict[str, Any]:
    return {
        "config": config.identity(),
        "data": {"sha256": data.sha256, **data.meta},
        "versions": versions(),
    }


def _train(
    run: NBodyTrainer, validation: Trajectories | None, out: Path, progress: bool
) -> None:
    settings = run.config.training
    bar = tqdm(
        total=settings.epochs,
        initial=run.epoch,
        desc="training",
        unit="epoch",
        disable=not progress,
    )
    with bar:
        while not run.done:
            loss = run.run_epoch()
            bar.update()
            if run.epoch % settings.validate_every == 0 or run.done:
                _validate(run, loss, validation, out)
                bar.set_postfix_str(
                    f"MSE {loss:.2e}"
                    + (f", validation {run.best_loss:.2e}" if validation else "")
                )


def _validate(
    run: NBodyTrainer, loss: float, validation: Trajectories | None, out: Path
) -> None:
    """Measure the weights, remember them if they are the best, and checkpoint."""
    row: dict[str, Any] = {
        "epoch": run.epoch,
        "rate": run.config.training.rate_at(run.epoch / run.config.training.epochs),
        "train_loss": loss,
        "validation_positions": None,
        "validation_velocities": None,
    }
    if validation is not None:
        errors = run.errors(validation)
        if not math.isfinite(errors.loss):
            raise TrainingDiverged(
                f"the validation loss after epoch {run.epoch} is not finite; the "
                f"checkpoint of epoch {run.saved_epoch} is untouched; lower "
                "`training.rate`, or set `training.clip_norm`"
            )
        row["validation_positions"] = errors.positions
        row["validation_velocities"] = errors.velocities
        if errors.loss < run.best_loss:
            run.keep_as_best(errors.loss)
    run.history.append(row)
    # In this order a kill between the two is repaired by the next validation.
    run.save(out / "last.safetensors")
    write_log(out, _COLUMNS, run.history)


def _finish(run: NBodyTrainer, data: NBodyData, out: Path) -> NBodyResult:
    """Measure the last and the best weights on what they were not trained on."""
    config = run.config
    test = data.test.to(run.device, DTYPES[config.dtype])
    scores = {"last": asdict(run.errors(test))}
    if run.best:
        run.network.load_state_dict(run.best)
        scores["best"] = asdict(run.errors(test))
    metrics = {
        "variant": config.variant,
        "network": config.network,
        "test_mse": scores,
        "best_epoch": run.best_epoch,
        "validation_loss": run.best_loss if run.best else None,
        "epochs": run.epoch,
        "steps": run.epoch * run.steps_per_epoch,
        "parameters": run.n_parameters,
        "parameters_used": run.n_parameters_used,
        "wall_s": run.wall_s,
        "cpu_s": run.cpu_s,
        "device": str(run.device),
        "trivial_mse": data.meta["baselines"],
    }
    write_log(out, _COLUMNS, run.history)
    write_json(out / "metrics.json", metrics)
    _plot_log(out, run.history, data.meta["baselines"])
    run.network.eval()
    return NBodyResult(network=run.network, metrics=metrics, out=out)


def _plot_log(
    out: Path, history: Sequence[dict[str, Any]], baselines: dict[str, float]
) -> None:
    """Draw ``loss.png``: errors against the epoch, and what moving straight on scores.

    Args:
        out: the folder.
        history: rows of the log.
        baselines: mean squared errors of trivial answers by name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    for column in ("train_loss", "validation_positions", "validation_velocities"):
        values = [row[column] for row in history]
        if None not in values:
            axes.plot(epochs, values, label=column.replace("_", ", ", 1))
    straight = baselines[STRAIGHT]
    axes.axhline(straight, color="gray", ls=":", label=STRAIGHT)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean squared error")
    axes.legend()
    figure.savefig(out / "loss.png", dpi=120)
