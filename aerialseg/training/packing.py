"""Where a set's tiles are read from in training: their own files, or a cache, which is made here when there is none.

A cache makes training faster and changes nothing else, so what keeps it from being made is told in a line and the files
are read. Two trainings that begin together make it once: the second one waits.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rasterio.windows import Window

from aerialseg.errors import BadDataError, OutputError, StorageError, one_line
from aerialseg.files import locked, prepare_output_folder, require_space, sweep
from aerialseg.training.cache import Contents, Piece, TileCache, open_cache, write_cache
from aerialseg.training.dataset import read_square

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aerialseg.config import DataSection
    from aerialseg.geo.tileset import TileRecord, TileSet
    from aerialseg.progress import Progress
    from aerialseg.training.batches import Arrays, Readers

FOLDER = "training-cache"
"""In the folder of the tiles."""
SUFFIX = ".tiles"
TABLE_BYTES = 400
"""More than a tile's line in the cache's table."""


def open_tiles(tiles: TileSet, section: DataSection, readers: Readers, progress: Progress) -> TileCache | None:
    """Return the set's cache, made now if need be, or None when the tiles' own files are to be read."""
    if section.cache == "off":
        return None
    path = cache_path(tiles, section.cache)
    contents = Contents(tiles.content, tiles.size, len(tiles.mean), stamps(tiles))
    find = partial(open_cache, path, contents, readers, timeout_s=section.timeout_s, progress=progress)
    try:
        if isinstance(found := find(), TileCache):
            return found
        prepare_output_folder(path.parent)
        with locked(path.parent, waiting=partial(progress.advance, 0)):
            if isinstance(found := find(), TileCache):
                return found  # somebody else made it meanwhile
            needed = len(contents.stamps) * (contents.record + TABLE_BYTES)
            path.unlink(missing_ok=True)
            sweep(path.parent)
            require_space(path.parent, needed)
            tiles_in_all = f"{len(contents.stamps):,} tiles, {needed / 1e6:,.0f} MB"
            progress.say(f"{one_line(path)}: {found}; packing {tiles_in_all}, once")
            pieces = pieces_of_files(tiles)
            write_cache(path, contents, pieces, readers, timeout_s=section.timeout_s, progress=progress)
        if isinstance(found := find(), TileCache):
            return found
        raise StorageError(f"{one_line(path)}: {found}, though just written")
    except (OutputError, StorageError) as error:
        reason = str(error).removeprefix(f"{one_line(path.parent)}: ").partition(";")[0]
        progress.say(
            f"{one_line(path.parent)}: no cache ({reason}), so tiles are read from their files; data.cache names"
            " another folder"
        )
        return None


def cache_path(tiles: TileSet, place: str) -> Path:
    """Return the file that holds the set's tiles; a folder outside the set may serve several sets."""
    if place == "auto":
        return tiles.folder / FOLDER / f"all{SUFFIX}"
    folder = tiles.folder.resolve()
    return Path(place) / FOLDER / f"{folder.name[:100]}-{hashlib.sha256(bytes(folder)).hexdigest()[:12]}{SUFFIX}"


def stamps(tiles: TileSet) -> dict[str, str]:
    """Return tile -> what its files look like from outside: sizes and times of change; raises BadDataError.

    A tile that was edited in place has another stamp than the one that was packed. Times are only compared for being
    equal, so a clock that is wrong does no harm.
    """
    return {tile.name: _stamp(tiles.image_path(tile), tiles.mask_path(tile)) for tile in tiles.tiles}


def pieces_of_files(tiles: TileSet) -> list[Piece]:
    """Return the reading of every tile from its two files."""
    whole = Window(0, 0, tiles.size, tiles.size)

    def read(tile: TileRecord) -> Iterator[tuple[str, Arrays]]:
        yield tile.name, read_square(tiles, tile, whole)

    return [Piece(tile.name, partial(read, tile)) for tile in tiles.tiles]


def _stamp(*paths: Path) -> str:
    try:
        found = [path.stat() for path in paths]
    except OSError as error:
        raise BadDataError(
            f"{one_line(error.filename)}: {error.strerror}; run the same aerialseg tile command again"
        ) from error
    return " ".join(f"{status.st_size}:{status.st_mtime_ns}" for status in found)
