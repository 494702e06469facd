"""Generators that run in a thread of their own: a source that is read ahead, a sink that is written behind.

Each thread runs one generator and nothing else, so files opened in it are used and closed in the thread that opened
them. Nothing waits on a queue that nobody fills: a failure in either thread is raised where the main thread next asks,
and leaving the block for whatever reason closes the generator, in its thread, before going on.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

T = TypeVar("T")
END = object()
READ_DEPTH, WRITE_DEPTH = 2, 1
"""How many batches are read ahead, and how many strips wait to be written."""


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
    block ends well the sink receives None and finishes; when it fails the sink is closed at its `yield`, as if by an
    error there.
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
        _close(thread, sink, pending)


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


def _close(thread: ThreadPoolExecutor, generator: Generator[Any, Any], pending: deque[Future[Any]]) -> None:
    """Cancel what has not begun, wait for what has, and close the generator in the thread that ran it."""
    for future in pending:
        future.cancel()
    try:
        thread.submit(generator.close).result()
    finally:
        thread.shutdown()
