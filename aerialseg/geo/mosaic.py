"""The rasters that a user's plain mosaic, a GDAL `.vrt` file, stands for; the file is parsed here and never by GDAL.

A VRT may name any file or address, compute, or hide another format, so what is understood is a list: local rasters in
the VRT's own folder, each whole and unscaled at its own place, the same in every band. That is what gdalbuildvrt, rio
and QGIS's "Build virtual raster" write. Anything else is refused before a file that it names is touched. Where pixels
lie, and which of them are nodata, is what the rasters themselves say.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from aerialseg.errors import BadDataError, NoInputError, UsageError, one_line
from aerialseg.geo.opening import refuse_remote

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_BYTES = 16 << 20
"""A source takes about 1 kB in three bands, so this is some 16,000 scenes."""
MAX_ELEMENTS = 1_000_000
MAX_DEPTH = 16
ROOT_PARTS = {
    "SRS", "GeoTransform", "Metadata", "OverviewList", "BlockXSize", "BlockYSize", "VRTRasterBand", "MaskBand",
}  # fmt: skip
BAND_PARTS = {
    "Description", "NoDataValue", "HideNoDataValue", "UnitType", "Offset", "Scale", "ColorInterp", "ColorTable",
    "CategoryNames", "GDALRasterAttributeTable", "Histograms", "Metadata", "SimpleSource", "ComplexSource",
}  # fmt: skip
SOURCE_PARTS = {"SourceFilename", "SourceBand", "SourceProperties", "SrcRect", "DstRect", "NODATA", "UseMaskBand"}
SCALING = {"ScaleOffset", "ScaleRatio"}
CONSTANT = "constant"
ADVICE = "give the scenes themselves, or gdal_translate it to a GeoTIFF"

_DTD = re.compile(r"<!(DOCTYPE|ENTITY)")
_WHOLE = 1e-6
"""Pixels by which sizes written as text may differ."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A source as a band names it: the file, as written, and its rectangles (column, row, width, height)."""

    name: str
    relative: bool
    source: tuple[float, float, float, float]
    target: tuple[float, float, float, float]
    band: str = field(compare=False)


def mosaic_sources(path: Path) -> tuple[Path, ...]:
    """Return the local rasters of a plain mosaic, in the order in which it first names them.

    Raises BadDataError saying what in the file is more than that, NoInputError when there is no such file, UsageError
    when `path` itself is remote. Nothing but the VRT is read.
    """
    refuse_remote(path)
    root = parse_vrt(path)
    bands = {str(number): band for number, band in enumerate(root.findall("VRTRasterBand"), 1)}
    masks = {f"mask {number}": band for number, band in enumerate(root.iterfind("MaskBand/VRTRasterBand"), 1)}
    sources = {number: _sources_of(path, band) for number, band in (bands | masks).items()}
    first = sources.get("1")
    if not first:
        raise _refusal(path, "names no raster")
    for number, found in sources.items():
        if set(found) != set(first):
            raise _refusal(path, "its bands come from different files or places, where each should hold all files")
        _require_order(path, number, found)
    folder = path.resolve().parent
    shown = folder if path.is_symlink() else path.parent
    places: dict[Path, tuple[float, ...]] = {}
    for placed in first:
        file = _inside(path, folder, placed)
        if places.setdefault(file, placed.target) != placed.target:
            raise _refusal(path, f"places {one_line(file.name)} twice")
    return tuple(shown / file for file in places)


def parse_vrt(path: Path) -> Element:
    """Return the XML of a plain mosaic's outline: a VRTDataset without entities, neither endless nor bottomless."""
    text = _text_of(path)
    if _DTD.search(text):
        raise _refusal(path, "declares a document type or entities")
    try:
        root = ElementTree.XML(text, ElementTree.XMLParser(target=_Bounded()))
    except (ElementTree.ParseError, ValueError) as error:  # ValueError: too many or too deep
        raise _refusal(path, f"is not a GDAL virtual raster ({one_line(str(error))})") from error
    if root.tag != "VRTDataset":
        raise _refusal(path, f"is XML but no GDAL virtual raster: it begins with <{one_line(root.tag)[:40]}>")
    _only(path, root, {"rasterXSize", "rasterYSize"}, ROOT_PARTS)
    for mask in root.findall("MaskBand"):
        _only(path, mask, set(), {"VRTRasterBand"})
    return root


def _text_of(path: Path) -> str:
    name = one_line(path)
    if not path.is_file():
        if os.path.lexists(path):
            raise BadDataError(f"{name}: is not a regular file, expected a mosaic")
        raise NoInputError(f"{name}: no such file")
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise NoInputError(f"{name}: cannot be read: {error.strerror}; check its permissions") from error
    if len(content) > MAX_BYTES:
        raise _refusal(path, f"is larger than the {MAX_BYTES >> 20} MB of any mosaic")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(path, "is not UTF-8 text") from error


