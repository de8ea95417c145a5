"""Labelled systems in memory: selection, splits, and reference energies.

Knows which frames are copies of one another; knows nothing of files or of models.
Labels are in the units of :data:`mlff.properties.PROPERTIES`, float64.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from ase.geometry import complete_cell
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.errors import DataError
from mlff.properties import PROPERTIES
from mlff.state import State

#: Frames whose sorted interatomic distances all agree within this (Å) are copies.
SAME_GEOMETRY = 1e-4

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Systems with their labels.

    Attributes:
        batch: the systems.
        labels: by property, one row for each system or atom, float64.
        names: where each system comes from, ``"ch2.xyz, frame 17"``, (n_systems,).
        level_of_theory: of all labels, e.g. ``"b3lyp5/cc-pvdz"``.
    """

    batch: AtomsBatch
    labels: dict[str, Tensor]
    names: tuple[str, ...]
    level_of_theory: str

    def __len__(self) -> int:
        return self.batch.n_systems

    @property
    def energy(self) -> Tensor:
        """Total energies, (n_systems,), eV."""
        return self.labels["energy"]

    @property
    def forces(self) -> Tensor:
        """Forces, (n_atoms, 3), eV/Å."""
        return self.labels["forces"]

    @cached_property
    def _starts(self) -> Tensor:
        counts = self.batch.counts()
        return counts.cumsum(0) - counts

    def select(self, systems: Sequence[int] | Tensor) -> Self:
        """Return the data of these systems, in this order."""
        device = self.batch.system.device
        chosen = torch.as_tensor(systems, dtype=torch.int64, device=device)
        batch = self.batch.select(chosen)
        atoms = self._starts[chosen][batch.system] + batch.slot
        rows = {"system": chosen, "atom": atoms}
        return type(self)(
            batch=batch,
            labels={n: v[rows[PROPERTIES[n].per]] for n, v in self.labels.items()},
            names=tuple(self.names[k] for k in chosen.tolist()),
            level_of_theory=self.level_of_theory,
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the data on a device."""
        return type(self)(
            batch=self.batch.to(device),
            labels={name: value.to(device) for name, value in self.labels.items()},
            names=self.names,
            level_of_theory=self.level_of_theory,
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 over everything that a model could learn from."""
        digest = hashlib.sha256(self.level_of_theory.encode())
        b = self.batch
        for tensor in (b.numbers, b.positions, b.system, b.cell, b.pbc, b.charge):
            digest.update(tensor.cpu().numpy().tobytes())
        for tensor in (b.multiplicity, *self.labels.values()):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(self.batch.numbers.unique().tolist())

    @property
    def state_list(self) -> list[State]:
        """Electronic state of each system, (n_systems,)."""
        pairs = zip(
            self.batch.charge.tolist(), self.batch.multiplicity.tolist(), strict=True
        )
        return [State(charge, multiplicity) for charge, multiplicity in pairs]

    @property
    def states(self) -> tuple[tuple[int, int], ...]:
        """(charge, multiplicity) pairs that occur, ascending."""
        return tuple(sorted({(s.charge, s.multiplicity) for s in self.state_list}))


def fit_references(dataset: Dataset) -> dict[int, float]:
    """Fit one energy per element so that their sums explain the total energies best.

    Least squares; the smallest solution where the compositions do not determine one
    (a single stoichiometry, for example): only sums over molecules have a meaning.

    Returns:
        Energy of each element, eV, by atomic number.

    Raises:
        DataError: there are no data.
    """
    if len(dataset) == 0:
        raise DataError("`dataset` is empty: there is nothing to fit references to")
    counts = composition(dataset)
    solution = np.linalg.lstsq(counts, dataset.energy.cpu().numpy(), rcond=None)[0]
    return dict(zip(dataset.elements, solution.tolist(), strict=True))


def composition(dataset: Dataset) -> Array:
    """Atoms of each element, (n_systems, n_elements), elements ascending."""
    numbers = dataset.batch.numbers.cpu().numpy()
    counts = np.zeros((len(dataset), len(dataset.elements)))
    columns = np.searchsorted(dataset.elements, numbers)
    np.add.at(counts, (dataset.batch.system.cpu().numpy(), columns), 1.0)
    return counts


def random_split(
    dataset: Dataset, sizes: Sequence[int], seed: int = 0
) -> tuple[list[int], ...]:
    """Split at random, each part with the same shares of the electronic states.

    The order is that of SHA-256 of ``"seed/index"``: it depends on no library. Copies
    of a geometry may land on both sides; see :func:`symmetry_split`.

    Args:
        dataset: what to split.
        sizes: systems of each part; what is left over stays unused.
        seed: any integer.

    Returns:
        Indices of each part, ascending.

    Raises:
        DataError: more is asked for than there is, or nothing.
    """
    _check_sizes(len(dataset), sizes)
    left: dict[tuple[int, int], list[int]] = defaultdict(list)
    states = dataset.state_list
    for index in shuffled(len(dataset), seed):
        left[states[index].charge, states[index].multiplicity].append(index)
    shares = {state: len(members) / len(dataset) for state, members in left.items()}
    parts = []
    for size in sizes:
        taken = {state: int(size * share + 1e-9) for state, share in shares.items()}
        by_need = sorted(shares, key=lambda s: (taken[s] - size * shares[s], s))
        while (short := size - sum(taken.values())) > 0:
            for state in [s for s in by_need if taken[s] < len(left[s])][:short]:
                taken[state] += 1
        part: list[int] = []
        for state, count in taken.items():
            part += left[state][:count]
            left[state] = left[state][count:]
        parts.append(sorted(part))
    return tuple(parts)


def symmetry_split(
    dataset: Dataset, sizes: Sequence[int], seed: int = 0
) -> tuple[list[int], ...]:
    """Split at random with all copies of a geometry, in all its states, on one side.

    See :func:`geometry_groups` for what a copy is. Whole groups are dealt to the part
    that is furthest from full, large groups first, so that sizes are met as nearly as
    the groups allow.

    Args:
        dataset: what to split.
        sizes: systems of each part, met up to the size of a group.
        seed: any integer.

    Returns:
        Indices of each part, ascending.

    Raises:
        DataError: more is asked for than there is, or nothing.
    """
    _check_sizes(len(dataset), sizes)
    labels = geometry_groups(dataset)
    members: list[list[int]] = [[] for _ in range(labels.max() + 1)]
    for index, label in enumerate(labels):
        members[label].append(index)
    chosen, total = [], 0
    for label in shuffled(len(members), seed):
        if total < sum(sizes):
            chosen.append(members[label])
            total += len(members[label])
    parts: list[list[int]] = [[] for _ in sizes]
    for group in sorted(chosen, key=len, reverse=True):
        room = [size - len(part) for size, part in zip(sizes, parts, strict=True)]
        best = max(
            range(len(sizes)),
            key=lambda k: (room[k] >= len(group), room[k] / max(sizes[k], 1)),
        )
        parts[best] += group
    return tuple(sorted(part) for part in parts)


def shuffled(n: int, seed: int) -> list[int]:
    """Return 0 … n−1 in an order that depends on the seed and on nothing else."""
    return sorted(
        range(n), key=lambda k: hashlib.sha256(f"{seed}/{k}".encode()).digest()
    )


def _check_sizes(n: int, sizes: Sequence[int]) -> None:
    if n < 2:
        raise DataError(f"{n} frames cannot be split: give at least two")
    if min(sizes) < 0 or not 0 < sum(sizes) <= n:
        raise DataError(f"`sizes` {tuple(sizes)} cannot be cut from {n} frames")


def geometry_groups(
    dataset: Dataset, tolerance: float = SAME_GEOMETRY
) -> NDArray[np.intp]:
    """Number the distinct geometries; copies share a number.

    Copies are frames of one composition whose sorted interatomic distances, element
    pair by element pair, agree within the tolerance. Those do not change under
    translation, rotation, reflection and exchange of like atoms, and the electronic
    state does not enter. Different molecules with equal distances would be taken for
    copies, which errs to the safe side. Of periodic frames the cell and the distances
    to the nearest images count.

    Args:
        dataset: the systems.
        tolerance: largest difference of a distance between copies, Å.

    Returns:
        Group of each system, (n_systems,), 0 … n_groups − 1 by first occurrence.
    """
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    distances = []
    for index, (kind, values) in enumerate(_invariants(dataset)):
        alike[kind].append(index)
        distances.append(values)
    links = [_copies(np.array(k), distances, tolerance) for k in alike.values()]
    first, second = np.concatenate(links).T
    n = len(dataset)
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    labels = connected_components(graph, directed=False)[1]
    _, firsts = np.unique(labels, return_index=True)
    ranks = np.argsort(np.argsort(firsts))
    result: NDArray[np.intp] = ranks[labels]
    return result


def _copies(
    indices: NDArray[np.intp], distances: list[Array], tolerance: float
) -> NDArray[np.intp]:
    """Pairs of equal geometry among systems of one composition, (n_pairs, 2)."""
    values = np.stack([distances[k] for k in indices])
    if values.shape[1] == 0:
        return np.stack([indices, np.full_like(indices, indices[0])], 1)
    # Each of these moves by no more than the largest change of a distance, so that a
    # tree in few dimensions finds all candidates.
    few = np.stack(
        [values.min(1), values.max(1), values.mean(1), np.median(values, 1)], 1
    )
    pairs = cKDTree(few).query_pairs(tolerance, p=np.inf, output_type="ndarray")
    gaps = np.abs(values[pairs[:, 0]] - values[pairs[:, 1]]).max(1, initial=0.0)
    found: NDArray[np.intp] = indices[pairs[gaps <= tolerance]]
    return found


def _invariants(dataset: Dataset) -> list[tuple[tuple[int, ...], Array]]:
    """Composition, and sorted distances, of each system."""
    out = []
    batch = dataset.batch
    counts = batch.counts().tolist()
    numbers = np.split(batch.numbers.cpu().numpy(), np.cumsum(counts)[:-1])
    positions = np.split(batch.positions.cpu().numpy(), np.cumsum(counts)[:-1])
    cells, periodic = batch.cell.cpu().numpy(), batch.pbc.cpu().numpy()
    for z, r, cell, pbc in zip(numbers, positions, cells, periodic, strict=True):
        order = np.argsort(z, kind="stable")
        z, r = z[order], r[order]
        i, j = np.triu_indices(len(z), 1)
        vectors = r[j] - r[i]
        extra = np.zeros(0)
        if pbc.any():
            basis = complete_cell(np.where(pbc[:, None], cell, 0.0))
            shifts = np.round(vectors @ np.linalg.inv(basis)) * pbc
            vectors = vectors - shifts @ basis
            extra = np.linalg.norm(basis + np.roll(basis, 1, axis=0), axis=1)
            extra = np.concatenate([np.linalg.norm(basis, axis=1), extra])
        lengths = np.linalg.norm(vectors, axis=1)
        kinds = z[i] * 119 + z[j]
        ranked = lengths[np.lexsort((lengths, kinds))]
        out.append(((*z.tolist(), *pbc.tolist()), np.concatenate([ranked, extra])))
    return out


def overlap(train: Dataset, test: Dataset) -> int:
    """Count test systems that copy a training system in the same state."""
    both = _joined(train, test)
    groups = geometry_groups(both)
    keys = [
        (group, state)
        for group, state in zip(groups.tolist(), both.state_list, strict=True)
    ]
    seen = set(keys[: len(train)])
    return sum(key in seen for key in keys[len(train) :])


def _joined(first: Dataset, second: Dataset) -> Dataset:
    return Dataset(
        batch=AtomsBatch.concat([first.batch, second.batch]),
        labels={},
        names=first.names + second.names,
        level_of_theory=first.level_of_theory,
    )
