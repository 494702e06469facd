"""One scene through a network: windows in, blended probabilities out, in strips of finished rows.

Four threads: two read ahead, the main one runs the network and blends, one writes behind. On a CUDA device pixels cross
once as uint8 and quantised planes come back as uint8; normalising, blending and quantising happen there, by the same
code as on a CPU. Weighted probabilities are summed under one row of windows, and finished rows leave at the top, are
brought back to the scene's own grid, quantised, and handed to the host. float32 sums are added up in the order of the
lattice, row by row, so that a scene and the raster it is a piece of add the same numbers in the same order.

Planes: 0 is the probability, 1 how far the windows over a pixel disagree; `geo.outputs` says which raster holds which.
Masks, files and reports are made elsewhere.
"""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
import torch

from aerialseg.counts import NODATA, QUANTA
from aerialseg.errors import AerialsegError, ModelError, ResourceError, one_line
from aerialseg.files import available_memory
from aerialseg.geo.resampling import ROWS_AT_ONCE
from aerialseg.geo.windows import blend_weights
from aerialseg.models.device import is_out_of_memory
from aerialseg.prediction.lattice import CHUNK_ROWS, Lattice, Regrid, Schedule
from aerialseg.prediction.network import batch_size, mark
from aerialseg.prediction.reading import (
    BANDS,
    READ_DEPTH,
    WRITE_DEPTH,
    WindowBatch,
    is_read_twice,
    read_ahead,
    read_batches,
    write_behind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.network import EngineSettings, Forward
    from aerialseg.prediction.reading import Validity

FLOAT = 4
OVERHEAD = 44 << 20
"""Threads, the allocator's reserves, code that is loaded on first use: measured."""
MIDDLE = 0.5
"""What probabilities are counted from for their spread: near zero squares lose fewer digits."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """What one scene took: windows of the lattice, and those among them that held a valid pixel and were run."""

    windows: int
    run: int


def predict_scene(
    forward: Forward,
    placement: ScenePlacement,
    sink: Generator[None, Strip | None],
    advance: Callable[[float], None] = lambda amount: None,
    *,
    skip: int = 0,
    stop: int | None = None,
) -> Streamed:
    """Send the scene's strips, top to bottom, to `sink`, a generator that runs in a thread of its own.

    With `skip` and `stop`, borders of strips of the whole scene, only the strips of its rows [skip, stop) are made:
    windows that only touch other rows are not run, and the strips are the same bytes. `advance` is called in this
    thread after every batch with the million pixels done, and may raise. Memory grows with the scene's
    width: see `peak_bytes`. Raises what the reader, the sink, `forward` and `advance` raise, ModelError when the
    network gives NaN, and ResourceError when the scene's own arrays do not fit into memory, if that can be told
    before anything is read; else the sink has been closed at its `yield`. Nothing is left running.
    """
    _require_memory(placement, forward.settings, len(placement.source.bands))
    try:
        return _stream(forward, placement, sink, advance, (skip, placement.source.box.height if stop is None else stop))
    except AerialsegError as error:
        _clear_frames(error)
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _clear_frames(error)
        raise _too_wide(placement, forward.settings) from error


def _stream(
    forward: Forward,
    placement: ScenePlacement,
    sink: Generator[None, Strip | None],
    advance: Callable[[float], None],
    rows: tuple[int, int],
) -> Streamed:
    settings, box, bands = forward.settings, placement.source.box, len(placement.source.bands)
    lattice = Lattice.of(placement, settings.size, settings.overlap, *rows)
    schedule = Schedule.of(placement, lattice, rows[0])
    mpx, run = (rows[1] - rows[0]) * box.width / 1e6, 0
    with write_behind(sink, WRITE_DEPTH) as put:
        if not lattice.count:  # no row is asked for
            return Streamed(0, 0)
        accumulator, maker = Accumulator(lattice, settings), StripMaker(placement, schedule, settings, WRITE_DEPTH + 1)
        validity: Validity = SimpleQueue()
        together, pinned = batch_size(settings, lattice), settings.device.type == "cuda"
        buffers = [WindowBatch.empty(together, bands, settings.size, pinned=pinned) for _ in range(READ_DEPTH)]
        with read_ahead(read_batches(placement, schedule, buffers, validity), READ_DEPTH) as batches:
            for batch in batches:
                for (row, col), probability in zip(batch.places, forward(batch), strict=False):
                    for strip in maker.strips(accumulator.finish(row), validity):
                        put(strip)
                    accumulator.add(row, col, probability)
                run += len(batch.places)
                advance(len(batch.places) * mpx / lattice.count)
            for strip in maker.strips(accumulator.finish(lattice.down.stop), validity):
                put(strip)
    advance((lattice.count - run) * mpx / lattice.count)
    return Streamed(lattice.count, run)


def _clear_frames(error: BaseException) -> None:
    """Let go of the arrays that an error's traceback holds: failures are kept for the report while other scenes run."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def peak_bytes(placement: ScenePlacement, settings: EngineSettings, bands: int) -> int:
    """Return about how much host memory predicting the scene takes at most, beyond the network itself."""
    lattice = Lattice.of(placement, settings.size, settings.overlap)
    planes = settings.planes
    batch, area = batch_size(settings, lattice), settings.size * settings.size
    under, width = lattice.size * lattice.padded, placement.source.box.width
    boxes = [placement.source.box, *(neighbour.source.box for neighbour in placement.neighbours)]
    item = np.dtype(placement.source.dtype).itemsize
    scene = sum(box.height * box.width for box in boxes) * len(placement.source.bands) * item
    total = OVERHEAD + min(_cache_bytes(), scene)
    total += BANDS * under * (bands + 1) + _reading(placement, lattice, bands)
    total += READ_DEPTH * batch * area * (bands + 1)
    rows = lattice.size if placement.factor == 1 else CHUNK_ROWS
    strips = planes * rows * width
    total += strips * (WRITE_DEPTH + 2) + 4 * rows * width  # quantised; valid, and what the sink makes of a strip
    if settings.device.type != "cuda":
        total += batch * area * FLOAT * (3 * bands + 3)  # standardised pixels, logits, probabilities
        if settings.tta != "none":
            # the view, what it says, turned back, and what the view before it held
            total += batch * area * (2 * (bands + 1) + FLOAT * (2 * bands + 4))
        total += planes * (under + area) * FLOAT
        if placement.factor != 1:
            total += planes * FLOAT * (under + 4 * rows * width)
        elif planes > 1:
            total += under * FLOAT
    return total


def _reading(placement: ScenePlacement, lattice: Lattice, bands: int) -> int:
    """Return what reading the rows under a row of windows takes, in pixels of the scene's own grid."""
    rows = min(placement.height, round(lattice.size * placement.factor))
    cols = min(placement.width, round(lattice.padded * placement.factor))
    item = np.dtype(placement.source.dtype).itemsize
    each = bands * item + 2
    if placement.source.scale is not None:
        each += bands * (1 + FLOAT * (1 if item <= 2 else 2))
    total = CHUNK_ROWS * placement.source.box.width * each if is_read_twice(placement) else 0  # beside what follows
    if placement.neighbours:
        each += bands + 1
    total += rows * cols * each
    if placement.factor != 1:
        total += 5 * FLOAT * bands * ROWS_AT_ONCE * (cols + lattice.padded)
        total += lattice.size * lattice.padded * (bands + 1)
    return total


def _cache_bytes() -> int:
    """Return GDAL's block cache in bytes; its variable holds megabytes when it is a small number."""
    given = os.environ.get("GDAL_CACHEMAX", "")
    size = int(given) if given.isdigit() else 64
    return size << 20 if size < 100000 else size


def _too_wide(placement: ScenePlacement, settings: EngineSettings, found: str = "") -> ResourceError:
    name, width = one_line(placement.source.path), placement.source.box.width
    return ResourceError(
        f"{name}: out of memory with rows of {settings.size} px windows over {width:,} px{found};"
        " use a smaller --window or --batch, or cut the scene into less wide ones"
    )


def _require_memory(placement: ScenePlacement, settings: EngineSettings, bands: int) -> None:
    """Raise ResourceError when the scene's own arrays will not fit into what is free, before any of it is read."""
    needed, free = peak_bytes(placement, settings, bands), available_memory()
    if needed > free:
        raise _too_wide(placement, settings, f" need {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free")


class Accumulator:
    """float32 [planes, size, padded width]: the probability, and where asked for its square."""

    def __init__(self, lattice: Lattice, settings: EngineSettings) -> None:
        device = settings.device
        self._lattice, self._row = lattice, lattice.down.start
        down = blend_weights(lattice.rows, settings.blend, lattice.down)
        across = blend_weights(lattice.cols, settings.blend, lattice.across)
        self._down, self._across = torch.from_numpy(down).to(device), torch.from_numpy(across).to(device)
        self._kinds = _kinds(down), _kinds(across)
        self._weighted = (-1, -1)
        self._sum = torch.zeros((settings.planes, lattice.size, lattice.padded), device=device)
        self._weight = torch.empty((lattice.size, lattice.size), device=device)
        self._starts = lattice.starts()

    def add(self, row: int, col: int, probability: Tensor) -> None:
        """Add one window's probability [size, size]; windows come row by row."""
        down = row - self._lattice.down.start
        kinds = self._kinds[0][down], self._kinds[1][col]
        if kinds != self._weighted:  # most windows have the weights of the one before
            torch.outer(self._down[down], self._across[col], out=self._weight)
            self._weighted = kinds
        start = self._starts[col]
        under = self._sum[..., start : start + self._lattice.size]
        under[0].addcmul_(probability, self._weight)
        if len(under) > 1:
            under[1].addcmul_((probability - MIDDLE).square_(), self._weight)

    def finish(self, until: int) -> Iterator[tuple[int, Tensor]]:
        """Yield, for each row of windows before `until`, its number and the scene's rows that are final after it.

        float32 [planes, rows, the scene's columns], to be used before the next is asked for: a view that moves on.
        """
        lattice, size, step = self._lattice, self._lattice.size, self._lattice.rows.step
        while self._row < until:
            (start, stop), top = lattice.finished(self._row), self._row * step
            cols = slice(lattice.left - lattice.first_col, lattice.right - lattice.first_col)
            rows = self._sum[:, start - top : stop - top, cols]
            if len(rows) > 1:  # twice the standard deviation: 0 where windows agree, 1 where 0 meets 1
                mean, square = rows
                square -= (mean - MIDDLE).square_()
                square.clamp_(min=0).sqrt_().mul_(2)
            yield self._row, rows
            for first in range(0, size - step, step):  # by steps, for copying onto itself has no order
                kept = self._sum[:, first + step : first + 2 * step]
                self._sum[:, first : first + kept.shape[1]] = kept
            self._sum[:, size - step :] = 0
            self._row += 1


def _kinds(weights: NDArray[np.float32]) -> list[int]:
    """Return a number for each row of weights [count, size]; equal rows have equal numbers."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(row.tobytes(), len(numbers)) for row in weights]


@dataclass(frozen=True, slots=True)
class Strip:
    """Finished rows of a scene, the first one at `row`; the buffer is the engine's and is filled again later."""

    row: int
    buffer: Tensor
    """uint8 [planes, rows, width]"""
    valid: NDArray[np.bool_] | None
    """[rows, width]; None when all are."""
    arrival: Arrival | None
    """None where nothing is under way: on a processor."""

    def planes(self) -> NDArray[np.uint8]:
        """Return round(254 x value) of every plane, [planes, rows, width], 255 where the scene has no data.

        Waits for the device. Raises ModelError when the network gave NaN, which would read as a number here.
        """
        if self.arrival is not None:
            self.arrival.wait()
        planes: NDArray[np.uint8] = self.buffer.numpy()
        if self.valid is not None:
            planes[:, ~self.valid] = NODATA
        return planes


@dataclass(frozen=True, slots=True)
class Arrival:
    """A strip's way from a CUDA device to the host, which is known to be sound once it has come."""

    event: torch.cuda.Event
    total: Tensor
    """What the strip's probabilities add up to: a number on the host, there after `event`."""
    scene: str

    def wait(self) -> None:
        """Wait until the strip is there; raises ModelError when it holds a NaN."""
        self.event.synchronize()
        _refuse_nan(self.total, self.scene)


class StripMaker:
    """Turns finished rows of the grid that is run into strips of the scene's own, in `hosts` buffers used in turn."""

    def __init__(self, placement: ScenePlacement, schedule: Schedule, settings: EngineSettings, hosts: int) -> None:
        device = settings.device
        self._schedule, self._name = schedule, one_line(placement.source.path)
        cols = Regrid.cols_of(placement)
        self._back = (
            None if schedule.rows is None or cols is None else _Back(schedule.rows, cols, schedule.lattice.left, device)
        )
        rows = schedule.lattice.size if self._back is None else CHUNK_ROWS
        size, pinned = settings.planes * rows * placement.source.box.width, device.type == "cuda"
        self._quanta = None if device.type == "cpu" else torch.empty(size, dtype=torch.uint8, device=device)
        self._hosts = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(hosts)]
        self._totals = torch.empty(hosts, pin_memory=pinned)
        self._turn = 0

    def strips(self, finished: Iterable[tuple[int, Tensor]], validity: Validity) -> Iterator[Strip]:
        """Yield the strips that leave after rows of windows, given what `Accumulator.finish` yields of each."""
        for index, rows in finished:
            begin, _ = self._schedule.lattice.finished(index)
            if self._back is not None:
                self._back.put(begin, rows)
            for start, stop in self._schedule.strips(index):
                planes = rows if self._back is None else self._back.between(start, stop)
                yield self._strip(start, planes.mul_(QUANTA).round_(), validity.get())

    def _strip(self, row: int, planes: Tensor, valid: NDArray[np.bool_] | None) -> Strip:
        """Return the strip of whole numbers 0 to 254, or NaN, on its way to the host."""
        # Buffers are flat, so that what is used of them is contiguous: another copy to the host is never asynchronous.
        turn = self._turn % len(self._hosts)
        host, total = self._hosts[turn][: planes.numel()].view(planes.shape), self._totals[turn]
        self._turn += 1
        on_cuda = planes.device.type == "cuda"
        total.copy_(planes[0].sum(), non_blocking=on_cuda)
        if not on_cuda:
            _refuse_nan(total, self._name)
        if self._quanta is None:
            np.copyto(host.numpy(), planes.numpy(), casting="unsafe")  # six times as fast as torch's copy
            return Strip(row, host, valid, None)
        quanta = self._quanta[: planes.numel()].view(planes.shape)
        host.copy_(quanta.copy_(planes), non_blocking=on_cuda)
        return Strip(row, host, valid, Arrival(mark(planes.device), total, self._name) if on_cuda else None)


