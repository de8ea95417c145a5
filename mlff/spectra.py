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
from mlff.trajectory import Trajectory

Array = NDArray[np.float64]

#: ``N_A e² / (12 ε₀ c² amu)``, km/mol: intensity of a mode whose ∂μ/∂Q is 1 e/√amu.
KM_PER_MOL = units._Nav * units._e**2 / (12e3 * units._eps0 * units._c**2 * units._amu)

#: Highest wavenumber of a molecular vibration, cm⁻¹: frames must be dense enough.
HIGHEST = 4500.0

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
    source: Trajectory | tuple[Any, float],
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
        source: a run of replicas of one molecule; or dipoles, (n_frames, 3) or
            (n_frames, n_replicas, 3), e·Å, and the time between frames, fs. The
            dipoles of an ion must be about its center of mass.
        potential: with a dipole head, for a trajectory.
        systems: which replicas, for a trajectory; all if not given. Those that were
            frozen do not count.
        temperature_K: that the run had; of a trajectory the mean of its kinetic
            temperature if not given.
        skip_fs: start of the run that is left out, fs.
        resolution_per_cm: one over the length of a piece, cm⁻¹; lines are about 1.5
            times as wide with the usual windows.
        window: of each piece, ``"hann"``, ``"blackman"`` or another of
            ``scipy.signal.get_window``.

    Raises:
        InputError: frames too far apart for :data:`HIGHEST`, a run shorter than one
            piece, different or periodic molecules, or no temperature.
    """
    if not 0 <= skip_fs < math.inf:
        raise InputError(f"`skip_fs` must be zero or positive, got {skip_fs}")
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
        if temperature_K is None and first < source.n_frames:
            temperature_K = float(source.temperature[first:, chosen].mean())
        dipoles = _dipoles(source, potential, chosen)
    else:
        dipoles, spacing = np.asarray(source[0], np.float64), float(source[1])
        if dipoles.ndim not in (2, 3) or dipoles.shape[-1] != 3:
            raise InputError(
                "dipoles must have shape (n_frames, 3) or (n_frames, n_replicas, 3), "
                f"got {dipoles.shape}"
            )
        _check_spacing(spacing, "keep more frames")
        first = math.ceil(skip_fs / spacing)
    if temperature_K is None or not 0 < temperature_K < math.inf:
        raise InputError(f"`temperature_K` must be positive, got {temperature_K}")
    dipoles = dipoles[first:]
    if not np.isfinite(dipoles).all():
        raise InputError("dipoles must be finite numbers")
    dipoles = dipoles[:, None] if dipoles.ndim == 2 else dipoles
    found = _spectrum(dipoles, spacing, resolution_per_cm, window)
    shown = found.wavenumbers <= HIGHEST
    return Spectrum(
        wavenumbers=found.wavenumbers[shown],
        absorption=found.absorption[shown] * KM_PER_MOL / (units.kB * temperature_K),
    )


def _spectrum(
    dipoles: Array, spacing: float, resolution: float, window: str
) -> Spectrum:
    """Density P of the rates over wavenumbers, (e·Å)² eV/(Å² amu) cm."""
    if not 0 < resolution < HIGHEST:
        raise InputError(f"`resolution_per_cm` must be positive, got {resolution}")
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
    except ValueError as error:
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
    wanted = range(trajectory.n_systems) if systems is None else systems
    bad = [k for k in wanted if not 0 <= k < trajectory.n_systems]
    if bad:
        raise InputError(f"`systems`: there is no system {bad[0]} in {trajectory.path}")
    chosen = [k for k in wanted if trajectory.status[-1, k] == 0]
    if not chosen:
        raise InputError("`systems`: none ran to the end of the trajectory")
    kinds = {
        (
            layout.numbers[layout.ptr[k] : layout.ptr[k + 1]].tobytes(),
            int(layout.charge[k]),
            int(layout.multiplicity[k]),
        )
        for k in chosen
    }
    if len(kinds) > 1:
        raise InputError(
            f"`systems` must be replicas of one molecule in one state, got {len(kinds)}"
            " different ones: choose those of one, systems=[...]"
        )
    if layout.pbc[chosen].any():
        raise InputError("`systems`: the dipole of a periodic system has no meaning")
    return chosen


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
    if not (0 < width < math.inf and 0 < spacing < HIGHEST):
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
) -> None:
    """Draw spectra on one scale, wavenumbers from right to left as is usual.

    Args:
        path: picture to write.
        curves: by label.
        sticks: harmonic frequencies (cm⁻¹) and intensities (km/mol), drawn as lines on
            a scale of their own.
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
    )
    axes.set_ylim(bottom=0.0)
    if curves:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
