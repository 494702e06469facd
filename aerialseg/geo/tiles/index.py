"""`index.gpkg`: one rectangle per tile, for people. Its `split` column is the split: what is edited there is obeyed.

Read with sqlite3, so that training needs no vector library; written through GDAL with a fixed date, so that equal sets
have equal bytes.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from aerialseg.errors import BadDataError, OutputError, one_line
from aerialseg.files import staged
from aerialseg.geo.opening import write_error
from aerialseg.geo.qgis.edits import is_open_elsewhere

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.crs import CRS

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.tiles.tileset import TileRecord

LAYER = "tiles"
LEFT_OUT = ("", "none", "skip", "ignore", "unused")
"""What may stand in `split` for a tile that is not to be used; an empty cell and a deleted row mean the same."""


def read_splits(path: Path) -> dict[str, str]:
    """Return tile name -> split as it stands in the file now, without the tiles that are left out.

    Raises BadDataError when the file is missing or damaged, or a split is neither train nor val nor left out.
    """
    name = one_line(path)
    if not path.is_file():
        raise BadDataError(f"{name}: missing, and the split is kept in it; run the same aerialseg tile command again")
    splits: dict[str, str] = {}
    for tile, text in _read_rows(path):
        split = (text or "").strip().lower()
        if split not in ("train", "val", *LEFT_OUT):
            raise BadDataError(f"{name}: split of tile {one_line(str(tile))} is {text!r}; expected train, val or empty")
        if split not in LEFT_OUT and splits.setdefault(tile, split) != split:
            raise BadDataError(f"{name}: tile {one_line(str(tile))} is both train and val; keep one of its rows")
    return {tile: split for tile, split in splits.items() if split not in LEFT_OUT}


def write_index(path: Path, tiles: Sequence[TileRecord], boxes: dict[str, GeoBox]) -> None:
    """Write one row per tile, in order, with its window's outline; `boxes` are the scenes' grids by name.

    The outlines are in the scenes' CRS if they share one and in longitude and latitude if not; the tiles of a scene
    without georeferencing have none. A style by split is stored in the file.
    """
    from pyogrio.raw import write

    from aerialseg.geo.outlines.geopackage import writing_vectors
    from aerialseg.geo.qgis.qml import write_index_style

    crs = common_crs(list(boxes.values()))
    outlines = np.array([_outline(boxes[tile.scene], tile.window, crs) for tile in tiles], dtype=object)
    with staged(path) as temporary:
        temporary.unlink()  # GDAL wants to create the file itself
        with writing_vectors(path):
            write(
                temporary, outlines, *_columns(tiles), layer=LAYER, driver="GPKG", geometry_type="Polygon",
                crs=None if crs is None else crs.to_wkt(), dataset_options={"VERSION": "1.3"},
            )  # fmt: skip
        if len(_read_rows(temporary)) != len(tiles):
            raise write_error(path, "not all rows read back as written")
        write_index_style(temporary)
        # A new file beside the old one's pending changes would be mixed with them, and without them they are lost.
        if is_open_elsewhere(path):
            raise OutputError(
                f"{one_line(path)}: is open in another program, such as QGIS, and stays as it is; close it there and"
                " run the same command again, which keeps the tiles that are cut"
            )


def common_crs(boxes: Sequence[GeoBox]) -> CRS | None:
    """Return the CRS that georeferenced grids share, longitude and latitude when they differ, None for no grid."""
    from rasterio.crs import CRS

    found = [box.crs for box in boxes if box.georeferenced and box.crs is not None]
    if not found:
        return None
    return found[0] if all(crs == found[0] for crs in found) else CRS.from_epsg(4326)


def _read_rows(path: Path) -> list[tuple[str, str | None]]:
    """Return (name, split) of every row; reads beside a QGIS that has the file open, and on a read-only disk."""
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    for options in ("", "&immutable=1"):
        try:
            connection = sqlite3.connect(address + options, uri=True)
            try:
                return connection.execute(f"SELECT name, split FROM {LAYER} ORDER BY rowid").fetchall()
            finally:
                connection.close()
        except sqlite3.Error as error:
            problem = error
    raise BadDataError(
        f"{one_line(path)}: cannot be read: {problem}; remove it and run the same aerialseg tile command again"
    ) from problem


def _columns(tiles: Sequence[TileRecord]) -> tuple[list[NDArray[np.generic]], list[str]]:
    texts = {"name": [t.name for t in tiles], "scene": [t.scene for t in tiles], "split": [t.split for t in tiles]}
    windows = zip(("row", "col", "height", "width"), np.array([t.window for t in tiles], dtype=np.int32).T, strict=True)
    shares = {"building": [t.building for t in tiles], "valid": [t.valid for t in tiles]}
    columns = {
        **{name: np.array(values, dtype=object) for name, values in texts.items()},
        **{name: np.ascontiguousarray(values) for name, values in windows},
        **{name: np.array(values) for name, values in shares.items()},
    }
    return list(columns.values()), list(columns)


def _outline(box: GeoBox, window: tuple[int, int, int, int], crs: CRS | None) -> bytes | None:
    """Return the window (row, col, height, width) as a WKB polygon in `crs`, or None without georeferencing."""
    import shapely
    from rasterio.warp import transform

    if crs is None or box.crs is None or not box.georeferenced:
        return None
    row, col, height, width = window
    corners = [(col, row), (col + width, row), (col + width, row + height), (col, row + height)]
    x, y = zip(*(box.transform @ corner for corner in corners), strict=True)
    if box.crs != crs:
        x, y = transform(box.crs, crs, x, y)
    return bytes(shapely.to_wkb(shapely.polygons(list(zip(x, y, strict=True)))))
