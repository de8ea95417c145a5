"""Infrared spectra: from dynamics, and from harmonic frequencies, on one scale.

A molecule absorbs with the cross section (linear response, isotropic, dilute)

    σ(ω) = π ω (1 − e^{−ħω/kT}) / (3 ħ c ε₀) · C(ω),

C(ω) the spectrum of the quantum dipole autocorrelation, ``∫ C dω = ⟨μ²⟩``. Classical
dynamics gives C_cl, and the harmonic correction ``C = ħω/kT / (1 − e^{−ħω/kT}) · C_cl``
is exact for a harmonic oscillator with a linear dipole (Ramírez et al., J. Chem. Phys.
121, 3973, 2004). What is left is ``π ω² C_cl / (3 c ε₀ kT)``: the spectrum of the
*rate* of the dipole. With its one-sided density P over wavenumbers,
``∫ P dν̃ = ⟨|dμ/dt|²⟩``, the molar absorption is

    ε(ν̃) = N_A / (12 ε₀ c²) · P(ν̃) / kT.

A mode with coordinate Q has ``⟨Q̇²⟩ = kT``, hence the area
``N_A |∂μ/∂Q|² / (12 ε₀ c²)``: the double harmonic intensity, at every temperature.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from numpy.typing import NDArray
from scipy import signal
from torch import Tensor

from mlff.batch import AtomsBatch, Edges
from mlff.device import exact
from mlff.errors import InputError, InputTypeError
from mlff.forcefield.parts import Parts
from mlff.inference import check_batch
from mlff.potential import Potential
from mlff.state import set_state
from mlff.trajectory import Layout, Trajectory

Array = NDArray[np.float64]

#: ``N_A e² / (12 ε₀ c² amu)``, km/mol: intensity of a mode whose ∂μ/∂Q is 1 e/√amu.
KM_PER_MOL = units._Nav * units._e**2 / (12e3 * units._eps0 * units._c**2 * units._amu)

#: Highest wavenumber of a molecular vibration, cm⁻¹: frames must be dense enough.
HIGHEST = 4500.0

#: Masses closer than this are the same, amu: files may have rounded them.
SAME_MASS = 1e-3

#: Speed of light, cm/fs.
_LIGHT = units._c * 1e2 * 1e-15

# Frames that are given to a potential at a time.
_FRAMES = 1024


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Molar absorption against wavenumber.

    Attributes:
        wavenumbers: ascending, evenly spaced, (n_points,), cm⁻¹.
        absorption: Napierian molar absorption, (n_points,), km/mol per cm⁻¹: areas are
            intensities.
    """

    wavenumbers: Array
    absorption: Array

    def area(self, lowest: float, highest: float) -> float:
        """Return the absorption between two wavenumbers (cm⁻¹), km/mol."""
        inside = (self.wavenumbers >= lowest) & (self.wavenumbers <= highest)
        spacing = self.wavenumbers[1] - self.wavenumbers[0]
        return float(self.absorption[inside].sum() * spacing)


