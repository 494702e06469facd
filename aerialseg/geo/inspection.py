"""What a scene is, checked once, before any expensive work; nothing of its pixels but a few blocks is read.

The result, a `Source`, says how the file's bands become the uint8 pixels a network sees. A scene that would need a
guess (which bands, which value range, where on the ground) is refused with the option that settles it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp

from aerialseg.errors import AerialsegError, BadDataError, UsageError, one_line
from aerialseg.files import available_memory, exists
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import is_tiff, open_raster
from aerialseg.geo.validity import ValidityRule, decide_alpha, decide_validity, find_collar, tagged_alpha

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rasterio.io import DatasetReader

MAX_BLOCK_BYTES = 1 << 30
"""A block is decoded whole; one larger than this (a compressed file in a single strip) does not fit small memory."""
MAX_CHECKED_BLOCKS = 4096
ROWS, ROW_BYTES = 256, 24
"""About what a command holds of a raster at once: rows as high as a block, and bytes for each of their pixels."""
NOT_RGB = {
    ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow, ColorInterp.black,
    ColorInterp.hue, ColorInterp.saturation, ColorInterp.lightness,
}  # fmt: skip
BGR = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)


@dataclass(frozen=True, slots=True)
class BandRule:
    """How a scene's bands become uint8 pixels: which bands, in which order, which values become 0 and 255, and which
    are no data.

    Raises UsageError for a band below 1, for a scale that is not two rising, finite numbers, for values of no data that
    are not finite, and for bands that alpha is one of.

    Example:
        >>> aerialseg.BandRule(bands=(4, 1, 2), scale=(0, 2047)).alpha
        'auto'
    """

    bands: tuple[int, ...] | None = None
    """Counted from 1, repeats allowed; None takes all but alpha."""
    scale: tuple[float, float] | None = None
    """(lo, hi) map linearly to 0 and 255, clipped; None takes uint8 as it is and refuses other types."""
    nodata: tuple[float, ...] = ()
    """Where the bands have these values, or a single one all of them, there is no data, whatever the file says; in
    files that are compressed with loss values near them count, too."""
    alpha: int | Literal["auto", "data"] = "auto"
    """The band that marks valid pixels; "auto" is the one that is tagged so and looks so, "data" is none."""

    def __post_init__(self) -> None:
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise UsageError(f"--bands {_listed(self.bands)}: bands count from 1, for example --bands 1,2,3")
        if self.scale is not None and not (all(map(math.isfinite, self.scale)) and self.scale[0] < self.scale[1]):
            lo, hi = self.scale
            raise UsageError(f"--scale {lo:g}:{hi:g}: give two numbers LO:HI with LO below HI, for example 0:2047")
        if not all(map(math.isfinite, self.nodata)):
            raise UsageError(f"--nodata {','.join(map(str, self.nodata))}: give finite numbers, for example 0 or 0,0,0")
        if not isinstance(self.alpha, str) and self.alpha < 1:
            raise UsageError(f"--alpha {self.alpha}: bands count from 1; give one, auto, or data")
        if self.alpha in (self.bands or ()):
            raise UsageError(
                f"--alpha {self.alpha}: is one of the bands {_listed(self.bands or ())}; it is alpha or data"
            )

    @property
    def marks(self) -> dict[str, Any]:
        """What the user says of valid pixels, by name, for digests and records; empty when nothing."""
        given = {"nodata": list(self.nodata), "alpha": self.alpha}
        return {name: value for name, value in given.items() if value not in ([], "auto")}


@dataclass(frozen=True, slots=True)
class Access:
    """What the user permits; raises UsageError for a number of pixels below 1.

    Example:
        >>> aerialseg.Access(allow_ungeoreferenced=True)
        Access(allow_ungeoreferenced=True, max_pixels=10000000000.0)
    """

    allow_ungeoreferenced: bool = False
    max_pixels: float = 1e10

    def __post_init__(self) -> None:
        if not self.max_pixels >= 1:
            raise UsageError(f"--max-pixels {self.max_pixels:g}: give a number of pixels, such as 1e10")

    def require_size(self, height: int, width: int, name: str, kind: str) -> None:
        """Raise BadDataError when a raster, such as a scene, has more pixels than permitted; `name` is its file's.

        Or when rows as wide as it do not fit into the memory that is free: whatever is read, some rows are at once.
        """
        require_rows(height, width, name)
        pixels = height * width
        if pixels > self.max_pixels:
            raise BadDataError(
                f"{name}: {height}x{width} is {pixels:.3g} pixels, more than --max-pixels {self.max_pixels:g}; raise it"
                f" if the {kind} is really that large"
            )


def require_rows(height: int, width: int, name: str) -> None:
    """Raise BadDataError when a raster is so wide that the rows that are read at once do not fit into memory."""
    needed, free = min(height, ROWS) * width * ROW_BYTES, available_memory()
    if needed > free:
        raise BadDataError(
            f"{name}: is {width:,} px wide: its rows need about {needed / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB"
            " are free; cut it into less wide ones: gdal_translate -srcwin"
        )


@dataclass(frozen=True, slots=True)
class Source:
    """A scene that passed every check; picklable, holds no handle."""

    path: Path
    box: GeoBox
    bands: tuple[int, ...]
    dtype: str
    scale: tuple[float, float] | None
    validity: ValidityRule
    warnings: tuple[str, ...]
    """Lines for the user, each naming the file."""

    @property
    def has_mask(self) -> bool:
        """Whether nodata, alpha or a mask band may mark pixels as invalid."""
        return self.validity.marks_any


def inspect_scene(
    path: Path, rule: BandRule | None = None, access: Access | None = None, expected_bands: int | None = None
) -> Source:
    """Open a scene, check all that can be checked without reading it, and return what is to be read of it.

    `expected_bands` is what a model wants; None takes what the rule gives. Raises UsageError, NoInputError and
    BadDataError, each saying what to do; what is wrong with colours, bands and place is told at once.
    """
    rule, access = rule or BandRule(), access or Access()
    with open_raster(path) as dataset:
        name = one_line(path)
        _refuse_complex(dataset, name)
        _check_size(dataset, name, access)
        alpha = tagged_alpha(dataset) if rule.alpha == "auto" else rule.alpha
        bands = rule.bands or tuple(band for band in dataset.indexes if band != alpha)
        box = GeoBox.of(dataset)
        _, dtype, place = _all_at_once(
            name,
            partial(_check_colours, dataset, name, rule),
            partial(_check_bands, dataset, name, bands, rule, expected_bands),
            partial(_check_place, box, name, access),
        )
        alpha, note = decide_alpha(dataset, path, rule.alpha, rule.bands)
        validity = decide_validity(dataset, path, alpha, bands, rule.nodata)
        notes = (*_suspicions(dataset, path), *([note] if note else []), *_collar_note(dataset, path, bands, validity))
        return Source(path, box, bands, dtype, rule.scale, validity, (*place, *notes))


def find_faults(paths: Sequence[Path], rule: BandRule, access: Access) -> list[AerialsegError]:
    """Return what is wrong with scenes, by their headers; see `inspect_scene`."""
    faults: list[AerialsegError] = []
    for path in paths:
        try:
            inspect_scene(path, rule, access)
        except AerialsegError as fault:
            faults.append(fault)
    return faults


def _all_at_once(name: str, *checks: Callable[[], Any]) -> list[Any]:
    """Return what the checks return; raise BadDataError with all that they say is wrong with the file `name`."""
    results, problems = [], []
    for check in checks:
        try:
            results.append(check())
        except BadDataError as error:
            problems.append(error)
    if len(problems) > 1:
        raise BadDataError(f"{name}: {'; '.join(str(error).removeprefix(f'{name}: ') for error in problems)}")
    if problems:
        raise problems[0]
    return results


def _refuse_complex(dataset: DatasetReader, name: str) -> None:
    """Raise for complex numbers, before anything asks NumPy for their type: it knows none of complex integers."""
    if any("complex" in dtype for dtype in dataset.dtypes):
        raise BadDataError(
            f"{name}: holds complex numbers ({dataset.dtypes[0]}), as radar does; a network takes real ones: write"
            " their amplitude to a raster first, with gdal_calc.py or your radar software"
        )


def _check_size(dataset: DatasetReader, name: str, access: Access) -> None:
    access.require_size(dataset.height, dataset.width, name, "scene")
    interleaved = dataset.count if str(dataset.interleaving).endswith("pixel") else 1
    rows, cols = dataset.block_shapes[0]
    block_bytes = rows * cols * interleaved * np.dtype(dataset.dtypes[0]).itemsize
    if block_bytes > MAX_BLOCK_BYTES:
        raise BadDataError(
            f"{name}: stored in blocks of {rows}x{cols} px, {block_bytes / 1e9:.1f} GB each, which cannot be read in"
            " pieces: gdal_translate -co TILED=YES"
        )


def _check_colours(dataset: DatasetReader, name: str, rule: BandRule) -> None:
    colours = dataset.colorinterp
    if ColorInterp.palette in colours:
        raise BadDataError(f"{name}: its values are palette indexes, not colours: gdal_translate -expand rgb")
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    space = structure.get("SOURCE_COLOR_SPACE", "YCbCr")
    if space != "YCbCr" or NOT_RGB & set(colours):
        stored = space if space != "YCbCr" else ", ".join(colour.name for colour in colours)
        raise BadDataError(f"{name}: its colours are stored as {stored}: convert the scene to RGB")
    if structure.get("MINISWHITE") == "YES":
        raise BadDataError(f"{name}: its values are inverted (0 is white): convert it so that 0 is black")
    if rule.bands is None and tuple(colours[:3]) == BGR:
        raise BadDataError(f"{name}: its bands are in the order blue, green, red: use --bands 3,2,1")


def _check_bands(
    dataset: DatasetReader, name: str, bands: tuple[int, ...], rule: BandRule, expected: int | None
) -> str:
    """Return the selected bands' type; raises when bands or values are not what is wanted."""
    if not bands or max(bands) > dataset.count:
        wanted = f"--bands {_listed(bands)}" if bands else "a band that is not alpha"
        raise BadDataError(f"{name}: scene has {_counted(dataset.count)}, {wanted} asks for others: use --bands")
    types = {dataset.dtypes[band - 1] for band in bands}
    dtype = str(dataset.dtypes[bands[0] - 1])
    usable = dtype == "uint8" if rule.scale is None else np.dtype(dtype).kind in "uif"
    if len(types) > 1 or not usable or (expected is not None and len(bands) != expected):
        chosen = "" if rule.bands is None else f" (--bands {_listed(bands)} takes {len(bands)})"
        wants = "uint8 is wanted" if expected is None else f"model wants {expected} x uint8"
        found = f"scene has {_counted(dataset.count)} {'/'.join(sorted(types))}{chosen}"
        raise BadDataError(f"{name}: {found}, {wants}: {_way_out(dataset, bands, types, rule, expected)}")
    if rule.scale is not None and np.dtype(dtype).kind in "ui" and rule.scale[1] > np.iinfo(dtype).max:
        lo, hi = rule.scale
        raise BadDataError(f"{name}: scene is {dtype}, whose values never reach the upper end of --scale {lo:g}:{hi:g}")
    return dtype


