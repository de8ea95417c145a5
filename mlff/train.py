"""Training: from a run file to a potential, stoppable and resumable at any moment.

All that changes during a run is in one checkpoint, ``last.safetensors``, replaced
atomically at every validation. The order of the systems depends on seed and epoch, the
learning rate on the step, so that a run that was killed and resumed ends with the bits
of one that was not (CPU, same versions, one thread). Nothing is pickled.

A run folder holds ``run.json`` (settings, data, split), ``best.safetensors`` (the
potential with the smallest validation loss), ``last.safetensors``, ``log.csv``, and at
the end ``metrics.json``, ``loss.png`` and ``parity.png``.
"""

import hashlib
import json
import math
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers
from tqdm import tqdm

from mlff.data import (
    Dataset,
    fit_references,
    load_dataset,
    overlap,
    random_split,
    symmetry_split,
)
from mlff.device import check_device
from mlff.errors import DataError, MlffWarning
from mlff.evaluation import (
    all_residuals,
    evaluate,
    mean_errors,
    plot_history,
    plot_parity,
    summarise,
    told,
)
from mlff.inference import check_batch
from mlff.info import MAX_FORMULAS
from mlff.potential import Potential, TrainingInfo
from mlff.recipe import DataConfig, TrainConfig, TrainingConfig, learning_rate
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
from mlff.trainer import Trainer, TrainingDiverged
from mlff.vetting import check_references

__all__ = [
    "DataConfig",
    "FitResult",
    "TrainConfig",
    "TrainingConfig",
    "TrainingDiverged",
    "evaluate",
    "fit",
]

