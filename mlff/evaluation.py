"""How wrong a potential is, overall and for each electronic state, and its pictures.

Errors are MAE and RMSE of total energies in meV, of force components in meV/Å, and of
other properties in the units of :data:`mlff.properties.PROPERTIES`, which the names of
metrics end in.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlff.data import Dataset, LabelKeys, label_dataset, labelled, read_named
from mlff.errors import DataError, InputError
from mlff.inference import check_batch
from mlff.neighbors import neighbor_list
from mlff.potential import Potential
from mlff.properties import PROPERTIES, TARGETS

# Fixed margins of two panels side by side; a layout engine costs more than the drawing.
_MARGINS = {"left": 0.08, "right": 0.98, "bottom": 0.13, "top": 0.92, "wspace": 0.25}


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Prediction minus label.

    Attributes:
        values: by property, as :attr:`mlff.dataset.Dataset.labels`.
    """

    values: dict[str, Tensor]

    def loss(
        self, weights: Mapping[str, float], huber_delta: float = math.inf
    ) -> Tensor:
        """Return the sum of the mean squared errors, each times its weight.

        Args:
            weights: by property.
            huber_delta: larger errors e count as δ (2 |e| − δ), which continues e² with
                its slope (Huber, Ann. Math. Stat. 35, 73 (1964), twice over).
        """
        parts = []
        for name, weight in weights.items():
            size = self.values[name].abs()
            near = size.clamp(max=huber_delta)
            parts.append(weight * (near * (2 * size - near)).mean())
        return torch.stack(parts).sum()


def residuals(
    potential: Potential, data: Dataset, *, create_graph: bool = False
) -> Residuals:
    """Evaluate one batch.

    Args:
        potential: what predicts.
        data: labelled systems on the device of the potential.
        create_graph: keep the graph, to train on the result.
    """
    edges = neighbor_list(data.batch, potential.cutoff)
    out = potential(data.batch, edges, tuple(data.labels), create_graph=create_graph)
    return Residuals(values={n: out[n] - label for n, label in data.labels.items()})


