"""What models share that pass messages along edges: options, edge features, the start.

A family is its file: the options it adds, and :meth:`Edgewise.interact`. All that an
edge does goes through :class:`EdgeFeatures`, so that a family runs as well on other
tasks, whose atoms and edges start from other numbers.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mlff.batch import Graph
from mlff.errors import InputError
from mlff.models.base import Features, Representation
from mlff.nn.embedding import NuclearEmbedding, check_charge_spin, initial_vectors
from mlff.nn.radial import BASES, ENVELOPES, choose


def check_integers(config: Any, highest: Mapping[str, int], lowest: int = 1) -> None:
    """Raise unless options are integers in their ranges.

    Args:
        config: what has them as attributes.
        highest: largest value allowed, by name.
        lowest: smallest value allowed.

    Raises:
        InputError: naming the option.
    """
    for name, most in highest.items():
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not lowest <= value <= most:
            raise InputError(f"`{name}` must lie in {lowest} … {most}, got {value!r}")


def check_flags(config: Any, *names: str) -> None:
    """Raise unless options are true or false.

    Raises:
        InputError: naming the option.
    """
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise InputError(
                f"`{name}` must be true or false, got {getattr(config, name)!r}"
            )


@dataclass(frozen=True, kw_only=True)
class EdgewiseConfig:
    """Options that all families have.

    Attributes:
        n_features: width F, even.
        n_layers: interaction layers.
        n_radial: radial functions K.
        cutoff: Å.
        basis: ``"bessel"`` or ``"gaussian"``, see :mod:`mlff.nn.radial`.
        envelope: ``"polynomial"`` (C²) or ``"cosine"`` (C¹).
        charge_spin: ``"internal"``, ``"cmret"`` (not rotation invariant) or ``"none"``,
            see :func:`mlff.nn.embedding.initial_vectors`.
    """

    n_features: int = 128
    n_layers: int = 3
    n_radial: int = 20
    cutoff: float = 5.0
    basis: str = "bessel"
    envelope: str = "polynomial"
    charge_spin: str = "internal"

    def __post_init__(self) -> None:
        check_integers(self, {"n_features": 4096, "n_layers": 64, "n_radial": 1024})
        if isinstance(self.cutoff, bool) or not isinstance(self.cutoff, (int, float)):
            raise InputError(f"`cutoff` must be a number, got {self.cutoff!r}")
        if not 0.1 <= self.cutoff <= 50:
            raise InputError(f"`cutoff` must lie in 0.1 … 50 Å, got {self.cutoff}")
        choose(dict(BASES), self.basis, "basis")
        choose(dict(ENVELOPES), self.envelope, "envelope")
        check_charge_spin(self.charge_spin, self.n_features)


@dataclass(frozen=True, kw_only=True)
class EdgeFeatures:
    """All that a model knows about its edges.

    An edge may act only through a factor that vanishes at the cutoff: ``envelope``, or
    ``radial`` as long as nothing with a bias has acted on it.

    Attributes:
        radial: radial functions times envelope, (n_edges, K).
        envelope: φ, 1 near, 0 from the cutoff on, (n_edges,).
        directions: r̂ from receiver to sender, (n_edges, 3).
    """

    radial: Tensor
    envelope: Tensor
    directions: Tensor


class Edgewise(Representation):
    """A model that starts from nuclei, charge and spin, and works along edges.

    Attributes:
        name: its key among the models.

    Args:
        config: options.
    """

    Config = EdgewiseConfig
    name: ClassVar[str]

    def __init__(self, config: EdgewiseConfig) -> None:
        super().__init__(config)
        self._config = config
        self.cutoff = float(config.cutoff)
        self.n_features = config.n_features
        self.symmetry = "broken" if config.charge_spin == "cmret" else "O3"
        self.resolves_states = config.charge_spin == "internal"
        self.additive = self.supports_periodic = True
        self.embedding = NuclearEmbedding(config.n_features)
        self.basis = BASES[config.basis](config.n_radial, self.cutoff)

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`mlff.models.base.Representation`."""
        return {"name": self.name, **asdict(self._config)}

    def forward(self, graph: Graph) -> Features:
        """See :class:`mlff.models.base.Representation`."""
        scalars = self.embedding(graph.batch.numbers)
        vectors = self.initial_vectors(graph, scalars.dtype)
        return self.interact(scalars, vectors, graph, self.edge_features(graph))

    def initial_vectors(self, graph: Graph, dtype: torch.dtype) -> Tensor:
        """Return what charge and spin say, (n_atoms, 3 + internal, F)."""
        return initial_vectors(
            graph.batch, self.n_features, self._config.charge_spin, dtype
        )

    def edge_features(self, graph: Graph) -> EdgeFeatures:
        """Return what the geometry says about the edges."""
        distances = graph.distances
        envelope = ENVELOPES[self._config.envelope](distances, self.cutoff)
        return EdgeFeatures(
            radial=envelope[:, None] * self.basis(distances),
            envelope=envelope,
            directions=graph.vectors / distances[:, None],
        )

    @abstractmethod
    def interact(
        self, scalars: Tensor, vectors: Tensor, graph: Graph, edge: EdgeFeatures
    ) -> Features:
        """Let atoms exchange messages.

        Args:
            scalars: what atoms start with, (n_atoms, F).
            vectors: likewise, (n_atoms, 3 + internal, F), see
                :class:`mlff.models.base.Features`.
            graph: batch and edges; geometry enters by ``edge`` alone.
            edge: features of the edges.
        """
