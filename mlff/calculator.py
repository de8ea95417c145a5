"""The ASE calculator: Atoms with charge and spin in, eV and eV/Å out.

:func:`evaluate` is the whole calculation, without memory; :class:`MLFFCalculator` is
ASE's cache around it. Nothing is written into the caller's Atoms and no global state of
torch is touched.

Results are compared by value with what they were computed from: positions, numbers,
cell, periodic axes, and the charge and multiplicity that :func:`mlff.state.read_state`
finds, defaults applied. Nothing else in ``atoms.info`` matters.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.calculators.mixing import SumCalculator as _ASESumCalculator
from ase.outputs import Properties, all_outputs
from ase.stress import full_3x3_to_voigt_6_stress
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mlff.batch import AtomsBatch, Edges, check_geometry
from mlff.device import check_device, check_dtype, exact
from mlff.errors import InputError, InputTypeError, MlffError, warn_once
from mlff.inference import MIN_VOLUME, check_batch, deviations
from mlff.neighbors import check_distances
from mlff.neighbors.verlet import NeighborList
from mlff.potential import Potential, build_graph, load
from mlff.properties import PROPERTIES
from mlff.state import State, as_integer, read_state


def evaluate(potential: Potential, batch: AtomsBatch, edges: Edges) -> dict[str, Any]:
    """Return everything a potential knows about one system, as ASE wants it.

    A function of its arguments only; one pass through the model.

    Args:
        potential: the potential.
        batch: one system, on the potential's device.
        edges: every pair within the cutoff.

    Returns:
        By ASE's names: ``energy`` and ``free_energy``, the same Python float, eV;
        ``energies`` (n_atoms,), eV; ``forces`` (n_atoms, 3), eV/Å; ``stress`` (6,) in
        Voigt order, eV/Å³, if the system is periodic and its cell has a volume;
        ``dipole`` (3,), e·Å about the center of nuclear charge, if it is not periodic.
        Arrays are float64, C-contiguous, and owned by the caller.

    Raises:
        InputError: the model gives something that is not finite.
    """
    stressed = batch.periodic and _has_volume(batch.cell[0].cpu().numpy())
    wanted = [
        name
        for name in potential.properties
        if PROPERTIES[name].ase is not None
        and (name != "stress" or stressed)
        and not (batch.periodic and PROPERTIES[name].head != "energy")
    ]
    results: dict[str, Any] = {}
    for name, value in potential(batch, edges, wanted).items():
        known = PROPERTIES[name]
        array = value.cpu().numpy()
        array = array[0] if known.per == "system" else array
        if not np.isfinite(array).all():
            raise InputError(
                f"`atoms` has a geometry for which the model's {name} is not finite; "
                "look for atoms that are almost on top of each other"
            )
        if known.ase == "stress":
            array = full_3x3_to_voigt_6_stress(array)
        scalar = np.ndim(array) == 0
        results[str(known.ase)] = (
            float(array) if scalar else np.array(array, np.float64, order="C")
        )
    if "energy" in results:
        results["free_energy"] = results["energy"]
    return results


class _Input(NamedTuple):
    """What decides the results: bytes, so that it is by value and cheap to compare.

    The names are those that ``check_state`` reports.
    """

    numbers: bytes
    cell: bytes
    pbc: bytes
    info: State
    positions: bytes

    @classmethod
    def of(cls, atoms: Atoms, state: State) -> "_Input":
        return cls(
            atoms.numbers.tobytes(),
            atoms.cell.array.tobytes(),
            atoms.pbc.tobytes(),
            state,
            atoms.positions.tobytes(),
        )

    def topology(self) -> tuple[bytes, bytes, bytes, State]:
        """All but the positions."""
        return self[:4]


class MLFFCalculator(Calculator):
    """Energy, forces and, for periodic systems, stress of a potential.

    Charge and multiplicity are read from ``atoms.info["charge"]`` and ``["spin"]``
    (2S+1); see :func:`mlff.state.read_state` for the other places and the checks. Every
    call computes all properties in one pass, and neighbor lists are kept between the
    steps of a simulation.

    Attributes:
        potential: the potential in use. Call :meth:`reset` after changing its weights.
        implemented_properties: ASE's names of what this potential gives.

    Args:
        model: name of a shipped model, a path, or a potential, which is not modified.
        device: where to compute; the CPU, or the device of the potential, if not given.
        dtype: precision of the network, float32 or float64; as stored if not given.
        charge: total charge, e, for every system; must agree with what atoms carry.
        spin: multiplicity 2S+1, likewise.
        skin: margin of the neighbor list, Å: larger is rebuilt less often.
        strict: raise where a default state would be assumed, or where the state was
            not in the training data.

    Raises:
        InputError: an absent device, another precision, an unusable option.
        ModelFileError: no such model, or a damaged file.
    """

    default_parameters: dict[str, Any] = {  # noqa: RUF012 (ASE's, annotated there)
        "charge": None,
        "spin": None,
        "strict": False,
    }
    discard_results_on_any_change = True

    def __init__(
        self,
        model: str | Path | Potential = "ch2",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        charge: Any = None,
        spin: Any = None,
        skin: float = 0.5,
        strict: bool = False,
    ) -> None:
        self.potential = _prepared(model, device, dtype)
        names = [PROPERTIES[name].ase for name in self.potential.properties]
        known = [name for name in names if name]
        self.implemented_properties = known + ["free_energy"] * ("energy" in known)
        self._neighbors = NeighborList(self.potential.cutoff, skin)
        self._input: _Input | None = None
        self._topology: tuple[bytes, bytes, bytes, State] | None = None
        self._batch: AtomsBatch | None = None
        super().__init__(charge=charge, spin=spin, strict=strict)

    def _get_name(self) -> str:
        return "mlff"

    @property
    def state_used(self) -> State | None:
        """Charge and multiplicity of the results, ``None`` if there are none."""
        return self._input.info if self._input and self.results else None

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change ``charge``, ``spin`` or ``strict``; results are discarded.

        Returns:
            The parameters that changed.

        Raises:
            InputError: an unknown parameter, or a value that is not integral.
        """
        for name, value in kwargs.items():
            if name not in self.default_parameters:
                raise InputError(
                    f"calculator has no parameter {name!r}; it has "
                    f"{sorted(self.default_parameters)}"
                )
            if name != "strict" and value is not None:
                kwargs[name] = as_integer(value, name)
        changed: dict[str, Any] = super().set(**kwargs)
        if changed:
            self._batch = None  # was validated with the old parameters
        return changed

    def reset(self) -> None:
        """Forget all results."""
        super().reset()
        self._input = None

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Return the names of what changed since the results were computed.

        Args:
            atoms: the system.
            tol: not used: the comparison is exact.
        """
        if self._input is None:
            return list(all_changes)
        try:
            now = _Input.of(atoms, self._read_state(atoms))
        except MlffError:  # which calculate() raises, after ASE has cleared the results
            return list(all_changes)
        if now == self._input:
            return []
        pairs = zip(_Input._fields, now, self._input, strict=True)
        return [name for name, new, old in pairs if new != old]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all properties of a system; called by ASE.

        Args:
            atoms: the system, not modified; that of the last results if not given.
            properties: what has to be among the results.
            system_changes: not used: what changed is found by value.

        Raises:
            InputError: whatever is wrong with the system. No results are left then.
            PropertyNotImplementedError: stress of a system that has none.
        """
        atoms = self._given(atoms)
        if "dipole" in properties and atoms.pbc.any():
            raise PropertyNotImplementedError(
                "the dipole is about the center of nuclear charge, which a periodic "
                "system does not have"
            )
        if "stress" in properties and not (
            atoms.pbc.any() and _has_volume(atoms.cell.array)
        ):
            raise PropertyNotImplementedError(
                "stress needs a periodic system whose cell has a volume; "
                f"pbc is {atoms.pbc.tolist()}"
            )
        self.reset()
        _check_momenta(atoms)
        check_geometry(atoms)
        found = _Input.of(atoms, self._read_state(atoms))
        with exact(self.potential.device):
            batch, edges = self._graph(atoms, found)
            results = evaluate(self.potential, batch, edges)
        super().calculate(atoms, properties, system_changes)
        self.results, self._input = results, found

    def deviations(self, atoms: Atoms | None = None) -> dict[str, Any]:
        """Return how far the members of a committee disagree about a system.

        Args:
            atoms: the system; that of the last results if not given.

        Returns:
            As :func:`mlff.deviations`; never among the results, where ASE would take
            them for properties.

        Raises:
            InputTypeError: the calculator is made of one potential.
        """
        atoms = self._given(atoms)
        state = self._read_state(atoms)
        asked = {"charge": state.charge, "spin": state.multiplicity}
        return deviations(self.potential, [atoms], **asked)[0]

    def _given(self, atoms: Atoms | None) -> Atoms:
        found = self.atoms if atoms is None else atoms
        if found is None:
            raise InputError("`atoms` is needed: there are no results to refer to")
        return found

    def _read_state(self, atoms: Atoms) -> State:
        p = self.parameters
        return read_state(atoms, p["charge"], p["spin"], strict=p["strict"])

    def _graph(self, atoms: Atoms, found: _Input) -> tuple[AtomsBatch, Edges]:
        """Return batch and edges; only what changed is converted."""
        known = self._batch is not None and found.topology() == self._topology
        if known:
            batch = self._moved(atoms)
        else:
            self._batch = None
            batch = self._entered(atoms)
        edges = self._neighbors.update(batch)
        distances = build_graph(batch, edges, torch.float64).distances
        check_distances(edges, distances)
        if not known:
            _warn_of_fragments(self.potential, batch, edges, distances)
        self._batch, self._topology = batch, found.topology()
        return batch, edges

    def _entered(self, atoms: Atoms) -> AtomsBatch:
        p = self.parameters
        batch = AtomsBatch.from_atoms(
            [atoms], p["charge"], p["spin"], strict=p["strict"]
        )
        check_batch(self.potential, batch, strict=p["strict"])
        return batch.to(self.potential.device)

    def _moved(self, atoms: Atoms) -> AtomsBatch:
        assert self._batch is not None
        positions = np.array(atoms.positions, np.float64, order="C")
        tensor = torch.from_numpy(positions).to(self.potential.device)
        return self._batch.replace(positions=tensor)