def all_residuals(
    potential: Potential, data: Dataset, max_atoms_per_call: int = 3000
) -> Residuals:
    """Evaluate a whole data set without gradients of the weights, batch by batch."""
    size = max(max_atoms_per_call // max(data.batch.max_atoms, 1), 1)
    parts = [
        residuals(potential, data.select(range(start, min(start + size, len(data)))))
        for start in range(0, len(data), size)
    ]
    return Residuals(
        values={n: torch.cat([part.values[n] for part in parts]) for n in data.labels}
    )


def summarise(errors: Residuals, data: Dataset) -> dict[str, dict[str, float]]:
    """Return the metrics of all systems and of each electronic state.

    Returns:
        ``"all"`` and, e.g., ``"charge +0, multiplicity 3"`` → ``n_systems``,
        ``energy_mae_meV``, ``energy_rmse_meV``, ``energy_max_meV``,
        ``forces_mae_meV_per_A`` and so on for each property with labels.
    """
    states = [str(state) for state in data.state_list]
    out = {}
    for name in ("all", *sorted(set(states))):
        chosen = torch.tensor([name in ("all", state) for state in states])
        chosen = chosen.to(data.batch.system.device)
        rows = {"system": chosen, "atom": chosen[data.batch.system]}
        row: dict[str, float] = {"n_systems": int(chosen.sum())}
        for what, values in errors.values.items():
            known = PROPERTIES[what]
            wrong = known.error_factor * values[rows[known.per]].abs()
            row[f"{what}_mae_{known.error_unit}"] = float(wrong.mean())
            row[f"{what}_rmse_{known.error_unit}"] = float(wrong.square().mean().sqrt())
            row[f"{what}_max_{known.error_unit}"] = float(wrong.max())
        out[name] = row
    return out


def mean_errors(row: Mapping[str, float]) -> dict[str, float]:
    """Return the mean absolute errors of a row of :func:`summarise`."""
    return {name: value for name, value in row.items() if "_mae_" in name}


def told(row: Mapping[str, float]) -> str:
    """Return the mean absolute errors of a row in words: ``"0.03 meV, 0.3 meV/Å"``."""
    return ", ".join(
        f"{value:.3g} {in_words(name.partition('_mae_')[2])}"
        for name, value in mean_errors(row).items()
    )


def evaluate(
    potential: Potential,
    data: Dataset | str | Path | Sequence[str | Path],
    *,
    keys: LabelKeys | None = None,
    trust_labels: bool = False,
    plot: str | Path | None = None,
) -> dict[str, dict[str, float]]:
    """Measure a potential on labelled systems.

    Args:
        potential: what predicts.
        data: labelled systems, or the files that hold them.
        keys: where the files have their labels; detected if not given.
        trust_labels: skip the checks of units, sign and size of the labels.
        plot: file for a parity plot, e.g. ``"parity.png"``.

    Returns:
        See :func:`summarise`: MAE, RMSE and largest error of energies (meV), force
        components (meV/Å) and whatever else the frames have labels of and the
        potential gives, for all systems and for each electronic state.

    Raises:
        DataError: labels that are missing or cannot be right.
        InputError: an element that the potential was not trained on, or a plot of a
            format that cannot be written.
    """
    if plot is not None:
        check_format(Path(plot), "plot")
    if not isinstance(data, Dataset):
        data = comparable(potential, data, keys, trust_labels)
    check_batch(potential, data.batch)
    data = data.to(potential.device)
    errors = all_residuals(potential, data)
    if plot is not None:
        plot_parity(plot, data, errors)
    return summarise(errors, data)


def comparable(
    potential: Potential,
    paths: str | Path | Sequence[str | Path],
    keys: LabelKeys | None = None,
    trust_labels: bool = False,
) -> Dataset:
    """Read all labels that a potential can be compared with.

    Args:
        potential: what predicts.
        paths: files of labelled frames.
        keys: where the files have their labels; detected if not given.
        trust_labels: skip the checks of the labels.

    Raises:
        DataError: labels that are missing or cannot be right.
    """
    frames, names = read_named(paths)
    present = labelled(frames, keys)
    known = [name for name in present if name in potential.properties]
    if "energy" in potential.heads and "energy" not in known:
        known.insert(0, "energy")  # missing, it is an error that says so
    if not known:
        targets = [name for name in potential.properties if name in TARGETS]
        raise DataError(
            f"the frames have no label of any of {', '.join(targets)}, which is what "
            "the potential gives; the keys are "
            f"{', '.join(str(PROPERTIES[name].label) for name in targets)}"
        )
    return label_dataset(
        frames, names, keys, properties=known, trust_labels=trust_labels
    )


def check_format(path: Path, argument: str) -> None:
    """Raise :class:`InputError` unless a picture of this name can be written."""
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise InputError(f"`{argument}`={path} must end in one of {known}, e.g. '.png'")


def plot_parity(path: str | Path, data: Dataset, errors: Residuals) -> None:
    """Draw predictions against labels, one color for each electronic state.

    Args:
        path: picture to write.
        data: the labelled systems.
        errors: of a potential on them.
    """
    from matplotlib.figure import Figure

    system = data.batch.system.cpu().numpy()
    states = np.array([str(state) for state in data.state_list])
    names = list(data.labels)
    figure = Figure(figsize=(4.5 * max(len(names), 2), 4.2))
    panels = figure.subplots(1, len(names), squeeze=False, gridspec_kw=_MARGINS)[0]
    for name, axes in zip(names, panels, strict=True):
        known = PROPERTIES[name]
        of = states if known.per == "system" else states[system]
        reference, wrong = _flat(data.labels[name]), _flat(errors.values[name])
        shift = float(reference[:, 0].mean()) if name == "energy" else 0.0
        for state in sorted(set(states.tolist())):
            rows = of == state
            x = reference[rows].ravel() - shift
            axes.plot(x, x + wrong[rows].ravel(), ".", markersize=3, label=state)
        ends = np.array([reference.min(), reference.max()]) - shift
        axes.plot(ends, ends, color="black", linewidth=0.8)
        zero = f" (less {shift:.3f})" if shift else ""
        title = f"{name.replace('_', ' ')}, {known.unit}{zero}"
        axes.set_xlabel(f"label: {title}")
        axes.set_ylabel(f"prediction: {title}")
        mae = known.error_factor * float(np.abs(wrong).mean())
        axes.set_title(f"MAE {mae:.3g} {in_words(known.error_unit)}")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def in_words(error_unit: str) -> str:
    """Return a unit as people write it: ``"meV/Å"`` for ``"meV_per_A"``."""
    return {"meV_per_A": "meV/Å", "A3": "Å³", "A2": "Å²"}.get(error_unit, error_unit)


def _flat(values: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.cpu().numpy()
    return array.reshape(len(array), -1)


def plot_history(path: str | Path, history: Sequence[dict[str, Any]]) -> None:
    """Draw loss and validation errors against the epoch.

    Args:
        path: picture to write.
        history: rows of the training log.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2))
    left, right = figure.subplots(1, 2, gridspec_kw=_MARGINS)
    epochs = [row["epoch"] for row in history]
    errors = [c for c in history[0] if "_mae_" in c] if history else []
    for axes, columns in (
        (left, {"train_loss": "training loss", "validation_loss": "validation loss"}),
        (right, {column: _error_in_words(column) for column in errors}),
    ):
        for column, label in columns.items():
            axes.plot(epochs, [row[column] for row in history], label=label)
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.legend()
    figure.savefig(path, dpi=120)


def _error_in_words(column: str) -> str:
    name, _, unit = column.partition("_mae_")
    return f"{name.replace('_', ' ')} MAE, {in_words(unit)}"
