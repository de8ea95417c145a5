"""The contract of a neighbor back end: no pair missing, none too many, any cell.

Compares a back end with an explicit sum over images, which knows no cell list, no
wrapping and no minimum image, on generated systems: triclinic and left-handed cells,
slabs, wires, needles, cells smaller than the cutoff, atoms many images outside,
molecules, lone atoms, all in one batch and each rigidly moved at random.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from numpy.random import Generator
from numpy.typing import NDArray

from mlff.batch import AtomsBatch, Edges, edge_vectors

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Pairs this close to the cutoff (Å) may be in a list or not: rounding decides.
_BAND = 1e-6

# Sizes of a batch; 1 and 3 would let a wrong broadcast pass.
_BATCH_SIZES = (2, 4, 5, 6, 7)


def check_neighbors(
    backend: Callable[[AtomsBatch, float], Edges],
    n_systems: int = 600,
    seed: int = 0,
    *,
    periodic: bool = True,
) -> int:
    """Compare a back end with the explicit image sum on generated batches.

    Edges beyond the cutoff are allowed, as everywhere; they must still be honest.

    Args:
        backend: ``(batch, cutoff) -> Edges``.
        n_systems: how many systems to check at least.
        seed: another seed gives other systems.
        periodic: whether to generate periodic systems too.

    Returns:
        The number of systems checked.

    Raises:
        AssertionError: a pair that is missing, surplus or listed twice, or a layout
            that breaks its promise. The text says how to get the batch again.
    """
    checked = index = 0
    while checked < n_systems:
        batch, cutoff = random_batch(seed, index, periodic=periodic)
        before = batch.positions.clone()
        edges = backend(batch, cutoff)
        problem = compare(batch, edges, cutoff)
        if not problem and not batch.positions.equal(before):
            problem = "the back end changed the positions"
        if problem:
            raise AssertionError(
                f"{problem}\nreplay: batch, cutoff = mlff.testing.neighbors."
                f"random_batch({seed}, {index}, periodic={periodic})"
            )
        checked += batch.n_systems
        index += 1
    return checked


def compare(batch: AtomsBatch, edges: Edges, cutoff: float) -> str:
    """Return what is wrong with the edges of a batch, or an empty string.

    Args:
        batch: the systems.
        edges: a list that should hold every pair within the cutoff.
        cutoff: distance, Å.
    """
    problem = _broken_layout(batch, edges)
    if problem:
        return problem
    i, j = edges.i.numpy(), edges.j.numpy()
    shift = np.zeros((len(i), 3)) if edges.shift is None else edges.shift.numpy()
    real = (i != j) | shift.any(axis=1)
    if not real.all() and not edges.has_fill:
        return f"atom {i[~real][0]} is its own neighbor, and has_fill is not set"
    system = batch.system.numpy()
    if (system[i] != system[j]).any():
        return "surplus pairs: an edge joins atoms of two systems"
    if (shift[~batch.pbc.numpy()[system[i]]] != 0).any():
        return "surplus pairs: an edge crosses a side that is not periodic"
    within = np.linalg.norm(edge_vectors(batch, edges).detach().numpy(), axis=1)
    listed = np.column_stack([i, j, shift])[real].astype(np.int64)
    if len(np.unique(listed, axis=0)) < len(listed):
        return "surplus pairs: an edge is listed twice"
    found = _as_set(listed[within[real] < cutoff - _BAND])
    needed, allowed = _explicit_sets(batch, cutoff)
    for name, wrong in (("missing", needed - found), ("surplus", found - allowed)):
        if wrong:
            example = min(wrong)
            index = int(system[example[0]])
            return (
                f"{len(wrong)} {name} pairs, such as i={example[0]}, j={example[1]}, "
                f"shift={example[2:]} in system {index} with pbc "
                f"{batch.pbc[index].tolist()}, cell {batch.cell[index].tolist()}, "
                f"cutoff {cutoff:.6f}"
            )
    return ""


def explicit_pairs(
    positions: Array, cell: Array, pbc: NDArray[np.bool_], cutoff: float
) -> tuple[Integers, Integers, Integers, Array]:
    """Return all pairs within a cutoff by looking at every image that could reach.

    With ``P`` the periodic cell vectors and ``P⁺`` their pseudo-inverse, a vector ``v``
    has fractional coordinates ``v P⁺``, so ``|v| ≤ cutoff`` bounds each of them.

    Args:
        positions: (n_atoms, 3), Å, anywhere.
        cell: vectors as rows, (3, 3), Å; rows that are not periodic mean nothing.
        pbc: periodic axes, (3,).
        cutoff: distance, Å.

    Returns:
        Receiver and sender (n_pairs,), shift (n_pairs, 3), distance (n_pairs,) Å.
    """
    inverse = np.zeros((3, 3))
    inverse[:, pbc] = np.linalg.pinv(cell[pbc])
    reach = np.ceil(cutoff * np.linalg.norm(inverse, axis=0)).astype(int) + 1
    reach[~pbc] = 0
    images = np.stack(
        np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    between = positions[None, :] - positions[:, None]
    nearest = -np.rint(between @ inverse)
    shift = nearest[:, :, None] + images
    vectors = between[:, :, None] + shift @ np.where(pbc[:, None], cell, 0.0)
    distance = np.linalg.norm(vectors, axis=-1)
    itself = np.eye(len(positions), dtype=bool)[:, :, None] & ~shift.any(axis=-1)
    i, j, image = np.nonzero((distance <= cutoff) & ~itself)
    return i, j, shift[i, j, image].astype(np.int64), distance[i, j, image]


def random_batch(
    seed: int, index: int, *, periodic: bool = True
) -> tuple[AtomsBatch, float]:
    """Return a generated batch and a cutoff, the same for the same arguments.

    Args:
        seed: which series.
        index: which batch of the series.
        periodic: whether periodic systems are among them.
    """
    rng = np.random.default_rng([seed, index])
    kinds = [*FREE_KINDS, *(PERIODIC_KINDS if periodic else ())]
    while True:
        n = int(rng.choice(_BATCH_SIZES))
        # Every third batch is of one kind: its rows are even and may be laid out dense.
        drawn = rng.choice(kinds, 1 if rng.random() < 1 / 3 else n)
        systems = [_moved(_KINDS[kind](rng), rng) for kind in np.resize(drawn, n)]
        if sum(map(len, systems)) != n:
            break
    cutoff = float(rng.uniform(1.5, 5.5))
    return AtomsBatch.from_atoms(systems, charge=0, spin=1), cutoff


def _broken_layout(batch: AtomsBatch, edges: Edges) -> str:
    n = batch.n_atoms
    names = [f"{t.dtype}".removeprefix("torch.") for t in (edges.i, edges.j)]
    if names != ["int64", "int64"] or edges.i.shape != edges.j.shape:
        return f"i and j must be int64 of one shape, got {names}"
    if len(edges.i) and not (0 <= int(edges.j.min()) <= int(edges.j.max()) < n):
        return f"j must lie in 0 … {n - 1}"
    if edges.shift is not None and (
        edges.shift.shape != (edges.n_edges, 3)
        or not edges.shift.equal(edges.shift.double().round())
    ):
        return "shift must hold three whole numbers of type float64 per edge"
    if edges.degree is None:
        return "has_fill is set without a degree" if edges.has_fill else ""
    rows = np.repeat(np.arange(n), edges.degree)
    if not np.array_equal(edges.i.numpy(), rows):
        return f"the edges are not {edges.degree} for each atom, ordered by receiver"
    return ""


def _explicit_sets(
    batch: AtomsBatch, cutoff: float
) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
    """Return the pairs that must be listed and those that may be."""
    needed: set[tuple[int, ...]] = set()
    allowed: set[tuple[int, ...]] = set()
    system = batch.system.numpy()
    for index in range(batch.n_systems):
        atoms = np.flatnonzero(system == index)
        i, j, shift, distance = explicit_pairs(
            batch.positions.numpy()[atoms],
            batch.cell[index].numpy(),
            batch.pbc[index].numpy(),
            cutoff + _BAND,
        )
        pairs = np.column_stack([atoms[i], atoms[j], shift])
        allowed |= _as_set(pairs)
        needed |= _as_set(pairs[distance < cutoff - _BAND])
    return needed, allowed


def _as_set(rows: Integers) -> set[tuple[int, ...]]:
    return set(map(tuple, rows.tolist()))


def _moved(atoms: Atoms, rng: Generator) -> Atoms:
    """Rotate, perhaps reflect, and translate a system together with its cell."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    atoms.cell = atoms.cell.array @ turn
    atoms.positions = atoms.positions @ turn + rng.uniform(-20, 20, 3)
    return atoms


