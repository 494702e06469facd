"""A folder of tiles that is ready to train on: what is in it, how to open it, and whether its splits share ground.

`tileset.json` is written last, so a folder without it is unfinished. The split is not taken from there but from
`index.gpkg`, one rectangle per tile, where people edit it: what stands in its `split` column is obeyed. The index is
read with sqlite3, beside a program that has it open; it is written through GDAL with a fixed date, so that equal sets
have equal bytes. No pixels are read here.

A scene may be in a set twice under two names, two scenes may overlap, a split may have been edited; then a network is
validated on what it has learned by heart. That is found from the outlines, whatever files are called.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from rasterio.windows import Window

from aerialseg.counts import GSD_RANGE
from aerialseg.errors import BadDataError, NoInputError, OutputError, one_line
from aerialseg.files import is_folder, is_regular, staged, write_text
from aerialseg.geo.geobox import GeoBox, same_horizontal
from aerialseg.geo.geopackage import is_open_elsewhere, reading, require_tables, write_table, writing_vectors
from aerialseg.geo.opening import open_raster, write_error
from aerialseg.geo.scenes import Split
from aerialseg.geo.vectors import overlay, read_layer, require_place
from aerialseg.values import from_values, read_json, to_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from rasterio.crs import CRS

FORMAT = "aerialseg tiles 1"
MANIFEST = "tileset.json"
INDEX = "index.gpkg"
LAYER = "tiles"
MAX_SIZE = 16_384
FURTHEST = 1 << 31
"""Rows and columns of the largest raster that GDAL knows."""
LEFT_OUT = ("", "none", "skip", "ignore", "unused")
"""What may stand in `split` for a tile that is not to be used; an empty cell and a deleted row mean the same."""
LEAST_SHARED = 1e-3
"""Of a tile. Tiles that only touch share a hair of ground: by rounding, or because edges bend between two CRSs."""
LEAST_COVERED = 1e-6
"""Of a scene, by tiles."""


@dataclass(frozen=True, slots=True)
class TileRecord:
    """One tile: an image and a mask of the same name."""

    name: str
    split: str
    """train or val."""
    scene: str
    window: tuple[int, int, int, int]
    """(row, col, height, width) in the scene's pixels; it may run over the edge of a smaller scene."""
    core: tuple[int, int, int, int]
    """The part of the window that no other tile counts: validation scores these pixels only."""
    building: float
    """The share of building in the window's labelled pixels."""
    valid: float
    """The share of the window's pixels that are labelled, that is not 255 in the mask."""


@dataclass(frozen=True, slots=True)
class TileSet:
    """The tiles of a folder and what a model needs to know about them."""

    folder: Path
    size: int
    overlap: float
    bands: tuple[int, ...] | None
    """The scene's bands the tiles hold, counted from 1; None means all but alpha."""
    scale: tuple[float, float] | None
    """The scene's values that became 0 and 255; None means the scenes were 8-bit already."""
    mean: tuple[float, ...]
    """Per band, 0 to 255, over the valid pixels of the training tiles' cores."""
    std: tuple[float, ...]
    gsd_m: float | None
    """Metres per pixel; None when the scenes have no georeferencing."""
    tiles: tuple[TileRecord, ...]
    digest: str
    """Changes with the sources, the options, and the split."""
    building_fraction: float | None
    """The share of building in the labelled pixels of the training tiles' cores; None when nothing is labelled."""
    content: str
    """The manifest's own digest: what the tiles hold, whatever their split is now."""
    sources: dict[str, Any] | None
    """What the tiles are read from (`cut.Sources`) in a set without files of its own; None in one with them."""
    scenes: dict[str, str]
    """Scene -> a digest of everything its tiles depend on."""
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Split as it was drawn -> class -> pixels of the tiles' cores."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> tiles that were planned and not kept."""
    failed: dict[str, str] = field(default_factory=dict)
    """Scene that could not be cut -> why."""

    def __post_init__(self) -> None:
        checks = (
            (1 <= self.size <= MAX_SIZE, f"size is {self.size}, expected 1 to {MAX_SIZE}"),
            (0 <= self.overlap < 1, f"overlap is {self.overlap}, expected 0 to below 1"),
            (0 < len(self.mean) == len(self.std), f"mean has {len(self.mean)} values, std {len(self.std)}"),
            (all(map(math.isfinite, self.mean)), f"mean is {list(self.mean)}, expected finite values"),
            (all(0 < value < math.inf for value in self.std), f"std is {list(self.std)}, expected values above 0"),
            (
                self.bands is None or len(self.bands) == len(self.mean),
                f"bands are {self.bands} for {len(self.mean)} means",
            ),
            (self.bands is None or min(self.bands) >= 1, f"bands are {self.bands}, expected 1 or more"),
            (
                self.scale is None or (all(map(math.isfinite, self.scale)) and self.scale[0] < self.scale[1]),
                f"scale is {self.scale}, expected two numbers of which the first is lower",
            ),
            (
                self.gsd_m is None or GSD_RANGE[0] <= self.gsd_m <= GSD_RANGE[1],
                f"gsd_m is {self.gsd_m}, expected {GSD_RANGE[0]:g} to {GSD_RANGE[1]:g}",
            ),
            (
                self.building_fraction is None or 0 <= self.building_fraction <= 1,
                f"building_fraction is {self.building_fraction}, expected a share",
            ),
        )
        for holds, complaint in checks:
            if not holds:
                raise ValueError(complaint)

    def of_split(self, split: Split) -> tuple[TileRecord, ...]:
        """Return the tiles of one split, in the set's order."""
        return tuple(tile for tile in self.tiles if tile.split == split)

    def image_path(self, tile: TileRecord) -> Path:
        """Return the tile's image: uint8 (bands, size, size), with a mask band where there is no data."""
        return image_path(self.folder, tile.name)

    def mask_path(self, tile: TileRecord) -> Path:
        """Return the tile's mask: uint8 (size, size), 0 background, 1 building, 255 unlabelled."""
        return mask_path(self.folder, tile.name)