_WEIGHTS = ("best.safetensors", "last.safetensors")
_OUTPUTS = (*_WEIGHTS, "log.csv", "loss.png", "metrics.json", "parity.png")


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training run made.

    Attributes:
        potential: with the smallest validation loss, ready for inference.
        metrics: by set (``"validation"``, ``"test"``), then as ``evaluate`` returns.
        best_epoch: epoch whose weights are kept.
        epochs: epochs done.
        overlap: test systems that copy a training system in the same state.
        out: folder of the run.
    """

    potential: Potential
    metrics: dict[str, Any]
    best_epoch: int
    epochs: int
    overlap: int
    out: Path


@dataclass(frozen=True, kw_only=True)
class _Parts:
    train: Dataset
    validation: Dataset
    test: Dataset
    overlap: int
    split: dict[str, Any]


def fit(
    config: TrainConfig | str | Path, *, resume: bool = True, progress: bool = True
) -> FitResult:
    """Train a potential, or continue where a run was stopped.

    Args:
        config: the run, or its TOML file.
        resume: continue the run in ``config.out`` if there is one; otherwise its
            presence is an error.
        progress: show a bar with the errors.

    Returns:
        The best potential and its errors; the same is in the folder.

    Raises:
        InputError: settings that cannot be used, or a folder that is in use, holds
            another run, or cannot be written.
        DataError: data that would teach something wrong.
        TrainingDiverged: the loss is not a number; the text names the systems.
    """
    if not isinstance(config, TrainConfig):
        config = TrainConfig.load(config)
    device = check_device(config.device)
    out = Path(config.out)
    with claimed(out, _OUTPUTS):
        before = read_run(out, _OUTPUTS, resume, ("config", "split.hash", "versions"))
        if before is not None:
            check_same(out, before["config"], config.identity())
        parts = _load_parts(config)
        info = _describe(out, config, parts)
        references = _references(config, parts.train)
        run = Trainer(config, parts.train.to(device), references, info)
        for part in (parts.train, parts.validation, parts.test):
            check_batch(run.potential, part.batch)
        if (out / "last.safetensors").exists():
            run.restore(out / "last.safetensors")
        try:
            _train(run, parts.validation.to(device), out, progress)
        except KeyboardInterrupt:
            print(
                f"stopped; {out} holds everything up to epoch {run.saved_epoch}: "
                "run the same command to continue",
                file=sys.stderr,
            )
            raise
        return _finish(run, parts, out)


def _load_parts(config: TrainConfig) -> _Parts:
    settings = config.data

    def read(files: tuple[str, ...]) -> Dataset:
        return load_dataset(
            files,
            settings.keys,
            properties=tuple(config.training.weights),
            level_of_theory=settings.level_of_theory,
            trust_labels=settings.trust_labels,
        )

    whole = read(settings.files)
    divide = random_split if settings.split == "random" else symmetry_split
    sizes = (settings.train, settings.validation, settings.test)
    rows = divide(whole, sizes, config.seed)
    train, validation, test = (whole.select(part) for part in rows)
    if settings.test_files:
        test = read(settings.test_files)
    if not len(train) or not len(validation):
        raise DataError(
            f"the {settings.split} split left {len(train)} systems to train and "
            f"{len(validation)} to validate on; ask for other sizes"
        )
    if len(test) and test.level_of_theory != train.level_of_theory:
        raise DataError(
            f"`data.test_files` are of the level {test.level_of_theory!r}, "
            f"`data.files` of {train.level_of_theory!r}: their energies cannot be "
            "compared"
        )
    copies = overlap(train, test) if len(test) else 0
    if copies:
        warnings.warn(
            f"{copies} of {len(test)} test systems copy a training system (up to "
            "rotation, reflection and exchange of like atoms) in the same state: their "
            "errors say little about new geometries; see data.split = 'symmetry'",
            MlffWarning,
            stacklevel=3,
        )
    names = ("train", "validation", "test")
    content = "".join(part.hash for part in (train, validation, test))
    split = {
        "method": settings.split,
        "seed": config.seed,
        "hash": hashlib.sha256(content.encode()).hexdigest(),
        "indices": dict(zip(names, rows, strict=True)),
    }
    return _Parts(
        train=train, validation=validation, test=test, overlap=copies, split=split
    )


def _describe(out: Path, config: TrainConfig, parts: _Parts) -> TrainingInfo:
    """Write ``run.json``, or compare with it, and return what the model file says."""
    path = out / RUN
    provenance: dict[str, Any] = {
        "config": config.identity(),
        "split": {k: v for k, v in parts.split.items() if k != "indices"},
        "sizes": {
            "train": len(parts.train),
            "validation": len(parts.validation),
            "test": len(parts.test),
        },
        "overlap": parts.overlap,
        "versions": versions(),
    }
    if path.exists():
        before = json.loads(path.read_text())
        if before["split"]["hash"] != parts.split["hash"]:
            raise DataError(
                f"`out`={out} holds a run on other data: the content of the files has "
                "changed; choose another folder or restore them"
            )
        warn_of_versions(out, before["versions"], provenance["versions"])
        provenance["versions"] = before["versions"]
    else:
        content = {**provenance, "split": parts.split}
        write_json(path, content)
    formulas = parts.train.batch.formulas()
    return TrainingInfo(
        elements=parts.train.elements,
        states=parts.train.states,
        formulas=formulas if len(formulas) <= MAX_FORMULAS else (),
        level_of_theory=parts.train.level_of_theory,
        provenance=provenance,
    )


def _references(config: TrainConfig, train: Dataset) -> dict[int, float]:
    if "energy" not in train.labels:
        return {}
    if not config.data.references:
        return fit_references(train)
    given = {atomic_numbers[s]: e for s, e in config.data.references.items()}
    check_references(train, given)
    return given


def _train(run: Trainer, validation: Dataset, out: Path, progress: bool) -> None:
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
                row = _validate(run, loss, validation, out)
                bar.set_postfix_str(f"MAE {told(row)}")


def _validate(
    run: Trainer, loss: float, validation: Dataset, out: Path
) -> dict[str, Any]:
    """Measure the averaged weights, keep them if they are the best, and checkpoint."""
    settings = run.config.training
    errors = all_residuals(run.average, validation)
    measured = float(errors.loss(settings.weights))
    if not math.isfinite(measured):
        raise TrainingDiverged(
            f"the validation loss after epoch {run.epoch} is not finite; the "
            f"checkpoint of epoch {run.saved_epoch} is untouched; lower training.rate"
        )
    metrics = summarise(errors, validation)
    row = {
        "epoch": run.epoch,
        "rate": learning_rate(settings, run.step - 1, run.steps_per_epoch),
        "train_loss": loss,
        "validation_loss": measured,
        **mean_errors(metrics["all"]),
    }
    run.history.append(row)
    if measured < run.best_loss:
        run.best_loss, run.best_epoch = measured, run.epoch
        run.average.info = replace(run.average.info, metrics={"validation": metrics})
        run.average.save(out / "best.safetensors")
    # In this order a kill between two files leaves a checkpoint that repeats the work
    # behind the newer ones and writes them again, bit for bit.
    run.save(out / "last.safetensors")
    write_log(out, list(row), run.history)
    return row


def _finish(run: Trainer, parts: _Parts, out: Path) -> FitResult:
    """Measure the best potential on everything that it was not trained on."""
    best = Potential.load(out / "best.safetensors", run.potential.device)
    metrics: dict[str, Any] = {"validation": evaluate(best, parts.validation)}
    shown = parts.test if len(parts.test) else parts.validation
    if len(parts.test):
        metrics["test"] = evaluate(best, parts.test)
    best.info = replace(best.info, metrics=metrics)
    best.save(out / "best.safetensors")
    shown = shown.to(best.device)
    plot_parity(out / "parity.png", shown, all_residuals(best, shown))
    plot_history(out / "loss.png", run.history)
    content = {"best_epoch": run.best_epoch, "overlap": parts.overlap, **metrics}
    write_json(out / "metrics.json", content)
    return FitResult(
        potential=best,
        metrics=metrics,
        best_epoch=run.best_epoch,
        epochs=run.epoch,
        overlap=parts.overlap,
        out=out,
    )
