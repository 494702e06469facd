"""One scene through a network: windows in, blended probabilities out, in strips of finished rows.

Three threads: one reads ahead, the main one runs the network and blends, one writes behind. On a CUDA device pixels
cross once as uint8 and quantised probabilities come back as uint8; normalising, blending and quantising happen there,
by the same code as on a CPU. Masks, files and reports are `job`'s business.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

from aerialseg.counts import QUANTA
from aerialseg.errors import ModelError, one_line
from aerialseg.geo.stitching import Blend, blend_weights
from aerialseg.prediction.batches import Batch, Lattice, read_batches
from aerialseg.prediction.forward import mark
from aerialseg.prediction.pipeline import read_ahead, write_behind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from aerialseg.geo.raster import Source
    from aerialseg.prediction.forward import Forward

READ_DEPTH, WRITE_DEPTH = 2, 1
INVALID = 255
"""What a quantised probability is where the scene has no data."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Finished rows of a scene, the first one at `row`; the buffer is the engine's and is filled again later."""

    row: int
    buffer: Tensor
    valid: NDArray[np.bool_] | None
    arrived: torch.cuda.Event | None

    def quanta(self) -> NDArray[np.uint8]:
        """Return round(254 x probability), [rows, width], 255 where the scene has no data; waits for the device."""
        if self.arrived is not None:
            self.arrived.synchronize()
        quanta: NDArray[np.uint8] = self.buffer.numpy()
        if self.valid is not None:
            quanta[~self.valid] = INVALID
        return quanta


@dataclass(frozen=True, slots=True)
class Streamed:
    """What one scene took: windows of the lattice, and those among them that held a valid pixel and were run."""

    windows: int
    run: int


def predict_scene(
    forward: Forward,
    source: Source,
    sink: Generator[None, Strip | None],
    advance: Callable[[float], None] = lambda amount: None,
) -> Streamed:
    """Send the scene's strips, top to bottom, to `sink`, a generator that runs in a thread of its own.

    `advance` is called in this thread after every batch with the million pixels done, and may raise. Memory grows with
    the scene's width: some window heights of rows, and the batches. Raises what the reader, the sink, `forward` and
    `advance` raise, and ModelError when the network gives NaN; the sink has then been closed at its `yield`, and
    nothing is left running.
    """
    settings = forward.settings
    lattice = Lattice.covering(source.box.height, source.box.width, settings.size, settings.overlap)
    size = min(settings.batch, lattice.count)
    pinned = settings.device.type == "cuda"
    buffers = [Batch.empty(size, len(source.bands), settings.size, pinned=pinned) for _ in range(READ_DEPTH)]
    validity: SimpleQueue[NDArray[np.bool_] | None] = SimpleQueue()
    accumulator = Accumulator(lattice, settings.blend, settings.device, validity)
    share = source.box.height * source.box.width / 1e6 / lattice.count
    done = 0
    with ExitStack() as threads:
        put = threads.enter_context(write_behind(sink, WRITE_DEPTH))
        for batch in threads.enter_context(read_ahead(read_batches(source, lattice, buffers, validity), READ_DEPTH)):
            for (row, col), probability in zip(batch.places, forward(batch), strict=False):
                for strip in accumulator.finish(row):
                    put(strip)
                accumulator.add(row, col, probability)
            done += len(batch.places)
            advance(len(batch.places) * share)
        for strip in accumulator.finish(lattice.rows.count):
            put(strip)
        accumulator.check(source)
    advance((lattice.count - done) * share)
    return Streamed(lattice.count, done)


class Accumulator:
    """Sums weighted probabilities under one row of windows: float32 [size, padded width] on the device.

    Finished rows leave at the top, what a later window still adds to moves up. A class because it is all state.
    """

    def __init__(
        self,
        lattice: Lattice,
        blend: Blend,
        device: torch.device,
        validity: SimpleQueue[NDArray[np.bool_] | None],
    ) -> None:
        self._lattice, self._validity, self._row = lattice, validity, 0
        self._down = torch.from_numpy(blend_weights(lattice.rows, blend)).to(device)
        self._across = torch.from_numpy(blend_weights(lattice.cols, blend)).to(device)
        self._sum = torch.zeros((lattice.size, lattice.cols.padded), device=device)
        self._weight = torch.empty((lattice.size, lattice.size), device=device)
        self._check = torch.zeros((), device=device)
        shape, pinned = (lattice.size, lattice.cols.length), device.type == "cuda"
        self._quanta = torch.empty(shape, dtype=torch.uint8, device=device)
        self._hosts = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(WRITE_DEPTH + 1)]

    def add(self, row: int, col: int, probability: Tensor) -> None:
        """Add one window's probability [size, size]; windows come row by row."""
        start = self._lattice.cols.starts[col]
        torch.outer(self._down[row], self._across[col], out=self._weight)
        self._sum[:, start : start + self._lattice.size].addcmul_(probability, self._weight)

    def finish(self, row: int) -> Iterator[Strip]:
        """Yield the strips that are final once the next window stands in lattice row `row`."""
        while self._row < row:
            yield self._strip()
            step = self._lattice.rows.step
            for top in range(0, self._lattice.size - step, step):  # by steps, for copying onto itself has no order
                kept = self._sum[top + step : top + 2 * step]
                self._sum[top : top + len(kept)] = kept
            self._sum[self._lattice.size - step :] = 0
            self._row += 1

    def check(self, source: Source) -> None:
        """Raise ModelError when any probability was NaN: half precision overflows to it, and it would read as 0."""
        if not torch.isfinite(self._check):
            raise ModelError(f"{one_line(source.path)}: the model gave NaN; use --precision fp32")

    def _strip(self) -> Strip:
        start, stop = self._lattice.rows.finished(self._row)
        finished = self._sum[: stop - start, : self._lattice.cols.length]
        finished.mul_(QUANTA).round_()
        self._check += finished.sum()
        quanta = self._quanta[: stop - start].copy_(finished)
        host = self._hosts[self._row % len(self._hosts)][: stop - start].copy_(quanta, non_blocking=True)
        arrived = mark(quanta.device) if quanta.device.type == "cuda" else None
        return Strip(start, host, self._validity.get(), arrived)
