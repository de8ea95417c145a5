"""Attention by matrix products and by products of pairs is the same function."""

import pytest
import torch
from ase.build import molecule

from mlff.batch import AtomsBatch
from mlff.neighbors import neighbor_list
from mlff.nn import attention
from mlff.nn.attention import ACTIVATIONS, Attention
from mlff.potential import build_graph

UNIFORM = ["H2O", "O3", "CO2", "HCN", "SO2"]
RAGGED = ["H2O", "CO", "NH3", "CH4", "N2"]


@pytest.mark.parametrize("names", [UNIFORM, RAGGED], ids=["uniform", "ragged"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pairs_give_what_heads_give(activation, names, monkeypatch):
    torch.manual_seed(0)
    layer = Attention(12, 4, activation, 2.0, "global").double()
    batch = AtomsBatch.from_atoms([molecule(n) for n in names], charge=0, spin=1)
    graph = build_graph(batch, neighbor_list(batch, 5.0), torch.float64)
    scalars = torch.randn(batch.n_atoms, 12, dtype=torch.float64)
    found, used = [], []
    for name in ("_by_heads", "_by_pairs"):
        monkeypatch.setattr(attention, "_TINY_PRODUCT", 999 if "pairs" in name else 0)
        form = getattr(layer, name)
        monkeypatch.setattr(
            layer, name, lambda *args, f=form, n=name: used.append(n) or f(*args)
        )
        x = scalars.clone().requires_grad_(True)
        out = layer(x, graph, graph.distances)
        first = torch.autograd.grad(out.square().sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), x)[0]
        found.append((out, first, second))
    assert used == ["_by_heads", "_by_pairs"]
    for heads, pairs in zip(*found, strict=True):
        torch.testing.assert_close(heads, pairs, rtol=1e-12, atol=1e-12)


def test_head_membership_is_no_part_of_a_file():
    layer = Attention(12, 4, "softmax", 2.0, "global")
    assert set(layer.state_dict()) == {"project.weight", "project.bias"}
