"""Who is whose neighbor: back ends of one signature.

Knows boxes, images and index layouts; knows nothing of models, energies or gradients.
A list is topology only: vectors are recomputed from the positions (``edge_vectors``).

Convention: ``vector = r_j − r_i + shift @ cell`` with ``i`` the receiver, both
directions of every pair, each system with its own cell and periodic axes, and every
image within the cutoff: an atom may neighbor its own images, and the same atom many
times. Atoms may lie any number of images outside their cell. A new back end is one
line in ``BACKENDS``; ``mlff.testing.check_neighbors`` says whether it is right.
"""

import math
from collections.abc import Callable, Iterator

import torch
import vesin as vesin_library
from matscipy.neighbours import neighbour_list as matscipy_list
from torch import Tensor

from mlff.batch import MAX_COORDINATE, AtomsBatch, Edges
from mlff.errors import InputError
from mlff.neighbors import alchemi

#: Two atoms closer than this (Å) are a mistake, not a molecule.
MIN_DISTANCE = 1e-3

#: Images of one atom within the cutoff beyond which a cell is refused.
MAX_IMAGES = 1e5

#: ``auto`` takes all pairs up to this many atoms: a chain of 30 costs a model at most a
#: tenth more that way than with a list of 5.5 Å, one of 42 a third.
ALL_PAIRS_ATOMS = 32

# ``auto`` takes nvalchemi on a GPU from this many periodic systems on: vesin searches
# them one by one, each with its own launches and waits.
_SEVERAL_BOXES = 4

# ``auto`` takes all pairs only if the mean size is at least this part of the largest.
_EVEN_SIZES = 0.7

# Rows are filled up to one length if at most this part of the result is fill.
_MAX_FILL = 0.35

# Bins of one cutoff that a box for matscipy may have: it allocates them all, and sorts
# atoms beyond a free side of the box into the last bin, so that a smaller box is right.
_MAX_BINS = 1e6

# Bins of a box over the cube of those along its shortest side. vesin scales bins down
# to 1e5, and divides by zero where fewer than about 3 are left along a side.
_MAX_LOPSIDED = 1e5 / 3**3

#: ``(positions, box, pbc, cutoff) -> (i, j, shift)`` for one complete box.
Pairs = tuple[Tensor, Tensor, Tensor]
BoxSearch = Callable[[Tensor, Tensor, Tensor, float], Pairs]


def all_pairs(batch: AtomsBatch, cutoff: float) -> Edges:
    """Return every pair of atoms inside each system, whatever the distance.

    Rows are ``max_atoms - 1`` long, filled for smaller systems. No host sync.

    Args:
        batch: systems that are not periodic.
        cutoff: not used; pairs beyond it contribute nothing.

    Raises:
        InputError: for a periodic batch, which has infinitely many pairs.
    """
    if batch.periodic:
        raise InputError(
            "`backend` 'all_pairs' knows no periodic images, but the batch has "
            "periodic systems; use 'auto', 'vesin' or 'matscipy'"
        )
    device = batch.system.device
    degree = max(batch.max_atoms - 1, 0)
    atoms = torch.arange(batch.n_atoms, device=device)[:, None]
    slot = batch.slot[:, None]
    other = torch.arange(degree, device=device)[None, :]
    other = other + (other >= slot)  # leaves out the atom itself
    i = atoms.expand(batch.n_atoms, degree)
    j = atoms - slot + other
    if not batch.uniform:
        sizes = batch.counts()[batch.system]
        j = torch.where(other < sizes[:, None], j, i)
    i, j = i.reshape(-1), j.reshape(-1)
    return Edges(i=i, j=j, shift=None, degree=degree, has_fill=not batch.uniform)


