"""Thermostats against the canonical distribution: springs, then the shipped model.

A z-score is the difference from the expectation over its standard error, found from the
means of independent replicas; below 4 in size for all but 1 of 16,000 right results.
The measurements on CH2 are those of benchmarks/ensembles.py, made shorter.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from scipy import stats
from toy_forcefields import IdealGas, Springs

import mlff
from mlff.batch import AtomsBatch
from mlff.dynamics.integrators import Langevin, VelocityRescaling

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import ensemble_statistics
import ensembles

TEMPERATURE_K = 300.0
KT = units.kB * TEMPERATURE_K
MASSES = (12.0, 1.0, 1.0, 16.0, 2.0)
N_ATOMS = len(MASSES)


def z_score(replica_means, expected):
    """Along the first axis."""
    error = replica_means.std(0) / len(replica_means) ** 0.5
    return (replica_means.mean(0) - expected) / error


def replicas(n: int):
    systems = []
    for seed in range(n):
        places = 3.0 * np.random.default_rng(seed).normal(size=(N_ATOMS, 3))
        atoms = Atoms("CHHOH", positions=places, masses=MASSES)
        atoms.info.update(charge=0, spin=2)
        systems.append(atoms)
    return AtomsBatch.from_atoms(systems), torch.tensor(MASSES).double().repeat(n)


def sample(integrator, batch, masses, forcefield, *, skip, n_samples, spacing=1):
    """Positions and momenta, (n_samples, replica, atom, 3)."""
    state = integrator.init(
        batch,
        forcefield,
        masses=masses,
        momenta=torch.zeros_like(batch.positions),
        mobile=torch.ones(batch.n_atoms, dtype=torch.bool),
    )
    positions, momenta = [], []
    for step in range(1, skip + n_samples * spacing + 1):
        state = integrator.step(state, forcefield)
        if step > skip and (step - skip) % spacing == 0:
            positions.append(state.batch.positions)
            momenta.append(state.momenta)
    shape = (n_samples, batch.n_systems, N_ATOMS, 3)
    return torch.stack(positions).view(shape), torch.stack(momenta).view(shape), state


def test_langevin_is_exact_in_the_positions_of_springs_at_any_time_step():
    """BAOAB: ⟨x²⟩ = kT/k and ⟨p²⟩ = m kT (1 − (ωΔt)²/4), both at ωΔt up to 1.2.

    With the bath outside (O B A B O) ⟨x²⟩ would be up to 56 % too large.
    """
    n, timestep_fs = 256, 2.0
    batch, masses = replicas(n)
    omega = torch.tensor([0.3, 0.6, 0.9, 1.1, 1.2]).double() / timestep_fs
    k = omega**2 * torch.tensor(MASSES).double() / units.fs**2
    integrator = Langevin(
        timestep_fs=timestep_fs, temperature_K=TEMPERATURE_K, friction_per_fs=0.1
    )
    field = Springs(batch.positions, k.repeat(n))
    found, momenta, _ = sample(
        integrator, batch, masses, field, skip=100, n_samples=500
    )
    x = found - batch.positions.view(n, N_ATOMS, 3)
    potential = (k[:, None] * x**2 / KT).mean((0, 3))
    assert (z_score(potential, 1.0).abs() < 4).all()
    kinetic = momenta**2 / masses.view(n, N_ATOMS, 1) / KT
    expected = 1.0 - (omega * timestep_fs) ** 2 / 4
    assert (z_score(kinetic.mean((0, 3)), expected).abs() < 4).all()
    error = potential.std(0) / n**0.5
    assert (error < 0.01).all()  # 36 % less kinetic energy is 36 errors


def check_kinetic_energy(kinetic, dof):
    """Mean, variance and distribution of decorrelated (n_samples, replica)."""
    mean = 0.5 * dof * KT
    assert abs(z_score(kinetic.mean(0), mean)) < 4
    assert abs(z_score(((kinetic - mean) ** 2).mean(0), mean * KT)) < 4
    exact = stats.gamma(dof / 2, scale=KT)
    assert stats.kstest(kinetic.ravel().numpy(), exact.cdf).pvalue > 1e-4
    # The test would see one degree of freedom too few.
    wrong = stats.gamma((dof - 1) / 2, scale=KT)
    assert stats.kstest(kinetic.ravel().numpy(), wrong.cdf).pvalue < 1e-4


@pytest.mark.parametrize("thermostat", [Langevin, VelocityRescaling])
def test_free_atoms_have_the_canonical_kinetic_energy(thermostat):
    """No forces, so no error of the time step: Gamma(N_f/2, kT) exactly."""
    n = 128
    batch, masses = replicas(n)
    speed = {"friction_per_fs": 0.05} if thermostat is Langevin else {}
    if thermostat is VelocityRescaling:
        speed = {"time_constant_fs": 20.0}
    integrator = thermostat(
        timestep_fs=4.0, temperature_K=TEMPERATURE_K, remove_motion=True, **speed
    )
    _, momenta, state = sample(
        integrator, batch, masses, IdealGas(batch), skip=0, n_samples=20, spacing=20
    )
    assert set(state.dof.tolist()) == {3.0 * N_ATOMS - 6}
    kinetic = (momenta**2 / (2 * masses.view(n, N_ATOMS, 1))).sum((2, 3))
    check_kinetic_energy(kinetic, 3 * N_ATOMS - 6)


@pytest.mark.parametrize("thermostat", [Langevin, VelocityRescaling])
def test_springs_have_the_canonical_kinetic_energy_shared_evenly(thermostat):
    """From canonical starts; each atom and axis keeps kT/2."""
    n, timestep_fs = 192, 1.0
    batch, masses = replicas(n)
    omega = torch.tensor([0.03, 0.05, 0.07, 0.06, 0.04]).double() / timestep_fs
    k = (omega**2 * torch.tensor(MASSES).double() / units.fs**2).repeat(n)
    field = Springs(batch.positions, k)
    generator = torch.Generator().manual_seed(0)
    away = torch.randn(batch.positions.shape, generator=generator).double()
    moved = batch.positions + away * (KT / k).sqrt()[:, None]
    speed = {"friction_per_fs": 0.05} if thermostat is Langevin else {}
    if thermostat is VelocityRescaling:
        speed = {"time_constant_fs": 20.0}
    integrator = thermostat(
        timestep_fs=timestep_fs,
        temperature_K=TEMPERATURE_K,
        remove_motion=False,
        **speed,
    )
    start = batch.replace(positions=moved)
    _, momenta, _ = sample(
        integrator, start, masses, field, skip=50, n_samples=10, spacing=60
    )
    each = momenta**2 / (2 * masses.view(n, N_ATOMS, 1))
    check_kinetic_energy(each.sum((2, 3)), 3 * N_ATOMS)
    assert (z_score(each.mean(0), 0.5 * KT).abs() < 4).all()


@pytest.fixture(scope="module")
def methylene_model():
    return mlff.load("ch2")


def test_energy_of_methylene_fluctuates_with_the_square_of_the_time_step():
    potential = mlff.load("ch2", dtype=torch.float64)
    report = ensembles.order(potential, n=4, length_fs=60.0, timesteps_fs=(0.5, 0.25))
    assert report["systems"] == 8
    (ratios,) = report["ratio_median_min_max"].values()
    assert abs(ratios[0] - 4.0) < 0.5


def check_methylene(samples, report, kinetic_mean=4.0):
    assert samples.dof == report["dof"]
    assert abs(report["mean_eV"]["z"]) < kinetic_mean
    assert abs(report["variance_eV2"]["z"]) < 4
    assert report["kolmogorov_smirnov"]["p"] > 1e-4
    assert report["equipartition"]["z_largest"] < 4.5


def test_methylene_has_the_canonical_kinetic_energy_with_langevin(methylene_model):
    """64 replicas, half singlets; at 0.5 fs the mean is low by half a percent."""
    found = ensembles.canonical(
        methylene_model, "langevin", n=32, picoseconds=0.15, timestep_fs=0.5
    )
    for samples in found.values():
        check_methylene(samples, ensemble_statistics.kinetic_report(samples))


@pytest.mark.slow
@pytest.mark.parametrize("thermostat", ["langevin", "rescaling"])
def test_methylene_has_the_canonical_angles(methylene_model, thermostat):
    """Against the integral over the surface of the model, with its own measure."""
    found = ensembles.canonical(
        methylene_model, thermostat, n=32, picoseconds=1.2, timestep_fs=0.5
    )
    for state, spin in ensembles.STATES.items():
        samples = found[state]
        check_methylene(samples, ensemble_statistics.kinetic_report(samples))
        density = ensemble_statistics.angle_density(
            methylene_model, spin, rotates=thermostat == "langevin", bin_degrees=2.0
        )
        report = ensemble_statistics.angle_report(samples, density)
        assert abs(report["mean_degrees"]["z"]) < 4
        assert abs(report["variance_degrees2"]["z"]) < 4
        assert report["kolmogorov_smirnov_p"] > 1e-4
        assert report["chi_square_20_bins_p"] > 1e-4


def test_shares_of_degrees_of_freedom_are_what_is_left_without_motion():
    """Sum to 3 of 9, and vanish out of the plane of the molecule."""
    atoms = ensembles.methylene(1.1, 120.0, 3)
    positions = atoms.positions[None].repeat(4, axis=0)
    shares = ensemble_statistics.internal_shares(positions, atoms.get_masses())
    np.testing.assert_allclose(shares.sum((1, 2)), 3.0, atol=1e-12)
    normal = np.cross(*(positions[0, 1:] - positions[0, 0]))
    out = np.argmax(np.abs(normal))
    np.testing.assert_allclose(shares[:, :, out], 0.0, atol=1e-12)


def test_the_autocorrelation_time_of_a_known_process_is_found():
    """An autoregressive series with ρ(t) = 0.9ᵗ has 1 + 2·9 = 19 samples."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, 20))
    series = np.zeros_like(noise)
    for k in range(1, len(noise)):
        series[k] = 0.9 * series[k - 1] + noise[k]
    assert abs(ensemble_statistics.autocorrelation_time(series) - 19.0) < 2.0
