"""Linear maps, on a CPU through the library that is fastest for many rows.

PyTorch hands matrix products to MKL, which drives processors of other makers with half
of their vector width, and convolutions to oneDNN, which uses all of it: 108 and 235
GFLOP/s on one core of a Zen 5. A linear map is a convolution with a kernel of one
point; values and all derivatives are the same.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Elements from which the faster product outweighs the longer call. Below 20480 PyTorch
# keeps a convolution from oneDNN.
_MANY = 2**15


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x Wᵀ + b``.

    Args:
        x: (…, n_in).
        weight: (n_out, n_in).
        bias: (n_out,).

    Returns:
        (…, n_out).
    """
    if (
        x.numel() < _MANY
        or weight.requires_grad
        or x.device.type != "cpu"
        or x.dtype != torch.float32
    ):
        return F.linear(x, weight, bias)
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last
    # Dilation means nothing to one point, but makes one thread take oneDNN, too.
    out = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """``torch.nn.Linear``, computed by :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Transform (…, n_in) to (…, n_out)."""
        return linear(input, self.weight, self.bias)
