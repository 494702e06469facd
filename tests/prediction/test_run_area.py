"""Only the ground that is asked for: which windows are run, what of the masks is shown, and what a rerun does."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from told import Told

from aerialseg.errors import BadDataError, NoInputError
from aerialseg.geo.areas import AreaOptions
from aerialseg.geo.polygons.polygonize import PolygonOptions
from aerialseg.geo.scenes import find_scenes
from aerialseg.prediction.options import PredictOptions, Shard
from aerialseg.prediction.run import predict_scenes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aerialseg.prediction.report import PredictReport

LEFT, TOP, GSD = 616000.0, 3347000.0, 0.3
OUTLINE = [(40.13, 30.29), (130.31, 60.17), (90.07, 170.41), (40.13, 30.29)]
LARGE = [(60.13, 30.29), (210.31, 60.17), (90.07, 270.41), (60.13, 30.29)]
"""Columns and rows of a triangle in a scene of 300 x 260 pixels."""


def polygons(path: Path, *rings: list[tuple[float, float]], names: tuple[str, ...] = ()) -> Path:
    """Write polygons given in pixels of the scene's grid, as GeoJSON in its CRS."""
    features = [
        {
            "type": "Feature",
            "properties": {"name": names[index] if names else ""},
            "geometry": {"type": "Polygon", "coordinates": [[[LEFT + GSD * x, TOP - GSD * y] for x, y in ring]]},
        }
        for index, ring in enumerate(rings)
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::26914"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path


def centres_in(ring: list[tuple[float, float]], height: int, width: int) -> np.ndarray:
    """Return which pixels' centres lie in a ring, by crossings of a ray."""
    row, col = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (x0, y0), (x1, y1) in pairwise(ring):
        between = (y0 > row) != (y1 > row)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= between & (col < (x1 - x0) * (row - y0) / (y1 - y0) + x0)
    return inside


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.fixture(scope="module")
def model(small_model: Callable[..., Path]) -> Path:
    return small_model()


@pytest.fixture
def scene(tmp_path: Path, scene_file: Callable[..., Path]) -> Path:
    return scene_file(tmp_path / "scenes" / "austin1.tif", size=(300, 260))


@pytest.fixture
def predict(tmp_path: Path, model: Path) -> Callable[..., PredictReport]:
    def call(name: str, **options: Any) -> PredictReport:
        progress = options.pop("progress", Told())
        chosen = PredictOptions(**options)
        return predict_scenes(find_scenes([tmp_path / "scenes"]), model, tmp_path / name, chosen, progress)

    return call


@pytest.mark.parametrize("margin", [0.0, 6.0])
@pytest.mark.parametrize("more", [{}, {"overlap": 0.75}, {"gsd_m": 0.45}, {"tta": "flips"}])
def test_inside_are_the_bytes_of_a_run_without_and_outside_is_nodata(
    scene: Path, predict: Callable[..., PredictReport], tmp_path: Path, margin: float, more: dict[str, Any]
) -> None:
    given = {"probability": True, "disagreement": True, "window": 64, **more}
    area = AreaOptions(str(polygons(tmp_path / "area.geojson", OUTLINE)), margin_m=margin)
    whole, part = predict("whole", **given).scenes[0], predict("part", **given, area=area).scenes[0]
    inside = centres_in(OUTLINE, 300, 260)
    for folder in (".", "probability", "disagreement"):
        expected = np.where(inside, read(tmp_path / "whole" / folder / scene.name), 255)
        np.testing.assert_array_equal(read(tmp_path / "part" / folder / scene.name), expected, err_msg=folder)
    assert part.valid_pixels == inside.sum()
    assert part.windows_run < whole.windows_run == part.windows


def test_no_window_is_run_beyond_the_margin(scene: Path, predict: Callable[..., PredictReport], tmp_path: Path) -> None:
    small = [(66, 66), (70, 66), (70, 70), (66, 70), (66, 66)]
    file = str(polygons(tmp_path / "area.geojson", small))
    runs = [
        predict(f"out{metres}", window=64, overlap=0, area=AreaOptions(file, margin_m=metres)).scenes[0].windows_run
        for metres in (3.0, 19.5)
    ]
    assert runs == [4, 8]  # 3 m are 10 pixels; 65 reach beyond 128, but not into the corner


def test_an_area_is_part_of_the_key_and_done_work_is_left(
    scene: Path, predict: Callable[..., PredictReport], tmp_path: Path
) -> None:
    file = polygons(tmp_path / "area.geojson", OUTLINE)
    statuses = [
        predict("out", **options).scenes[0].status
        for options in (
            {},
            {"area": AreaOptions(str(file))},
            {"area": AreaOptions(str(file))},
            {"area": AreaOptions(str(file), margin_m=3)},
            {},
        )
    ]
    assert statuses == ["done", "done", "skipped", "done", "done"]


def test_shards_and_neighbours_make_the_same_bytes(
    scene_file: Callable[..., Path], predict: Callable[..., PredictReport], tmp_path: Path
) -> None:
    scene_file(tmp_path / "scenes" / "a.tif", size=(300, 130), seed=1)
    right = (GSD, 0.0, LEFT + 130 * GSD, 0.0, -GSD, TOP)
    scene_file(tmp_path / "scenes" / "b.tif", size=(300, 130), seed=2, transform=right)
    far = (GSD, 0.0, LEFT + 9000 * GSD, 0.0, -GSD, TOP)
    scene_file(tmp_path / "scenes" / "far.tif", size=(90, 90), seed=3, transform=far)
    area = AreaOptions(str(polygons(tmp_path / "area.geojson", LARGE)), margin_m=3)
    told = Told()
    predict("whole", window=64)
    predict("part", window=64, area=area, progress=told)
    for number in (1, 2, 3):
        predict("shards", window=64, area=area, shard=Shard(number, 3))
    predict("shards", window=64, area=area)
    inside = centres_in(LARGE, 300, 260)
    joined = [np.hstack([read(tmp_path / out / f"{n}.tif") for n in "ab"]) for out in ("whole", "part", "shards")]
    np.testing.assert_array_equal(joined[1], np.where(inside, joined[0], 255))
    np.testing.assert_array_equal(joined[2], joined[1])
    assert not (tmp_path / "part" / "far.tif").exists()
    assert any("1 scene left out: outside --area" in line for line in told.lines)


def test_an_area_in_degrees_or_of_some_polygons(
    scene: Path, predict: Callable[..., PredictReport], tmp_path: Path
) -> None:
    square = [(20, 20), (60, 20), (60, 60), (20, 60), (20, 20)]
    file = polygons(tmp_path / "area.geojson", square, OUTLINE, names=("a", "b"))
    predict("some", area=AreaOptions(str(file), where="name = 'b'"))
    np.testing.assert_array_equal(read(tmp_path / "some" / scene.name) != 255, centres_in(OUTLINE, 300, 260))
    everything = "-98,30,-97,31"
    assert predict("degrees", area=AreaOptions(everything)).scenes[0].valid_pixels == 300 * 260


def test_no_scene_or_no_crs(
    scene: Path, scene_file: Callable[..., Path], predict: Callable[..., PredictReport], tmp_path: Path
) -> None:
    with pytest.raises(NoInputError, match=r"meets no scene: polygons lie at longitude 10.* scenes at longitude -97"):
        predict("out", area=AreaOptions("10,50,11,51"))
    scene_file(scene, size=(80, 80), crs=None)
    report = predict("out", area=AreaOptions("10,50,11,51"))
    with pytest.raises(BadDataError, match="has no CRS"):
        report.raise_failures()


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[str], dict[str, tuple[float, bytes]]]:
    """Return the buildings of a run, by id: the share inside (None without an area), and the outline."""

    def call(name: str) -> dict[str, tuple[float | None, Any]]:
        frame = geopandas.read_file(tmp_path / name / "buildings.gpkg", layer="buildings")
        shares = frame["inside"] if "inside" in frame else [None] * len(frame)
        return dict(zip(frame["id"], zip(shares, frame.geometry.normalize(), strict=True), strict=True))

    return call


