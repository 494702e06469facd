"""Pixels in, logits out: standardised as stated, blind to invalid pixels, float32 whatever autocast does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from aerialseg.models.build import Segmenter

MEAN, STD = (10.0, 100.0, 200.0), (5.0, 50.0, 100.0)


class SumOfBands(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.sum(dim=1, keepdim=True)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 6), dtype=np.uint8))


def test_pixels_are_standardised_by_band(pixels: torch.Tensor) -> None:
    expected = (pixels.numpy().astype(np.float64) - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    found = Segmenter(SumOfBands(), MEAN, STD)(pixels)
    np.testing.assert_allclose(found.numpy(), expected.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-5)


def test_invalid_pixels_enter_as_the_mean_whatever_they_hold(pixels: torch.Tensor) -> None:
    segmenter = Segmenter(nn.Conv2d(3, 1, 3, padding=1), MEAN, STD)
    valid = torch.from_numpy(np.random.default_rng(1).random((2, 8, 6)) > 0.4)
    other = torch.where(valid[:, None], pixels, 255 - pixels)
    assert not torch.equal(other, pixels)
    assert torch.equal(segmenter(pixels, valid), segmenter(other, valid))
    everything = Segmenter(SumOfBands(), MEAN, STD)(pixels, valid)
    assert (everything[~valid[:, None]] == 0).all()
    assert torch.equal(segmenter(pixels), segmenter(pixels, torch.ones(2, 8, 6, dtype=torch.bool)))


def test_logits_are_float32_under_autocast(pixels: torch.Tensor) -> None:
    segmenter = Segmenter(nn.Conv2d(3, 1, 1), MEAN, STD)
    with torch.autocast("cpu", torch.bfloat16):
        logits = segmenter(pixels)
    assert logits.dtype == torch.float32


def test_channels_last_changes_nothing(pixels: torch.Tensor) -> None:
    segmenter = Segmenter(SumOfBands(), MEAN, STD)
    assert torch.equal(segmenter(pixels), segmenter(pixels.contiguous(memory_format=torch.channels_last)))


def test_normalisation_travels_with_the_weights() -> None:
    state = Segmenter(nn.Conv2d(3, 1, 1), MEAN, STD).state_dict()
    assert set(state) == {"mean", "std", "network.weight", "network.bias"}
    assert state["mean"].tolist() == list(MEAN)


def test_floats_are_refused_for_they_may_be_scaled_already(pixels: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="uint8"):
        Segmenter(SumOfBands(), MEAN, STD)(pixels / 255)


@pytest.mark.parametrize(("mean", "std"), [((1.0,), (1.0, 1.0)), ((), ()), ((1.0,), (0.0,)), ((1.0,), (float("nan"),))])
def test_normalisation_must_make_sense(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="deviations"):
        Segmenter(SumOfBands(), mean, std)
