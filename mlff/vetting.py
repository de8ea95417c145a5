"""Checks that tell a data set from one that would teach something wrong.

Knows what labels must look like whatever made them: finite, of a possible size,
energies and forces of one surface, in the declared units and with the right sign. What
cannot be right is an error; what may be right is a warning with a count.
"""

import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from mlff.dataset import Dataset, composition, fit_references
from mlff.errors import DataError, MlffWarning
from mlff.properties import PROPERTIES
from mlff.units import ENERGY_UNITS, HARTREE

Array = NDArray[np.float64]

#: Largest force component that a label may have, eV/Å.
MAX_FORCE = 50.0

#: Mean size of the forces of a data set must lie here, eV/Å.
MEAN_FORCE = (0.05, 20.0)

#: Energies less their references may spread by this, eV per atom.
MAX_SPREAD = 10.0

#: ΔE against −F·Δr over pairs of close frames must have a slope in this range.
SLOPE = (0.75, 1.33)

#: Net force (eV/Å) and torque (eV) of an isolated system that DFT noise explains.
NET_FORCE, NET_TORQUE = 0.02, 0.05

# Pairs of frames count as close if no atom moved further than this, Å.
_CLOSE = 0.3
# Fewest pairs that a slope is read from, and most frames that are searched for them.
_MIN_PAIRS, _MAX_SEARCHED = 20, 1000
# Energies of one isolated atom in one state differ by no more than this, eV.
_ATOM_NOISE = 1e-3
_OVERRIDE = "if the labels are right all the same, set trust_labels"


def vet(dataset: Dataset, *, trust_labels: bool = False) -> None:
    """Raise or warn about labels that cannot or need not be right.

    Args:
        dataset: what to check.
        trust_labels: skip the checks of units, sign and size, which unusual but
            correct data may fail; never those of what is not a number.

    Raises:
        DataError: labels that are not finite; unless trusted, forces beyond
            ``MAX_FORCE``, sizes that betray other units, energies that are not those
            of the forces.

    Warns:
        MlffWarning: repeated frames, net forces or torques, isolated atoms with
            several energies.
    """
    _check_finite(dataset)
    energy, forces = "energy" in dataset.labels, "forces" in dataset.labels
    if not trust_labels:
        if forces:
            _check_forces(dataset)
        if energy:
            _check_spread(dataset)
            _check_total_energy(dataset)
        if energy and forces:
            _check_slope(dataset)
    _check_tensors(dataset)
    if forces:
        _warn_about_net_forces(dataset)
    _warn_about_repeats(dataset)
    if energy:
        _warn_about_atoms(dataset)


def _name(dataset: Dataset, flags: Tensor) -> str:
    """First of the flagged systems, and how many there are."""
    rows = torch.nonzero(flags).ravel().tolist()
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"{dataset.names[rows[0]]}{more}"


def _per_system(dataset: Dataset, atoms: Tensor) -> Tensor:
    """Whether any atom of each system is flagged, (n_systems,)."""
    flags = torch.zeros(len(dataset), dtype=torch.bool)
    flags[dataset.batch.system[atoms]] = True
    return flags


def _check_finite(dataset: Dataset) -> None:
    for name, label in dataset.labels.items():
        flags = ~label.reshape(len(label), -1).isfinite().all(1)
        if PROPERTIES[name].per == "atom":
            flags = _per_system(dataset, flags)
        if flags.any():
            raise DataError(f"{name} is not finite in {_name(dataset, flags)}")


def _check_tensors(dataset: Dataset) -> None:
    """Refuse polarizabilities that are not symmetric and norms below zero."""
    tensor = dataset.labels.get("polarizability")
    if tensor is not None:
        skew = (tensor - tensor.mT).abs().amax((1, 2))
        flags = skew > 1e-3 * tensor.abs().amax((1, 2)) + 1e-6
        if flags.any():
            raise DataError(
                f"polarizability is not symmetric in {_name(dataset, flags)}"
            )
    for name in ("dipole_norm", "polarizability_norm", "spatial_extent"):
        label = dataset.labels.get(name)
        if label is not None and (label < 0).any():
            raise DataError(f"{name} is negative in {_name(dataset, label < 0)}")


