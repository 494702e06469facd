"""The strips of an unfinished scene: what was written whole comes back, what was torn does not."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerialseg.errors import StorageError
from aerialseg.files import TEMPORARY
from aerialseg.prediction.resume import HEAD, RECORD, ResumeFile, forget_resume_file

if TYPE_CHECKING:
    from pathlib import Path

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


def write(part: ResumeFile, image: np.ndarray, edges: list[int], key: bytes = KEY) -> None:
    """Write the rows between the edges, one strip for each pair."""
    sink = part.write(edges[0], known(key))
    next(sink)
    for start, stop in pairwise(edges):
        sink.send(FakeStrip(start, image[:, start:stop]))
    sink.close()


def read(part: ResumeFile, plane: int = 0) -> np.ndarray:
    return np.concatenate([values for _, values in part.strips(plane)])


@pytest.mark.parametrize("planes", [1, 2])
def test_strips_come_back_and_a_second_run_goes_on_behind_them(tmp_path: Path, planes: int) -> None:
    part, image = ResumeFile(tmp_path / "x.part", HEIGHT, WIDTH, planes), pixels(planes)
    write(part, image, [0, 8, 21])
    assert part.finished(KEY) == 21
    write(part, image, [21, 40])
    assert part.finished(KEY) == 40
    for plane in range(planes):
        np.testing.assert_array_equal(read(part, plane), image[plane])


@settings(deadline=None)
@given(cut=st.integers(0, HEAD.size + 3 * RECORD.size + HEIGHT * WIDTH))
def test_wherever_the_file_was_cut_only_whole_strips_count(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    part = ResumeFile(tmp_path_factory.mktemp("part") / "x.part", HEIGHT, WIDTH)
    write(part, pixels(), [0, 8, 21, 40])
    ends = {row: HEAD.size + (1 + index) * RECORD.size + row * WIDTH for index, row in enumerate([8, 21, 40])}
    part.path.write_bytes(part.path.read_bytes()[:cut])
    finished = part.finished(KEY)
    assert finished == max((row for row, end in ends.items() if end <= cut), default=0)
    assert part.path.stat().st_size == ends.get(finished, HEAD.size if cut >= HEAD.size else 0)


@settings(deadline=None)
@given(place=st.integers(0, HEAD.size + 3 * RECORD.size + HEIGHT * WIDTH - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_for_a_result(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    part, image = ResumeFile(tmp_path_factory.mktemp("part") / "x.part", HEIGHT, WIDTH), pixels()
    write(part, image, [0, 8, 21, 40])
    content = bytearray(part.path.read_bytes())
    content[place] ^= 1 << bit
    part.path.write_bytes(content)
    finished = part.finished(KEY)
    assert finished < HEIGHT
    write(part, image, [finished, HEIGHT])
    np.testing.assert_array_equal(read(part), image[0])


def test_strips_made_from_something_else_are_given_up(tmp_path: Path) -> None:
    part = ResumeFile(tmp_path / "x.part", HEIGHT, WIDTH)
    assert not part.keyed
    assert part.finished(KEY) == 0
    write(part, pixels(), [0, 40])
    assert part.keyed
    assert part.finished(OTHER) == 0
    assert ResumeFile(part.path, HEIGHT, WIDTH + 1).finished(KEY) == 0


def test_strips_whose_origin_was_never_told_are_given_up(tmp_path: Path) -> None:
    part = ResumeFile(tmp_path / "x.part", HEIGHT, WIDTH)
    sink = part.write(0, Future())
    next(sink)
    sink.send(FakeStrip(0, pixels()))
    sink.close()
    assert not part.keyed
    assert part.finished(KEY) == 0


def test_a_part_that_is_not_whole_cannot_be_finished(tmp_path: Path) -> None:
    part = ResumeFile(tmp_path / "x.part", HEIGHT, WIDTH)
    write(part, pixels(), [0, 8, 21])
    with pytest.raises(StorageError, match="does not read back"):
        read(part)


def test_pixels_that_changed_on_the_disk_are_noticed_when_asked_for(tmp_path: Path) -> None:
    part = ResumeFile(tmp_path / "x.part", HEIGHT, WIDTH)
    write(part, pixels(), [0, 8, 40])
    content = bytearray(part.path.read_bytes())
    content[-1] ^= 1
    part.path.write_bytes(content)
    with pytest.raises(StorageError, match="does not read back"):
        list(part.strips(checked=True))


def test_two_processes_at_one_scene_have_a_part_each(tmp_path: Path) -> None:
    first = ResumeFile.claimed(tmp_path, "x", (HEIGHT, WIDTH), 1)
    second = ResumeFile.claimed(tmp_path, "x", (HEIGHT, WIDTH), 1)
    assert first.path != second.path
    assert second.path.name.startswith(TEMPORARY), "a sweep knows it"
    image = pixels()
    write(first, image, [0, 8, 40])
    write(second, 255 - image, [0, 8, 40])
    np.testing.assert_array_equal(read(first), image[0])
    second.remove()
    forget_resume_file(tmp_path, "x")
    assert first.path.exists(), "somebody is at it"
    first.release()
    third = ResumeFile.claimed(tmp_path, "x", (HEIGHT, WIDTH), 1)
    assert third.path == first.path
    assert third.finished(KEY) == HEIGHT
    third.release()
    forget_resume_file(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_vanished_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        read(ResumeFile(tmp_path / "x.part", HEIGHT, WIDTH))
