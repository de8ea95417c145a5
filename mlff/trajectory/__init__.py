"""Trajectories of many systems in one HDF5 file, each frame a point to go on from.

:class:`TrajectoryWriter` writes them, :class:`Trajectory` reads them; what the file
holds and how it stays whole is told in :mod:`mlff.trajectory.file`. Reading needs the
memory of what is asked for, whatever the size of the file.

Times are ``step · timestep_fs`` of the header. E_pot + E_kin − heat is conserved, where
heat is what thermostat and barostat have put in.
"""

import operator
import os
import stat
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from ase import Atoms
from tqdm import tqdm

from mlff.errors import DataError, InputError, InputTypeError
from mlff.trajectory.export import WRITERS, Piece, images, targets, template
from mlff.trajectory.file import blocks, count_whole, read_content
from mlff.trajectory.guard import replacing
from mlff.trajectory.layout import Array, Frame, Layout
from mlff.trajectory.series import Series
from mlff.trajectory.writer import TrajectoryWriter

__all__ = ["Frame", "Layout", "SystemFrames", "Trajectory", "TrajectoryWriter"]

# Bytes of one system's frames that are held at a time.
_PIECE = 2**20


class Trajectory:
    """A trajectory file, as it was when it was opened; it may still be growing.

    ``trajectory[k]`` are the frames of system k as ASE objects: a sequence that reads
    what it is asked for. ``len(trajectory)`` is the number of systems.

    Args:
        path: file of :class:`TrajectoryWriter`.

    Attributes:
        path: the file.
        layout: what stays from frame to frame.
        header: settings of the run.
        n_frames: number of whole frames.

    Raises:
        DataError: no such file, or one that is damaged, foreign or too new.

    Warns:
        MlffWarning: a damaged frame is followed by whole ones; none of these counts.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            # Not waiting: a pipe would be waited for without end.
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        weakref.finalize(self, os.close, self._file)
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise DataError(f"cannot read {path}: it is not a file")
        self._content = read_content(self.path, self._file)
        self.layout: Layout = self._content.layout
        self.header: dict[str, Any] = self._content.header
        self.n_frames = count_whole(self.path, self._content, self._file)

    @property
    def n_systems(self) -> int:
        """Number of systems."""
        return self.layout.n_systems

    @property
    def names(self) -> tuple[str, ...]:
        """What the systems are called, (n_systems,)."""
        return self.layout.names

    @property
    def states(self) -> tuple[tuple[int, int], ...]:
        """The (charge, multiplicity) whose energies were recorded beside the own."""
        return self.layout.states

    @cached_property
    def steps(self) -> Array:
        """Steps made at each frame, (n_frames,)."""
        return self._all("step")

    @property
    def times_fs(self) -> Array:
        """Time of each frame, (n_frames,), fs."""
        return self.steps * float(self.header["timestep_fs"])

    @cached_property
    def energy(self) -> Array:
        """Potential energy, (n_frames, n_systems), eV."""
        return self._all("energy")

    @cached_property
    def kinetic(self) -> Array:
        """Kinetic energy, (n_frames, n_systems), eV."""
        return self._all("kinetic")

    @cached_property
    def heat(self) -> Array:
        """Energy that thermostat and barostat put in, (n_frames, n_systems), eV."""
        return self._all("heat")

    @cached_property
    def series(self) -> Series:
        """Energies of all systems at all frames, and what follows from them."""
        return Series(
            times_fs=self.times_fs,
            energy=self.energy,
            kinetic=self.kinetic,
            heat=self.heat,
            dof=self.layout.dof,
            states=self.states,
            state_energies=self.state_energies,
        )

    @property
    def conserved(self) -> Array:
        """Potential + kinetic energy − heat, (n_frames, n_systems), eV."""
        return self.series.conserved

    @property
    def temperature(self) -> Array:
        """2 E_kin / (N_f k_B), (n_frames, n_systems), K; 0 without freedom."""
        return self.series.temperature

    @cached_property
    def status(self) -> Array:
        """0 of systems that ran, otherwise why not, (n_frames, n_systems), int8."""
        return self._all("status")

    @cached_property
    def status_step(self) -> Array:
        """Last good step of systems that did not run, (n_frames, n_systems)."""
        return self._all("status_step")

    @cached_property
    def state_energies(self) -> Array:
        """Energies in :attr:`states`, (n_frames, n_systems, n_states), eV."""
        if not self.states:
            return np.zeros((self.n_frames, self.n_systems, 0))
        return self._all("state_energies")

    def gaps(self, upper: tuple[int, int], lower: tuple[int, int]) -> Array:
        """Return E(upper) − E(lower), (n_frames, n_systems), eV, of two states."""
        return self.series.gaps(upper, lower)

    def positions(self, system: int) -> Array:
        """Return positions of one system, (n_frames, n_atoms of it, 3), Å."""
        return self._part("positions", system, 0, self.n_frames)

    def momenta(self, system: int) -> Array:
        """Return momenta of one system, (n_frames, n_atoms of it, 3), ASE's unit."""
        return self._part("momenta", system, 0, self.n_frames)

    def velocities(self, system: int) -> Array:
        """Return velocities of one system, (n_frames, n_atoms of it, 3), ASE's unit."""
        momenta = self.momenta(system)
        first, last = self._span(system)
        return momenta / self.layout.masses[first:last, None]

    def cell(self, system: int) -> Array:
        """Return cell vectors of one system as rows, (n_frames, 3, 3), Å."""
        return self._part("cell", system, 0, self.n_frames)

    def frame(self, index: int) -> Frame:
        """Return all systems at one frame; negative indices count from the end."""
        return self._content.frame(self._file, _index(index, self.n_frames, "index"))

    def atoms(self, system: int, frame: int = -1) -> Atoms:
        """Return one system at one frame, with energy, momenta and constraints.

        ``info`` has ``charge``, ``spin`` (2S+1), ``step``, ``time_fs``, and ``status``
        if the system did not run any more.

        Args:
            system: index; negative ones count from the end.
            frame: likewise.

        Raises:
            InputError: there is no such system or frame.
        """
        system = _index(system, self.n_systems, "system")
        frame = _index(frame, self.n_frames, "frame")
        piece = self._piece(system, frame, frame + 1)
        return next(images(template(self.layout, system), piece))

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy opens the file for itself: this descriptor is closed with this object,
        # and its number then means another file.
        return type(self), (self.path.absolute(),)

    def __len__(self) -> int:
        return self.n_systems

    def __getitem__(self, system: int) -> "SystemFrames":
        return SystemFrames(self, range(self.n_systems)[operator.index(system)])

    def __iter__(self) -> Iterator["SystemFrames"]:
        return (self[k] for k in range(self.n_systems))

    def export(
        self,
        path: str | Path,
        format: str | None = None,
        systems: int | Sequence[int] | None = None,
        *,
        force: bool = False,
        progress: bool = True,
    ) -> list[Path]:
        """Write systems to files that other programs read, one file each.

        Frames of a system that did not run any more are left out; a system that never
        ran gets no file. A file appears when it is complete.

        Args:
            path: a folder, made if missing; or for one system a file, by its suffix
                ``.xyz``, ``.extxyz`` or ``.traj``.
            format: ``"extxyz"`` (ten decimals) or ``"traj"``; from the suffix, else
                extended XYZ.
            systems: indices; all if not given.
            force: replace existing files.
            progress: show a bar if it takes long.

        Returns:
            The files, in the order of ``systems``.

        Raises:
            InputError: a format, system or target that cannot be, or files that exist.
            OSError: the disk is full or failed; names the file.
        """
        wanted = range(self.n_systems) if systems is None else np.atleast_1d(systems)
        chosen = [_index(k, self.n_systems, "systems") for k in wanted]
        chosen = list(dict.fromkeys(chosen))
        kind, files = targets(Path(path), format, self.layout, chosen, force)
        written = []
        bar = tqdm(files.items(), "export", unit="file", delay=1, disable=not progress)
        for system, file in bar:
            end = self._live(system)
            if end:
                with replacing(file, str(os.getpid())) as temporary:
                    start = template(self.layout, system)
                    WRITERS[kind](temporary, start, self._pieces(system, end))
                written.append(file)
        return written

    def _live(self, system: int) -> int:
        """Number of frames until a system was frozen."""
        frozen = self._part("status", system, 0, self.n_frames) != 0
        return int(np.argmax(frozen)) if frozen.any() else self.n_frames

    def _pieces(self, system: int, end: int) -> Iterator[Piece]:
        first, last = self._span(system)
        for start, stop in blocks(0, end, 48 * (last - first), _PIECE):
            yield self._piece(system, start, stop)

    def _piece(self, system: int, start: int, stop: int) -> Piece:
        content = {
            name: self._part(name, system, start, stop)
            for name in ("positions", "momenta", "cell", "energy", "status")
        }
        steps = self._content.columns["step"].read(self._file, start, stop)
        times_fs = steps * float(self.header["timestep_fs"])
        return Piece(steps=steps, times_fs=times_fs, **content)

    def _span(self, system: int) -> tuple[int, int]:
        """First atom of a system and of the next."""
        system = _index(system, self.n_systems, "system")
        return int(self.layout.ptr[system]), int(self.layout.ptr[system + 1])

    def _all(self, name: str) -> Array:
        out = self._content.columns[name].read(self._file, 0, self.n_frames)
        out.flags.writeable = False
        return out

    def _part(self, name: str, system: int, start: int, stop: int) -> Array:
        """Return what belongs to one system, (stop − start, …)."""
        if name in ("positions", "momenta"):
            first, last = self._span(system)
            column = self._content.columns[name]
            return column.read_part(self._file, start, stop, first, last)
        system = _index(system, self.n_systems, "system")
        if name == "cell" and not self.layout.variable_cell:
            return np.repeat(self.layout.cell[system][None], stop - start, axis=0)
        column = self._content.columns[name]
        return column.read_part(self._file, start, stop, system, system + 1)[:, 0]


