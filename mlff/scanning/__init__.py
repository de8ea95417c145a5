"""Energies of electronic states along internal coordinates of a molecule.

:func:`scan` sets up a grid of bonds, angles and dihedrals, evaluates every state of
every point together, and relaxes all else first if asked to: each state on its own
surface, all points at once. What goes wrong at a point is told at that point, and the
others stand.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from mlff.batch import AtomsBatch, check_geometry
from mlff.coordinates import Coordinate
from mlff.device import exact
from mlff.errors import InputError, InputTypeError, warn_once
from mlff.forcefield.memory import free_bytes
from mlff.inference import check_batch, unseen
from mlff.potential import Potential
from mlff.relaxation import RelaxOptions, as_optimizer, check_end
from mlff.relaxation import relax as relax_all
from mlff.scanning.axes import Axis, count_points, read_axes
from mlff.scanning.energies import Found, evaluate
from mlff.scanning.grid import geometries
from mlff.scanning.surface import Point, Surface
from mlff.start import check_states, state_pair
from mlff.state import State, read_state

__all__ = ["Axis", "Point", "ScanOptions", "Surface", "scan"]

Pair = tuple[int, int]

# Part of the free memory that results may take; bytes that they take for each system
# and for each of its atoms, in a rigid and in a relaxed scan with the objects on the
# way.
_SHARE, _RIGID, _RELAXED = 0.5, (200, 150), (6_000, 400)

# Energies that agree this well are the same but for rounding of a float32 network, eV.
_SAME_ENERGY = 1e-5

_UNREACHED = "no geometry has these values, or a dihedral is undefined in it"


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """What a scan may be told beyond the usual.

    Attributes:
        fmax: of a relaxed scan, largest force that may be left, eV/Å.
        optimizer: of a relaxed scan, ``"lbfgs"`` or ``"fire"``.
        max_steps: of each relaxation.
        forces: keep forces too.
        out: of a relaxed scan, extended XYZ file that points are appended to as they
            finish.
        resume: take from ``out`` what has finished there.
        overwrite: replace an existing ``out``.
        progress: show a bar.
    """

    fmax: float = 0.01
    optimizer: str = "lbfgs"
    max_steps: int = 500
    forces: bool = False
    out: str | Path | None = None
    resume: bool = False
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_end(self.fmax, self.max_steps)
        as_optimizer(self.optimizer)


def scan(
    atoms: Atoms,
    potential: Potential,
    coordinates: Sequence[Any],
    states: Sequence[Pair] | None = None,
    *,
    relax: bool = False,
    options: ScanOptions | None = None,
) -> Surface:
    """Evaluate electronic states of a molecule over a grid of internal coordinates.

    A rigid scan moves the fragment behind each coordinate as one body
    (:func:`mlff.coordinates.moving_atoms`) and changes nothing else. A relaxed scan
    goes on from there: everything but the scanned coordinates moves downhill, each
    state on its own surface, to the minimum that is nearest.

    Args:
        atoms: the molecule, in a geometry that shows its bonds; not modified.
        potential: on the device to run on.
        coordinates: axes of the grid, a tuple each: ``("angle", 1, 0, 2, 90, 180, 46)``
            for kind, atoms, first and last value (Å or degrees) and number of points. A
            list of tuples is one axis along which they change together. Text as in
            :mod:`mlff.scanning.axes` does as well.
        states: (charge, multiplicity 2S+1) of each surface; that of ``atoms`` if not
            given.
        relax: move all but the scanned coordinates downhill.
        options: how to relax, and what to keep.

    Returns:
        Energies and geometries over the grid.

    Raises:
        InputError: whatever is wrong with the molecule, a coordinate or a state, or a
            grid that does not fit into memory; nothing is computed then.
    """
    began, options = time.monotonic(), ScanOptions() if options is None else options
    _check_call(atoms, relax, options)
    axes = read_axes(coordinates, atoms)
    task = _Task(potential, *_molecule(atoms, states), options)
    check_batch(potential, task.one)
    check_states(potential, task.one, task.states)
    _check_memory(axes, len(task.states), len(atoms), relax)
    with torch.no_grad(), exact(potential.device):
        grid = geometries(atoms, axes)
        # What has no geometry is evaluated where the scan began, and not counted.
        usable = torch.from_numpy(grid.reached)[:, None, None]
        positions = grid.positions.where(usable, task.one.positions)
        positions = positions.repeat(len(task.states), 1, 1)
        unreached = ~np.tile(grid.reached, len(task.states))
        found = task.evaluate(positions, options.progress and not relax)
        remarks = np.where(unreached, _UNREACHED, found.remarks)
        if relax:
            hold = tuple(one for axis in axes for one in axis.coordinates)
            went = np.flatnonzero(remarks == "")
            positions[went], remarks[went] = task.relaxed(positions, went, hold)
            found = task.evaluate(positions, False)
    _warn_of_same(found.energies.reshape(len(task.states), -1), task.states)
    rows = {
        "energies": found.energies,
        "positions": positions.numpy(),
        "converged": remarks == "",
        "outside": found.outside,
        "remarks": remarks,
        "forces": found.forces,
        "members": found.members,
    }
    return Surface(
        atoms=atoms.copy(),
        axes=axes,
        states=task.states,
        **{k: _gridded(v, task, axes, unreached) for k, v in rows.items()},
        relaxed=relax,
        unseen=unseen(potential, task.one, task.states),
        seconds=time.monotonic() - began,
    )


class _Task(NamedTuple):
    """What is asked of every point."""

    potential: Potential
    one: AtomsBatch
    states: tuple[Pair, ...]
    options: ScanOptions

    def evaluate(self, positions: Tensor, progress: bool) -> Found:
        """Evaluate geometries, (n_states * n_points, n_atoms, 3), state by state."""
        columns = torch.tensor(self.states).repeat_interleave(
            len(positions) // len(self.states), 0
        )
        batch = self.one.select(torch.zeros(len(positions), dtype=torch.int64))
        batch = batch.replace(
            positions=positions.flatten(0, 1),
            charge=columns[:, 0],
            multiplicity=columns[:, 1],
        )
        forces = self.options.forces
        return evaluate(self.potential, batch, forces=forces, progress=progress)

    def relaxed(
        self, positions: Tensor, which: NDArray[np.int64], hold: tuple[Coordinate, ...]
    ) -> tuple[Tensor, list[str]]:
        """Return where some geometries end, and why some of these are not good."""
        per_state = len(positions) // len(self.states)
        systems = []
        for k in which.tolist():
            charge, spin = self.states[k // per_state]
            state = {"charge": charge, "spin": spin}
            systems.append(
                Atoms(self.one.numbers.numpy(), positions[k].numpy(), info=state)
            )
        options = self.options
        results = relax_all(
            systems,
            self.potential,
            options.fmax,
            optimizer=options.optimizer,
            max_steps=options.max_steps,
            options=RelaxOptions(
                out=options.out,
                resume=options.resume,
                overwrite=options.overwrite,
                progress=options.progress,
                hold=hold,
            ),
        )
        ends = [one.atoms.positions for one in results]
        stacked = np.array(ends, np.float64).reshape(-1, *positions.shape[1:])
        return torch.from_numpy(stacked), [one.reason for one in results]


def _warn_of_same(energies: NDArray[np.float64], states: tuple[Pair, ...]) -> None:
    """Warn of states that a potential does not tell apart: all points are crossings.

    Args:
        energies: (n_states, n_points), eV; not a number where there is none.
        states: of the rows.
    """
    for (one, low), (other, high) in combinations(
        zip(states, energies, strict=True), 2
    ):
        gaps = np.abs(high - low)[np.isfinite(high - low)]
        if len(gaps) and gaps.max() < _SAME_ENERGY:
            warn_once(
                f"{State(*one)} and {State(*other)} have the same energy at "
                "every point: a model that does not use the state, or atoms too far "
                "apart to feel it; crossings of the two mean nothing"
            )


def _molecule(
    atoms: Atoms, states: Sequence[Pair] | None
) -> tuple[AtomsBatch, tuple[Pair, ...]]:
    """Return the molecule in the first of the states, and all of them."""
    if states is None:
        own = read_state(atoms)
        states = [(own.charge, own.multiplicity)]
    if not isinstance(states, (list, tuple)) or not states:
        raise InputError(
            "`states` must be a list of (charge, multiplicity) pairs like [(0, 1), "
            f"(0, 3)], got {states!r}"
        )
    pairs = tuple(map(state_pair, states))
    if len(set(pairs)) < len(pairs):
        raise InputError(f"`states` names a state twice: {list(pairs)}")
    bare = Atoms(numbers=atoms.numbers, positions=atoms.positions)
    return AtomsBatch.from_atoms([bare], *pairs[0]), pairs


def _check_call(atoms: Any, relax: bool, options: ScanOptions) -> None:
    if not isinstance(options, ScanOptions):
        raise InputTypeError(
            f"`options` must be a ScanOptions, got {type(options).__name__}"
        )
    if not isinstance(relax, bool):
        raise InputTypeError(f"`relax` must be True or False, got {relax!r}")
    if not relax and options.out is not None:
        raise InputError(
            "`out` is for relaxed scans, whose points take long; write those of a "
            "rigid one with write_csv or frames of what is returned"
        )
    check_geometry(atoms)
    if atoms.pbc.any():
        raise InputError(
            "`atoms` is periodic; a scan is of one molecule: take it out of its cell "
            "with atoms.pbc = False"
        )
    if relax and atoms.constraints:
        raise InputError(
            "`atoms` has constraints, and a relaxed scan holds its coordinates only; "
            "remove them with atoms.set_constraint()"
        )


def _check_memory(
    axes: Sequence[Axis], n_states: int, n_atoms: int, relax: bool
) -> None:
    points = count_points(axes)
    system, atom = _RELAXED if relax else _RIGID
    need = points * n_states * (system + atom * n_atoms)
    allowed = _SHARE * free_bytes(torch.device("cpu"))
    if need > allowed:
        lengths = " × ".join(f"{len(axis):,}" for axis in axes)
        raise InputError(
            f"`coordinates`: a grid of {lengths} = {points:,} points in {n_states} "
            f"states takes about {need / 2**30:,.0f} GiB, and {allowed / 2**30:.1f} "
            "GiB may be used; take fewer points"
        )


def _gridded(
    values: Any, task: _Task, axes: Sequence[Axis], lost: NDArray[np.bool_]
) -> Any:
    """Return rows as arrays over states and grid, with nothing where all is lost."""
    if values is None:
        return None
    if values.dtype == np.float64:
        values = np.where(lost.reshape(-1, *[1] * (values.ndim - 1)), np.nan, values)
    return values.reshape(len(task.states), *map(len, axes), *values.shape[1:])
