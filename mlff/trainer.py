"""The state of a training run: what one epoch changes and one checkpoint holds.

Knows weights, their average, the optimizer and the order of the systems; knows nothing
of folders, splits or plots. The order depends on seed and epoch, the learning rate on
the step, so that nothing else needs to be kept to continue bit for bit.
"""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlff.data import Dataset
from mlff.device import DTYPES
from mlff.errors import InputError, MlffError
from mlff.evaluation import all_residuals, residuals
from mlff.potential import Potential, TrainingInfo
from mlff.properties import PROPERTIES
from mlff.recipe import TrainConfig, ema_decay, learning_rate
from mlff.region import Region
from mlff.tensorfile import (
    load_tensors,
    optimizer_tensors,
    part,
    restore_optimizer,
    save_tensors,
)

_FORMAT = "mlff-training"


class TrainingDiverged(MlffError, ArithmeticError):
    """The loss or its gradient is not a number; the last checkpoint is untouched."""


class Trainer:
    """All that changes during a run, and how it is kept.

    Args:
        config: the run.
        train: systems to learn from, on the device to train on.
        references: energy of each element, eV, by atomic number.
        info: what the model file will say; its region is measured here.

    Attributes:
        potential: the weights that are being trained.
        average: their exponential moving average, what is validated and kept.
        epoch: whole epochs done.
        saved_epoch: epoch of the last checkpoint.
        best_epoch: epoch with the smallest validation loss, 0 if none.
        best_loss: that loss.
        history: rows of the log.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: Dataset,
        references: dict[int, float],
        info: TrainingInfo,
    ) -> None:
        self.config = config
        self.train = train
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.potential = Potential.build(
                config.model,
                references,
                info,
                DTYPES[config.dtype],
                heads=config.training.heads,
            ).to(train.batch.system.device)
        region = Region.from_batch(train.batch, self.potential.cutoff)
        self.potential.info = replace(info, region=region.to_json())
        self.average = copy.deepcopy(self.potential).eval().requires_grad_(False)
        self._weights = list(self.potential.parameters())
        self._means = list(self.average.parameters())
        settings = config.training
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
        self.optimizer = kind(
            self._weights,
            lr=settings.rate,
            weight_decay=settings.weight_decay
            if settings.optimizer == "adamw"
            else 0.0,
            fused=True,
        )
        self.steps_per_epoch = math.ceil(len(train) / settings.batch_size)
        self.epoch = 0
        self.saved_epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf
        self.history: list[dict[str, Any]] = []

    @property
    def step(self) -> int:
        """Optimizer steps of all whole epochs so far."""
        return self.epoch * self.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether the epochs or the patience are used up."""
        settings = self.config.training
        waited = self.saved_epoch - self.best_epoch
        return self.epoch >= settings.epochs or 0 < settings.patience <= waited

    def run_epoch(self) -> float:
        """Train on every system once, in an order that seed and epoch decide.

        Returns:
            Mean loss of the steps.
        """
        settings = self.config.training
        order = np.random.default_rng([self.config.seed, self.epoch])
        rows = torch.from_numpy(order.permutation(len(self.train)))
        total = 0.0
        for index, chosen in enumerate(rows.split(settings.batch_size)):
            total += self._take_step(self.step + index, chosen)
        self.epoch += 1
        return total / self.steps_per_epoch

    def _take_step(self, step: int, chosen: Tensor) -> float:
        settings = self.config.training
        data = self.train.select(chosen)
        errors = residuals(self.potential, data, create_graph=True)
        loss = errors.loss(**settings.loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._weights, settings.clip_norm)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            self._refuse(step, data)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, self.steps_per_epoch)
        self.optimizer.step()
        decay = ema_decay(settings, step)
        with torch.no_grad():
            for mean, new in zip(self._means, self._weights, strict=True):
                mean.lerp_(new, 1.0 - decay)
        return value

    def _refuse(self, step: int, data: Dataset) -> None:
        """Raise with the names of the systems that made a step impossible."""
        errors = all_residuals(self.potential, data)
        bad = torch.zeros(len(data), dtype=torch.bool)
        for name, values in errors.values.items():
            wrong = ~values.reshape(len(values), -1).isfinite().all(1).cpu()
            per_atom = PROPERTIES[name].per == "atom"
            bad[data.batch.system.cpu()[wrong] if per_atom else wrong] = True
        rows = torch.nonzero(bad).ravel().tolist() or range(len(data))
        names = "; ".join(data.names[row] for row in list(rows)[:5])
        raise TrainingDiverged(
            f"the loss or its gradient is not finite at step {step} (epoch "
            f"{self.epoch + 1}) on {names}. The checkpoint of epoch {self.saved_epoch} "
            "is untouched; look at these systems, or lower training.rate"
        )

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on."""
        tensors = {f"model/{k}": v for k, v in self.potential.state_dict().items()}
        for name, mean in self.average.named_parameters():
            tensors[f"average/{name}"] = mean
        tensors |= optimizer_tensors(self.optimizer)
        header = {
            "format": _FORMAT,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "history": self.history,
        }
        self.saved_epoch = self.epoch
        save_tensors(path, tensors, header)

    def restore(self, path: Path) -> None:
        """Continue from what :meth:`save` wrote."""
        tensors, header = load_tensors(path)
        if header.get("format") != _FORMAT:
            raise InputError(f"{path} is not the checkpoint of a training run")
        self.potential.load_state_dict(part(tensors, "model"))
        average = {**part(tensors, "model"), **part(tensors, "average")}
        self.average.load_state_dict(average)
        restore_optimizer(self.optimizer, tensors)
        self.epoch = self.saved_epoch = header["epoch"]
        self.best_epoch = header["best_epoch"]
        self.best_loss = header["best_loss"]
        self.history = header["history"]
