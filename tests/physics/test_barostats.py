"""Barostats against exact volumes, fluctuations and a conserved quantity.

A z-score is the difference from the expectation over its standard error, found from the
means of independent replicas; below 4 in size for all but 1 of 16,000 right results.
"""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.velocitydistribution import thermalize_momenta
from toy_forcefields import ElasticCell, IdealGas, MorseCrystal, crystal

from mlff.batch import AtomsBatch
from mlff.dynamics.barostats import (
    CellRescaling,
    FlexibleCellRescaling,
    IsotropicCellRescaling,
    _exponential,
    _frame,
)
from mlff.dynamics.integrators import Langevin, VelocityRescaling, VelocityVerlet
from mlff.dynamics.phase import MDState
from mlff.dynamics.schedules import Ramp
from mlff.errors import InputError, InputTypeError
from mlff.forcefield import ForceField
from mlff.models import build_model
from mlff.potential import Potential, TrainingInfo

BAROSTATS = (IsotropicCellRescaling, FlexibleCellRescaling)
TEMPERATURE_K = 300.0
KT = units.kB * TEMPERATURE_K
COPPER_PER_GPA = 0.012


def langevin(timestep_fs=4.0, **options):
    return Langevin(
        timestep_fs=timestep_fs,
        temperature_K=TEMPERATURE_K,
        **{"friction_per_fs": 0.02, "seed": 3, **options},
    )


def rescaling(timestep_fs=4.0, **options):
    return VelocityRescaling(
        timestep_fs=timestep_fs,
        temperature_K=TEMPERATURE_K,
        **{"time_constant_fs": 50.0, "seed": 3, **options},
    )


def barostat(cls, thermostat, pressure_GPa=1.0, **options) -> CellRescaling:
    return cls(
        thermostat=thermostat,
        pressure_GPa=pressure_GPa,
        **{
            "compressibility_per_GPa": COPPER_PER_GPA,
            "time_constant_fs": 100.0,
            **options,
        },
    )


def started(systems, integrator, forcefield=MorseCrystal) -> tuple[MDState, object]:
    batch = AtomsBatch.from_atoms(systems)
    field = forcefield(batch)
    masses = torch.from_numpy(np.concatenate([a.get_masses() for a in systems]))
    state = integrator.init(
        batch,
        field,
        masses=masses,
        momenta=torch.zeros_like(batch.positions),
        mobile=torch.ones(batch.n_atoms, dtype=torch.bool),
    )
    return state, field


def went(state, integrator, field, n_steps) -> MDState:
    for _ in range(n_steps):
        state = integrator.step(state, field)
    return state


def volume(state: MDState):
    return torch.linalg.det(state.batch.cell)


def pressure_of(state: MDState):
    """GPa, with the instantaneous momenta, (n_systems, 3, 3)."""
    velocity = state.momenta / state.masses[:, None]
    kinetic = state.batch.total(state.momenta[:, :, None] * velocity[:, None, :])
    return (kinetic / volume(state)[:, None, None] - state.stress) / units.GPa


def conserved(state: MDState):
    return state.energy + state.kinetic_energy() - state.heat


def z_score(replica_means, expected):
    """Along the first axis."""
    error = replica_means.std(0) / len(replica_means) ** 0.5
    return (replica_means.mean(0) - expected) / error


def gas(n_atoms: int, pressure: float, seed: int) -> Atoms:
    edge = (n_atoms * KT / (pressure * units.GPa)) ** (1 / 3)
    places = np.random.default_rng(seed).random((n_atoms, 3))
    return Atoms(
        f"Ar{n_atoms}",
        scaled_positions=places,
        cell=np.eye(3) * edge,
        pbc=True,
        info={"charge": 0, "spin": 1},
    )


