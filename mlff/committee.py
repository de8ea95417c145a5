"""Several potentials of one architecture as one: their mean, and how far they disagree.

A committee is a :class:`mlff.Potential`: its energy is the mean of its members, its
forces and stress are the exact derivatives of that, and everything that takes a
potential takes it. What one potential cannot tell is the standard deviation over the
members, a sample one: ``σ² = Σ_m (x_m − x̄)² / (M − 1)``.

Weights are stacked, with a first axis of members, and batch, list and graph are shared.
A small batch, and any on a GPU, runs through all members in one vectorized pass
(``torch.vmap``); a large one, where arithmetic outweighs calls, through one after the
other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from mlff.batch import AtomsBatch, Edges, Graph
from mlff.errors import InputError, InputTypeError, warn_once
from mlff.graph import build_graph, derivatives, differentiable
from mlff.heads import DERIVED
from mlff.info import TrainingInfo
from mlff.models import Features, Representation
from mlff.nn.stacked import ALL, Stacked, at_once
from mlff.potential import Potential, load
from mlff.properties import PROPERTIES

#: What only a committee knows: standard deviations, by name, of what.
DEVIATIONS = {"energy_deviation": "energy", "forces_deviation": "forces"}

#: Members of a committee at most.
MAX_MEMBERS = 64

# References that differ by less are the same, eV: of other processors, for example.
_SAME_ENERGY = 1e-6


class Committee(Potential):
    """Several potentials that differ in their weights only.

    Args:
        members: 2 … 64, on one device and of one precision.

    Raises:
        InputError: too few or too many, or members that differ in their model, heads,
            elements, states, references, level of theory, precision or device; the text
            says in which.
        InputTypeError: something else than potentials.
    """

    model: "_Models"
    _format: ClassVar[str] = "mlff-committee"

    def __init__(self, members: Sequence[Potential]) -> None:
        _check_members(members)
        first = members[0]
        heads: dict[str, nn.Module] = {
            name: _Heads([one.heads[name] for one in members]) for name in first.heads
        }
        model = _Models([one.model for one in members])
        info = TrainingInfo.shared([one.info for one in members])
        super().__init__(model, heads, {}, info)
        self.references = first.references.clone()
        self.train(first.training)
        _warn_of_twins(self)
        self.register_load_state_dict_post_hook(_warn_of_twins)

    @property
    def n_members(self) -> int:
        """How many potentials this is made of."""
        return len(next(self.model.parameters()))

    @property
    def properties(self) -> tuple[str, ...]:
        """What :meth:`forward` can return."""
        own = super().properties
        return (*own, *(name for name, of in DEVIATIONS.items() if of in own))

    @property
    def config(self) -> dict[str, Any]:
        """How the networks are built, JSON types."""
        return {**super().config, "members": self.n_members}

    def forward(
        self,
        batch: AtomsBatch,
        edges: Edges,
        properties: Sequence[str] = ("energy", "forces"),
        *,
        create_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate one batch: the mean of the members, and deviations if asked for.

        Args:
            batch: the systems, on the device of the committee.
            edges: every pair within the cutoff, as for a potential.
            properties: names from :attr:`properties`. ``energy_deviation``
                (n_systems,), eV, and ``forces_deviation`` (n_atoms, 3), eV/Å, by
                component, are sample standard deviations over the members; they come
                from the same pass.
            create_graph: keep the graph; deviations have none.

        Returns:
            As :meth:`mlff.Potential.forward`.

        Raises:
            InputError: as there, or deviations with ``create_graph``.
        """
        self.check_properties(properties, batch.periodic)
        if create_graph:
            if not DEVIATIONS.keys().isdisjoint(properties):
                raise InputError(
                    "`create_graph` is not for deviations, which have no derivative "
                    "here; ask for them in another call"
                )
            return super().forward(batch, edges, properties, create_graph=True)
        needed = dict.fromkeys(DEVIATIONS.get(name, name) for name in properties)
        found = self.members(batch, edges, tuple(needed))
        return {
            name: _deviation(found[DEVIATIONS[name]])
            if name in DEVIATIONS
            else found[name].mean(0)
            for name in properties
        }

    def members(
        self,
        batch: AtomsBatch,
        edges: Edges,
        properties: Sequence[str] = ("energy", "forces"),
    ) -> dict[str, Tensor]:
        """Return what each member says, for deviations of whatever follows from it.

        The errors of two states of a molecule, or of two geometries, are correlated:
        the deviation of a difference is that of the differences of each member.

        Args:
            batch: the systems, on the device of the committee.
            edges: every pair within the cutoff.
            properties: names of what a potential gives.

        Returns:
            By name, as :meth:`mlff.Potential.forward` with a first axis of members:
            ``energy`` (n_members, n_systems), ``forces`` (n_members, n_atoms, 3).
        """
        super().check_properties(properties, batch.periodic)
        forces, stress = "forces" in properties, "stress" in properties
        # One after the other they need the memory of one, and its caches.
        step = self.n_members if at_once(batch.n_atoms, self.device) else 1
        with torch.set_grad_enabled(forces or stress):
            moved, inputs = differentiable(batch, forces, stress)
            graph = build_graph(moved, edges, self.dtype)
            parts = [
                self._some(slice(first, first + step), graph, properties)
                for first in range(0, self.n_members, step)
            ]
        out = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if inputs:
            gradients = torch.autograd.grad(
                graph.vectors, inputs, out["pull"], is_grads_batched=True
            )
            out |= derivatives(gradients, forces, stress, batch)
        return {name: out[name].detach() for name in properties}

    def _some(
        self, members: slice, graph: Graph, properties: Sequence[str]
    ) -> dict[str, Tensor]:
        """Evaluate some members, derivatives only by the edges: ``pull``."""
        batch = graph.batch
        chosen = range(self.n_members)[members]
        vectors = graph.vectors.detach().expand(len(chosen), -1, -1)
        vectors.requires_grad_(torch.is_grad_enabled())
        features = self.model.each(graph, vectors, members=members)
        out = {}
        for name in properties:
            head = PROPERTIES[name].head
            if head != "energy":
                found = self._head(head).each(features, batch, members=members)
                out[name] = torch.vmap(DERIVED.get(name, torch.clone))(found).detach()
        if any(PROPERTIES[name].head == "energy" for name in properties):
            sites = self._head("energy").each(features, members=members).double()
            out["energies"] = (sites + self.references[batch.numbers]).detach()
            out["energy"] = torch.vmap(batch.total)(out["energies"])
            if vectors.requires_grad:
                (out["pull"],) = torch.autograd.grad(sites.sum(), vectors)
        return out

    def _head(self, name: str) -> "_Heads":
        return cast(_Heads, self.heads[name])

    def deviations(self, batch: AtomsBatch, edges: Edges) -> dict[str, Tensor]:
        """Return the sample standard deviations over the members (M − 1 below).

        Args:
            batch: the systems, on the device of the committee.
            edges: every pair within the cutoff.

        Returns:
            ``energy`` (n_systems,), eV; ``forces`` (n_atoms, 3), eV/Å, by component:
            only the norm over the three is the same however a molecule is turned.
        """
        found = self(batch, edges, tuple(DEVIATIONS))
        return {of: found[name] for name, of in DEVIATIONS.items()}

    def check_properties(self, properties: Sequence[str], periodic: bool) -> None:
        """See :meth:`mlff.Potential.check_properties`."""
        plain = [DEVIATIONS.get(name, name) for name in properties]
        super().check_properties(plain, periodic)

    @classmethod
    def load(
        cls,
        path: str | Path | Sequence[str | Path],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        expected_sha256: str | None = None,
    ) -> Self:
        """Read a committee from its file, or its members from theirs.

        Args:
            path: file written by :meth:`save`; or a list of potentials, files or names
                of shipped models.
            device: where to put it.
            dtype: of the networks; that of the files if not given.
            expected_sha256: of the one file; refuse any other content.

        Raises:
            InputError: members that do not fit together.
            ModelFileError: whatever is wrong with a file.
        """
        if isinstance(path, (str, Path)):
            return super().load(path, device, dtype, expected_sha256=expected_sha256)
        if expected_sha256 is not None:
            raise InputError("`expected_sha256` is of one file, got several")
        return cls([load(one, device, dtype) for one in path])

    @classmethod
    def _from_config(
        cls, config: dict[str, Any], info: TrainingInfo, dtype: torch.dtype
    ) -> Self:
        n_members = config["members"]
        if not isinstance(n_members, int) or not 2 <= n_members <= MAX_MEMBERS:
            raise InputError(f"`members` must lie in 2 … {MAX_MEMBERS}")
        alone = [Potential._from_config(config, info, dtype) for _ in range(n_members)]
        committee = cls(alone)
        committee.info = info
        return committee


