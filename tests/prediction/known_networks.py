"""Networks whose answer is known pixel by pixel, or depends on a neighbourhood in a known way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from aerialseg.geo.stitching import lattice
from aerialseg.models.segmenter import Segmenter

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMIT = 127.3  # no mean of two, three or four uint8 values


class PixelRule(nn.Module):
    """Says building, with certainty, where the bands' mean is above LIMIT: an exact answer for every pixel."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.mean(1, keepdim=True) - LIMIT) * 1000


class Neighbourhood(nn.Module):
    """Depends on a pixel's surroundings and on where its window ends, so blending shows in every probability."""

    def __init__(self, bands: int = 3) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(bands, 1, 9, padding=4, bias=False)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.randn(self.convolution.weight.shape, generator=generator) / 9)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.convolution(pixels)


def plain(network: nn.Module, bands: int = 3) -> Segmenter:
    return Segmenter(network, [0.0] * bands, [1.0] * bands).eval()


def standardised(network: nn.Module, bands: int = 3) -> Segmenter:
    return Segmenter(network, [120.0] * bands, [60.0] * bands).eval()


class Counting(PixelRule):
    """Remembers the batches it was given."""

    def __init__(self, fail_above: int = 1000) -> None:
        super().__init__()
        self.fail_above = fail_above
        self.sizes: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels))
        if len(pixels) > self.fail_above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB")
        return super().forward(pixels)


def certain(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What PixelRule must give: 254 or 0, no pixel in between."""
    return np.where(pixels.astype(float).mean(0) > LIMIT, 254, 0).astype(np.uint8)


def reference(pixels: NDArray[np.uint8], segmenter: Segmenter, size: int, overlap: float) -> NDArray[np.float64]:
    """Pad the whole scene, run each window, divide the weighted sum by the sum of weights."""
    rows, cols = (lattice(length, size, overlap) for length in pixels.shape[1:])
    extent = [starts[-1] + size - length for starts, length in zip((rows, cols), pixels.shape[1:], strict=True)]
    padded = np.pad(pixels, ((0, 0), (0, extent[0]), (0, extent[1])), mode="reflect")
    fade = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    weight = np.outer(fade, fade)
    total, weights = np.zeros(padded.shape[1:]), np.zeros(padded.shape[1:])
    for row in rows:
        for col in cols:
            here = np.s_[row : row + size, col : col + size]
            with torch.no_grad():
                logits = segmenter(torch.from_numpy(padded[(slice(None), *here)].copy())[None])
            total[here] += weight / (1 + np.exp(-logits[0, 0].double().numpy()))
            weights[here] += weight
    return (total / weights)[: pixels.shape[1], : pixels.shape[2]]