def infrared(
    source: Trajectory | str | Path | tuple[Any, float],
    potential: Potential | None = None,
    *,
    systems: Sequence[int] | None = None,
    temperature_K: float | None = None,
    skip_fs: float = 0.0,
    resolution_per_cm: float = 10.0,
    window: str = "hann",
) -> Spectrum:
    """Return the infrared spectrum of a molecule from its dynamics.

    Rates of the dipole are differences between frames, with the damping of differences
    undone; their density is averaged over replicas and over pieces of the run that
    overlap by half (Welch). Areas are those of harmonic intensities, see the module.

    Args:
        source: a run of replicas of one molecule with the same masses, open or its
            file; or dipoles, (n_frames, 3) or (n_frames, n_replicas, 3), e·Å, about
            the center of mass if of an ion, and the time between frames, fs.
        potential: with a dipole head, for a trajectory.
        systems: indices of replicas, for a trajectory; all if not given. Those that
            were frozen do not count.
        temperature_K: that the run had; of a trajectory the mean of its kinetic
            temperature if not given.
        skip_fs: start of the run that is left out, fs.
        resolution_per_cm: one over the length of a piece, cm⁻¹; lines are about 1.5
            times as wide with the usual windows.
        window: of each piece, ``"hann"``, ``"blackman"`` or another of
            ``scipy.signal.get_window``.

    Raises:
        InputError: frames too far apart for :data:`HIGHEST`, a run shorter than one
            piece, different (also in masses) or periodic molecules, no temperature.
        InputTypeError: an argument of the wrong type.
        DataError: no such trajectory, or a damaged one.
    """
    _check_options(temperature_K, skip_fs, resolution_per_cm, window)
    if isinstance(source, str | Path):
        source = Trajectory(source)
    if isinstance(source, Trajectory):
        if not isinstance(potential, Potential):
            raise InputTypeError(
                "`potential` with a dipole head is needed for a trajectory, got "
                f"{type(potential).__name__}"
            )
        spacing, every = _spacing(source)
        _check_spacing(spacing, every)
        chosen = _replicas(source, systems)
        first = int(np.searchsorted(source.times_fs, skip_fs))
        n_frames = source.n_frames
        if temperature_K is None and first < n_frames:
            temperature_K = float(source.temperature[first:, chosen].mean())
    else:
        given, spacing = _stated(source)
        _check_spacing(spacing, "keep more frames")
        first, n_frames = math.ceil(skip_fs / spacing), len(given)
    if first >= n_frames:
        raise InputError(
            f"`skip_fs`={skip_fs:g} leaves nothing of {n_frames * spacing:.6g} fs"
        )
    if temperature_K is None or not 0 < temperature_K < math.inf:
        raise InputError(f"`temperature_K` must be positive, got {temperature_K}")
    if isinstance(source, Trajectory) and isinstance(potential, Potential):
        given = _dipoles(source, potential, chosen)
    found = _spectrum(given[first:], spacing, resolution_per_cm, window)
    shown = found.wavenumbers <= HIGHEST
    return Spectrum(
        wavenumbers=found.wavenumbers[shown],
        absorption=found.absorption[shown] * KM_PER_MOL / (units.kB * temperature_K),
    )


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputTypeError(f"`{name}` must be a number, got {value!r}")
    return float(value)


def _check_options(temperature: Any, skip: Any, resolution: Any, window: Any) -> None:
    if temperature is not None:
        _number(temperature, "temperature_K")
    if not 0 <= _number(skip, "skip_fs") < math.inf:
        raise InputError(f"`skip_fs` must be zero or positive, got {skip}")
    if not 0 < _number(resolution, "resolution_per_cm") < HIGHEST:
        raise InputError(f"`resolution_per_cm` must be positive, got {resolution}")
    if not isinstance(window, str | tuple):
        raise InputTypeError(f"`window` must be a name, got {window!r}")


def _stated(source: Any) -> tuple[Array, float]:
    """Dipoles that were given, (n_frames, n_replicas, 3), and the time between them."""
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise InputTypeError(
            "`source` must be a trajectory, its file, or (dipoles, time between frames "
            f"in fs), got {type(source).__name__}"
        )
    try:
        dipoles = np.asarray(source[0])
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths
        dipoles = np.empty(0, object)
    if dipoles.dtype.kind not in "iuf":
        raise InputTypeError(
            f"`source`: dipoles must be an array of real numbers, got {dipoles.dtype}"
        )
    if dipoles.ndim not in (2, 3) or dipoles.shape[-1] != 3:
        raise InputError(
            "`source`: dipoles must have shape (n_frames, 3) or (n_frames, n_replicas, "
            f"3), got {dipoles.shape}"
        )
    if not np.isfinite(dipoles).all():
        raise InputError("`source`: dipoles must be finite numbers")
    dipoles = dipoles[:, None] if dipoles.ndim == 2 else dipoles
    return dipoles.astype(np.float64), _number(source[1], "source[1]")


