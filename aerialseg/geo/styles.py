"""How results are drawn in QGIS: colours, class names, the layer styles that projects share, and rasters' side files.

One red means building everywhere: opaque in the mask, the end of the probability's ramp, outline and tint of polygons.
Styles are QGIS's own XML as versions 3.22 and later read it. A mask carries no colour table of its own: GDAL would pad
it to 256 opaque entries, and QGIS would list 256 classes on black. A two-entry palette in `NAME.tif.aux.xml` (GDAL's
auxiliary metadata, which every GDAL program reads) and a style in `NAME.qml` (QGIS only) show two named classes on a
transparent background instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from rasterio.enums import ColorInterp

from aerialseg.counts import QUANTA
from aerialseg.files import exists, write_text
from aerialseg.geo.geopackage import store_style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rasterio.io import DatasetReader

DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
QGIS_VERSION = "3.22"
"""The oldest that is tried."""
PROBABILITY_RAMP = ((0.0, (255, 237, 160, 0)), (0.5, (253, 141, 60, 160)), (1.0, (230, 57, 70, 255)))
"""Share of the highest value -> colour: nothing at 0, the buildings' red at 1."""
SPLIT_COLOURS = {"train": "49,104,142", "val": "253,141,60", "": "150,150,150"}
"""How index.gpkg is drawn: training blue, validation orange, left out grey."""
RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
FILL_ALPHA = 50
NAME_LIMIT = 255
"""Bytes in a file name on every file system in use."""


@dataclass(frozen=True, slots=True)
class MaskClass:
    """A value of a mask: what it is called and its colour, red, green, blue and alpha of 0..255."""

    value: int
    label: str
    colour: tuple[int, int, int, int]

    @property
    def hex(self) -> str:
        """The colour without alpha, as in HTML."""
        return _hex(self.colour)


MASK_CLASSES = (MaskClass(0, "background", (0, 0, 0, 0)), MaskClass(1, "building", (230, 57, 70, 255)))


BUILDING_COLOUR = ",".join(map(str, MASK_CLASSES[1].colour[:3]))


def mask_style(classes: Sequence[MaskClass] = MASK_CLASSES) -> str:
    """Return a raster style with one entry for each class."""
    return _raster_style(mask_pipe(classes=classes))


def probability_style(top: float) -> str:
    """Return a raster style for probabilities that QGIS reads as 0..`top`: transparent at 0, opaque at the top."""
    return _raster_style(probability_pipe(top))


def mask_pipe(opacity: float = 1, *, classes: Sequence[MaskClass] = MASK_CLASSES) -> str:
    """Return the `<pipe>` of a mask, or of another raster of few classes."""
    entries = "".join(
        f'<paletteEntry value="{item.value}" label={quoteattr(item.label)} color="{item.hex}"'
        f' alpha="{item.colour[3]}"/>\n'
        for item in classes
    )
    return _renderer('type="paletted" band="1"', f"<colorPalette>\n{entries}</colorPalette>", opacity=opacity)


def probability_pipe(top: float) -> str:
    """Return the `<pipe>` of probabilities that QGIS reads as 0..`top`."""
    items = "".join(
        f'<item value="{share * top:.9g}" label="{share:.0%}" color="{_hex(colour)}" alpha="{colour[3]}"/>\n'
        for share, colour in PROBABILITY_RAMP
    )
    return _renderer(
        f'type="singlebandpseudocolor" band="1" classificationMin="0" classificationMax="{top:.9g}"',
        "<minMaxOrigin><limits>None</limits><extent>WholeRaster</extent><statAccuracy>Exact</statAccuracy>"
        "</minMaxOrigin>\n<rastershader>\n"
        '<colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="0"'
        f' maximumValue="{top:.9g}">\n{items}</colorrampshader>\n</rastershader>',
    )