def image_path(folder: Path, name: str) -> Path:
    """Return where a set keeps the image of the tile `name`."""
    return folder / "images" / f"{name}.tif"


def mask_path(folder: Path, name: str) -> Path:
    """Return where a set keeps the mask of the tile `name`."""
    return folder / "masks" / f"{name}.tif"


def load_tileset(folder: Path) -> TileSet:
    """Open a finished set, with the split as it stands in `index.gpkg` now.

    Tiles whose row was deleted or emptied there are left out. Raises NoInputError when there is no such folder and
    BadDataError when the set is unfinished, damaged, or lacks files.
    """
    if not is_folder(folder):
        raise NoInputError(f"{one_line(folder)}: no such folder; make it with aerialseg tile")
    tileset = read_tileset(folder)
    if tileset is None:
        raise BadDataError(
            f"{one_line(folder)}: no {MANIFEST}, so this is no finished set of tiles; run aerialseg tile on it (again)"
        )
    splits = read_splits(folder / INDEX)
    kept = tuple(replace(tile, split=splits[tile.name]) for tile in tileset.tiles if tile.name in splits)
    paths = () if tileset.sources is not None else kept
    missing = [
        path for tile in paths for path in (tileset.image_path(tile), tileset.mask_path(tile)) if not is_regular(path)
    ]
    if missing:
        others = f" (and {len(missing) - 1} more files of the set)" if len(missing) > 1 else ""
        raise BadDataError(f"{one_line(missing[0])}: missing{others}; run the same aerialseg tile command again")
    current = hashlib.sha256(json.dumps([tileset.digest, sorted(splits.items())]).encode()).hexdigest()
    return replace(tileset, tiles=kept, digest=current)


def scenes_of_split(folder: Path, split: str) -> tuple[set[str], set[str]]:
    """Return the scenes of a set whose tiles are all of one split, and those that the border of the split cuts.

    Raises as `load_tileset` does.
    """
    splits: dict[str, set[str]] = {}
    for tile in load_tileset(folder).tiles:
        splits.setdefault(tile.scene, set()).add(tile.split)
    whole = {scene for scene, found in splits.items() if found == {split}}
    return whole, {scene for scene, found in splits.items() if split in found} - whole


