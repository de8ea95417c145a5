"""Charged particles in free flight: the trajectories of the N-body task.

    python data_gen/nbody.py C --published    # nbody_c.npz: 3,000 + 2,000 + 2,000
    python data_gen/nbody.py B                # nbody_b.npz: 5,000 + 1,000

Five particles of unit mass and charges ±1 in three dimensions, Coulomb forces
``q_i q_j r / r³``, each component of the force on a particle cut at ±100, semi-implicit
Euler steps of 0.001. They start from ``x ~ N(0, 1)`` with ``|v| = 0.5`` in a random
direction. Frame k is step 100 (k + 1).

- ``C`` (Satorras, Hoogeboom, Welling, ICML 2021): frame 30 → 40, 1,000 steps.
- ``B`` (Fuchs, Worrall, Fischer, Welling, NeurIPS 2020): +500 steps, from any of the
  first 43 frames in training, from frames spread over them in the test. ``--walls``
  reflects particles at ±5, as the published script does by default.
- ``D`` (that DEMETAr was measured on): frame 6 → 8, 200 steps.

A trajectory is a function of variant, seed, part and index alone. ``--published`` takes
the starts that the public program of ``C`` draws from its seed, 43: mean squared errors
of 2,000 test trajectories differ by a tenth between seeds, from few close encounters.
(What happens in these depends on rounding.) The published programs also reflect a start
beyond ±5 once; that is one coordinate in two million, and is left out.
"""

import argparse
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mlff.files import write_atomic

Array = NDArray[np.float64]
Start = tuple[Array, Array, Array]
HERE = Path(__file__).parent
N_PARTICLES = 5
TIMESTEP = 0.001
STEPS_PER_FRAME = 100
START_SPEED = 0.5
MAX_FORCE = 100.0
WALL = 5.0

#: Changes whenever the same seed would give other numbers.
RECIPE_VERSION = 1

PARTS = ("train", "validation", "test")

#: What trivial answers score, as re-simulated for the design (±5 %): mean squared
#: errors of no motion, x + h·v, the best x + a·v, and of unchanged velocities.
KNOWN = {
    "B": (0.0673, 0.0244, 0.0200, 0.236),
    "B with walls": (0.0659, 0.0267, 0.0214, 0.266),
    "C": (0.280, 0.106, 0.083, 0.237),
    "D": (0.0103, 0.0030, 0.0026, 0.198),
}

# The public program of variant C: its seed, where its parts begin, how many there are,
# and the random numbers for noise that it draws after each, for 49 frames.
_PUBLISHED_SEED = 43
_PUBLISHED_FIRST = {"train": 0, "validation": 10_000, "test": 12_000}
_PUBLISHED_SIZE = 14_000
_PUBLISHED_NOISE = 2 * 49 * 3 * N_PARTICLES

