"""Training, in plain sight: `train` prepares and ends a run, `fit` goes through the epochs, `train_step` is one step.

A stop (SIGTERM, SIGINT) arrives as Stopped from `progress.advance`, between two steps or while a read takes long; the
state is saved and the error goes on to the caller. Resumed on the same processor, a run ends with the same weights as
if it had never stopped.

On several processes (`Ranks`) all of them go through the same lines at the same time, each with its share of every
batch, and the first alone writes. Counters, losses, scores and weights are the same on all. Scores are counts first,
one division at the end.
"""

from __future__ import annotations

import copy
import math
import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from aerialseg.counts import QUANTA, ScoreHistogram
from aerialseg.errors import Diverged, Stopped, counted, one_line
from aerialseg.files import require_space
from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.device import pick_device
from aerialseg.models.package import FILE_NAME, save_model
from aerialseg.progress import Progress, Silent
from aerialseg.training.batches import open_readers
from aerialseg.training.history import SCORES, EpochRecord, draw_curves, write_metrics
from aerialseg.training.job import advice_on_memory, build_job, reading_threads
from aerialseg.training.logs import check_loggers, open_loggers
from aerialseg.training.losses import IGNORE, building_loss, distillation_loss
from aerialseg.training.optimizer import (
    MOST_EPOCHS,
    average_decay,
    fit_schedule,
    learning_rate,
    set_learning_rate,
    update_average,
)
from aerialseg.training.ranks import ALONE, Ranks
from aerialseg.training.report import announce, epoch_line, length_line, report
from aerialseg.training.run_folder import TrainOptions, begin_run, claimed, open_run, write_start
from aerialseg.training.start import start_again, start_fresh, start_from_model, with_teacher
from aerialseg.training.state import TrainState, disk_bytes, load_state_dict, save_checkpoint, state_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from aerialseg.config import TrainConfig
    from aerialseg.geo.tiles.tileset import TileSet
    from aerialseg.training.batches import Batch
    from aerialseg.training.job import TrainJob
    from aerialseg.training.report import TrainReport
    from aerialseg.training.start import Start
    from aerialseg.training.state import Checkpoint

