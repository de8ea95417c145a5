"""Crossing points by other ways: calculators, a scan with root finding, and DFT."""

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.optimize import brentq, minimize_scalar

import mlff
from mlff.crossing import CrossingOptions, find_crossing

STATES = [(0, 1), (0, 3)]
QUIET = CrossingOptions(progress=False, minima=False)


def methylene(bond, angle):
    radians = np.deg2rad(angle)
    other = [bond * np.cos(radians), bond * np.sin(radians), 0.0]
    return Atoms("CH2", [[0.0, 0.0, 0.0], [bond, 0.0, 0.0], other])


@pytest.fixture(scope="module")
def potential():
    return mlff.load("ch2", dtype=torch.float64)


def energies(potential, atoms):
    frames = [mlff.set_state(atoms.copy(), *state) for state in STATES]
    return [one["energy"] for one in mlff.predict(potential, frames, ("energy",))]


@pytest.mark.parametrize("constraints", [(), ["bond 0 1 1.0", "bond 0 2 1.0"]])
def test_a_potential_and_its_calculator_find_one_point(potential, constraints):
    start = methylene(1.1, 115.0)
    options = {"constraints": constraints, "fmax": 1e-6, "options": QUIET}
    batched = find_crossing(start, potential, STATES, **options)
    calculator = mlff.MLFFCalculator(potential)
    single = find_crossing(start, calculator, STATES, **options)
    assert batched.converged
    assert single.converged
    np.testing.assert_allclose(
        single.atoms.positions, batched.atoms.positions, atol=1e-5
    )
    assert single.energies == pytest.approx(batched.energies, abs=1e-8)


def test_a_scan_with_root_finding_finds_the_same_point(potential):
    """Of equal bonds: the angle without a gap, then the bond of the lowest energy."""

    def angle(bond):
        def gap(degrees):
            singlet, triplet = energies(potential, methylene(bond, degrees))
            return singlet - triplet

        return brentq(gap, 90.0, 120.0, xtol=1e-7)

    best = minimize_scalar(
        lambda bond: np.mean(energies(potential, methylene(bond, angle(bond)))),
        bounds=(1.05, 1.2),
        method="bounded",
        options={"xatol": 1e-6},
    )
    found = find_crossing(
        methylene(1.0, 130.0), potential, STATES, fmax=1e-5, options=QUIET
    )
    for hydrogen in (1, 2):
        assert found.atoms.get_distance(0, hydrogen) == pytest.approx(best.x, abs=1e-4)
    assert found.atoms.get_angle(1, 0, 2) == pytest.approx(angle(best.x), abs=0.01)
    held = ["bond 0 1 1.0", "bond 0 2 1.0"]
    found = find_crossing(
        methylene(1.1, 130.0), potential, STATES, held, fmax=1e-5, options=QUIET
    )
    assert found.atoms.get_angle(1, 0, 2) == pytest.approx(angle(1.0), abs=0.01)


def test_minima_are_those_of_a_relaxation(potential):
    options = CrossingOptions(progress=False)
    found = find_crossing(
        methylene(1.1, 115.0), potential, STATES, fmax=1e-4, options=options
    )
    starts = [mlff.set_state(methylene(1.1, 115.0), *state) for state in STATES]
    quiet = mlff.RelaxOptions(progress=False)
    relaxed = mlff.relax(starts, potential, 1e-4, options=quiet)
    for minimum, expected in zip(found.minima, relaxed, strict=True):
        assert minimum.converged
        assert minimum.energy == pytest.approx(expected.energy, abs=1e-6)
        assert minimum.atoms.get_angle(1, 0, 2) == pytest.approx(
            expected.atoms.get_angle(1, 0, 2), abs=0.02
        )


@pytest.mark.pyscf
def test_dft_crosses_where_its_labels_agree():
    pytest.importorskip("pyscf")
    settings = mlff.dft.DFTSettings(xc="hf", basis="sto-3g", stability=False)
    found = find_crossing(
        methylene(1.1, 110.0), mlff.DFTCalculator(settings), STATES, options=QUIET
    )
    assert found.converged
    labels = [
        mlff.dft.label(mlff.set_state(found.atoms.copy(), *state), settings)
        for state in STATES
    ]
    both = [one.info["REF_energy"] for one in labels]
    assert both == pytest.approx(found.energies, abs=1e-7)
    assert abs(both[0] - both[1]) < 1e-4
    # What is left of the mean force is along the difference: nothing across it.
    forces = [one.arrays["REF_forces"] for one in labels]
    across = (forces[0] - forces[1]) / np.linalg.norm(forces[0] - forces[1])
    mean = 0.5 * (forces[0] + forces[1])
    left = mean - (mean * across).sum() * across
    assert np.linalg.norm(left, axis=1).max() < 0.002