def vesin(batch: AtomsBatch, cutoff: float) -> Edges:
    """Return the pairs within the cutoff, found by vesin's cell list.

    Runs where the batch is, CPU or GPU; a very thin or long box goes to matscipy.

    Args:
        batch: any systems.
        cutoff: largest distance of a pair, Å.

    Raises:
        InputError: positions that are not finite or out of range, a cell so small that
            an atom has more than ``MAX_IMAGES`` images within the cutoff, or too long.
    """
    return _by_boxes(batch, cutoff, _vesin_box)


def matscipy(batch: AtomsBatch, cutoff: float) -> Edges:
    """Return the pairs within the cutoff, as ``vesin``, by matscipy on the CPU."""
    return _by_boxes(batch, cutoff, _matscipy_box)


@torch.no_grad()
def nvalchemi(batch: AtomsBatch, cutoff: float) -> Edges:
    """Return the pairs within the cutoff, as ``vesin``, of all boxes in one call.

    Needs the package nvalchemi-toolkit-ops (extra ``gpu``).

    Raises:
        InputError: as for ``vesin``, or lists too large for one batch.
    """
    _check_positions(batch)
    vectors = torch.where(batch.pbc[:, :, None], batch.cell, 0.0)
    scale = torch.linalg.svdvals(vectors.cpu())
    n_axes = batch.pbc.sum(dim=1, keepdim=True).cpu()
    _check_images(torch.where(torch.arange(3) < n_axes, scale, math.inf), cutoff)
    return _laid_out(batch, *alchemi.pairs_of_boxes(batch, cutoff))


#: Every back end, by name; nvalchemi only where it is installed.
BACKENDS: dict[str, Callable[[AtomsBatch, float], Edges]] = {
    "all_pairs": all_pairs,
    "vesin": vesin,
    "matscipy": matscipy,
}
if alchemi.installed():
    BACKENDS["nvalchemi"] = nvalchemi


def neighbor_list(batch: AtomsBatch, cutoff: float, backend: str = "auto") -> Edges:
    """Return the edges of a batch: all pairs within the cutoff, perhaps some beyond.

    Args:
        batch: any number of systems, periodic or not.
        cutoff: largest distance that must be in the list, Å.
        backend: a name in ``BACKENDS``, or ``"auto"``: all pairs for small molecules
            of similar size; for everything else vesin, or, on a GPU and where it is
            installed, nvalchemi for several periodic systems.

    Raises:
        InputError: a cutoff that is not positive and finite, an unknown back end, or
            what the back end refuses.
    """
    check_cutoff(cutoff)
    return BACKENDS[chosen_backend(batch, backend)](batch, cutoff)


def check_distances(edges: Edges, distances: Tensor) -> None:
    """Raise if two atoms coincide: no potential means anything there.

    Args:
        edges: the edges; fill is left out.
        distances: length of each edge, (n_edges,), Å.

    Raises:
        InputError: a pair closer than ``MIN_DISTANCE``; the text names its atoms,
            counted over the whole batch.
    """
    short = distances.detach() < MIN_DISTANCE
    if edges.has_fill:
        fill = edges.i == edges.j
        if edges.shift is not None:
            fill &= (edges.shift == 0).all(dim=1)
        short &= ~fill
    if not short.any():
        return
    edge = int(short.nonzero()[0])
    i, j = int(edges.i[edge]), int(edges.j[edge])
    raise InputError(
        f"`positions` of atoms {i} and {j} are {float(distances[edge]):.2g} Å apart, "
        f"and at least {MIN_DISTANCE:g} Å is needed; move or remove one of them"
    )


def check_cutoff(cutoff: float) -> None:
    """Raise unless a cutoff is positive and finite."""
    if not 0 < cutoff < math.inf:
        raise InputError(f"`cutoff` must be positive and finite, got {cutoff}")


def check_backend(backend: str) -> None:
    """Raise unless this is ``"auto"`` or a name in ``BACKENDS``."""
    if backend != "auto" and backend not in BACKENDS:
        raise InputError(
            f"`backend` must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}"
        )