def read_tileset(folder: Path) -> TileSet | None:
    """Return a set as it was written, before edits in the index and whether or not its files are still there.

    None when there is none; raises BadDataError when its manifest is damaged or means nothing.
    """
    body = read_manifest(folder)
    if body is None:
        return None
    try:
        scenes = {line["name"]: line["digest"] for line in body.get("scenes", ())}
        known = {"sources": None, **body, "folder": str(folder), "content": body["digest"], "scenes": scenes}
        tileset = from_values(TileSet, known)
        check_tiles(tileset.tiles)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadDataError(
            f"{one_line(folder / MANIFEST)}: cannot be used: {one_line(str(error))}; run aerialseg tile again"
        ) from error
    return tileset


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of `tileset.json`, or None when there is none; raises BadDataError when it is damaged."""
    path = folder / MANIFEST
    if not is_regular(path):
        return None
    try:
        body = read_json(path)
        if body["format"] != FORMAT or body["digest"] != _digest(body):
            raise ValueError(f"its digest or format differs from what was written as {FORMAT!r}")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise BadDataError(
            f"{one_line(path)}: damaged or edited: {one_line(str(error))}; remove it and run aerialseg tile again"
        ) from error
    return dict(body)


def write_manifest(folder: Path, body: Mapping[str, Any], tiles: Sequence[TileRecord]) -> None:
    """Write `tileset.json`: `body`, the tiles one a line, and a digest over everything."""
    lines = [to_values(tile) for tile in tiles]
    whole = {"format": FORMAT, **body}
    whole["digest"] = _digest({**whole, "tiles": lines})
    head = json.dumps(whole, indent=2, allow_nan=False).removesuffix("\n}")
    rows = ",\n    ".join(json.dumps(line, allow_nan=False) for line in lines)
    write_text(folder / MANIFEST, f'{head},\n  "tiles": [\n    {rows}\n  ]\n}}\n')


def _digest(body: Mapping[str, Any]) -> str:
    content = {key: value for key, value in body.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_tiles(tiles: Sequence[TileRecord]) -> None:
    """Raise ValueError for a tile whose name, split, shares, window or core cannot be a tile's."""
    for tile in tiles:
        if tile.name in ("", "..") or "/" in tile.name or "\0" in tile.name:
            raise ValueError(f"tile name {tile.name!r}")
        if tile.split not in ("train", "val"):
            raise ValueError(f"split {tile.split!r} of tile {tile.name}")
        if not (0 <= tile.building <= 1 and 0 <= tile.valid <= 1):
            raise ValueError(f"shares {tile.building:g} and {tile.valid:g} of tile {tile.name}")
        (row, col, height, width), (top, left, rows, cols) = tile.window, tile.core
        inside = row <= top < top + rows <= row + height and col <= left < left + cols <= col + width
        if not inside or max(abs(row), abs(col), height, width) >= FURTHEST:
            raise ValueError(f"window {list(tile.window)} with core {list(tile.core)} of tile {tile.name}")


def read_splits(path: Path) -> dict[str, str]:
    """Return tile name -> split as it stands in the file now, without the tiles that are left out.

    Raises BadDataError when the file is missing or damaged, or a split is neither train nor val nor left out.
    """
    name = one_line(path)
    if not is_regular(path):
        raise BadDataError(f"{name}: missing, and the split is kept in it; run the same aerialseg tile command again")
    splits: dict[str, str] = {}
    for tile, text in _read_rows(path):
        if not isinstance(tile, str):
            raise BadDataError(f"{name}: name of a tile is {one_line(repr(tile))[:60]}, expected text")
        split = "" if text is None else text.strip().lower() if isinstance(text, str) else None
        if split is None or split not in ("train", "val", *LEFT_OUT):
            shown = one_line(repr(text))[:60]
            raise BadDataError(f"{name}: split of tile {one_line(str(tile))} is {shown}; expected train, val or empty")
        if split not in LEFT_OUT and splits.setdefault(tile, split) != split:
            raise BadDataError(f"{name}: tile {one_line(str(tile))} is both train and val; keep one of its rows")
    return {tile: split for tile, split in splits.items() if split not in LEFT_OUT}


def write_index(path: Path, tiles: Sequence[TileRecord], boxes: dict[str, GeoBox]) -> None:
    """Write one row per tile, in order, with the outline of its pixels; `boxes` are the scenes' grids by name.

    The outlines are in the scenes' CRS if they share one and in longitude and latitude if not; the tiles of a scene
    without georeferencing have none. A style by split is stored in the file.
    """
    from aerialseg.geo.styles import write_index_style

    crs = common_crs(list(boxes.values()))
    outlines = np.array([_outline(boxes[tile.scene], tile.window, crs) for tile in tiles], dtype=object)
    with staged(path) as temporary:
        with writing_vectors(path):
            write_table(temporary, LAYER, outlines, _columns(tiles), None if crs is None else crs.to_wkt())
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
    """Return the CRS that georeferenced grids share, heights aside, or longitude and latitude; None for no grid."""
    from rasterio.crs import CRS

    found = [box.crs for box in boxes if box.georeferenced and box.crs is not None]
    if not found:
        return None
    return found[0] if all(same_horizontal(crs, found[0]) for crs in found) else CRS.from_epsg(4326)


def _read_rows(path: Path) -> list[tuple[Any, Any]]:
    """Return (name, split) of every row; reads beside a QGIS that has the file open, and on a read-only disk."""
    for immutable in (False, True):
        try:
            with reading(path, LAYER, immutable=immutable) as database:
                return database.execute(f"SELECT name, split FROM {LAYER} ORDER BY rowid").fetchall()
        except sqlite3.Error as error:
            problem = error
    reason = one_line(str(problem))
    raise BadDataError(
        f"{one_line(path)}: cannot be read: {reason}; remove it and run the same aerialseg tile command again"
    ) from problem


