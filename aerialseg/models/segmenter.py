"""Normalisation and network in one module: uint8 in, logits out, so that training and prediction agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Segmenter(nn.Module):
    """Standardises pixels by its buffers `mean` and `std` (units of 0..255, one per band) and runs `network`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(f"{len(mean)} means for {len(std)} standard deviations; expected one of each per band")
        if not all(value > 0 for value in std):
            raise ValueError(f"standard deviations must be above zero, got {list(std)}")
        self.network = network
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))

    @property
    def bands(self) -> int:
        """How many bands a pixel has."""
        return self.mean.numel()

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return float32 logits [N, 1, H, W] of building for uint8 `pixels` [N, C, H, W].

        Where `valid`, bool [N, H, W], is False the network sees the mean of every band, whatever the pixels hold.
        """
        if pixels.dtype != torch.uint8:
            raise TypeError(f"pixels must be uint8, got {pixels.dtype}")
        standardised = (pixels.float() - self.mean[:, None, None]) / self.std[:, None, None]
        if valid is not None:
            standardised = standardised.masked_fill(~valid[:, None], 0.0)
        logits: Tensor = self.network(standardised)
        return logits.float()