def _spectrum(
    dipoles: Array, spacing: float, resolution: float, window: str
) -> Spectrum:
    """Density P of the rates over wavenumbers, (e·Å)² eV/(Å² amu) cm."""
    length = round(1.0 / (_LIGHT * resolution * spacing))
    if len(dipoles) <= length:
        raise InputError(
            f"`resolution_per_cm`={resolution:g} needs a run of more than "
            f"{length * spacing:.6g} fs, got {len(dipoles) * spacing:.6g} fs: run "
            "longer, or ask for less resolution"
        )
    rates = np.diff(dipoles, axis=0) / (spacing * units.fs)
    try:
        frequencies, density = signal.welch(
            rates,
            1.0 / spacing,
            window,
            length,
            nfft=4 * length,  # points between, so that curves are smooth
            detrend=False,
            axis=0,
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"`window`={window!r}: {error}") from error
    # A difference over the time d has |2 sin(ωd/2)/d| of the rate.
    damping = np.sinc(frequencies * spacing)
    total = density.mean(1).sum(1) / damping**2
    return Spectrum(wavenumbers=frequencies / _LIGHT, absorption=total * _LIGHT)


def _check_spacing(spacing: float, cure: str) -> None:
    longest = 0.5 / (_LIGHT * HIGHEST)
    if not 0 < spacing <= longest:
        raise InputError(
            f"frames are {spacing:g} fs apart, but vibrations up to {HIGHEST:g} cm⁻¹ "
            f"need at most {longest:.2f} fs: {cure}"
        )


def _spacing(trajectory: Trajectory) -> tuple[float, str]:
    """Time between frames, fs, and how to have it shorter."""
    gaps = np.diff(trajectory.steps)
    if len(gaps) == 0 or (gaps != gaps[0]).any():
        raise InputError(f"{trajectory.path}: frames must be evenly spaced, and many")
    step = float(trajectory.header["timestep_fs"])
    every = max(int(0.5 / (_LIGHT * HIGHEST * step)), 1)
    return float(gaps[0]) * step, f"run with every={every} or less (now {gaps[0]})"


def _replicas(trajectory: Trajectory, systems: Sequence[int] | None) -> list[int]:
    """Systems that ran to the end, if they are all of one molecule in one state."""
    layout = trajectory.layout
    wanted = _indices(systems, trajectory.n_systems)
    bad = [k for k in wanted if not 0 <= k < trajectory.n_systems]
    if bad:
        raise InputError(f"`systems`: there is no system {bad[0]} in {trajectory.path}")
    chosen = [k for k in wanted if trajectory.status[-1, k] == 0]
    if not chosen:
        raise InputError("`systems`: none ran to the end of the trajectory")
    for k in chosen[1:]:
        what = _difference(layout, chosen[0], k)
        if what:
            raise InputError(
                "`systems` must be replicas of one molecule in one state, but systems "
                f"{chosen[0]} and {k} have different {what}: choose those of one with "
                "systems=[...]"
            )
    if layout.pbc[chosen].any():
        raise InputError("`systems`: the dipole of a periodic system has no meaning")
    return chosen


def _indices(systems: Any, n_systems: int) -> list[int]:
    if systems is None:
        return list(range(n_systems))
    try:
        array = np.asarray(systems)
    except (TypeError, ValueError):
        array = np.empty(())
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise InputTypeError(
            "`systems` must be a list of indices, for example [0, 2] (of a mask, "
            f"np.flatnonzero(mask)), got {systems!r}"
        )
    return [int(k) for k in array]


def _difference(layout: Layout, one: int, other: int) -> str:
    """What keeps two systems from being replicas; nothing if they are."""
    first, second = (slice(layout.ptr[k], layout.ptr[k + 1]) for k in (one, other))
    if not np.array_equal(layout.numbers[first], layout.numbers[second]):
        return "atoms"
    masses = layout.masses[first], layout.masses[second]
    if not np.allclose(*masses, rtol=0.0, atol=SAME_MASS):
        return "masses"
    states = [(layout.charge[k], layout.multiplicity[k]) for k in (one, other)]
    return "" if states[0] == states[1] else "states"


