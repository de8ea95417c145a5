"""Functions of the distance: envelopes and radial bases.

An edge may influence a model only through a factor that vanishes smoothly at the
cutoff; the envelopes here are that factor.
"""

import math

import torch
from torch import Tensor, nn

from mlff.errors import InputError


def polynomial_envelope(distance: Tensor, cutoff: float, p: int = 6) -> Tensor:
    """Return an envelope with two continuous derivatives at the cutoff.

    ``1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2)``, ``x = d/cutoff``
    (Gasteiger, Groß, Günnemann, ICLR 2020, eq. 8); exactly 0 from the cutoff on.

    Args:
        distance: any shape, Å.
        cutoff: Å.
        p: order; 6 keeps it near 1 over bond lengths.
    """
    x = distance / cutoff
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    inside = 1 + x**p * (a + x * (b + c * x))
    return torch.where(x < 1, inside, torch.zeros_like(x))


def cosine_envelope(distance: Tensor, cutoff: float) -> Tensor:
    """Return the CMRET paper's envelope (eq. 4): ``(cos(π d/cutoff) + 1)/2``.

    Only one derivative is continuous at the cutoff: a Hessian jumps there.
    """
    inside = 0.5 * (torch.cos(math.pi / cutoff * distance) + 1)
    return torch.where(distance < cutoff, inside, torch.zeros_like(distance))


#: Envelope by name.
ENVELOPES = {"polynomial": polynomial_envelope, "cosine": cosine_envelope}


class BesselBasis(nn.Module):
    """``sin(nπ d/cutoff)/d``, n = 1 … n_radial (CMRET eq. 2).

    Args:
        n_radial: number of functions.
        cutoff: Å.
    """

    orders: Tensor

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        orders = torch.arange(1, n_radial + 1) * (math.pi / cutoff)
        self.register_buffer("orders", orders, persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        """Evaluate at distances (n_edges,), Å: (n_edges, n_radial)."""
        return torch.sin(distance[:, None] * self.orders) / distance[:, None]


class ExponentialGaussianBasis(nn.Module):
    """``exp(−β_n (exp(−d) − μ_n)²)`` with trainable β and μ (CMRET eq. 3).

    μ starts linear between exp(−cutoff) and 1; β at ``(2/K (1 − exp(−cutoff)))^−2``.

    Args:
        n_radial: number of functions, K.
        cutoff: Å.
    """

    def __init__(self, n_radial: int, cutoff: float) -> None:
        super().__init__()
        lowest = math.exp(-cutoff)
        width = 2 / n_radial * (1 - lowest)
        self.centers = nn.Parameter(torch.linspace(lowest, 1, n_radial))
        self.betas = nn.Parameter(torch.full((n_radial,), width**-2))

    def forward(self, distance: Tensor) -> Tensor:
        """Evaluate at distances (n_edges,), Å: (n_edges, n_radial)."""
        offset = torch.exp(-distance)[:, None] - self.centers
        # exp is ten times slower than exp2 where it underflows, as most of these do.
        return torch.exp2(-self.betas / math.log(2) * offset * offset)


#: Radial basis by name.
BASES: dict[str, type[nn.Module]] = {
    "bessel": BesselBasis,
    "gaussian": ExponentialGaussianBasis,
}


def choose(table: dict[str, object], name: str, argument: str) -> None:
    """Raise unless ``name`` is in a table, and say what is.

    Raises:
        InputError: for an unknown name.
    """
    if not isinstance(name, str) or name not in table:
        raise InputError(f"`{argument}` must be one of {sorted(table)}, got {name!r}")
