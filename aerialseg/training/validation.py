"""Scores the network on whole validation tiles: counts first, one division at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from aerialseg.counts import QUANTA, ScoreHistogram
from aerialseg.training.losses import IGNORE
from aerialseg.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from aerialseg.progress import Progress
    from aerialseg.training.batches import Batch

CELLS = QUANTA + 1


def score_tiles(
    predict: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    device: torch.device,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> ScoreHistogram:
    """Return the pooled histogram of probability by truth over the pixels of `batches` that are not ignored.

    `predict` maps pixels and valid to logits [N, 1, H, W]. Progress counts tiles. The batches are this process's own,
    the histogram that of all `ranks`.
    """
    histogram = ScoreHistogram()
    for batch in batches:
        moved = batch.to(device)
        with torch.inference_mode():
            counts = count_scores(predict(moved.pixels, moved.valid), moved.target)
        histogram += ScoreHistogram(counts.cpu().numpy().astype(np.int64))
        progress.advance(len(batch.names))
    return ScoreHistogram(ranks.pooled(torch.from_numpy(histogram.counts)).numpy())


def count_scores(logits: Tensor, target: Tensor) -> Tensor:
    """Count pixels on the device: int64 [2, 255] of truth by round(254 x probability), ignored pixels left out."""
    probability = logits[:, 0].float().sigmoid()
    stored = (probability * QUANTA).round().long()
    cells = stored + CELLS * (target == 1)
    return torch.bincount(cells[target != IGNORE], minlength=2 * CELLS).reshape(2, CELLS)