def scene_pipe(dataset: DatasetReader) -> str:
    """Return the `<pipe>` of a scene as it would be looked at: colours as they are, other types stretched."""
    kinds = list(dataset.colorinterp)
    if kinds[0] == ColorInterp.palette:
        entries = "".join(
            f'<paletteEntry value="{value}" label="{value}" color="{_hex(colour)}" alpha="{colour[3]}"/>'
            for value, colour in dataset.colormap(1).items()
        )
        return _renderer('type="paletted" band="1"', f"<colorPalette>{entries}</colorPalette>")
    alpha = kinds.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in kinds else -1
    shown = shown_bands(dataset)
    stretched = "NoEnhancement" if dataset.dtypes[0] == "uint8" else "StretchToMinimumMaximum"
    contrast = f"<minValue>0</minValue><maxValue>255</maxValue><algorithm>{stretched}</algorithm>"
    # QGIS measures on drawing: 2 to 98 % of what the map shows.
    limits = (
        "<minMaxOrigin><limits>CumulativeCut</limits><extent>UpdatedCanvas</extent><statAccuracy>Estimated"
        "</statAccuracy><cumulativeCutLower>0.02</cumulativeCutLower><cumulativeCutUpper>0.98</cumulativeCutUpper>"
        "</minMaxOrigin>\n"
    )
    limits = limits if stretched != "NoEnhancement" else ""
    if len(shown) == 1:
        kind = f'type="singlebandgray" grayBand="{shown[0]}" gradient="BlackToWhite"'
        return _renderer(kind, f"{limits}<contrastEnhancement>{contrast}</contrastEnhancement>", alpha)
    red, green, blue = shown
    colours = "".join(
        f"<{colour}ContrastEnhancement>{contrast}</{colour}ContrastEnhancement>" for colour in ("red", "green", "blue")
    )
    kind = f'type="multibandcolor" redBand="{red}" greenBand="{green}" blueBand="{blue}"'
    return _renderer(kind, limits + colours, alpha)


def shown_bands(dataset: DatasetReader) -> tuple[int, ...]:
    """Return the bands that are looked at, counted from 1: red, green and blue, the first three, or a single one."""
    kinds = list(dataset.colorinterp)
    named = tuple(kinds.index(colour) + 1 for colour in RGB if colour in kinds)
    plain = tuple(band for band in dataset.indexes if kinds[band - 1] != ColorInterp.alpha)
    if len(named) == 3:
        return named
    return plain[:3] if len(plain) >= 3 else (plain or (1,))[:1]


def building_renderer() -> str:
    """Return the `<renderer-v2>` of building polygons: a thin outline and a tint."""
    symbol = _fill("0", BUILDING_COLOUR, FILL_ALPHA, width="0.3")
    return (
        '<renderer-v2 type="singleSymbol" forceraster="0" symbollevels="0" enableorderby="0">'
        f"<symbols>{symbol}</symbols></renderer-v2>"
    )


def write_index_style(gpkg: Path) -> None:
    """Store a default style in the GeoPackage of a set's tiles: outlines coloured by the column `split`."""
    store_style(gpkg, "split", "tiles by split", _vector_style(_index_renderer()))


def write_building_style(gpkg: Path) -> None:
    """Store a default style in the GeoPackage for every feature table: a thin outline and a translucent fill."""
    store_style(gpkg, "buildings", "building outlines", _vector_style(building_renderer()))


def _index_renderer() -> str:
    """Return a renderer that draws outlines, a colour for each split."""
    categories, symbols = [], []
    for number, (split, colour) in enumerate(SPLIT_COLOURS.items()):
        label = split or "left out"
        categories.append(f'<category symbol="{number}" value="{split}" label="{label}" render="true"/>')
        symbols.append(_fill(str(number), colour, 60, width="0.4"))
    return (
        '<renderer-v2 type="categorizedSymbol" attr="split" forceraster="0" symbollevels="0" enableorderby="0">'
        f"<categories>{''.join(categories)}</categories><symbols>{''.join(symbols)}</symbols></renderer-v2>"
    )


def _fill(name: str, colour: str, alpha: int, *, width: str) -> str:
    """Return a symbol with an opaque outline, `width` in millimetres, and a fill of the same colour."""
    options: Mapping[str, str] = {
        "color": f"{colour},{alpha}",
        "style": "solid",
        "outline_color": f"{colour},255",
        "outline_style": "solid",
        "outline_width": width,
        "outline_width_unit": "MM",
    }
    settings = "".join(f'<Option type="QString" name="{key}" value="{value}"/>' for key, value in options.items())
    return (
        f'<symbol type="fill" name="{name}" alpha="1" clip_to_extent="1" force_rhr="0">'
        f'<layer class="SimpleFill" pass="0" enabled="1" locked="0"><Option type="Map">{settings}</Option>'
        "</layer></symbol>"
    )


