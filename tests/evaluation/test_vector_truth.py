"""Truth as polygons: burned on the prediction's grid, from another CRS, chosen by attribute, within a labelled area."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from shapely.geometry import box

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]

EAST, NORTH = 616000.0, 3347000.0


@pytest.fixture
def houses(tmp_path: Path, mask_file: Write) -> gpd.GeoDataFrame:
    """Twenty rectangles on the default grid, every fifth a shed, and a prediction that misses a few pixels."""
    rng = np.random.default_rng(0)
    shapes = []
    for _ in range(20):
        (col, row), (width, height) = rng.uniform(0, 110, 2), rng.uniform(4, 15, 2)
        shapes.append(
            box(EAST + 0.3 * col, NORTH - 0.3 * (row + height), EAST + 0.3 * (col + width), NORTH - 0.3 * row)
        )
    frame = gpd.GeoDataFrame({"kind": ["shed" if n % 5 == 0 else "house" for n in range(20)]}, geometry=shapes,
                             crs="EPSG:26914")  # fmt: skip
    mask_file(tmp_path / "out/x.tif", np.roll(burn(frame), 2, 1), nodata=255)
    return frame


def burn(frame: gpd.GeoDataFrame) -> np.ndarray:
    grid = rasterio.transform.from_origin(EAST, NORTH, 0.3, 0.3)
    return rasterize(frame.geometry, out_shape=(128, 128), transform=grid, dtype=np.uint8)


def counts(prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> dict[str, int]:
    p, t = prediction == 1, truth == 1
    pairs = {"tp": p & t, "fp": p & ~t, "fn": t & ~p, "tn": ~p & ~t}
    return {name: int((mask & known).sum()) for name, mask in pairs.items()}


@pytest.mark.parametrize(("suffix", "crs"), [(".gpkg", "EPSG:26914"), (".geojson", "EPSG:4326")])
def test_polygons_score_as_the_mask_burned_from_them(
    tmp_path: Path, houses: gpd.GeoDataFrame, run: Run, mask_file: Write, suffix: str, crs: str
) -> None:
    houses.to_crs(crs).to_file(tmp_path / f"truth{suffix}")
    mask_file(tmp_path / "gt/x.tif", burn(houses))
    found = []
    for masks in (f"truth{suffix}", "gt"):
        code, out, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / masks, "--json",
                             "--report", tmp_path / "r.html")  # fmt: skip
        assert code == 0, err
        found.append(json.loads(out)["overall"])
    assert found[0] == found[1]
    assert found[0]["fp"] > 0


@pytest.mark.parametrize("suffix", [".shp", ".fgb", ".gpkg", ".geojson", ".geojsonl", ".kml", ".parquet"])
def test_where_and_layer_choose_the_truth_in_every_format(
    tmp_path: Path, houses: gpd.GeoDataFrame, run: Run, suffix: str
) -> None:
    truth, driver = tmp_path / f"truth{suffix}", {".geojsonl": "GeoJSONSeq", ".kml": "LIBKML"}.get(suffix)
    if suffix == ".parquet":
        houses.to_parquet(truth)
    else:
        moved = houses.to_crs("EPSG:4326") if suffix in (".geojson", ".geojsonl", ".kml") else houses
        moved.to_file(truth, driver=driver)
    with rasterio.open(tmp_path / "out/x.tif") as source:
        prediction = source.read(1)
    layer = () if suffix == ".parquet" else ("--layer", "truth")
    options = ("--masks", truth, "--pixels-only", "--json", *layer)
    code, out, err = run("evaluate", tmp_path / "out", *options, "--where", "kind = 'house'")
    assert code == 0, err
    known = burn(houses[houses.kind == "house"])
    found, expected = json.loads(out)["overall"], counts(prediction, known, known >= 0)
    assert all(abs(found[name] - expected[name]) <= 2 for name in expected)
    code, _, err = run("evaluate", tmp_path / "out", *options, "--where", "knid = 'house'")
    assert code == 65 and "--where knid = 'house': no such column: knid; its columns are " in err


def test_where_and_the_labelled_area(tmp_path: Path, houses: gpd.GeoDataFrame, run: Run) -> None:
    houses.to_file(tmp_path / "truth.gpkg")
    west = gpd.GeoDataFrame(geometry=[box(EAST, NORTH - 50, EAST + 18, NORTH)], crs="EPSG:26914")
    west.to_file(tmp_path / "area.gpkg")
    with rasterio.open(tmp_path / "out/x.tif") as source:
        prediction = source.read(1)
    options = ("--masks", tmp_path / "truth.gpkg", "--json")
    code, out, _ = run("evaluate", tmp_path / "out", *options, "--where", "kind = 'house'")
    assert code == 0
    truth = burn(houses[houses.kind == "house"])
    found = json.loads(out)["overall"]
    assert {name: found[name] for name in ("tp", "fp", "fn", "tn")} == counts(prediction, truth, truth >= 0)
    code, out, _ = run("evaluate", tmp_path / "out", *options, "--labelled-area", tmp_path / "area.gpkg")
    found = json.loads(out)["overall"]
    known = np.indices((128, 128))[1] < 60
    assert {name: found[name] for name in ("tp", "fp", "fn", "tn")} == counts(prediction, burn(houses), known)
    assert found["uncounted_share"] == pytest.approx(68 / 128)


def test_a_labelled_area_goes_with_true_masks_too(
    tmp_path: Path, houses: gpd.GeoDataFrame, run: Run, mask_file: Write
) -> None:
    mask_file(tmp_path / "gt/x.tif", burn(houses))
    gpd.GeoDataFrame(geometry=[box(EAST, NORTH - 50, EAST + 18, NORTH)], crs="EPSG:26914").to_file(tmp_path / "a.gpkg")
    options = ("--masks", tmp_path / "gt", "--labelled-area", tmp_path / "a.gpkg", "--json")
    code, out, _ = run("evaluate", tmp_path / "out", *options)
    assert code == 0
    assert json.loads(out)["overall"]["uncounted_share"] == pytest.approx(68 / 128)


def test_an_area_is_all_that_is_counted_and_shares_ground_with_what_was_labelled(
    tmp_path: Path, houses: gpd.GeoDataFrame, run: Run, mask_file: Write
) -> None:
    houses.to_file(tmp_path / "truth.gpkg")
    mask_file(tmp_path / "gt/x.tif", burn(houses))
    for name, sides in (("a", (0, 50, 18, 30)), ("labelled", (6, 50, 50, 0)), ("far", (9000, 50, 9010, 0))):
        west, north, east, south = sides
        ground = box(EAST + west, NORTH - north, EAST + east, NORTH - south)
        gpd.GeoDataFrame({"name": [name]}, geometry=[ground], crs="EPSG:26914").to_file(tmp_path / f"{name}.gpkg")
    with rasterio.open(tmp_path / "out/x.tif") as source:
        prediction = source.read(1)
    row, col = np.indices((128, 128))
    within, labelled = (row >= 100) & (col < 60), col >= 20
    for truth in ("gt", "truth.gpkg"):
        command = ("evaluate", tmp_path / "out", "--masks", tmp_path / truth, "--json")
        for more, known in (((), within), (("--labelled-area", tmp_path / "labelled.gpkg"), within & labelled)):
            code, out, err = run(*command, "--area", tmp_path / "a.gpkg", "--area-where", "name = 'a'", *more)
            assert code == 0, err
            found = json.loads(out)["overall"]
            assert {name: found[name] for name in ("tp", "fp", "fn", "tn")} == counts(prediction, burn(houses), known)
            assert "area: only the ground of" in err
        code, _, err = run(*command, "--aoi", tmp_path / "far.gpkg")
        assert code == 66
        assert "meets no prediction: polygons lie at longitude" in err
    command = ("evaluate", tmp_path / "out", "--masks", tmp_path / "gt")
    assert run(*command, "--area", "3,2,1")[0] == 66
    assert run(*command, "--area", "3,2,1,4")[0] == 2
    assert run(*command, "--area-where", "name = 'a'")[0] == 2


def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, houses: gpd.GeoDataFrame, run: Run, mask_file: Write, scene_file: Write
) -> None:
    houses.to_file(tmp_path / "truth.gpkg")
    mask_file(tmp_path / "gt/x.tif", burn(houses))
    vector = ("evaluate", tmp_path / "out", "--masks", tmp_path / "truth.gpkg")
    assert run(*vector, "--building-values", "1")[0] == 2
    assert run(*vector, "--mask-pattern", "{stem}_x")[0] == 2
    assert run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--where", "kind = 'house'")[0] == 2
    code, _, err = run(*vector, "--where", "nonsense = 3")
    assert code == 65
    assert "truth.gpkg" in err
    (tmp_path / "bad.gpkg").write_bytes(b"<OGRVRTDataSource/>")
    assert run("evaluate", tmp_path / "out", "--masks", tmp_path / "bad.gpkg")[0] == 65
    assert run("evaluate", tmp_path / "out", "--masks", "http://127.0.0.1:9/x.gpkg")[0] == 2
    far = houses.copy()
    far.geometry = houses.translate(50000, 0)
    far.to_file(tmp_path / "far.gpkg")
    code, _, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "far.gpkg")
    assert code == 65
    assert "no polygon near any scene" in err
