"""What a model is: a graph in, features of each atom out.

A model sees nothing but :class:`mlff.batch.Graph`. It declares its symmetry and whether
it is additive; :mod:`mlff.testing` holds it to what it declares.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mlff.batch import Graph


@dataclass(frozen=True, kw_only=True)
class Features:
    """All that a head sees.

    Attributes:
        scalars: invariant features, (n_atoms, F).
        vectors: (n_atoms, 3 + internal, F): three spatial components first, then
            internal ones that rotations do not touch. Norms and inner products run
            over all, outputs that are vectors in space read the first three.
    """

    scalars: Tensor
    vectors: Tensor


class Representation(nn.Module, ABC):
    """A model, built from one frozen dataclass of options.

    Attributes:
        Config: that dataclass; it checks its values.
        cutoff: edges longer than this contribute exactly nothing, Å.
        n_features: width F of its features.
        n_output_blocks: gated equivariant blocks that heads on it have.
        symmetry: ``"O3"``, ``"SO3"`` (mirror images may differ), or ``"broken"`` (a
            published form that is not rotation invariant; kept for comparison).
        additive: whether separated neutral closed-shell parts add up.
        supports_periodic: whether a supercell has the energy of its cells.
        resolves_states: whether every charge and multiplicity of a molecule has an
            energy of its own.
    """

    Config: ClassVar[type[Any]]
    cutoff: float
    n_features: int
    n_output_blocks: int = 2
    symmetry: str
    additive: bool
    supports_periodic: bool
    resolves_states: bool

    @abstractmethod
    def __init__(self, config: Any) -> None:
        super().__init__()

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What ``build_model`` needs to build this again, JSON types, with "name"."""

    @abstractmethod
    def forward(self, graph: Graph) -> Features:
        """Return the features of every atom."""
