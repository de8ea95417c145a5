# %% [markdown]
# # From labels to a potential
#
# About a minute on one core: read DFT labels, train a small CMRET, look at its errors,
# attach it to ASE. The shipped model is made in the same way, with
# `mlff train data_gen/train_ch2.toml`, only longer.

# %%
import tempfile
from pathlib import Path

import numpy as np
from ase.io import read, write

import mlff

here = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
frames = read(here.parent / "data_gen" / "ch2.xyz", ":")
first = frames[0]
print(f"{len(frames)} labels; keys: {sorted(first.info)}, {sorted(first.arrays)}")

# %% [markdown]
# A label carries its state, its level of theory and the evidence that the SCF was
# sound (`s_squared`, `stable`). Take 250 of them.

# %%
work = Path(tempfile.mkdtemp())
chosen = np.random.default_rng(0).permutation(len(frames))[:250]
write(work / "some.xyz", [frames[k] for k in chosen], format="extxyz")
config = f"""
out = "run"
seed = 0

[data]
files = ["{work / "some.xyz"}"]
split = "symmetry"
train = 180
validation = 30
test = 40

[model]
name = "cmret"
n_features = 32
n_layers = 2
n_radial = 20

[training]
epochs = 40
batch_size = 10
rate = 3e-3
validate_every = 10
"""
(work / "train.toml").write_text(config)

# %% [markdown]
# `fit` writes the best weights, a CSV log, loss and parity plots; a killed run
# continues where it was when the same command is given again.

# %%
result = mlff.fit(mlff.TrainConfig.load(work / "train.toml"), progress=False)
print(sorted(p.name for p in (work / "run").iterdir()))

# %%
potential = mlff.load(work / "run" / "best.safetensors")
for state, row in result.metrics["test"].items():
    print(
        f"{state}: MAE {row['energy_mae_meV']:.2f} meV, "
        f"{row['forces_mae_meV_per_A']:.1f} meV/Å on {row['n_systems']:.0f} test labels"
    )

# %% [markdown]
# `evaluate` does the same for any labelled file. Here it holds the training labels too,
# so its errors say nothing about new geometries.

# %%
metrics = mlff.evaluate(potential, work / "some.xyz")
print(f"all 250 labels: MAE {metrics['all']['energy_mae_meV']:.2f} meV")

# %% [markdown]
# The file knows what it has seen: elements, states, level of theory, and its own
# errors. Asking it for an element that was not in training is refused.

# %%
print(potential.info.elements, potential.info.states, potential.info.level_of_theory)
atoms = frames[1].copy()
atoms.calc = mlff.MLFFCalculator(potential)
error = atoms.get_potential_energy() - frames[1].info["REF_energy"]
print(f"one triplet: off by {1000 * error:.1f} meV after this short training")
assert abs(error) < 0.5
