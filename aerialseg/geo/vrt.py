"""The rasters that a user's plain mosaic, a GDAL `.vrt` file, stands for; the file is parsed here and never by GDAL.

A VRT may name any file or address, compute, or hide another format, so what is understood is a list: local rasters in
the VRT's own folder, each whole and unscaled at its own place, the same in every band. That is what gdalbuildvrt, rio
and QGIS's "Build virtual raster" write. Anything else is refused before a file that it names is touched. Where pixels
lie, and which of them are nodata, is what the rasters themselves say.

Mosaics over masks or probabilities are composed here, too, as text with relative paths: one layer in QGIS for all
scenes. The process itself has no VRT driver, on purpose. A mosaic holds rasters of one CRS, one
resolution and no rotation, each moved to the nearest pixel of the first one's grid.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aerialseg.counts import NODATA
from aerialseg.errors import AerialsegError, BadDataError, NoInputError, UsageError, one_line
from aerialseg.files import PLACEHOLDER, is_regular, open_regular, resolved
from aerialseg.geo.geobox import GeoBox, by_horizontal, heights_notes
from aerialseg.geo.opening import open_raster, refuse_remote
from aerialseg.geo.project import crs_code
from aerialseg.geo.styles import MASK_CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from xml.etree.ElementTree import Element

    from rasterio.crs import CRS

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
Kind = Literal["mask", "probability"]
CONTENT = "AERIALSEG_CONTENT"
"""The metadata item that holds a digest of what the mosaic shows."""
SINGLE = "mosaic.vrt"
"""What the only mosaic of a folder is called."""
LARGEST = 2**31 - 1
"""GDAL counts rows and columns in 32 bits."""
GRID_TOLERANCE = 0.02
"""Pixels by which two rasters' grids may drift apart over one of them: transforms are stored in decimals."""
NOTICED_SHIFT = 0.1
"""Pixels by which a raster may miss the mosaic's grid before it is said."""


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
        for placed in found:
            mask = number.startswith("mask") and placed.band.startswith("mask")
            if placed.band not in (number, CONSTANT) and not mask:
                raise BadDataError(
                    f"{one_line(path)}: its band {number} is band {one_line(placed.band)} of {one_line(placed.name)},"
                    " expected the same order; give the scenes themselves, with --bands"
                )
    folder = resolved(path).parent
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
    if not is_regular(path):
        if os.path.lexists(path):
            raise BadDataError(f"{name}: is not a regular file, expected a mosaic")
        raise NoInputError(f"{name}: no such file")
    try:
        with open_regular(path) as stream:
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
    properties = source.find("SourceProperties")
    if properties is not None:
        try:
            whole = 0.0, 0.0, float(properties.get("RasterXSize", "")), float(properties.get("RasterYSize", ""))
        except ValueError as error:
            raise _refusal(path, f"does not say how large {one_line(name)} is") from error
        if not _equal(taken, whole):
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
    real = resolved(file)
    if not (file.is_relative_to(folder) and real.is_relative_to(folder)):
        raise BadDataError(
            f"{one_line(path)}: names {shown}, outside its own folder {one_line(folder)}; put the VRT in the folder"
            " that holds its scenes, or give the scenes themselves"
        )
    if real.suffix.lower() == ".vrt" or not is_regular(real):
        raise BadDataError(f"{one_line(path)}: names {shown}, which is no raster in its folder; build the VRT again")
    return file.relative_to(folder)


def _only(path: Path, element: Element, attributes: set[str], parts: set[str]) -> None:
    """Raise for an attribute or a child that a plain mosaic does not have."""
    for name in sorted(set(element.attrib) - attributes):
        value = one_line(element.get(name, ""))[:40]
        raise _refusal(path, f'is more than a plain mosaic: {element.tag} {one_line(name)}="{value}"')
    for part in element:
        if part.tag not in parts:
            raise _refusal(path, f"is more than a plain mosaic: it has <{one_line(str(part.tag))[:40]}>")