class _Models(Representation):
    """The models of all members: features with a first axis of members."""

    def __init__(self, models: Sequence[Representation]) -> None:
        nn.Module.__init__(self)
        self.stack = Stacked(models)
        first = models[0]
        self.cutoff, self.n_features = first.cutoff, first.n_features
        self.symmetry, self.additive = first.symmetry, first.additive
        self.supports_periodic = first.supports_periodic
        self.resolves_states = first.resolves_states

    @property
    def config(self) -> dict[str, Any]:
        """See :class:`mlff.models.base.Representation`."""
        model = cast(Representation, self.stack.module)
        return model.config

    def forward(self, graph: Graph) -> Features:
        """Return the features of every atom, (n_members, n_atoms, …)."""
        return self.each(graph)

    def each(self, graph: Graph, *vectors: Tensor, members: slice = ALL) -> Features:
        """Return the same of some, by edge vectors of each (n_chosen, n_edges, 3)."""

        def call(model: Callable[..., Features], *own: Tensor) -> tuple[Tensor, Tensor]:
            seen = graph
            if own:
                distances = torch.linalg.vector_norm(own[0], dim=1)
                seen = replace(graph, vectors=own[0], distances=distances)
            features = model(seen)
            return features.scalars, features.vectors

        found = self.stack.map(call, graph.batch.n_atoms, *vectors, members=members)
        return Features(scalars=found[0], vectors=found[1])