SAVE_EVERY_S = 600.0
"""A killed run loses at most this much, or one epoch if that is shorter."""
WORTH_A_PICTURE_S = 30.0
"""Epochs that take longer draw the curves anew; drawing takes about a second. The last epoch always does."""
MOST_SKIPPED = 24
"""Steps in a row that float16's loss scaling may leave out; from its first scale of 2^16 that ends at 2^-8."""
SETTLED_STEPS, TOLD_AFTER_STEPS = 5, 20
"""The first steps are slower than any after them; by those between them the whole training's time is told."""
MOST_MEASURING = 0.05
"""Of the time that a training is given, for measuring its pace."""
MEASURED_BATCHES = 4
LEAST_SHARE = 1e-12
"""Of labelled pixels, below that of any batch that has one."""
HIGHEST_THRESHOLD = (QUANTA - 1) / QUANTA
"""A model file's threshold lies below 1."""
CELLS = QUANTA + 1


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of a step that was taken."""

    loss: float
    norm: float
    """Of all gradients together, before clipping."""
    names: tuple[str, ...]
    """The tiles it learned from."""


def train(
    tileset_folder: Path,
    config: TrainConfig,
    run: Path,
    *,
    options: TrainOptions | None = None,
    progress: Progress = Silent(),
    ranks: Ranks = ALONE,
) -> TrainReport:
    """Train what `config` says on a set of tiles, into the folder `run`.

    Before the first step raises NoInputError and BadDataError for tiles that cannot be used, ConfigError for settings
    that do not fit them, OutputError for a folder that holds another run, DeviceError, and ModelError for weights to
    start from. Then: Diverged when loss or gradients are not finite, ResourceError when memory does not suffice or
    tiles cannot be read in time, StorageError when the disk is full, Stopped after saving.

    Example:
        >>> settings = ["data.crop=128", "schedule.epochs=1", "schedule.steps_per_epoch=2"]
        >>> config, options = aerialseg.load_config("demo", settings), aerialseg.TrainOptions(resume=True)
        >>> report = aerialseg.train(Path("tiles/town"), config, Path("runs/town"), options=options)
        >>> report.steps, str(report.model)
        (2, 'runs/town/model.safetensors')
    """
    began, options = time.monotonic(), options or TrainOptions()
    with ExitStack() as held:
        with ranks.fail_together():
            ranks.check_restarts(options.resume and not options.overwrite)
            tiles, device = load_tileset(tileset_folder), pick_device(ranks.device(options.device))
            if ranks.first:
                check_loggers(config.run.loggers)
                held.enter_context(claimed(run))
            checkpoint = open_run(run, tiles, config, options, say=progress.say) if ranks.first else None
        checkpoint = ranks.broadcast(checkpoint)
        with ranks.fail_together():
            start = _start(checkpoint, tiles, ranks.broadcast(config), options, progress)
            ranks.local_batch(start.config.data.batch)
        with ranks.fail_together():
            if ranks.first and not (checkpoint and checkpoint["standing"]["finished"]):
                require_space(run, disk_bytes(run, start.segmenter, averaged=start.config.run.ema > 0))
            ranks.check_alike({"set of tiles": tiles.digest[:12], "kind of device": device.type})
        readers = held.enter_context(open_readers(reading_threads(config.data.threads, ranks.local_world)))
        job = build_job(run, start, device=device, readers=readers, progress=progress, ranks=ranks)
        if checkpoint is not None:
            state = load_state_dict(job, checkpoint)
        else:
            if options.minutes is not None:
                job = fit_into(job, 60 * options.minutes, began, progress)
            state = TrainState(threshold=job.config.run.threshold)
            if ranks.first:
                begin_run(job.run, job.config)
        complete = state.finished
        if not complete:
            if ranks.first:
                write_start(job, state.taken, options)
            announce(job, state, progress.say)
            with advice_on_memory(job):
                fit(job, state, ranks.patient(progress))
    return report(job, state, seconds=time.monotonic() - began, complete=complete)


def fit(job: TrainJob, state: TrainState, progress: Progress) -> None:
    """Train epoch after epoch until the schedule or the patience ends; Stopped is raised again after saving."""
    steps, epochs = job.steps_per_epoch, job.config.schedule.epochs
    entered, settled = state.taken, time.monotonic()
    batches, first = job.training_batches(state.epoch, state.step), job.ranks.first
    with closing(batches), open_loggers(job, state.taken, progress.say) if first else nullcontext() as log:
        try:
            while not state.finished:
                began = saved = time.monotonic()
                left = steps - state.step
                progress.start(f"epoch {state.epoch + 1}/{epochs}", left, "step")
                job.model.train()
                while state.step < steps:
                    train_step(job, state, batches)
                    if state.taken - entered == SETTLED_STEPS:
                        settled = time.monotonic()
                    elif state.taken - entered == TOLD_AFTER_STEPS:
                        step_s = (time.monotonic() - settled) / (TOLD_AFTER_STEPS - SETTLED_STEPS)
                        progress.say(length_line(job, state, step_s))
                    if time.monotonic() - saved > SAVE_EVERY_S:
                        save(job, state)
                        saved = time.monotonic()
                    progress.advance(1, f"loss {state.mean_loss:.3f}")
                progress.finish()
                trained = time.monotonic() - began
                crops = left * job.config.data.batch * job.config.optimizer.accumulate

                record = score_epoch(job, state, validate(job, progress))
                save_if_best(job, state, record)
                state.epoch, state.step, state.loss, state.skipped = state.epoch + 1, 0, 0.0, 0
                state.finished = should_stop(job, state)
                rate = crops / trained if crops else math.nan
                record = replace(record, images_per_s=rate, seconds=time.monotonic() - began)
                state.records.append(record)
                if log is not None:
                    write_metrics(job.run, state.records)
                    log(record, state.finished)
                    save(job, state)
                    if state.finished or record.seconds > WORTH_A_PICTURE_S:
                        draw_curves(job.run, state.records)
                progress.say(epoch_line(job, state, record))
        except Stopped as stop:
            save(job, state)
            advice = f"saved after step {state.taken:,}: the same command with --resume goes on from there"
            raise Stopped(stop.signum, advice) from stop


def fit_into(job: TrainJob, seconds: float, began: float, progress: Progress) -> TrainJob:
    """Return the job with a schedule that ends `seconds` after `began`, by a pace that is measured.

    Some steps are taken without learning, and a few batches validated; then everything is as it was, and the training
    is the one that a configuration with this schedule gives. All processes take the first one's schedule.
    """
    before, ranks = copy.deepcopy(state_dict(job, TrainState())), job.ranks
    shown = ranks.patient(progress)
    shown.start("measuring the pace", TOLD_AFTER_STEPS, "step")
    endless = job.config.schedule.model_copy(update={"epochs": MOST_EPOCHS, "steps_per_epoch": job.steps_per_epoch})
    with advice_on_memory(job), closing(job.with_schedule(endless).training_batches(0, 0)) as batches:
        trial, times = TrainState(), [time.monotonic()]
        job.model.train()
        while len(times) <= TOLD_AFTER_STEPS:
            train_step(job, trial, batches, lr=0.0)
            times.append(time.monotonic())
            shown.advance()
            if ranks.broadcast(len(times) > 2 and times[-1] - times[0] > MOST_MEASURING * seconds):
                break
    settled = min(SETTLED_STEPS, len(times) // 2)
    step_s = (times[-1] - times[settled]) / (len(times) - 1 - settled)
    validation_s = 0.0
    for batches_taken in (1, MEASURED_BATCHES):  # the first one is slower than any after it
        started = time.monotonic()
        with advice_on_memory(job):
            validate(job, Silent(), batches_taken)
        most = max(1, job.count_of_validation_batches)
        validation_s = (time.monotonic() - started) * most / min(most, batches_taken)
    shown.finish()
    load_state_dict(job, before)

    with ranks.fail_together():
        left_s, steps = seconds - (time.monotonic() - began), job.steps_per_epoch
        schedule = fit_schedule(job.config.schedule, steps, left_s, step_s=step_s, validation_s=validation_s)
    schedule = ranks.broadcast(schedule)
    progress.say(
        f"--minutes {seconds / 60:g}: a step takes {step_s:.2g} s and a validation {validation_s:.2g} s, so"
        f" {counted(schedule.epochs, 'epoch')} of {counted(schedule.steps_per_epoch, 'step')}"
    )
    return job.with_schedule(schedule)


def train_step(  # noqa: C901  (all of a step on one screen)
    job: TrainJob, state: TrainState, batches: Iterator[Batch], *, lr: float | None = None
) -> Step:
    """Take one step of the optimizer, counted in `state`; `lr` takes the place of the schedule's learning rate.

    Its gradient is that of one batch of all crops of `optimizer.accumulate` batches: each counts by its labelled
    pixels, which is exact for the losses that are means over pixels. The forward pass alone runs under autocast; the
    loss is float32. While the encoder is frozen its norms use and keep the statistics they have, and the gradient that
    is computed for it is thrown away, since processes that train together expect one of every weight. With a loss or
    gradients that are not finite nothing moves: under float16 the scaler lowers its scale, otherwise Diverged is
    raised.
    """
    config, ranks, device, step = job.config, job.ranks, job.fabric.device, state.taken
    if lr is None:
        lr = learning_rate(step, job.total_steps, config.optimizer.lr, config.schedule)
    set_learning_rate(job.optimizer, lr)
    ranks.reseed(config.run.seed, step)
    encoder, frozen = job.model.network.get_submodule("encoder"), step < config.schedule.freeze_steps
    if encoder.training == frozen:
        encoder.train(not frozen)

    names: list[str] = []
    total = labelled = torch.zeros((), device=device)
    parts = config.optimizer.accumulate
    for part in range(1, parts + 1):
        batch = next(batches)
        names += batch.names
        batch = batch.to(device)
        with job.fabric.no_backward_sync(job.forward, enabled=part < parts):
            logits = job.forward(batch.pixels, batch.valid)
            loss = building_loss(logits, batch.target, config.loss, ranks.all_reduce_sum)
            share = ranks.mean((batch.target != IGNORE).float().mean()) if parts > 1 else loss.new_ones(())
            if job.teacher is not None:  # unlabelled ground teaches too, so batches count alike
                with torch.no_grad(), job.fabric.autocast():
                    teacher_logits = job.teacher.segmenter(batch.pixels, batch.valid)
                softened = teacher_logits / job.teacher.temperature
                loss = loss + distillation_loss(logits, softened, batch.valid, config.distil, ranks.all_reduce_sum)
                share = torch.ones_like(share)
            job.fabric.backward(loss * share)
        total, labelled = total + loss.detach() * share, labelled + share
        if part < parts:
            labelled.item()  # waits for the device: the next batch may be read into this one's memory
    if frozen:
        for parameter in encoder.parameters():
            parameter.grad = None
    labelled = labelled.clamp(min=LEAST_SHARE)
    if parts > 1:
        torch._foreach_div_([x.grad for x in job.model.parameters() if x.grad is not None], labelled)
    largest = config.optimizer.clip or math.inf
    norm = job.fabric.clip_gradients(job.forward, job.optimizer, max_norm=largest, error_if_nonfinite=False)
    mean_loss, length = ranks.mean(torch.stack([total / labelled, norm])).tolist()  # here alone the host waits
    taken = Step(mean_loss, length, tuple(names))

    finite = _is_finite(job, state, taken)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    if finite:
        state.loss += taken.loss
        if job.average is not None:
            update_average(job.average, job.model, average_decay(step, config.run.ema))
    state.step, state.taken = state.step + 1, step + 1
    return taken


def save(job: TrainJob, state: TrainState) -> None:
    """Write a checkpoint; any process may call this at any time, and only the first one writes."""
    if job.ranks.first:
        save_checkpoint(job.run, state_dict(job, state))


def validate(job: TrainJob, progress: Progress, most: int | None = None) -> ScoreHistogram | None:
    """Score the averaged weights on the cores of the validation tiles, of `most` batches; None when there are none."""
    if not job.validation:
        return None
    network = job.eval_model.eval()
    job.ranks.broadcast_buffers(network)

    def predict(pixels: Tensor, valid: Tensor) -> Tensor:
        with job.fabric.autocast():
            logits: Tensor = network(pixels, valid)
        return logits

    progress.start("validation", len(job.validation), "tile")
    with closing(job.validation_batches()) as batches:
        taken = islice(batches, most)
        histogram = score_tiles(predict, taken, device=job.fabric.device, progress=progress, ranks=job.ranks)
    progress.finish()
    return histogram


def score_epoch(job: TrainJob, state: TrainState, histogram: ScoreHistogram | None) -> EpochRecord:
    """Return the record of the epoch just trained: its loss and, with validation, its scores at the best threshold."""
    record = EpochRecord(
        epoch=state.epoch + 1,
        step=state.taken,
        lr=job.optimizer.param_groups[0]["lr"],
        loss=state.mean_loss,
        skipped=state.skipped,
        threshold=job.config.run.threshold,
    )
    if histogram is None:
        return record
    threshold = min(histogram.best_threshold()[0], HIGHEST_THRESHOLD)
    counts = histogram.confusion(threshold)
    scores = {name: getattr(counts, name) for name in ("iou", "accuracy", "precision", "recall", "f1")}
    return replace(record, iou_at_half=histogram.confusion(0.5).iou, threshold=threshold, **scores)


def save_if_best(job: TrainJob, state: TrainState, record: EpochRecord) -> None:
    """Save the model when it is the first, the best by validation IoU, or the newest of a run without validation.

    All processes keep the record; the first one writes the file.
    """
    iou = 0.0 if math.isnan(record.iou) else record.iou
    if job.validation and state.best_iou is not None and iou <= state.best_iou:
        return
    state.best_iou = record.iou if job.validation else None
    state.best_epoch, state.threshold = record.epoch, record.threshold
    if not job.ranks.first:
        return
    scores = {f"val_{name}": getattr(record, name) for name in SCORES if name != "threshold"}
    card = replace(
        job.card,
        threshold=record.threshold,
        scores={name: value for name, value in scores.items() if not math.isnan(value)},
        training={
            **job.card.training,
            "epoch": record.epoch,
            "steps": record.step,
            "device": job.fabric.device.type,
            "precision": job.precision,
            "seed": job.config.run.seed,
        },
    )
    save_model(job.run / FILE_NAME, job.eval_model, card)


def should_stop(job: TrainJob, state: TrainState) -> bool:
    """Return whether the schedule has ended, or patience: so many epochs in a row without a better IoU."""
    patience = job.config.schedule.patience
    tired = job.validation and patience and state.epoch - state.best_epoch >= patience
    return state.epoch >= job.config.schedule.epochs or bool(tired)


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
    return ScoreHistogram(ranks.all_reduce_sum(torch.from_numpy(histogram.counts)).numpy())


def count_scores(logits: Tensor, target: Tensor) -> Tensor:
    """Count pixels on the device: int64 [2, 255] of truth by round(254 x probability), ignored pixels left out."""
    probability = logits[:, 0].float().sigmoid()
    stored = (probability * QUANTA).round().long()
    cells = stored + CELLS * (target == 1)
    return torch.bincount(cells[target != IGNORE], minlength=2 * CELLS).reshape(2, CELLS)


def _is_finite(job: TrainJob, state: TrainState, step: Step) -> bool:
    """Return whether a step may count; raise Diverged when it may not and no loss scaling explains it."""
    loss, norm = step.loss, step.norm
    if math.isfinite(loss) and math.isfinite(norm):
        state.skipped_in_a_row = 0
        return True
    state.skipped, state.skipped_in_a_row = state.skipped + 1, state.skipped_in_a_row + 1
    scaled = bool(job.fabric.strategy.precision.state_dict())
    if scaled and state.skipped_in_a_row <= MOST_SKIPPED:
        return False
    names = list(dict.fromkeys(name for theirs in job.ranks.all_gather(step.names) for name in theirs))
    shown = ", ".join(one_line(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    problem = Diverged(
        f"{one_line(job.run)}: step {state.taken + 1} (epoch {state.epoch + 1}): loss is {loss:g}, gradient norm"
        f" {norm:g}, on tiles {shown}; this step is not saved and the last good model is kept: lower optimizer.lr, look"
        " at these tiles, or set run.precision=fp32"
    )
    with job.ranks.fail_together():  # all of them have the same numbers, and one says so
        raise problem


def _start(
    checkpoint: Checkpoint | None, tiles: TileSet, config: TrainConfig, options: TrainOptions, progress: Progress
) -> Start:
    use_unlabelled = options.teacher is not None
    if checkpoint is not None:
        start = start_again(tiles, checkpoint)
    elif options.start_from is not None:
        start = start_from_model(tiles, config, options.start_from, progress.say, use_unlabelled=use_unlabelled)
    else:
        start = start_fresh(tiles, config, use_unlabelled=use_unlabelled)
    return with_teacher(start, options.teacher, resumed=checkpoint is not None)