def _equal(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    return all(abs(a - b) <= _WHOLE for a, b in zip(first, second, strict=True))


def _size(rectangle: tuple[float, ...]) -> str:
    return f"{rectangle[3]:g}x{rectangle[2]:g}"


def _refusal(path: Path, found: str) -> BadDataError:
    return BadDataError(f"{one_line(path)}: {found}; {ADVICE}")


@dataclass(frozen=True, slots=True)
class MosaicPart:
    """A raster that may become part of a mosaic."""

    path: Path
    box: GeoBox
    block: tuple[int, int]
    scale: float

    @classmethod
    def of(cls, path: Path) -> MosaicPart:
        """Read a raster's header; raises as `open_raster` does."""
        with open_raster(path) as dataset:
            return cls(path, GeoBox.of(dataset), dataset.block_shapes[0], float(dataset.scales[0]))

    @property
    def pixel(self) -> tuple[float, float, float]:
        """What rasters of one mosaic share: the pixel's width and height, and the scale of values."""
        return self.box.transform.a, self.box.transform.e, self.scale

    def fits(self, pixel: tuple[float, float, float]) -> bool:
        """Return whether pixels of this size, all over the raster, miss its own by a small part of one at most."""
        (width, height, scale), box = pixel, self.box
        across = abs(box.transform.a - width) * box.width / abs(width)
        down = abs(box.transform.e - height) * box.height / abs(height)
        return (
            self.scale == scale
            and width * box.transform.a > 0 < height * box.transform.e
            and max(across, down) <= GRID_TOLERANCE
        )


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A virtual raster and what it shows."""

    path: Path
    parts: tuple[MosaicPart, ...]
    content: bytes
    """Of the file, with PLACEHOLDER where the digest of its bytes is to be embedded."""


def compose_mosaics(
    folder: Path, parts: Sequence[MosaicPart], kind: Kind, say: Callable[[str], None]
) -> tuple[Mosaic, ...]:
    """Return a mosaic for each CRS, to be written into `folder`; `say` is told what is left out and why.

    With one CRS it is mosaic.vrt, else mosaic-EPSG-26914.vrt and so on.
    """
    groups = _groups([part for part in parts if _is_nameable(folder, part, say)], say)
    names = [SINGLE] if len(groups) == 1 else [_name(group[0].box) for group in groups]
    texts = [_text(folder, group, kind, say) for group in groups]
    return tuple(
        Mosaic(folder / name, tuple(group), text.encode())
        for name, group, text in zip(names, groups, texts, strict=True)
        if text is not None
    )


def mosaic_names(boxes: Iterable[GeoBox]) -> tuple[str, ...]:
    """Return what mosaics over rasters on these grids, or over some of them, may be called."""
    found: dict[CRS, GeoBox] = {box.crs: box for box in boxes if box.georeferenced and box.crs is not None}
    return SINGLE, *(map(_name, found.values()) if len(found) > 1 else ())


def shows_what_was_written(path: Path) -> bool:
    """Return whether a mosaic of ours shows what it did at first; GDAL rewrites one to keep statistics in it."""
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


def _groups(parts: Sequence[MosaicPart], say: Callable[[str], None]) -> list[list[MosaicPart]]:
    """Return the parts by CRS, without those that do not fit the most common pixel of their CRS."""
    placed: list[MosaicPart] = []
    for part in parts:
        box = part.box
        if not box.georeferenced or not box.usable or box.crs is None:
            say(f"{one_line(part.path)}: has no place on the ground and is not in the mosaic")
        elif box.transform.b or box.transform.d:
            say(f"{one_line(part.path)}: is rotated and is not in the mosaic")
        else:
            placed.append(part)
    groups = []
    for places in by_horizontal(part.box.crs for part in placed):
        members = [placed[place] for place in places]
        for note in heights_notes([(one_line(part.path), part.box.crs) for part in members]):
            say(note)
        pixels: dict[tuple[float, float, float], int] = {}
        for part in members:
            pixels[part.pixel] = pixels.get(part.pixel, 0) + part.box.height * part.box.width
        usual = max(pixels, key=lambda pixel: pixels[pixel])
        groups.append([part for part in members if part.fits(usual)])
        others = [part for part in members if not part.fits(usual)]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            kinds = "width", "height", "scale of values"
            name, found, most = next(x for x in zip(kinds, others[0].pixel, usual, strict=True) if x[1] != x[2])
            first = one_line(others[0].path)
            say(f"{first}{more}: its pixels' {name} is {found:.12g}, most are {most:.12g}; not in the mosaic")
    return groups


def _is_nameable(folder: Path, part: MosaicPart, say: Callable[[str], None]) -> bool:
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


def _text(folder: Path, parts: Sequence[MosaicPart], kind: Kind, say: Callable[[str], None]) -> str | None:
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
            f'  <Metadata>\n    <MDI key="AERIALSEG_SEAL">{PLACEHOLDER}</MDI>\n',
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


def _source(folder: Path, part: MosaicPart, row: int, col: int) -> str:
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