def chosen_backend(batch: AtomsBatch, backend: str) -> str:
    """Return the name in ``BACKENDS`` that ``backend`` means for a batch."""
    check_backend(backend)
    if backend != "auto":
        return backend
    small = batch.max_atoms <= ALL_PAIRS_ATOMS
    even = batch.n_atoms >= _EVEN_SIZES * batch.n_systems * batch.max_atoms
    if small and even and not batch.periodic:
        return "all_pairs"
    return "nvalchemi" if _has_several_boxes(batch) else "vesin"


def _has_several_boxes(batch: AtomsBatch) -> bool:
    if "nvalchemi" not in BACKENDS or not batch.positions.is_cuda:
        return False
    return int(batch.pbc.any(dim=1).sum()) >= _SEVERAL_BOXES


def _check_positions(batch: AtomsBatch) -> None:
    # A cell list does not end, or ends wrong, on coordinates that are not numbers.
    bad = ~(batch.positions.abs() <= MAX_COORDINATE).all(dim=1)
    if bad.any():
        raise InputError(
            f"`positions` must be finite and within ±{MAX_COORDINATE:g} Å; not so for "
            f"atoms {bad.nonzero()[:5, 0].tolist()} of the batch"
        )


def _check_images(scale: Tensor, cutoff: float) -> None:
    """Raise if a cell is too small; ``scale`` is its singular values, (..., n), Å."""
    images = (2 * cutoff / scale + 1).prod(dim=-1)
    if (images > MAX_IMAGES).any():
        raise InputError(
            f"`cell` is too small for a cutoff of {cutoff:g} Å: about "
            f"{float(images.max()):.0e} images of each atom lie within it, and at most "
            f"{MAX_IMAGES:.0e} are allowed; check the unit of the cell vectors"
        )


@torch.no_grad()
def _by_boxes(batch: AtomsBatch, cutoff: float, search: BoxSearch) -> Edges:
    """Search every box of a batch and lay the pairs out as edges."""
    _check_positions(batch)
    i = [batch.system[:0]]
    j, shift = [i[0]], [batch.positions[:0].detach()]
    for atoms, positions, cell, pbc in _boxes(batch, cutoff):
        positions, box = _complete(positions, cell, pbc, cutoff)
        local_i, local_j, local_shift = search(positions, box, pbc, cutoff)
        i.append(atoms[local_i])
        j.append(atoms[local_j])
        shift.append(local_shift.to(torch.float64))
    receivers = torch.cat(i)
    order = torch.argsort(receivers, stable=True)
    senders, shifts = torch.cat(j)[order], torch.cat(shift)[order]
    return _laid_out(batch, receivers[order], senders, shifts)


