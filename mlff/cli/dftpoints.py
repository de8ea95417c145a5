"""DFT energies at some points of a surface, to be shown beside those of a model."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlff.dft import DFTSettings, canonical, check_input, input_hash
from mlff.errors import InputError
from mlff.labels import label_frames
from mlff.scanning import Surface
from mlff.state import read_state


def dft_points(
    surface: Surface,
    settings: DFTSettings,
    n: int,
    out: Path,
    *,
    workers: int = 1,
    progress: bool = True,
) -> tuple[NDArray[np.float64], int]:
    """Label points of a surface; what was labelled before is not done again.

    What cannot be labelled is told on stderr, and the others are.

    Args:
        surface: where the model has been.
        settings: level of theory.
        n: points along each axis, evenly spread with both ends.
        out: extended XYZ file of the labels; beside it go their journal and provenance.
        workers: processes.
        progress: show a bar.

    Returns:
        Energies over states and grid, eV, not a number where there is no label; and how
        many of the points that were asked for have none.
    """
    energies = np.full(surface.energies.shape, np.nan)
    chosen, refused = _chosen(surface, n), 0
    for place in list(chosen):
        try:
            check_input(canonical(chosen[place]), settings)
        except InputError as error:
            refused += 1
            _tell(place, error)
            del chosen[place]
    if not chosen:
        return energies, refused
    report = label_frames(
        list(chosen.values()),
        out,
        settings,
        workers=workers,
        force=True,
        progress=progress,
    )
    # A label that two points share is there once.
    found = {f.info["input_hash"]: f.info["REF_energy"] for f in report.labelled}
    for place, frame in chosen.items():
        key = input_hash(canonical(frame), read_state(frame), settings)
        energies[place] = found.get(key, np.nan)
    for index, reason in report.failed:
        _tell(list(chosen)[index], reason)
    return energies, refused + len(report.failed)


def _chosen(surface: Surface, n: int) -> dict[tuple[int, ...], Atoms]:
    """Return good points by their place among states and grid."""
    spread = [
        np.linspace(0, length - 1, min(n, length)).round().astype(int)
        for length in surface.shape
    ]
    wanted = np.zeros(surface.shape, dtype=bool)
    wanted[np.ix_(*spread)] = True
    out = {}
    for frame in surface.frames():
        place = tuple(map(int, frame.info["scan_point"].split()))
        state = (frame.info["charge"], frame.info["spin"])
        at = (surface.states.index(state), *place)
        if wanted[place] and surface.good[at]:
            out[at] = frame
    return out


def _tell(place: tuple[int, ...], reason: Any) -> None:
    print(f"DFT at point {place[1:]}: {reason}", file=sys.stderr)
