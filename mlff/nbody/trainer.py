"""The state of an N-body run: what one epoch changes and one checkpoint holds.

Order, start frames and dropout of an epoch depend on seed and epoch, the learning rate
on the step, so that a checkpoint needs nothing else to continue bit for bit.
"""

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlff.device import DTYPES
from mlff.errors import InputError
from mlff.nbody.data import Trajectories, Windows
from mlff.nbody.networks import all_edges, build_network
from mlff.nbody.recipe import NBodyConfig
from mlff.tensorfile import (
    load_tensors,
    optimizer_tensors,
    part,
    restore_optimizer,
    save_tensors,
)
from mlff.trainer import TrainingDiverged

_FORMAT = "mlff-nbody-training"


@dataclass(frozen=True)
class Errors:
    """Mean squared errors over particles and components.

    Attributes:
        positions: of positions.
        velocities: of velocities; ``None`` where they are not predicted.
    """

    positions: float
    velocities: float | None

    @property
    def loss(self) -> float:
        """Mean over all that is predicted."""
        if self.velocities is None:
            return self.positions
        return 0.5 * (self.positions + self.velocities)


class NBodyTrainer:
    """All that changes during a run, and how it is kept.

    Args:
        config: the run.
        train: trajectories to learn from, on the device and in the dtype of the run.

    Attributes:
        network: the weights that are being trained.
        epoch: whole epochs done.
        saved_epoch: epoch of the last checkpoint.
        best_epoch: epoch with the smallest validation loss, 0 if none.
        best_loss: that loss.
        best: weights of that epoch.
        history: rows of the log.
        wall_s: seconds that epochs and validations took, over all resumptions.
        cpu_s: processor time of the same.
    """

    def __init__(self, config: NBodyConfig, train: Trajectories) -> None:
        settings = config.training
        self.config = config
        self.train = train
        self.device = train.positions.device
        self.steps_per_epoch = len(train) // settings.batch_size
        if not self.steps_per_epoch:
            raise InputError(
                f"`training.batch_size`={settings.batch_size} is more than the "
                f"{len(train)} training trajectories"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_network(
                predict_velocity=config.predict_velocity, **config.network
            )
        self.network = network.to(self.device, DTYPES[config.dtype])
        self._weights = [p for p in self.network.parameters() if p.requires_grad]
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
        self.optimizer = kind(
            self._weights,
            lr=settings.rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.epoch = self.saved_epoch = self.best_epoch = 0
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self.wall_s = self.cpu_s = 0.0
        self._clocks = time.perf_counter(), time.process_time()

    @property
    def n_parameters(self) -> int:
        """Number of weights that are trained."""
        return sum(p.numel() for p in self._weights)

    @property
    def n_parameters_used(self) -> int:
        """Number of weights that have had a gradient."""
        return sum(p.numel() for p in self._weights if p in self.optimizer.state)

    @property
    def done(self) -> bool:
        """Whether the epochs are used up."""
        return self.epoch >= self.config.training.epochs

    def run_epoch(self) -> float:
        """Train on every trajectory once, in an order that seed and epoch decide.

        Returns:
            Mean loss of the steps.

        Raises:
            TrainingDiverged: it is not a number.
        """
        size = self.config.training.batch_size * self.train.n_particles
        random = np.random.default_rng([self.config.seed, self.epoch])
        windows = self._drawn(random)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        on_gpu = [self.device] if self.device.type == "cuda" else []
        self.network.train()
        with torch.random.fork_rng(devices=on_gpu):
            torch.manual_seed(int(random.integers(2**63)))
            for index, batch in enumerate(windows.split(size)):
                total += self._take_step(index, batch)
        loss = float(total) / self.steps_per_epoch
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss of epoch {self.epoch + 1} or its gradient is not finite; "
                f"the checkpoint of epoch {self.saved_epoch} is untouched; lower "
                "`training.rate`, set `training.clip_norm`, or take fewer layers"
            )
        self.epoch += 1
        return loss

    def _drawn(self, random: np.random.Generator) -> Windows:
        """Cut the windows of an epoch: all at once, so that a step only computes."""
        n = self.steps_per_epoch * self.config.training.batch_size
        systems = random.permutation(len(self.train))[:n]
        starts = random.integers(0, self.train.n_starts, n)
        return self.train.windows(
            torch.from_numpy(systems).to(self.device),
            torch.from_numpy(starts).to(self.device),
        )

    def _take_step(self, index: int, batch: Windows) -> Tensor:
        settings = self.config.training
        edges = all_edges(settings.batch_size, self.train.n_particles, self.device)
        moved, changed = self.network(
            batch.positions, batch.velocities, batch.charges, edges
        )
        loss = nn.functional.mse_loss(moved, batch.displacements)
        if changed is not None:
            other = nn.functional.mse_loss(changed, batch.accelerations)
            loss = 0.5 * (loss + other)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        longest = settings.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._weights, longest)
        done = (self.epoch + index / self.steps_per_epoch) / settings.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate_at(done)
        self.optimizer.step()
        # A gradient beyond all numbers would freeze the weights without a word.
        return torch.where(norm.isfinite(), loss.detach(), torch.nan)

    @torch.no_grad()
    def errors(self, part: Trajectories) -> Errors:
        """Measure the weights on the first window of every trajectory."""
        n_particles = part.n_particles
        size = self.config.training.batch_size * n_particles
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.network.eval()
        for batch in part.first_windows().split(size):
            n_systems = len(batch.positions) // n_particles
            edges = all_edges(n_systems, n_particles, self.device)
            moved, changed = self.network(
                batch.positions, batch.velocities, batch.charges, edges
            )
            sums[0] += (moved - batch.displacements).double().square().sum()
            if changed is not None:
                sums[1] += (changed - batch.accelerations).double().square().sum()
        positions, velocities = (sums / (3 * n_particles * len(part))).tolist()
        return Errors(positions, velocities if self.config.predict_velocity else None)

    def keep_as_best(self, loss: float) -> None:
        """Remember the weights as those with the smallest validation loss."""
        self.best_loss, self.best_epoch = loss, self.epoch
        self.best = copy.deepcopy(self.network.state_dict())

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on."""
        tensors = {f"model/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        tensors |= optimizer_tensors(self.optimizer)
        clocks = time.perf_counter(), time.process_time()
        self.wall_s += clocks[0] - self._clocks[0]
        self.cpu_s += clocks[1] - self._clocks[1]
        self._clocks = clocks
        header = {
            "format": _FORMAT,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "history": self.history,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }
        save_tensors(path, tensors, header)
        self.saved_epoch = self.epoch

    def restore(self, path: Path) -> None:
        """Continue from what :meth:`save` wrote.

        Raises:
            InputError: another file.
        """
        tensors, header = load_tensors(path)
        if header.get("format") != _FORMAT:
            raise InputError(f"{path} is not the checkpoint of an N-body run")
        self.network.load_state_dict(part(tensors, "model"))
        self.best = part(tensors, "best")
        restore_optimizer(self.optimizer, tensors)
        self.epoch = self.saved_epoch = header["epoch"]
        self.best_epoch, self.best_loss = header["best_epoch"], header["best_loss"]
        self.history = header["history"]
        self.wall_s, self.cpu_s = header["wall_s"], header["cpu_s"]
        self._clocks = time.perf_counter(), time.process_time()
