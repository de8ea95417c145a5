"""What the tests of committees share: small potentials that disagree strongly."""

import torch

from mlff.potential import Potential, TrainingInfo

STATES = tuple((q, m) for q in range(-2, 3) for m in range(1, 5))
INFO = TrainingInfo(elements=(1, 6), states=STATES, level_of_theory="test")
REFERENCES = {1: -13.6, 6: -1027.0}
HEADS = ("energy", "dipole", "polarizability", "spatial_extent")


def member(seed, name="cmret", dtype=torch.float64, heads=("energy",), **options):
    model = {"name": name, "n_features": 8, "n_layers": 2, "n_radial": 6, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = Potential.build(model, REFERENCES, INFO, dtype, heads=heads)
        torch.nn.init.normal_(built.heads["energy"].linear.weight, std=5.0)
    return built.eval().requires_grad_(False)
