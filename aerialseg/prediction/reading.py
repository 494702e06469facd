"""A scene as equal batches of windows: what two threads do between the disk and the network.

Rows are read once, the scene's width and its halo at a time, into a band as high as a window, by the one thread: the
scene's own pixels, its neighbours' around it, or all of it at another GSD. The other copies windows from it into batch
buffers, while the next band is read into a second array. Both bands and buffers are used in turn. Memory grows with the
scene's width, never with its height or its group.

Each thread runs one generator and nothing else, so files opened in it are used and closed in the thread that opened
them. Nothing waits on a queue that nobody fills: a failure in a thread is raised where the main thread next asks, and
leaving the block for whatever reason closes the generator, in its thread, before going on.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from aerialseg.errors import BadDataError
from aerialseg.geo.adjacency import Placed
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import read_window, read_window_into
from aerialseg.geo.resampling import rescaled
from aerialseg.prediction.lattice import mirrored

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from queue import SimpleQueue

    from rasterio.io import DatasetReader
    from torch import Tensor

    from aerialseg.geo.inspection import Source
    from aerialseg.prediction.lattice import Lattice, ScenePlacement, Schedule

    Validity = SimpleQueue[NDArray[np.bool_] | None]

BANDS = 2
"""One is being filled while windows are copied from the other."""
FillWindow = Callable[[Window, NDArray[np.uint8], NDArray[np.bool_]], None]
"""Fills pixels (bands, rows, cols) and valid (rows, cols) with a window of the grid that is run."""
T = TypeVar("T")
END = object()
REACH_PX = 2
"""Pixels of the grid that is run by which windows are wider when it is asked whether they matter for some ground: those
of the scene's own grid lie between two of them."""
READ_DEPTH, WRITE_DEPTH = 2, 1
"""How many batches are read ahead, and how many strips wait to be written."""


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows that go through the network together, in buffers that the reader fills again later."""

    pixels: Tensor
    """uint8 [N, bands, size, size]; beyond `places` zeros, so that every batch is of one size."""
    valid: Tensor
    """bool [N, size, size]; meaningless when not `masked`."""
    places: tuple[tuple[int, int], ...] = ()
    """Row in the group's lattice and column among the scene's windows, of each window, in the lattice's order."""
    masked: bool = False
    """Whether any of the windows has an invalid pixel."""

    @classmethod
    def empty(cls, count: int, bands: int, size: int, *, pinned: bool) -> WindowBatch:
        """Return a buffer for `count` windows; pinned memory crosses to a CUDA device without a copy on the way."""
        import torch

        return cls(
            torch.empty((count, bands, size, size), dtype=torch.uint8, pin_memory=pinned),
            torch.empty((count, size, size), dtype=torch.bool, pin_memory=pinned),
        )


@dataclass(frozen=True, slots=True)
class _Band:
    """What lies under one row of windows."""

    row: int
    """The row in the group's lattice."""
    top: int
    """Its first pixel row, counted in the group."""
    pixels: NDArray[np.uint8]
    """[bands, size, padded width]"""
    valid: NDArray[np.bool_]
    whole: bool
    """Whether every pixel is valid."""


