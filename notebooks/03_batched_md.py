# %% [markdown]
# # Two hundred molecules at once
#
# Singlet and triplet CH2 side by side in one batch: relax distorted geometries, run
# Langevin dynamics at 300 K, record the singlet-triplet gap along the way, stop, go on,
# and read everything back. One model call moves all molecules by one step; on a GPU the
# same lines move ten thousand.

# %%
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read
from matplotlib.figure import Figure

import mlff
from mlff.report import Run, report_md

work = Path(tempfile.mkdtemp())
potential = mlff.load("ch2")  # mlff.load("ch2", device="cuda") for a GPU
rng = np.random.default_rng(0)

# %% [markdown]
# ## The systems
# Ordinary ASE objects. Each carries its own charge and spin (the multiplicity 2S+1):
# nothing is shared by the batch. Here 100 geometries, each in both states.

# %%
SINGLET, TRIPLET = (0, 1), (0, 3)  # (charge, multiplicity)


def methylene(bond, angle, spin):
    radians = np.deg2rad(angle)
    second = [bond * np.cos(radians), bond * np.sin(radians), 0]
    atoms = Atoms("CHH", positions=[[0, 0, 0], [bond, 0, 0], second])
    atoms.rattle(0.03, rng=rng)
    return mlff.set_state(atoms, charge=0, spin=spin)


distorted = [
    methylene(rng.uniform(1.05, 1.20), rng.uniform(100, 130), spin)
    for spin in (1, 3)
    for _ in range(100)
]

# %% [markdown]
# ## Relax all of them
# Every molecule stops when its own forces are small; those that have finished make room
# for others that wait. The result has one entry for each, in order.

# %%
relaxed = mlff.relax(distorted, potential, fmax=0.005)
energies = np.array([one.energy for one in relaxed]).reshape(2, 100)
angles = np.array([one.atoms.get_angle(1, 0, 2) for one in relaxed]).reshape(2, 100)
for row, name in enumerate(("singlet", "triplet")):
    print(
        f"{name}: {energies[row].mean():.4f} ± {energies[row].std():.1e} eV, "
        f"H-C-H {angles[row].mean():.2f} ± {angles[row].std():.2f}°"
    )
print(f"steps: {min(r.n_steps for r in relaxed)} to {max(r.n_steps for r in relaxed)}")
assert all(one.converged for one in relaxed)
assert energies.std(axis=1).max() < 1e-3  # 100 geometries, one minimum for each state

# %% [markdown]
# ## Dynamics
# All molecules start at the minimum of their state, with velocities drawn at 300 K, and
# feel friction and noise of their own: system k has its own seed, made of the one given
# here. `states` asks for the energies of both states at the geometries of every frame,
# whichever state drives the motion.
#
# The trajectory is one HDF5 file for all systems. Whenever the run is stopped, by
# Ctrl-C or by a power cut, it holds every whole frame, and each frame is a point to go
# on from.

# %%
langevin = mlff.Langevin(
    timestep_fs=0.5, temperature_K=300, friction_per_fs=0.1, seed=1
)
options = mlff.MDOptions(states=(SINGLET, TRIPLET))
systems = [one.atoms for one in relaxed]
path = work / "ch2.h5"
mlff.run_md(
    systems,
    potential,
    langevin,
    n_steps=100,
    trajectory=path,
    every=4,
    options=options,
)
print(f"{mlff.Trajectory(path).n_frames} frames in {path.name}")

# %% [markdown]
# ## Go on
# The same call with `resume=True` continues behind the last frame; here it also makes
# the run longer. Other systems or another setting would be refused: what is in the file
# is always one run.

# %%
result = mlff.run_md(
    systems,
    potential,
    langevin,
    n_steps=200,
    trajectory=path,
    every=4,
    resume=True,
    options=options,
)
print(f"{result.n_steps} steps, {len(result.frozen)} systems stopped at a bound")
assert result.n_steps == 200
assert not result.frozen

# %% [markdown]
# Continued is the same as never stopped, to the last bit; a few molecules show it.

# %%
few = [systems[k] for k in (0, 50, 100, 150)]
quiet = mlff.MDOptions(progress=False)
once = mlff.run_md(few, potential, langevin, n_steps=20, options=quiet)
for n_steps in (10, 20):
    parts = mlff.run_md(
        few,
        potential,
        langevin,
        n_steps=n_steps,
        trajectory=work / "few.h5",
        resume=True,
        options=quiet,
    )
for one, other in zip(once.atoms, parts.atoms, strict=True):
    assert np.array_equal(one.positions, other.positions)
    assert np.array_equal(one.get_momenta(), other.get_momenta())

