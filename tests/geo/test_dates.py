"""When the ground was seen: who is believed, in which order, and what becomes of a building between two flights."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasters import AUSTIN, write_raster

from aerialseg.errors import BadDataError, UsageError
from aerialseg.geo.dates import NO_DATES, DateOptions, DatePolygons, parse_day, parse_time, read_dates, when_taken
from aerialseg.geo.dates import days_of_buildings as days_of
from aerialseg.geo.dates import ground_taken as ground
from aerialseg.geo.geobox import GeoBox

if TYPE_CHECKING:
    from collections.abc import Sequence

CORNER = AUSTIN[2], AUSTIN[5]


def box(path: Path) -> GeoBox:
    with rasterio.open(path) as dataset:
        return GeoBox.of(dataset)


def square(left: float, top: float, size: float) -> shapely.Polygon:
    """Return a square in pixels of the grid, on the ground."""
    x, y = CORNER[0] + 0.3 * left, CORNER[1] - 0.3 * top
    return shapely.box(x, y - 0.3 * size, x + 0.3 * size, y)


def flights(path: Path, ground: Sequence[tuple[shapely.Polygon, Any]], crs: str = "EPSG:26914") -> Path:
    shapes, days = zip(*ground, strict=True)
    frame = geopandas.GeoDataFrame({"flown": list(days)}, geometry=list(shapes), crs="EPSG:26914")
    frame.to_crs(crs).to_file(path)
    return path


def scene(folder: Path, item: dict[str, Any] | None = None, **tags: str) -> Path:
    path = write_raster(folder / "s.tif", size=(40, 40))
    with rasterio.open(path, "r+") as dataset:
        if "flown" in tags:
            dataset.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=tags["flown"])
        if "written" in tags:
            dataset.update_tags(TIFFTAG_DATETIME=tags["written"])
    if item is not None:
        about = {
            "stac_version": "1.1.0",
            "type": "Feature",
            "properties": item,
            "assets": {"image": {"href": "./s.tif"}},
        }
        (folder / "s.json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize(
    ("value", "day"),
    [
        ("2024-05-17", date(2024, 5, 17)), ("2024/05/17 00:00:00", date(2024, 5, 17)), (20240517, date(2024, 5, 17)),
        ("2024-05-17T23:30:00Z", date(2024, 5, 17)), (20240517.0, date(2024, 5, 17)),
        (date(1999, 1, 2), date(1999, 1, 2)),
        (None, None), ("", None), ("May 2024", None), ("2024-02-30", None), ("17-05-2024", None), (2024, None),
    ],
)  # fmt: skip
def test_days_are_read_however_a_column_keeps_them(value: object, day: date | None) -> None:
    assert parse_day(value) == day


@pytest.mark.parametrize("tag", [None, "", "yesterday", "2016-07-14", "0000:00:00 00:00:00", "2016:13:01 00:00:00"])
def test_a_time_that_makes_no_sense_is_none(tag: str | None) -> None:
    assert parse_time(tag) is None


def test_times_are_brought_to_utc() -> None:
    assert parse_time("2016:07:14 10:21:05") == datetime(2016, 7, 14, 10, 21, 5, tzinfo=UTC)
    assert parse_time("2016-07-14T00:21:05+02:00") == datetime(2016, 7, 13, 22, 21, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["2024-13-01", "yesterday", "2024-05-17/", "2024-06-01/2024-05-01", "f.gpkg:", ":flown"]
)
def test_what_is_no_date_is_refused_with_what_may_be_given(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--date .*: (give a day as 2024-05-17|ends before it begins)"):
        DateOptions.of([text])


def test_one_of_each_kind_may_be_given() -> None:
    found = DateOptions.of(["C:/a b/f.gpkg:flown", "2024-01-02", "tiff", "2023-01-01/2023-12-31"])
    assert (found.polygons, found.column) == (Path("C:/a b/f.gpkg"), "flown")
    assert found.day == date(2024, 1, 2) and found.tiff and found.within == (date(2023, 1, 1), date(2023, 12, 31))
    with pytest.raises(UsageError, match="a day was given twice"):
        DateOptions.of(["2024-01-02", "2024-01-03"])


def test_who_is_believed_first(tmp_path: Path) -> None:
    item = {"datetime": "2022-02-02T12:00:00Z"}
    known = {"flown": "2021-01-01 10:00:00", "written": "2020:12:31 09:00:00"}
    cases: list[tuple[Path, list[str], tuple[Any, Any]]] = [
        (scene(tmp_path / "a", item, **known), ["2023-03-03", "tiff"], (date(2023, 3, 3), "option")),
        (scene(tmp_path / "b", item, **known), ["tiff"], (date(2022, 2, 2), "stac")),
        (scene(tmp_path / "c", **known), ["tiff"], (date(2021, 1, 1), "metadata")),
        (scene(tmp_path / "d", written=known["written"]), ["tiff"], (date(2020, 12, 31), "tiff")),
        (scene(tmp_path / "e", written=known["written"]), [], (None, None)),
        (scene(tmp_path / "f"), ["2023-04-01/2023-09-30"], (None, "option")),
    ]
    for path, texts, expected in cases:
        taken = when_taken(path, "s", DateOptions.of(texts))
        assert (taken.day, taken.origin) == expected, path
    assert when_taken(cases[1][0], "s", NO_DATES).moment == datetime(2022, 2, 2, 12, tzinfo=UTC)
    assert when_taken(cases[-1][0], "s", DateOptions.of(cases[-1][1])).end == datetime(
        2023, 9, 30, 23, 59, 59, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("item", "day"),
    [
        ({"datetime": None, "start_datetime": "2022-02-02T01:00:00Z", "end_datetime": "2022-02-02T23:00:00Z"}, True),
        ({"datetime": None, "start_datetime": "2022-02-02T01:00:00Z", "end_datetime": "2022-02-03T23:00:00Z"}, False),
        ({"datetime": 7}, False),
        ({}, False),
    ],
)
def test_a_range_is_a_day_if_it_is_one(tmp_path: Path, item: dict[str, Any], day: bool) -> None:
    assert when_taken(scene(tmp_path, item), "s", NO_DATES).day == (date(2022, 2, 2) if day else None)


@pytest.mark.parametrize("content", ["[]", "{", '{"stac_version": 1, "assets": 3}', "[" * 3000 + "]" * 3000])
def test_an_item_without_sense_is_as_if_it_were_not_there(tmp_path: Path, content: str) -> None:
    path = scene(tmp_path, flown="2021-01-01 10:00:00")
    (tmp_path / "s.json").write_text(content)
    assert when_taken(path, "s", NO_DATES).origin == "metadata"


def test_an_item_of_another_file_says_nothing_of_this_one(tmp_path: Path) -> None:
    path = scene(tmp_path, {"datetime": "2022-02-02T12:00:00Z"})
    text = (tmp_path / "s.json").read_text()
    (tmp_path / "s.json").write_text(text.replace("./s.tif", "../s.tif"))
    assert when_taken(path, "s", NO_DATES).day is None


@pytest.mark.parametrize("crs", ["EPSG:26914", "EPSG:4326"])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp"])
def test_a_building_has_the_day_of_the_ground_that_holds_most_of_it(tmp_path: Path, suffix: str, crs: str) -> None:
    """Buildings of 10 px at column 0, 10, 15 and 25; flights over columns 0 to 20 and 20 to 40, rows 0 to 20."""
    both = [(square(0, 0, 20), "2019-06-01"), (square(20, 0, 20), "2021-07-02")]
    path = flights(tmp_path / f"f{suffix}", both, "EPSG:4326" if suffix == ".geojson" else crs)
    raster = scene(tmp_path, flown="2015-01-01 10:00:00")
    dates = read_dates(DateOptions.of([f"{path}:flown"]))
    buildings = np.array([square(0, 5, 10), square(8, 5, 10), square(16, 5, 10), square(25, 5, 10), square(5, 25, 10)])
    days, told = days_of(when_taken(raster, "s", NO_DATES), dates, buildings, box(raster))
    assert days.astype(str).tolist() == ["2019-06-01", "2019-06-01", "2021-07-02", "2021-07-02", "2015-01-01"]
    assert told.tolist() == ["polygons"] * 4 + ["metadata"]
    assert (ground(dates, box(raster)).day, ground(dates, box(raster)).origin) == (None, "polygons")


def test_flights_that_overlap_count_their_ground_once(tmp_path: Path) -> None:
    """Two outlines of one flight over the same 40 % of a building are no match for one over 60 %."""
    raster = scene(tmp_path)
    both = [(square(0, 0, 4), "2019-06-01"), (square(0, 0, 4), "2019-06-01"), (square(4, 0, 10), "2018-01-01")]
    dates = read_dates(DateOptions.of([f"{flights(tmp_path / 'f.gpkg', both)}:flown"]))
    days, _ = days_of(when_taken(raster, "s", NO_DATES), dates, np.array([shapely.box(
        CORNER[0], CORNER[1] - 1.2, CORNER[0] + 3, CORNER[1])]), box(raster))  # fmt: skip
    assert days.astype(str).tolist() == ["2018-01-01"]


def test_far_flights_and_empty_days_say_nothing(tmp_path: Path) -> None:
    raster = scene(tmp_path)
    far = [(square(1e6, 0, 20), "2019-06-01"), (square(0, 0, 40), None)]
    dates = read_dates(DateOptions.of([f"{flights(tmp_path / 'f.gpkg', far)}:flown"]))
    assert isinstance(dates, DatePolygons) and len(dates.days) == 2
    days, told = days_of(when_taken(raster, "s", NO_DATES), dates, np.array([square(0, 0, 9)]), box(raster))
    assert np.isnat(days).all() and told.tolist() == [None]
    assert ground(dates, box(raster)).start is None


def test_a_column_that_holds_no_day_is_named_with_what_it_holds(tmp_path: Path) -> None:
    path = flights(tmp_path / "f.gpkg", [(square(0, 0, 20), "spring")])
    with pytest.raises(BadDataError, match=r"column flown holds no day, the first value is spring; expected days as"):
        read_dates(DateOptions.of([f"{path}:flown"]))
    with pytest.raises(BadDataError, match=r"f\.gpkg: has no column when; its columns are flown"):
        read_dates(DateOptions.of([f"{path}:when"]))
