"""The rows of an unfinished scene: what was written whole comes back, by whoever it was, what was torn does not."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerialseg.errors import StorageError
from aerialseg.files import TEMPORARY
from aerialseg.prediction.stored import HEAD, RECORD, ExactSettings, StoredRows, files_of, finishing

if TYPE_CHECKING:
    from pathlib import Path

START = HEAD.size + RECORD.size + len("null")
"""Where the first strip's record stands, behind the settings, which are not known here."""
KEY, OTHER = b"k" * 32, b"o" * 32
HEIGHT, WIDTH = 40, 7


@dataclass
class FakeStrip:
    row: int
    values: np.ndarray

    def planes(self) -> np.ndarray:
        return self.values


def pixels(planes: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (planes, HEIGHT, WIDTH), dtype=np.uint8)


def known(key: bytes) -> Future[bytes]:
    future: Future[bytes] = Future()
    future.set_result(key)
    return future


def stored(out: Path, planes: int = 1, key: bytes = KEY) -> StoredRows:
    return StoredRows(out, "town/x", HEIGHT, WIDTH, planes, key)


def write(rows: StoredRows, image: np.ndarray, edges: list[int], settings: ExactSettings | None = None) -> Path:
    """Write the rows between the edges as one task, one strip for each pair."""
    path = rows.begin()
    sink = rows.write(path, known(rows.key), settings)
    next(sink)
    for start, stop in pairwise(edges):
        sink.send(FakeStrip(start, image[:, start:stop]))
    sink.close()
    return path


def read(rows: StoredRows, plane: int = 0) -> np.ndarray:
    return np.concatenate([values for _, values in rows.strips(plane)])


@pytest.mark.parametrize("planes", [1, 2])
def test_strips_of_several_tasks_come_back_top_to_bottom(tmp_path: Path, planes: int) -> None:
    rows, image = stored(tmp_path, planes), pixels(planes)
    write(rows, image, [21, 33, 40])
    assert not rows.there()[:21].any()
    assert rows.there()[21:].all()
    write(rows, image, [0, 8, 21])
    assert rows.there(0, HEIGHT).all()
    for plane in range(planes):
        np.testing.assert_array_equal(read(rows, plane), image[plane])


@settings(deadline=None)
@given(cut=st.integers(0, START + 3 * RECORD.size + HEIGHT * WIDTH))
def test_wherever_the_file_was_cut_only_whole_strips_count(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    rows = stored(tmp_path_factory.mktemp("part"))
    path = write(rows, pixels(), [0, 8, 21, 40])
    ends = {row: START + (1 + index) * RECORD.size + row * WIDTH for index, row in enumerate([8, 21, 40])}
    path.write_bytes(path.read_bytes()[:cut])
    finished = int(rows.there(0, HEIGHT).sum())
    assert finished == max((row for row, end in ends.items() if end <= cut), default=0)
    assert rows.there(0, HEIGHT)[:finished].all()


@settings(deadline=None)
@given(place=st.integers(0, START + 3 * RECORD.size + HEIGHT * WIDTH - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_for_a_result(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    rows, image = stored(tmp_path_factory.mktemp("part")), pixels()
    path = write(rows, image, [0, 8, 21, 40])
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    there = rows.there(0, HEIGHT)
    assert not there.all()
    for start, stop in pairwise([0, 8, 21, 40]):
        if not there[start:stop].all():
            write(rows, image, [start, stop])
    np.testing.assert_array_equal(read(rows), image[0])


def test_a_strip_that_is_damaged_inside_costs_no_other(tmp_path: Path) -> None:
    rows = stored(tmp_path)
    path = write(rows, pixels(), [0, 8, 21, 40])
    content = bytearray(path.read_bytes())
    content[START + 2 * RECORD.size + 10 * WIDTH] ^= 1
    path.write_bytes(content)
    assert list(np.flatnonzero(~rows.there(0, HEIGHT))) == list(range(8, 21))
    assert rows.there(21, HEIGHT).all(), "another band's rows are that band's to look at"


def test_strips_made_from_something_else_do_not_count(tmp_path: Path) -> None:
    rows = stored(tmp_path)
    assert not rows.begun()
    write(rows, pixels(), [0, 40])
    assert rows.begun() == {KEY: None}
    assert not stored(tmp_path, key=OTHER).there().any()
    assert not replace(rows, width=WIDTH + 1).there().any()
    write(stored(tmp_path, key=OTHER), 255 - pixels(), [0, 40])
    np.testing.assert_array_equal(read(rows), pixels()[0])
    rows.remove(but=[OTHER])
    assert rows.begun() == {OTHER: None}


def test_settings_come_back_and_decide_the_key_but_for_what_was_asked(tmp_path: Path) -> None:
    exact = ExactSettings(3, "cuda Made-up 100", "bf16", False, "2.0", 4, setting=16, asked=32)
    write(stored(tmp_path), pixels(), [0, 40], exact)
    assert stored(tmp_path).begun() == {KEY: exact}
    np.testing.assert_array_equal(read(stored(tmp_path)), pixels()[0])
    others = {"batch": 4, "device": "cpu", "precision": "fp32", "compiled": True, "torch": "2.1", "threads": 5}
    keys = {replace(exact, **{name: value}).digest("key") for name, value in others.items()}
    assert len(keys | {exact.digest("key"), exact.digest("other")}) == len(others) + 2
    assert replace(exact, setting=8, asked=None).digest("key") == exact.digest("key")


def test_strips_whose_origin_was_never_told_do_not_count(tmp_path: Path) -> None:
    rows = stored(tmp_path)
    path = rows.begin()
    sink = rows.write(path, Future())
    next(sink)
    sink.send(FakeStrip(0, pixels()))
    sink.close()
    assert not rows.begun()
    assert not rows.there().any()
    rows.tell(path, KEY)
    assert rows.there().all()


def test_rows_that_are_not_all_there_cannot_be_finished(tmp_path: Path) -> None:
    for edges in ([0, 8, 21], [8, 40]):
        rows = stored(tmp_path / str(edges[0]))
        rows.out.mkdir()
        write(rows, pixels(), edges)
        with pytest.raises(StorageError, match="do not read back"):
            read(rows)


def test_pixels_that_changed_on_the_disk_are_noticed_when_asked_for(tmp_path: Path) -> None:
    rows = stored(tmp_path)
    path = write(rows, pixels(), [0, 8, 40])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="do not read back"):
        list(rows.strips(checked=True))
    write(rows, pixels(), [8, 40])
    np.testing.assert_array_equal(read(rows), pixels()[0])


def test_a_task_whose_file_went_with_the_finished_scene_does_not_fail(tmp_path: Path) -> None:
    rows = stored(tmp_path)
    path = rows.begin()
    sink = rows.write(path, known(KEY))
    next(sink)
    path.unlink()  # by a process that had the same rows
    sink.send(FakeStrip(0, pixels()))
    sink.close()
    rows.tell(path, KEY)
    assert not rows.there().any()


def test_one_process_at_a_time_finishes_a_scene_and_its_files_are_found(tmp_path: Path) -> None:
    with finishing(tmp_path, "x") as ours, finishing(tmp_path, "x") as theirs, finishing(tmp_path, "y") as other:
        assert (ours, theirs, other) == (True, False, True)
    assert list(tmp_path.iterdir()) == []
    path = write(stored(tmp_path), pixels(), [0, 40])
    assert path.name.startswith(TEMPORARY), "a sweep knows it"
    assert files_of(tmp_path, ["town/x", "y"]) == {path}
    assert files_of(tmp_path, ["y"]) == set()