def _columns(tiles: Sequence[TileRecord]) -> dict[str, NDArray[np.generic]]:
    texts = {"name": [t.name for t in tiles], "scene": [t.scene for t in tiles], "split": [t.split for t in tiles]}
    windows = zip(("row", "col", "height", "width"), np.array([t.window for t in tiles], dtype=np.int32).T, strict=True)
    shares = {"building": [t.building for t in tiles], "valid": [t.valid for t in tiles]}
    return {
        **{name: np.array(values, dtype=object) for name, values in texts.items()},
        **{name: np.ascontiguousarray(values) for name, values in windows},
        **{name: np.array(values) for name, values in shares.items()},
    }


def _outline(box: GeoBox, window: tuple[int, int, int, int], crs: CRS | None) -> bytes | None:
    """Return what a window (row, col, height, width) has of a scene as a WKB polygon in `crs`, None without place."""
    import shapely
    from rasterio.warp import transform

    if crs is None or box.crs is None or not box.georeferenced:
        return None
    top, left, height, width = window
    bottom, right = min(top + height, box.height), min(left + width, box.width)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    x, y = zip(*(box.transform @ corner for corner in corners), strict=True)
    if box.crs != crs:
        x, y = transform(box.crs, crs, x, y)
    return bytes(shapely.to_wkb(shapely.polygons(list(zip(x, y, strict=True)))))


def find_leaks(tiles: Path, scenes: Iterable[tuple[str, Path]]) -> list[str]:
    """Return warnings: validation tiles that overlap training tiles, and scenes that do.

    `tiles` is a folder of tiles or its index.gpkg; of a scene are given the name that the warning uses and a raster on
    its grid. Raises NoInputError when there is no index, and BadDataError when it cannot be read, holds no training
    tile, or its tiles or a scene have no place on the ground.
    """
    index = tiles / INDEX if is_folder(tiles) else tiles
    if not is_regular(index):
        raise NoInputError(f"{one_line(index)}: no such file; give a folder that aerialseg tile wrote")
    if "train" not in read_splits(index).values():
        raise BadDataError(f"{one_line(index)}: holds no training tile; give the tiles the model was trained on")
    train, leak = read_layer(index, where="split = 'train'"), find_leak(index)
    found = [] if leak is None else [leak]
    for name, raster in scenes:
        with open_raster(raster) as dataset:
            box = GeoBox.of(dataset)
        require_place(one_line(raster), box, [index])
        covered = overlay([train], box).share_of(Window(0, 0, box.width, box.height))
        if covered > LEAST_COVERED:
            found.append(
                f"{one_line(name)}: {covered:.1%} of it lies under training tiles of {one_line(index)}; its score says"
                " nothing of ground the model has never seen"
            )
    return found


def find_leak(index: Path) -> str | None:
    """Return a line that says which validation tiles of a set's `index.gpkg` overlap training tiles; None when none do.

    Tiles without an outline have no place on the ground and are left out. Raises BadDataError when the index cannot be
    read.
    """
    splits = read_splits(index)
    names, scenes, shapes = _read_outlines(index)
    found = np.array([splits.get(name, "") for name in names])
    val, train = (np.flatnonzero((found == split) & ~shapely.is_missing(shapes)) for split in ("val", "train"))
    i, j = shapely.STRtree(shapes[train]).query(shapes[val], predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[val[i]], shapes[train[j]]))
    much = shared > LEAST_SHARED * shapely.area(shapes[val[i]])
    if not much.any():
        return None
    i, j, shared = i[much], j[much], shared[much]
    most = int(np.argmax(shared))
    one, other = scenes[val[i[most]]], scenes[train[j[most]]]
    place = f"within scene {one_line(one)}" if one == other else f"scene {one_line(one)} on scene {one_line(other)}"
    return (
        f"{one_line(index)}: {len(np.unique(i)):,} of {len(val):,} validation tiles lie on the ground of training tiles"
        f" ({place}, for example), so validation scores flatter; give tiles of one ground the same split there, or"
        " clear the split of some, which leaves them out"
    )


def _read_outlines(index: Path) -> tuple[list[str], list[str], NDArray[np.object_]]:
    """Return every row's tile, scene and outline; nothing when the file has no outlines."""
    from pyogrio.raw import read

    require_tables(index)
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # about a database that has none
            meta, _, outlines, columns = read(index, layer=LAYER, columns=["name", "scene"])
    except (RuntimeError, ValueError):  # what pyogrio's errors are
        return [], [], np.empty(0, dtype=object)
    if outlines is None or list(meta["fields"]) != ["name", "scene"]:
        return [], [], np.empty(0, dtype=object)
    shapes = shapely.make_valid(shapely.from_wkb(outlines, on_invalid="ignore"))
    return list(map(str, columns[0])), list(map(str, columns[1])), shapes
