"""The systems of a training run: read, split, and compared with each other."""

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

from mlff.data import Dataset, load_dataset, overlap, random_split, symmetry_split
from mlff.errors import DataError, MlffWarning
from mlff.recipe import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The systems of a run.

    Attributes:
        train: to learn from.
        validation: to choose the best weights by.
        test: to measure on only; may be empty.
        overlap: test systems that copy a training system in the same state.
        split: how they were chosen, JSON types.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    overlap: int
    split: dict[str, Any]

    @property
    def shown(self) -> Dataset:
        """What a picture shows the errors of."""
        return self.test if len(self.test) else self.validation


def load_run_data(config: TrainConfig) -> RunData:
    """Read and split the data of a run.

    Args:
        config: the run.

    Raises:
        DataError: data that would teach something wrong, or too few of them.
    """
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
    rows = divide(whole, sizes, config.split_seed)
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
        "seed": config.split_seed,
        "hash": hashlib.sha256(content.encode()).hexdigest(),
        "indices": dict(zip(names, rows, strict=True)),
    }
    return RunData(
        train=train, validation=validation, test=test, overlap=copies, split=split
    )
