"""Training, in plain sight: `train` prepares and ends a run, `fit` goes through the epochs, `take_step` is one step.

A stop (SIGTERM, SIGINT) arrives as Stopped from `progress.advance`, between two steps or while a read takes long; the
state is saved and the error goes on to the caller. Resumed on the same processor, a run ends with the same weights as
if it had never stopped.

On several processes (ranks.py) all of them go through the same lines at the same time, each with its share of every
batch, and the first alone writes. Counters, losses, scores and weights are the same on all.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from aerialseg.errors import Diverged, ResourceError, Stopped, one_line
from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.device import is_out_of_memory, pick_device
from aerialseg.progress import Progress, Silent
from aerialseg.training.batches import open_readers
from aerialseg.training.checkpoint import save_checkpoint
from aerialseg.training.distillation import with_teacher
from aerialseg.training.folder import TrainOptions, begin_run, claimed, open_run
from aerialseg.training.gradients import gather_gradients
from aerialseg.training.history import draw_curves, write_metrics
from aerialseg.training.job import build_job, reading_threads
from aerialseg.training.judgement import is_over, judge, keep_best
from aerialseg.training.loggers import check_loggers, open_loggers
from aerialseg.training.optimizer import average_decay, learning_rate, set_learning_rate, update_average
from aerialseg.training.provenance import write_start
from aerialseg.training.ranks import ALONE, Ranks
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
    from aerialseg.geo.tiles.tileset import TileSet
    from aerialseg.training.batches import Batch
    from aerialseg.training.checkpoint import State
    from aerialseg.training.gradients import Gradients
    from aerialseg.training.history import EpochRecord
    from aerialseg.training.job import Job
    from aerialseg.training.loggers import Log
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
    ranks: Ranks = ALONE,
) -> TrainReport:
    """Train what `config` says on a set of tiles, into the folder `run`.

    Raises what the parts raise before the first step (see start.py, folder.py, job.py), then: Diverged when loss or
    gradients are not finite, ResourceError when memory does not suffice or tiles cannot be read in time, Stopped after
    saving.
    """
    began = time.monotonic()
    options, progress = options or TrainOptions(), progress or Silent()
    with ExitStack() as held:
        with ranks.together():
            ranks.check_restarts(options.resume and not options.overwrite)
            tiles, device = load_tileset(tileset_folder), pick_device(ranks.device(options.device))
            if ranks.first:
                check_loggers(config.run.loggers)
                held.enter_context(claimed(run))
            state = open_run(run, tiles, config, options, say=progress.say) if ranks.first else None
        state = ranks.from_first(state)
        with ranks.together():
            start = _start(state, tiles, ranks.from_first(config), options, progress)
            ranks.share(start.config.data.batch)
        with ranks.together():
            ranks.check_alike({"set of tiles": tiles.digest[:12], "kind of device": device.type})
        readers = held.enter_context(open_readers(reading_threads(config.data.threads, ranks.local_world)))
        job = build_job(run, tiles, start, device=device, readers=readers, progress=progress, ranks=ranks)
        standing = _standing_of(job, state)
        complete = standing.finished
        if not complete:
            if ranks.first:
                write_start(job, standing.taken, options.command)
            announce(job, standing, progress.say)
            _fit_in_memory(job, standing, ranks.patient(progress))
    return report(job, standing, seconds=time.monotonic() - began, complete=complete)


def fit(job: Job, standing: Standing, progress: Progress) -> None:
    """Train epoch after epoch until the schedule or the patience ends; Stopped is raised again after saving."""
    batches, first = job.training_batches(standing.epoch, standing.step), job.ranks.first
    with closing(batches), open_loggers(job, standing.taken, progress.say) if first else nullcontext() as log:
        try:
            while not standing.finished:
                record = run_epoch(job, standing, batches, progress)
                standing.records.append(record)
                if log is not None:
                    write_down(job, standing, log)
                progress.say(epoch_line(job, standing, record))
        except Stopped:
            save(job, standing)
            progress.say(f"saved after step {standing.taken:,}; the same command with --resume goes on from there")
            raise


def write_down(job: Job, standing: Standing, log: Log) -> None:
    """Write what a run leaves of an epoch, its curves if that is worth the time, and a checkpoint."""
    record = standing.records[-1]
    write_metrics(job.run, standing.records)
    log(record, standing.finished)
    save(job, standing)
    if standing.finished or record.seconds > WORTH_A_PICTURE_S:
        draw_curves(job.run, standing.records)


def save(job: Job, standing: Standing) -> None:
    """Write a checkpoint; any process may call this at any time, and only the first one writes."""
    if job.ranks.first:
        save_checkpoint(job.run, snapshot(job, standing))


def run_epoch(job: Job, standing: Standing, batches: Iterator[Batch], progress: Progress) -> EpochRecord:
    """Train what is left of an epoch, validate, keep the model if it is the best so far, and count the epoch."""
    began, first = time.monotonic(), standing.step
    train_steps(job, standing, batches, progress)
    trained = time.monotonic() - began
    crops = (standing.step - first) * job.config.data.batch * job.config.optimizer.accumulate
    record = judge(job, standing, validate(job, progress))
    keep_best(job, standing, record)
    standing.epoch, standing.step, standing.loss, standing.skipped = standing.epoch + 1, 0, 0.0, 0
    standing.finished = is_over(job, standing)
    return replace(record, images_per_s=crops / trained if crops else math.nan, seconds=time.monotonic() - began)


def train_steps(job: Job, standing: Standing, batches: Iterator[Batch], progress: Progress) -> None:
    """Take the steps that are left of the current epoch; a stop comes between two of them."""
    steps, epochs = job.steps_per_epoch, job.config.schedule.epochs
    progress.start(f"epoch {standing.epoch + 1}/{epochs}", steps - standing.step, "step")
    job.model.train()
    saved = time.monotonic()
    while standing.step < steps:
        take_step(job, standing, batches)
        if time.monotonic() - saved > SAVE_EVERY_S:
            save(job, standing)
            saved = time.monotonic()
        progress.advance(1, f"loss {standing.mean_loss:.3f}")
    progress.finish()


def take_step(job: Job, standing: Standing, batches: Iterator[Batch]) -> None:
    """Learning rate, gradients, update, average: one step, counted in `standing`.

    The optimizer is not stepped with a loss or gradients that are not finite: under float16 the scaler lowers its
    scale instead, otherwise Diverged is raised.
    """
    schedule, step = job.config.schedule, standing.taken
    set_learning_rate(job.optimizer, learning_rate(step, job.total_steps, job.config.optimizer.lr, schedule))
    job.ranks.reseed(job.config.run.seed, step)
    gradients = gather_gradients(job, batches, frozen=step < schedule.freeze_steps)
    finite = _is_finite(job, standing, gradients)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    if finite:
        standing.loss += gradients.loss
        if job.average is not None:
            update_average(job.average, job.model, average_decay(step, job.config.run.ema))
    standing.step, standing.taken = standing.step + 1, step + 1


def validate(job: Job, progress: Progress) -> ScoreHistogram | None:
    """Score the averaged weights on the cores of the validation tiles; None when there are none."""
    if not job.validation:
        return None
    network = job.judged.eval()
    job.ranks.align_buffers(network)

    def predict(pixels: Tensor, valid: Tensor) -> Tensor:
        with job.fabric.autocast():
            logits: Tensor = network(pixels, valid)
        return logits

    progress.start("validation", len(job.validation), "tile")
    with closing(job.validation_batches()) as batches:
        histogram = score_tiles(predict, batches, device=job.fabric.device, progress=progress, ranks=job.ranks)
    progress.finish()
    return histogram


def _is_finite(job: Job, standing: Standing, gradients: Gradients) -> bool:
    """Return whether a step may count; raise Diverged when it may not and no loss scaling explains it."""
    loss, norm = gradients.loss, gradients.norm
    if math.isfinite(loss) and math.isfinite(norm):
        standing.skipped_in_a_row = 0
        return True
    standing.skipped, standing.skipped_in_a_row = standing.skipped + 1, standing.skipped_in_a_row + 1
    scaled = bool(job.fabric.strategy.precision.state_dict())
    if scaled and standing.skipped_in_a_row <= MOST_SKIPPED:
        return False
    names = list(dict.fromkeys(name for theirs in job.ranks.collect(gradients.names) for name in theirs))
    shown = ", ".join(one_line(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    problem = Diverged(
        f"{one_line(job.run)}: step {standing.taken + 1} (epoch {standing.epoch + 1}): loss is {loss:g}, gradient norm"
        f" {norm:g}, on tiles {shown}; this step is not saved and the last good model is kept: lower optimizer.lr, look"
        " at these tiles, or set run.precision=fp32"
    )
    with job.ranks.together():  # all of them have the same numbers, and one says so
        raise problem


def _start(
    state: State | None, tiles: TileSet, config: TrainConfig, options: TrainOptions, progress: Progress
) -> Start:
    taught = options.teacher is not None
    if state is not None:
        start = start_again(state)
    elif options.start_from is not None:
        start = start_from_model(tiles, config, options.start_from, progress.say, taught=taught)
    else:
        start = start_fresh(tiles, config, taught=taught)
    return with_teacher(start, tiles, options.teacher, resumed=state is not None)


def _standing_of(job: Job, state: State | None) -> Standing:
    """Return where the run stands: at its beginning, which clears the folder, or where its checkpoint says."""
    if state is not None:
        return restore(job, state)
    if job.ranks.first:
        begin_run(job.run, job.config)
    return Standing(threshold=job.config.run.threshold)


def _fit_in_memory(job: Job, standing: Standing, progress: Progress) -> None:
    """Run `fit`; memory that does not suffice becomes advice, for a smaller batch is another training."""
    try:
        fit(job, standing, progress)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        section, world, parts = job.config.data, job.ranks.world, job.config.optimizer.accumulate
        share, smaller = section.batch // world, "a smaller data.crop"
        if share > 1:
            smaller = f"--set data.batch={share // 2 * world} --set optimizer.accumulate={2 * parts}"
        raise ResourceError(
            f"{one_line(job.run)}: {job.fabric.device} has too little memory for {share} crops of {section.crop} px"
            f" with {job.card.preset}; start again with {smaller}, or a smaller network"
        ) from error