class SumCalculator(_ASESumCalculator):
    """Sum of calculators that notices charge and spin, as its members do.

    ASE's own compares arrays only: after a change in ``atoms.info`` it returns the old
    sum, however careful its members are.

    Args:
        calcs: the calculators; at least one.
    """

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what changed for this calculator or for any member."""
        changes: list[str] = list(super().check_state(atoms, tol))
        if not changes and any(c.check_state(atoms) for c in self.mixer.calcs):
            changes.append("info")
        return changes

    def export_properties(self) -> Properties:
        """Return the results without the contributions, which ASE cannot export."""
        known = {k: v for k, v in self.results.items() if k in all_outputs}
        return Properties(known)


def _prepared(
    model: str | Path | Potential,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
) -> Potential:
    precision = check_dtype(dtype)
    if not isinstance(model, (str, Path, Potential)):
        raise InputTypeError(
            "`model` must be a name, a path or a Potential, got "
            f"{model!r} ({type(model).__name__})"
        )
    with torch.inference_mode(mode=False):
        if isinstance(model, (str, Path)):
            return load(model, "cpu" if device is None else device, precision)
        place = model.device if device is None else check_device(device)
        if place == model.device and precision in (None, model.dtype):
            return model
        return copy.deepcopy(model).to(device=place, dtype=precision)


def _has_volume(cell: np.ndarray[Any, Any]) -> bool:
    return bool(abs(np.linalg.det(cell)) > MIN_VOLUME)


def _check_momenta(atoms: Atoms) -> None:
    """Stop a simulation at the step in which it breaks, not at the next."""
    momenta = atoms.arrays.get("momenta")
    if momenta is not None and not np.isfinite(momenta).all():
        rows = np.flatnonzero(~np.isfinite(momenta).all(axis=1))[:5].tolist()
        raise InputError(
            f"`atoms` momenta must be finite; not so for atoms {rows}: the simulation "
            "has broken down, shorten its time step"
        )


def _warn_of_fragments(
    potential: Potential, batch: AtomsBatch, edges: Edges, distances: Tensor
) -> None:
    """Warn, once, if far parts of a system feel each other in this model."""
    if potential.model.additive:
        return
    near = (distances <= potential.cutoff).cpu().numpy()
    i, j = edges.i.cpu().numpy()[near], edges.j.cpu().numpy()[near]
    shape = (batch.n_atoms, batch.n_atoms)
    bonds = coo_array((np.ones(len(i), np.int8), (i, j)), shape=shape)
    parts = connected_components(bonds, directed=False, return_labels=False)
    if parts > 1:
        warn_once(
            f"`atoms` falls into {parts} parts beyond {potential.cutoff:g} Å of each "
            "other, and this model's attention is global: its energy is not the sum "
            "of theirs. Train with scope='local' for several molecules"
        )
