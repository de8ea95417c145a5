# %% [markdown]
# # Surfaces of two states, and where they cross
#
# Singlet and triplet CH2 on one network: a line and a map of both surfaces, the gap
# between them, the lowest point at which they cross, and how far a committee of
# networks would trust the answer. Every state of every point goes through the model in
# one batch.

# %%
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

import mlff
from mlff.dft import DFTSettings
from mlff.report.surfaces import plot_surface

work = Path(tempfile.mkdtemp())
print(f"pictures and tables go to {work}")
potential = mlff.load("ch2")
ch2 = Atoms("CHH", positions=[[0, 0, 0], [1.1, 0, 0], [-0.4, 1.0, 0]])
STATES = SINGLET, TRIPLET = (0, 1), (0, 3)  # (charge, multiplicity 2S+1)

# %% [markdown]
# ## A line
# An axis is a coordinate, its atoms, the first and the last value and the number of
# points. A rigid scan turns the bond as it is; a relaxed scan lets all else go
# downhill, each state on its own surface, all points at once.

# %%
angle = ("angle", 1, 0, 2, 90, 140, 26)
line = mlff.scan(ch2, potential, [angle], STATES, relax=True)
for state in STATES:
    lowest = line.minimum(state)
    print(f"{state}: {lowest.energy:.4f} eV at {lowest.values[0]:.1f}°")
# Each state is relaxed on its own: this is no common geometry, see below.
print("the curves cross at", [f"{p.values[0]:.2f}°" for p in line.crossings(*STATES)])
assert line.good.all()

# %% [markdown]
# ## A map
# Coordinates in a list move together: here both bonds. `gap(a, b)` is E(a) − E(b) on
# the grid; where the sign changes, the ground state does. Points outside the region
# that the network has seen are marked, not hidden: energies there mean little.

# %%
bonds = [("bond", 0, 1, 0.95, 1.25, 31), ("bond", 0, 2, 0.95, 1.25, 31)]
surface = mlff.scan(ch2, potential, [bonds, ("angle", 1, 0, 2, 90, 145, 34)], STATES)
gap = surface.gap(SINGLET, TRIPLET)
print(f"{gap.shape} points, singlet − triplet {gap.min():.2f} … {gap.max():.2f} eV")
print(f"{int(surface.outside.sum())} of {surface.outside.size} outside of training")
surface.write_csv(work / "map.csv")
plot_surface(surface, work / "map.png")

# %% [markdown]
# ## The lowest crossing
# A spin-forbidden step passes near the minimum of the seam. The search keeps the gap at
# zero and goes downhill on what is left; it relaxes both states as well, so that
# heights can be told. The singlet of CH2 crosses almost at its own minimum.

# %%
point = mlff.find_crossing(ch2, potential, STATES)
print(point)
assert point.converged
assert abs(point.atoms.get_distance(0, 1) - 1.128) < 0.005
assert abs(point.atoms.get_angle(1, 0, 2) - 99.9) < 0.5

# %% [markdown]
# Is that so? The same two states by DFT, at the level of the labels of this network:

# %%
dft = mlff.DFTCalculator(DFTSettings(xc="b3lyp5", basis="cc-pvdz"))
by_dft = []
for charge, spin in STATES:
    atoms = mlff.set_state(point.atoms.copy(), charge=charge, spin=spin)
    by_dft.append(dft.get_potential_energy(atoms))
print(f"DFT gap there: {1e3 * (by_dft[0] - by_dft[1]):+.3f} meV")
assert abs(by_dft[0] - by_dft[1]) < 5e-3

# %% [markdown]
# Coordinates can be held. With both bonds at 1.00 Å the crossing moves to a smaller
# angle. `mlff crossing start.xyz --model ch2 --states "0,1 0,3" --dft-check` computes
# such a point with DFT too.

# %%
held = mlff.find_crossing(
    ch2, potential, STATES, [("bond", 0, 1, 1.00), ("bond", 0, 2, 1.00)]
)
print(f"at 1.00 Å: {held.atoms.get_angle(1, 0, 2):.2f}°, gap {1e3 * held.gap:+.3f} meV")
assert held.converged

# %% [markdown]
# ## How sure is it?
# A committee is several networks of one kind, evaluated in one pass; train them from
# different seeds (`mlff train run.toml --members 4`), and see with `mlff evaluate
# committee.safetensors test.xyz --calibration plot.png` whether deviations tell errors.
# Here copies of the shipped
# network with slightly changed weights stand in. The deviation of a gap is that of the
# gaps of the members, not of their energies: errors of two states have much in common.

# %%
generator = torch.Generator().manual_seed(0)
members = []
for _ in range(4):
    member = mlff.load("ch2")
    for weight in member.parameters():
        weight.mul_(1 + 2e-4 * torch.randn(weight.shape, generator=generator))
    members.append(member)
committee = mlff.Committee(members)
band = mlff.scan(ch2, committee, [angle], STATES)
print(
    f"energies ± {1e3 * np.mean(band.deviations):.2f} meV, "
    f"gaps ± {1e3 * np.mean(band.gap_deviation(SINGLET, TRIPLET)):.2f} meV"
)
plot_surface(band, work / "band.png")

# %% [markdown]
# ## Charges as well
# The network `states` knows eleven small molecules in charges −1, 0 and +1 and several
# multiplicities each, all on one scale of energy: differences are ionisation energies,
# electron affinities and gaps. Here OH, OH⁺ and OH⁻ along the bond. What training has
# seen is in the file, and what it has not is said: `surface.unseen`, `surface.outside`.

# %%
states = mlff.load("states")
oh = molecule("OH")
OH = NEUTRAL, CATION, ANION = (0, 2), (1, 3), (-1, 1)
bond = mlff.scan(oh, states, [("bond", 0, 1, 0.85, 1.4, 56)], OH)
for state in OH:
    lowest = bond.minimum(state)
    print(f"{state}: {lowest.energy:.3f} eV at {lowest.values[0]:.2f} Å")
place = bond.minimum(NEUTRAL).index
print(f"vertical ionisation energy {bond.gap(CATION, NEUTRAL)[place]:.2f} eV")
print(f"vertical electron affinity {bond.gap(NEUTRAL, ANION)[place]:.2f} eV")
assert bond.unseen == ()
plot_surface(bond, work / "oh.png")