def _renderer(kind: str, inside: str, alpha: int = -1, *, opacity: float = 1) -> str:
    return (
        f'<pipe>\n<rasterrenderer {kind} opacity="{opacity:g}" alphaBand="{alpha}" nodataColor="">\n'
        f"<rasterTransparency/>\n{inside}\n</rasterrenderer>\n</pipe>\n"
    )


def _raster_style(pipe: str) -> str:
    return (
        f'{DOCTYPE}<qgis version="{QGIS_VERSION}" styleCategories="Symbology">\n{pipe}'
        "<blendMode>0</blendMode>\n</qgis>\n"
    )


def _vector_style(renderer: str) -> str:
    return (
        f'{DOCTYPE}<qgis version="{QGIS_VERSION}" styleCategories="Symbology">{renderer}'
        "<blendMode>0</blendMode><layerGeometryType>2</layerGeometryType></qgis>\n"
    )


def _hex(colour: tuple[int, int, int, int]) -> str:
    red, green, blue, _ = colour
    return f"#{red:02x}{green:02x}{blue:02x}"


def write_mask_sidecars(
    path: Path,
    *,
    replace: bool = False,
    classes: Sequence[MaskClass] = MASK_CLASSES,
    meaning: str = "building mask",
) -> tuple[Path, ...]:
    """Write the side files of the mask at `path` that are missing, and return those it wrote.

    `classes` are 0, 1, 2 and so on, and `meaning` what their raster is called in GIS programs.
    What exists may hold a user's changes, or statistics that QGIS has added, and stays, unless `replace`. A side file
    whose name would be too long for the file system is left out: the mask's own name fits, so at least one does.
    """
    auxiliary, style = path.with_name(f"{path.name}.aux.xml"), path.with_suffix(".qml")
    contents = {auxiliary: _auxiliary(classes, meaning), style: mask_style(classes)}
    return _write_missing(contents, replace=replace)


def write_probability_sidecar(path: Path, scale: float, *, replace: bool = False) -> tuple[Path, ...]:
    """Write the style of the probability raster at `path` where it is missing; returns it if it was written.

    `scale` is the file's own: QGIS shows values times it, so it decides where the ramp ends.
    """
    return _write_missing({path.with_suffix(".qml"): probability_style(QUANTA * scale)}, replace=replace)


def _write_missing(contents: dict[Path, str], *, replace: bool) -> tuple[Path, ...]:
    fitting = {file: text for file, text in contents.items() if len(file.name.encode()) <= NAME_LIMIT}
    missing = [file for file in fitting if replace or not exists(file)]
    for file in missing:
        write_text(file, fitting[file])
    return tuple(missing)


def _auxiliary(classes: Sequence[MaskClass], meaning: str) -> str:
    """Return GDAL's auxiliary metadata: palette, class names and a raster attribute table."""
    columns = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Alpha", 0, 9))
    fields = (
        f'      <FieldDefn index="{index}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for index, (name, kind, usage) in enumerate(columns)
    )
    cells = ((item.value, item.label, *item.colour) for item in classes)
    rows = (
        f'      <Row index="{index}">{"".join(f"<F>{cell}</F>" for cell in row)}</Row>'
        for index, row in enumerate(cells)
    )
    colours = (
        '      <Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(*item.colour)  # the entry's place is its value
        for item in classes
    )
    names = (f"      <Category>{item.label}</Category>" for item in classes)
    lines = (
        "<PAMDataset>",
        '  <PAMRasterBand band="1">',
        f"    <Description>{meaning}</Description>",
        "    <ColorInterp>Palette</ColorInterp>",
        "    <ColorTable>",
        *colours,
        "    </ColorTable>",
        "    <CategoryNames>",
        *names,
        "    </CategoryNames>",
        '    <GDALRasterAttributeTable tableType="thematic">',
        *fields,
        *rows,
        "    </GDALRasterAttributeTable>",
        "  </PAMRasterBand>",
        "</PAMDataset>",
    )
    return "\n".join(lines) + "\n"
