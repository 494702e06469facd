"""How long a training step takes on this machine, found by taking a few on made-up pixels."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from aerialseg.models.build import Segmenter, build_network, resolve
from aerialseg.models.device import autocast, pick_device, pick_precision
from aerialseg.training.losses import building_loss

if TYPE_CHECKING:
    from aerialseg.config import TrainConfig

WARM_UP, COUNTED = 1, 2
BANDS = 3


def seconds_per_step(config: TrainConfig, device: str = "auto") -> float:
    """Return the seconds of the forward and backward passes of one step; reading tiles is not in it.

    That is the faster of two passes, so that another program's burst does not count, times a step's batches; three
    passes are taken in all.
    """
    chosen = pick_device(device)
    precision = pick_precision(config.run.precision, chosen)
    section, data = config.model, config.data
    spec = resolve(
        section.preset,
        section.architecture,
        section.encoder,
        encoder_arguments=section.encoder_arguments,
        bands=BANDS,
        accept_licence=section.accept_licence,
    )
    model = Segmenter(build_network(spec), (128.0,) * BANDS, (64.0,) * BANDS)
    model.to(chosen).to(memory_format=torch.channels_last).train()
    pixels = torch.randint(0, 256, (data.batch, BANDS, data.crop, data.crop), dtype=torch.uint8, device=chosen)
    target = pixels[:, 0] // 128
    times = []
    for _ in range(WARM_UP + COUNTED):
        began = time.monotonic()
        with autocast(chosen, precision):
            logits = model(pixels)
        loss = building_loss(logits, target, config.loss)
        torch.autograd.backward(loss)
        float(loss.detach())  # waits for a device that runs behind
        times.append(time.monotonic() - began)
    return min(times[WARM_UP:]) * config.optimizer.accumulate
