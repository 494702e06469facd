"""How weights move: AdamW with two groups, the learning rate of each step, and the running average of the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from aerialseg.config import OptimizerSection

WARMUP_SHARE = 0.1
"""Warm-up takes at most this share of a run, however many steps the configuration names."""


def build_optimizer(network: nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """Return AdamW over the network's parameters; those with fewer than two dimensions (norms, biases) do not decay."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # Not fused: that variant unscales float16 gradients itself, and clipping has to come in between.
    return torch.optim.AdamW(groups, lr=section.lr)


def learning_rate(step: int, total: int, peak: float, warmup_steps: int) -> float:
    """Return the learning rate of `step` (from 0) of `total`: a line up to `peak`, then a cosine that ends near 0.

    The warm-up is `warmup_steps` long, or a tenth of the run if that is shorter.
    """
    warmup = min(warmup_steps, int(total * WARMUP_SHARE))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of the optimizer this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def average_decay(step: int, decay: float) -> float:
    """Return how much of the average survives `step` (from 0): at most `decay`, less while the run is young.

    (1 + step) / (10 + step) lets the average look back over about a ninth of the steps taken so far, so that a run of
    a hundred steps is not averaged with its own random beginning.
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move `average` towards `network`, in place: average = decay * average + (1 - decay) * network.

    BatchNorm's running statistics are averaged like the weights they belong to; its integer step counter is copied.
    """
    targets, sources = average.state_dict(), network.state_dict()
    floats = [name for name, tensor in targets.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([targets[name] for name in floats], [sources[name] for name in floats], 1.0 - decay)
    for name in targets.keys() - set(floats):
        targets[name].copy_(sources[name])
