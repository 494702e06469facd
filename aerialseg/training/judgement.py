"""What an epoch was worth: its record, whether its weights are the best so far, and whether to go on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aerialseg.counts import QUANTA
from aerialseg.models.package import FILE_NAME, save_model
from aerialseg.training.history import SCORES, EpochRecord

if TYPE_CHECKING:
    from aerialseg.counts import ScoreHistogram
    from aerialseg.training.job import Job
    from aerialseg.training.standing import Standing

HIGHEST_THRESHOLD = (QUANTA - 1) / QUANTA
"""A model file's threshold lies below 1."""


def judge(job: Job, standing: Standing, histogram: ScoreHistogram | None) -> EpochRecord:
    """Return the record of the epoch just trained: its loss and, with validation, its scores at the best threshold."""
    record = EpochRecord(
        epoch=standing.epoch + 1,
        step=standing.taken,
        lr=job.optimizer.param_groups[0]["lr"],
        loss=standing.mean_loss,
        skipped=standing.skipped,
        threshold=job.config.run.threshold,
    )
    if histogram is None:
        return record
    threshold = min(histogram.best_threshold()[0], HIGHEST_THRESHOLD)
    counts = histogram.confusion(threshold)
    scores = {name: getattr(counts, name) for name in ("iou", "accuracy", "precision", "recall", "f1")}
    return replace(record, iou_at_half=histogram.confusion(0.5).iou, threshold=threshold, **scores)


def keep_best(job: Job, standing: Standing, record: EpochRecord) -> None:
    """Save the model when it is the first, the best by validation IoU, or the newest of a run without validation.

    All processes keep the record; the first one writes the file.
    """
    iou = 0.0 if math.isnan(record.iou) else record.iou
    if job.validation and standing.best_iou is not None and iou <= standing.best_iou:
        return
    standing.best_iou = record.iou if job.validation else None
    standing.best_epoch, standing.threshold = record.epoch, record.threshold
    if not job.ranks.first:
        return
    scores = {f"val_{name}": getattr(record, name) for name in SCORES if name != "threshold"}
    card = replace(
        job.card,
        threshold=record.threshold,
        scores={name: value for name, value in scores.items() if not math.isnan(value)},
        training={**job.card.training, "epoch": record.epoch, "steps": record.step, **_machine(job)},
    )
    save_model(job.run / FILE_NAME, job.judged, card)


def is_over(job: Job, standing: Standing) -> bool:
    """Return whether the schedule has ended, or patience: so many epochs in a row without a better IoU."""
    patience = job.config.schedule.patience
    tired = job.validation and patience and standing.epoch - standing.best_epoch >= patience
    return standing.epoch >= job.config.schedule.epochs or bool(tired)


def _machine(job: Job) -> dict[str, Any]:
    """Return what the weights depend on beside configuration and tiles."""
    return {"device": job.fabric.device.type, "precision": job.precision, "seed": job.config.run.seed}
