"""What networks cost as tiles grow: one row per network and size; what would take too much is left out and says so."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from aerialseg.errors import UsageError
from aerialseg.models.build import ModelSpec, count_network, outline
from aerialseg.models.device import pick_device, pick_precision
from aerialseg.models.presets import SIZE_MULTIPLE
from aerialseg.workflows.doctor import available_memory
from aerialseg.workflows.network_cost import Trial, build, measure_apart, measure_here

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from aerialseg.progress import Progress

GB = 1e9


@dataclass(frozen=True, slots=True)
class Contestant:
    """A network under the name of its row."""

    name: str
    spec: ModelSpec
    encoder_only: bool = False
    """Measure our own encoder without the spec's decoder, for mixers differ in nothing else."""
    size_multiple: int = SIZE_MULTIPLE


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """On what the networks are measured."""

    sizes: tuple[int, ...]
    batch: int = 2
    """Tiles per pass; some networks cannot learn from a single one."""
    device: str = "auto"
    precision: str = "auto"
    limit_s: float = 60.0
    """A size is left out when a pass, forward and backward, would probably take longer."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            if not 32 <= size <= 8192 or size % SIZE_MULTIPLE:
                raise UsageError(f"--sizes has {size}, expected multiples of {SIZE_MULTIPLE} from 32 to 8192")
        if not 1 <= self.batch <= 4096:
            raise UsageError(f"--batch is {self.batch}, expected 1 to 4096")
        if not self.limit_s > 0:
            raise UsageError(f"--limit is {self.limit_s:g}, expected seconds above 0")


@dataclass(frozen=True, slots=True)
class Row:
    """One network at one size; times and memory are None where `note` says why (see Cost for what they are)."""

    name: str
    size: int
    parameters: int
    gmacs: float | None
    """Billions of multiply-adds of one tile, forward; of the encoder alone where only that is measured."""
    forward_s: float | None = None
    forward_bytes: int | None = None
    train_s: float | None = None
    train_bytes: int | None = None
    note: str = ""


def measure_costs(contestants: Sequence[Contestant], options: BenchOptions, progress: Progress) -> Iterator[Row]:
    """Yield a row for every network and size, small tiles first.

    On a processor each is measured in a process of its own. Raises DeviceError before anything is measured.
    """
    device = pick_device(options.device)
    options = replace(options, device=str(device), precision=pick_precision(options.precision, device))
    sizes = sorted(set(options.sizes))
    progress.start("measuring", len(contestants) * len(sizes), "measurement")
    for contestant in contestants:
        network, before = _outline(contestant), None
        for size in sizes:
            row = _counted(contestant, network, size)
            reason = row.note or _why_not(row, before, options)
            row = replace(row, note=reason) if reason else _measured(contestant, row, options, progress)
            before = before if row.note else row
            progress.advance(1, f"{contestant.name} at {size} px")
            yield row
    progress.finish()


def _outline(contestant: Contestant) -> nn.Module:
    if not contestant.encoder_only:
        return outline(contestant.spec)
    with torch.device("meta"):
        return build(contestant.spec, encoder_only=True)


def _counted(contestant: Contestant, network: nn.Module, size: int) -> Row:
    if size % contestant.size_multiple:
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return Row(contestant.name, size, parameters, None, note=f"takes multiples of {contestant.size_multiple}")
    parameters, macs = count_network(network, contestant.spec.bands, size)
    return Row(contestant.name, size, parameters, macs / 1e9)


def _why_not(row: Row, before: Row | None, options: BenchOptions) -> str:
    """Say why a size is not measured, as far as the size `before` it tells."""
    if before is None or before.train_s is None or not before.gmacs or row.gmacs is None:
        return ""
    seconds = before.train_s * options.batch * row.gmacs / before.gmacs
    if seconds > options.limit_s:
        return f"left out: about {seconds:,.0f} s a pass, the limit is {options.limit_s:g} s"
    needed, free = (before.train_bytes or 0) * (row.size / before.size) ** 2, _free_memory(options.device)
    if free is not None and needed > free:
        return f"left out: about {needed / GB:,.0f} GB, {free / GB:,.0f} GB are free"
    return ""


def _measured(contestant: Contestant, row: Row, options: BenchOptions, progress: Progress) -> Row:
    free = _free_memory(options.device)
    where = (options.device, options.precision)
    trial = Trial(contestant.spec, row.size, options.batch, *where, options.limit_s, contestant.encoder_only, free)
    cost = measure_apart(trial, progress) if options.device == "cpu" else measure_here(trial)
    return replace(row, note=cost) if isinstance(cost, str) else replace(row, **asdict(cost))


def _free_memory(device: str) -> int | None:
    """Return the bytes that a pass may take; torch's own reserve on a card is free too."""
    if device == "cpu":
        return available_memory()
    if not device.startswith("cuda"):
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