def read_batches(
    placement: ScenePlacement,
    schedule: Schedule,
    buffers: Sequence[WindowBatch],
    validity: Validity,
    fill: FillWindow | None = None,
) -> Generator[WindowBatch]:
    """Yield the scene's windows in batches, using `buffers` in turn; windows without a valid pixel are left out, and
    those that lie off the ground that is asked for.

    For every strip of the schedule, in order, `validity` receives which of its pixels are valid, bool [rows, width], or
    None when all are, before any batch that holds a window of a later row. `fill` takes the place of the scene's file.
    """
    lattice = schedule.lattice
    path = placement.source.path
    own_validity: AbstractContextManager[DatasetReader | None]  # with a handle of its own: pixels are read with another
    own_validity = open_raster(path) if is_read_twice(placement) else nullcontext()
    with read_ahead(_bands(placement, lattice, fill), BANDS, "bands") as bands, own_validity as scene:
        places: list[tuple[int, int]] = []
        masked: list[bool] = []
        turn = 0
        for band in bands:
            for strip in schedule.strips(band.row):
                validity.put(_strip(placement, schedule, strip, band, scene))
            wanted = wanted_windows(placement, lattice, band.row)
            for col, left in enumerate(lattice.starts()):
                if not wanted[col]:
                    continue
                window = np.s_[..., left : left + lattice.size]
                if not band.whole and not band.valid[window].any():
                    continue
                batch = buffers[turn]
                batch.pixels.numpy()[len(places)] = band.pixels[window]
                if not band.whole:
                    batch.valid.numpy()[len(places)] = band.valid[window]
                places.append((band.row, col))
                masked.append(not band.whole)
                if len(places) == len(batch.pixels):
                    yield _filled(batch, places, masked)
                    places, masked, turn = [], [], (turn + 1) % len(buffers)
        if places:
            yield _filled(buffers[turn], places, masked)


def wanted_windows(placement: ScenePlacement, lattice: Lattice, row: int) -> NDArray[np.bool_]:
    """Return which windows of a row touch the ground that is asked for, or its margin."""
    ground, size, factor = placement.ground, lattice.size, placement.factor
    if ground is None:
        return np.ones(len(lattice.across), dtype=np.bool_)
    left = lattice.first_col + np.array(lattice.starts())
    top = np.full(len(left), row * lattice.rows.step)
    sides = np.stack([left - REACH_PX, top - REACH_PX, left + size + REACH_PX, top + size + REACH_PX], axis=1)
    origin = placement.col, placement.row, placement.col, placement.row
    return ground.near_windows(sides * factor - origin)


def _filled(batch: WindowBatch, places: Sequence[tuple[int, int]], masked: Sequence[bool]) -> WindowBatch:
    """Return the batch with what was left open: validity of windows that are whole, and places without a window."""
    batch.pixels[len(places) :] = 0
    if any(masked):
        for index in range(len(batch.valid)):
            if index >= len(places) or not masked[index]:
                batch.valid[index] = True
    return WindowBatch(batch.pixels, batch.valid, tuple(places), any(masked))


def is_read_twice(placement: ScenePlacement) -> bool:
    """Return whether a resampled scene has a valid mask, which is read on the scene's own grid, too."""
    return placement.factor != 1 and (placement.source.has_mask or placement.source.dtype.startswith("float"))


def _strip(
    placement: ScenePlacement, schedule: Schedule, strip: tuple[int, int], band: _Band, scene: DatasetReader | None
) -> NDArray[np.bool_] | None:
    """Return which pixels of a finished strip are valid, near the ground asked for if any is; None for all of them."""
    valid = _strip_data(placement, schedule, strip, band, scene)
    if placement.ground is None:
        return valid
    window = Window(0, strip[0], placement.source.box.width, strip[1] - strip[0])
    near = placement.ground.near.burn(window)
    return near if valid is None else valid & near


def _strip_data(
    placement: ScenePlacement, schedule: Schedule, strip: tuple[int, int], band: _Band, scene: DatasetReader | None
) -> NDArray[np.bool_] | None:
    """Return which pixels of a finished strip have data, None for all of them."""
    if placement.factor == 1:
        start, stop = (row + placement.row - band.top for row in strip)
        left = placement.col - schedule.lattice.first_col
        valid = band.valid[start:stop, left : left + placement.source.box.width]
        return None if band.whole or valid.all() else valid.copy()
    if scene is None:
        return None
    start, stop = strip
    window = Window(0, start, placement.source.box.width, stop - start)
    valid = read_window(scene, placement.source, window)[1]
    return None if valid.all() else valid