class SystemFrames(Sequence[Atoms]):
    """The frames of one system as ASE objects, read when they are asked for.

    Args:
        trajectory: where they are.
        system: whose they are.
    """

    def __init__(self, trajectory: Trajectory, system: int) -> None:
        self._trajectory, self._system = trajectory, system

    def __len__(self) -> int:
        return self._trajectory.n_frames

    @overload
    def __getitem__(self, frame: int) -> Atoms: ...
    @overload
    def __getitem__(self, frame: slice) -> list[Atoms]: ...
    def __getitem__(self, frame: int | slice) -> Atoms | list[Atoms]:
        wanted = range(len(self))[frame]
        if isinstance(wanted, int):
            return self._trajectory.atoms(self._system, wanted)
        return [self._trajectory.atoms(self._system, k) for k in wanted]

    def __iter__(self) -> Iterator[Atoms]:
        start = template(self._trajectory.layout, self._system)
        for piece in self._trajectory._pieces(self._system, len(self)):
            yield from images(start, piece)


def _index(value: Any, n: int, name: str) -> int:
    try:
        index = operator.index(value)
    except TypeError:
        raise InputTypeError(f"`{name}` must be an integer, got {value!r}") from None
    if not -n <= index < n:
        raise InputError(f"`{name}` must lie in {-n} … {n - 1}, got {index}")
    return index % n
