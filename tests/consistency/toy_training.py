"""A training run of a second, for the tests of training and of resuming."""

import dataclasses
from pathlib import Path

import ase.io

from mlff.data import fit_references, load_dataset
from mlff.potential import TrainingInfo
from mlff.testing.labelled import labelled_frames
from mlff.train import DataConfig, TrainConfig, TrainingConfig
from mlff.trainer import Trainer

MODEL = {"name": "cmret", "n_features": 8, "n_layers": 1, "n_heads": 2, "n_radial": 8}

RESULTS = (
    "best.safetensors",
    "last.safetensors",
    "log.csv",
    "metrics.json",
    "run.json",
)


def write_toy_data(path: Path) -> Path:
    ase.io.write(path, labelled_frames(44), format="extxyz")
    return path


def toy_config(data_file: Path, out: Path, **changes) -> TrainConfig:
    config = TrainConfig(
        out=str(out),
        data=DataConfig(files=(str(data_file),), train=24, validation=8, test=12),
        model=MODEL,
        training=TrainingConfig(
            epochs=4, batch_size=5, rate=5e-3, warmup_epochs=1, ema_decay=0.9
        ),
        seed=7,
    )
    return dataclasses.replace(config, **changes)


def changed(config: TrainConfig, **training) -> TrainConfig:
    new = dataclasses.replace(config.training, **training)
    return dataclasses.replace(config, training=new)


def contents(folder: str | Path) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in RESULTS}


def trainer_of(config: TrainConfig) -> Trainer:
    data = load_dataset(config.data.files).select(range(24))
    info = TrainingInfo(elements=data.elements, states=data.states)
    return Trainer(config, data, fit_references(data), info)


class Stop:
    """Raise once, at a given optimizer step of a run."""

    def __init__(self, monkeypatch, step: int, error: BaseException) -> None:
        self.step, self.error, self.left = step, error, 1
        self.original = Trainer._take_step
        monkeypatch.setattr(Trainer, "_take_step", lambda *a: self(*a))

    def __call__(self, run, step, rows):
        if step == self.step and self.left:
            self.left = 0
            raise self.error
        return self.original(run, step, rows)
