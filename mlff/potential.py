"""A potential: model + heads + reference energies, its derivatives, and its file.

The energy of a system is ``Σ_i (ε_i + E0[Z_i])``: ε_i from the network in its dtype,
the per-element references E0 and every sum in float64 (float32 cannot resolve 0.1 meV
at −1,000 eV). Forces are the exact derivative ``−∂E/∂r``; the stress is ``(1/V) ∂E/∂ε``
with the symmetric strain ε that deforms positions and cell, ASE's sign.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mlff.batch import AtomsBatch, Edges, Graph, edge_vectors
from mlff.device import DTYPES, check_device, check_dtype
from mlff.errors import InputError, InputTypeError, ModelFileError
from mlff.heads import DERIVED, HEADS
from mlff.info import TrainingInfo, reference_table
from mlff.models import Features, Representation, build_model
from mlff.properties import PROPERTIES
from mlff.tensorfile import load_tensors, save_tensors

__all__ = ["Potential", "TrainingInfo", "build_graph", "load", "shipped"]

#: Version of the file format; files with a newer one are refused.
FORMAT_VERSION = 1

_FORMAT = "mlff-potential"
_UNITS = {"energy": "eV", "length": "Ang"}

# Length given to fill edges, Å: beyond every cutoff a model may have.
_FAR = 1e3


class Potential(nn.Module):
    """Energies, forces and stresses of batches of systems.

    Args:
        model: features of every atom.
        heads: by name, see :data:`mlff.heads.HEADS`; at least one.
        references: energy of each element, eV, by atomic number.
        info: what the weights have seen.
    """

    references: Tensor

    def __init__(
        self,
        model: Representation,
        heads: dict[str, nn.Module],
        references: dict[int, float],
        info: TrainingInfo,
    ) -> None:
        super().__init__()
        if not heads or not set(heads) <= set(HEADS):
            raise InputError(
                f"`heads` must be one or several of {list(HEADS)}, got {sorted(heads)}"
            )
        self.model = model
        self.heads = nn.ModuleDict(heads)
        self.info = info
        self.register_buffer("references", reference_table(references))

    @classmethod
    def build(
        cls,
        model: str | dict[str, Any],
        references: dict[int, float],
        info: TrainingInfo,
        dtype: torch.dtype = torch.float32,
        *,
        heads: Sequence[str] = ("energy",),
    ) -> Self:
        """Build a potential with fresh weights.

        Args:
            model: name, or name and options: ``{"name": "cmret", "n_features": 64}``.
            references: energy of each element, eV, by atomic number.
            info: elements and states that it is for.
            dtype: of the network, float32 or float64.
            heads: keys of :data:`mlff.heads.HEADS`.
        """
        options = {"name": model} if isinstance(model, str) else model
        if not isinstance(options, dict) or "name" not in options:
            raise InputError(f"`model` must have a 'name', got {options}")
        representation = build_model(**options)
        width = representation.n_features
        if isinstance(heads, str) or not set(map(str, heads)) <= set(HEADS):
            raise InputError(f"`heads` must be among {list(HEADS)}, got {heads!r}")
        built = {name: HEADS[name](width) for name in heads}
        return cls(representation, built, references, info).to(check_dtype(dtype))

    @property
    def cutoff(self) -> float:
        """Longest edge that matters, Å."""
        return self.model.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.references.device

    @property
    def properties(self) -> tuple[str, ...]:
        """What :meth:`forward` can return."""
        absent = () if self.model.supports_periodic else ("stress",)
        return tuple(
            name
            for name, known in PROPERTIES.items()
            if known.head in self.heads and name not in absent
        )

    @property
    def config(self) -> dict[str, Any]:
        """How the network is built, JSON types."""
        return {"model": self.model.config, "heads": list(self.heads)}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep the references in float64 under ``.to``, ``.float``, ``.half``."""
        exact = self.references
        super()._apply(fn, recurse)
        self.references = exact.to(self.references.device)
        return self

    def forward(
        self,
        batch: AtomsBatch,
        edges: Edges,
        properties: Sequence[str] = ("energy", "forces"),
        *,
        create_graph: bool = False,
    ) -> dict[str, Tensor]:
        """Evaluate one batch in one pass; nothing here waits for the device.

        Args:
            batch: the systems, on the device of the potential.
            edges: every pair within :attr:`cutoff`; longer ones contribute nothing.
            properties: names from :attr:`properties`.
            create_graph: keep the graph, for training on forces and for Hessians.

        Returns:
            By name, float64, detached unless ``create_graph``: ``energy``
            (n_systems,), eV; ``energies`` (n_atoms,), eV; ``forces`` (n_atoms, 3),
            eV/Å; ``stress`` (n_systems, 3, 3), eV/Å³; others as in
            :data:`mlff.properties.PROPERTIES`.

        Raises:
            InputError: a property that this potential does not have, or that a
                periodic system does not have.
        """
        self.check_properties(properties, batch.periodic)
        forces, stress = "forces" in properties, "stress" in properties
        with torch.set_grad_enabled(forces or stress or create_graph):
            inputs: list[Tensor] = []
            if forces or stress:
                batch, inputs = _differentiable(batch, forces, stress, create_graph)
            graph = build_graph(batch, edges, self.dtype)
            features = self.model(graph)
            out = self._read_out(features, batch, properties)
            if any(PROPERTIES[name].head == "energy" for name in properties):
                sites = self.heads["energy"](features).double()
                out["energies"] = sites + self.references[batch.numbers]
                out["energy"] = batch.total(out["energies"])
            if inputs:
                gradients = list(
                    torch.autograd.grad(sites.sum(), inputs, create_graph=create_graph)
                )
                if forces:
                    out["forces"] = -gradients.pop(0)
                if stress:
                    volume = torch.linalg.det(batch.cell.detach()).abs()
                    strain = gradients.pop(0)
                    out["stress"] = 0.5 * (strain + strain.mT) / volume[:, None, None]
        return {
            name: out[name] if create_graph else out[name].detach()
            for name in properties
        }

    def check_properties(self, properties: Sequence[str], periodic: bool) -> None:
        """Raise unless this potential can give properties.

        Args:
            properties: names.
            periodic: whether any system is periodic.

        Raises:
            InputError: naming the property.
        """
        known = self.properties
        for name in properties:
            if name not in known:
                raise InputError(
                    f"this model gives no {name}: `properties` must be among "
                    f"{known}, got {name!r}"
                )
            if periodic and PROPERTIES[name].head != "energy":
                raise InputError(
                    f"`properties`: {name} is about the center of nuclear charge, "
                    "which a periodic system does not have"
                )

    def _read_out(
        self, features: Features, batch: AtomsBatch, properties: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return what the heads of whole systems give, by property."""
        heads = {n: PROPERTIES[n].head for n in properties}
        own = {n: head for n, head in heads.items() if head != "energy"}
        found = {head: self.heads[head](features, batch) for head in set(own.values())}
        return {n: DERIVED.get(n, _as_it_is)(found[head]) for n, head in own.items()}

    def save(self, path: str | Path) -> str:
        """Write the potential; no pickle, replaced atomically.

        Returns:
            The SHA-256 stored in the file.
        """
        dtype = next(k for k, v in DTYPES.items() if v == self.dtype)
        header = {
            "format": _FORMAT,
            "format_version": FORMAT_VERSION,
            "units": _UNITS,
            "dtype": dtype,
            "config": self.config,
            "info": asdict(self.info),
        }
        return save_tensors(path, self.state_dict(), header)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        expected_sha256: str | None = None,
    ) -> Self:
        """Read a potential, verify every byte, and freeze it for inference.

        Args:
            path: file written by :meth:`save`.
            device: where to put it.
            dtype: of the network; that of the file if not given.
            expected_sha256: refuse any other content.

        Returns:
            The potential in evaluation mode, weights without gradient
            (``requires_grad_(True)`` to train on).

        Raises:
            ModelFileError: whatever is wrong with the file.
        """
        tensors, header = load_tensors(path, expected_sha256)
        potential = cls._from_header(path, header)
        _check_tensors(path, tensors, potential.state_dict())
        potential.load_state_dict(tensors)
        potential = potential.to(device=check_device(device), dtype=check_dtype(dtype))
        return potential.eval().requires_grad_(False)

    @classmethod
    def _from_header(cls, path: str | Path, header: dict[str, Any]) -> Self:
        if header.get("format") != _FORMAT:
            raise ModelFileError(
                f"{path} holds {header.get('format')!r}, not an mlff potential"
            )
        version = header.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ModelFileError(
                f"{path} has format version {version!r}, this mlff reads up to "
                f"{FORMAT_VERSION}: upgrade mlff"
            )
        if header.get("units") != _UNITS:
            raise ModelFileError(
                f"{path} is in units {header.get('units')}, needed are {_UNITS}"
            )
        try:
            dtype = DTYPES[header["dtype"]]
            info = TrainingInfo.from_json(header["info"])
            with torch.random.fork_rng(devices=[]):  # fresh weights, soon replaced
                config = header["config"]
                heads = config.get("heads", ["energy"])  # files of version 0.1
                return cls.build(config["model"], {}, info, dtype, heads=heads)
        except (
            AttributeError,
            InputError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise ModelFileError(f"{path}: unusable header: {error!r}") from error


def build_graph(batch: AtomsBatch, edges: Edges, dtype: torch.dtype) -> Graph:
    """Compute edge geometry, differentiable in positions and cell.

    Vectors are formed in float64 and cast afterwards, so that precision does not
    depend on where a system sits.
    """
    vectors = edge_vectors(batch, edges)
    if edges.has_fill:
        real = edges.i != edges.j
        if edges.shift is not None:
            real = real | (edges.shift != 0).any(1)
        far = vectors.new_tensor((_FAR, 0.0, 0.0))
        vectors = torch.where(real[:, None], vectors, far)
    vectors = vectors.to(dtype)
    distances = torch.linalg.vector_norm(vectors, dim=1)
    return Graph(batch=batch, edges=edges, vectors=vectors, distances=distances)


def _differentiable(
    batch: AtomsBatch, forces: bool, stress: bool, create_graph: bool
) -> tuple[AtomsBatch, list[Tensor]]:
    """Return the batch as a function of positions and strain, and these inputs."""
    positions, cell, inputs = batch.positions, batch.cell, []
    if forces:
        if not (create_graph and positions.requires_grad):
            positions = positions.detach().requires_grad_(True)
        inputs.append(positions)
    if stress:
        strain = torch.zeros_like(cell, requires_grad=True)
        inputs.append(strain)
        symmetric = 0.5 * (strain + strain.mT)
        moved = torch.einsum("ax,axy->ay", positions, symmetric[batch.system])
        positions = positions + moved
        cell = cell + cell @ symmetric
    return batch.replace(positions=positions, cell=cell), inputs


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _check_tensors(
    path: str | Path, found: dict[str, Tensor], needed: dict[str, Tensor]
) -> None:
    if found.keys() != needed.keys():
        missing = sorted(needed.keys() - found.keys())[:3]
        surplus = sorted(found.keys() - needed.keys())[:3]
        raise ModelFileError(
            f"{path}: tensors missing {missing}, tensors not expected {surplus}"
        )
    for name, tensor in needed.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise ModelFileError(
                f"{path}: tensor {name!r} is {found[name].dtype} "
                f"{tuple(found[name].shape)}, needed is {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )


def shipped() -> dict[str, Path]:
    """Return the models that come with the package, name → file."""
    folder = resources.files("mlff") / "pretrained"
    files = [Path(str(f)) for f in folder.iterdir() if f.name.endswith(".safetensors")]
    return {f.stem: f for f in sorted(files)}


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Potential:
    """Load a shipped model by name, or a potential from a path.

    Args:
        name: e.g. ``"ch2"``, or a file.
        device: where to put it.
        dtype: of the network; that of the file if not given.

    Raises:
        InputTypeError: neither a name nor a path.
        ModelFileError: neither a shipped model nor a readable potential.
    """
    if not isinstance(name, (str, Path)):
        raise InputTypeError(
            f"`name` must be a name or a path, got {name!r} ({type(name).__name__})"
        )
    models = shipped()
    if str(name) in models:
        return Potential.load(models[str(name)], device, dtype)
    if not os.path.exists(name):  # false too for what cannot be a path, unlike Path's
        raise ModelFileError(
            f"{str(name)!r} is neither a file nor a shipped model; shipped are "
            f"{sorted(models)}"
        )
    return Potential.load(name, device, dtype)
