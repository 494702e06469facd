"""A folder of tiles that is ready to train on: what is in it, and how to open it.

`tileset.json` is written last, so a folder without it is unfinished. The split is not taken from there but from
`index.gpkg`, where people edit it. No pixels are read here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aerialseg.errors import BadDataError, NoInputError, one_line
from aerialseg.files import write_text
from aerialseg.geo.tiles.index import read_splits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = "aerialseg tiles 1"
MANIFEST = "tileset.json"
INDEX = "index.gpkg"
Split = Literal["train", "val"]


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
    """The manifest's own digest: what the tiles hold, whatever side they are on now."""
    sources: Mapping[str, Any] | None
    """What the tiles are read from (sources.py) in a set without files of its own; None in one with them."""
    scenes: Mapping[str, str]
    """Scene -> a digest of everything its tiles depend on."""

    def of_split(self, split: Split) -> tuple[TileRecord, ...]:
        """Return the tiles of one side of the split, in the set's order."""
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
    if not folder.is_dir():
        raise NoInputError(f"{one_line(folder)}: no such folder; make it with aerialseg tile")
    body = read_manifest(folder)
    if body is None:
        raise BadDataError(
            f"{one_line(folder)}: no {MANIFEST}, so this is no finished set of tiles; run aerialseg tile on it (again)"
        )
    tileset = _parse(folder, body)
    splits = read_splits(folder / INDEX)
    kept = tuple(replace(tile, split=splits[tile.name]) for tile in tileset.tiles if tile.name in splits)
    paths = () if tileset.sources is not None else kept
    missing = [
        path for tile in paths for path in (tileset.image_path(tile), tileset.mask_path(tile)) if not path.is_file()
    ]
    if missing:
        others = f" (and {len(missing) - 1} more files of the set)" if len(missing) > 1 else ""
        raise BadDataError(f"{one_line(missing[0])}: missing{others}; run the same aerialseg tile command again")
    current = hashlib.sha256(json.dumps([tileset.digest, sorted(splits.items())]).encode()).hexdigest()
    return replace(tileset, tiles=kept, digest=current)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of `tileset.json`, or None when there is none; raises BadDataError when it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT or body["digest"] != _digest(body):
            raise ValueError(f"its digest or format differs from what was written as {FORMAT!r}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BadDataError(
            f"{one_line(path)}: damaged or edited: {one_line(str(error))}; remove it and run aerialseg tile again"
        ) from error
    return dict(body)


def write_manifest(folder: Path, body: Mapping[str, Any], tiles: Sequence[TileRecord]) -> None:
    """Write `tileset.json`: `body`, the tiles one a line, and a digest over everything."""
    lines = [tile_to_json(tile) for tile in tiles]
    whole = {"format": FORMAT, **body}
    whole["digest"] = _digest({**whole, "tiles": lines})
    head = json.dumps(whole, indent=2, allow_nan=False).removesuffix("\n}")
    rows = ",\n    ".join(json.dumps(line, allow_nan=False) for line in lines)
    write_text(folder / MANIFEST, f'{head},\n  "tiles": [\n    {rows}\n  ]\n}}\n')


def _digest(body: Mapping[str, Any]) -> str:
    content = {key: value for key, value in body.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tile_to_json(tile: TileRecord) -> dict[str, Any]:
    """Return a tile as one line of JSON will hold it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(tile).items()}


def tile_from_json(line: Mapping[str, Any]) -> TileRecord:
    """Return the tile of one line of JSON; raises ValueError for a name that is no plain file's."""
    if line["name"] in ("", "..") or "/" in line["name"]:
        raise ValueError(f"tile name {line['name']!r}")
    values: dict[str, Any] = {field.name: line[field.name] for field in fields(TileRecord)}
    row, col, height, width = values.pop("window")
    top, left, rows, cols = values.pop("core")
    return TileRecord(window=(row, col, height, width), core=(top, left, rows, cols), **values)


def _parse(folder: Path, body: Mapping[str, Any]) -> TileSet:
    try:
        return TileSet(
            folder=folder,
            size=body["size"],
            overlap=body["overlap"],
            bands=None if body["bands"] is None else tuple(body["bands"]),
            scale=None if body["scale"] is None else (body["scale"][0], body["scale"][1]),
            mean=tuple(body["mean"]),
            std=tuple(body["std"]),
            gsd_m=body["gsd_m"],
            tiles=tuple(tile_from_json(line) for line in body["tiles"]),
            digest=body["digest"],
            building_fraction=body["building_fraction"],
            content=body["digest"],
            sources=body.get("sources"),
            scenes={line["name"]: line["digest"] for line in body.get("scenes", ())},
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise BadDataError(
            f"{one_line(folder / MANIFEST)}: {error} is missing or wrong; run aerialseg tile again"
        ) from error
