"""Batches made ahead of the network by a few threads, in an order that does not depend on the threads.

Threads, not processes: reading (GDAL) and augmenting (OpenCV) release the interpreter's lock, nothing is pickled, no
/dev/shm is needed, and no process can be killed or orphaned. They are daemons, so a read that hangs for ever (a lost
network disk) cannot keep the program from leaving.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from aerialseg.errors import ResourceError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]

AHEAD = 3
"""Batches that wait ready; enough to ride out one slow read."""

SLICE_S = 0.5
"""How long a wait goes on before a stop is looked for."""

PARTING_S = 2.0
"""How long reads that are under way may take to end when nobody wants them any more."""


class Named(Protocol):
    """Anything to read that an error message can name."""

    @property
    def name(self) -> str:
        """What it is called on disk."""


Item = TypeVar("Item", bound=Named)


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The memory of one batch: `size` pieces of [height, width] with `bands` bands."""

    size: int
    bands: int
    height: int
    width: int
    pinned: bool = False
    """Page-locked, so that the copy to a GPU runs beside the computation."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Equal-sized pieces of tiles; `names` says which, in order."""

    pixels: Tensor
    """uint8 [N, C, H, W], laid out channels last."""
    target: Tensor
    """uint8 [N, H, W]: 0 background, 1 building, 255 ignored."""
    valid: Tensor
    """bool [N, H, W]: where the scene has data."""
    names: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`; from pinned memory this does not wait for the copy."""
        pixels, target, valid = (x.to(device, non_blocking=True) for x in (self.pixels, self.target, self.valid))
        return Batch(pixels, target, valid, self.names)


class Readers:
    """A fixed number of daemon threads that run calls in the order they were given."""

    def __init__(self, threads: int) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self.threads = [Thread(target=self._work, name=f"reader-{i}", daemon=True) for i in range(threads)]
        for thread in self.threads:
            thread.start()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a thread run `call(*arguments)`; its result or error comes through the future."""
        future: Future[Any] = Future()
        self._calls.put((future, call, arguments))
        return future

    def close(self) -> None:
        """Let the threads end once they are through with what they were given, and wait for that a little.

        An interpreter that ends while a thread is inside a C++ library aborts the process ("terminate called without
        an active exception"); a read that hangs is left behind all the same.
        """
        for _ in self.threads:
            self._calls.put(None)
        deadline = time.monotonic() + PARTING_S
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            future, call, arguments = given
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)


def stream_batches(
    groups: Iterable[Sequence[Item]],
    read: Callable[[Item], Arrays],
    *,
    layout: BatchLayout,
    readers: Readers,
    timeout_s: float,
    still_waiting: Callable[[], None] = lambda: None,
) -> Generator[Batch, None, None]:
    """Yield one batch per group, in order, read a few groups ahead into reused memory.

    `read` turns an item into pixels [H, W, C], target and valid [H, W] of the layout's size, in any thread. A group
    may be smaller than the layout: the rest of its batch is ignored pixels, so that every batch has the same shape.
    A batch's memory is filled anew once the next one is asked for, so be through with it by then (on a GPU: have
    waited for the step that used it). Errors of `read` are raised here, in the order of the items; ResourceError when
    a batch takes longer than the timeout. `still_waiting` is called twice a second meanwhile, and may raise.
    """
    free = deque(_allocate(layout) for _ in range(AHEAD + 1))
    waiting: deque[tuple[Batch, Sequence[Item], list[Future[None]]]] = deque()
    source = iter(groups)
    try:
        while True:
            while free and (group := next(source, None)) is not None:
                batch = free.popleft()
                calls = [readers.submit(_fill, batch, slot, read, item) for slot, item in enumerate(group)]
                waiting.append((batch, group, calls))
            if not waiting:
                return
            batch, group, calls = waiting[0]
            wait_for(group, calls, timeout_s, still_waiting)
            rest = slice(len(group), None)
            batch.pixels[rest], batch.target[rest], batch.valid[rest] = 0, 255, False
            yield replace(batch, names=tuple(item.name for item in group))
            waiting.popleft()
            free.append(batch)
    finally:
        for _, _, calls in waiting:
            for call in calls:
                call.cancel()


def wait_for(
    group: Sequence[Named], calls: Sequence[Future[Any]], timeout_s: float, still_waiting: Callable[[], None]
) -> None:
    """Wait until the call for each of `group` is done; raises its error, or ResourceError when it takes too long."""
    deadline = time.monotonic() + timeout_s
    for item, call in zip(group, calls, strict=True):
        while not wait([call], min(SLICE_S, max(0.0, deadline - time.monotonic()))).done:
            still_waiting()
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"{one_line(item.name)}: not read within {timeout_s:g} s; is the disk still there?"
                    " Run again with --resume, or raise data.timeout_s"
                )
        call.result()


def _allocate(layout: BatchLayout) -> Batch:
    """Return the memory of a batch; what is in it is undefined."""
    shape = (layout.size, layout.height, layout.width)
    pixels, target, valid = (
        torch.empty(*sizes, dtype=kind, pin_memory=layout.pinned)
        for sizes, kind in (((*shape, layout.bands), torch.uint8), (shape, torch.uint8), (shape, torch.bool))
    )
    return Batch(pixels.permute(0, 3, 1, 2), target, valid, ())


def _fill(batch: Batch, slot: int, read: Callable[[Item], Arrays], item: Item) -> None:
    pixels, target, valid = read(item)
    batch.pixels[slot].permute(1, 2, 0).numpy()[:] = pixels
    batch.target[slot].numpy()[:] = target
    batch.valid[slot].numpy()[:] = valid


@contextlib.contextmanager
def open_readers(threads: int) -> Iterator[Readers]:
    """Yield reading threads and let them go at the end."""
    readers = Readers(threads)
    try:
        yield readers
    finally:
        readers.close()