@pytest.mark.parametrize("thermostat", [langevin, rescaling])
@pytest.mark.parametrize("cls", BAROSTATS)
def test_volumes_of_an_ideal_gas_follow_a_gamma_distribution(cls, thermostat):
    """p(V) ∝ V^(N_f/3) exp(−PV/kT): P V/kT has mean and variance N_f/3 + 1.

    N_f is 3 N with Langevin, and 3 N − 3 where the center of mass is at rest. Two
    pressures in one batch.
    """
    n_atoms, half = 8, 128
    pressures = torch.tensor([0.05, 0.2]).double().repeat_interleave(half)
    systems = [gas(n_atoms, p, k) for k, p in enumerate(pressures.tolist())]
    integrator = barostat(
        cls,
        thermostat(),
        pressures.tolist(),
        compressibility_per_GPa=(1.0 / pressures).tolist(),
        time_constant_fs=80.0,
    )
    state, field = started(systems, integrator, IdealGas)
    state = went(state, integrator, field, 100)
    seen = []
    for _ in range(400):
        state = integrator.step(state, field)
        seen.append(volume(state) * pressures * units.GPa / KT)
    values = torch.stack(seen)
    expected = n_atoms + (1 if thermostat is langevin else 0)
    assert float(state.dof[0]) / 3 + 1 == expected
    for group in values.split(half, dim=1):
        assert abs(z_score(group.mean(0), expected)) < 4
        assert abs(z_score(((group - expected) ** 2).mean(0), expected)) < 4
    error = values.mean(0).std() / len(pressures) ** 0.5
    assert error < 0.015 * expected  # the test resolves one atom more or less
    assert field.calls == 501  # one call a step


def test_shapes_of_a_flexible_cell_follow_their_invariant_measure():
    """U(h) = k w, w = tr(h hᵀ)/V^(2/3) − 3, and the measure dh/V³ at fixed volume.

    In logarithmic principal stretches x₁ + x₂ + x₃ = 0 it is ∏ sinh|xᵢ − xⱼ| dx₁ dx₂
    (Helgason, Groups and Geometric Analysis, ch. I § 5), w = Σ e^(2x) − 3. The volume
    is independent of it and that of an ideal gas.
    """
    strength, n_atoms, pressure, n = 8.0, 8, 0.1, 192
    grid = np.linspace(-1.5, 1.5, 600)
    x = np.stack((*np.meshgrid(grid, grid), -np.add.outer(grid, grid)))
    w = np.exp(2 * x).sum(0) - 3
    density = np.exp(-strength * w)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        density *= np.abs(np.sinh(x[i] - x[j]))
    density /= density.sum()
    integrator = barostat(
        FlexibleCellRescaling,
        langevin(),
        pressure,
        compressibility_per_GPa=1.0 / pressure,
        time_constant_fs=200.0,
    )
    systems = [gas(n_atoms, pressure, k) for k in range(n)]
    state, field = started(systems, integrator, lambda _: ElasticCell(strength * KT))
    state = went(state, integrator, field, 200)
    seen, sizes = [], []
    for _ in range(600):
        state = integrator.step(state, field)
        seen.append(state.energy / (strength * KT))
        sizes.append(volume(state) * pressure * units.GPa / KT)
    found = torch.stack(seen)
    for power in (1, 2):
        expected = float((density * w**power).sum())
        assert abs(z_score((found**power).mean(0), expected)) < 4
    assert found.mean(0).std() / n**0.5 < 0.02 * found.mean()
    assert abs(z_score(torch.stack(sizes).mean(0), n_atoms + 1)) < 4


def crystal_run(cls, thermostat, *, n, replicas, n_steps, pressures):
    """Volumes per atom and pressure tensors, (n_frames, pressure, replica, …)."""
    targets = np.repeat(pressures, replicas).tolist()
    systems = [crystal(n) for _ in targets]
    integrator = barostat(cls, thermostat, targets)
    state, field = started(systems, integrator)
    state = went(state, integrator, field, 150)
    volumes, tensors = [], []
    for _ in range(n_steps):
        state = integrator.step(state, field)
        volumes.append(volume(state) / n**3)
        tensors.append(pressure_of(state))
    shape = (len(pressures), replicas)
    return torch.stack(volumes).unflatten(1, shape), torch.stack(tensors).unflatten(
        1, shape
    )


def check_crystal(volumes, tensors, pressures, *, flexible, n_atoms, rtol):
    for index, target in enumerate(pressures):
        found = tensors[:, index].mean(0)  # (replica, 3, 3)
        trace = found.diagonal(dim1=1, dim2=2).mean(1)
        assert abs(z_score(trace, target)) < 4
        if flexible:
            z = z_score(found, target * torch.eye(3, dtype=torch.float64))
            assert (z.abs() < 4).all()
    # d⟨V⟩/dP = −(⟨V²⟩ − ⟨V⟩²)/kT, exact at every pressure; here by Simpson's rule.
    mean = volumes.mean((0, 2))
    variance = ((volumes - mean[:, None]) ** 2).mean((0, 2))
    slope = variance * n_atoms * units.GPa / KT
    expected = (pressures[2] - pressures[0]) * (slope[0] + 4 * slope[1] + slope[2]) / 6
    torch.testing.assert_close(mean[0] - mean[2], expected, rtol=rtol, atol=0.0)


