"""Whether training waits for its data: how fast crops come, how fast steps go with and without, and what takes time.

The steps are the training's own. Steps on one batch that stays on the device are the most that any feed could give;
they are timed before and after those with data, so that a machine that gets slower meanwhile harms both alike.
`seconds_per_step` asks the same without any tiles, on made-up pixels.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.build import Segmenter, build_network
from aerialseg.models.device import autocast, pick_device, pick_precision, wait_for
from aerialseg.models.presets import SIZE_MULTIPLE, resolve
from aerialseg.training.batches import AHEAD, open_readers
from aerialseg.training.data import TileReader
from aerialseg.training.job import TrainJob, build_job, reading_threads
from aerialseg.training.loop import train_step
from aerialseg.training.losses import building_loss
from aerialseg.training.start import start_fresh
from aerialseg.training.state import TrainState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from aerialseg.config import TrainConfig
    from aerialseg.progress import Progress
    from aerialseg.training.batches import Batch

PHASES = ("data", "copy", "forward", "backward", "optimizer")
"""Waiting for a batch, moving it to the device, the network, loss and gradients, the update with the average."""
PLAIN = {"flips": False, "scale": 0.0, "colour": 0.0, "degrade": 0.0}
"""Settings of [data] that leave crops as they are."""
UNTRAINED, FOREVER = {"weights": "none"}, {"epochs": 100_000, "patience": 0}
WARM_UP, COUNTED = 1, 2
BANDS = 3


@dataclass(frozen=True, slots=True)
class FeedReport:
    """What was measured; rates are per second."""

    preset: str
    device: str
    precision: str
    crop: int
    batch: int
    """Crops of a step."""
    threads: int
    cached: bool
    """Whether the tiles were read from a cache, or each from its file."""
    raw: float
    """Crops that are neither zoomed nor changed, into the memory of batches."""
    augmented: float
    """Crops as the configuration changes them."""
    fixed: float
    """Steps on one batch that stays on the device."""
    fed: float
    """Steps with batches of crops."""
    spent: dict[str, float]
    """Phase of a step -> its share of the time; the device is waited for after each, which by itself costs time."""

    @property
    def ratio(self) -> float:
        """Speed with data over the speed without."""
        return self.fed / self.fixed

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "ratio": self.ratio}

    def summary(self) -> str:
        """Return the report as lines for a person."""
        crops = f"{self.crop} px crops/s with {self.threads} threads from {'the cache' if self.cached else 'files'}"
        spent = ", ".join(f"{phase} {share:.1%}" for phase, share in self.spent.items())
        return (
            f"{self.preset} on {self.device} in {self.precision}, {self.batch} crops a step\n"
            f"feed as it is   {self.raw:,.0f} {crops}\n"
            f"feed augmented  {self.augmented:,.0f}\n"
            f"one batch kept  {self.fixed:,.2f} steps/s, {self.fixed * self.batch:,.1f} crops/s\n"
            f"with data       {self.fed:,.2f} steps/s, {self.fed * self.batch:,.1f} crops/s: {self.ratio:.1%} of that\n"
            f"time of a step  {spent}"
        )


def bench_train(folder: Path, config: TrainConfig, *, device: str, seconds: float, progress: Progress) -> FeedReport:
    """Measure each rate for about `seconds`; nothing is written, except the cache of the tiles where it is not there.

    Raises what `train` raises before its first step.
    """
    model, schedule = config.model.model_copy(update=UNTRAINED), config.schedule.model_copy(update=FOREVER)
    config = config.model_copy(update={"model": model, "schedule": schedule})
    tiles, chosen = load_tileset(folder), pick_device(device)
    threads = reading_threads(config.data.threads)
    with open_readers(threads) as readers:
        start = start_fresh(tiles, config)
        job = build_job(Path(), start, device=chosen, readers=readers, progress=progress)
        progress.start("measuring", 5, "rate")
        plain = job.config.data.model_copy(update=PLAIN)
        reader = TileReader(job.tiles, plain, SIZE_MULTIPLE, job.reader.cache)
        untouched = replace(job, sampler=replace(job.sampler, section=plain), reader=reader)
        raw = _feed_rate(untouched, seconds, progress)
        augmented = _feed_rate(job, seconds, progress)
        fixed, fed = _step_rates(job, seconds, progress)
        spent = _spent(job, seconds, progress)
        progress.finish()
    section, cached, crops = config.data, job.reader.cache is not None, config.data.batch * config.optimizer.accumulate
    return FeedReport(
        job.card.preset, str(chosen), job.precision, section.crop, crops, threads, cached,
        raw=raw, augmented=augmented, fixed=fixed, fed=fed, spent=spent,
    )  # fmt: skip


def _feed_rate(job: TrainJob, seconds: float, progress: Progress) -> float:
    """Return how many crops a second come when nothing is done with them."""
    with closing(job.training_batches(0, 0)) as batches:
        for _ in range(AHEAD + 1):  # the memory is touched for the first time
            next(batches)
        taken, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            taken += len(next(batches).names)
            progress.advance(0)
    progress.advance(1, f"{taken / passed:,.0f} crops/s")
    return taken / passed


def _step_rates(job: TrainJob, seconds: float, progress: Progress) -> tuple[float, float]:
    """Return steps a second on one batch and with data."""
    state, counted = TrainState(), {True: (0, 0.0), False: (0, 0.0)}
    job.model.train()
    with closing(job.training_batches(0, 0)) as batches:
        first = next(batches).to(job.fabric.device)
        copies = (x.clone(memory_format=torch.preserve_format) for x in (first.pixels, first.target, first.valid))
        pixels, target, valid = copies  # on a processor the memory of the stream is filled anew
        kept = replace(first, pixels=pixels, target=target, valid=valid)
        for fed in (False, True, True, False):
            steps, spent = _timed(job, state, batches if fed else repeat(kept), seconds / 2, progress)
            counted[fed] = counted[fed][0] + steps, counted[fed][1] + spent
    progress.advance(2)
    return (counted[False][0] / counted[False][1], counted[True][0] / counted[True][1])


def _timed(
    job: TrainJob, state: TrainState, batches: Iterator[Batch], seconds: float, progress: Progress
) -> tuple[int, float]:
    """Take steps for a while, after some that are not counted: they use up, or leave, what was read ahead."""
    for _ in range(AHEAD + 1):
        train_step(job, state, batches)
        progress.advance(0)
    wait_for(job.fabric.device)
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        train_step(job, state, batches)
        steps += 1
        progress.advance(0)
    wait_for(job.fabric.device)
    return steps, time.perf_counter() - began


def _spent(job: TrainJob, seconds: float, progress: Progress) -> dict[str, float]:
    """Return the share of each phase in steps with data."""
    spent, phase, since = dict.fromkeys(("", *PHASES), 0.0), "", 0.0

    def enter(following: str) -> None:
        nonlocal phase, since
        wait_for(job.fabric.device)
        now = time.perf_counter()
        spent[phase] += now - since
        phase, since = following, now

    def watched(batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            enter("data")
            batch = next(batches)
            enter("copy")
            moved = batch.to(job.fabric.device)
            enter("forward")
            yield moved

    inner: torch.optim.Optimizer = getattr(job.optimizer, "optimizer", job.optimizer)  # the one that Fabric wraps
    hooks = [
        job.forward.register_forward_hook(lambda *_: enter("backward")),
        inner.register_step_pre_hook(lambda *_: enter("optimizer")),
    ]
    try:
        with closing(job.training_batches(0, 0)) as batches:
            _timed(job, TrainState(), watched(batches), seconds, progress)
    finally:
        for hook in hooks:
            hook.remove()
    progress.advance(1)
    whole = sum(spent[phase] for phase in PHASES)
    return {phase: spent[phase] / whole for phase in PHASES}


def seconds_per_step(config: TrainConfig, device: str = "auto") -> float:
    """Return the seconds of the forward and backward passes of one step; reading tiles is not in it.

    That is the faster of two passes, so that another program's burst does not count, times a step's batches; three
    passes are taken in all.
    """
    chosen = pick_device(device)
    precision = pick_precision(config.run.precision, chosen)
    section, data = config.model, config.data
    spec = resolve(
        section.preset,
        section.architecture,
        section.encoder,
        encoder_arguments=section.encoder_arguments,
        bands=BANDS,
        accept_licence=section.accept_licence,
    )
    model = Segmenter(build_network(spec), (128.0,) * BANDS, (64.0,) * BANDS)
    model.to(chosen).to(memory_format=torch.channels_last).train()
    pixels = torch.randint(0, 256, (data.batch, BANDS, data.crop, data.crop), dtype=torch.uint8, device=chosen)
    target = pixels[:, 0] // 128
    times = []
    for _ in range(WARM_UP + COUNTED):
        began = time.monotonic()
        with autocast(chosen, precision):
            logits = model(pixels)
        loss = building_loss(logits, target, config.loss)
        torch.autograd.backward(loss)
        float(loss.detach())  # waits for a device that runs behind
        times.append(time.monotonic() - began)
    return min(times[WARM_UP:]) * config.optimizer.accumulate
