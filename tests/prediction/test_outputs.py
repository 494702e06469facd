"""The seam index against differences counted pair by pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aerialseg.geo.inspection import inspect_scene
from aerialseg.prediction.lattice import ScenePlacement, place_scenes
from aerialseg.prediction.network import EngineSettings
from aerialseg.prediction.outputs import SeamCounter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETTINGS = EngineSettings(64, 0.25, 4, torch.device("cpu"))
ROWS, COLS = {48, 64, 96, 112}, {48, 64}
"""Where windows of 64 px, 48 apart, begin and end on 130 rows and 100 columns."""


def counted(quanta: np.ndarray, rows: set[int], cols: set[int]) -> float:
    """The index from a float array with NaN for no data; the sets hold the first pixel after each border.

    Every fourth row is compared along itself and with the next, and rows at a border with each other.
    """
    values = np.where(quanta == 255, np.nan, quanta.astype(float))
    edge, elsewhere = [], []
    for place, line in enumerate(np.abs(np.diff(values, axis=0)), start=1):
        if place in rows or (place - 1) % 4 == 0:
            (edge if place in rows else elsewhere).append(line[~np.isnan(line)])
    for place, line in enumerate(np.abs(np.diff(values[::4], axis=1)).T, start=1):
        (edge if place in cols else elsewhere).append(line[~np.isnan(line)])
    return float(np.mean(np.concatenate(edge)) / np.mean(np.concatenate(elsewhere)))


@pytest.fixture(scope="module")
def canvas(tmp_path_factory: pytest.TempPathFactory, scene_file: Callable[..., Path]) -> ScenePlacement:
    return ScenePlacement.alone(
        inspect_scene(scene_file(tmp_path_factory.mktemp("seams") / "scene.tif", size=(130, 100)))
    )


def tallied(canvas: ScenePlacement, quanta: np.ndarray, cuts: list[int]) -> float | None:
    counter = SeamCounter(canvas, SETTINGS.size, SETTINGS.overlap)
    for start, stop in zip([0, *cuts], [*cuts, len(quanta)], strict=True):
        counter.add(start, quanta[start:stop])
    return counter.index


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 99), cuts=st.sets(st.integers(1, 129), max_size=4), blank=st.booleans())
def test_strips_of_any_height_count_the_same_pairs_once(
    canvas: ScenePlacement, seed: int, cuts: set[int], blank: bool
) -> None:
    quanta = np.random.default_rng(seed).integers(0, 255, (130, 100), dtype=np.uint8)
    if blank:
        quanta[40:70, :50] = 255
    assert tallied(canvas, quanta, sorted(cuts)) == pytest.approx(counted(quanta, ROWS, COLS))


def test_a_step_at_every_border_is_a_seam_and_one_elsewhere_is_none(canvas: ScenePlacement) -> None:
    noise = np.random.default_rng(0).integers(100, 103, (130, 100))
    down, across = (np.isin(np.arange(length), list(at)) for length, at in zip(noise.shape, (ROWS, COLS), strict=True))
    steps = np.add.outer(np.cumsum(down), np.cumsum(across))
    moved = np.roll(steps, (-5, -5), (0, 1))
    assert (tallied(canvas, (noise + 20 * steps).astype(np.uint8), [48, 96]) or 0) > 10
    assert (tallied(canvas, (noise + 20 * moved).astype(np.uint8), [48, 96]) or 9) < 1


def test_a_scene_without_a_border_or_without_a_difference_has_no_index(
    canvas: ScenePlacement, tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    assert tallied(canvas, np.full((130, 100), 7, np.uint8), [48]) is None
    assert tallied(canvas, np.full((130, 100), 255, np.uint8), [48]) is None
    small = ScenePlacement.alone(inspect_scene(scene_file(tmp_path / "small.tif", size=(1, 1))))
    assert tallied(small, np.full((1, 1), 7, np.uint8), []) is None


def test_borders_are_those_of_the_group_and_of_the_grid_that_was_run(
    tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    paths = [
        scene_file(tmp_path / "left.tif", size=(100, 70), transform=(0.3, 0, 616000, 0, -0.3, 3347000)),
        scene_file(tmp_path / "right.tif", size=(100, 100), transform=(0.3, 0, 616021, 0, -0.3, 3347000)),
    ]
    canvas = place_scenes([inspect_scene(path) for path in paths], neighbours=True, gsd_m=None)[paths[1]]
    quanta = np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8)
    found = tallied(canvas, quanta, [])
    assert found == pytest.approx(counted(quanta, {48, 64}, {96 - 70, 112 - 70, 144 - 70, 160 - 70}))
    coarse = ScenePlacement.alone(canvas.source, 0.6)  # 50 px: one window
    assert tallied(coarse, quanta, []) is None
    fine = ScenePlacement.alone(canvas.source, 0.15)  # 200 px
    halves = {24, 32, 48, 56, 72, 80}
    assert tallied(fine, quanta, []) == pytest.approx(counted(quanta, halves, halves))
