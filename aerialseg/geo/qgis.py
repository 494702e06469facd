"""What makes outputs look right in QGIS without a click: side files of masks, and the style inside an index.

A mask carries no colour table of its own: GDAL would pad it to 256 opaque entries, and QGIS would list 256 classes on
black. A two-entry palette in `NAME.tif.aux.xml` (GDAL's auxiliary metadata, which every GDAL program reads) and a style
in `NAME.qml` (QGIS only) show two named classes on a transparent background instead.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

from aerialseg.files import write_text

if TYPE_CHECKING:
    from pathlib import Path

NAME_LIMIT = 255
"""Bytes in a file name on every file system in use."""
DATE = "2000-01-01T00:00:00.000Z"
"""Written where a file wants to know when it changed, so that equal outputs have equal bytes."""


@dataclass(frozen=True, slots=True)
class MaskClass:
    """A value of a mask: what it is called and its colour, red, green, blue and alpha of 0..255."""

    value: int
    label: str
    colour: tuple[int, int, int, int]

    @property
    def hex(self) -> str:
        """The colour without alpha, as in HTML."""
        red, green, blue, _ = self.colour
        return f"#{red:02x}{green:02x}{blue:02x}"


MASK_CLASSES = (MaskClass(0, "background", (0, 0, 0, 0)), MaskClass(1, "building", (230, 57, 70, 255)))
SPLIT_COLOURS = {"train": "49,104,142", "val": "253,141,60", "": "150,150,150"}
"""How index.gpkg is drawn: training blue, validation orange, left out grey."""


def write_mask_sidecars(path: Path, *, replace: bool = False) -> tuple[Path, ...]:
    """Write the side files of the mask at `path` that are missing, and return those it wrote.

    What exists may hold a user's changes, or statistics that QGIS has added, and stays, unless `replace`. A side file
    whose name would be too long for the file system is left out: the mask's own name fits, so at least one does.
    """
    contents = {path.with_name(f"{path.name}.aux.xml"): _auxiliary(), path.with_suffix(".qml"): _style()}
    fitting = {file: text for file, text in contents.items() if len(file.name.encode()) <= NAME_LIMIT}
    missing = [file for file in fitting if replace or not file.exists()]
    for file in missing:
        write_text(file, fitting[file])
    return tuple(missing)


def write_index_style(gpkg: Path) -> None:
    """Store a default style in the GeoPackage for its only feature table: outlines coloured by the column `split`."""
    with closing(sqlite3.connect(gpkg)) as database, database:
        ((table, geometry),) = database.execute("SELECT table_name, column_name FROM gpkg_geometry_columns")
        database.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT,"
            " f_table_schema TEXT, f_table_name TEXT, f_geometry_column TEXT, styleName TEXT, styleQML TEXT,"
            " styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT, ui TEXT, update_time DATETIME)"
        )
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,"
            " styleQML, styleSLD, useAsDefault, description, owner, ui, update_time)"
            " VALUES ('', '', ?, ?, 'split', ?, '', 1, 'tiles by split', '', '', ?)",
            (table, geometry, _index_style(), DATE),
        )
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change, srs_id)"
            " VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?, 0)",
            (DATE,),
        )


def _auxiliary() -> str:
    """Return GDAL's auxiliary metadata: palette, class names and a raster attribute table."""
    columns = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Alpha", 0, 9))
    fields = (
        f'      <FieldDefn index="{index}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for index, (name, kind, usage) in enumerate(columns)
    )
    cells = ((item.value, item.label, *item.colour) for item in MASK_CLASSES)
    rows = (
        f'      <Row index="{index}">{"".join(f"<F>{cell}</F>" for cell in row)}</Row>'
        for index, row in enumerate(cells)
    )
    colours = (
        '      <Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(*item.colour)  # the entry's place is its value
        for item in MASK_CLASSES
    )
    names = (f"      <Category>{item.label}</Category>" for item in MASK_CLASSES)
    lines = (
        "<PAMDataset>",
        '  <PAMRasterBand band="1">',
        "    <Description>building mask</Description>",
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


def _style() -> str:
    """Return a QGIS layer style with one entry for each class."""
    entries = (
        f'        <paletteEntry value="{item.value}" label={quoteattr(item.label)} color="{item.hex}"'
        f' alpha="{item.colour[3]}"/>'
        for item in MASK_CLASSES
    )
    lines = (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>",
        '<qgis version="3.22" styleCategories="Symbology">',
        "  <pipe>",
        '    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">',
        "      <rasterTransparency/>",
        "      <colorPalette>",
        *entries,
        "      </colorPalette>",
        "    </rasterrenderer>",
        "  </pipe>",
        "  <blendMode>0</blendMode>",
        "</qgis>",
    )
    return "\n".join(lines) + "\n"


def _index_style() -> str:
    """Return a QGIS layer style that draws outlines, a colour for each split."""
    categories, symbols = [], []
    for number, (split, colour) in enumerate(SPLIT_COLOURS.items()):
        label = split or "left out"
        categories.append(f'<category symbol="{number}" value="{split}" label="{label}" render="true"/>')
        options = {
            "color": f"{colour},60",
            "style": "solid",
            "outline_color": f"{colour},255",
            "outline_style": "solid",
            "outline_width": "0.4",
            "outline_width_unit": "MM",
        }
        settings = "".join(f'<Option type="QString" name="{name}" value="{value}"/>' for name, value in options.items())
        symbols.append(
            f'<symbol type="fill" name="{number}" alpha="1" clip_to_extent="1" force_rhr="0">'
            f'<layer class="SimpleFill" pass="0" enabled="1" locked="0"><Option type="Map">{settings}</Option>'
            "</layer></symbol>"
        )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22" styleCategories="Symbology">'
        '<renderer-v2 type="categorizedSymbol" attr="split" forceraster="0" symbollevels="0" enableorderby="0">'
        f"<categories>{''.join(categories)}</categories><symbols>{''.join(symbols)}</symbols></renderer-v2>"
        "<blendMode>0</blendMode><layerGeometryType>2</layerGeometryType></qgis>\n"
    )
