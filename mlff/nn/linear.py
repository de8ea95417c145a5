"""Linear maps, on a CPU through the library that is fastest for many rows.

PyTorch hands matrix products to MKL, which drives processors of other makers with half
of their vector width; oneDNN, which PyTorch carries as well, uses all of it: 108 and
235 GFLOP/s on one core of a Zen 5. Values and derivatives of every order are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Elements from which the faster product outweighs the longer call.
_MANY = 2**14

# What torch.compile puts in the place of a linear map. It is no public name: without
# it everything works, but slower.
_product: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

_vectorized: ContextVar[bool] = ContextVar("vectorized", default=False)


@contextmanager
def vectorized() -> Iterator[None]:
    """Use, inside, only products that ``torch.vmap`` knows, in a form that suits it."""
    token = _vectorized.set(True)
    try:
        yield
    finally:
        _vectorized.reset(token)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x Wᵀ + b``.

    Args:
        x: (…, n_in).
        weight: (n_out, n_in).
        bias: (n_out,).

    Returns:
        (…, n_out).
    """
    if not _fast(x, weight, bias):
        if x.dim() > 2 and _vectorized.get():
            # Rows of one matrix: else every one of them gets a copy of the weights.
            rows = F.linear(x.flatten(0, -2), weight, bias)
            return rows.unflatten(0, x.shape[:-1])
        return F.linear(x, weight, bias)
    out: Tensor = _Product.apply(x, weight, bias)
    return out


def _fast(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN is faster; while weights are trained it is not."""
    return (
        x.numel() >= _MANY
        and _product is not None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not _vectorized.get()
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
    )


class _Product(torch.autograd.Function):
    """``x Wᵀ + b`` by oneDNN; keeps the weights alone, which have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        try:
            rows, columns = x.contiguous(), weight.contiguous()
            return cast(Tensor, _product(rows, columns, bias, "none", [], ""))
        except RuntimeError:  # oneDNN does not say that memory is short, but this does
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _Product.apply(gradients[0], weight.T, None), None, None


class Linear(nn.Linear):
    """``torch.nn.Linear``, computed by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform (…, n_in) to (…, n_out)."""
        return linear(input, self.weight, self.bias)

    def parts(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        """Return the n equal parts of the result, (…, n_out/n) each.

        Arrays of one part each are faster to go on with than slices of a common one.
        """
        if n == 1 or not _fast(x, self.weight, self.bias):
            return self(x).chunk(n, dim=-1)
        weights = self.weight.chunk(n)
        biases = (None,) * n if self.bias is None else self.bias.chunk(n)
        return tuple(linear(x, w, b) for w, b in zip(weights, biases, strict=True))
