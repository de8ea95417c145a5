"""Optimizers, vibrations and reaction paths of ASE work with the calculator."""

import ase.io
import ase.optimize
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixInternals
from ase.filters import FrechetCellFilter
from ase.mep import NEB, AutoNEB, DimerControl, DyNEB, MinModeAtoms, MinModeTranslate
from ase.mep.neb import NEBOptimizer, NEBTools
from ase.optimize import BFGS, FIRE
from ase.optimize.basin import BasinHopping
from ase.optimize.bfgs import oldBFGS
from ase.optimize.climbfixinternals import BFGSClimbFixInternals
from ase.optimize.minimahopping import MinimaHopping
from ase.optimize.precon import Exp, PreconFIRE, PreconLBFGS, PreconODE12r
from ase.optimize.sciopt import SciPyFmin, SciPyFminBFGS, SciPyFminCG, SciPyFminPowell
from ase.thermochemistry import IdealGasThermo
from ase.vibrations import Infrared, Vibrations, VibrationsData
from ase.vibrations.franck_condon import FranckCondon
from ase_cases import ANGLES, Watch, classes_in, counted, crystal, near_minimum, shipped

import mlff
from mlff.demo import methylene
from mlff.neighbors import neighbor_list


@pytest.fixture(params=[1, 3], ids=["singlet", "triplet"])
def molecule(request, tmp_path, monkeypatch):
    """CH2 near its minimum; what writes files writes them into ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return near_minimum(request.param)


# ase.optimize


def precon():
    return Exp(A=1.0, r_cut=3.0, r_NN=1.1, mu=10.0)


#: Reach the minimum.
OPTIMIZERS = {
    **{name: getattr(ase.optimize, name) for name in ase.optimize.__all__},
    "SciPyFminBFGS": SciPyFminBFGS,
    "SciPyFminCG": SciPyFminCG,
    "MDMin": lambda a, **kw: ase.optimize.MDMin(a, dt=0.1, **kw),
    "PreconFIRE": lambda a, **kw: PreconFIRE(a, precon=precon(), **kw),
    "PreconLBFGS": lambda a, **kw: PreconLBFGS(a, precon=precon(), **kw),
    "PreconODE12r": lambda a, **kw: PreconODE12r(a, precon=precon(), **kw),
}
for name in ("RestartError", "QuasiNewton", "CellAwareBFGS"):
    del OPTIMIZERS[name]  # no optimizer; another name of BFGSLineSearch; of crystals

#: Tested in other ways below, or no optimizers of their own.
OTHERS = {
    "Optimizer",
    "BFGSClimbFixInternals",
    "CellAwareBFGS",
    "SciPyOptimizer",
    "SciPyGradientlessOptimizer",
    "SciPyFmin",
    "SciPyFminPowell",
    "oldBFGS",
}


def test_no_optimizer_of_ase_is_left_out():
    found = classes_in(ase.optimize, ase.optimize.optimize.Optimizer)
    assert found - OTHERS == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_find_the_minimum_of_the_state(name, molecule):
    optimizer = OPTIMIZERS[name](molecule, logfile=None)
    watch = Watch(molecule, optimizer)
    assert optimizer.run(fmax=0.02, steps=100)
    assert np.linalg.norm(molecule.get_forces(), axis=1).max() < 0.02
    watch.check(3)
    angle = ANGLES[molecule.info["spin"]]
    assert molecule.get_angle(1, 0, 2) == pytest.approx(angle, abs=1.0)


@pytest.mark.xfail(
    strict=True, raises=ValueError, reason="ASE 3.29 adds a matrix to a vector there"
)
def test_the_old_optimizer_runs(molecule):
    oldBFGS(molecule, logfile=None).run(fmax=0.02, steps=20)


@pytest.mark.parametrize("kind", [SciPyFmin, SciPyFminPowell])
def test_optimizers_without_gradients_go_down(kind, molecule):
    start = molecule.get_potential_energy()
    optimizer = kind(molecule, logfile=None)
    watch = Watch(molecule, optimizer)
    optimizer.fmax = 0.05  # run() looks at it in the end, and does not set it
    optimizer.run(ftol=1e-3, xtol=1e-2, steps=60 if kind is SciPyFmin else 1)
    watch.check(2)
    assert min(energy for energy, _, _ in watch.told) < start - 0.01
    assert molecule.calc.asked > 20


def test_climbing_raises_the_angle_along_the_path(molecule):
    BFGS(molecule, logfile=None).run(fmax=0.02)
    start = molecule.get_angle(1, 0, 2)
    fixed = FixInternals(angles_deg=[[start + 5.0, [1, 0, 2]]])
    molecule.set_angle(1, 0, 2, start + 5.0)
    molecule.set_constraint(fixed)
    climb = BFGSClimbFixInternals(
        molecule,
        logfile=None,
        climb_coordinate=[1, 0, 2],
        optB_kwargs={"logfile": None, "trajectory": None},
        maxstep=0.05,
    )
    watch = Watch(molecule, climb)
    climb.run(fmax=0.01, steps=4)
    watch.check(5)
    energies = [energy for energy, _, _ in watch.told]
    assert np.all(np.diff(energies) > 0)
    assert molecule.get_angle(1, 0, 2) > start + 6.0


def test_a_cell_relaxes_with_its_atoms():
    solid = crystal()
    cell_and_atoms = FrechetCellFilter(solid, exp_cell_factor=1.0)
    optimizer = ase.optimize.CellAwareBFGS(cell_and_atoms, logfile=None)
    watch = Watch(solid, optimizer)
    start, cell = solid.get_potential_energy(), solid.cell.array.copy()
    optimizer.run(fmax=1e-3, steps=5)
    watch.check(3)
    assert solid.get_potential_energy() < start
    assert np.abs(solid.cell.array - cell).max() > 1e-4


def test_basins_are_hopped(molecule):
    np.random.seed(0)  # ASE draws from the global generator
    options = {"logfile": None, "optimizer_logfile": None}
    with BasinHopping(molecule, fmax=0.05, dr=0.1, **options) as hopping:
        hopping.run(2)
        energy, lowest = hopping.get_minimum()
    spin = molecule.info["spin"]
    assert lowest.get_angle(1, 0, 2) == pytest.approx(ANGLES[spin], abs=2.0)
    (fresh,) = mlff.predict(shipped(), [lowest], ("energy",), spin=spin)
    assert energy == pytest.approx(fresh["energy"], abs=1e-9)
    for atoms in ase.io.read("local_minima.traj", ":"):
        assert atoms.info["spin"] == spin
        assert atoms.get_potential_energy() >= energy


def test_minima_are_hopped(molecule):
    MinimaHopping(molecule, T0=300.0, Ediff0=0.5, rng=np.random.RandomState(0))(
        totalsteps=2
    )
    minima = ase.io.read("minima.traj", ":")
    for atoms in minima:
        (fresh,) = mlff.predict(shipped(), [atoms], ("energy",))
        assert atoms.get_potential_energy() == pytest.approx(fresh["energy"], abs=1e-9)
    spin = molecule.info["spin"]
    assert minima[0].get_angle(1, 0, 2) == pytest.approx(ANGLES[spin], abs=2.0)


# ase.vibrations


def hessian(atoms):
    """Second derivatives of the energy by autograd, (9, 9), eV/Å²."""
    batch = mlff.AtomsBatch.from_atoms([atoms])
    positions = batch.positions.requires_grad_(True)
    edges = neighbor_list(batch, shipped().cutoff)
    out = shipped()(batch, edges, ("forces",), create_graph=True)
    rows = [
        torch.autograd.grad(-force, positions, retain_graph=True)[0].ravel()
        for force in out["forces"].ravel()
    ]
    return torch.stack(rows).numpy()


@pytest.fixture
def relaxed(molecule):
    BFGS(molecule, logfile=None).run(fmax=1e-5)
    molecule.calc.asked = 0
    return molecule


def test_vibrations_are_those_of_the_exact_hessian(relaxed):
    vibrations = Vibrations(relaxed, delta=0.005)
    vibrations.run()
    assert relaxed.calc.asked <= 19
    found = vibrations.get_frequencies()
    exact = VibrationsData.from_2d(relaxed, hessian(relaxed))
    expected = exact.get_frequencies()
    np.testing.assert_allclose(found[6:].real, expected[6:].real, atol=1.0)
    assert np.abs(found[:6]).max() < 20.0  # it neither moves nor turns
    assert np.abs(found[6:].imag).max() == 0.0  # a minimum
    bend, *stretches = found[6:].real
    assert 900 < bend < 1500
    assert all(2700 < stretch < 3400 for stretch in stretches)


def test_free_energies_follow_from_vibrations(relaxed):
    vibrations = Vibrations(relaxed)
    vibrations.run()
    spin = relaxed.info["spin"]
    gas = IdealGasThermo(
        vibrations.get_energies(),
        "nonlinear",
        potentialenergy=relaxed.get_potential_energy(),
        atoms=relaxed,
        symmetrynumber=2,
        spin=(spin - 1) / 2,  # ASE's is S, not 2S+1
    )
    entropy = gas.get_entropy(298.15, 101325.0, verbose=False) / (units.kJ / units.mol)
    # NIST: 194.9 J/mol/K of the triplet, 189.2 of the singlet.
    assert 1e3 * entropy == pytest.approx({1: 189.2, 3: 194.9}[spin], abs=2.0)


def test_a_change_of_state_excites_vibrations(relaxed):
    Vibrations(relaxed, name="vib").run()
    spin = relaxed.info["spin"]
    (other,) = mlff.predict(shipped(), [relaxed_in(relaxed, 4 - spin)])
    bonds = FranckCondon(relaxed, "vib", minfreq=100.0)
    factors, frequencies = bonds.get_Huang_Rhys_factors(other["forces"])
    assert len(factors) == 3
    assert frequencies[factors.argmax()] < 1500  # the angle is what differs
    assert factors.max() > 1.0


def relaxed_in(atoms, spin):
    return mlff.set_state(Atoms(atoms.numbers, atoms.positions), charge=0, spin=spin)


def test_infrared_says_that_there_is_no_dipole(molecule):
    with pytest.raises(PropertyNotImplementedError, match="dipole"):
        Infrared(molecule).run()


# ase.mep


@pytest.fixture
def ends(molecule):
    """Both minima of CH2 between which only the straight molecule lies."""
    spin = molecule.info["spin"]
    atoms = methylene(1.1, ANGLES[spin], spin)
    atoms.calc = molecule.calc
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    mirrored = atoms.copy()
    axis = atoms.positions[2] - atoms.positions[1]
    axis /= np.linalg.norm(axis)
    away = atoms.positions[0] - atoms.positions[1]
    mirrored.positions[0] -= 2 * (away - (away @ axis) * axis)
    counted(mirrored)
    return atoms, mirrored


def path(ends, n_images=5):
    images = [ends[0], *(ends[0].copy() for _ in range(n_images - 2)), ends[1]]
    for image in images[1:-1]:
        counted(image)
    return images


def barrier(ends):
    """Energy of the straight molecule above the minimum, eV."""
    straight = methylene(1.07, 180.0, ends[0].info["spin"])
    counted(straight)
    BFGS(straight, logfile=None).run(fmax=1e-3)
    assert straight.get_angle(1, 0, 2) > 179.9
    return straight.get_potential_energy() - ends[0].get_potential_energy()


def check_path(images, ends):
    told = [image.get_potential_energy() for image in images]
    fresh = mlff.predict(shipped(), images, ("energy",))
    np.testing.assert_allclose(told, [f["energy"] for f in fresh], atol=1e-9)
    np.testing.assert_allclose(told, told[::-1], atol=5e-3)
    assert np.argmax(told) == len(images) // 2
    assert max(told) - told[0] == pytest.approx(barrier(ends), abs=0.01)


# ASE warns of a default that its own tools do not set.
unset_method = pytest.mark.filterwarnings("ignore:The default method has changed")


@unset_method
@pytest.mark.parametrize(
    "method", ["aseneb", "improvedtangent", "eb", "spline", "string"]
)
def test_bands_lead_over_the_straight_molecule(method, ends):
    images = path(ends)
    band = NEB(images, method=method)
    band.interpolate()
    FIRE(band, logfile=None).run(fmax=0.1, steps=25)
    check_path(images, ends)
    tools = NEBTools(images)
    fitted, reaction = tools.get_barrier()
    assert fitted == pytest.approx(
        max(i.get_potential_energy() for i in images)
        - images[0].get_potential_energy(),
        abs=0.02,
    )
    assert reaction == pytest.approx(0.0, abs=1e-3)
    assert tools.get_fmax() < 1.0


def test_a_climbing_band_may_share_one_calculator(ends):
    images = path(ends)
    for image in images:
        image.calc = ends[0].calc
    band = NEB(
        images, method="improvedtangent", climb=True, allow_shared_calculator=True
    )
    band.interpolate()
    NEBOptimizer(band, logfile=None).run(fmax=0.05, steps=15)
    check_path(images, ends)


def test_images_relax_one_by_one(ends):
    images = path(ends)
    band = DyNEB(images, fmax=0.1, dynamic_relaxation=True, method="improvedtangent")
    band.interpolate()
    FIRE(band, logfile=None).run(fmax=0.1, steps=30)
    check_path(images, ends)


@unset_method
def test_images_are_added_where_they_are_needed(ends):
    for index, image in enumerate(ends):
        image.get_potential_energy()  # is written, too
        ase.io.write(f"band{index:03d}.traj", image)

    def attach(images):
        for image in images:
            counted(image)

    band = AutoNEB(
        attach,
        "band",
        n_simul=1,
        n_max=5,
        parallel=False,
        maxsteps=10,
        fmax=0.1,
        interpolate_method="linear",  # the distances of both ends are the same
    )
    images = band.run()
    assert len(images) == 5
    check_path(images, ends)


def test_dimers_climb_to_the_straight_molecule(ends):
    atoms = methylene(1.08, 165.0, ends[0].info["spin"])
    counted(atoms)
    control = DimerControl(
        logfile=None,
        eigenmode_logfile=None,
        initial_eigenmode_method="displacement",
        displacement_method="vector",
    )
    dimer = MinModeAtoms(atoms, control)
    bend = [[0, 0.02, 0], [0, -0.1, 0], [0, -0.1, 0]]
    dimer.displace(displacement_vector=bend, mask=[True] * 3)
    search = MinModeTranslate(dimer, logfile=None)
    search.run(fmax=0.05, steps=30)
    height = atoms.get_potential_energy() - ends[0].get_potential_energy()
    assert height == pytest.approx(barrier(ends), abs=0.01)
    assert atoms.get_angle(1, 0, 2) > 175.0
