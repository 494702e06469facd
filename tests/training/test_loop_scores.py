"""Validation counts: pooled over tiles, ignored pixels left out, equal to counting the stored probabilities."""

from __future__ import annotations

import numpy as np
import torch

from aerialseg.counts import QUANTA, Confusion, ScoreHistogram
from aerialseg.training.batches import Batch
from aerialseg.training.loop import count_scores, score_tiles


def example(seed: int, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (3, 1, 9, 8)).astype(np.float32))
    target = rng.integers(0, 2, (3, 9, 8)).astype(np.uint8)
    target[rng.random(target.shape) < ignored] = 255
    return logits, torch.from_numpy(target)


def test_counts_equal_those_of_the_stored_probabilities() -> None:
    logits, target = example(0)
    stored = np.rint(QUANTA * logits[:, 0].sigmoid().numpy()).astype(np.uint8)
    truth = target.numpy()
    expected = ScoreHistogram().add(stored, truth == 1, truth != 255)
    assert np.array_equal(count_scores(logits, target).numpy(), expected.counts)


def test_extreme_logits_fall_into_the_outer_cells() -> None:
    logits = torch.tensor([-1e4, 1e4, 0.0]).reshape(1, 1, 1, 3)
    counts = count_scores(logits, torch.tensor([[[0, 1, 1]]], dtype=torch.uint8))
    assert counts[0, 0] == counts[1, QUANTA] == counts[1, QUANTA // 2] == 1 and counts.sum() == 3


def test_batches_are_pooled_before_anything_is_divided() -> None:
    batches, pooled = [], Confusion()
    for seed in range(4):
        logits, target = example(seed, ignored=0.9 if seed == 3 else 0.0)
        pixels = (logits * 30 + 128).clip(0, 255).to(torch.uint8)
        batches.append(Batch(pixels, target, target != 255, ("a", "b", "c")))
        valid = target.numpy() != 255
        pooled += Confusion.of(pixels[:, 0].numpy() >= 128, target.numpy() == 1, valid)

    class Counter:
        tiles = 0.0

        def advance(self, amount: float = 1, note: str = "") -> None:
            self.tiles += amount

    counter = Counter()
    histogram = score_tiles(
        lambda pixels, valid: pixels.float() - 127.5, batches, device=torch.device("cpu"), progress=counter
    )
    assert histogram.confusion(0.5) == pooled and counter.tiles == 12


def test_a_tile_without_a_label_counts_nothing() -> None:
    logits, target = example(0, ignored=1.1)
    assert count_scores(logits, target).sum() == 0