def _dipoles(trajectory: Trajectory, potential: Potential, systems: list[int]) -> Array:
    """Dipoles about the center of mass, (n_frames, n_systems, 3), e·Å."""
    start, layout = systems[0], trajectory.layout
    atoms = slice(int(layout.ptr[start]), int(layout.ptr[start + 1]))
    numbers, charge = layout.numbers[atoms], int(layout.charge[start])
    like = Atoms(numbers, trajectory.positions(start)[0])
    set_state(like, charge, int(layout.multiplicity[start]))
    one = AtomsBatch.from_atoms([like])
    check_batch(potential, one)
    potential.check_properties(("dipole",), periodic=False)
    weights = layout.masses[atoms] / layout.masses[atoms].sum()
    weights = numbers / numbers.sum() - weights
    with exact(potential.device):
        batch = one.select([0] * _FRAMES).to(potential.device)
        parts = Parts(potential, batch, ("dipole",))

        def call(part: AtomsBatch, edges: Edges) -> dict[str, Tensor]:
            return potential(part, edges, ("dipole",))

        columns = []
        for system in systems:
            places = trajectory.positions(system)
            rows = []
            for begin in range(0, len(places), _FRAMES):
                some = torch.from_numpy(places[begin : begin + _FRAMES].copy())
                full = batch.positions.clone().view(_FRAMES, -1, 3)
                full[: len(some)] = some.to(full.device)
                moved = batch.replace(positions=full.view(-1, 3))
                found = parts.evaluate(moved, call)["dipole"]
                rows.append(found[: len(some)].cpu().numpy())
            # From the center of nuclear charge to that of mass.
            shift = charge * np.einsum("a,fax->fx", weights, places)
            columns.append(np.concatenate(rows) + shift)
    return np.stack(columns, axis=1)


def broadened(
    frequencies: Any, intensities: Any, width: float = 10.0, spacing: float = 1.0
) -> Spectrum:
    """Return a line spectrum as a sum of Lorentzians whose areas are the intensities.

    Args:
        frequencies: cm⁻¹; imaginary ones, which are negative, do not absorb.
        intensities: km/mol.
        width: full width of a line at half of its height, cm⁻¹.
        spacing: of the points, cm⁻¹.

    Raises:
        InputError: different lengths, or a width or spacing that is not positive.
    """
    places, areas = np.asarray(frequencies, float), np.asarray(intensities, float)
    if places.ndim != 1 or places.shape != areas.shape:
        raise InputError(
            f"`intensities` must be one per frequency {places.shape}, got {areas.shape}"
        )
    size, gap = _number(width, "width"), _number(spacing, "spacing")
    if not (0 < size < math.inf and 0 < gap < HIGHEST):
        raise InputError(
            f"`width` and `spacing` must be positive, got {width} and {spacing}"
        )
    grid = np.arange(0.0, HIGHEST + spacing / 2, spacing)
    real = places > 0
    half = 0.5 * width
    lines = half / math.pi / ((grid[:, None] - places[real]) ** 2 + half**2)
    return Spectrum(wavenumbers=grid, absorption=lines @ areas[real])


def plot_infrared(
    path: str | Path,
    curves: Mapping[str, Spectrum],
    sticks: tuple[Any, Any] | None = None,
    title: str = "",
) -> None:
    """Draw spectra on one scale, wavenumbers from right to left as is usual.

    Args:
        path: picture to write.
        curves: by label.
        sticks: harmonic frequencies (cm⁻¹) and intensities (km/mol), drawn as lines on
            a scale of their own.
        title: what it is of: formula and state.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, curve in curves.items():
        axes.plot(curve.wavenumbers, curve.absorption, label=label, linewidth=1.2)
    if sticks is not None:
        right = axes.twinx()
        right.vlines(sticks[0], 0.0, sticks[1], color="gray", linewidth=1.0)
        right.set_ylabel("intensity, km/mol", color="gray")
        right.set_ylim(bottom=0.0)
    axes.set(
        xlim=(HIGHEST, 0.0),
        xlabel="wavenumber, cm⁻¹",
        ylabel="absorption, km/mol per cm⁻¹",
        title=title,
    )
    axes.set_ylim(bottom=0.0)
    if curves:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