def _boxes(
    batch: AtomsBatch, cutoff: float
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield the atoms, positions, cell and periodic axes of each box to search.

    Systems without a periodic axis make one box, lined up along x, beyond the cutoff.
    """
    periodic = batch.pbc.any(dim=1)
    free = (~periodic[batch.system]).nonzero()[:, 0]
    if len(free):
        first = int(batch.system[free[0]])
        lined_up = _lined_up(batch, cutoff + 1.0)[free]
        yield free, lined_up, batch.cell[first], batch.pbc[first]
    everyone = torch.arange(batch.n_atoms, device=free.device)
    atoms_of = everyone.split(batch.counts().tolist())
    for index in periodic.nonzero()[:, 0].tolist():
        atoms = atoms_of[index]
        yield atoms, batch.positions[atoms], batch.cell[index], batch.pbc[index]


def _lined_up(batch: AtomsBatch, gap: float) -> Tensor:
    rows = batch.system[:, None].expand(-1, 3)
    empty = batch.positions.new_zeros(batch.n_systems, 3)
    low, high = (
        empty.scatter_reduce(0, rows, batch.positions, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    length = high[:, 0] - low[:, 0] + gap
    low[:, 0] -= length.cumsum(0) - length
    return batch.positions - low[batch.system]


def _complete(
    positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Put atoms into a box with three independent vectors.

    A cell vector that is not periodic means nothing, and may be zero: the box gets one
    at right angles to the periodic ones there, long enough to enclose the atoms.
    """
    _, scale, axes = torch.linalg.svd(cell[pbc].cpu())
    _check_images(scale, cutoff)
    across = axes[len(scale) :].to(positions.device)
    heights = positions @ across.T
    low = heights.amin(dim=0)
    lengths = heights.amax(dim=0) - low + 1.0
    box = cell.clone()
    box[~pbc] = across * lengths[:, None]
    return positions - low @ across, box


def _vesin_box(positions: Tensor, box: Tensor, pbc: Tensor, cutoff: float) -> Pairs:
    bins = _bins(box, cutoff)
    if bins.prod() > _MAX_LOPSIDED * bins.min() ** 3:
        return _matscipy_box(positions, box, pbc, cutoff)
    # On a GPU "auto" may mean brute force, which is limited to half the box. With one
    # thread the order of the pairs, and so the last digit of a sum, is reproducible.
    algorithm = "cell_list" if positions.is_cuda else "auto"
    search = vesin_library.NeighborList(
        cutoff=cutoff, full_list=True, algorithm=algorithm, n_threads=1
    )
    # Views of what `search` owns; changing the types copies them.
    pairs, shift = search.compute(positions, box, pbc, "PS", copy=False)
    pairs = pairs.to(torch.int64)
    return pairs[:, 0], pairs[:, 1], shift.to(torch.float64)


def _bins(box: Tensor, cutoff: float) -> Tensor:
    """Bins of one cutoff between the faces of a box, (3,)."""
    inverse_heights = torch.linalg.vector_norm(torch.linalg.inv(box), dim=0)
    return (1.0 / (inverse_heights * cutoff)).clamp(min=1.0)


def _matscipy_box(positions: Tensor, box: Tensor, pbc: Tensor, cutoff: float) -> Pairs:
    excess = (_bins(box, cutoff).prod() / _MAX_BINS).clamp(min=1.0)
    box = torch.where(pbc[:, None], box, box * excess ** (-1 / 2))
    if _bins(box, cutoff).prod() > 10 * _MAX_BINS:
        raise InputError(
            f"`cell` is too long for a cutoff of {cutoff:g} Å: check the unit of the "
            "cell vectors, or switch pbc off along the longest"
        )
    geometry = {"positions": positions, "cell": box, "pbc": pbc}
    arrays = {name: tensor.cpu().numpy() for name, tensor in geometry.items()}
    result = matscipy_list("ijS", cutoff=cutoff, **arrays)
    i, j, shift = (torch.from_numpy(array).to(positions.device) for array in result)
    return i.to(torch.int64), j.to(torch.int64), shift


def _laid_out(batch: AtomsBatch, i: Tensor, j: Tensor, shift: Tensor) -> Edges:
    """Decide between dense rows and a ragged list; ``i`` is ascending."""
    counts = torch.bincount(i, minlength=batch.n_atoms)
    degree = int(counts.max()) if batch.n_atoms else 0
    shifts = shift if batch.periodic else None
    n_rows = batch.n_atoms * degree
    if len(i) < (1.0 - _MAX_FILL) * n_rows:
        return Edges(i=i, j=j, shift=shifts)
    if len(i) == n_rows:
        return Edges(i=i, j=j, shift=shifts, degree=degree)
    atoms = torch.arange(batch.n_atoms, device=i.device)
    receivers = atoms.repeat_interleave(degree)
    first = counts.cumsum(0) - counts
    place = i * degree + torch.arange(len(i), device=i.device) - first[i]
    senders = receivers.clone()
    senders[place] = j
    if shifts is not None:
        shifts = shift.new_zeros(n_rows, 3)
        shifts[place] = shift
    return Edges(i=receivers, j=senders, shift=shifts, degree=degree, has_fill=True)