def _refuse_nan(total: Tensor, scene: str) -> None:
    """Raise ModelError when a strip holds NaN: half precision overflows to it, and quantised it would read as 0.

    Strip by strip, before one is kept: a run that goes on behind it would never look at it again.
    """
    if not torch.isfinite(total):
        raise ModelError(f"{scene}: the model gave NaN; use --precision fp32")


class _Back:
    """Interpolates between the pixel centres of the grid that was run; keeps the last row of what came before."""

    def __init__(self, rows: Regrid, cols: Regrid, left: int, device: torch.device) -> None:
        self._rows = rows
        self._lower, self._upper = (torch.from_numpy(side - left).to(device) for side in (cols.lower, cols.upper))
        self._share = torch.from_numpy(cols.share).to(device)
        self._row_share = torch.from_numpy(rows.share).to(device)
        self._planes = self._last = torch.empty(0, device=device)
        self._first = 0

    def put(self, first: int, planes: Tensor) -> None:
        """Take finished rows of the model's grid, the first one at `first`, if any."""
        if not planes.shape[1]:
            return
        if self._last.numel():
            planes, first = torch.cat([self._last, planes], dim=1), first - 1
        self._planes, self._first, self._last = planes, first, planes[:, -1:].clone()

    def between(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of the scene, float32 [planes, rows, width], a new array."""
        lower, upper = (
            torch.from_numpy(side[start:stop] - self._first).to(self._planes.device)
            for side in (self._rows.lower, self._rows.upper)
        )
        above, below = self._planes.index_select(1, lower), self._planes.index_select(1, upper)
        rows = above.lerp_(below, self._row_share[start:stop, None])
        return rows.index_select(2, self._lower).lerp_(rows.index_select(2, self._upper), self._share)
