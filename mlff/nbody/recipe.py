"""What an N-body training run is told: data, network, loss, schedule; no state."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlff.config import from_table, read_toml
from mlff.device import DTYPES
from mlff.errors import InputError

_OPTIMIZERS = ("adam", "adamw")
_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class NBodyTraining:
    """How to learn. The loss is the mean squared error of what is predicted.

    Attributes:
        epochs: passes over the training trajectories.
        batch_size: systems per step; an incomplete last batch is left out.
        rate: learning rate, of the first step.
        schedule: ``"constant"``, or ``"cosine"`` down to zero at the end.
        optimizer: ``"adam"`` (weight decay is added to the gradient) or ``"adamw"``.
        weight_decay: of the optimizer.
        clip_norm: longest gradient, longer ones are scaled down; 0 for any length.
        validate_every: epochs between two validations; each writes a checkpoint.
    """

    epochs: int
    batch_size: int = 100
    rate: float = 5e-4
    schedule: str = "constant"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    validate_every: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"`training.{name}` must be at least 1, got {value}")
        if not 0 < self.rate < math.inf:
            raise InputError(f"`training.rate` must be > 0, got {self.rate}")
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"`training.{name}` must be ≥ 0, got {value}")
        for name, known in (("schedule", _SCHEDULES), ("optimizer", _OPTIMIZERS)):
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    f"`training.{name}` must be one of {known}, got {value!r}"
                )

    def rate_at(self, done: float) -> float:
        """Return the learning rate after a part of all steps, 0 … 1."""
        if self.schedule == "constant":
            return self.rate
        return self.rate * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class NBodyConfig:
    """An N-body training run.

    Attributes:
        task: ``"nbody"``, by which ``mlff train`` knows such a run file.
        out: folder that the run writes into; created if missing.
        data: file that ``data_gen/nbody.py`` wrote.
        variant: ``"B"``, ``"C"`` or ``"D"``; what the file must be.
        network: name and options, see :func:`mlff.nbody.build_network`.
        training: how to learn.
        predict_velocity: predict the change of velocities as well.
        seed: of the first weights and the order of the trajectories.
        dtype: of the network, ``"float32"`` or ``"float64"``.
        device: ``"cpu"`` or ``"cuda"``.
    """

    task: str = "nbody"
    out: str
    data: str
    variant: str
    network: dict[str, Any]
    training: NBodyTraining
    predict_velocity: bool = False
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.task != "nbody":
            raise InputError(f"`task` must be 'nbody', got {self.task!r}")
        if "name" not in self.network:
            raise InputError("the key `network.name` is missing")
        if "predict_velocity" in self.network:
            raise InputError(
                f"`predict_velocity`={self.network['predict_velocity']!r} stands in "
                "[network], but it is a key of the run file, not of [network]; move it "
                "above the first [table]"
            )
        if self.dtype not in DTYPES:
            raise InputError(
                f"`dtype` must be one of {list(DTYPES)}, got {self.dtype!r}"
            )
        if not 0 <= self.seed < 2**63:
            raise InputError(f"`seed` must lie in 0 … 2^63 - 1, got {self.seed}")

    @classmethod
    def load(cls, path: str | Path) -> "NBodyConfig":
        """Read a run file; its paths are relative to where it lies.

        Raises:
            InputError: not readable, an unknown or missing key, a value out of range.
            InputTypeError: a value of the wrong type.
        """
        config = from_table(cls, read_toml(path))
        folder = Path(path).parent
        return dataclasses.replace(
            config, out=str(folder / config.out), data=str(folder / config.data)
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, JSON types: all but where files lie."""
        content = dataclasses.asdict(self)
        content["data"] = Path(self.data).name
        del content["out"]
        return content
