"""What the tests of ASE's tools share: CH2, a crystal, and a record of what is told.

What a tool was told is compared, step by step, with the potential asked afresh and all
at once (:func:`mlff.predict`): a stale result, a lost charge or multiplicity, or a
constraint in the wrong place shows there.
"""

import importlib
import inspect
import pkgutil
from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms, units

import mlff
from mlff.demo import methylene
from mlff.potential import Potential, TrainingInfo

FS = units.fs

#: H-C-H angle (degrees) of the minima of the shipped model, by multiplicity.
ANGLES = {1: 100.2, 3: 134.4}


class Counted(mlff.MLFFCalculator):
    """Counts how often the network was asked."""

    asked = 0

    def calculate(self, *args, **kwargs):
        self.asked += 1
        super().calculate(*args, **kwargs)


@cache
def shipped():
    """The shipped potential in float64."""
    return mlff.load("ch2", dtype=torch.float64)


def near_minimum(spin):
    """CH2 off its minimum, turned anyhow."""
    atoms = methylene(1.13, ANGLES[spin] - 6.0, spin)
    atoms.rotate(40.0, (1.0, 2.0, 3.0))
    return counted(atoms)


def counted(atoms):
    """The same system with a calculator of its own."""
    atoms.calc = Counted(shipped())
    return atoms


@cache
def local_potential():
    """Random weights whose attention is local, so that crystals have a meaning."""
    model = {"name": "cmret", "n_features": 8, "n_layers": 1, "n_radial": 8}
    model |= {"scope": "local", "cutoff": 3.0}
    info = TrainingInfo(elements=(1, 6), states=((0, 1),))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = Potential.build(model, {}, info, torch.float64)
    return built.eval().requires_grad_(False)


def crystal():
    """A small periodic system."""
    atoms = Atoms(
        "C2H2",
        scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.1], [0.1, 0.5, 0.5], [0.5, 0, 0.6]],
        cell=[[3.4, 0, 0], [0, 3.5, 0], [0, 0, 3.6]],
        pbc=True,
    )
    atoms.calc = Counted(local_potential())
    return mlff.set_state(atoms, charge=0, spin=1)


class Watch:
    """What a tool was told, at every step that it reports."""

    def __init__(self, atoms, tool):
        self.atoms, self.frames, self.told = atoms, [], []
        tool.attach(self.look)

    def look(self):
        self.frames.append(self.atoms.copy())
        energy = self.atoms.get_potential_energy()
        forces = self.atoms.get_forces(apply_constraint=False)
        stress = self.atoms.get_stress(voigt=False) if self.atoms.pbc.any() else None
        self.told.append((energy, forces, stress))

    def check(self, n_frames):
        """Compare with the potential, asked about all frames at once."""
        assert len(self.frames) >= n_frames
        assert np.ptp([f.positions for f in self.frames], axis=0).max() > 1e-4
        names = ["energy", "forces", "stress"][: 3 if self.atoms.pbc.any() else 2]
        told = mlff.predict(self.atoms.calc.potential, self.frames, names)
        for (energy, forces, stress), fresh in zip(self.told, told, strict=True):
            assert energy == pytest.approx(fresh["energy"], abs=1e-9)
            np.testing.assert_allclose(forces, fresh["forces"], atol=1e-8)
            if stress is not None:
                np.testing.assert_allclose(stress, fresh["stress"], atol=1e-8)


def classes_in(package, base):
    """Every class of this kind that a package of ASE defines."""
    found = set()
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if ".test" not in module.name:
            members = vars(importlib.import_module(module.name)).values()
            found |= {m for m in members if inspect.isclass(m) and issubclass(m, base)}
    return {c.__name__ for c in found if c.__module__.startswith(package.__name__)}
