"""When the ground was seen: what the user says, polygons of dates, STAC items and headers, in this order of trust.

A TIFF's own time is that of a file, often of a copy, and counts only where the user says so. A scene whose day is not
known has none; what is written of it may give the range of days in which it was taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import unquote

import numpy as np
import shapely

from aerialseg.errors import BadDataError, UsageError, counted, one_line
from aerialseg.files import is_regular, resolved
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.outputs import item_path
from aerialseg.geo.vectors import VectorLayer, overlay_by_value, read_layer
from aerialseg.values import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from aerialseg.geo.geobox import GeoBox

Origin = Literal["option", "polygons", "stac", "metadata", "tiff"]
"""Who says so, the most trusted first."""
LARGEST = 1 << 24
"""Bytes of a STAC item; a large one has a few thousand."""
UNKNOWN = np.datetime64("NaT", "D")


@dataclass(frozen=True, slots=True)
class Taken:
    """When a scene was taken: a moment, a day or a longer time; all None where nothing is known. Times are UTC."""

    start: datetime | None = None
    end: datetime | None = None
    origin: Origin | None = None

    @property
    def day(self) -> date | None:
        """The day, where it was one."""
        if self.start is None or self.end is None or self.start.date() != self.end.date():
            return None
        return self.start.date()

    @property
    def moment(self) -> datetime | None:
        """The time of day, too, where it is known."""
        return self.start if self.start == self.end else None


NOT_KNOWN = Taken()


@dataclass(frozen=True, slots=True)
class DateOptions:
    """What a user says about dates.

    Example:
        >>> aerialseg.DateOptions.of(["flights.gpkg:flown", "2023-04-01/2023-09-30"]).column
        'flown'
    """

    day: date | None = None
    polygons: Path | None = None
    """Of days; QGIS's `FILE|layername=NAME`, too."""
    column: str = ""
    """Of the polygons, which holds the day."""
    within: tuple[date, date] | None = None
    """First and last day of what has no day of its own."""
    tiff: bool = False
    """Whether TIFFTAG_DATETIME counts."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> DateOptions:
        """Return what the texts of `--date` say: DAY, FIRST/LAST, FILE:COLUMN, tiff; raises UsageError."""
        found: dict[str, Any] = {}
        for text in texts:
            given = _parse(text)
            twice = [name for name in given if name in found]
            if twice:
                raise UsageError(f"--date {one_line(text)}: {_NAMES[twice[0]]} was given twice; give one")
            found |= given
        return cls(**found)


NO_DATES = DateOptions()
_NAMES = {"day": "a day", "polygons": "a file of dates", "within": "a range of days", "tiff": "tiff"}


def _parse(text: str) -> dict[str, Any]:
    """Return the fields of `DateOptions` that one text gives."""
    if text == "tiff":
        return {"tiff": True}
    first, slash, last = text.partition("/")
    days = parse_day(first), parse_day(last)
    if not slash and days[0] is not None:
        return {"day": days[0]}
    if days[0] is not None and days[1] is not None:
        if days[0] > days[1]:
            raise UsageError(f"--date {one_line(text)}: ends before it begins")
        return {"within": (days[0], days[1])}
    file, _, column = text.rpartition(":")
    if not file or not column or re.fullmatch(r"[\\/].*", column):
        raise UsageError(f"--date {one_line(text)}: give a day as 2024-05-17, two with / between, FILE:COLUMN, or tiff")
    return {"polygons": Path(file), "column": column}


def parse_day(value: object) -> date | None:
    """Return the day in 2024-05-17, 2024/05/17, 20240517 or a time that begins so; None where there is none."""
    text = str(value).strip()
    if re.fullmatch(r"\d{8}(\.0)?", text):
        text = f"{text[:4]}-{text[4:6]}-{text[6:8]}"
    found = re.match(r"(\d{4})[-/](\d{2})[-/](\d{2})(?!\d)", text)
    try:
        return None if found is None else date(*map(int, found.groups()))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True, eq=False)
class DatePolygons:
    """Ground with the day on which it was taken."""

    layer: VectorLayer
    days: NDArray[np.datetime64]
    """Of each of the layer's shapes; NaT where there is none."""

    @property
    def digest(self) -> str:
        """Of the file."""
        return self.layer.digests[0]


def read_dates(options: DateOptions) -> DatePolygons | None:
    """Return the polygons of dates that were asked for.

    Raises what `read_layer` raises, and BadDataError for a column that is not there or holds no day.
    """
    if options.polygons is None:
        return None
    layer = read_layer(options.polygons, column=options.column)
    values = [] if layer.values is None else layer.values.tolist()
    days = np.array([_day_of(value) for value in values], dtype="datetime64[D]")
    if np.isnat(days).all():
        shown = one_line(str(next((value for value in values if value is not None), "empty")))
        raise BadDataError(
            f"{layer.name}: column {one_line(options.column)} holds no day, the first value is {shown}; expected days"
            " as 2024-05-17"
        )
    return DatePolygons(layer, days)


def _day_of(value: object) -> np.datetime64:
    day = parse_day(value)
    return UNKNOWN if day is None else np.datetime64(day, "D")