# Trajectories simulated together: few calls, and all of it in the cache of a core.
_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One published way to cut trajectories into starts and targets.

    Attributes:
        sizes: trajectories in training, validation and test.
        start: frame to start from; ``None`` for any with a target.
        n_starts: number of frames to choose from if there is no ``start``.
        horizon: frames from start to target.
    """

    sizes: tuple[int, int, int]
    start: int | None
    n_starts: int = 1
    horizon: int

    @property
    def time(self) -> float:
        """Time from start to target."""
        return self.horizon * STEPS_PER_FRAME * TIMESTEP

    def frames(self, part: str) -> list[int]:
        """Return the frames to keep while simulating."""
        if self.start is None:
            return list(range(self.n_starts + self.horizon))
        return [self.start, self.start + self.horizon]


VARIANTS = {
    "B": Variant(sizes=(5000, 0, 1000), start=None, n_starts=43, horizon=5),
    "C": Variant(sizes=(3000, 2000, 2000), start=30, horizon=10),
    "D": Variant(sizes=(3000, 2000, 2000), start=6, horizon=2),
}


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Trajectories, kept at some frames.

    Attributes:
        positions: (n, n_frames, n_particles, 3).
        velocities: (n, n_frames, n_particles, 3).
        charges: (n, n_particles), ±1.
        horizon: a target lies this many kept frames after its start.
    """

    positions: Array
    velocities: Array
    charges: Array
    horizon: int = 1

    def between(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> Self:
        """Return two frames of each trajectory, other ones for each."""
        pair = np.stack((first, last), axis=1)[..., None, None]
        return replace(
            self,
            positions=np.take_along_axis(self.positions, pair, 1),
            velocities=np.take_along_axis(self.velocities, pair, 1),
        )


def starts(name: str, seed: int | None, part: str, indices: Sequence[int]) -> Start:
    """Return how trajectories begin.

    Args:
        name: a key of :data:`VARIANTS`.
        seed: another seed, other trajectories; ``None`` for the published ones of C.
        part: one of :data:`PARTS`.
        indices: which trajectories.

    Returns:
        Positions, velocities (n, n_particles, 3) and charges (n, n_particles).
    """
    if seed is None:
        rows = np.asarray(indices) + _PUBLISHED_FIRST[part]
        positions, velocities, charges = _published_starts()
        return positions[rows], velocities[rows], charges[rows]
    shape = (len(indices), N_PARTICLES, 3)
    positions, velocities = np.empty(shape), np.empty(shape)
    charges = np.empty(shape[:2])
    for row, index in enumerate(indices):
        random = np.random.default_rng([seed, ord(name), PARTS.index(part), index])
        positions[row] = random.standard_normal(shape[1:])
        direction = random.standard_normal(shape[1:])
        length = np.linalg.norm(direction, axis=1, keepdims=True)
        velocities[row] = START_SPEED * direction / length
        charges[row] = 2 * random.integers(0, 2, N_PARTICLES) - 1
    return positions, velocities, charges


@cache
def _published_starts() -> Start:
    """Draw what the public program of variant C draws, in its order."""
    random = np.random.RandomState(_PUBLISHED_SEED)
    charges, x, v = [], [], []
    for _ in range(_PUBLISHED_SIZE):
        charges.append(random.choice([-1.0, 0.0, 1.0], N_PARTICLES, p=[0.5, 0.0, 0.5]))
        x.append(random.standard_normal((3, N_PARTICLES)))
        v.append(random.standard_normal((3, N_PARTICLES)))
        random.standard_normal(_PUBLISHED_NOISE)  # multiplied by zero there
    positions = np.array(x).swapaxes(1, 2)
    directions = np.array(v).swapaxes(1, 2)
    lengths = np.linalg.norm(directions, axis=2, keepdims=True)
    return positions, START_SPEED * directions / lengths, np.array(charges)


def simulate(
    start: Start,
    frames: Sequence[int],
    *,
    walls: bool = False,
    cap: str = "component",
) -> Trajectories:
    """Let particles move, all trajectories at the same time.

    Args:
        start: what :func:`starts` returns.
        frames: ascending numbers of the frames to keep.
        walls: reflect particles at ±5.
        cap: how forces are limited: ``"component"`` as published, which is not
            rotation covariant in close encounters, or ``"norm"``.
    """
    n, n_particles, _ = start[0].shape
    # Trajectories on the last axis: no sum runs over them, so that the numbers of one
    # do not depend on the others.
    x, v = (np.ascontiguousarray(a.transpose(2, 1, 0)) for a in start[:2])
    pull = _Coulomb(np.ascontiguousarray(start[2].T), cap)
    kept = np.empty((2, n, len(frames), n_particles, 3))
    done = 0
    for column, frame in enumerate(frames):
        for _ in range(done, STEPS_PER_FRAME * (frame + 1)):
            v += TIMESTEP * pull(x)
            x += TIMESTEP * v
            if walls:
                _reflect(x, v)
        done = STEPS_PER_FRAME * (frame + 1)
        kept[0, :, column] = x.transpose(2, 1, 0)
        kept[1, :, column] = v.transpose(2, 1, 0)
    return Trajectories(positions=kept[0], velocities=kept[1], charges=start[2])


class _Coulomb:
    """Forces (3, n_particles, n) on particles of given charges (n_particles, n)."""

    def __init__(self, charges: Array, cap: str) -> None:
        self.charges = charges
        self.cap = cap

    def __call__(self, x: Array) -> Array:
        forces = np.zeros_like(x)
        for i in range(x.shape[1] - 1):
            apart = x[:, i, None] - x[:, i + 1 :]
            square = (apart * apart).sum(0)
            # No power function: its last digit depends on the length of the array.
            strength = self.charges[i] * self.charges[i + 1 :]
            apart *= strength / (square * np.sqrt(square))
            forces[:, i] += apart.sum(1)
            forces[:, i + 1 :] -= apart
        if self.cap == "norm":
            length = np.sqrt((forces * forces).sum(0))
            return forces * (MAX_FORCE / np.maximum(length, MAX_FORCE))
        return np.clip(forces, -MAX_FORCE, MAX_FORCE, out=forces)


def _reflect(x: Array, v: Array) -> None:
    outside = np.abs(x) > WALL
    if outside.any():
        side = np.sign(x[outside])
        x[outside] = 2 * WALL * side - x[outside]
        v[outside] = -side * np.abs(v[outside])


def make_part(
    name: str, part: str, n: int, seed: int | None = 0, **physics: Any
) -> Iterator[Trajectories]:
    """Yield the first ``n`` trajectories of a part, a few hundred at a time.

    Args:
        name: a key of :data:`VARIANTS`.
        part: one of :data:`PARTS`.
        n: how many; the test starts of ``B`` are spread over them.
        seed: as for :func:`starts`.
        **physics: ``walls`` and ``cap`` of :func:`simulate`.
    """
    variant = VARIANTS[name]
    for first in range(0, n, _CHUNK):
        indices = range(first, min(first + _CHUNK, n))
        start = starts(name, seed, part, indices)
        made = simulate(start, variant.frames(part), **physics)
        if variant.start is None and part == "train":
            made = replace(made, horizon=variant.horizon)
        elif variant.start is None:
            first_frame = np.array([variant.n_starts * k // n for k in indices])
            made = made.between(first_frame, first_frame + variant.horizon)
        yield made


def joined(chunks: Sequence[Trajectories]) -> Trajectories:
    """Put trajectories of the same frames behind one another."""
    return Trajectories(
        positions=np.concatenate([c.positions for c in chunks]),
        velocities=np.concatenate([c.velocities for c in chunks]),
        charges=np.concatenate([c.charges for c in chunks]),
        horizon=chunks[0].horizon,
    )


def trivial_errors(part: Trajectories, time: float) -> dict[str, Array]:
    """Return the squared errors of trivial answers, one mean for each trajectory.

    Args:
        part: trajectories of two frames.
        time: from the first to the second.
    """
    velocity = part.velocities[:, 0]
    moved = part.positions[:, 1] - part.positions[:, 0]
    best = (moved * velocity).sum() / (velocity * velocity).sum()
    answers = {
        "no motion": moved,
        "x + h v": moved - time * velocity,
        "best x + a v": moved - best * velocity,
        "no change of v": part.velocities[:, 1] - velocity,
    }
    return {name: np.square(a).mean((1, 2)) for name, a in answers.items()}


def make(
    name: str,
    sizes: Sequence[int],
    seed: int | None = 0,
    progress: bool = False,
    **physics: Any,
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays of a data file and what the file says about itself.

    Args:
        name: a key of :data:`VARIANTS`.
        sizes: trajectories in training, validation and test.
        seed: as for :func:`starts`.
        progress: show a bar.
        **physics: ``walls`` and ``cap`` of :func:`simulate`.
    """
    variant = VARIANTS[name]
    arrays: dict[str, NDArray[Any]] = {}
    horizon = {}
    bar = tqdm(total=sum(sizes), unit="trajectory", disable=not progress)
    for part, size in zip(PARTS, sizes, strict=True):
        chunks = []
        for chunk in make_part(name, part, size, seed, **physics):
            chunks.append(chunk)
            bar.update(len(chunk.charges))
        if not chunks:
            continue
        whole = joined(chunks)
        horizon[part] = whole.horizon
        for key in ("positions", "velocities", "charges"):
            arrays[f"{part}_{key}"] = getattr(whole, key).astype(np.float32)
    bar.close()
    errors = trivial_errors(whole, variant.time)
    meta = {
        "format": "mlff-nbody",
        "variant": name,
        "recipe_version": RECIPE_VERSION,
        "seed": "published" if seed is None else seed,
        "physics": physics,
        "time": variant.time,
        "horizon": horizon,
        "baselines": {key: float(values.mean()) for key, values in errors.items()},
        "standard_errors": {
            key: float(v.std() / np.sqrt(len(v))) for key, v in errors.items()
        },
    }
    return arrays, meta


def write(path: Path, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
    """Write a data file: arrays in single precision and ``meta``, a JSON text."""
    content = io.BytesIO()
    np.savez(content, meta=json.dumps(meta), **arrays)  # type: ignore[arg-type]
    write_atomic(path, content.getvalue())


def _arguments() -> argparse.Namespace:
    """Read the command line: what is wrong is told before any computing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variant", choices=sorted(VARIANTS))
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default="0", help="≥ 0, default: 0")
    seeds.add_argument(
        "--published", dest="seed", action="store_const", help="the public set (C)"
    )
    parser.add_argument("--walls", action="store_true", help="reflect at ±5 (B only)")
    parser.add_argument("--cap", choices=("component", "norm"), default="component")
    parser.add_argument("--out", type=Path, help="default: beside this script")
    arguments = parser.parse_args()
    name, seed = arguments.variant, arguments.seed
    if arguments.walls and name != "B":
        parser.error(f"--walls: variant {name} has none")
    if seed is None and name != "C":
        parser.error(f"--published: the public starts are those of C, not of {name}")
    if seed is not None and seed < 0:
        parser.error(f"--seed must be ≥ 0, got {seed}")
    out = arguments.out = arguments.out or HERE / f"nbody_{name.lower()}.npz"
    if out.is_dir() or not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        parser.error(f"--out must be a file in a folder to write to, got {out}")
    return arguments


def main() -> None:
    """Make one data file."""
    arguments = _arguments()
    name, walls, out = arguments.variant, arguments.walls, arguments.out
    sizes, physics = VARIANTS[name].sizes, {"walls": walls, "cap": arguments.cap}
    arrays, meta = make(name, sizes, arguments.seed, progress=True, **physics)
    write(out, arrays, meta)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    print(f"{'mean squared error, test':26s}{'here':>9s}{'±':>9s}{'known':>9s}")
    known = KNOWN["B with walls" if walls else name]
    for (key, value), other in zip(meta["baselines"].items(), known, strict=True):
        print(f"{key:26s}{value:9.4f}{meta['standard_errors'][key]:9.4f}{other:9.4f}")


if __name__ == "__main__":
    main()
