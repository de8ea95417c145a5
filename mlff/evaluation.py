"""How wrong a potential is, overall and for each electronic state, and its pictures.

Errors are MAE and RMSE of total energies in meV and of force components in meV/Å.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlff.data import Dataset, LabelKeys, load_dataset
from mlff.errors import InputError
from mlff.inference import check_batch
from mlff.neighbors import neighbor_list
from mlff.potential import Potential

# From eV to the meV in which errors are told.
_MILLI = 1e3

# Fixed margins of two panels side by side; a layout engine costs more than the drawing.
_MARGINS = {"left": 0.08, "right": 0.98, "bottom": 0.13, "top": 0.92, "wspace": 0.25}


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Prediction minus label.

    Attributes:
        energy: (n_systems,), float64, eV.
        forces: (n_atoms, 3), float64, eV/Å.
    """

    energy: Tensor
    forces: Tensor

    def loss(self, energy_weight: float, forces_weight: float) -> Tensor:
        """Return ``energy_weight · MSE(energy) + forces_weight · MSE(forces)``."""
        return (
            energy_weight * self.energy.square().mean()
            + forces_weight * self.forces.square().mean()
        )


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
    out = potential(data.batch, edges, ("energy", "forces"), create_graph=create_graph)
    return Residuals(
        energy=out["energy"] - data.energy, forces=out["forces"] - data.forces
    )


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
        energy=torch.cat([part.energy for part in parts]),
        forces=torch.cat([part.forces for part in parts]),
    )


def summarise(errors: Residuals, data: Dataset) -> dict[str, dict[str, float]]:
    """Return the metrics of all systems and of each electronic state.

    Returns:
        ``"all"`` and, e.g., ``"charge +0, multiplicity 3"`` → ``n_systems``,
        ``energy_mae_meV``, ``energy_rmse_meV``, ``energy_max_meV``,
        ``forces_mae_meV_per_A``, ``forces_rmse_meV_per_A``, ``forces_max_meV_per_A``.
    """
    states = [str(state) for state in data.state_list]
    out = {}
    for name in ("all", *sorted(set(states))):
        chosen = torch.tensor([name in ("all", state) for state in states])
        chosen = chosen.to(errors.energy.device)
        row: dict[str, float] = {"n_systems": int(chosen.sum())}
        forces = errors.forces[chosen[data.batch.system]]
        for what, unit, values in (
            ("energy", "meV", errors.energy[chosen].abs()),
            ("forces", "meV_per_A", forces.abs()),
        ):
            row[f"{what}_mae_{unit}"] = _MILLI * float(values.mean())
            row[f"{what}_rmse_{unit}"] = _MILLI * float(values.square().mean().sqrt())
            row[f"{what}_max_{unit}"] = _MILLI * float(values.max())
        out[name] = row
    return out


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
        See :func:`summarise`: MAE, RMSE and largest error of energies (meV) and force
        components (meV/Å), for all systems and for each electronic state.

    Raises:
        DataError: labels that are missing or cannot be right.
        InputError: an element that the potential was not trained on, or a plot of a
            format that cannot be written.
    """
    if plot is not None:
        _check_format(Path(plot))
    if not isinstance(data, Dataset):
        data = load_dataset(data, keys, trust_labels=trust_labels)
    check_batch(potential, data.batch)
    data = data.to(potential.device)
    errors = all_residuals(potential, data)
    if plot is not None:
        plot_parity(plot, data, errors)
    return summarise(errors, data)


def _check_format(path: Path) -> None:
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise InputError(f"`plot`={path} must end in one of {known}, e.g. '.png'")


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
    figure = Figure(figsize=(9, 4.2))
    left, right = figure.subplots(1, 2, gridspec_kw=_MARGINS)
    for axes, labels, error, of, unit in (
        (left, data.energy, errors.energy, states, "energy, eV"),
        (right, data.forces, errors.forces, states[system], "force component, eV/Å"),
    ):
        reference, wrong = _flat(labels), _flat(error)
        shift = float(reference[:, 0].mean()) if unit.startswith("energy") else 0.0
        for state in sorted(set(states.tolist())):
            rows = of == state
            x = reference[rows].ravel() - shift
            axes.plot(x, x + wrong[rows].ravel(), ".", markersize=3, label=state)
        ends = np.array([reference.min(), reference.max()]) - shift
        axes.plot(ends, ends, color="black", linewidth=0.8)
        zero = f" (less {shift:.3f})" if shift else ""
        axes.set_xlabel(f"label: {unit}{zero}")
        axes.set_ylabel(f"prediction: {unit}{zero}")
        mae = _MILLI * float(np.abs(wrong).mean())
        axes.set_title(f"MAE {mae:.3g} m{unit.rsplit(', ', 1)[1]}")
    left.legend()
    figure.savefig(path, dpi=120)


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
    for axes, columns in (
        (left, {"train_loss": "training loss", "validation_loss": "validation loss"}),
        (
            right,
            {
                "energy_mae_meV": "energy MAE, meV",
                "forces_mae_meV_per_A": "force component MAE, meV/Å",
            },
        ),
    ):
        for column, label in columns.items():
            axes.plot(epochs, [row[column] for row in history], label=label)
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.legend()
    figure.savefig(path, dpi=120)
