"""Bands: every window row of every scene is one shard's, and strips of any band are those of the whole scene."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from known_networks import Counting, Neighbourhood, standardised
from rasterio.crs import CRS

from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.inspection import Source, inspect_scene
from aerialseg.geo.validity import ValidityRule
from aerialseg.models.build import Segmenter
from aerialseg.prediction.bands import missing, share_out, window_rows
from aerialseg.prediction.lattice import ScenePlacement, place_scenes
from aerialseg.prediction.options import Shard

if TYPE_CHECKING:
    from collections.abc import Callable


def placed(sizes: list[tuple[int, int]]) -> dict[Path, ScenePlacement]:
    """Return the placements of scenes that do not touch."""
    found = {}
    for index, (height, width) in enumerate(sizes):
        box = GeoBox(height, width, Affine(0.3, 0, 6e5 + 1e5 * index, 0, -0.3, 3e6), CRS.from_epsg(26914))
        source = Source(Path(f"{index}.tif"), box, (1, 2, 3), "uint8", None, ValidityRule(), ())
        found[source.path] = ScenePlacement.alone(source)
    return found


def pixels(placements: dict[Path, ScenePlacement], share: Any) -> int:
    return sum((rows[-1][1] - rows[0][0]) * placements[p].source.box.width for p, rows in share.bands.items())


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 2000)), min_size=1, max_size=6),
    count=st.integers(1, 20), overlap=st.sampled_from([0.0, 0.25, 0.75]),
)  # fmt: skip
def test_every_window_row_is_in_exactly_one_shard(sizes: list[tuple[int, int]], count: int, overlap: float) -> None:
    placements = placed(sizes)
    whole = share_out(placements, 64, overlap, None)
    shares = [share_out(placements, 64, overlap, Shard(number, count)) for number in range(1, count + 1)]
    for path, rows in whole.bands.items():
        assert rows[0][0] == 0
        assert rows[-1][1] == placements[path].source.box.height
        assert [row for share in shares for row in share.bands.get(path, ())] == list(rows)
    total = sum(map(len, whole.bands.values()))
    assert sum(bool(share.bands) for share in shares) == min(count, total)
    bands = [len(rows) for share in shares for rows in share.bands.values()]
    least = min([20, *(len(rows) for rows in whole.bands.values())])
    assert shares[0].low or min(bands) >= least


def test_eight_shards_of_one_big_scene_have_equal_parts() -> None:
    placements = placed([(40000, 30000)])
    shares = [share_out(placements, 512, 0.25, Shard(number, 8)) for number in range(1, 9)]
    parts = [pixels(placements, share) for share in shares]
    assert max(parts) < 1.12 * sum(parts) / 8
    assert {share.low for share in shares} == {True}
    assert shares[0].repeated == pytest.approx(7 / 104)
    assert "7% of them are run twice" in shares[0].line()


def test_a_big_scene_among_small_ones_is_shared_too() -> None:
    placements = placed([(400, 400)] * 5 + [(40000, 4000)] + [(400, 400)] * 5)
    shares = [share_out(placements, 64, 0.25, Shard(number, 4)) for number in range(1, 5)]
    parts = [pixels(placements, share) for share in shares]
    assert max(parts) < 1.02 * sum(parts) / 4
    assert not shares[0].low


def test_more_shards_than_window_rows_leave_some_without_work() -> None:
    placements = placed([(100, 100)])
    lines = [share_out(placements, 64, 0.25, Shard(number, 4)).line() for number in range(1, 5)]
    assert sum(line.startswith("nothing to do: there are 2 window rows in all") for line in lines) == 2


def test_what_is_missing_is_run_by_whole_window_rows() -> None:
    there = np.ones(50, dtype=np.bool_)
    rows = ((10, 20), (20, 30), (30, 40), (40, 50))
    assert missing(rows, there) == ((), 40)
    there[[12, 29, 49, 3]] = False
    assert missing(rows, there) == (((10, 30), (40, 50)), 10)


@pytest.mark.parametrize("chosen", [{}, {"overlap": 0.75}, {"planes": 2}, {"tta": "d4"}], ids=str)
@pytest.mark.parametrize("gsd_m", [None, 0.2, 0.71])
def test_any_bands_give_the_strips_of_the_whole_scene(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], chosen: dict[str, Any],
    gsd_m: float | None,
) -> None:  # fmt: skip
    for seed, (name, top) in enumerate([("upper", 3347000), ("lower", 3347000 - 0.3 * 170)]):
        scene_file(tmp_path / f"{name}.tif", size=(170, 90), seed=seed, transform=(0.3, 0, 616000, 0, -0.3, top))
    sources = [inspect_scene(tmp_path / f"{name}.tif") for name in ("upper", "lower")]
    canvas = list(place_scenes(sources, neighbours=True, gsd_m=gsd_m).values())[1]
    assert canvas.halo
    network, path = standardised(Neighbourhood()), tmp_path / "lower.tif"
    whole: list[Any] = []
    stream(path, network, canvas=canvas, strips=whole, **chosen)
    rows = window_rows(canvas, 64, chosen.get("overlap", 0.25))
    assert rows[0][0] == 0
    for count in (2, len(rows)):
        found: list[Any] = []
        for edges in np.array_split(rows, count):
            stream(path, network, canvas=canvas, strips=found, skip=edges[0][0], stop=edges[-1][1], **chosen)
        assert [row for row, _, _ in found] == [row for row, _, _ in whole]
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_array_equal(one[1], other[1])
            assert (one[2] is None) or np.array_equal(one[2], other[2])


@pytest.mark.parametrize(("overlap", "more"), [(0.25, 1), (0.75, 3)])
def test_a_border_costs_the_window_rows_that_reach_over_it(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], overlap: float, more: int
) -> None:
    path = scene_file(tmp_path / "scene.tif", size=(500, 64))
    rows = window_rows(ScenePlacement.alone(inspect_scene(path)), 64, overlap)
    runs = []
    for first, stop in ((0, len(rows)), (0, len(rows) // 2), (len(rows) // 2, len(rows))):
        counting = Counting()
        segmenter = Segmenter(counting, [0.0] * 3, [1.0] * 3).eval()
        stream(path, segmenter, overlap=overlap, batch=1, skip=rows[first][0], stop=rows[stop - 1][1])
        runs.append(len(counting.sizes))
    assert runs[1] + runs[2] - runs[0] == more
