"""Dynamics, constraints and files of ASE work with the calculator."""

import ase.io
import ase.md
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import (
    FixAtoms,
    FixBondLength,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixInternals,
    Hookean,
)
from ase.md.andersen import Andersen
from ase.md.bussi import Bussi
from ase.md.contour_exploration import ContourExploration
from ase.md.fix import FixRotation
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.melchionna import MelchionnaNPT
from ase.md.nose_hoover_chain import (
    MTKNPT,
    IsotropicMTKNPT,
    MaskedMTKNPT,
    NoseHooverChainNVT,
)
from ase.md.nptberendsen import Inhomogeneous_NPTBerendsen, NPTBerendsen
from ase.md.nvtberendsen import NVTBerendsen
from ase.md.switch_langevin import SwitchLangevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE
from ase_cases import FS, Watch, classes_in, counted, crystal, near_minimum, shipped

import mlff
from mlff.demo import methylene


@pytest.fixture(params=[1, 3], ids=["singlet", "triplet"])
def molecule(request, tmp_path, monkeypatch):
    """CH2 near its minimum; what writes files writes them into ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return near_minimum(request.param)


# ase.md

#: Of one molecule: constant energy, or constant temperature.
MOLECULAR = {
    "VelocityVerlet": lambda a, rng: VelocityVerlet(a, 0.25 * FS),
    "Langevin": lambda a, rng: Langevin(
        a, 0.25 * FS, temperature_K=300, friction=0.01 / FS, fixcm=False, rng=rng
    ),
    "LangevinBAOAB": lambda a, rng: LangevinBAOAB(
        a, 0.25 * FS, temperature_K=300, T_tau=50 * FS, rng=rng
    ),
    "Bussi": lambda a, rng: Bussi(
        a, 0.25 * FS, temperature_K=300, taut=20 * FS, rng=rng
    ),
    "Andersen": lambda a, rng: Andersen(
        a, 0.25 * FS, temperature_K=300, andersen_prob=0.1, rng=rng
    ),
    "NoseHooverChainNVT": lambda a, rng: NoseHooverChainNVT(
        a, 0.25 * FS, temperature_K=300, tdamp=25 * FS
    ),
    "NVTBerendsen": lambda a, rng: NVTBerendsen(
        a, 0.25 * FS, temperature_K=300, taut=20 * FS
    ),
}

#: Of a periodic system: they need the stress.
PERIODIC = {
    "IsotropicMTKNPT": lambda a, rng: IsotropicMTKNPT(
        a, 0.25 * FS, 300, 0.0, tdamp=25 * FS, pdamp=250 * FS
    ),
    "MTKNPT": lambda a, rng: MTKNPT(
        a, 0.25 * FS, 300, 0.0, tdamp=25 * FS, pdamp=250 * FS
    ),
    # The mask as a tuple, as its documentation has it, is an error of indices.
    "MaskedMTKNPT": lambda a, rng: MaskedMTKNPT(
        a,
        0.25 * FS,
        300,
        0.0,
        tdamp=25 * FS,
        pdamp=250 * FS,
        mask=np.array([True, False, True]),
    ),
    "MelchionnaNPT": lambda a, rng: MelchionnaNPT(
        a, 0.25 * FS, temperature_K=300, externalstress=0.0, ttime=25 * FS, pfactor=1.0
    ),
    "NPTBerendsen": lambda a, rng: NPTBerendsen(
        a, 0.25 * FS, temperature_K=300, pressure_au=0.0, compressibility_au=0.1
    ),
    "Inhomogeneous_NPTBerendsen": lambda a, rng: Inhomogeneous_NPTBerendsen(
        a, 0.25 * FS, temperature_K=300, pressure_au=0.0, compressibility_au=0.1
    ),
    "LangevinBAOAB": lambda a, rng: LangevinBAOAB(
        a,
        0.25 * FS,
        temperature_K=300,
        T_tau=50 * FS,
        externalstress=0.0,
        P_tau=100 * FS,
        P_mass=100.0,
        rng=rng,
    ),
}


def test_no_integrator_of_ase_is_left_out():
    apart = {"MolecularDynamics", "SwitchLangevin", "NPT"}  # NPT is MelchionnaNPT
    found = classes_in(ase.md, MolecularDynamics)
    assert found - apart == MOLECULAR.keys() | PERIODIC.keys()


@pytest.mark.parametrize("name", MOLECULAR)
def test_integrators_move_a_molecule_with_one_calculation_a_step(name, molecule):
    rng = np.random.RandomState(0) if name == "Andersen" else np.random.default_rng(0)
    thermalize_momenta(molecule, 300, rng=np.random.default_rng(1))
    dynamics = MOLECULAR[name](molecule, rng)
    watch = Watch(molecule, dynamics)
    dynamics.attach(FixRotation(molecule), interval=5)
    dynamics.run(12)
    assert molecule.calc.asked <= 13
    watch.check(13)


@pytest.mark.parametrize("name", PERIODIC)
def test_integrators_of_cells_are_told_the_stress(name):
    solid = crystal()
    thermalize_momenta(solid, 300, rng=np.random.default_rng(1))
    cell = solid.cell.array.copy()
    dynamics = PERIODIC[name](solid, np.random.default_rng(0))
    watch = Watch(solid, dynamics)
    dynamics.run(8)
    assert solid.calc.asked <= 17  # some move the cell after the atoms
    assert np.abs(solid.cell.array - cell).max() > 1e-9
    watch.check(9)


def test_switching_leads_from_one_state_to_the_other():
    """The atoms carry no state: each of the two calculators has its own."""
    atoms = Atoms("CHH", methylene(1.1, 115.0, 1).positions)
    one, three = (mlff.MLFFCalculator(shipped(), charge=0, spin=s) for s in (1, 3))
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(1))
    options = {"temperature_K": 300, "friction": 0.01 / FS, "n_eq": 3, "n_switch": 8}
    options |= {"fixcm": False}
    switch = SwitchLangevin(
        atoms, one, three, 0.25 * FS, rng=np.random.default_rng(0), **options
    )
    frames = []
    switch.attach(lambda: frames.append(atoms.copy()))
    switch.run()
    last = switch.path_data[-1]
    for column, spin in ((2, 1), (3, 3)):
        (fresh,) = mlff.predict(shipped(), frames[-1:], spin=spin, charge=0)
        assert last[column] == pytest.approx(fresh["energy"], abs=1e-9)
    assert last[2] - last[3] > 0.1


def test_a_contour_is_followed_at_its_energy(molecule):
    BFGS(molecule, logfile=None).run(fmax=0.01)
    target = molecule.get_potential_energy() + 0.1
    contour = ContourExploration(
        molecule, maxstep=0.05, energy_target=target, rng=np.random.RandomState(0)
    )
    watch = Watch(molecule, contour)
    contour.run(20)
    watch.check(20)
    assert abs(watch.told[-1][0] - target) < 0.02


# ase.constraints and ase.io


def distance(atoms):
    return [atoms.get_distance(0, 1)]


#: Constraint, and what it keeps.
CONSTRAINTS = {
    "FixAtoms": (FixAtoms([1]), lambda a: a.positions[1]),
    "FixBondLength": (FixBondLength(0, 1), distance),
    "FixBondLengths": (FixBondLengths([[0, 1]]), distance),
    "FixCartesian": (
        FixCartesian([1], [True, True, False]),
        lambda a: a.positions[1][:2],
    ),
    "FixCom": (FixCom(), lambda a: a.get_center_of_mass()),
    "FixedLine": (FixedLine([1], [0, 0, 1]), lambda a: a.positions[1][:2]),
    "FixedPlane": (FixedPlane([1], [0, 0, 1]), lambda a: a.positions[1][2:]),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints_hold_in_dynamics_and_relaxation(name, molecule):
    constraint, kept = CONSTRAINTS[name]
    molecule.set_constraint(constraint)
    before = np.array(kept(molecule))
    relaxation = BFGS(molecule, logfile=None)
    watch = Watch(molecule, relaxation)
    assert relaxation.run(fmax=0.05, steps=30)
    thermalize_momenta(molecule, 300, rng=np.random.default_rng(0))
    VelocityVerlet(molecule, 0.25 * FS).run(5)
    np.testing.assert_allclose(kept(molecule), before, atol=1e-6)
    watch.check(2)


def test_angles_and_springs_may_be_held(molecule):
    spring = Hookean(1, 2, k=20.0, rt=1.2)
    molecule.set_constraint([FixInternals(angles_deg=[[120.0, [1, 0, 2]]]), spring])
    molecule.set_angle(1, 0, 2, 120.0)
    free = molecule.copy()
    free.set_constraint()
    counted(free)
    stretch = molecule.get_distance(1, 2) - 1.2
    plus = molecule.get_potential_energy() - free.get_potential_energy()
    assert plus == pytest.approx(10.0 * stretch**2)
    FIRE(molecule, logfile=None).run(fmax=0.05, steps=30)
    assert molecule.get_angle(1, 0, 2) == pytest.approx(120.0, abs=1e-3)


@pytest.mark.parametrize("name", ["run.traj", "run.extxyz", "run.db"])
def test_files_keep_results_and_states(name, molecule):
    told = []
    for index in range(2):
        molecule.rattle(0.01, seed=index)
        told.append(molecule.get_properties(["energy", "forces"]))
        ase.io.write(f"{index}{name}", molecule)
    for index in range(2):
        atoms = ase.io.read(f"{index}{name}")
        assert atoms.get_potential_energy() == pytest.approx(told[index]["energy"])
        np.testing.assert_allclose(atoms.get_forces(), told[index]["forces"], atol=1e-7)
        again = atoms.copy()
        counted(again)
        assert again.get_potential_energy() == pytest.approx(told[index]["energy"])


def test_a_trajectory_of_a_run_continues_in_the_same_state(molecule):
    thermalize_momenta(molecule, 300, rng=np.random.default_rng(0))
    with VelocityVerlet(molecule, 0.25 * FS, trajectory="md.traj") as dynamics:
        dynamics.run(6)
    frames = ase.io.read("md.traj", ":")
    resumed = frames[3].copy()
    counted(resumed)
    VelocityVerlet(resumed, 0.25 * FS).run(3)
    assert resumed.get_total_energy() == pytest.approx(molecule.get_total_energy())
    np.testing.assert_allclose(resumed.positions, molecule.positions, atol=1e-10)