def _vectors(rng: Generator, low: float, high: float) -> Array:
    """Return three vectors of such lengths that span a fair part of their cube."""
    while True:
        rows = rng.normal(size=(3, 3))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        if abs(np.linalg.det(rows)) > 0.25:
            return rows * rng.uniform(low, high, (3, 1))


def _crystal(
    rng: Generator,
    cell: Array,
    n: int | np.integer[Any],
    pbc: bool | list[bool] = True,
    images: int = 1,
) -> Atoms:
    """Put atoms into a cell, or up to so many images outside it."""
    fractions = rng.random((n, 3)) + rng.integers(1 - images, images, (n, 3))
    return Atoms(f"He{n}", positions=fractions @ cell, cell=cell, pbc=pbc)


def _triclinic(rng: Generator) -> Atoms:
    return _crystal(rng, _vectors(rng, 4.0, 9.0), rng.integers(2, 9))


def _left_handed(rng: Generator) -> Atoms:
    cell = _vectors(rng, 3.0, 7.0)
    cell[0] *= -np.sign(np.linalg.det(cell))
    return _crystal(rng, cell, rng.integers(2, 7))


def _tiny(rng: Generator) -> Atoms:
    return _crystal(rng, _vectors(rng, 1.5, 3.0), rng.integers(2, 5))


