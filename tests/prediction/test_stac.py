"""STAC items, validated by pystac with the schemas it brings, and what the schemas cannot see."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pystac
import pystac.validation
import pytest
import rasterio
import shapely
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.projection import ProjectionExtension
from small_run import CARD, HASH, ODD_NAMES, Entry, collect, write_entry, write_run

from aerialseg.geo.dates import DateOptions
from aerialseg.prediction.stac import UNKNOWN, Sheet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CUSTOM = "+proj=tmerc +lat_0=47.5 +lon_0=16.3 +k=0.9999 +x_0=1000 +y_0=-5000000 +ellps=bessel +units=m +no_defs"
TAKEN = "TIFFTAG_DATETIME"


def stac_of(root: Path, entries: list[Entry], dates: Sequence[str] = (), **card: Any) -> dict[str, Any]:
    """Write the collection and return its JSON files by their paths below stac/."""
    import dataclasses

    collect(root / "out", entries, card=dataclasses.replace(CARD, **card), dates=DateOptions.of(dates))
    folder = root / "out/stac"
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}


def core_valid(value: dict[str, Any]) -> None:
    """Validate against the core schema, which pystac brings; those of extensions would have to be fetched."""
    bare = {**value, "stac_extensions": []}
    thing = pystac.Collection.from_dict(bare) if value["type"] == "Collection" else pystac.Item.from_dict(bare)
    thing.validate()


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"crs": "EPSG:4326", "transform": (1e-5, 0, 15.0, 0, -1e-5, 48.0)},
        {"crs": CUSTOM},
        {"crs": "EPSG:2277"},
        {"crs": None},
    ],
    ids=["utm", "degrees", "custom", "feet", "none"],
)
def test_every_file_is_valid(tmp_path: Path, profile: dict[str, Any]) -> None:
    entries = [write_entry(tmp_path, "a", 0, **profile), write_entry(tmp_path, "b", 1, probability=False)]
    found = stac_of(tmp_path, entries)
    assert set(found) == {"collection.json", "model.json", "items/a.json", "items/b.json"}
    for value in found.values():
        core_valid(value)


def test_a_broken_item_is_not_valid(tmp_path: Path) -> None:
    value = stac_of(tmp_path, write_run(tmp_path, ["a"]))["items/a.json"]
    value["assets"]["mask"].pop("href")
    with pytest.raises((pystac.STACValidationError, KeyError)):
        core_valid(value)


def test_pystac_walks_from_the_collection_to_the_files(tmp_path: Path) -> None:
    entries = write_run(tmp_path)
    stac_of(tmp_path, entries)
    collection = pystac.Collection.from_file(str(tmp_path / "out/stac/collection.json"))
    items = [item for item in collection.get_items() if item.id != "aerialseg-model"]
    assert [item.properties["title"] for item in items] == [name.replace("\n", "\\n") for name in ODD_NAMES]
    for entry, item in zip(entries, items, strict=True):
        folder = tmp_path / "out/stac/items"
        for kind, path in (("mask", entry.mask), ("scene", entry.scene), ("probability", entry.probability)):
            href = item.assets[kind].href
            assert not href.startswith("/")
            assert (folder / unquote(href)).resolve() == path.resolve()
        assert item.collection_id == collection.id


def test_names_become_plain_unequal_ids(tmp_path: Path) -> None:
    ids = [item for item in stac_of(tmp_path, write_run(tmp_path)) if item.startswith("items/")]
    assert len(ids) == len(ODD_NAMES)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-./") for name in ids)
    sheets = [Sheet(name, tmp_path, None, None, None, None, None) for name in ("a b", "a-b", "a/b", "x" * 251, "日本")]
    identifiers = [sheet.identifier for sheet in sheets]
    assert len(set(identifiers)) == len(sheets)
    assert max(map(len, identifiers)) < 120


def test_the_grid_is_said_in_the_projection_extension(tmp_path: Path) -> None:
    entries = [
        write_entry(tmp_path, "a", 1),
        write_entry(tmp_path, "b", 0, crs=CUSTOM),
        write_entry(tmp_path, "c", 0, crs=None),
    ]
    found = stac_of(tmp_path, entries)
    item = pystac.Item.from_dict(found["items/a.json"])
    said = ProjectionExtension.ext(item)
    with rasterio.open(entries[0].mask) as mask:
        assert (said.code, said.wkt2) == ("EPSG:26914", None)
        assert said.shape == list(mask.shape)
        assert said.transform == list(mask.transform)[:6]
        assert said.bbox == list(mask.bounds)
        outline = shapely.box(*rasterio.warp.transform_bounds(mask.crs, 4326, *mask.bounds))
    geometry = shapely.geometry.shape(found["items/a.json"]["geometry"])
    assert geometry.is_valid
    assert len(geometry.exterior.coords) == 5, "no more points than it needs"
    assert geometry.bounds == pytest.approx(outline.bounds, abs=1e-7)
    assert found["items/a.json"]["bbox"] == pytest.approx(geometry.bounds)
    custom = found["items/b.json"]["properties"]
    assert custom["proj:code"] is None
    assert rasterio.crs.CRS.from_wkt(custom["proj:wkt2"]) == rasterio.crs.CRS.from_user_input(CUSTOM)
    assert found["items/c.json"]["geometry"] is None
    assert "bbox" not in found["items/c.json"]


@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:4326"])
def test_a_scene_across_the_180th_meridian_is_two_polygons(tmp_path: Path, crs: str) -> None:
    east = (1e-5, 0, 179.9994, 0, -1e-5, 48.0)
    x, y = rasterio.warp.transform("EPSG:4326", "EPSG:32601", [-180.0], [48.0])
    grid = (0.3, 0, x[0] - 18, 0, -0.3, y[0]) if crs == "EPSG:32601" else east
    value = stac_of(tmp_path, [write_entry(tmp_path, "a", 0, crs=crs, transform=grid)])["items/a.json"]
    core_valid(value)
    shape = shapely.geometry.shape(value["geometry"])
    assert shape.geom_type == "MultiPolygon"
    assert shape.is_valid
    assert all(part.exterior.is_ccw for part in shape.geoms)
    assert [round(part.bounds[index]) for part, index in zip(shape.geoms, (2, 0), strict=True)] == [180, -180]
    west, south, east_, north = value["bbox"]
    assert west > 179.999 and east_ < -179.999
    assert north > south
    metres = (36 / 111_320 / np.cos(np.radians(48))) * (30 / 111_195)
    assert shape.area == pytest.approx(metres if crs == "EPSG:32601" else 120e-5 * 100e-5, rel=0.02)


def test_degrees_from_0_to_360_are_turned(tmp_path: Path) -> None:
    entry = write_entry(tmp_path, "a", 0, crs="EPSG:4326", transform=(1e-5, 0, 262.2, 0, -1e-5, 30.2))
    value = stac_of(tmp_path, [entry])["items/a.json"]
    assert value["geometry"]["type"] == "Polygon"
    assert value["bbox"] == pytest.approx([-97.8, 30.199, -97.7988, 30.2])


def test_time_is_the_scenes_own_or_unknown_but_never_now(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b"])
    with rasterio.open(entries[0].scene, "r+") as scene:
        scene.update_tags(**{TAKEN: "2016:07:14 10:21:05"})
    found = stac_of(tmp_path, entries, ["tiff"])
    dated = found["items/a.json"]["properties"]
    assert dated["datetime"] == "2016-07-14T10:21:05Z"
    assert [dated["aerialseg:taken"], dated["aerialseg:taken_from"]] == ["2016-07-14", "tiff"]
    unknown = found["items/b.json"]["properties"]
    assert unknown["datetime"] is None
    assert [unknown["start_datetime"], unknown["end_datetime"]] == [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in UNKNOWN]
    assert not {"aerialseg:taken", "aerialseg:taken_from"} & unknown.keys()
    assert found["collection.json"]["extent"]["temporal"]["interval"] == [[None, None]]
    assert str(datetime.now(UTC).year) not in json.dumps(
        {**found["items/b.json"], "geometry": 0, "bbox": 0, "aerialseg:seal": 0}
    )
    with rasterio.open(entries[1].scene, "r+") as scene:
        scene.update_tags(**{TAKEN: "2015:01:02 00:00:00"})
    interval = stac_of(tmp_path, entries, ["tiff"])["collection.json"]["extent"]["temporal"]["interval"]
    assert interval == [["2015-01-02T00:00:00Z", "2016-07-14T10:21:05Z"]]


def test_a_files_own_time_is_no_acquisition_unless_the_user_says_so(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a"])
    with rasterio.open(entries[0].scene, "r+") as scene:
        scene.update_tags(**{TAKEN: "2016:07:14 10:21:05"})
    item = stac_of(tmp_path, entries)["items/a.json"]
    assert item["properties"]["datetime"] is None and "2016" not in json.dumps(item["properties"])


@pytest.mark.parametrize(
    ("said", "day", "last"),
    [("2024-05-17", "2024-05-17", "2024-05-17"), ("2024-05-17/2024-06-02", None, "2024-06-02")],
)
def test_a_day_or_a_range_is_an_interval_without_a_datetime(
    tmp_path: Path, said: str, day: str | None, last: str
) -> None:
    found = stac_of(tmp_path, write_run(tmp_path, ["a"]), [said])
    core_valid(found["items/a.json"])
    told = found["items/a.json"]["properties"]
    assert [told["datetime"], told.get("aerialseg:taken")] == [None, day]
    assert [told["start_datetime"], told["end_datetime"]] == ["2024-05-17T00:00:00Z", f"{last}T23:59:59Z"]
    interval = found["collection.json"]["extent"]["temporal"]["interval"]
    assert interval == [["2024-05-17T00:00:00Z", f"{last}T23:59:59Z"]]


def test_the_model_is_said_in_the_mlm_extension(tmp_path: Path) -> None:
    value = stac_of(tmp_path, write_run(tmp_path, ["a"]), band_indexes=(4, 1, 1), threshold=0.4)["model.json"]
    item = pystac.Item.from_dict(value)
    said = MLMExtension.ext(item)
    assert value["properties"]["mlm:name"] == "aerialseg-unet-r18"
    assert said.architecture == "unet with resnet18"
    assert said.tasks == ["semantic-segmentation"]
    (given,), (output,) = said.input, said.output
    assert given.bands == ["band4", "band1", "band1"]
    assert given.input.shape == [-1, 3, 512, 512]
    assert [scale["mean"] for scale in given.to_dict()["value_scaling"]] == [100, 90, 80]
    assert output.result.shape == [-1, 1, 512, 512]
    assert {band["name"] for band in value["properties"]["bands"]} == {"band4", "band1"}
    assert value["properties"]["mlm:hyperparameters"] == {"threshold": 0.4, "temperature": 1.0}
    asset = value["assets"]["model"]
    assert asset["roles"] == ["mlm:model"]
    assert asset["mlm:artifact_type"] == "safetensors.torch.save_file"
    digest = asset["href"].removeprefix("ni:///sha-256;")
    assert base64.urlsafe_b64decode(digest + "=").hex() == HASH
    assert any(uri.startswith("https://stac-extensions.github.io/mlm/") for uri in value["stac_extensions"])


def test_items_of_masks_that_are_gone_go_but_not_a_users(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b", "c"])
    stac_of(tmp_path, entries)
    edited = tmp_path / "out/stac/items/c.json"
    edited.write_text(edited.read_text().replace('"title": "c"', '"title": "mine"'))
    mine = tmp_path / "out/stac/items/mine.json"
    mine.write_text("{}")
    entries[1].mask.unlink()
    found = stac_of(tmp_path, entries[:1])
    assert set(found) == {"collection.json", "model.json", "items/a.json", "items/c.json", "items/mine.json"}


def test_the_probability_says_by_which_scale_its_numbers_are_probabilities(tmp_path: Path) -> None:
    entries = [write_entry(tmp_path, "a", 0), write_entry(tmp_path, "b", 1, probability=False)]
    found = stac_of(tmp_path, entries)
    asset = found["items/a.json"]["assets"]["probability"]
    with rasterio.open(entries[0].probability) as dataset:
        assert [asset["raster:scale"], asset["raster:offset"]] == [dataset.scales[0], dataset.offsets[0]]
    assert any("/raster/" in uri for uri in found["items/a.json"]["stac_extensions"])
    assert not any("/raster/" in uri for uri in found["items/b.json"]["stac_extensions"])
