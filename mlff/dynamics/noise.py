"""Random numbers that depend on what they are for, not on when they are drawn.

Each number is a hash of (seed of the system, stream, step, row, column): nothing is
stored between steps. A molecule meets the same noise alone and in a batch of thousands,
on every device, and a resumed run needs no generator state.

The hash is the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014, Fig. 16),
chained over the five integers; normal numbers follow by Box and Muller (1958).
"""

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_WORD = 1 << 64


def normal(seed: Tensor, step: int, row: Tensor, n: int, stream: int = 0) -> Tensor:
    """Return standard normal numbers.

    Args:
        seed: of the system that each row belongs to, (n_rows,), int64.
        step: number of the step.
        row: which row of its system it is, for example the slot of an atom, (n_rows,),
            int64.
        n: numbers in each row.
        stream: tells uses apart that share the seed, step and row.

    Returns:
        (n_rows, n), float64, on the device of ``seed``.
    """
    pairs = (n + 1) // 2
    state = _hashed(seed + _signed(_mixed(stream * _GOLDEN + step)))
    state = _hashed(state + row * _signed(_GOLDEN))
    column = torch.arange(2 * pairs, device=seed.device) * _signed(_GOLDEN)
    bits = _hashed(state[:, None] + column)
    # 53 bits; the half keeps zero out of the logarithm.
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    radius = torch.sqrt(-2.0 * torch.log(uniform[:, :pairs]))
    angle = (2.0 * math.pi) * uniform[:, pairs:]
    both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2)
    return both.flatten(1)[:, :n]


def _hashed(x: Tensor) -> Tensor:
    for shift, factor in _MIX:
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    return x ^ _shifted(x, _LAST_SHIFT)


def _mixed(x: int) -> int:
    """The same hash of one integer, on the host."""
    x %= _WORD
    for shift, factor in _MIX:
        x = (x ^ (x >> shift)) * factor % _WORD
    return x ^ (x >> _LAST_SHIFT)


def _shifted(x: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers arithmetically; a hash needs zeros from the left.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The 64 bits of an unsigned integer, as torch's signed one."""
    return (x + _WORD // 2) % _WORD - _WORD // 2
