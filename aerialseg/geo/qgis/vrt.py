"""Mosaics over masks or probabilities, as GDAL virtual rasters with relative paths: one layer in QGIS for all scenes.

They are written here as text; the process itself has no VRT driver, on purpose. A mosaic holds rasters of one CRS, one
resolution and no rotation, each moved to the nearest pixel of the first one's grid.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aerialseg.counts import NODATA
from aerialseg.errors import AerialsegError, one_line
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.mosaic import parse_vrt
from aerialseg.geo.opening import open_raster
from aerialseg.geo.qgis.place import crs_code
from aerialseg.geo.qgis.sealed import BLANK, origin_of, write_sealed
from aerialseg.geo.qgis.styles import MASK_CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from xml.etree.ElementTree import Element

    from rasterio.crs import CRS

Kind = Literal["mask", "probability"]

CONTENT = "AERIALSEG_CONTENT"
"""The metadata item that holds a digest of what the mosaic shows."""
SINGLE = "mosaic.vrt"
"""What the only mosaic of a folder is called."""
LARGEST = 2**31 - 1
"""GDAL counts rows and columns in 32 bits."""
NOTICED_SHIFT = 0.1
"""Pixels by which a raster may miss the mosaic's grid before it is said."""


@dataclass(frozen=True, slots=True)
class Part:
    """A raster that may become part of a mosaic."""

    path: Path
    box: GeoBox
    block: tuple[int, int]
    scale: float

    @classmethod
    def of(cls, path: Path) -> Part:
        """Read a raster's header; raises as `open_raster` does."""
        with open_raster(path) as dataset:
            return cls(path, GeoBox.of(dataset), dataset.block_shapes[0], float(dataset.scales[0]))

    @property
    def pixel(self) -> tuple[str, str, float]:
        """What rasters of one mosaic share: the pixel's width and height to nine digits, and the scale of values."""
        return f"{self.box.transform.a:.9g}", f"{self.box.transform.e:.9g}", self.scale


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A virtual raster and what it shows."""

    path: Path
    parts: tuple[Part, ...]


def write_mosaics(
    folder: Path, parts: Sequence[Part], kind: Kind, say: Callable[[str], None], *, overwrite: bool = False
) -> tuple[Mosaic, ...]:
    """Write a mosaic for each CRS into `folder`, and return those that stand there now.

    With one CRS it is mosaic.vrt, else mosaic-EPSG-26914.vrt and so on; mosaics of ours that no longer apply are
    removed. `say` is told what is left out and why. Raises OutputError for a stranger's file in the way, which
    `overwrite` replaces.
    """
    groups = _groups([part for part in parts if _is_nameable(folder, part, say)], say)
    names = [SINGLE] if len(groups) == 1 else [_name(group[0].box) for group in groups]
    wanted: dict[Path, tuple[str, Mosaic]] = {}
    for name, group in zip(names, groups, strict=True):
        text = _text(folder, group, kind, say)
        if text is not None:
            wanted[folder / name] = text, Mosaic(folder / name, tuple(group))
    for stale in sorted(folder.glob("mosaic*.vrt")):
        if (stale not in wanted and origin_of(stale) == "ours") or _only_measured(stale):
            stale.unlink()
    for path, (text, _) in wanted.items():
        note = write_sealed(path, text.encode(), overwrite=overwrite)
        if note is not None:
            say(note)
    return tuple(mosaic for _, mosaic in wanted.values())


def mosaic_names(boxes: Iterable[GeoBox]) -> tuple[str, ...]:
    """Return what mosaics over rasters on these grids, or over some of them, may be called."""
    found: dict[CRS, GeoBox] = {box.crs: box for box in boxes if box.georeferenced and box.crs is not None}
    return SINGLE, *(map(_name, found.values()) if len(found) > 1 else ())


def _only_measured(path: Path) -> bool:
    """Return whether GDAL has rewritten a mosaic of ours to keep statistics in it, and nothing else has changed."""
    if origin_of(path) != "edited":
        return False
    try:
        root = parse_vrt(path)
    except AerialsegError:
        return False
    stored = {item.get("key"): item.text for item in root.iter("MDI")}
    return stored.get(CONTENT) == _content_of(root)


def _content_of(root: Element) -> str:
    """Return a digest of what a mosaic shows, however it is written down."""
    rectangles = [
        [float(rectangle.get(key, "nan")) for key in ("xOff", "yOff", "xSize", "ySize")]
        for tag in ("SrcRect", "DstRect")
        for rectangle in root.iter(tag)
    ]
    words = [[item.text for item in root.iter(tag)] for tag in ("SourceFilename", "Category", "Description")]
    values = [[float(item.text or "nan") for item in root.iter(tag)] for tag in ("NODATA", "NoDataValue")]
    colours = [sorted(entry.items()) for entry in root.iter("Entry")]
    corner = [f"{float(number):.9g}" for number in (root.findtext("GeoTransform") or "").split(",") if number.strip()]
    size = [root.get("rasterXSize"), root.get("rasterYSize")]
    shown = repr((size, corner, rectangles, words, values, colours))
    return hashlib.sha256(shown.encode()).hexdigest()


def _groups(parts: Sequence[Part], say: Callable[[str], None]) -> list[list[Part]]:
    """Return the parts by CRS, without those that do not fit the most common pixel of their CRS."""
    by_crs: list[list[Part]] = []
    for part in parts:
        box = part.box
        if not box.georeferenced or not box.usable or box.crs is None:
            say(f"{one_line(part.path)}: has no place on the ground and is not in the mosaic")
        elif box.transform.b or box.transform.d:
            say(f"{one_line(part.path)}: is rotated and is not in the mosaic")
        else:
            members = next((group for group in by_crs if group[0].box.crs == box.crs), None)
            if members is None:
                by_crs.append(members := [])
            members.append(part)
    groups = []
    for members in by_crs:
        pixels: dict[tuple[str, str, float], int] = {}
        for part in members:
            pixels[part.pixel] = pixels.get(part.pixel, 0) + part.box.height * part.box.width
        usual = max(pixels, key=lambda pixel: pixels[pixel])
        groups.append([part for part in members if part.pixel == usual])
        for part in members:
            if part.pixel != usual:
                found, width = part.pixel[0], usual[0]
                say(f"{one_line(part.path)}: its pixel is {found}, most are {width}; it is not in the mosaic")
    return groups


def _is_nameable(folder: Path, part: Part, say: Callable[[str], None]) -> bool:
    """Return whether XML can hold the part's name; control characters it cannot, however they are escaped."""
    try:
        ElementTree.XML(_source(folder, part, 0, 0))
    except ElementTree.ParseError:
        say(f"{one_line(part.path)}: a mosaic cannot hold this name; the raster is left out")
        return False
    return True