def _way_out(
    dataset: DatasetReader, bands: tuple[int, ...], types: set[str], rule: BandRule, expected: int | None
) -> str:
    """Return which options help where bands or values are not those wanted: no other is named."""
    usable = {dtype for dtype in types if np.dtype(dtype).kind in "uif"}
    if expected is not None and dataset.count < expected:
        return f"no option adds bands; give a model of {_counted(dataset.count)}, or scenes of {_counted(expected)}"
    if not usable:
        return "such values are no picture; convert the scene to uint8"
    options = ["--bands"] if len(types) > 1 or (expected is not None and len(bands) != expected) else []
    options += ["--scale LO:HI (aerialseg info proposes one)"] if rule.scale is None and usable != {"uint8"} else []
    return f"use {' and '.join(options)}"


def _check_place(box: GeoBox, name: str, access: Access) -> list[str]:
    """Return a warning when a scene without a place on the ground was permitted; raises when it was not."""
    box.require_usable(name)
    if box.georeferenced:
        return []
    if box.gcps:
        found = f"has {len(box.gcps)} ground control points but no grid: gdalwarp it"
    elif box.crs is None and box.transform == Affine.identity():
        found = "has no georeferencing: add its world file or .aux.xml, or gdal_translate -a_srs EPSG:... -a_ullr ..."
    elif box.crs is None:
        found = "has no CRS: gdal_translate -a_srs EPSG:..."
    else:
        found = "has a CRS but no transform: add its world file, or gdal_translate -a_ullr ..."
    if not access.allow_ungeoreferenced:
        raise BadDataError(f"{name}: {found}, or use --allow-ungeoreferenced")
    return [f"{name}: {found.split(':')[0]}; used as it is"]


