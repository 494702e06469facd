"""Everything a training needs, put together once: device, precision, network, optimizer, and what reads the tiles."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision, Precision
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import nn

from aerialseg.errors import ConfigError, ResourceError, one_line
from aerialseg.files import usable_processors
from aerialseg.models.device import is_out_of_memory, pick_precision
from aerialseg.models.presets import SIZE_MULTIPLE
from aerialseg.progress import Progress, Silent
from aerialseg.training.batches import BatchLayout, stream_batches
from aerialseg.training.cache import open_tiles
from aerialseg.training.data import Sampler, TileReader, steps_to_cover, training_tiles, validation_tiles
from aerialseg.training.optimizer import build_optimizer
from aerialseg.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from aerialseg.config import TrainConfig
    from aerialseg.config.sections import ScheduleSection
    from aerialseg.geo.tiles.tileset import TileRecord, TileSet
    from aerialseg.models.build import Segmenter
    from aerialseg.models.package import ModelCard
    from aerialseg.training.batches import Arrays, Batch, Item, Readers
    from aerialseg.training.start import Start, Teacher

MOST_THREADS = 16


@dataclass(frozen=True, slots=True)
class TrainJob:
    """The parts of one training; the modules change as it goes on, the references do not."""

    run: Path
    config: TrainConfig
    tiles: TileSet
    validation: tuple[TileRecord, ...]
    sampler: Sampler
    reader: TileReader
    readers: Readers
    fabric: Fabric
    precision: str
    """fp32, bf16 or fp16."""
    model: Segmenter
    forward: nn.Module
    """`model` as Fabric wraps it: autocast around its forward pass, logits out in float32."""
    average: Segmenter | None
    """The running average of the model's weights; None when it is turned off."""
    optimizer: torch.optim.AdamW
    card: ModelCard
    still_waiting: Callable[[], None]
    """Called while a read takes long; raises Stopped when a stop was asked for."""
    ranks: Ranks
    teacher: Teacher | None = None

    @property
    def eval_model(self) -> Segmenter:
        """The weights that are validated and saved."""
        return self.model if self.average is None else self.average

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer; each takes `optimizer.accumulate` batches, and the sampler counts those."""
        return self.sampler.steps_per_epoch // self.config.optimizer.accumulate

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule."""
        return self.config.schedule.epochs * self.steps_per_epoch

    def training_batches(self, epoch: int, step: int) -> Generator[Batch, None, None]:
        """Yield this process's share of the batches from `step` of `epoch` to the end of the schedule.

        They are read ahead across epochs.
        """
        section, first = self.config.data, step * self.config.optimizer.accumulate
        share = self.ranks.local_batch(section.batch)
        groups = self.sampler.groups(epoch, first, self.config.schedule.epochs, share)
        return self._stream(groups, self.reader.crop, self._layout(share.stop - share.start, section.crop))

    def validation_batches(self) -> Generator[Batch, None, None]:
        """Yield this process's share of the validation tiles, as many at once as have a training batch's pixels.

        Every process gets as many batches; the last one may be empty.
        """
        size, ranks = self._validation_size, self.ranks
        starts = range(ranks.rank * size, len(self.validation) + ranks.rank * size, ranks.world * size)
        groups = [self.validation[first : first + size] for first in starts]
        return self._stream(groups, self.reader.whole, self._layout(size, self.reader.validation_side))

    @property
    def count_of_validation_batches(self) -> int:
        """How many batches each process validates."""
        return math.ceil(len(self.validation) / (self._validation_size * self.ranks.world)) if self.validation else 0

    @property
    def _validation_size(self) -> int:
        """How many validation tiles a process scores at once."""
        side, section = self.reader.validation_side, self.config.data
        return min(len(self.validation), max(1, section.batch // self.ranks.world * section.crop**2 // side**2))

    def with_schedule(self, schedule: ScheduleSection) -> TrainJob:
        """Return the job with another schedule of a known length, also in the card of the model to come."""
        config = self.config.model_copy(update={"schedule": schedule})
        steps = schedule.steps_per_epoch * config.optimizer.accumulate
        card = replace(self.card, training={**self.card.training, "config": config.model_dump()})
        return replace(self, config=config, sampler=replace(self.sampler, steps_per_epoch=steps), card=card)

    def _stream(
        self, groups: Iterable[Sequence[Item]], read: Callable[[Item], Arrays], layout: BatchLayout
    ) -> Generator[Batch, None, None]:
        timeout_s = self.config.data.timeout_s
        batches = stream_batches(
            groups, read, layout=layout, readers=self.readers, timeout_s=timeout_s, still_waiting=self.still_waiting
        )
        return batches if self.ranks.world == 1 else self.ranks.in_step(batches, self.still_waiting)

    def _layout(self, size: int, side: int) -> BatchLayout:
        return BatchLayout(size, self.card.bands, side, side, pinned=self.fabric.device.type == "cuda")


def build_job(
    run: Path,
    start: Start,
    *,
    device: torch.device,
    readers: Readers,
    progress: Progress = Silent(),
    ranks: Ranks = ALONE,
) -> TrainJob:
    """Put the network on its device and everything else around it; all of `ranks` come here at once."""
    config, tiles = start.config, start.tiles
    chosen = training_tiles(tiles, config.data, use_unlabelled=start.teacher is not None)
    parts = config.optimizer.accumulate
    steps = config.schedule.steps_per_epoch or math.ceil(steps_to_cover(chosen, config.data) / parts)
    with ranks.fail_together():
        precision = pick_precision(config.run.precision, device)
        if config.run.checkpoint_activations:
            enable_gradient_checkpointing(start.segmenter)
        model = start.segmenter.to(device).to(memory_format=torch.channels_last).train()
        if ranks.world > 1 and device.type == "cuda":  # on a processor torch has none, and announce() says so
            model = convert_sync_batchnorm(model)
    fabric = build_fabric(device, precision, ranks)
    average = copy.deepcopy(model).eval().requires_grad_(False) if config.run.ema > 0 else None
    forward, optimizer = fabric.setup(model, build_optimizer(model, config.optimizer))
    with ranks.fail_together():
        cache = open_tiles(tiles, config.data, readers, progress)
    return TrainJob(
        run=run,
        config=config,
        tiles=tiles,
        validation=validation_tiles(tiles, config.data),
        sampler=Sampler(chosen, config.data, tiles.size, config.run.seed, steps * parts),
        reader=TileReader(tiles, config.data, SIZE_MULTIPLE, cache),
        readers=readers,
        fabric=fabric,
        precision=precision,
        model=model,
        forward=forward,
        average=average,
        optimizer=optimizer,
        card=start.card,
        still_waiting=lambda: progress.advance(0),
        ranks=ranks,
        teacher=None if start.teacher is None else start.teacher.to(device),
    )


def build_fabric(device: torch.device, precision: str, ranks: Ranks = ALONE) -> Fabric:
    """Return Fabric for this process's device; float16 comes with loss scaling, several processes with DDP."""
    plugin = Precision()
    if precision != "fp32":
        plugin = MixedPrecision("16-mixed" if precision == "fp16" else "bf16-mixed", device.type)
    torch.backends.cudnn.benchmark = device.type == "cuda"  # every batch has the same shape
    if ranks.world == 1:
        devices = [device.index or 0] if device.type == "cuda" else 1
        return Fabric(accelerator=device.type, devices=devices, plugins=[plugin])
    fabric = Fabric(
        accelerator=device.type,
        devices=ranks.local_world,
        num_nodes=ranks.world // ranks.local_world,
        strategy=DDPStrategy(gradient_as_bucket_view=True),
        plugins=[plugin, TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def reading_threads(wanted: int, processes: int = 1) -> int:
    """Return how many threads read tiles: as many as wanted; for 0, one per processor, 2 to 16.

    The processors are those that this process may use, shared with the other `processes` of this machine.
    """
    return wanted or max(2, min(MOST_THREADS, usable_processors() // processes))


def enable_gradient_checkpointing(model: Segmenter) -> None:
    """Have the encoder's activations computed again in the backward pass instead of kept; gradients stay the same.

    Chen et al., arXiv:1604.06174. Raises ConfigError for an encoder that cannot, and for one with BatchNorm, whose
    running statistics would count every batch twice.
    """
    encoder = model.network.get_submodule("encoder")
    inner = getattr(encoder, "model", None)  # a timm encoder's network
    able: list[Any] = [part for part in (encoder, inner) if hasattr(part, "set_grad_checkpointing")]
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    if normed or not able:
        why = "has BatchNorm, whose statistics would count twice" if normed else "has no way to do that"
        raise ConfigError(
            f"run.checkpoint_activations: encoder {type(encoder).__name__} {why}; leave it off, and take a smaller"
            " data.batch with a larger optimizer.accumulate, or a transformer"
        )
    able[0].set_grad_checkpointing(True)


@contextmanager
def advice_on_memory(job: TrainJob) -> Iterator[None]:
    """Turn memory that does not suffice into advice, for a smaller batch is another training."""
    try:
        yield
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
