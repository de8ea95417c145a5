"""Scans against the calculator and against ASE's constrained relaxation, one by one."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixInternals
from ase.optimize import BFGS
from moving import random_potential

import mlff
from mlff.coordinates import Coordinate, jacobian, residuals, set_coordinate
from mlff.demo import methylene
from mlff.errors import InputError
from mlff.relaxation import RelaxOptions
from mlff.scanning import ScanOptions, scan
from mlff.state import set_state

QUIET = ScanOptions(progress=False)
STATES = [(0, 1), (0, 3)]
MAP = ["angle 1 0 2 90 150 4", "bond 0 1 + bond 0 2 1.0 1.25 3"]


@pytest.fixture(scope="module")
def ch2() -> mlff.Potential:
    return mlff.load("ch2", dtype=torch.float64)


@pytest.fixture(scope="module")
def anything() -> mlff.Potential:
    return random_potential()


def test_a_rigid_scan_is_what_the_calculator_says_point_by_point(ch2):
    start = methylene(1.13, 111, 1)
    options = dataclasses.replace(QUIET, forces=True)
    surface = scan(start, ch2, MAP, STATES, options=options)
    assert surface.energies.shape == (2, 4, 3)
    for k, (charge, spin) in enumerate(STATES):
        for i, angle in enumerate(np.linspace(90, 150, 4)):
            for j, bond in enumerate(np.linspace(1.0, 1.25, 3)):
                atoms = set_state(methylene(bond, angle, 1), charge, spin)
                atoms.calc = mlff.MLFFCalculator(ch2)
                energy = atoms.get_potential_energy()
                assert surface.energies[k, i, j] == pytest.approx(energy, abs=1e-9)
                forces = np.linalg.norm(atoms.get_forces(), axis=1)
                found = np.linalg.norm(surface.forces[k, i, j], axis=1)
                np.testing.assert_allclose(found, forces, atol=1e-8)
    np.testing.assert_allclose(
        surface.gap(*STATES), surface.energies[0] - surface.energies[1]
    )


def test_a_grid_cut_into_parts_gives_the_same(ch2, monkeypatch):
    from mlff.scanning import energies, grid

    whole = scan(methylene(1.13, 111, 1), ch2, MAP, STATES, options=QUIET)
    monkeypatch.setattr(energies, "_ATOMS_AT_ONCE", 15)
    monkeypatch.setattr(grid, "_TOGETHER", 5)
    parts = scan(methylene(1.13, 111, 1), ch2, MAP, STATES, options=QUIET)
    np.testing.assert_allclose(parts.energies, whole.energies, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(parts.outside, whole.outside)


def test_what_is_outside_the_region_of_training_is_marked(ch2):
    spec = ["angle 1 0 2 90 180 10", "bond 0 1 + bond 0 2 1.1 1.2 2"]
    surface = scan(methylene(1.1, 111, 1), ch2, spec, STATES, options=QUIET)
    angles = np.linspace(90, 180, 10)
    # Trained on 90 … 140°, and 10° of margin.
    assert surface.outside[:, angles < 149].sum() == 0
    assert surface.outside[:, angles > 151].all()


@pytest.mark.parametrize("spin", [1, 3])
def test_a_relaxed_scan_is_what_ase_finds_with_fixed_internals(ch2, spin):
    options = dataclasses.replace(QUIET, fmax=1e-4)
    start = methylene(1.2, 100, 1)
    surface = scan(
        start, ch2, ["angle 1 0 2 95 145 6"], STATES, relax=True, options=options
    )
    assert surface.converged.all()
    state = (0, spin)
    for i in (0, 2, 5):
        angle = surface.axes[0].values[i, 0]
        atoms = set_state(set_coordinate(start, "angle 1 0 2", angle), *state)
        atoms.calc = mlff.MLFFCalculator(ch2)
        # At ASE's strictest: its constraint is held by iteration.
        atoms.set_constraint(
            FixInternals(angles_deg=[[angle, [1, 0, 2]]], epsilon=1e-10)
        )
        BFGS(atoms, logfile=None).run(fmax=1e-4, steps=100)
        energy = surface.energy(state)[i]
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=2e-8)
        ours = surface.positions[STATES.index(state)][i]
        for pair in ((0, 1), (0, 2), (1, 2)):
            there = np.linalg.norm(ours[pair[0]] - ours[pair[1]])
            assert there == pytest.approx(atoms.get_distance(*pair), abs=1e-4)


def test_each_state_relaxes_on_its_own_surface(ch2):
    surface = scan(
        methylene(1.2, 100, 1),
        ch2,
        ["angle 1 0 2 95 145 6"],
        STATES,
        relax=True,
        options=QUIET,
    )
    lengths = np.linalg.norm(
        surface.positions[:, :, 1] - surface.positions[:, :, 0], axis=-1
    )
    assert (lengths[0] - lengths[1] > 0.004).all()
    rigid = scan(
        methylene(1.2, 100, 1), ch2, ["angle 1 0 2 95 145 6"], STATES, options=QUIET
    )
    assert (surface.energies < rigid.energies - 0.01).all()


def ethane() -> Atoms:
    atoms = molecule("C2H6")
    atoms.rattle(0.03, seed=1)
    return set_state(atoms, 0, 1)


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_what_is_scanned_is_held_exactly_while_all_else_relaxes(anything, optimizer):
    spec = ["dihedral 2 0 1 5 -60 60 2", "bond 0 1 1.45 1.6 2", "angle 2 0 1 105 115 2"]
    every = [Coordinate.of(t.rsplit(maxsplit=3)[0]) for t in spec]
    options = ScanOptions(progress=False, fmax=1e-3, optimizer=optimizer, forces=True)
    surface = scan(
        ethane(), anything, spec, [(0, 1), (1, 2)], relax=True, options=options
    )
    assert surface.converged.any(axis=(1, 2, 3)).all()
    off = residuals(surface.positions, every, surface.values)
    assert np.abs(off[..., 1]).max() < 1e-6
    assert np.abs(off).max() < 1e-4
    # What is left of the forces pulls at what is held, and at nothing else.
    pulls = []
    for at in map(tuple, np.argwhere(surface.converged)):
        left = surface.forces[at].ravel()
        rows = jacobian(surface.positions[at], every).reshape(3, -1)
        shares, *_ = np.linalg.lstsq(rows.T, left, rcond=None)
        rest = (left - rows.T @ shares).reshape(8, 3)
        assert np.linalg.norm(rest, axis=1).max() < 1e-3 + 1e-6
        pulls.append(np.linalg.norm(left))
    assert min(pulls) > 2e-3
    rigid = scan(ethane(), anything, spec, [(0, 1), (1, 2)], options=options)
    assert (surface.energies < rigid.energies - 1e-3).all()


def test_a_straight_angle_is_held_while_all_else_relaxes(anything):
    atoms = set_state(molecule("CH3OH"), 0, 1)
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    carbon = int(np.flatnonzero(atoms.numbers == 6)[0])
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    hydrogen = int(hydrogens[atoms.get_distances(oxygen, hydrogens).argmin()])
    axis = ("angle", carbon, oxygen, hydrogen, 120, 180, 4)
    options = dataclasses.replace(QUIET, fmax=0.02)
    surface = scan(atoms, anything, [axis], [(0, 1)], relax=True, options=options)
    one = [Coordinate("angle", axis[1:4])]
    off = residuals(surface.positions[0], one, surface.values)
    assert np.abs(off).max() < 1e-4
    assert surface.converged[0, -1]


def test_what_does_not_converge_is_marked_and_counts_for_nothing(ch2):
    options = dataclasses.replace(QUIET, max_steps=2, fmax=1e-3)
    surface = scan(
        methylene(1.3, 100, 1),
        ch2,
        ["angle 1 0 2 95 145 6"],
        STATES,
        relax=True,
        options=options,
    )
    lost = ~surface.converged
    assert lost.sum() >= 4
    assert (surface.remarks[lost] == "not converged in 2 steps").all()
    assert np.isfinite(surface.energies).all()
    assert np.isnan(surface.relative()[lost]).all()


def test_a_stopped_relaxed_scan_goes_on_to_the_same_surface(ch2, tmp_path, monkeypatch):
    from mlff.relaxation.framelog import FrameLog

    def run(name, **changes):
        options = ScanOptions(progress=False, out=tmp_path / name, **changes)
        spec = ["angle 1 0 2 95 145 6"]
        start = methylene(1.2, 100, 1)
        return scan(start, ch2, spec, STATES, relax=True, options=options)

    whole = run("whole.xyz")
    append, calls = FrameLog.append, []

    def stops(log, frames):
        append(log, frames)
        calls.append(len(frames))
        if sum(calls) >= 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FrameLog, "append", stops)
        with pytest.raises(KeyboardInterrupt):
            run("stopped.xyz")
    assert 0 < sum(calls) < 12
    again = run("stopped.xyz", resume=True)
    np.testing.assert_allclose(again.energies, whole.energies, rtol=0, atol=1e-7)
    with pytest.raises(InputError, match="exists"):
        run("stopped.xyz")


def test_relaxations_hold_coordinates_at_the_values_they_begin_with(ch2):
    systems = [methylene(1.2, angle, 3) for angle in (100, 120, 140, 160)]
    options = RelaxOptions(progress=False, hold=("angle 1 0 2",))
    for given, one in zip(
        systems, mlff.relax(systems, ch2, options=options), strict=True
    ):
        assert one.converged
        angle = given.get_angle(1, 0, 2)
        assert one.atoms.get_angle(1, 0, 2) == pytest.approx(angle, abs=1e-6)
        assert one.atoms.get_distance(0, 1) < 1.15


@pytest.mark.parametrize(
    ("hold", "told"),
    [
        ("angle 1 0 2", "must be a list"),
        (("angle 1 0 7",), "no atom 7"),
        (("bond 0 1", "bond 1 0"), "names bond 1-0 twice"),
        (("bond 0",), "2 indices"),
    ],
)
def test_what_relaxations_cannot_hold_is_refused(ch2, hold, told):
    systems = [methylene(1.2, 100, 3), methylene(1.2, 120, 1)]
    with pytest.raises((InputError, TypeError), match=told):
        mlff.relax(systems, ch2, options=RelaxOptions(progress=False, hold=hold))


def test_a_committee_gives_deviations_of_energies_and_gaps(anything):
    other = random_potential()
    with torch.no_grad():
        for weights in other.parameters():
            weights.mul_(1.01)
    committee = mlff.Committee([anything, other])
    start = set_state(molecule("H2O"), 0, 1)
    spec = ["angle 1 0 2 100 120 5"]
    surface = scan(start, committee, spec, STATES, options=QUIET)
    both = [scan(start, one, spec, STATES, options=QUIET) for one in (anything, other)]
    energies = np.stack([one.energies for one in both])
    np.testing.assert_allclose(surface.energies, energies.mean(0), atol=1e-9)
    np.testing.assert_allclose(surface.deviations, energies.std(0, ddof=1), atol=1e-9)
    gaps = np.stack([one.gap(*STATES) for one in both])
    found = surface.gap_deviation(*STATES)
    np.testing.assert_allclose(found, gaps.std(0, ddof=1), atol=1e-9)
    assert surface.deviations.min() > 1e-4
