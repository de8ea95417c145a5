"""A potential: model + heads + reference energies, its derivatives, and its file.

The energy of a system is ``Σ_i (ε_i + E0[Z_i])``: ε_i from the network in its dtype,
the per-element references E0 and every sum in float64 (float32 cannot resolve 0.1 meV
at −1,000 eV). Forces are the exact derivative ``−∂E/∂r``; the stress is ``(1/V) ∂E/∂ε``
with the symmetric strain ε that deforms positions and cell, ASE's sign.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module, resources
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mlff.batch import AtomsBatch, Edges
from mlff.device import DTYPES, check_device, check_dtype
from mlff.errors import InputError, InputTypeError, ModelFileError
from mlff.graph import build_graph, derivatives, differentiable
from mlff.heads import DERIVED, HEADS
from mlff.info import TrainingInfo, reference_table
from mlff.models import Features, Representation, build_model
from mlff.properties import PROPERTIES
from mlff.tensorfile import check_tensors, load_tensors, save_tensors

__all__ = ["Potential", "TrainingInfo", "build_graph", "load", "shipped"]

#: Version of the file format; files with a newer one are refused.
FORMAT_VERSION = 1

_UNITS = {"energy": "eV", "length": "Ang"}


class Potential(nn.Module):
    """Energies, forces and stresses of batches of systems.

    Args:
        model: features of every atom.
        heads: by name, see :data:`mlff.heads.HEADS`; at least one.
        references: energy of each element, eV, by atomic number.
        info: what the weights have seen.
    """

    references: Tensor
    _format: ClassVar[str] = "mlff-potential"

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
        blocks = representation.n_output_blocks
        built = {name: HEADS[name](width, blocks) for name in heads}
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
                batch, inputs = differentiable(batch, forces, stress, create_graph)
            graph = build_graph(batch, edges, self.dtype)
            features = self.model(graph)
            out = self._read_out(features, batch, properties)
            if any(PROPERTIES[name].head == "energy" for name in properties):
                sites = self.heads["energy"](features).double()
                out["energies"] = sites + self.references[batch.numbers]
                out["energy"] = batch.total(out["energies"])
            if inputs:
                gradients = torch.autograd.grad(
                    sites.sum(), inputs, create_graph=create_graph
                )
                out |= derivatives(gradients, forces, stress, batch)
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
            "format": self._format,
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
        """Read a potential or committee, verify every byte, freeze it for inference.

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
        check_tensors(path, tensors, potential.state_dict())
        potential.load_state_dict(tensors)
        potential = potential.to(device=check_device(device), dtype=check_dtype(dtype))
        return potential.eval().requires_grad_(False)

    @classmethod
    def _from_header(cls, path: str | Path, header: dict[str, Any]) -> Self:
        kind: Any
        kind = _committee() if header.get("format") == "mlff-committee" else Potential
        if header.get("format") != kind._format or not issubclass(kind, cls):
            wanted = cls._format.replace("-", " ")
            raise ModelFileError(
                f"{path} holds {header.get('format')!r}, not an {wanted}"
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
                built: Self = kind._from_config(header["config"], info, dtype)
            return built
        except (
            AttributeError,
            InputError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise ModelFileError(f"{path}: unusable header: {error!r}") from error

    @classmethod
    def _from_config(
        cls, config: dict[str, Any], info: TrainingInfo, dtype: torch.dtype
    ) -> Self:
        """Build with fresh weights what :attr:`config` describes."""
        heads = config.get("heads", ["energy"])  # files of version 0.1
        return cls.build(config["model"], {}, info, dtype, heads=heads)


def _as_it_is(values: Tensor) -> Tensor:
    return values


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
    """Load a shipped model by name, or a potential or committee from a path.

    Args:
        name: e.g. ``"ch2"``, or a file; several, separated by commas, are the members
            of a :class:`mlff.Committee`.
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
    if os.path.exists(name):  # false too for what cannot be a path, unlike Path's
        return Potential.load(name, device, dtype)
    if "," in str(name):
        return _committee().load(str(name).split(","), device, dtype)
    raise ModelFileError(
        f"{str(name)!r} is neither a file nor a shipped model; shipped are "
        f"{sorted(models)}"
    )


def _committee() -> Any:
    """Return the class of committees, which is made of potentials and so above them."""
    return import_module("mlff.committee").Committee