def _check_forces(dataset: Dataset) -> None:
    flags = _per_system(dataset, (dataset.forces.abs() > MAX_FORCE).any(1))
    if flags.any():
        raise DataError(
            f"force component beyond {MAX_FORCE:g} eV/Å in {_name(dataset, flags)}; "
            f"check the unit; {_OVERRIDE}"
        )
    inside = dataset.batch.counts()[dataset.batch.system] > 1
    if inside.any():
        mean = float(torch.linalg.vector_norm(dataset.forces[inside], dim=1).mean())
        if not MEAN_FORCE[0] <= mean <= MEAN_FORCE[1]:
            raise DataError(
                f"the mean force is {mean:.3g} eV/Å, expected {MEAN_FORCE[0]:g} … "
                f"{MEAN_FORCE[1]:g}: declare the unit (forces_unit); {_OVERRIDE}"
            )


def _check_spread(dataset: Dataset) -> None:
    references = fit_references(dataset)
    rest = dataset.energy.numpy() - composition(dataset) @ np.array(
        list(references.values())
    )
    spread = float(np.ptp(rest / dataset.batch.counts().numpy()))
    if spread > MAX_SPREAD:
        raise DataError(
            f"energies less their references spread over {spread:.3g} eV per atom, "
            f"expected at most {MAX_SPREAD:g}: declare the unit (energy_unit); "
            f"{_OVERRIDE}"
        )


def _check_total_energy(dataset: Dataset) -> None:
    """Recognise all-electron total energies in another unit than declared.

    Their size is known to a few percent from the asymptotic expansion in the nuclear
    charge (Thomas-Fermi, Scott, Schwinger), so a factor between units stands out.
    """
    z = dataset.batch.numbers.double()
    atoms = -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)
    expected = torch.zeros(len(dataset), dtype=torch.float64)
    expected.index_add_(0, dataset.batch.system, atoms * HARTREE)
    ratio = float((dataset.energy / expected).median())
    for unit, factor in ENERGY_UNITS.items():
        if factor != 1.0 and abs(ratio * factor - 1.0) < 0.05:
            raise DataError(
                f"the energies look like total energies in {unit}, read as eV: set "
                f"energy_unit={unit!r}; {_OVERRIDE}"
            )


def _check_slope(dataset: Dataset) -> None:
    work, change = _close_pairs(dataset)
    if len(work) < _MIN_PAIRS:
        return
    slope = float(work @ change / (work @ work))
    likeness = float(work @ change / np.sqrt((work @ work) * (change @ change)))
    if SLOPE[0] <= slope <= SLOPE[1] and likeness > 0.7:
        return
    if slope < 0:
        cause = "the forces have the sign of the gradient, or are of other frames"
    elif likeness <= 0.7:
        cause = "energies and forces are not of the same frames or the same surface"
    else:
        cause = "energy and forces are in units that do not belong together"
    raise DataError(
        f"over {len(work)} pairs of close frames the energy changes by {slope:.3g} "
        f"times −F·Δr (correlation {likeness:.2f}), which must be 1: {cause}; "
        f"{_OVERRIDE}"
    )


def _split(dataset: Dataset, per_atom: Tensor) -> list[NDArray[Any]]:
    """One array for each system."""
    return np.split(per_atom.numpy(), np.cumsum(dataset.batch.counts().numpy())[:-1])


def _close_pairs(dataset: Dataset) -> tuple[Array, Array]:
    """Work −F̄·Δr and energy difference of close frames in the same state, eV."""
    numbers = _split(dataset, dataset.batch.numbers)
    positions = _split(dataset, dataset.batch.positions)
    forces = _split(dataset, dataset.forces)
    energy = dataset.energy.numpy()
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, state in enumerate(dataset.state_list):
        cell = dataset.batch.cell[index].numpy().tobytes()
        groups[numbers[index].tobytes(), cell, state].append(index)
    work, change = [np.zeros(0)], [np.zeros(0)]
    for members in groups.values():
        rows = members[:_MAX_SEARCHED]
        if len(rows) < 2 or len(positions[rows[0]]) < 2:
            continue
        r = np.stack([positions[k] - positions[k].mean(0) for k in rows])
        f = np.stack([forces[k] for k in rows])
        flat = r.reshape(len(rows), -1)
        near = cKDTree(flat).query(flat, k=2)[1][:, 1]
        step = r[near] - r
        size = np.linalg.norm(step, axis=2).max(1)
        keep = (size > 0) & (size < _CLOSE)
        mean = 0.5 * (f + f[near])
        work.append(-(mean * step).sum((1, 2))[keep])
        change.append((energy[rows][near] - energy[rows])[keep])
    return np.concatenate(work), np.concatenate(change)


