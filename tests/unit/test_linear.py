"""The fast form of a linear map is the linear map, derivatives included."""

import pytest
import torch
from torch.nn import functional as F

from mlff.nn.linear import _MANY, Linear, _product, linear


def numbers(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def derivatives(function, x, weight, bias):
    """Value, gradient, and gradient of the squared gradient."""
    x = x.clone().requires_grad_(True)
    value = function(x, weight, bias)
    first = torch.autograd.grad((value**3).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), x)[0]
    return value, first, second


@pytest.mark.skipif(_product is None, reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(700, 48), (170, 4, 64), (2, 5, 900, 4)])
def test_many_rows_give_the_linear_map_and_its_derivatives(
    shape, with_bias, fails, monkeypatch
):
    x, weight = numbers(*shape, seed=0), 0.1 * numbers(20, shape[-1], seed=1)
    bias = numbers(20, seed=2) if with_bias else None
    calls = []

    def product(*args):
        calls.append(args)
        if fails:
            raise RuntimeError("could not create a primitive")
        return _product(*args)

    monkeypatch.setattr("mlff.nn.linear._product", product)
    ours = derivatives(linear, x, weight, bias)
    theirs = derivatives(F.linear, x, weight, bias)
    assert len(calls) > 2
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        largest = float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * largest)


def test_rows_that_do_not_lie_one_after_the_other_are_read_right():
    weight = numbers(20, 32, seed=1)
    n_rows = _MANY // 32 + 5
    for x in (numbers(32, n_rows, seed=0).T, numbers(n_rows, 96, seed=0)[:, 16:48]):
        assert not x.is_contiguous()
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_are_trained_get_their_gradient(dtype):
    layer = Linear(64, 20).to(dtype)
    x = numbers(_MANY // 64, 64, seed=0).to(dtype)
    layer(x).square().sum().backward()
    expected = 2 * F.linear(x, layer.weight, layer.bias).T @ x
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-2)


def test_a_bias_that_is_trained_alone_gets_its_gradient():
    layer = Linear(64, 20)
    layer.weight.requires_grad_(False)
    x = numbers(_MANY // 64, 64, seed=0)
    layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [len(x)] * 20


def test_parts_are_the_slices_of_the_result():
    layer = Linear(64, 20)
    x = numbers(_MANY // 64, 64, seed=0)
    for frozen in (False, True):
        parts = layer.requires_grad_(not frozen).parts(x, 5)
        assert [p.shape for p in parts] == [(len(x), 4)] * 5
        torch.testing.assert_close(torch.cat(parts, 1), layer(x))


def test_parameters_are_named_as_in_torch():
    assert Linear(4, 2).state_dict().keys() == torch.nn.Linear(4, 2).state_dict().keys()
