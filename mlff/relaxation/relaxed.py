"""What relaxations give, and the file that keeps it while others still run."""

import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor

from mlff.batch import AtomsBatch
from mlff.errors import InputError
from mlff.relaxation.framelog import FrameLog, check_frame
from mlff.start import digest

Array = np.ndarray[Any, Any]

# Keys in ``info`` of a frame in the file.
_SYSTEM, _KEY = "relax_system", "relax_input"
_STEPS, _FMAX, _CONVERGED = "relax_steps", "relax_fmax", "relax_converged"
_REASON, _CHECK = "relax_reason", "relax_check"

# Decimals of positions and forces in extended XYZ as ASE writes it.
_DECIMALS = 8


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """How the relaxation of one system ended.

    Attributes:
        atoms: copy of the input at its last good geometry; constraints and ``info`` are
            kept, charge and spin are written into it, energy and forces are attached
            (not if there never was a finite energy).
        energy: eV; nan if there never was a finite one.
        fmax: largest force on an atom that may move, eV/Å; likewise.
        n_steps: steps made, refused ones included.
        converged: whether ``fmax`` is below the one asked for.
        reason: why not; empty if it is.
    """

    atoms: Atoms
    energy: float
    fmax: float
    n_steps: int
    converged: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Landing:
    """A system that has finished, as arrays.

    Attributes:
        system: its index.
        positions: (n_atoms, 3), Å.
        forces: on all atoms, (n_atoms, 3), eV/Å.
        energy: eV; not finite if there never was one.
        fmax: largest force on an atom that may move, eV/Å.
        n_steps: steps made.
        reason: why it has not converged; empty if it has.
    """

    system: int
    positions: Array
    forces: Array
    energy: float
    fmax: float
    n_steps: int
    reason: str


