# %% [markdown]
# # The calculator: singlet and triplet CH2 in ASE
#
# The shipped model `ch2` carries two electronic states of methylene. Everything that
# ASE does with a calculator works with it. Charge and spin travel with the molecule:
# `atoms.info["charge"]` and `atoms.info["spin"]`, where spin is the multiplicity 2S+1.

# %%
import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import mlff

ch2 = Atoms("CHH", positions=[[0, 0, 0], [1.1, 0, 0], [-0.4, 1.0, 0]])
mlff.set_state(ch2, charge=0, spin=3)
ch2.calc = mlff.MLFFCalculator("ch2")
print(f"triplet: {ch2.get_potential_energy():.4f} eV")

# %% [markdown]
# Changing the state changes the energy; nothing stale is returned.

# %%
mlff.set_state(ch2, spin=1)
print(f"singlet: {ch2.get_potential_energy():.4f} eV, used {ch2.calc.state_used}")

# %% [markdown]
# A state that the electrons exclude is an error, not a number.

# %%
try:
    mlff.set_state(ch2, charge=1, spin=1)
except mlff.MlffError as error:
    print(error)

# %% [markdown]
# ## Relax both states, compare
# The triplet is the ground state; the gap is measured from relaxed to relaxed.

# %%
energies = {}
for name, spin in (("singlet", 1), ("triplet", 3)):
    atoms = ch2.copy()
    mlff.set_state(atoms, spin=spin)
    atoms.calc = mlff.MLFFCalculator("ch2")
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    energies[name] = atoms.get_potential_energy()
    print(
        f"{name}: C-H {atoms.get_distance(0, 1):.4f} Å, "
        f"H-C-H {atoms.get_angle(1, 0, 2):.2f}°"
    )
gap = energies["singlet"] - energies["triplet"]
print(f"adiabatic gap {gap:.4f} eV")
assert 0.3 < gap < 0.8

# %% [markdown]
# ## Many geometries in one call
# `predict` puts any number of molecules, each with its own state, into one batch.

# %%
frames = []
for angle in np.radians(np.linspace(90, 140, 51)):
    for spin in (1, 3):
        far = [1.1 * np.cos(angle), 1.1 * np.sin(angle), 0]
        frame = Atoms("CHH", positions=[[0, 0, 0], [1.1, 0, 0], far])
        frames.append(mlff.set_state(frame, charge=0, spin=spin))
potential = mlff.load("ch2")
scan = np.array([out["energy"] for out in mlff.predict(potential, frames)])
singlet, triplet = scan.reshape(-1, 2).T
crossing = np.linspace(90, 140, 51)[np.argmin(np.abs(singlet - triplet))]
print(f"at 1.10 Å the two surfaces cross near {crossing:.0f}°")
assert 90 < crossing < 110

# %% [markdown]
# ## Dynamics at constant energy
# Velocity Verlet for 50 fs; the total energy stays where it was.

# %%
atoms.set_momenta(np.random.default_rng(0).normal(0, 0.1, (3, 3)))
before = atoms.get_total_energy()
VelocityVerlet(atoms, 0.25 * units.fs).run(200)
after = atoms.get_total_energy()
print(f"total energy moved by {1000 * (after - before):.3f} meV")
assert abs(after - before) < 5e-3