class _Heads(nn.Module):
    """The heads of all members for one property; alone they give its mean."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stack = Stacked(heads)

    def forward(self, features: Features, *batch: AtomsBatch) -> Tensor:
        """Return the mean over the members of what the heads give."""
        return self.each(features, *batch).mean(0)

    def each(
        self, features: Features, *batch: AtomsBatch, members: slice = ALL
    ) -> Tensor:
        """Return what the heads of some members give, (n_chosen, …)."""

        def call(
            head: Callable[..., Tensor], scalars: Tensor, vectors: Tensor
        ) -> tuple[Tensor]:
            return (head(Features(scalars=scalars, vectors=vectors), *batch),)

        scalars, vectors = features.scalars, features.vectors
        n_atoms = scalars.shape[1]
        (out,) = self.stack.map(call, n_atoms, scalars, vectors, members=members)
        return out


def check_committee(potential: Any, argument: str) -> Committee:
    """Return a committee as such.

    Args:
        potential: what was given.
        argument: what needs it.

    Raises:
        InputTypeError: one potential, or none at all.
    """
    if not isinstance(potential, Committee):
        raise InputTypeError(
            f"`{argument}` needs a committee, whose members may disagree, got "
            f"{type(potential).__name__}; join potentials with mlff.Committee([...]), "
            "or name their files, separated by commas"
        )
    return potential


def _deviation(values: Tensor) -> Tensor:
    """Sample standard deviation over the first axis; 0 if all are the same."""
    return (values - values[0]).std(0)


def _check_members(members: Sequence[Potential]) -> None:
    listed = isinstance(members, (list, tuple))
    for one in members if listed else [members]:
        alone = isinstance(one, Potential) and not isinstance(one, Committee)
        if not (listed and alone):
            raise InputTypeError(
                "`members` must be a list of potentials of one model each, got "
                f"{type(one).__name__}{' among others' if listed else ''}"
            )
    if not 2 <= len(members) <= MAX_MEMBERS:
        raise InputError(
            f"`members` must be 2 … {MAX_MEMBERS} potentials, got {len(members)}; one "
            "alone does not deviate from itself"
        )
    for index, one in enumerate(members[1:], 1):
        different = list(_differences(members[0], one))
        if different:
            raise InputError(
                "`members` must differ in their weights only; member 0 and member "
                f"{index} differ in {'; '.join(different)}"
            )


def _warn_of_twins(committee: Any, _missing: Any = None) -> None:
    for i, j in combinations(range(committee.n_members), 2):
        if all(torch.equal(one[i], one[j]) for one in committee.model.parameters()):
            told = f"members {i} and {j} of the committee have the same weights"
            warn_once(f"{told}; train members from different seeds")
            return


def _differences(first: Potential, other: Potential) -> Iterator[str]:
    """Say what two potentials differ in, beside their weights."""
    model, theirs = first.config["model"], other.config["model"]
    for name in sorted(model.keys() | theirs.keys()):
        if model.get(name) != theirs.get(name):
            yield f"model.{name}: {model.get(name)!r} and {theirs.get(name)!r}"
    for what, one, two in (
        ("heads", sorted(first.heads), sorted(other.heads)),
        ("elements", first.info.elements, other.info.elements),
        ("states", first.info.states, other.info.states),
        ("level of theory", first.info.level_of_theory, other.info.level_of_theory),
        ("precision", first.dtype, other.dtype),
        ("device", first.device, other.device),
    ):
        if one != two:
            yield f"{what}: {one} and {two}"
    seen = set(first.info.formulas), set(other.info.formulas)
    if all(seen) and seen[0].isdisjoint(seen[1]):
        yield f"compositions: {sorted(seen[0])} and {sorted(seen[1])}"
    apart = (first.references.cpu() - other.references.cpu()).abs()
    if float(apart.max()) > _SAME_ENERGY:
        yield (
            f"references, by up to {float(apart.max()):.3g} eV: give them as "
            "`data.references`, or train all on the same split"
        )
