"""Statistics of canonical samples of CH2: what is expected, and how far off it is.

Kinetic energies against Gamma(N_f/2, k_B T), Cartesian degrees of freedom against
k_B T/2, angles against the integral over the surface of a model. Standard errors come
from the means of independent replicas.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import units
from scipy import interpolate, stats

import mlff
from mlff.demo import methylene

Array = np.ndarray[Any, Any]

TEMPERATURE_K = 300.0
KT = units.kB * TEMPERATURE_K


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What was seen of ``n`` replicas of one state.

    Attributes:
        kinetic: eV, (n_samples, n).
        components: p²/2m of each atom and axis, eV, (n_samples, n, 9).
        shares: degrees of freedom that each component has, (n_samples, n, 9).
        angle: H-C-H, degrees, (n_samples, n).
        dof: degrees of freedom.
        spacing_fs: between samples.
    """

    kinetic: Array
    components: Array
    shares: Array
    angle: Array
    dof: float
    spacing_fs: float


def angles(positions: Array) -> Array:
    """H-C-H, degrees; carbon first."""
    arms = positions[..., 1:, :] - positions[..., :1, :]
    arms = arms / np.linalg.norm(arms, axis=-1, keepdims=True)
    return np.degrees(
        np.arccos(np.clip((arms[..., 0, :] * arms[..., 1, :]).sum(-1), -1, 1))
    )


def internal_shares(positions: Array, masses: Array) -> Array:
    """Part of each Cartesian degree of freedom left without motion of the molecule.

    The diagonal of 1 − Q Qᵀ, Q the orthonormal translations and rotations in
    mass-weighted coordinates: the nine values sum to 3.
    """
    root = np.sqrt(masses)[:, None, None]
    center = (masses[:, None] * positions).sum(-2, keepdims=True) / masses.sum()
    arm = positions - center
    basis = np.empty((*positions.shape[:-1], 3, 6))
    basis[..., :3] = root * np.eye(3)
    for axis in range(3):
        basis[..., 3 + axis] = root[..., 0] * np.cross(np.eye(3)[axis], arm)
    flat = basis.reshape(*positions.shape[:-2], 9, 6)
    q, _ = np.linalg.qr(flat)
    return (1.0 - (q**2).sum(-1)).reshape(positions.shape)


def autocorrelation_time(series: Array) -> float:
    """In samples: 1 + 2 Σ |ρ(t)|, ρ the autocorrelation averaged over replicas.

    The modulus makes it an upper bound, where a vibration would otherwise pretend that
    nothing is correlated. Summed to the first window five times as long as the result.
    """
    length = len(series)
    centered = series - series.mean()
    spectrum = np.abs(np.fft.rfft(centered, 2 * length, axis=0)) ** 2
    covariance = np.fft.irfft(spectrum, axis=0)[:length].mean(1)
    covariance = covariance / np.arange(length, 0, -1)
    sums = 2.0 * np.cumsum(np.abs(covariance / covariance[0])) - 1.0
    window = np.arange(length) >= 5.0 * sums
    return float(sums[int(np.argmax(window)) if window.any() else -1])


def z_score(values: Array, expected: float) -> dict[str, float]:
    """A mean over time and replicas against its expectation; error from replicas."""
    means = values.mean(0)
    error = means.std(ddof=1) / np.sqrt(len(means))
    return {
        "found": float(means.mean()),
        "expected": float(expected),
        "relative_error": float(error / abs(expected)),
        "z": float((means.mean() - expected) / error),
    }


