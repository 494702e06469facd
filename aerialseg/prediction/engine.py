"""One scene through a network: windows in, blended probabilities out, in strips of finished rows.

Four threads: two read ahead, the main one runs the network and blends, one writes behind. On a CUDA device pixels
cross once as uint8 and quantised probabilities come back as uint8; normalising, blending and quantising happen there,
by the same code as on a CPU. Masks, files and reports are `job`'s business.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from aerialseg.errors import AerialsegError, ResourceError, one_line
from aerialseg.models.device import is_out_of_memory
from aerialseg.prediction.accumulator import Accumulator
from aerialseg.prediction.batches import Batch, read_batches
from aerialseg.prediction.lattice import Lattice, Schedule
from aerialseg.prediction.memory import batch_size, peak_bytes
from aerialseg.prediction.pipeline import READ_DEPTH, WRITE_DEPTH, read_ahead, write_behind
from aerialseg.prediction.strips import Strip, StripMaker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from aerialseg.prediction.batches import Validity
    from aerialseg.prediction.canvas import Canvas
    from aerialseg.prediction.forward import EngineSettings, Forward

__all__ = ["Streamed", "Strip", "count_windows", "peak_bytes", "predict_scene"]


@dataclass(frozen=True, slots=True)
class Streamed:
    """What one scene took: windows of the lattice, and those among them that held a valid pixel and were run."""

    windows: int
    run: int


def predict_scene(
    forward: Forward,
    canvas: Canvas,
    sink: Generator[None, Strip | None],
    advance: Callable[[float], None] = lambda amount: None,
    *,
    skip: int = 0,
) -> Streamed:
    """Send the scene's strips, top to bottom, to `sink`, a generator that runs in a thread of its own.

    `skip` is the row to begin at, the first one of a strip of an earlier run with the same settings: windows that only
    touch rows above are not run, and the strips are the same bytes. `advance` is called in this thread after every
    batch with the million pixels done (those skipped are not counted), and may raise. Memory grows with the scene's
    width: see `peak_bytes`. Raises what the reader, the sink, `forward` and `advance` raise, ModelError when the
    network gives NaN, and ResourceError when the scene's own arrays do not fit into memory; the sink has then been
    closed at its `yield`, and nothing is left running.
    """
    try:
        return _stream(forward, canvas, sink, advance, skip)
    except AerialsegError as error:
        _clear_frames(error)
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _clear_frames(error)
        raise _too_wide(canvas, forward.settings) from error


def count_windows(canvas: Canvas, settings: EngineSettings) -> int:
    """Return how many windows a whole run over the scene looks at."""
    return Lattice.of(canvas, settings.size, settings.overlap).count


def _stream(
    forward: Forward,
    canvas: Canvas,
    sink: Generator[None, Strip | None],
    advance: Callable[[float], None],
    skip: int,
) -> Streamed:
    settings = forward.settings
    lattice = Lattice.of(canvas, settings.size, settings.overlap, skip)
    schedule = Schedule.of(canvas, lattice, skip)
    validity: Validity = SimpleQueue()
    left = (canvas.source.box.height - skip) * canvas.source.box.width / 1e6
    done = 0
    with ExitStack() as threads:
        put = threads.enter_context(write_behind(sink, WRITE_DEPTH))
        if lattice.count:
            blend = _Blending(canvas, schedule, settings, validity)
            reader = read_batches(canvas, schedule, _buffers(canvas, lattice, settings), validity)
            for batch in threads.enter_context(read_ahead(reader, READ_DEPTH)):
                for (row, col), probability in zip(batch.places, forward(batch), strict=False):
                    for strip in blend.finish(row):
                        put(strip)
                    blend.accumulator.add(row, col, probability)
                done += len(batch.places)
                advance(len(batch.places) * left / lattice.count)
            for strip in blend.finish(lattice.down.stop):
                put(strip)
    if lattice.count:
        advance((lattice.count - done) * left / lattice.count)
    return Streamed(lattice.count, done)


def _clear_frames(error: BaseException) -> None:
    """Let go of the arrays that an error's traceback holds: failures are kept for the report while other scenes run."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _too_wide(canvas: Canvas, settings: EngineSettings) -> ResourceError:
    name, width = one_line(canvas.source.path), canvas.source.box.width
    return ResourceError(
        f"{name}: out of memory with rows of {settings.size} px windows over {width:,} px;"
        " use a smaller --window or --batch, or cut the scene into less wide ones"
    )


class _Blending:
    """What happens between a window's probabilities and a strip; holds the two parts that have state."""

    def __init__(self, canvas: Canvas, schedule: Schedule, settings: EngineSettings, validity: Validity) -> None:
        self.accumulator = Accumulator(schedule.lattice, settings)
        planes = 2 if settings.agreement else 1
        self.maker = StripMaker(canvas, schedule, planes, settings.device, WRITE_DEPTH + 1)
        self._validity = validity

    def finish(self, row: int) -> Iterator[Strip]:
        """Yield the strips that are final once the next window stands in lattice row `row`."""
        for index, rows in self.accumulator.finish(row):
            yield from self.maker.strips(index, rows, self._validity)


def _buffers(canvas: Canvas, lattice: Lattice, settings: EngineSettings) -> list[Batch]:
    size, bands = batch_size(settings, lattice), len(canvas.source.bands)
    pinned = settings.device.type == "cuda"
    return [Batch.empty(size, bands, settings.size, pinned=pinned) for _ in range(READ_DEPTH)]