class Results:
    """Collects what has finished, in memory and, if there is one, in a file.

    Args:
        systems: all systems; not modified.
        batch: the same on the CPU.
        mobile: atoms that may move, (n_atoms,), bool.
    """

    def __init__(
        self, systems: Sequence[Atoms], batch: AtomsBatch, mobile: Tensor
    ) -> None:
        self._systems, self._batch, self._mobile = systems, batch, mobile
        self._states = list(
            zip(batch.charge.tolist(), batch.multiplicity.tolist(), strict=True)
        )
        self._found: dict[int, Relaxed] = {}
        self._log: FrameLog | None = None
        self._keys: list[str] = []

    def record(self, log: FrameLog, settings: str) -> None:
        """Take what a file holds, and write to it what finishes from now on.

        Args:
            log: the file, open.
            settings: all that a result depends on beside its system.

        Raises:
            InputError: the file is of other systems or settings, or cannot hold a
                system.
        """
        self._log, self._keys = log, self._all_keys(settings)
        other = InputError(
            f"{log.path} is of other systems or other settings: only the same "
            "relaxation can be resumed; give what it began with, or write elsewhere"
        )
        for frame in log.frames:
            try:
                index = int(frame.info.get(_SYSTEM, -1))
            except (TypeError, ValueError):
                raise other from None
            known = 0 <= index < len(self._keys)
            if not known or frame.info.get(_KEY) != self._keys[index]:
                raise other
            try:
                self._found[index] = self._relaxed(_landing(index, frame))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{log.path} is damaged: {error}") from error
        # A torn frame is of this run if it says so, or if it ends before it could.
        lines = log.torn.split(b"\n")
        begun = lines[0].isdigit() and (len(lines) < 3 or _KEY.encode() in lines[1])
        if log.torn and not begun:
            raise other
        for index, atoms in enumerate(self._systems):
            frame = without_results(atoms)
            charge, spin = self._states[index]
            frame.info.update(charge=charge, spin=spin)
            check_frame(frame, f"system {index}")
        log.begin()

    def missing(self) -> list[int]:
        """Return the systems that have not finished, ascending."""
        return [k for k in range(len(self._systems)) if k not in self._found]

    def add(self, landings: Sequence[Landing]) -> None:
        """Keep what has finished; if there is a file, it is on the disk then."""
        for landing in landings:
            self._found[landing.system] = self._relaxed(landing)
        if self._log is not None and landings:
            self._log.append([self._frame(landing.system) for landing in landings])

    def ordered(self) -> list[Relaxed]:
        """Return all results in the order of the systems."""
        return [self._found[k] for k in range(len(self._systems))]

    @property
    def n_finished(self) -> int:
        """How many have finished."""
        return len(self._found)

    @property
    def n_converged(self) -> int:
        """How many have converged."""
        return sum(one.converged for one in self._found.values())

    def _relaxed(self, landing: Landing) -> Relaxed:
        atoms = self._systems[landing.system].copy()
        # Not by set_positions, which keeps the type of what was there: float32, int.
        atoms.arrays["positions"] = landing.positions.copy()
        charge, spin = self._states[landing.system]
        atoms.info.update(charge=charge, spin=spin)
        energy, fmax = landing.energy, landing.fmax
        if math.isfinite(energy):
            atoms.calc = SinglePointCalculator(
                atoms, energy=energy, free_energy=energy, forces=landing.forces
            )
        else:
            energy = fmax = math.nan
        return Relaxed(
            atoms=atoms,
            energy=energy,
            fmax=fmax,
            n_steps=landing.n_steps,
            converged=not landing.reason,
            reason=landing.reason,
        )

    def _frame(self, index: int) -> Atoms:
        one = self._found[index]
        frame = without_results(one.atoms)
        frame.calc = one.atoms.calc
        frame.info.update(
            {
                _SYSTEM: index,
                _KEY: self._keys[index],
                _STEPS: one.n_steps,
                _FMAX: one.fmax,
                _CONVERGED: one.converged,
            }
        )
        if one.reason:
            frame.info[_REASON] = one.reason
        # To the digits that the file holds, so that the checksum can be made again.
        frame.positions = np.round(frame.positions, _DECIMALS)
        if frame.calc is not None:
            results = dict(frame.calc.results)
            results["forces"] = np.round(results["forces"], _DECIMALS)
            frame.calc = SinglePointCalculator(frame, **results)
        frame.info[_CHECK] = _checksum(frame)
        return frame

    def _all_keys(self, settings: str) -> list[str]:
        batch, counts = self._batch, self._batch.counts().tolist()
        per_atom = zip(
            batch.numbers.split(counts),
            batch.positions.split(counts),
            self._mobile.split(counts),
            strict=True,
        )
        per_system = zip(
            batch.cell, batch.pbc, batch.charge, batch.multiplicity, strict=True
        )
        contents = (
            settings + digest(*atoms, *system)
            for atoms, system in zip(per_atom, per_system, strict=True)
        )
        # With a prefix, because digits alone would be read back as a number.
        return ["x" + hashlib.sha256(c.encode()).hexdigest()[:16] for c in contents]


def _checksum(frame: Atoms) -> str:
    """Return what tells whether results were changed in the file."""
    results = frame.calc.results if frame.calc is not None else {}
    numbers = [frame.info[name] for name in (_SYSTEM, _STEPS, _FMAX)]
    text = [*map(float, numbers), float(results.get("energy", math.nan))]
    found = zlib.crc32(repr((text, str(frame.info.get(_REASON, "")))).encode())
    for array in (frame.positions, results.get("forces", np.zeros(0))):
        digits = np.rint(array * 10**_DECIMALS).astype(np.int64)
        found = zlib.crc32(digits.tobytes(), found)
    return f"x{found:08x}"  # digits alone would be read back as a number


def _landing(index: int, frame: Atoms) -> Landing:
    """Read back what was written.

    Raises:
        ValueError: it was changed since.
    """
    if frame.info.get(_CHECK) != _checksum(frame):
        raise ValueError(f"the checksum of system {index} does not fit")
    results = frame.calc.results if frame.calc is not None else {}
    return Landing(
        system=index,
        positions=frame.positions,
        forces=results.get("forces", np.zeros((len(frame), 3))),
        energy=float(results.get("energy", math.nan)),
        fmax=float(frame.info[_FMAX]),
        n_steps=int(frame.info[_STEPS]),
        reason=str(frame.info.get(_REASON, "")),
    )


def without_results(atoms: Atoms) -> Atoms:
    """Return a copy without what a file would confuse with results."""
    out = atoms.copy()
    for name in ("energy", "free_energy", "forces"):
        out.info.pop(name, None)
        out.arrays.pop(name, None)
    return out
