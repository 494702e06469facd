"""Networks whose answer is known pixel by pixel, or depends on a neighbourhood in a known way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from aerialseg.geo.windows import Axis
from aerialseg.models.build import Segmenter

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


def windows_of(
    pixels: NDArray[np.uint8], size: int, overlap: float, blend: str = "hann"
) -> list[tuple[NDArray[np.uint8], NDArray[np.float64], tuple[slice, slice]]]:
    """Every window of the padded scene, its weights [size, size], which sum to one, and where it stands."""
    axes = [Axis.overlapping(length, size, overlap).starts for length in pixels.shape[1:]]
    extent = [starts[-1] + size - length for starts, length in zip(axes, pixels.shape[1:], strict=True)]
    padded = np.pad(pixels, ((0, 0), (0, extent[0]), (0, extent[1])), mode="reflect")
    down, across = (_shares(starts, size, blend) for starts in axes)
    found = []
    for row, row_shares in zip(axes[0], down, strict=True):
        for col, col_shares in zip(axes[1], across, strict=True):
            here = slice(row, row + size), slice(col, col + size)
            found.append((padded[(slice(None), *here)], np.outer(row_shares, col_shares), here))
    return found


def _shares(starts: range, size: int, blend: str) -> list[NDArray[np.float64]]:
    places = np.arange(size) + 0.5
    total = np.zeros((len(starts), starts[-1] + size))
    for index, start in enumerate(starts):
        fade = {"hann": np.sin(np.pi * places / size) ** 2, "linear": np.minimum(places, size - places)}
        if blend == "crop":  # the nearest centre; the earlier one of two that are equally near
            margin = (size - starts.step) // 2
            fade["crop"] = 1e6 - np.maximum(0, np.abs(places - 0.5 - margin - starts.step / 2 + 0.5))
        total[index, start : start + size] = fade[blend]
    if blend == "crop":
        total = (np.arange(len(starts))[:, None] == total.argmax(axis=0)).astype(float)
    return [row[start : start + size] for row, start in zip(total / total.sum(axis=0), starts, strict=True)]


def reference(pixels: NDArray[np.uint8], segmenter: Segmenter, size: int, overlap: float) -> NDArray[np.float64]:
    """Pad the whole scene, run each window, add up the weighted probabilities."""
    total = np.zeros(pixels.shape[1:])
    for window, weight, here in windows_of(pixels, size, overlap):
        with torch.no_grad():
            logits = segmenter(torch.from_numpy(window.copy())[None])
        inside = total[here]
        inside += (weight / (1 + np.exp(-logits[0, 0].double().numpy())))[: inside.shape[0], : inside.shape[1]]
    return total