def test_two_areas_with_a_common_border_have_each_building_once(
    scene: Path, predict: Callable[..., PredictReport], tmp_path: Path, rows: Callable[[str], dict[str, Any]]
) -> None:
    border = [(100, -50), (101.5, 90), (160, 150.5), (133, 350)]
    west = [(-50, -50), *border, (-50, 350), (-50, -50)]
    east = [(350, -50), *border, (350, 350), (350, -50)]
    files = {name: polygons(tmp_path / f"{name}.geojson", ring) for name, ring in (("west", west), ("east", east))}
    given = {"window": 64, "polygons": True}
    predict("whole", **given)
    for name, file in files.items():
        predict(name, **given, area=AreaOptions(str(file), keep="inside"))
    whole, left, right = (rows(name) for name in ("whole", *files))
    assert left and right and not left.keys() & right.keys()
    assert {name: found[1] for name, found in (left | right).items()} == {
        name: found[1] for name, found in whole.items()
    }
    assert any(share < 1 for share, _ in left.values())


def test_what_is_kept_and_drawn_again(
    scene: Path, predict: Callable[..., PredictReport], tmp_path: Path, rows: Callable[[str], dict[str, Any]]
) -> None:
    file = str(polygons(tmp_path / "area.geojson", LARGE))
    area = shapely.Polygon([(LEFT + GSD * x, TOP - GSD * y) for x, y in LARGE])
    predict("whole", window=64, polygons=True, shaping=PolygonOptions())
    whole = {name: shape for name, (_, shape) in rows("whole").items()}
    shares = {name: shape.intersection(area).area / shape.area for name, shape in whole.items()}
    for keep in ("touching", "clip", "touching"):
        report = predict("out", window=64, polygons=True, shaping=PolygonOptions(), area=AreaOptions(file, keep=keep))
        found = rows("out")
        assert {name.removesuffix(":2") for name in found} >= {name for name, share in shares.items() if share > 1e-3}
        for name, (share, shape) in found.items():
            origin = ":".join(name.split(":")[:3])
            assert share == pytest.approx(shares[origin], abs=1e-3)
            assert keep == "clip" or shape.equals(whole[origin])
            assert keep != "clip" or area.buffer(1e-6).contains(shape)
    assert report.scenes[0].status == "skipped"
