"""Training, in plain sight: `train` prepares and ends a run, `fit` goes through the epochs, `take_step` is one step.

A stop (SIGTERM, SIGINT) arrives as Stopped from `progress.advance`, between two steps or while a read takes long; the
state is saved and the error goes on to the caller. Resumed on the same processor, a run ends with the same weights as
if it had never stopped.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from aerialseg.errors import Diverged, ResourceError, Stopped, one_line
from aerialseg.files import locked, prepare_output_folder, sweep
from aerialseg.geo.tileset import load_tileset
from aerialseg.models.device import is_out_of_memory, pick_device
from aerialseg.progress import Progress, Silent
from aerialseg.training.batches import open_readers
from aerialseg.training.checkpoint import save_checkpoint
from aerialseg.training.folder import TrainOptions, begin_run, open_run
from aerialseg.training.history import draw_curves, open_events, write_events, write_metrics
from aerialseg.training.job import build_job, reading_threads
from aerialseg.training.judgement import is_over, judge, keep_best
from aerialseg.training.losses import building_loss
from aerialseg.training.optimizer import average_decay, learning_rate, set_learning_rate, update_average
from aerialseg.training.report import announce, epoch_line, report
from aerialseg.training.standing import Standing, restore, snapshot
from aerialseg.training.start import start_again, start_fresh, start_from_model
from aerialseg.training.validation import score_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from aerialseg.config import TrainConfig
    from aerialseg.counts import ScoreHistogram
    from aerialseg.geo.tileset import TileSet
    from aerialseg.training.batches import Batch
    from aerialseg.training.checkpoint import State
    from aerialseg.training.history import EpochRecord
    from aerialseg.training.job import Job
    from aerialseg.training.report import TrainReport
    from aerialseg.training.start import Start

SAVE_EVERY_S = 600.0
"""A killed run loses at most this much, or one epoch if that is shorter."""
WORTH_A_PICTURE_S = 30.0
"""Epochs that take longer draw the curves anew; drawing takes about a second. The last epoch always does."""
MOST_SKIPPED = 24
"""Steps in a row that float16's loss scaling may leave out; from its first scale of 2^16 that ends at 2^-8."""


def train(
    tileset_folder: Path,
    config: TrainConfig,
    run: Path,
    *,
    options: TrainOptions | None = None,
    progress: Progress | None = None,
) -> TrainReport:
    """Train what `config` says on a set of tiles, into the folder `run`.

    Raises what the parts raise before the first step (see start.py, folder.py, job.py), then: Diverged when loss or
    gradients are not finite, ResourceError when memory does not suffice or tiles cannot be read in time, Stopped after
    saving.
    """
    began = time.monotonic()
    options, progress = options or TrainOptions(), progress or Silent()
    tiles = load_tileset(tileset_folder)
    prepare_output_folder(run)
    device = pick_device(options.device)
    with locked(run), open_readers(reading_threads(config.data.threads)) as readers:
        sweep(run)
        state = open_run(run, tiles, config, options, say=progress.say)
        start = _start(state, tiles, config, options, progress)
        job = build_job(run, tiles, start, device=device, readers=readers, progress=progress)
        if state is None:
            begin_run(run, job.config)
        standing = Standing(threshold=config.run.threshold) if state is None else restore(job, state)
        complete = standing.finished
        if not complete:
            announce(job, standing, progress.say)
            _fit_in_memory(job, standing, progress)
    return report(job, standing, seconds=time.monotonic() - began, complete=complete)


def fit(job: Job, standing: Standing, progress: Progress) -> None:
    """Train epoch after epoch until the schedule or the patience ends; Stopped is raised again after saving."""
    batches = job.training_batches(standing.epoch, standing.step)
    with closing(batches), open_events(job.run, standing.taken) as events:
        try:
            while not standing.finished:
                record = run_epoch(job, standing, batches, progress)
                standing.records.append(record)
                write_metrics(job.run, standing.records)
                write_events(events, record)
                save_checkpoint(job.run, snapshot(job, standing))
                progress.say(epoch_line(job, standing, record))
                if standing.finished or record.seconds > WORTH_A_PICTURE_S:
                    draw_curves(job.run, standing.records)
        except Stopped:
            save_checkpoint(job.run, snapshot(job, standing))
            progress.say(f"saved after step {standing.taken:,}; the same command with --resume goes on from there")
            raise


def run_epoch(job: Job, standing: Standing, batches: Iterator[Batch], progress: Progress) -> EpochRecord:
    """Train what is left of an epoch, validate, keep the model if it is the best so far, and count the epoch."""
    began, first = time.monotonic(), standing.step
    train_steps(job, standing, batches, progress)
    trained = time.monotonic() - began
    crops = (standing.step - first) * job.config.data.batch
    record = judge(job, standing, validate(job, progress))
    keep_best(job, standing, record)
    standing.epoch, standing.step, standing.loss, standing.skipped = standing.epoch + 1, 0, 0.0, 0
    standing.finished = is_over(job, standing)
    return replace(record, images_per_s=crops / trained if crops else math.nan, seconds=time.monotonic() - began)