def decorrelated(values: Array) -> tuple[Array, float]:
    """Samples spaced by three autocorrelation times, and this time in samples."""
    time = autocorrelation_time(values)
    stride = int(np.ceil(3.0 * time))
    return values[stride // 2 :: stride].ravel(), time


def kinetic_report(samples: Samples) -> dict[str, Any]:
    mean = 0.5 * samples.dof * KT
    picked, time = decorrelated(samples.kinetic)
    test = stats.kstest(picked, stats.gamma(samples.dof / 2, scale=KT).cdf)
    # A molecule that does not rotate has no motion out of its plane.
    moves = samples.shares.mean((0, 1)) > 1e-6
    components, shares = samples.components[..., moves], samples.shares[..., moves]
    excess = (components - 0.5 * KT * shares).mean(0)
    z = excess.mean(0) / (excess.std(0, ddof=1) / np.sqrt(len(excess)))
    found = components.mean((0, 1)) / (0.5 * KT * shares.mean((0, 1)))
    return {
        "dof": samples.dof,
        "mean_eV": z_score(samples.kinetic, mean),
        "variance_eV2": z_score((samples.kinetic - mean) ** 2, mean * KT),
        "autocorrelation_time_fs": time * samples.spacing_fs,
        "kolmogorov_smirnov": {"n": len(picked), "p": float(test.pvalue)},
        "equipartition": {
            "temperature_over_target": [round(float(f), 4) for f in found],
            "z_largest": float(np.abs(z).max()),
            "z_rms": float(np.sqrt((z**2).mean())),
        },
    }


@dataclass(frozen=True, kw_only=True)
class AngleDensity:
    """The canonical distribution of the angle.

    Attributes:
        edges: degrees, (n_bins + 1,).
        probability: of each bin, (n_bins,).
        mean: degrees.
        variance: degrees².
    """

    edges: Array
    probability: Array
    mean: float
    variance: float

    def cdf(self, angle: Array) -> Array:
        """Probability of a smaller angle."""
        total = np.concatenate(([0.0], np.cumsum(self.probability)))
        return interpolate.PchipInterpolator(self.edges, total)(angle)

    def quantiles(self, n: int) -> Array:
        """Edges of n bins of the same probability."""
        total = np.concatenate(([0.0], np.cumsum(self.probability)))
        inside = np.interp(np.arange(1, n) / n, total, self.edges)
        return np.concatenate(([0.0], inside, [180.0]))


def angle_density(
    potential: mlff.Potential,
    spin: int,
    *,
    rotates: bool = True,
    n_bonds: int = 12,
    bin_degrees: float = 1.0,
    nodes_in_bin: int = 2,
) -> AngleDensity:
    """Integrate exp(−E/k_B T) r₁² r₂² sin θ over the bonds, Gauss-Legendre.

    Args:
        potential: whose surface.
        spin: multiplicity.
        rotates: without rotation of the whole, the integral over momenta of zero
            angular momentum leaves a factor det(I)^(−1/2), I the tensor of inertia.
        n_bonds: nodes for each bond between 0.95 and 1.27 Å; 12 converge.
        bin_degrees: width of bins from 60 to 180 degrees.
        nodes_in_bin: in each.
    """
    x, w = np.polynomial.legendre.leggauss(n_bonds)
    bonds = 1.11 + 0.16 * x
    bond_weights = w * bonds**2
    edges = np.arange(60.0, 180.0 + bin_degrees / 2, bin_degrees)
    x, w = np.polynomial.legendre.leggauss(nodes_in_bin)
    theta = (edges[:-1, None] + 0.5 * bin_degrees * (1.0 + x)).ravel()
    first, second = np.triu_indices(n_bonds)
    weights = (
        bond_weights[first] * bond_weights[second] * np.where(first == second, 1, 2)
    )
    frames, factors = [], []
    masses = methylene(1.1, 120.0, spin).get_masses()
    for angle, angle_weight in zip(
        np.radians(theta), np.tile(w, len(edges) - 1), strict=True
    ):
        for a, b, weight in zip(bonds[first], bonds[second], weights, strict=True):
            positions = np.array(
                [[0, 0, 0], [a, 0, 0], [b * np.cos(angle), b * np.sin(angle), 0]]
            )
            atoms = methylene(1.1, 120.0, spin)
            atoms.positions = positions
            frames.append(atoms)
            factor = weight * angle_weight * np.sin(angle)
            if not rotates:
                arm = positions - masses @ positions / masses.sum()
                inertia = (masses * (arm**2).sum(1)).sum() * np.eye(3)
                inertia -= (masses[:, None] * arm).T @ arm
                factor /= np.sqrt(np.linalg.det(inertia))
            factors.append(factor)
    out = mlff.predict(potential, frames, ("energy",))
    energy = np.array([o["energy"] for o in out])
    density = np.array(factors) * np.exp(-(energy - energy.min()) / KT)
    density = density.reshape(len(theta), -1).sum(1) / density.sum()
    mean = float(density @ theta)
    return AngleDensity(
        edges=edges,
        probability=density.reshape(len(edges) - 1, -1).sum(1),
        mean=mean,
        variance=float(density @ (theta - mean) ** 2),
    )


def angle_report(samples: Samples, density: AngleDensity) -> dict[str, Any]:
    picked, time = decorrelated(samples.angle)
    counts, _ = np.histogram(picked, density.quantiles(20))
    return {
        "mean_degrees": z_score(samples.angle, density.mean),
        "variance_degrees2": z_score(
            (samples.angle - density.mean) ** 2, density.variance
        ),
        "autocorrelation_time_fs": time * samples.spacing_fs,
        "kolmogorov_smirnov_p": float(stats.kstest(picked, density.cdf).pvalue),
        "chi_square_20_bins_p": float(stats.chisquare(counts).pvalue),
        "n": len(picked),
    }