def _lone_in_tiny(rng: Generator) -> Atoms:
    return _crystal(rng, _vectors(rng, 1.2, 3.0), 1)


def _needle(rng: Generator) -> Atoms:
    cell = np.diag(rng.uniform(3.0, 6.0, 3))
    angle = np.radians(rng.uniform(10.0, 20.0))
    cell[1] = cell[1, 1] * np.array([np.cos(angle), np.sin(angle), 0.0])
    return _crystal(rng, cell, rng.integers(2, 5))


def _outside(rng: Generator) -> Atoms:
    return _crystal(rng, _vectors(rng, 3.0, 6.0), rng.integers(2, 6), images=6)


def _mixed(rng: Generator) -> Atoms:
    pbc = [bool(b) for b in rng.permutation([True, False, rng.random() < 0.5])]
    return _crystal(rng, _vectors(rng, 3.0, 6.0), rng.integers(2, 7), pbc, images=3)


def _partial(rng: Generator, pbc: list[bool], parallel: bool) -> Atoms:
    """Periodic along some axes; vectors of the others zero or parallel to another."""
    cell = _vectors(rng, 2.5, 6.0)
    atoms = _crystal(rng, cell, rng.integers(2, 7), pbc, images=2)
    free = ~np.array(pbc)
    cell[free] = 2.0 * cell[pbc.index(True)] if parallel else 0.0
    atoms.cell = cell
    return atoms


def _slab(rng: Generator) -> Atoms:
    return _partial(rng, [True, True, False], parallel=False)


def _slab_parallel(rng: Generator) -> Atoms:
    return _partial(rng, [True, True, False], parallel=True)


def _wire(rng: Generator) -> Atoms:
    return _partial(rng, [bool(b) for b in rng.permutation([1, 0, 0])], parallel=False)


def _sparse(rng: Generator) -> Atoms:
    return _crystal(rng, _vectors(rng, 40.0, 60.0), rng.integers(1, 4))


def _molecule(rng: Generator) -> Atoms:
    n = rng.integers(2, 13)
    return Atoms(f"He{n}", positions=rng.normal(scale=2.0, size=(n, 3)))


def _molecule_with_cell(rng: Generator) -> Atoms:
    return _crystal(rng, _vectors(rng, 2.0, 4.0), rng.integers(2, 7), False, images=2)


def _lone(rng: Generator) -> Atoms:
    return Atoms("He")


def _linear(rng: Generator) -> Atoms:
    n = rng.integers(2, 7)
    return Atoms(f"He{n}", positions=np.outer(np.arange(n), [0.0, 0.0, 1.1]))


def _planar(rng: Generator) -> Atoms:
    n = rng.integers(3, 8)
    flat = rng.normal(scale=2.0, size=(n, 3)) * [1.0, 1.0, 0.0]
    return Atoms(f"He{n}", positions=flat)


def _fragments(rng: Generator) -> Atoms:
    return _molecule(rng) + Atoms("He", positions=[rng.uniform(50.0, 90.0, 3)])


_FREE: tuple[Callable[[Generator], Atoms], ...] = (
    *(_molecule, _molecule_with_cell, _lone, _linear, _planar, _fragments),
)
_PERIODIC: tuple[Callable[[Generator], Atoms], ...] = (
    *(_triclinic, _left_handed, _tiny, _lone_in_tiny, _needle, _outside),
    *(_mixed, _slab, _slab_parallel, _wire, _sparse),
)
_KINDS = {kind.__name__.strip("_"): kind for kind in (*_FREE, *_PERIODIC)}

#: Names of the generated kinds of systems without periodic axes.
FREE_KINDS = tuple(kind.__name__.strip("_") for kind in _FREE)

#: Names of the generated kinds of systems with periodic axes.
PERIODIC_KINDS = tuple(kind.__name__.strip("_") for kind in _PERIODIC)
