"""What a training run is told: data, model, loss, optimizer, schedule; no state.

The loss is that of eq. 15 of CMRET (arXiv:2308.10752):
``energy_weight · MSE(energy) + forces_weight · MSE(force components)``, in eV and eV/Å,
and likewise for other properties, in their units, by ``property_weights``; with
``huber_delta``, errors larger than that count linearly.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from mlff.config import from_table, read_toml
from mlff.data import LabelKeys
from mlff.device import DTYPES
from mlff.errors import InputError, InputTypeError
from mlff.properties import PROPERTIES, TARGETS


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to learn from.

    Attributes:
        files: labelled frames to split.
        train: systems to train on.
        validation: systems that choose the best weights.
        test: systems that are only measured on; taken from ``files``.
        test_files: measured on as well, whole; needs ``test = 0``.
        split: ``"random"`` or ``"symmetry"`` (copies of a geometry stay together).
        split_seed: of the split, if another than that of the run: the members of a
            committee, whose seeds differ, must be measured on what none has seen.
        keys: where labels are, and their units; detected if not given.
        level_of_theory: for files that do not state it.
        trust_labels: skip the checks of units, sign and size.
        references: energy of each element, eV, by symbol; least squares if empty.
    """

    files: tuple[str, ...]
    train: int
    validation: int
    test: int = 0
    test_files: tuple[str, ...] = ()
    split: str = "random"
    split_seed: int | None = None
    keys: LabelKeys | None = None
    level_of_theory: str = ""
    trust_labels: bool = False
    references: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.split not in ("random", "symmetry"):
            raise InputError(
                f"`data.split` must be 'random' or 'symmetry', got {self.split!r}"
            )
        if self.split_seed is not None:
            _check_seed("data.split_seed", self.split_seed)
        if self.train < 1 or self.validation < 1 or self.test < 0:
            raise InputError(
                "`data.train` and `data.validation` must be at least 1 and `data.test` "
                f"at least 0, got {self.train}, {self.validation}, {self.test}"
            )
        if not self.files:
            raise InputError("`data.files` is empty: name at least one file")
        if self.test and self.test_files:
            raise InputError("give `data.test` or `data.test_files`, not both")
        unknown = sorted(set(self.references) - set(atomic_numbers))
        if unknown:
            raise InputError(f"`data.references` has unknown elements: {unknown}")
        for symbol, energy in self.references.items():
            name = f"data.references.{symbol}"
            if isinstance(energy, bool) or not isinstance(energy, (int, float)):
                raise InputTypeError(f"`{name}` must be a number, got {energy!r}")
            if not math.isfinite(energy):
                raise InputError(f"`{name}` must be finite, got {energy}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to learn.

    Attributes:
        epochs: passes over the training systems, at most.
        batch_size: systems per step.
        energy_weight: of the mean squared error of energies, 1/eV².
        forces_weight: of the mean squared error of force components, Å²/eV².
        property_weights: of the mean squared error of other properties, by name, see
            :data:`mlff.properties.TARGETS`, one over their unit squared.
        huber_delta: errors beyond it, in eV, eV/Å and the units of other properties,
            count linearly (Huber), so that a few labels that cannot be learned, near
            crossings of states for example, do not rule the others; 0 for squares
            throughout.
        optimizer: ``"adam"`` or ``"adamw"``.
        weight_decay: of AdamW.
        schedule: ``"cosine"`` (linear warm-up, then down to ``floor``) or ``"cyclic"``
            (the paper's: up and down between ``floor`` and ``rate``, then once more
            between a hundredth of both).
        rate: highest learning rate.
        floor: lowest learning rate of the (first) cycle.
        warmup_epochs: length of the warm-up of ``"cosine"``.
        clip_norm: longest gradient; longer ones are scaled down.
        ema_decay: decay per step of the averaged weights, which are what is validated
            and kept; 0 for none.
        validate_every: epochs between two validations; each writes a checkpoint.
        patience: epochs without a better validation before stopping; 0 for never.
    """

    epochs: int
    batch_size: int = 10
    energy_weight: float = 0.2
    forces_weight: float = 0.8
    property_weights: dict[str, float] = field(default_factory=dict)
    huber_delta: float = 0.0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    rate: float = 1e-3
    floor: float = 1e-6
    warmup_epochs: int = 5
    clip_norm: float = 10.0
    ema_decay: float = 0.999
    validate_every: int = 1
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"`training.{name}` must be at least 1, got {getattr(self, name)}"
                )
        for name in (
            *("energy_weight", "forces_weight", "huber_delta", "weight_decay"),
            *("floor", "warmup_epochs", "patience"),
        ):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "≥ 0")
        for name in ("rate", "clip_norm"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "> 0")
        _check("ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "in [0, 1)")
        _check("floor", self.floor, self.floor <= self.rate, "≤ rate")
        self._check_property_weights()
        _check(
            "forces_weight",
            self.forces_weight,
            bool(self.weights),
            "> 0 if no other weight is",
        )
        for name, known in (
            ("optimizer", ("adam", "adamw")),
            ("schedule", ("cosine", "cyclic")),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"`training.{name}` must be one of {known}, got "
                    f"{getattr(self, name)!r}"
                )

    def _check_property_weights(self) -> None:
        for name, value in self.property_weights.items():
            if name not in TARGETS[2:]:
                raise InputError(
                    f"`training.property_weights` must name properties among "
                    f"{', '.join(TARGETS[2:])}, got {name!r}"
                )
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            key = f"property_weights.{name}"
            if not number:
                raise InputTypeError(
                    f"`training.{key}` must be a number, got {value!r}"
                )
            _check(key, value, value >= 0, "≥ 0")

    @property
    def weights(self) -> dict[str, float]:
        """What is learned: weight of each property, those that are 0 left out."""
        both = {"energy": self.energy_weight, "forces": self.forces_weight}
        both |= self.property_weights
        return {name: both[name] for name in TARGETS if both.get(name, 0.0) > 0}

    @property
    def loss(self) -> dict[str, Any]:
        """Arguments of :meth:`mlff.evaluation.Residuals.loss`."""
        return {"weights": self.weights, "huber_delta": self.huber_delta or math.inf}

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads that are trained."""
        return tuple(dict.fromkeys(PROPERTIES[name].head for name in self.weights))


def _check(name: str, value: float, holds: bool, needed: str) -> None:
    if not (holds and math.isfinite(value)):
        raise InputError(f"`training.{name}` must be {needed}, got {value}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        out: folder that the run writes into; created if missing.
        data: what to learn from.
        model: name and options of the model, see ``mlff.build_model``.
        training: how to learn.
        seed: of the split (but see :attr:`DataConfig.split_seed`), the first weights,
            and the order of the systems.
        dtype: of the network, ``"float32"`` or ``"float64"``.
        device: ``"cpu"`` or ``"cuda"``.
    """

    out: str
    data: DataConfig
    model: dict[str, Any]
    training: TrainingConfig
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if "name" not in self.model:
            raise InputError("the key `model.name` is missing")
        if self.dtype not in DTYPES:
            raise InputError(
                f"`dtype` must be one of {list(DTYPES)}, got {self.dtype!r}"
            )
        _check_seed("seed", self.seed)

    @property
    def split_seed(self) -> int:
        """Seed of the split."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    @classmethod
    def load(cls, path: str | Path) -> "TrainConfig":
        """Read a run file; its paths are relative to where it lies.

        Raises:
            InputError: not readable, an unknown or missing key, a value out of range.
            InputTypeError: a value of the wrong type.
        """
        config = from_table(cls, read_toml(path))
        folder = Path(path).parent

        def found(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(str(folder / name) for name in names)

        data = dataclasses.replace(
            config.data,
            files=found(config.data.files),
            test_files=found(config.data.test_files),
        )
        return dataclasses.replace(config, out=str(folder / config.out), data=data)

    def identity(self) -> dict[str, Any]:
        """What decides the result, JSON types: all but where files lie.

        The content of the data enters by its hash, the device by what it computes.
        """
        content = dataclasses.asdict(self)
        for name in ("files", "test_files"):
            content["data"][name] = [Path(p).name for p in content["data"][name]]
        del content["out"]
        # What a run of an older version does not mention.
        if self.split_seed == self.seed:
            del content["data"]["split_seed"]
        if not self.training.property_weights:
            del content["training"]["property_weights"]
        if not self.training.huber_delta:
            del content["training"]["huber_delta"]
        if self.data.keys and not self.data.keys.others:
            del content["data"]["keys"]["others"]
        return content


def _check_seed(name: str, seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"`{name}` must lie in 0 … 2^63 - 1, got {seed}")


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    total = config.epochs * steps_per_epoch
    if config.schedule == "cyclic":
        half = total / 2
        scale, position = (1.0, step) if step < half else (0.01, step - half)
        height = 1.0 - abs(2.0 * position / half - 1.0)
        return scale * (config.floor + (config.rate - config.floor) * height)
    warmup = min(config.warmup_epochs * steps_per_epoch, total)
    if step < warmup:
        return config.rate * (step + 1) / warmup
    part = (step - warmup) / max(total - warmup, 1)
    return config.floor + (config.rate - config.floor) * 0.5 * (
        1.0 + math.cos(math.pi * part)
    )


def ema_decay(config: TrainingConfig, step: int) -> float:
    """Return the decay of the averaged weights at a step, counted from 0.

    Small at first, so that the average forgets the random start: (1 + t) / (10 + t)
    until it reaches the set decay.
    """
    return min(config.ema_decay, (1.0 + step) / (10.0 + step))
