"""Modules that differ in their weights only, as one whose weights are stacked."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlff.nn.linear import vectorized

#: Every member.
ALL = slice(None)

#: Atoms up to which a CPU runs all members at once. Four members took 2.4 to 2.7 times
#: as long as one for a molecule of 3 atoms, and 3.1 to 3.5 times for one of 21; for 170
#: to 190 atoms 4.3 to 8 times, where one after the other took 4.0 to 4.8
#: (``benchmarks/committee.py``).
MANY_ATOMS = 100


def at_once(n_atoms: int, device: torch.device) -> bool:
    """Return whether a batch is so small that calls cost more than arithmetic.

    Also where memory is counted without a device, so that it suffices on all.

    Args:
        n_atoms: of the batch.
        device: that runs it.
    """
    return n_atoms <= MANY_ATOMS or device.type != "cpu"


class Stacked(nn.Module):
    """Modules of one shape as one whose weights have a first axis of members.

    Args:
        modules: the members; their buffers must be the same.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.module = copy.deepcopy(modules[0])
        for name, first in modules[0].named_parameters():
            place, _, leaf = name.rpartition(".")
            weights = torch.stack([m.get_parameter(name).detach() for m in modules])
            stacked = nn.Parameter(weights, requires_grad=first.requires_grad)
            setattr(self.module.get_submodule(place), leaf, stacked)

    def map(
        self,
        call: Callable[..., tuple[Tensor, ...]],
        n_atoms: int,
        *arguments: Tensor,
        members: slice = ALL,
    ) -> tuple[Tensor, ...]:
        """Do the same with members, all at once or one after the other.

        Args:
            call: takes a member, which is a function, and its part of the arguments.
            n_atoms: size of the batch, which decides how.
            arguments: of these members, stacked, (n_chosen, …).
            members: which.

        Returns:
            What ``call`` returns, stacked.
        """

        def one(weights: dict[str, Tensor], *parts: Tensor) -> tuple[Tensor, ...]:
            def member(*inputs: Any) -> Any:
                return torch.func.functional_call(self.module, weights, inputs)

            return call(member, *parts)

        weights = {n: w[members] for n, w in self.module.named_parameters()}
        some = next(iter(weights.values()))
        if len(some) > 1 and at_once(n_atoms, some.device):
            with vectorized():
                out: tuple[Tensor, ...] = torch.vmap(one)(weights, *arguments)
            return out
        found = [
            one({name: w[k] for name, w in weights.items()}, *(a[k] for a in arguments))
            for k in range(len(some))
        ]
        return tuple(map(torch.stack, zip(*found, strict=True)))
