"""Batches by threads: the order of the items whatever the threads do, reused memory, errors and hangs that end."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from aerialseg.errors import BadDataError, ResourceError, Stopped
from aerialseg.training.batches import AHEAD, BatchLayout, Readers, open_readers, stream_batches

LAYOUT = BatchLayout(size=3, bands=2, height=4, width=5)


@dataclass(frozen=True)
class Numbered:
    number: int

    @property
    def name(self) -> str:
        return f"tile {self.number}"


def numbered(count: int) -> list[list[Numbered]]:
    items = [Numbered(number) for number in range(count)]
    return [items[first : first + 3] for first in range(0, count, 3)]


def filled(item: Numbered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.full((4, 5, 2), item.number, np.uint8),
        np.full((4, 5), item.number % 2, np.uint8),
        np.full((4, 5), item.number % 3 > 0),
    )


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_batches_come_in_order_though_reads_end_in_any(threads: int) -> None:
    def read(item: Numbered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        time.sleep(0.002 * ((item.number * 7) % 5))
        return filled(item)

    seen = []
    with open_readers(threads) as readers:
        for batch in stream_batches(numbered(60), read, layout=LAYOUT, readers=readers, timeout_s=10):
            assert batch.pixels.shape == (3, 2, 4, 5)
            assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
            numbers = batch.pixels[:, 0, 0, 0].tolist()
            assert batch.names == tuple(f"tile {number}" for number in numbers)
            assert batch.target[:, 0, 0].tolist() == [number % 2 for number in numbers]
            assert batch.valid[:, 0, 0].tolist() == [number % 3 > 0 for number in numbers]
            seen += numbers
    assert seen == list(range(60))


def test_a_stop_gets_through_while_a_read_hangs() -> None:
    release, began = threading.Event(), time.monotonic()
    calls: list[float] = []

    def hang(item: Numbered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        release.wait(30)
        return filled(item)

    def stop() -> None:
        calls.append(time.monotonic() - began)
        if len(calls) == 2:
            raise Stopped(signal.SIGTERM)

    with open_readers(2) as readers:
        stream = stream_batches(numbered(12), hang, layout=LAYOUT, readers=readers, timeout_s=300, still_waiting=stop)
        with pytest.raises(Stopped):
            next(stream)
        release.set()
    assert [round(2 * seconds) for seconds in calls] == [1, 2]


def test_memory_is_reused_and_reading_stays_a_few_batches_ahead() -> None:
    begun: list[int] = []

    def read(item: Numbered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        begun.append(item.number)
        return filled(item)

    addresses = set()
    with open_readers(2) as readers:
        for number, batch in enumerate(
            stream_batches(numbered(45), read, layout=LAYOUT, readers=readers, timeout_s=10)
        ):
            time.sleep(0.01)
            addresses.add(batch.pixels.data_ptr())
            assert len(begun) <= 3 * (number + AHEAD + 1)
    assert len(addresses) == AHEAD + 1


def test_a_smaller_last_group_is_filled_up_with_ignored_pixels() -> None:
    with open_readers(2) as readers:
        batches = list(stream_batches(numbered(4), filled, layout=LAYOUT, readers=readers, timeout_s=10))
    last = batches[-1]
    assert last.names == ("tile 3",) and last.pixels.shape == (3, 2, 4, 5)
    assert (last.target[1:] == 255).all() and not last.valid[1:].any()


def test_an_error_is_raised_at_its_batch_and_readers_live_on() -> None:
    def read(item: Numbered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if item.number == 4:
            raise BadDataError("tile 4: damaged")
        return filled(item)

    with open_readers(2) as readers:
        stream = stream_batches(numbered(12), read, layout=LAYOUT, readers=readers, timeout_s=10)
        assert next(stream).names[0] == "tile 0"
        with pytest.raises(BadDataError, match="tile 4: damaged"):
            next(stream)
        assert len(list(stream_batches(numbered(6), filled, layout=LAYOUT, readers=readers, timeout_s=10))) == 2


def test_a_read_that_hangs_ends_in_time_naming_the_tile() -> None:
    release = threading.Event()

    def read(item: Numbered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if item.number == 1:
            release.wait(30)
        return filled(item)

    began = time.monotonic()
    with open_readers(2) as readers, pytest.raises(ResourceError, match=r"tile 1: not read within 0\.2 s"):
        next(stream_batches(numbered(6), read, layout=LAYOUT, readers=readers, timeout_s=0.2))
    assert time.monotonic() - began < 20
    release.set()


def test_a_stream_left_early_gives_up_its_reads_and_threads_end() -> None:
    before = threading.active_count()
    begun: list[int] = []

    def read(item: Numbered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        begun.append(item.number)
        time.sleep(0.01)
        return filled(item)

    with open_readers(1) as readers:
        stream = stream_batches(numbered(300), read, layout=LAYOUT, readers=readers, timeout_s=10)
        next(stream)
        stream.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert len(begun) < 12


def test_readers_are_daemons_so_that_a_hanging_disk_cannot_keep_the_program() -> None:
    readers = Readers(3)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("reader-")]
    assert len(threads) >= 3 and all(thread.daemon for thread in threads)
    readers.close()


def test_a_batch_moves_to_a_device_as_it_is() -> None:
    with open_readers(1) as readers:
        batch = next(stream_batches(numbered(3), filled, layout=LAYOUT, readers=readers, timeout_s=10))
    moved = batch.to(torch.device("meta"))
    assert moved.pixels.is_meta and moved.valid.dtype == torch.bool and moved.names == batch.names


def test_no_reader_outlives_its_block_for_a_thread_in_a_library_aborts_the_process_at_exit() -> None:
    with open_readers(3) as readers:
        slow = readers.submit(time.sleep, 0.3)
    assert slow.done()
    assert not any(thread.is_alive() for thread in readers.threads)