def _name(box: GeoBox) -> str:
    """Return what the mosaic of a CRS is called where there are several."""
    code = None if box.crs is None else crs_code(box.crs)
    label = f"CRS-{hashlib.sha256(_wkt(box).encode()).hexdigest()[:8]}" if code is None else code.replace(":", "-")
    return f"mosaic-{label}.vrt"


def _wkt(box: GeoBox) -> str:
    return "" if box.crs is None else str(box.crs.to_wkt())


def _text(folder: Path, parts: Sequence[Part], kind: Kind, say: Callable[[str], None]) -> str | None:
    """Return the VRT, or None where it would be too large for GDAL."""
    first = parts[0].box
    places = []
    for part in parts:
        row, col = first.offset_to(part.box)
        shift = max(abs(row - round(row)), abs(col - round(col)))
        if shift > NOTICED_SHIFT:
            say(f"{one_line(part.path)}: lies {shift:.2f} px off the mosaic's grid and is drawn on it")
        places.append((round(row), round(col)))
    top, left = min(row for row, _ in places), min(col for _, col in places)
    height = max(row + part.box.height for (row, _), part in zip(places, parts, strict=True)) - top
    width = max(col + part.box.width for (_, col), part in zip(places, parts, strict=True)) - left
    if max(height, width) > LARGEST:
        say(f"{one_line(folder)}: the scenes lie too far apart for one mosaic; none is written")
        return None
    t = first.transform
    corner = (t.c + left * t.a, t.a, 0.0, t.f + top * t.e, 0.0, t.e)
    sources = [_source(folder, part, row - top, col - left) for (row, col), part in zip(places, parts, strict=True)]
    text = "".join(
        (
            f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">\n',
            f"  <SRS>{escape(_wkt(parts[0].box))}</SRS>\n",
            f"  <GeoTransform>{', '.join(repr(float(number)) for number in corner)}</GeoTransform>\n",
            f'  <Metadata>\n    <MDI key="AERIALSEG_SEAL">{BLANK}</MDI>\n',
            f'    <MDI key="{CONTENT}">{CONTENT}</MDI>\n  </Metadata>\n',
            '  <VRTRasterBand dataType="Byte" band="1">\n',
            _description(kind, parts[0].scale),
            *sources,
            "  </VRTRasterBand>\n</VRTDataset>\n",
        )
    )
    return text.replace(f">{CONTENT}<", f">{_content_of(ElementTree.XML(text))}<")


def _description(kind: Kind, scale: float) -> str:
    """Return what a band says of its values, in the order of GDAL's own schema."""
    nodata = f"    <NoDataValue>{NODATA}</NoDataValue>\n"
    if kind == "probability":
        offset = "" if scale == 1 else f"    <Offset>0</Offset>\n    <Scale>{scale!r}</Scale>\n"
        named = f"    <Description>building probability</Description>\n{nodata}"
        return f"{named}{offset}    <ColorInterp>Gray</ColorInterp>\n"
    colours = "".join('      <Entry c1="{}" c2="{}" c3="{}" c4="{}"/>\n'.format(*item.colour) for item in MASK_CLASSES)
    names = "".join(f"      <Category>{item.label}</Category>\n" for item in MASK_CLASSES)
    return (
        f"    <Description>building mask</Description>\n{nodata}    <ColorInterp>Palette</ColorInterp>\n"
        f"    <ColorTable>\n{colours}    </ColorTable>\n    <CategoryNames>\n{names}    </CategoryNames>\n"
    )


def _source(folder: Path, part: Part, row: int, col: int) -> str:
    """Return one raster's place; where it has no data, a raster below it shows."""
    name = escape(os.path.relpath(part.path, folder), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})
    height, width = part.box.height, part.box.width
    rows, cols = part.block
    return (
        "    <ComplexSource>\n"
        f'      <SourceFilename relativeToVRT="1">{name}</SourceFilename>\n'
        "      <SourceBand>1</SourceBand>\n"
        f'      <SourceProperties RasterXSize="{width}" RasterYSize="{height}" DataType="Byte"'
        f' BlockXSize="{cols}" BlockYSize="{rows}"/>\n'
        f'      <SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>\n'
        f'      <DstRect xOff="{col}" yOff="{row}" xSize="{width}" ySize="{height}"/>\n'
        f"      <NODATA>{NODATA}</NODATA>\n"
        "    </ComplexSource>\n"
    )