def days_of_shapes(dates: DatePolygons | None, shapes: NDArray[np.object_], box: GeoBox) -> NDArray[np.datetime64]:
    """Return for each shape (in the CRS of `box`) the day of the ground that holds most of it; NaT outside all.

    Of days that hold equally much, the later one. Raises BadDataError where the polygons' CRS cannot be reached.
    """
    best, found = np.zeros(len(shapes)), np.full(len(shapes), UNKNOWN)
    if dates is None or not len(shapes):
        return found
    grid = ~box.transform

    def to_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = points.T
        return np.stack([grid.a * x + grid.b * y + grid.c, grid.d * x + grid.e * y + grid.f], axis=1)

    placed = shapely.transform(shapes, to_pixels)
    for day, ground in sorted(overlay_by_value(dates.layer, dates.days, box).items()):
        held = shapely.area(shapely.intersection(placed, ground))
        more = (held > 0) & (held >= best)
        best[more], found[more] = held[more], day
    return found


def when_taken(image: Path, name: str, options: DateOptions) -> Taken:
    """Return when a scene was taken, or a mask made of it: what the user, a STAC item and its header say.

    `name` is the scene's; a STAC item counts where one of its assets is the file. Raises what `open_raster` raises.
    """
    if options.day is not None:
        return _days(options.day, options.day, "option")
    item = _from_item(image, name)
    if item.day is not None:
        return item
    with open_raster(image) as dataset, raster_errors(image):
        flown, tiff = dataset.tags(ns="IMAGERY").get("ACQUISITIONDATETIME"), dataset.tags().get("TIFFTAG_DATETIME")
    if (moment := parse_time(flown)) is not None:
        return Taken(moment, moment, "metadata")
    if options.tiff and (moment := parse_time(tiff)) is not None:
        return Taken(moment, moment, "tiff")
    return item if options.within is None else _days(*options.within, "option")


def note_of_tiff(found: Iterable[Taken]) -> str | None:
    """Say how many scenes have no better date than a file's own time."""
    count = sum(taken.origin == "tiff" for taken in found)
    if not count:
        return None
    return f"warning: {counted(count, 'date')} of --date tiff: TIFFTAG_DATETIME is when a file was made, maybe a copy"


def ground_taken(dates: DatePolygons | None, box: GeoBox) -> Taken:
    """Return the first to the last day of the polygons' ground that meets a raster."""
    found = {} if dates is None or not box.georeferenced else overlay_by_value(dates.layer, dates.days, box)
    return _days(min(found).item(), max(found).item(), "polygons") if found else NOT_KNOWN


def days_of_buildings(
    taken: Taken, dates: DatePolygons | None, shapes: NDArray[np.object_], box: GeoBox
) -> tuple[NDArray[np.datetime64], NDArray[np.object_]]:
    """Return the day on which each building was seen, and who says so; NaT and None where nobody does.

    `taken` is what `when_taken` says of the scene; `shapes` are in the CRS of `box`.
    """
    own = UNKNOWN if taken.day is None else np.datetime64(taken.day, "D")
    if taken.origin == "option" and taken.day is not None:
        dates = None
    days = days_of_shapes(dates, shapes, box)
    told = np.full(len(days), "polygons", dtype=object)
    told[np.isnat(days)] = None if taken.day is None else taken.origin
    return np.where(np.isnat(days), own, days), told


def _days(first: date, last: date, origin: Origin) -> Taken:
    return Taken(datetime.combine(first, time(), UTC), datetime.combine(last, time(23, 59, 59), UTC), origin)


def parse_time(text: object) -> datetime | None:
    """Return a moment in UTC: "2016:07:14 10:21:05" as TIFF has it, or ISO 8601; None for what makes no sense."""
    if not isinstance(text, str) or ":" not in text[11:]:
        return None
    plain = re.sub(r"^(\d{4}):(\d{2}):(\d{2})\b", r"\1-\2-\3", text.strip())
    try:
        found = datetime.fromisoformat(plain)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _from_item(image: Path, name: str) -> Taken:
    """Return what a STAC item beside the file says, or that of the run that made it; one without sense is as if absent.

    https://github.com/radiantearth/stac-spec/blob/v1.1.0/item-spec/item-spec.md
    """
    beside = [image.with_suffix(".json"), image.with_name(f"{image.name}.json"), image.with_suffix(".stac.json")]
    depth = len(Path(name).parts)
    own = [item_path(image.parents[depth - 1], name)] if depth <= len(image.parents) else []
    for path in (*beside, *own):
        if not is_regular(path):
            continue
        try:
            item = read_json(path, LARGEST)
            if "stac_version" not in item or not any(_is(path, asset, image) for asset in item["assets"].values()):
                continue
            told = item["properties"]
            start, end = (parse_time(told.get("datetime") or told.get(f"{key}_datetime")) for key in ("start", "end"))
            origin = told.get("aerialseg:taken_from")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if start is not None and end is not None:
            return Taken(start, end, origin if origin in get_args(Origin) else "stac")
    return NOT_KNOWN


def _is(item: Path, asset: Any, image: Path) -> bool:
    """Return whether a STAC item's asset is the file, going by its reference."""
    reference = unquote(str(asset["href"]))
    return resolved(item.parent / reference) == resolved(image) if "://" not in reference else False