PRESSURES_GPA = (-1.0, 1.0, 3.0)


def test_crystals_reach_their_pressures_and_fluctuate_as_they_are_compressed():
    """Three pressures in one batch; of eight atoms the shape still matters a little."""
    means = []
    for cls in BAROSTATS:
        volumes, tensors = crystal_run(
            cls, rescaling(), n=2, replicas=16, n_steps=600, pressures=PRESSURES_GPA
        )
        flexible = cls is FlexibleCellRescaling
        check_crystal(
            volumes, tensors, PRESSURES_GPA, flexible=flexible, n_atoms=8, rtol=0.1
        )
        means.append(volumes.mean((0, 2)))
    torch.testing.assert_close(means[0], means[1], rtol=5e-3, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("thermostat", [langevin, rescaling])
def test_larger_crystals_have_the_same_volume_with_both_barostats(thermostat):
    means = []
    for cls in BAROSTATS:
        volumes, tensors = crystal_run(
            cls, thermostat(), n=3, replicas=12, n_steps=2500, pressures=PRESSURES_GPA
        )
        flexible = cls is FlexibleCellRescaling
        check_crystal(
            volumes, tensors, PRESSURES_GPA, flexible=flexible, n_atoms=27, rtol=0.08
        )
        means.append(volumes.mean((0, 2)))
    torch.testing.assert_close(means[0], means[1], rtol=2e-3, atol=0.0)


class OneCrystal(Calculator):
    """The stand-in as ASE sees it."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, atoms: Atoms) -> None:
        super().__init__()
        self.field = MorseCrystal(AtomsBatch.from_atoms([atoms]))

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        out = self.field(AtomsBatch.from_atoms([self.atoms]))
        stress = out.stress[0].numpy()[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        self.results = {
            "energy": float(out.energy[0]),
            "forces": out.forces.numpy(),
            "stress": stress,
        }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using heuristic P_mass")
def test_the_mean_volume_is_that_of_another_barostat():
    """ASE's Langevin piston, one crystal: standard error about 0.1 %."""
    volumes, _ = crystal_run(
        IsotropicCellRescaling,
        rescaling(),
        n=3,
        replicas=16,
        n_steps=1500,
        pressures=(2.0,),
    )
    atoms = crystal(3)
    atoms.calc = OneCrystal(atoms)
    thermalize_momenta(atoms, TEMPERATURE_K, rng=np.random.default_rng(0))
    dynamics = LangevinBAOAB(
        atoms,
        timestep=4 * units.fs,
        temperature_K=TEMPERATURE_K,
        externalstress=-2.0 * units.GPa,
        hydrostatic=True,
        T_tau=100 * units.fs,
        P_tau=200 * units.fs,
        rng=0,
    )
    seen = []
    dynamics.attach(lambda: seen.append(atoms.get_volume() / len(atoms)))
    dynamics.run(12_000)
    assert abs(np.mean(seen[500:]) / float(volumes.mean()) - 1.0) < 4e-3


@pytest.mark.parametrize("thermostat", [langevin, rescaling])
@pytest.mark.parametrize("cls", BAROSTATS)
def test_the_conserved_quantity_gets_better_with_the_time_step(cls, thermostat):
    """Half the step, about a quarter of the fluctuation; without the heat, 30 times."""
    systems = [crystal(2) for _ in range(12)]
    fluctuations = []
    for timestep in (4.0, 2.0):
        integrator = barostat(cls, thermostat(timestep))
        state, field = started(systems, integrator)
        kept, bare = [], []
        for _ in range(round(800 / timestep)):
            state = integrator.step(state, field)
            kept.append(conserved(state))
            bare.append(state.energy + state.kinetic_energy())
        fluctuations.append(torch.stack(kept).std(0).median())
        assert 100 * fluctuations[-1] < torch.stack(bare).std(0).median()
    assert 2.5 < fluctuations[0] / fluctuations[1] < 6


def test_the_work_of_the_barostat_is_counted_apart_from_that_of_the_thermostat():
    """An ideal gas: K only, which work and thermostat change, to the last digit."""
    integrator = barostat(FlexibleCellRescaling, rescaling(), 0.05)
    state, field = started([gas(9, 0.05, k) for k in range(5)], integrator, IdealGas)
    start = conserved(state)
    end = went(state, integrator, field, 100)
    assert (end.heat - state.heat).abs().min() > 1e-4
    torch.testing.assert_close(conserved(end), start, rtol=0, atol=1e-12)


def test_a_flexible_cell_changes_its_shape_but_does_not_turn():
    systems = [crystal(2) for _ in range(7)]
    for k, atoms in enumerate(systems):
        atoms.rotate(10.0 * k, (1, 2, 3), rotate_cell=True)
    integrator = barostat(FlexibleCellRescaling, rescaling(time_constant_fs=20.0))
    state, field = started(systems, integrator)
    strain = integrator._strain(state)
    torch.testing.assert_close(strain, strain.mT, rtol=0, atol=1e-14)
    start = _frame(state.batch.cell)
    end = went(state, integrator, field, 400)
    torch.testing.assert_close(_frame(end.batch.cell), start, rtol=0, atol=1e-12)
    unit = end.batch.cell / end.batch.cell.norm(dim=2, keepdim=True)
    angles = torch.linalg.matrix_norm(unit @ unit.mT - _gram(state), dim=(1, 2))
    assert angles.min() > 1e-3
    total = end.batch.total(end.momenta)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-9)


