"""Where a set's tiles are read from in training: their own files, or a cache, which is made here when there is none.

A cache makes training faster and changes nothing else, so what keeps it from being made is told in a line and the files
are read. Two trainings that begin together make it once: the second one waits.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from aerialseg.errors import ConfigError, NoInputError, OutputError, StorageError, one_line
from aerialseg.files import locked, prepare_output_folder, require_space, sweep
from aerialseg.geo.digest import content_stamp, file_stamp
from aerialseg.geo.tiles.cut import padded, read_tiles, rows_of
from aerialseg.geo.tiles.sources import check_unchanged, plan_again, source_files
from aerialseg.training.cache import Contents, Piece, TileCache, open_cache, write_cache
from aerialseg.training.dataset import read_square
from aerialseg.training.losses import IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from aerialseg.config import DataSection
    from aerialseg.geo.tiles.plan import Job, PlannedTile
    from aerialseg.geo.tiles.tileset import TileRecord, TileSet
    from aerialseg.progress import Progress
    from aerialseg.training.batches import Arrays, Readers

FOLDER = "training-cache"
"""In the folder of the tiles."""
SUFFIX = ".tiles"
TABLE_BYTES = 400
"""More than a tile's line in the cache's table."""


def open_tiles(tiles: TileSet, section: DataSection, readers: Readers, progress: Progress) -> TileCache | None:
    """Return the set's cache, made now if need be, or None when the tiles' own files are to be read."""
    if section.cache == "off" and tiles.sources is None:
        return None
    if section.cache == "off":
        raise ConfigError(
            f"data.cache off: {one_line(tiles.folder)} was made with --index-only, so its tiles are nowhere else; say"
            " auto, or a folder"
        )
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
            pieces = pieces_of_files(tiles) if tiles.sources is None else pieces_of_scenes(tiles)
            write_cache(path, contents, pieces, readers, timeout_s=section.timeout_s, progress=progress)
        if isinstance(found := find(), TileCache):
            return found
        raise StorageError(f"{one_line(path)}: {found}, though just written")
    except (OutputError, StorageError) as error:
        if tiles.sources is not None:
            raise
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
    """Return tile -> what the files it is read from look like from outside: sizes and times of change.

    What lies beside a scene or its labels and says where they are or what is masked counts too. A tile that was edited
    in place has another stamp than the one that was packed. Times are only compared for being equal, so a clock that is
    wrong does no harm. Raises NoInputError for a file that is missing.
    """
    if tiles.sources is None:
        return {tile.name: _stamp(file_stamp, tiles.image_path(tile), tiles.mask_path(tile)) for tile in tiles.tiles}
    by_scene = {scene: _stamp(content_stamp, *paths) for scene, paths in source_files(tiles).items()}
    return {tile.name: by_scene[tile.scene] for tile in tiles.tiles}


def pieces_of_files(tiles: TileSet) -> list[Piece]:
    """Return the reading of every tile from its two files."""
    whole = Window(0, 0, tiles.size, tiles.size)

    def read(tile: TileRecord) -> Generator[tuple[str, Arrays], None, None]:
        yield tile.name, read_square(tiles, tile, whole)

    return [Piece(tile.name, partial(read, tile)) for tile in tiles.tiles]


def pieces_of_scenes(tiles: TileSet) -> list[Piece]:
    """Return the reading of all tiles from their scenes, row by row; the first of a scene checks that it is unchanged.

    Raises BadDataError or NoInputError naming a scene that cannot be read any more.
    """
    names = {tile.name for tile in tiles.tiles}

    def read(job: Job, row: Sequence[PlannedTile], first: bool) -> Generator[tuple[str, Arrays], None, None]:
        if first:
            check_unchanged(tiles, job)
        with closing(read_tiles(job, [planned for planned in row if planned.name in names])) as kept:
            for planned, arrays in kept:
                pixels, valid, labels = padded(arrays, tiles.size)
                yield planned.name, (pixels.transpose(1, 2, 0), np.where(valid, labels, np.uint8(IGNORE)), valid)

    return [
        Piece(str(job.scene.image), partial(read, job, row, number == 0))
        for job in plan_again(tiles)
        for number, row in enumerate(rows_of(job))
    ]


def _stamp(look: Callable[[Path], str], *paths: Path) -> str:
    try:
        return " ".join(map(look, paths))
    except OSError as error:
        raise NoInputError(f"{one_line(error.filename)}: {error.strerror}; run aerialseg tile again") from error
