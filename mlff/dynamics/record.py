"""Where the frames of a run go: into a trajectory, or into memory without one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlff.errors import InputError
from mlff.trajectory import Trajectory
from mlff.trajectory.layout import Frame, Layout
from mlff.trajectory.series import Series
from mlff.trajectory.writer import TrajectoryWriter


class Recorder:
    """Keeps the frames of a run: in a trajectory, or without one in memory.

    In memory only what a :class:`Series` needs is kept.

    Args:
        layout: the systems.
        header: settings that must be the same for a run to be resumed, JSON types.
        path: HDF5 file, suffix ``.h5``; ``None`` for memory.
        n_frames: frames of the whole run.
        resume: continue the file, if it is there.
        overwrite: replace the file, if it is there.

    Attributes:
        last: the last frame of a file that is continued.

    Raises:
        InputError: a file that cannot be written, is of another run, or is there
            already.
    """

    def __init__(
        self,
        layout: Layout,
        header: dict[str, Any],
        path: Path | None,
        *,
        n_frames: int,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._layout, self._path = layout, path
        self._timestep_fs = float(header["timestep_fs"])
        self._kept: list[Frame] = []
        self._writer: TrajectoryWriter | None = None
        self.last: Frame | None = None
        if path is None:
            if resume:
                raise InputError("`resume` needs the `trajectory` to continue")
            return
        if path.suffix != ".h5":
            raise InputError(
                f"`trajectory` must end in .h5, got {str(path)!r}; other formats are "
                "exported from it: mlff.Trajectory(path).export(folder)"
            )
        if resume and path.exists():
            self._writer = _resumed(path, layout, header, n_frames)
            self.last = self._writer.last
        else:
            self._writer = TrajectoryWriter.create(
                path, layout, header, n_frames=n_frames, force=overwrite
            )

    def append(self, frame: Frame) -> None:
        """Keep a frame."""
        if self._writer is not None:
            self._writer.append(frame)
        else:
            none = np.empty((0, 3))
            self._kept.append(replace(frame, positions=none, momenta=none, cell=none))

    def close(self) -> None:
        """Let go of the file."""
        if self._writer is not None:
            self._writer.close()

    def series(self) -> Series:
        """Return what was recorded of all frames, those before a resume included."""
        if self._path is not None:
            return Trajectory(self._path).series
        layout, kept = self._layout, self._kept
        names = ("energy", "kinetic", "heat", "state_energies")
        return Series(
            times_fs=self._timestep_fs * np.array([frame.step for frame in kept]),
            dof=layout.dof,
            states=layout.states,
            **{n: np.stack([getattr(frame, n) for frame in kept]) for n in names},
        )


def _resumed(
    path: Path, layout: Layout, header: dict[str, Any], n_frames: int
) -> TrajectoryWriter:
    """Open a trajectory to go on, if it is of this run; nothing changes otherwise."""
    found = Trajectory(path)
    _check_same(found, layout, header)
    return TrajectoryWriter.resume(path, max(n_frames, found.n_frames))


def _check_same(found: Trajectory, layout: Layout, header: dict[str, Any]) -> None:
    for name, value in header.items():
        if found.header.get(name) != value:
            raise InputError(
                f"{found.path} is of a run with {name}={found.header.get(name)!r}, not "
                f"{value!r}: only the same run can be resumed; give what it was, or "
                "write elsewhere"
            )
    different = found.layout.differences(layout)
    if different:
        raise InputError(
            f"{found.path} is of a run of other systems: {', '.join(different)} "
            "differ; give the systems that it began with, or write elsewhere"
        )