def _gram(state):
    unit = state.batch.cell / state.batch.cell.norm(dim=2, keepdim=True)
    return unit @ unit.mT


def test_an_isotropic_cell_keeps_its_shape_and_the_atoms_follow():
    integrator = barostat(IsotropicCellRescaling, langevin())
    systems = [crystal(2) for _ in range(5)]
    state, field = started(systems, integrator)
    end = went(state, integrator, field, 100)
    scale = (volume(end) / volume(state)) ** (1 / 3)
    expected = scale[:, None, None] * state.batch.cell
    torch.testing.assert_close(end.batch.cell, expected, rtol=1e-12, atol=1e-12)
    assert (scale - 1).abs().min() > 1e-4
    # The atoms have followed: the springs between them hold thermal energy only.
    assert (end.energy - state.energy).max() < 8 * 3 * KT


@pytest.mark.parametrize("cls", BAROSTATS)
def test_a_batch_moves_like_its_systems_alone(cls):
    """Sizes, pressures and seeds differ."""
    systems = [crystal(2), crystal(3), crystal(2, 3.6), crystal(4, 3.5)]
    pressures, seeds = [0.0, 1.0, 5.0, -1.0], [5, 17, 3, 1]
    ends = []
    for picked in ([0, 1, 2, 3], [0], [1], [2], [3]):
        integrator = barostat(
            cls,
            rescaling(seed=[seeds[k] for k in picked]),
            [pressures[k] for k in picked],
        )
        state, field = started([systems[k] for k in picked], integrator)
        ends.append(went(state, integrator, field, 30))
    alone = ends[1:]
    for name in ("positions", "cell"):
        expected = torch.cat([getattr(end.batch, name) for end in alone])
        found = getattr(ends[0].batch, name)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for name in ("momenta", "heat"):
        expected = torch.cat([getattr(end, name) for end in alone])
        torch.testing.assert_close(getattr(ends[0], name), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("thermostat", [langevin, rescaling])
@pytest.mark.parametrize("cls", BAROSTATS)
def test_a_run_continues_from_what_a_frame_holds_to_the_same_bits(cls, thermostat):
    ramp = Ramp(times_fs=(0.0, 100.0), values=(0.0, 5.0))
    integrator = barostat(cls, thermostat(), ramp)
    systems = [crystal(2), crystal(3)]
    start, field = started(systems, integrator)
    whole = went(start, integrator, field, 25)
    half = went(start, integrator, field, 12)
    again, field = started(systems, integrator)
    batch = again.batch.replace(positions=half.batch.positions, cell=half.batch.cell)
    again = again.replace(
        batch=batch, momenta=half.momenta, heat=half.heat, step=half.step
    ).evaluated(field(batch))
    again = went(again, integrator, field, 13)
    assert torch.equal(again.batch.positions, whole.batch.positions)
    assert torch.equal(again.batch.cell, whole.batch.cell)
    assert torch.equal(again.momenta, whole.momenta)
    assert torch.equal(again.heat, whole.heat)


def test_the_pressure_may_follow_a_schedule():
    ramp = Ramp(times_fs=(0.0, 400.0), values=(0.0, 20.0))
    integrator = barostat(IsotropicCellRescaling, rescaling(), ramp)
    state, field = started([crystal(2) for _ in range(20)], integrator)
    end = went(state, integrator, field, 200)
    found = pressure_of(end).diagonal(dim1=1, dim2=2).mean()
    assert 15 < found < 22
    assert integrator.settings()["pressure_GPa"] == {
        "times_fs": [0.0, 400.0],
        "values": [0.0, 20.0],
    }


@pytest.mark.parametrize("cls", BAROSTATS)
def test_a_potential_with_local_attention_runs_under_pressure(cls):
    """Random weights; what matters is stress, moving cells and kept lists."""
    torch.manual_seed(0)
    options = {"n_features": 16, "n_layers": 2, "n_radial": 8, "cutoff": 4.0}
    info = TrainingInfo(elements=(6,), states=((0, 1),))
    model = {"name": "cmret", "scope": "local", "attention": "gelu", **options}
    potential = Potential.build(model, {}, info).eval().requires_grad_(False)
    assert build_model(**model).supports_periodic
    systems = []
    for size in (1, 2, 1, 1):
        atoms = crystal(2, 4.2, "C").repeat((size, 1, 1))
        atoms.rattle(0.02, seed=size)
        atoms.info.update(charge=0, spin=1)
        systems.append(atoms)
    integrator = barostat(cls, langevin(1.0), compressibility_per_GPa=0.05)
    state, field = started(
        systems, integrator, lambda batch: ForceField(potential, batch, stress=True)
    )
    end = went(state, integrator, field, 20)
    for value in (end.batch.positions, end.batch.cell, end.momenta, end.energy):
        assert value.isfinite().all()
    assert (volume(end) / volume(state) - 1).abs().min() > 1e-6
    assert (conserved(end) - conserved(state)).abs().max() < 1e-3


def test_the_exponential_of_a_strain_and_of_its_negative_are_inverse():
    torch.manual_seed(0)
    strain = 0.2 * torch.randn(50, 3, 3, dtype=torch.float64)
    strain = 0.5 * (strain + strain.mT)
    found = _exponential(strain)
    torch.testing.assert_close(
        found, torch.linalg.matrix_exp(strain), rtol=0, atol=1e-13
    )
    one = torch.eye(3, dtype=torch.float64).expand_as(strain)
    torch.testing.assert_close(found @ _exponential(-strain), one, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"thermostat": VelocityVerlet(timestep_fs=1.0)}, "`thermostat`.*VelocityVerl"),
        ({"time_constant_fs": 0.5}, "`time_constant_fs` must exceed"),
        ({"time_constant_fs": float("nan")}, "`time_constant_fs` must exceed"),
    ],
)
def test_impossible_settings_are_refused(change, says):
    settings = {"thermostat": langevin(), "pressure_GPa": 0.0}
    settings["compressibility_per_GPa"] = 0.1
    with pytest.raises((InputError, InputTypeError), match=says):
        IsotropicCellRescaling(**{**settings, **change})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pressure_GPa": [1.0, 2.0]}, "`pressure_GPa`.*one per system"),
        ({"pressure_GPa": float("nan")}, "`pressure_GPa` must be finite"),
        (
            {"compressibility_per_GPa": 0.0},
            "`compressibility_per_GPa` must be positive",
        ),
        ({"compressibility_per_GPa": lambda t: 0.1}, "a number or one per system"),
    ],
)
def test_settings_that_do_not_fit_the_systems_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        started(
            [crystal(2) for _ in range(4)],
            barostat(IsotropicCellRescaling, langevin(), **options),
        )


