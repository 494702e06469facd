"""What every peer shares: networks that cost nothing, and how it is run; no aerialseg here, for peers lack it.

A contestant is a script with a function that is given a scene, a network and the sizes, and returns the mask as uint8
[rows, columns]. Its imports and the first call of torch are not counted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from meter import Meter, squares, step_of

LOGIT = 4.0


class Free(torch.nn.Module):
    """Answers with the same squares for every window, whatever it shows, from one buffer: not even memory is needed."""

    def __init__(self, window: int, batch: int, classes: int = 1) -> None:
        super().__init__()
        logits = torch.from_numpy(np.where(squares(window, window, window), LOGIT, -LOGIT).astype(np.float32))
        self.answer = torch.stack([-logits, logits][-classes:]).repeat(batch, 1, 1, 1)

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return float32 logits [N, classes, window, window]."""
        return self.answer[: len(pixels)]


class Bright(torch.nn.Module):
    """Says of every pixel by itself whether its first band is above `middle`: all who place windows well must agree."""

    def __init__(self, middle: float = 127.5, classes: int = 1) -> None:
        super().__init__()
        self.middle, self.classes = middle, classes

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return float32 logits [N, classes, rows, columns]."""
        logits = (pixels[:, :1] > self.middle).float() * (2 * LOGIT) - LOGIT
        return logits if self.classes == 1 else torch.cat([-logits, logits], 1)


def compete(
    predict: Callable[[Path, torch.nn.Module, argparse.Namespace], np.ndarray],
    package: str,
    *,
    classes: int = 1,
    white: float = 255.0,
) -> None:
    """Measure a contestant as the options say, keep its mask, and print what was found as JSON.

    `classes` is how many logits a pixel has, `white` what its network is given for a byte of 255.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--scene", type=Path, required=True)
    parser.add_argument("--mask", type=Path, required=True, help="where the mask is put, as .npy")
    parser.add_argument("--network", choices=("free", "bright"), default="free")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    given.step = step_of(given.window)
    torch.set_num_threads(1)
    free = given.network == "free"
    network = Free(given.window, given.batch, classes) if free else Bright(white / 2, classes)
    network(torch.zeros((1, 3, given.window, given.window)))
    with Meter() as meter:
        mask = predict(given.scene, network, given)
    np.save(given.mask, mask.astype(np.uint8, copy=False))
    print(json.dumps({**meter.found, "version": f"{package} {importlib.metadata.version(package)}"}))
