"""What makes rasters look right in QGIS without a click: the side files of masks and probabilities.

A mask carries no colour table of its own: GDAL would pad it to 256 opaque entries, and QGIS would list 256 classes on
black. A two-entry palette in `NAME.tif.aux.xml` (GDAL's auxiliary metadata, which every GDAL program reads) and a style
in `NAME.qml` (QGIS only) show two named classes on a transparent background instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.counts import QUANTA
from aerialseg.files import write_text
from aerialseg.geo.qgis.styles import (
    MASK_CLASSES,
    MaskClass,
    mask_style,
    probability_style,
    write_building_style,
    write_index_style,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["write_building_style", "write_index_style", "write_mask_sidecars", "write_probability_sidecar"]

NAME_LIMIT = 255
"""Bytes in a file name on every file system in use."""


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
    missing = [file for file in fitting if replace or not file.exists()]
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