@pytest.mark.parametrize("cls", BAROSTATS)
def test_systems_that_no_pressure_can_act_on_are_named(cls):
    systems = [crystal(2) for _ in range(4)]
    systems[1].pbc = False
    systems[3].pbc = (True, True, False)
    with pytest.raises(InputError, match=r"all three.*systems \[1, 3\]"):
        started(systems, barostat(cls, langevin()), IdealGas)


def test_fixed_atoms_are_refused():
    integrator = barostat(IsotropicCellRescaling, langevin())
    batch = AtomsBatch.from_atoms([crystal(2) for _ in range(4)])
    mobile = torch.ones(batch.n_atoms, dtype=torch.bool)
    mobile[20] = False
    with pytest.raises(InputError, match=r"fixed in systems \[2\]"):
        integrator.init(
            batch,
            IdealGas(batch),
            masses=torch.ones(batch.n_atoms).double(),
            momenta=torch.zeros_like(batch.positions),
            mobile=mobile,
        )


def test_a_force_field_without_stress_is_refused():
    class Stressless(IdealGas):
        def __call__(self, batch):
            return dataclasses.replace(super().__call__(batch), stress=None)

    with pytest.raises(InputError, match="stress=True"):
        started(
            [crystal(2) for _ in range(4)],
            barostat(IsotropicCellRescaling, langevin()),
            Stressless,
        )