def _suspicions(dataset: DatasetReader, path: Path) -> list[str]:
    found = []
    for suffix in (".ovr", ".OVR"):
        overviews = Path(f"{path}{suffix}")
        if exists(overviews) and not is_tiff(overviews):
            found.append(f"{one_line(overviews)}: is not a TIFF and is ignored; remove it")
    if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):
        found.append(f"{one_line(path)}: names another file as its overviews, which is ignored")
    if dataset.driver == "GTiff" and dataset.nodata is None and dataset.dtypes[0] == "uint8":
        missing = _sparse_blocks(dataset)
        if missing:
            found.append(f"{one_line(path)}: at least {missing} blocks were never written and read as zeros")
    return found


def _sparse_blocks(dataset: DatasetReader) -> int:
    """Count blocks without bytes in the file, among an even sample.

    A compressed file in one strip is presented as blocks of one row of which only the first has an offset.
    """
    rows = math.ceil(dataset.height / dataset.block_shapes[0][0])
    cols = math.ceil(dataset.width / dataset.block_shapes[0][1])
    step = math.ceil(rows * cols / MAX_CHECKED_BLOCKS)
    places = (divmod(index, cols) for index in range(0, rows * cols, step))
    written = [dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1) is not None for row, col in places]
    return 0 if written[0] and not any(written[1:]) and dataset.block_shapes[0][0] == 1 else written.count(False)


def _collar_note(dataset: DatasetReader, path: Path, bands: tuple[int, ...], validity: ValidityRule) -> list[str]:
    colour = find_collar(dataset, path, bands, validity)
    if colour is None:
        return []
    values = ",".join(f"{value:g}" for value in colour)
    return [
        f"{one_line(path)}: a large part of it, from its border on, is of one colour, {values}, and counts as ground;"
        f" --nodata {values} makes it no data"
    ]


def _listed(bands: tuple[int, ...]) -> str:
    return ",".join(map(str, bands))


def _counted(count: int) -> str:
    return f"{count} band" if count == 1 else f"{count} bands"
