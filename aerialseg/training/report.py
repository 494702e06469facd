"""What a training says: before the first step, after each epoch, and at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from aerialseg.config.sections import DistilSection
from aerialseg.errors import counted
from aerialseg.geo.tiles.tileset import INDEX, find_leak
from aerialseg.models.package import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aerialseg.training.history import EpochRecord
    from aerialseg.training.job import TrainJob
    from aerialseg.training.state import TrainState


@dataclass(frozen=True, slots=True)
class TrainReport:
    """How a training went.

    Example:
        >>> config = aerialseg.load_config("runs/town/config.toml")
        >>> again = aerialseg.TrainOptions(resume=True)
        >>> report = aerialseg.train(Path("tiles/town"), config, Path("runs/town"), options=again)
        >>> report.complete_before, report.epochs, report.best_epoch
        (True, 1, 1)
    """

    model: Path
    best_iou: float
    """Validation IoU of the saved model at its threshold; nan without validation."""
    best_epoch: int
    """The epoch, from 1, whose weights were saved."""
    threshold: float
    epochs: int
    """Epochs trained; fewer than configured when patience ended the run."""
    steps: int
    seconds: float
    """Wall time of this call."""
    images_per_s: float
    """Crops per second while training, in the run's median epoch."""
    device: str
    precision: str
    complete_before: bool
    """The run was complete when it was called, and nothing was done."""


def announce(job: TrainJob, state: TrainState, say: Callable[[str], None]) -> None:
    """Say what is about to be trained, on what, and what is missing."""
    config, device = job.config, job.fabric.device
    weights = config.model.weights if job.card.training["started_from"] is None else "a model file"
    crops = config.data.batch * config.optimizer.accumulate
    say(
        f"training {job.card.preset} (weights: {weights}) on {device}, {job.precision}:"
        f" {counted(config.schedule.epochs, 'epoch')} of {counted(job.steps_per_epoch, 'step')} of"
        f" {counted(crops, 'crop')} of {config.data.crop} px from {counted(len(job.sampler.tiles), 'tile')},"
        f" {counted(len(job.validation), 'tile')} to validate"
    )
    if job.validation and job.ranks.first and (leak := find_leak(job.tiles.folder / INDEX)) is not None:
        say(leak)
    if job.teacher is not None:
        weight, temperature = config.distil.weight, config.distil.temperature
        say(f"with a teacher, on unlabelled ground too: weight {weight:g}, temperature {temperature:g}")
    elif config.distil != DistilSection():
        say("warning: [distil] is set, but no --teacher is given: learning from labels alone")
    if state.taken:
        say(f"going on after step {state.taken:,} of {job.total_steps:,}")
    if job.ranks.world > 1:
        say(f"{job.ranks.world} processes, each with {crops // job.ranks.world} crops of every step")
        if device.type == "cpu" and any(isinstance(module, _BatchNorm) for module in job.model.modules()):
            say("torch joins BatchNorm's statistics on GPUs only: here each process has those of its own crops")
    if not job.validation:
        why = "train_on is all" if config.data.train_on == "all" else "the tile set has none"
        say(f"no validation tiles ({why}): every epoch's model is saved, with threshold {config.run.threshold:g}")


def length_line(job: TrainJob, state: TrainState, step_s: float) -> str:
    """Return one line on how long the whole training takes, by the seconds of a step."""
    seconds = (job.total_steps - state.taken) * step_s
    amounts = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
    size, unit = next((amount for amount in amounts if seconds >= 2 * amount[0]), amounts[-1])
    left = job.config.schedule.epochs - state.epoch
    return f"{counted(left, 'epoch')}, about {seconds / size:,.0f} {unit} at this pace, validation not counted"


def epoch_line(job: TrainJob, state: TrainState, record: EpochRecord) -> str:
    """Return one line on an epoch."""
    line = f"epoch {record.epoch}/{job.config.schedule.epochs}: loss {record.loss:.4f}"
    if job.validation:
        best = ", best so far" if state.best_epoch == record.epoch else ""
        line += f", validation IoU {record.iou:.4f} at threshold {record.threshold:.2f}{best}"
    if record.skipped:
        line += f", {record.skipped} steps skipped by loss scaling"
    if not math.isnan(record.images_per_s):  # an epoch that was resumed after its last step had none to time
        line += f", {record.images_per_s:.1f} crops/s"
    return f"{line}, {record.seconds:.0f} s"


def report(job: TrainJob, state: TrainState, *, seconds: float, complete: bool) -> TrainReport:
    """Return how the training went."""
    rates = [record.images_per_s for record in state.records if not math.isnan(record.images_per_s)]
    return TrainReport(
        model=job.run / FILE_NAME,
        best_iou=math.nan if state.best_iou is None else state.best_iou,
        best_epoch=state.best_epoch,
        threshold=state.threshold,
        epochs=state.epoch,
        steps=state.taken,
        seconds=seconds,
        images_per_s=median(rates) if rates else math.nan,
        device=str(job.fabric.device),
        precision=job.precision,
        complete_before=complete,
    )