def _bands(placement: ScenePlacement, lattice: Lattice, given: FillWindow | None) -> Generator[_Band]:
    """Yield the pixels and validity under each row of windows that the scene needs, in BANDS arrays used in turn.

    What two rows share is copied from the one before, the rest is read.
    """
    shape = lattice.size, lattice.padded
    pixels = np.empty((BANDS, len(placement.source.bands), *shape), dtype=np.uint8)
    valid = np.empty((BANDS, *shape), dtype=np.bool_)
    kept = 0
    with open_window_reader(placement) if given is None else nullcontext(given) as fill:
        for row in lattice.down:
            top, this, last = row * lattice.rows.step, row % BANDS, (row - 1) % BANDS
            pixels[this, :, :kept] = pixels[last, :, lattice.size - kept :]
            valid[this, :kept] = valid[last, lattice.size - kept :]
            _fill_rows(fill, lattice, top + kept, pixels[this, :, kept:], valid[this, kept:])
            yield _Band(row, top, pixels[this], valid[this], bool(valid[this].all()))
            kept = lattice.size - lattice.rows.step


def _fill_rows(
    fill: FillWindow, lattice: Lattice, first: int, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    """Fill the arrays with the rows from `first` on; what lies beyond the group's end is its reflection."""
    height = lattice.rows.length
    inside = min(len(valid), height - first)
    _fill_columns(fill, lattice, first, pixels[:, :inside], valid[:inside])
    rows = mirrored(height, first + len(valid))
    if len(rows):
        top, bottom = int(rows.min()), int(rows.max()) + 1  # may lie above the band, in rows that were given up
        mirror = np.empty((len(pixels), bottom - top, valid.shape[1]), dtype=np.uint8)
        mirror_valid = np.empty(mirror.shape[1:], dtype=np.bool_)
        _fill_columns(fill, lattice, top, mirror, mirror_valid)
        pixels[:, inside:], valid[inside:] = mirror[:, rows - top], mirror_valid[rows - top]


def _fill_columns(
    fill: FillWindow, lattice: Lattice, top: int, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    """Fill the arrays with the columns under the scene's windows, reflected beyond the group's last one."""
    left, height = lattice.first_col, len(valid)
    columns = mirrored(lattice.cols.length, left + valid.shape[1])
    inside = valid.shape[1] - len(columns)
    fill(Window(left, top, inside, height), pixels[..., :inside], valid[:, :inside])
    if len(columns) and columns.min() >= left:
        pixels[..., inside:], valid[:, inside:] = pixels[..., columns - left], valid[:, columns - left]
    elif len(columns):  # the mirror reaches back into columns that no window of this scene holds
        first, last = int(columns.min()), int(columns.max()) + 1
        mirror = np.empty((len(pixels), height, last - first), dtype=np.uint8)
        mirror_valid = np.empty(mirror.shape[1:], dtype=np.bool_)
        fill(Window(first, top, last - first, height), mirror, mirror_valid)
        pixels[..., inside:], valid[:, inside:] = mirror[..., columns - first], mirror_valid[:, columns - first]


@contextmanager
def open_window_reader(placement: ScenePlacement) -> Iterator[FillWindow]:
    """Yield a reader of windows of the grid that is run; use it in this thread, inside the block.

    Ground that belongs to none of the group's scenes is invalid.
    """
    with ExitStack() as files:
        scene = files.enter_context(open_raster(placement.source.path))
        fill: FillWindow = partial(read_window_into, scene, placement.source)
        if placement.neighbours:
            fill = partial(_fill_from_group, files, {placement.source.path: scene}, placement)
        yield fill if placement.factor == 1 else partial(_fill_rescaled, fill, placement)


def _fill_from_group(
    files: ExitStack, handles: dict[Path, DatasetReader], placement: ScenePlacement,
    window: Window, pixels: NDArray[np.uint8], valid: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Read a window of the group from the scenes it lies in; a neighbour is opened when it is first needed.

    What cannot be read of a neighbour is missing ground: a damaged file fails as a scene, not those around it.
    """
    top, left = int(window.row_off), int(window.col_off)
    bottom, right = top + len(valid), left + valid.shape[1]
    pixels[:], valid[:] = 0, False
    for member in (Placed(placement.source, placement.row, placement.col), *placement.neighbours):
        shared = member.overlap_with(top, left, bottom, right)
        if shared is None:
            continue
        first, west, last, east = shared
        inner = Window(west - member.col, first - member.row, east - west, last - first)
        rows, cols = slice(first - top, last - top), slice(west - left, east - left)
        path, target = member.source.path, (pixels[:, rows, cols], valid[rows, cols])
        try:
            if path not in handles:
                handles[path] = files.enter_context(open_raster(path))
            read_window_into(handles[path], member.source, inner, *target)
        except BadDataError:
            if path == placement.source.path:
                raise
            target[0][:], target[1][:] = 0, False
            if path in handles:
                _fill_readable_rows(handles[path], member.source, inner, *target)


def _fill_readable_rows(
    dataset: DatasetReader, source: Source, window: Window, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    """Read what can be read of a damaged neighbour, row by row: a run that goes on elsewhere finds the same rows."""
    for index in range(len(valid)):
        row = Window(window.col_off, window.row_off + index, window.width, 1)
        pixels_of, valid_of = pixels[:, index : index + 1], valid[index : index + 1]
        try:
            read_window_into(dataset, source, row, pixels_of, valid_of)
        except BadDataError:
            pixels_of[:], valid_of[:] = 0, False


def _fill_rescaled(
    fill: FillWindow, placement: ScenePlacement, window: Window, pixels: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    def read(under: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        shape = int(under.height), int(under.width)
        found = np.empty((len(pixels), *shape), dtype=np.uint8), np.empty(shape, dtype=np.bool_)
        fill(under, *found)
        return found

    pixels[:], valid[:] = rescaled(read, (placement.height, placement.width), placement.factor)(window)


@contextmanager
def read_ahead(source: Generator[T], depth: int, name: str = "reader") -> Iterator[Iterator[T]]:
    """Yield an iterator over `source`, whose items are computed up to `depth` ahead of the one in use.

    Item k + depth is computed only after item k has been given up by asking for k + 1, so `depth` buffers used in turn
    are never written while in use.
    """
    thread = ThreadPoolExecutor(1, name)
    pending: deque[Future[T | object]] = deque()

    def items() -> Iterator[T]:
        pending.extend(thread.submit(next, source, END) for _ in range(depth))
        while (item := pending.popleft().result()) is not END:
            yield cast("T", item)
            pending.append(thread.submit(next, source, END))

    try:
        yield items()
    finally:
        _close(thread, source, pending)


@contextmanager
def write_behind(sink: Generator[None, T | None], depth: int, name: str = "writer") -> Iterator[Callable[[T], None]]:
    """Yield a function that hands an item to `sink` and returns while it is still being written.

    It waits once `depth` items are pending, so `depth` + 1 buffers used in turn are never filled while in use. When the
    block ends well the sink receives None and finishes; when it fails the sink receives what was handed over before and
    is closed at its `yield`, as if by an error there.
    """
    thread = ThreadPoolExecutor(1, name)
    pending: deque[Future[None]] = deque([thread.submit(next, sink)])

    def put(item: T | None) -> None:
        while pending and (pending[0].done() or len(pending) >= depth):
            pending.popleft().result()
        pending.append(thread.submit(_send, sink, item))

    try:
        yield put
        put(None)
        while pending:
            pending.popleft().result()
    finally:
        _close(thread, sink, ())


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Call `work` in a thread that does not keep the process alive: a stop need not wait for a long copy."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _send(sink: Generator[None, T | None], item: T | None) -> None:
    try:
        sink.send(item)
    except StopIteration:
        if item is not None:
            raise RuntimeError("the sink finished before its input did") from None


def _close(thread: ThreadPoolExecutor, generator: Generator[Any, Any], pending: Iterable[Future[Any]]) -> None:
    """Cancel what has not begun, wait for what has, and close the generator in the thread that ran it."""
    for future in pending:
        future.cancel()
    try:
        thread.submit(generator.close).result()
    finally:
        thread.shutdown()
