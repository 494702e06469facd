"""Sums over the batch of all processes, through which gradients flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Pooled(torch.autograd.Function):
    """Adds up forward; backward, every process takes the gradient of its own summand, times their number.

    DistributedDataParallel averages gradients over the processes, so the factor makes that average the gradient of
    the loss of the whole batch, however unevenly its labelled pixels lie on the processes.
    """

    @staticmethod
    def forward(context: Any, sums: Tensor) -> Tensor:
        total = sums.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.distributed.get_world_size()


def pooled_sums(sums: Tensor) -> Tensor:
    """Return the sums over all processes of `sums`, which all of them have to bring."""
    total: Tensor = _Pooled.apply(sums)
    return total
