"""How weights move: AdamW with two groups, the learning rate of each step, and the running average of the weights."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from aerialseg.errors import UsageError

if TYPE_CHECKING:
    from aerialseg.config.sections import OptimizerSection, ScheduleSection

WARMUP_SHARE = 0.1
"""Warm-up takes at most this share of a run, however many steps the configuration names."""
ONE_CYCLE_SHARE, ONE_CYCLE_START = 0.3, 1 / 25
POWER = 0.9
"""Of the polynomial: nearly a line, as DeepLab has it (Chen et al., arXiv:1606.00915)."""
SPARE = 0.05
"""Of a training's time that no schedule is made for: paces vary."""
WRITING_S = 1.0
"""What the checkpoint, the model and the logs of an epoch take, about."""
LEAST_EPOCHS, BESIDE_SHARE = 10, 0.1
"""So many validations choose the best epoch, if they take no more than this share of the time."""
MOST_EPOCHS, MOST_STEPS = 100_000, 10_000_000


def build_optimizer(network: nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """Return AdamW over the network's parameters; those with fewer than two dimensions (norms, biases) do not decay.

    With an `encoder_lr` other than 1 the parameters below a module named `encoder` are groups of their own. The first
    group always has the plain learning rate.
    """
    inside = re.compile(r"(^|\.)encoder\." if section.encoder_lr != 1.0 else r"(?!)")
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for name, p in trained if (p.ndim >= 2) == decays and bool(inside.search(name)) == encoder],
            "weight_decay": section.weight_decay if decays else 0.0,
            "factor": section.encoder_lr if encoder else 1.0,
        }
        for encoder in (False, True)
        for decays in (True, False)
    ]
    # Not fused: that variant unscales float16 gradients itself, and clipping has to come in between.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=section.lr)


def learning_rate(step: int, total: int, peak: float, schedule: ScheduleSection) -> float:
    """Return the learning rate of `step` (from 0) of `total`: up to `peak`, then down to nearly nothing.

    The way up is a line, `warmup_steps` long, or a tenth of the run if that is shorter; of "one-cycle" (Smith and
    Topin, arXiv:1708.07120) it is half a cosine from a 25th of the peak, 30 % of the run long.
    """
    one_cycle = schedule.shape == "one-cycle"
    warmup = int(total * ONE_CYCLE_SHARE) if one_cycle else min(schedule.warmup_steps, int(total * WARMUP_SHARE))
    if step < warmup:
        low = (1.0 - ONE_CYCLE_START) * _half_cosine((step + 1) / warmup)
        return peak * (1.0 - low) if one_cycle else peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * ((1.0 - done) ** POWER if schedule.shape == "polynomial" else _half_cosine(done))


def fit_schedule(
    schedule: ScheduleSection, steps: int, seconds: float, *, step_s: float, validation_s: float
) -> ScheduleSection:
    """Return the schedule with as many epochs of about `steps` steps, each with a validation, as `seconds` allow.

    Where that is a few, epochs are shorter and up to LEAST_EPOCHS, if their validations take little of the time. Raises
    UsageError when there is none for a step.
    """
    seconds, beside_s = seconds * (1.0 - SPARE), validation_s + WRITING_S
    few = min(schedule.epochs, LEAST_EPOCHS, int(BESIDE_SHARE * seconds / beside_s))
    epochs = max(1, few, min(int(seconds / (steps * step_s + beside_s)), MOST_EPOCHS))
    steps = min(int((seconds / epochs - beside_s) / step_s), MOST_STEPS)
    if steps < 1:
        raise UsageError(
            f"--minutes is too short: {max(0.0, seconds):,.0f} s are left for steps of {step_s:.2g} s and a validation"
            f" of {beside_s:,.0f} s; give more, or take fewer tiles or a smaller data.batch"
        )
    return schedule.model_copy(update={"epochs": epochs, "steps_per_epoch": steps})


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of the optimizer this learning rate, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


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


def _half_cosine(done: float) -> float:
    """Return 1 at 0 and 0 at 1, level at both ends."""
    return 0.5 * (1.0 + math.cos(math.pi * done))