class _Bounded(ElementTree.TreeBuilder):
    """Builds the tree of a file that is neither endless nor bottomless."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = self._count = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        """Begin an element."""
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise ValueError("too many elements")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        """End an element."""
        self._depth -= 1
        return super().end(tag)


def _sources_of(path: Path, band: Element) -> list[_Placed]:
    _only(path, band, {"dataType", "band", "blockXSize", "blockYSize"}, BAND_PARTS)
    sources = [part for part in band if part.tag in ("SimpleSource", "ComplexSource")]
    # gdalbuildvrt -addalpha: 255 wherever there is a raster, which says no more than that there is one.
    constant = band.findtext("ColorInterp") == "Alpha" and all(part.findtext("ScaleRatio") == "0" for part in sources)
    return [_placed(path, part, constant=constant) for part in sources]


def _require_order(path: Path, number: str, sources: list[_Placed]) -> None:
    """Raise unless a band consists of the sources' band of the same number, or a mask of theirs."""
    for placed in sources:
        mask = number.startswith("mask") and placed.band.startswith("mask")
        if placed.band not in (number, CONSTANT) and not mask:
            raise BadDataError(
                f"{one_line(path)}: its band {number} is band {one_line(placed.band)} of {one_line(placed.name)},"
                " expected the same order; give the scenes themselves, with --bands"
            )


def _placed(path: Path, source: Element, *, constant: bool) -> _Placed:
    """Return where a source is placed; raises unless it is whole and unscaled."""
    _only(path, source, {"resampling"}, SOURCE_PARTS | (SCALING if constant else set()))
    file = source.find("SourceFilename")
    name = "" if file is None or file.text is None else file.text
    if file is None or not name:
        raise _refusal(path, "has a source without a file name")
    _only(path, file, {"relativeToVRT", "shared"}, set())
    taken, target = _rectangle(path, source, "SrcRect", name), _rectangle(path, source, "DstRect", name)
    if not _equal(taken[2:], target[2:]):
        raise _refusal(path, f"resamples {one_line(name)}: {_size(taken)} becomes {_size(target)}")
    whole = _whole(path, source, name)
    if whole is not None and not _equal(taken, whole):
        raise _refusal(path, f"shows only a part of {one_line(name)}: {_size(taken)} of {_size(whole)}")
    if min(taken[2:]) < 1 or not _equal(taken[:2], (0.0, 0.0)):
        raise _refusal(path, f"shows only a part of {one_line(name)}")
    relative = (file.get("relativeToVRT") or "0").strip() == "1"
    band = CONSTANT if constant else (source.findtext("SourceBand") or "1").strip()
    return _Placed(name, relative, taken, target, band)


def _rectangle(path: Path, source: Element, tag: str, name: str) -> tuple[float, float, float, float]:
    element = source.find(tag)
    if element is None:
        raise _refusal(path, f"does not say where {one_line(name)} lies: no {tag}")
    try:
        col, row, width, height = (float(element.get(key, "")) for key in ("xOff", "yOff", "xSize", "ySize"))
        if not all(map(math.isfinite, (col, row, width, height))):
            raise ValueError(tag)
    except ValueError as error:
        raise _refusal(path, f"has a {tag} without four numbers") from error
    return col, row, width, height


def _whole(path: Path, source: Element, name: str) -> tuple[float, float, float, float] | None:
    properties = source.find("SourceProperties")
    if properties is None:
        return None
    try:
        return 0.0, 0.0, float(properties.get("RasterXSize", "")), float(properties.get("RasterYSize", ""))
    except ValueError as error:
        raise _refusal(path, f"does not say how large {one_line(name)} is") from error


def _inside(path: Path, folder: Path, placed: _Placed) -> Path:
    """Return the source's path below the VRT's own folder; raises when it is not a regular file there."""
    shown = one_line(placed.name)
    try:
        refuse_remote(placed.name)
    except UsageError as error:
        raise BadDataError(f"{one_line(path)}: names {shown}; only local files are read") from error
    if "\0" in placed.name or placed.name.lower().endswith(".vrt"):
        raise _refusal(path, f"names {shown}, which is no plain raster")
    file = Path(os.path.normpath(folder / placed.name if placed.relative else Path(placed.name).absolute()))
    real = file.resolve()
    if not (file.is_relative_to(folder) and real.is_relative_to(folder)):
        raise BadDataError(
            f"{one_line(path)}: names {shown}, outside its own folder {one_line(folder)}; put the VRT in the folder"
            " that holds its scenes, or give the scenes themselves"
        )
    if real.suffix.lower() == ".vrt" or not real.is_file():
        raise BadDataError(f"{one_line(path)}: names {shown}, which is no raster in its folder; build the VRT again")
    return file.relative_to(folder)


def _only(path: Path, element: Element, attributes: set[str], parts: set[str]) -> None:
    """Raise for an attribute or a child that a plain mosaic does not have."""
    for name in sorted(set(element.attrib) - attributes):
        raise _refusal(path, f'is more than a plain mosaic: {element.tag} {one_line(name)}="{_short(element, name)}"')
    for part in element:
        if part.tag not in parts:
            raise _refusal(path, f"is more than a plain mosaic: it has <{one_line(str(part.tag))[:40]}>")


def _equal(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= _WHOLE for a, b in zip(first, second, strict=True))


def _short(element: Element, name: str) -> str:
    return one_line(element.get(name, ""))[:40]


def _size(rectangle: tuple[float, ...]) -> str:
    return f"{rectangle[3]:g}x{rectangle[2]:g}"


def _refusal(path: Path, found: str) -> BadDataError:
    return BadDataError(f"{one_line(path)}: {found}; {ADVICE}")