def _warn(text: str) -> None:
    warnings.warn(text, MlffWarning, stacklevel=4)


def _warn_about_net_forces(dataset: Dataset) -> None:
    batch = dataset.batch
    zeros = torch.zeros(len(dataset), 3, dtype=torch.float64)
    counts = batch.counts()[:, None]
    center = zeros.index_add(0, batch.system, batch.positions) / counts
    arm = batch.positions - center[batch.system]
    torque = torch.linalg.cross(arm, dataset.forces)
    isolated = ~batch.pbc.any(1)
    for what, per_atom, limit, unit in (
        ("net force", dataset.forces, NET_FORCE, "eV/Å"),
        ("torque", torque, NET_TORQUE, "eV"),
    ):
        net = torch.linalg.vector_norm(
            zeros.index_add(0, batch.system, per_atom), dim=1
        )
        flags = isolated & (net > limit)
        if flags.any():
            worst = float(net[flags].max())
            _warn(
                f"{int(flags.sum())} of {len(dataset)} isolated systems have a {what} "
                f"above {limit:g} {unit} (largest {worst:.3g}), which no potential can "
                f"fit: {_name(dataset, flags)}"
            )


def _warn_about_repeats(dataset: Dataset) -> None:
    batch = dataset.batch
    parts = zip(
        _split(dataset, batch.numbers),
        _split(dataset, batch.positions.round(decimals=6) + 0.0),
        (batch.cell.round(decimals=6) + 0.0).numpy(),
        dataset.state_list,
        strict=True,
    )
    seen: set[tuple[Any, ...]] = set()
    repeats = []
    for numbers, positions, cell, state in parts:
        key = (numbers.tobytes(), positions.tobytes(), cell.tobytes(), state)
        repeats.append(key in seen)
        seen.add(key)
    flags = torch.tensor(repeats)
    if flags.any():
        _warn(
            f"{int(flags.sum())} of {len(dataset)} frames repeat an earlier one: "
            f"{_name(dataset, flags)}; remove them, or a split will leak"
        )


def _warn_about_atoms(dataset: Dataset) -> None:
    energies: dict[tuple[int, str], list[float]] = defaultdict(list)
    counts = dataset.batch.counts()
    starts = counts.cumsum(0) - counts
    states = dataset.state_list
    for index in torch.nonzero(counts == 1).ravel().tolist():
        number = int(dataset.batch.numbers[starts[index]])
        energies[number, str(states[index])].append(float(dataset.energy[index]))
    for (number, state), values in energies.items():
        if max(values) - min(values) > _ATOM_NOISE:
            _warn(
                f"the isolated atom Z={number} ({state}) has {len(values)} energies "
                f"that differ by up to {max(values) - min(values):.3g} eV"
            )


def check_references(dataset: Dataset, references: dict[int, float]) -> None:
    """Raise or warn if given reference energies do not belong to the data.

    Args:
        dataset: what they are for.
        references: energy of each element, eV, by atomic number.

    Raises:
        DataError: an element without a reference.

    Warns:
        MlffWarning: the systems are not bound, or bound by more than chemistry.
    """
    missing = sorted(set(dataset.elements) - set(references))
    if missing:
        raise DataError(f"`references` has no energy for the elements Z={missing}")
    values = np.array([references[z] for z in dataset.elements])
    counts = dataset.batch.counts().numpy()
    bound = (dataset.energy.numpy() - composition(dataset) @ values) / counts
    if not -MAX_SPREAD <= float(bound.mean()) <= 0.5 * MAX_SPREAD:
        _warn(
            f"with the given `references` the systems are bound by {-bound.mean():.3g} "
            "eV per atom: they are not of the same level of theory or unit"
        )