def train_steps(job: Job, standing: Standing, batches: Iterator[Batch], progress: Progress) -> None:
    """Take the steps that are left of the current epoch; a stop comes between two of them."""
    steps, epochs = job.sampler.steps_per_epoch, job.config.schedule.epochs
    progress.start(f"epoch {standing.epoch + 1}/{epochs}", steps - standing.step, "step")
    job.model.train()
    saved = time.monotonic()
    while standing.step < steps:
        take_step(job, standing, next(batches))
        if time.monotonic() - saved > SAVE_EVERY_S:
            save_checkpoint(job.run, snapshot(job, standing))
            saved = time.monotonic()
        progress.advance(1, f"loss {standing.mean_loss:.3f}")
    progress.finish()


def take_step(job: Job, standing: Standing, batch: Batch) -> None:
    """Forward, loss, backward, clip, update: one step, counted in `standing`.

    The forward pass alone runs under autocast; the loss is float32. The optimizer is not stepped with a loss or
    gradients that are not finite: under float16 the scaler lowers its scale instead, otherwise Diverged is raised.
    """
    config, total = job.config, job.total_steps
    rate = learning_rate(standing.taken, total, config.optimizer.lr, config.schedule.warmup_steps)
    set_learning_rate(job.optimizer, rate)
    moved = batch.to(job.fabric.device)
    loss = building_loss(job.forward(moved.pixels, moved.valid), moved.target, config.loss)
    job.fabric.backward(loss)
    largest = config.optimizer.clip or math.inf
    norm = job.fabric.clip_gradients(job.forward, job.optimizer, max_norm=largest, error_if_nonfinite=False)
    value, length = torch.stack([loss.detach(), norm]).tolist()  # the one place where the host waits for the device
    finite = _is_finite(job, standing, batch, value, length)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    if finite:
        standing.loss += value
        if job.average is not None:
            update_average(job.average, job.model, average_decay(standing.taken, config.run.ema))
    standing.step, standing.taken = standing.step + 1, standing.taken + 1


def validate(job: Job, progress: Progress) -> ScoreHistogram | None:
    """Score the averaged weights on the cores of the validation tiles; None when there are none."""
    if not job.validation:
        return None
    network = job.judged.eval()

    def predict(pixels: Tensor, valid: Tensor) -> Tensor:
        with job.fabric.autocast():
            logits: Tensor = network(pixels, valid)
        return logits

    progress.start("validation", len(job.validation), "tile")
    with closing(job.validation_batches()) as batches:
        histogram = score_tiles(predict, batches, device=job.fabric.device, progress=progress)
    progress.finish()
    return histogram


def _is_finite(job: Job, standing: Standing, batch: Batch, loss: float, norm: float) -> bool:
    """Return whether a step may count; raise Diverged when it may not and no loss scaling explains it."""
    if math.isfinite(loss) and math.isfinite(norm):
        standing.skipped_in_a_row = 0
        return True
    standing.skipped, standing.skipped_in_a_row = standing.skipped + 1, standing.skipped_in_a_row + 1
    scaled = bool(job.fabric.strategy.precision.state_dict())
    if scaled and standing.skipped_in_a_row <= MOST_SKIPPED:
        return False
    names = list(dict.fromkeys(batch.names))
    shown = ", ".join(one_line(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise Diverged(
        f"{one_line(job.run)}: step {standing.taken + 1} (epoch {standing.epoch + 1}): loss is {loss:g}, gradient norm"
        f" {norm:g}, on tiles {shown}; this step is not saved and the last good model is kept: lower optimizer.lr, look"
        " at these tiles, or set run.precision=fp32"
    )


def _start(
    state: State | None, tiles: TileSet, config: TrainConfig, options: TrainOptions, progress: Progress
) -> Start:
    if state is not None:
        return start_again(state)
    if options.start_from is not None:
        return start_from_model(tiles, config, options.start_from, progress.say)
    return start_fresh(tiles, config)


def _fit_in_memory(job: Job, standing: Standing, progress: Progress) -> None:
    """Run `fit`; memory that does not suffice becomes advice, for a smaller batch is another training."""
    try:
        fit(job, standing, progress)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        section = job.config.data
        smaller = f"--set data.batch={section.batch // 2}" if section.batch > 1 else "a smaller data.crop"
        raise ResourceError(
            f"{one_line(job.run)}: {job.fabric.device} has too little memory for {section.batch} crops of"
            f" {section.crop} px with {job.card.preset}; start again with {smaller}, or a smaller network"
        ) from error
