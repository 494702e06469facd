"""Threads that read ahead and write behind: order, bounds, prompt failure, and nothing left running."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from aerialseg.prediction.reading import read_ahead, write_behind

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def count(log: list[object], fail_at: int | None = None, total: int = 10) -> Generator[int]:
    log.append(threading.current_thread().name)
    try:
        for number in range(total):
            if number == fail_at:
                raise OSError("the disk is gone")
            log.append(number)
            yield number
    finally:
        log.append("closed")
        log.append(threading.current_thread().name)


def collect(log: list[object], fail_at: int | None = None, slow: float = 0) -> Generator[None, int | None]:
    log.append(threading.current_thread().name)
    try:
        while (item := (yield)) is not None:
            time.sleep(slow)
            if item == fail_at:
                raise OSError("no space")
            log.append(item)
        log.append("finished")
    finally:
        log.append("closed")
        log.append(threading.current_thread().name)


def test_items_come_in_order_and_all_work_is_done_in_one_other_thread() -> None:
    log: list[object] = []
    with read_ahead(count(log), 2) as items:
        assert list(items) == list(range(10))
    assert log == ["reader_0", *range(10), "closed", "reader_0"]


def test_reading_stays_within_its_depth() -> None:
    log: list[object] = []
    with read_ahead(count(log), 2) as items:
        for item in items:
            time.sleep(0.01)
            assert max(entry for entry in log if isinstance(entry, int)) <= item + 1
            if item == 5:
                break
    assert log[-2:] == ["closed", "reader_0"]


def test_a_reader_s_failure_arrives_where_its_item_would() -> None:
    log: list[object] = []
    seen: list[int] = []
    with pytest.raises(OSError, match="gone"), read_ahead(count(log, fail_at=3), 2) as items:
        seen += items
    assert log[-2:] == ["closed", "reader_0"]


def test_the_sink_sees_everything_in_its_own_thread_and_finishes() -> None:
    log: list[object] = []
    with write_behind(collect(log), 1) as put:
        for number in range(10):
            put(number)
    assert log == ["writer_0", *range(10), "finished", "closed", "writer_0"]


def test_no_more_items_wait_than_the_depth() -> None:
    log: list[object] = []
    with write_behind(collect(log, slow=0.005), 1) as put:
        for number in range(10):
            put(number)
            assert len([entry for entry in log if isinstance(entry, int)]) >= number - 1


def test_a_sink_s_failure_reaches_the_one_who_puts() -> None:
    log: list[object] = []
    put_so_far = []
    with pytest.raises(OSError, match="no space"), write_behind(collect(log, fail_at=2), 1) as put:
        for number in range(1000):
            put(number)
            put_so_far.append(number)
            time.sleep(0.001)
    assert len(put_so_far) < 100
    assert "finished" not in log


def test_a_failure_at_the_last_item_is_not_lost() -> None:
    log: list[object] = []
    with pytest.raises(OSError, match="no space"), write_behind(collect(log, fail_at=2), 1) as put:
        for number in range(3):
            put(number)


def test_when_the_block_fails_the_sink_is_closed_and_does_not_finish() -> None:
    log: list[object] = []
    with pytest.raises(KeyError), write_behind(collect(log, slow=0.01), 1) as put:
        put(1)
        raise KeyError("elsewhere")
    assert "finished" not in log
    assert log[-2:] == ["closed", "writer_0"]


def test_a_sink_that_cannot_begin_is_heard_of() -> None:
    def broken() -> Generator[None, int | None]:
        raise OSError("read-only")
        yield

    with pytest.raises(OSError, match="read-only"), write_behind(broken(), 1) as put:
        for number in range(1000):
            put(number)
