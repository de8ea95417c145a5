"""A neighbor list that is kept while it holds, and rebuilt before it fails.

Knows when a stored list stops being complete; how one is built is in
``mlff.neighbors``. On a GPU a step waits for at most one flag, and for none where all
pairs are listed.

A list built with the radius ``R = cutoff + skin`` lacks only pairs with ``|v| > R``.
Let the periodic cell vectors ``P`` (rows that are not periodic set to zero) be ``P'``
now, ``E = P⁺ (P' − P)``, and let every atom have moved by ``r E + u``: with the cell,
and by ``u`` of its own. A pair vector ``v = r_j − r_i + S P`` is then
``v (1 + E) + u_j − u_i``, whatever its shift S, and

    |v'| ≥ (1 − ‖E‖) |v| − 2 max|u|,

so that no pair within the cutoff is missing while
``(1 − ‖E‖) R − 2 max|u| ≥ cutoff``. With a fixed cell this is the usual half of the
skin; an atom that was wrapped into its cell has ``u`` of a cell vector. ``u`` is
measured against its mean in the system, which no pair vector knows. For the norm stands
its bound ``‖E‖₂² ≤ ‖E‖₁ ‖E‖_∞``, which costs no decomposition and is sharp for an
isotropic strain.
"""

import math

import torch
from torch import Tensor

from mlff.batch import AtomsBatch, Edges
from mlff.errors import InputError
from mlff.neighbors import BACKENDS, check_backend, check_cutoff, chosen_backend


class NeighborList:
    """Edges that are kept while they hold, and rebuilt before they fail.

    Built with ``cutoff + skin``; kept until atoms and cells have moved so far that a
    pair could be missing. Other atoms, cells or periodic axes are noticed by value, so
    tensors may be changed in place. All pairs depend on the sizes only.

    Args:
        cutoff: largest distance that must be in the list, Å.
        skin: margin of the stored list, Å; zero rebuilds after every move.
        backend: as for ``neighbor_list``.

    Raises:
        InputError: a cutoff, skin or back end that cannot be used.
    """

    def __init__(self, cutoff: float, skin: float = 0.5, backend: str = "auto") -> None:
        check_cutoff(cutoff)
        if not 0 <= skin < math.inf:
            raise InputError(f"`skin` must be zero or positive, got {skin}")
        check_backend(backend)
        self.cutoff = cutoff
        self.skin = skin
        self.backend = backend
        #: How often the list was built.
        self.builds = 0
        self._edges: Edges | None = None

    def update(self, batch: AtomsBatch) -> Edges:
        """Return edges with every pair within the cutoff, rebuilt if need be.

        Args:
            batch: any systems, also others than in the last call.

        Raises:
            InputError: what the back end refuses.
        """
        if self._edges is None or not self._holds(batch):
            self._edges = None  # nothing stale is left behind if the build raises
            name = chosen_backend(batch, self.backend)
            edges = BACKENDS[name](batch, self.cutoff + self.skin)
            self._remember(batch)
            self._any_positions = name == "all_pairs"
            self._edges = edges
            self.builds += 1
        return self._edges

    def forget(self) -> None:
        """Build the list anew in the next ``update``, if it depends on positions."""
        if self._edges is not None and not self._any_positions:
            self._edges = None

    @torch.no_grad()
    def _remember(self, batch: AtomsBatch) -> None:
        self._periodic = batch.periodic
        self._seen, self._version = batch.system, _version(batch.system)
        self._system = batch.system.clone()
        self._positions = batch.positions.detach().clone()
        self._pbc = batch.pbc.clone()
        self._vectors = _periodic_vectors(batch)
        if batch.periodic:
            self._inverse = torch.linalg.pinv(self._vectors)
        self._counts = batch.counts()[:, None]

    @torch.no_grad()
    def _holds(self, batch: AtomsBatch) -> bool:
        known = self._system
        if (
            batch.periodic != self._periodic
            or batch.system.shape != known.shape
            or batch.n_systems != len(self._pbc)
            or batch.system.device != known.device
        ):
            return False
        # What follows looks at no value on the device before the last line.
        seen = batch.system is self._seen
        same = seen and 0 <= self._version == _version(batch.system)
        tests = [] if same else [(batch.system == known).all()]
        if not self._any_positions:
            tests.append((batch.pbc == self._pbc).all())
            tests.append(self._is_complete(batch))
        return not tests or bool(torch.stack(tests).all())

    def _is_complete(self, batch: AtomsBatch) -> Tensor:
        """Evaluate the condition at the top of the module for every system."""
        moved = batch.positions - self._positions
        slack = batch.positions.new_full((batch.n_systems,), self.skin)
        if self._periodic:
            strain = self._inverse @ (_periodic_vectors(batch) - self._vectors)
            norm = (strain.abs().sum(1).amax(1) * strain.abs().sum(2).amax(1)).sqrt()
            slack = slack - (self.cutoff + self.skin) * norm
            own = strain[self._system]
            moved = moved - torch.einsum("ax,axy->ay", self._positions, own)
        moved = moved - (batch.total(moved) / self._counts)[self._system]
        # Asked this way round, a position that is not a number forces a rebuild.
        return (2 * moved.norm(dim=1) <= slack[self._system]).all()


def _periodic_vectors(batch: AtomsBatch) -> Tensor:
    """Cell vectors with those that mean nothing set to zero, (n_systems, 3, 3)."""
    return torch.where(batch.pbc[:, :, None], batch.cell.detach(), 0.0)


def _version(tensor: Tensor) -> int:
    # Torch counts the in-place writes of a tensor, but not under inference mode.
    return -1 if tensor.is_inference() else tensor._version
