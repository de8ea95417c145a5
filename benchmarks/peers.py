"""Adapter for side-by-side benchmarks with other force fields.

Four methods on the structures that the driver hands over; 128 features, 6 layers, 5 Å,
50 radial functions, float32, random weights: the size of the six-layer peers.
"""

import torch

import mlff
from mlff.neighbors import neighbor_list


class MLFF:
    """``calculator``, ``batch``, ``energy_forces``, ``train_batch``."""

    note = ""
    periodic = True
    compile = False

    def __init__(self, scope: str = "global") -> None:
        options = {"name": "cmret", "n_features": 128, "n_layers": 6, "scope": scope}
        info = mlff.TrainingInfo(elements=(1, 6, 8), states=((0, 1),))
        self.model = mlff.Potential.build(options, {}, info).eval()

    def prepare(self, images):
        pass

    def calculator(self):
        import copy

        frozen = copy.deepcopy(self.model).requires_grad_(False)
        return mlff.MLFFCalculator(frozen)

    def batch(self, images):
        batch = mlff.AtomsBatch.from_atoms(list(images))
        return batch, neighbor_list(batch, self.model.cutoff)

    def energy_forces(self, batch):
        out = self.model(*batch)
        return out["energy"].numpy(), out["forces"].numpy()

    def train_batch(self, batch):
        out = self.model(*batch, create_graph=True)
        return out["energy"].to(torch.float32), out["forces"].to(torch.float32)

    def n_params(self):
        return sum(p.numel() for p in self.model.parameters())
