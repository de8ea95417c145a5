# %% [markdown]
# # Your own model
#
# Half a minute on one core: write a model of forty lines, register it, hold it to the
# contract that every model of the package keeps, train it on CH2, attach it to ASE.

# %%
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.io import read, write
from ase.optimize import BFGS
from torch import nn
from torch.nn import functional as F

import mlff
from mlff.models import Edgewise, EdgewiseConfig, Features
from mlff.nn.segments import edge_moments, edge_sum, gather
from mlff.nn.vectors import smooth_norm
from mlff.testing import check_model

# %% [markdown]
# ## The model
#
# A model turns a graph into features of each atom: scalars `(n_atoms, F)` and vectors
# `(n_atoms, 3 + internal, F)`. `Edgewise` does what all families share: it embeds the
# nuclei, puts charge and spin on an internal axis of the vectors, and computes what is
# known of each edge. What is left is `interact`.
#
# Three rules keep energies smooth and symmetric:
#
# - an edge acts only through a factor that vanishes at the cutoff: `edge.radial`
#   (radial functions times the envelope) under a map without bias, or `edge.envelope`;
# - vectors are mixed over channels without bias, multiplied by scalars, or summed from
#   scalars times `edge.directions`; nothing else is done to their components;
# - charge and spin sit in the vectors, so scalars must read their norms.


# %%
@dataclass(frozen=True, kw_only=True)
class PocketConfig(EdgewiseConfig):
    """Options: those that all families have."""

    n_features: int = 32
    n_layers: int = 2


class PocketLayer(nn.Module):
    """Neighbors send filtered scalars; their directions make vectors."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        width = config.n_features
        self.send = nn.Linear(width, width)
        self.filters = nn.Linear(config.n_radial, 2 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.update = nn.Sequential(
            nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, scalars, vectors, graph, edge):
        edges, n_atoms = graph.edges, graph.batch.n_atoms
        sent = gather(F.silu(self.send(scalars)), edges.j)
        near, toward = (self.filters(edge.radial)).chunk(2, dim=1)
        directed = edge_moments(edge.directions, toward * sent, edges, n_atoms)
        internal = vectors.shape[1] - 3
        vectors = vectors + F.pad(directed, (0, 0, 0, internal))
        lengths = smooth_norm(self.mix(vectors))
        received = edge_sum(near * sent, edges, n_atoms)
        change = self.update(torch.cat((scalars, received, lengths), dim=1))
        return scalars + change, vectors


class Pocket(Edgewise):
    """A message-passing network that fits into a pocket."""

    Config = PocketConfig
    name = "pocket"

    def __init__(self, config: PocketConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(PocketLayer(config) for _ in range(config.n_layers))

    def interact(self, scalars, vectors, graph, edge):
        for layer in self.layers:
            scalars, vectors = layer(scalars, vectors, graph, edge)
        return Features(scalars=scalars, vectors=vectors)


# %% [markdown]
# Registered under a name, it can be built, trained, saved and loaded like any other.

# %%
mlff.MODELS["pocket"] = Pocket
model = mlff.build_model("pocket", n_features=32)
print(sum(weight.numel() for weight in model.parameters()), "weights")

# %% [markdown]
# ## The contract
#
# Random weights are enough to see whether a model keeps its promises: rotation,
# reflection, translation, exchange of atoms, batching, smoothness at the cutoff, exact
# forces and stress, finite second derivatives, separate molecules that add up, every
# charge and spin with an energy of its own. A check that fails says what it found.

# %%
torch.manual_seed(0)
for name in check_model(mlff.build_model("pocket", n_features=16).double()):
    print("kept:", name.replace("_", " "))

# %% [markdown]
# A model that breaks a promise is told so: here one that sees the laboratory.


# %%
class Compass(Pocket):
    """Scalars that depend on where north is."""

    name = "compass"

    def interact(self, scalars, vectors, graph, edge):
        north = edge.envelope * edge.directions[:, 0]
        sums = edge_sum(north[:, None], graph.edges, graph.batch.n_atoms)
        return super().interact(scalars + sums, vectors, graph, edge)


try:
    check_model(Compass(PocketConfig(n_features=16)).double())
except AssertionError as error:
    print(error)
else:
    raise AssertionError("a compass in a molecule must be noticed")

# %% [markdown]
# ## Training and use
#
# The run file names the model as it would name any other.

# %%
here = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
work = Path(tempfile.mkdtemp())
frames = read(here.parent / "data_gen" / "ch2.xyz", ":")
chosen = np.random.default_rng(0).permutation(len(frames))[:300]
write(work / "some.xyz", [frames[k] for k in chosen], format="extxyz")
(work / "train.toml").write_text(
    """
out = "run"

[data]
files = ["some.xyz"]
split = "symmetry"
train = 220
validation = 30
test = 50

[model]
name = "pocket"
n_features = 48

[training]
epochs = 60
batch_size = 10
rate = 4e-3
validate_every = 10
"""
)
result = mlff.fit(work / "train.toml", progress=False)
for state, errors in result.metrics["test"].items():
    print(
        f"{state:28s} {errors['energy_mae_meV']:6.1f} meV "
        f"{errors['forces_mae_meV_per_A']:6.0f} meV/Å"
    )

# %%
molecule = frames[0].copy()
for spin in (1, 3):
    mlff.set_state(molecule, charge=0, spin=spin)
    molecule.calc = mlff.MLFFCalculator(result.potential)
    molecule.rattle(0.01, seed=1)
    BFGS(molecule, logfile=None).run(fmax=0.02, steps=100)
    print(
        f"2S+1 = {spin}: C-H {molecule.get_distance(0, 1):.3f} Å, "
        f"H-C-H {molecule.get_angle(1, 0, 2):.1f}°"
    )