# %% [markdown]
# ## Read it back
# Series have one row for each frame and one column for each system. Coordinates are
# read for one system at a time, so that a file may be larger than the memory.

# %%
trajectory = mlff.Trajectory(path)
times = trajectory.times_fs
later = times >= times[-1] / 2  # the first half forgets the start
temperature = trajectory.temperature[later]
print(f"mean temperature {temperature.mean():.0f} K over {temperature.size} values")
assert abs(temperature.mean() - 300) < 30


def hch(positions):
    """Return the H-C-H angle of every frame, degrees."""
    arms = positions[:, 1:] - positions[:, :1]
    arms /= np.linalg.norm(arms, axis=-1, keepdims=True)
    return np.rad2deg(np.arccos((arms[:, 0] * arms[:, 1]).sum(-1)))


angle = np.stack([hch(trajectory.positions(k)) for k in range(len(trajectory))], axis=1)
spin = trajectory.layout.multiplicity
for name, value in (("singlet", 1), ("triplet", 3)):
    chosen = angle[later][:, spin == value]
    print(f"{name}: H-C-H {chosen.mean():.1f} ± {chosen.std():.1f}°")
gap = trajectory.gaps(SINGLET, TRIPLET)  # E(singlet) − E(triplet), eV
on_singlet, on_triplet = gap[later][:, spin == 1], gap[later][:, spin == 3]
print(
    f"gap where singlets go: {on_singlet.mean():+.2f} ± {on_singlet.std():.2f} eV; "
    f"where triplets go: {on_triplet.mean():+.2f} ± {on_triplet.std():.2f} eV"
)

# %% [markdown]
# The triplet is wide and the singlet narrow. At geometries of the triplet the singlet
# lies an electronvolt higher; at those of the singlet the two states are nearly
# degenerate, and part of the molecules is beyond the crossing at any time.

# %%
assert angle[:, spin == 3].mean() - angle[:, spin == 1].mean() > 25
assert on_triplet.mean() > 0.8
beyond = (on_singlet > 0).mean()
print(f"{100 * beyond:.0f} % of the singlets are above the triplet surface")
assert 0.2 < beyond < 0.8

# %%
figure = Figure(figsize=(11, 3.6), layout="constrained")
left, middle, right = figure.subplots(1, 3)
for name, value, color in (("singlet", 1, "tab:blue"), ("triplet", 3, "tab:red")):
    which = spin == value
    style = {"bins": 40, "density": True, "color": color, "alpha": 0.6, "label": name}
    left.hist(angle[later][:, which].ravel(), **style)
    middle.hist(gap[later][:, which].ravel(), **style)
    low, high = np.percentile(gap[:, which], (5, 95), axis=1)
    right.fill_between(times, low, high, color=color, alpha=0.2)
    right.plot(times, gap[:, which][:, 0], color=color, linewidth=0.8)
left.set(xlabel="H-C-H angle / °", ylabel="probability density")
left.legend()
middle.set(xlabel="E(singlet) − E(triplet) / eV")
right.set(xlabel="time / fs", ylabel="E(singlet) − E(triplet) / eV")
figure.savefig(work / "angles_and_gaps.png", dpi=120)

# %% [markdown]
# ## The usual report
# What `mlff md` writes at its end is one call: a table, a CSV file with a line for each
# system, and plots of conserved energy, temperature and gaps. The conserved energy is
# potential + kinetic − what the thermostat has put in; its drift tells whether the time
# step is short enough.

# %%
run = Run.read(path)
print(report_md(run, work))
assert np.abs(run.change).max() < 5  # meV/atom; 39 are in the motion
print(sorted(file.name for file in work.iterdir()))

# %% [markdown]
# ## Other programs
# `export` writes extended XYZ or ASE's own format, one file for each system.

# %%
(file,) = trajectory.export(work / "molecule_7.xyz", systems=7, progress=False)
frames = read(file, ":")
print(f"{file.name}: {len(frames)} frames, {frames[-1].info['time_fs']:.0f} fs")
assert len(frames) == trajectory.n_frames
assert abs(frames[-1].get_angle(1, 0, 2) - angle[-1, 7]) < 1e-6

# %% [markdown]
# ## The same from a shell
# ```
# mlff relax ch2.xyz --model ch2 --fmax 0.005 --out relaxed
# mlff md relaxed/relaxed.xyz --model ch2 --temperature-K 300 --friction-per-fs 0.1 \
#     --picoseconds 1 --states "0,1 0,3" --out run
# mlff md relaxed/relaxed.xyz … --picoseconds 2 --out run --resume
# mlff export run/trajectory.h5 --out frames
# ```
