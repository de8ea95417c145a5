"""Training: from a run file to a potential, stoppable and resumable at any moment.

All that changes during a run is in one checkpoint, ``last.safetensors``, replaced
atomically at every validation. The order of the systems depends on seed and epoch, the
learning rate on the step, so that a run that was killed and resumed ends with the bits
of one that was not (CPU, same versions, one thread). Nothing is pickled.

A run folder holds ``run.json`` (settings, data, split), ``best.safetensors`` (the
potential with the smallest validation loss), ``last.safetensors``, ``log.csv``, and at
the end ``metrics.json``, ``loss.png`` and ``parity.png``.

A committee is several such runs, which differ in the seed of the first weights and of
the order of the systems only.
"""

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers
from tqdm import tqdm

from mlff.committee import MAX_MEMBERS, Committee
from mlff.data import Dataset, fit_references
from mlff.device import check_device
from mlff.errors import DataError, InputError
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
from mlff.rundata import RunData, load_run_data
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
    "CommitteeResult",
    "DataConfig",
    "FitResult",
    "TrainConfig",
    "TrainingConfig",
    "TrainingDiverged",
    "evaluate",
    "fit",
    "fit_committee",
]

_WEIGHTS = ("best.safetensors", "last.safetensors")
_COMMITTEE = ("committee.safetensors", "committee.json", "committee_parity.png")
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
class CommitteeResult:
    """What the training of a committee made.

    Attributes:
        committee: of the best potential of each run, ready for inference.
        metrics: of the committee, as those of :class:`FitResult`.
        members: the runs.
        held_out: the systems that no run has trained on: those to test on, or those to
            validate on if there are none.
        out: folder of the runs.
    """

    committee: Committee
    metrics: dict[str, Any]
    members: list[FitResult]
    held_out: Dataset
    out: Path


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
        parts = load_run_data(config)
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


def fit_committee(
    config: TrainConfig | str | Path,
    members: int = 4,
    *,
    resume: bool = True,
    progress: bool = True,
) -> CommitteeResult:
    """Train the members of a committee one after the other, or continue.

    Member k is the run with ``seed + k`` in the folder ``out/member_k``; all share the
    split of ``seed``, so that what is held out is so for the whole committee. In
    ``out`` are at the end ``committee.safetensors``, ``committee.json`` (its errors)
    and ``committee_parity.png``.

    Args:
        config: the run, or its TOML file.
        members: how many.
        resume: continue runs that are there; otherwise their presence is an error.
        progress: say which member is trained, and show a bar with its errors.

    Returns:
        The committee, its errors, and those of its members.

    Raises:
        InputError, DataError, TrainingDiverged: as :func:`fit`.
    """
    whole = isinstance(members, int) and not isinstance(members, bool)
    if not whole or not 2 <= members <= MAX_MEMBERS:
        raise InputError(
            f"`members` must be an integer in 2 … {MAX_MEMBERS}, got {members!r}"
        )
    if not isinstance(config, TrainConfig):
        config = TrainConfig.load(config)
    out = Path(config.out)
    data = replace(config.data, split_seed=config.split_seed)
    results = []
    with claimed(out, _COMMITTEE):
        if (out / f"member_{members}").exists():
            raise InputError(
                f"`members`={members}, but `out`={out} holds more of them; ask for as "
                "many, or choose another folder"
            )
        for k in range(members):
            folder, seed = out / f"member_{k}", config.seed + k
            if progress:
                print(f"member {k + 1} of {members}: {folder}", file=sys.stderr)
            one = replace(config, out=str(folder), data=data, seed=seed)
            results.append(fit(one, resume=resume, progress=progress))
        parts = load_run_data(replace(config, data=data))
        return _join(results, parts, out)


def _join(results: list[FitResult], parts: RunData, out: Path) -> CommitteeResult:
    committee = Committee([one.potential for one in results])
    metrics = _measured(committee, parts)
    committee.info = replace(committee.info, metrics=metrics)
    committee.save(out / "committee.safetensors")
    held_out = parts.shown.to(committee.device)
    plot_parity(out / _COMMITTEE[2], held_out, all_residuals(committee, held_out))
    write_json(out / "committee.json", metrics)
    return CommitteeResult(
        committee=committee,
        metrics=metrics,
        members=results,
        held_out=parts.shown,
        out=out,
    )


def _describe(out: Path, config: TrainConfig, parts: RunData) -> TrainingInfo:
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
    states = parts.train.batch.formula_states()
    recorded = states if len(states) <= MAX_FORMULAS else {}
    return TrainingInfo(
        elements=parts.train.elements,
        states=parts.train.states,
        formulas=tuple(recorded),
        formula_states=recorded,
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
    measured = float(errors.loss(**settings.loss))
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


def _measured(potential: Potential, parts: RunData) -> dict[str, Any]:
    metrics: dict[str, Any] = {"validation": evaluate(potential, parts.validation)}
    if len(parts.test):
        metrics["test"] = evaluate(potential, parts.test)
    return metrics


def _finish(run: Trainer, parts: RunData, out: Path) -> FitResult:
    """Measure the best potential on everything that it was not trained on."""
    best = Potential.load(out / "best.safetensors", run.potential.device)
    metrics = _measured(best, parts)
    best.info = replace(best.info, metrics=metrics)
    best.save(out / "best.safetensors")
    shown = parts.shown.to(best.device)
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
