"""Where a set's tiles are read from in training: their own files, or all of them in one file that needs no decoding.

The file is mapped into memory. A record per tile, one after the other: its pixels [size, size, bands], then its labels
[size, size]: 0, 1 and 255 as in the masks, and 254 where there is no data. The table of the tiles comes last, with each
record's checksum, and a SHA-256 of that table, so a file that was cut short has none. It is written under a temporary
name and looked through from end to end whenever it is opened (about 4 GB/s a thread): what cannot be proved whole is
not used.

A cache makes training faster and changes nothing else, so what keeps it from being made is told in a line and the tiles
are read. Two trainings that begin together make it once: the second one waits. What cuts tiles from scenes is imported
only for sets made with --index-only, whose tiles are in no files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING
from zlib import crc32

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from aerialseg.counts import BUILDING
from aerialseg.errors import BadDataError, ConfigError, NoInputError, OutputError, ReadError, StorageError, one_line
from aerialseg.files import (
    is_regular,
    locked,
    open_regular,
    prepare_output_folder,
    remove,
    require_space,
    resolved,
    staged,
    sweep,
)
from aerialseg.geo.digest import content_stamp, file_stamp
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.training.batches import wait_for
from aerialseg.training.losses import IGNORE
from aerialseg.values import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from aerialseg.config.sections import DataSection
    from aerialseg.geo.tiles.plan import PlannedTile, TileJob
    from aerialseg.geo.tiles.tileset import TileRecord, TileSet
    from aerialseg.progress import Progress
    from aerialseg.training.batches import Arrays, Readers

FORMAT = "aerialseg training cache 1"
NODATA = 254
TAIL = struct.Struct("<Q32s")
"""At the very end: bytes of the table, and their SHA-256."""
FOLDER = "training-cache"
"""In the folder of the tiles."""
SUFFIX = ".tiles"
TABLE_BYTES = 400
"""More than a tile's line in the cache's table."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a cache has to hold to be used; `stamps` are the tiles in order, with what their sources look like now."""

    digest: str
    """Of the set's manifest."""
    size: int
    bands: int
    stamps: Mapping[str, str]

    @property
    def record(self) -> int:
        """Bytes of a tile."""
        return self.size**2 * (self.bands + 1)


@dataclass(frozen=True, slots=True)
class ReadJob:
    """What one thread reads, or reads and writes, at once."""

    name: str
    """For messages."""
    call: Callable[[], Any]


class TileCache:
    """Tiles by name, as views of the mapped file; safe in any number of threads."""

    def __init__(self, view: mmap.mmap, names: Iterable[str], contents: Contents) -> None:
        self._numbers = {name: number for number, name in enumerate(names)}
        side, bands, record = contents.size, contents.bands, contents.record
        count = len(self._numbers)
        self._pixels: NDArray[np.uint8] = np.ndarray(
            (count, side, side, bands), np.uint8, view, 0, (record, side * bands, bands, 1)
        )
        self._labels: NDArray[np.uint8] = np.ndarray(
            (count, side, side), np.uint8, view, side * side * bands, (record, side, 1)
        )

    def square(self, name: str, row: int, col: int, side: int) -> Arrays:
        """Return pixels [side, side, bands], target and valid [side, side] of a square inside a tile; do not write."""
        place = self._numbers[name], slice(row, row + side), slice(col, col + side)
        labels = self._labels[place]
        valid = labels != NODATA
        target = labels if valid.all() else labels | ~valid  # 254 | 1 is 255: ignored
        return self._pixels[place], target, valid


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
            remove(path)
            sweep(path.parent)
            require_space(path.parent, needed)
            tiles_in_all = f"{len(contents.stamps):,} tiles, {needed / 1e6:,.0f} MB"
            progress.say(f"{one_line(path)}: {found}; packing {tiles_in_all}, once")
            reads = read_files(tiles) if tiles.sources is None else read_scenes(tiles)
            write_cache(path, contents, reads, readers, timeout_s=section.timeout_s, progress=progress)
            _require_unchanged(tiles, contents, path)
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


def _require_unchanged(tiles: TileSet, contents: Contents, path: Path) -> None:
    """Remove the cache and raise BadDataError when a file it was packed from no longer looks as it did before."""
    now = stamps(tiles)
    changed = next((name for name, look in contents.stamps.items() if now[name] != look), None)
    if changed is not None:
        remove(path)
        raise BadDataError(f"{one_line(tiles.folder)}: tile {one_line(changed)} changed while it was packed; run again")


def cache_path(tiles: TileSet, place: str) -> Path:
    """Return the file that holds the set's tiles; a folder outside the set may serve several sets."""
    if place == "auto":
        return tiles.folder / FOLDER / f"all{SUFFIX}"
    folder = resolved(tiles.folder)
    return Path(place) / FOLDER / f"{folder.name[:100]}-{hashlib.sha256(bytes(folder)).hexdigest()[:12]}{SUFFIX}"


def stamps(tiles: TileSet) -> dict[str, str]:
    """Return tile -> what the files it is read from look like from outside: sizes and times of change.

    What lies beside a scene or its labels and says where they are or what is masked counts too. A tile that was edited
    in place has another stamp than the one that was packed. Times are only compared for being equal, so a clock that is
    wrong does no harm. Raises NoInputError for a file that is missing.
    """
    if tiles.sources is None:
        return {tile.name: _stamp(file_stamp, tiles.image_path(tile), tiles.mask_path(tile)) for tile in tiles.tiles}
    from aerialseg.geo.tiles.cut import source_files

    by_scene = {scene: _stamp(content_stamp, *paths) for scene, paths in source_files(tiles).items()}
    return {tile.name: by_scene[tile.scene] for tile in tiles.tiles}


def open_cache(
    path: Path, wanted: Contents, readers: Readers, *, timeout_s: float, progress: Progress
) -> TileCache | str:
    """Map the file if it holds what is wanted and every byte is as it was written, or return why not."""
    if not is_regular(path):
        return "is not there"
    try:
        with open_regular(path) as stream:
            table = _read_table(stream)
            held = {name: stamp for name, stamp, _ in table["tiles"]}
            expected = [FORMAT, wanted.digest, wanted.size, wanted.bands]
            if [table[key] for key in ("format", "digest", "size", "bands")] == expected and (
                wanted.stamps.items() <= held.items()
            ):
                crcs = [crc for _, _, crc in table["tiles"]]
                jobs = [
                    ReadJob(str(path), partial(_check_record, path, number, wanted.record, crc))
                    for number, crc in enumerate(crcs)
                ]
                for _ in read_all("checking", jobs, readers, timeout_s=timeout_s, progress=progress):
                    pass
                view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                return TileCache(view, held, wanted)
    except (ReadError, ValueError, KeyError, TypeError, OSError) as error:
        return f"is damaged: {one_line(str(error))}"
    return "holds other tiles"


def write_cache(
    path: Path, contents: Contents, reads: Sequence[ReadJob], readers: Readers, *, timeout_s: float, progress: Progress
) -> None:
    """Write the tiles of all `reads`, which the threads of `readers` do; raises what they and `staged` raise.

    Each call of `reads` returns a generator of tiles' names and their pixels [size, size, bands], target and valid
    [size, size].
    """
    numbers = {name: number for number, name in enumerate(contents.stamps)}
    with staged(path) as temporary:
        writes = [ReadJob(job.name, partial(_write_records, temporary, numbers, job.call)) for job in reads]
        sums = {
            name: crc
            for written in read_all("packing", writes, readers, timeout_s=timeout_s, progress=progress)
            for name, crc in written.items()
        }
        table = {
            "format": FORMAT, "digest": contents.digest, "size": contents.size, "bands": contents.bands,
            "tiles": [[name, stamp, sums[name]] for name, stamp in contents.stamps.items()],
        }  # fmt: skip
        text = json.dumps(table).encode()
        with temporary.open("ab") as stream:
            stream.write(text + TAIL.pack(len(text), hashlib.sha256(text).digest()))


def read_all(
    label: str, jobs: Sequence[ReadJob], readers: Readers, *, timeout_s: float, progress: Progress
) -> Generator[Any, None, None]:
    """Run the calls of `jobs` in the threads of `readers` and yield their results in order; a stop may come between."""
    futures = [readers.submit(job.call) for job in jobs]
    progress.start(label, len(jobs), "piece")
    try:
        for job, future in zip(jobs, futures, strict=True):
            wait_for([job], [future], timeout_s, lambda: progress.advance(0))
            yield future.result()
            progress.advance(1, job.name)
    finally:
        for future in futures:
            future.cancel()
    progress.finish()


def read_files(tiles: TileSet) -> list[ReadJob]:
    """Return the reading of every tile from its two files."""
    whole = Window(0, 0, tiles.size, tiles.size)

    def read(tile: TileRecord) -> Generator[tuple[str, Arrays], None, None]:
        yield tile.name, read_square(tiles, tile, whole)

    return [ReadJob(tile.name, partial(read, tile)) for tile in tiles.tiles]


def read_scenes(tiles: TileSet) -> list[ReadJob]:
    """Return the reading of all tiles from their scenes, row by row; the first of a scene checks that it is unchanged.

    Raises BadDataError or NoInputError naming a scene that cannot be read any more.
    """
    from aerialseg.geo.tiles.cut import check_unchanged, padded, plan_again, read_tiles, rows_of

    names = {tile.name for tile in tiles.tiles}

    def read(job: TileJob, row: Sequence[PlannedTile], first: bool) -> Generator[tuple[str, Arrays], None, None]:
        if first:
            check_unchanged(tiles, job)
        with closing(read_tiles(job, [planned for planned in row if planned.name in names])) as kept:
            for planned, arrays in kept:
                pixels, valid, labels = padded(arrays, tiles.size)
                yield planned.name, (pixels.transpose(1, 2, 0), np.where(valid, labels, np.uint8(IGNORE)), valid)

    return [
        ReadJob(str(job.scene.image), partial(read, job, row, number == 0))
        for job in plan_again(tiles)
        for number, row in enumerate(rows_of(job))
    ]


def read_square(tiles: TileSet, tile: TileRecord, window: Window) -> Arrays:
    """Read a window of a tile's files: pixels [rows, cols, bands], target and valid [rows, cols].

    Where there is no data, nothing is labelled. Raises BadDataError for a damaged file, or for a mask that holds
    anything but 0, 1 and 255.
    """
    pixels, valid = _read_image(tiles.image_path(tile), window, (tiles.size, len(tiles.mean)))
    target = _read_mask(tiles.mask_path(tile), window, tiles.size)
    target[~valid] = IGNORE
    return pixels, target, valid


def _stamp(look: Callable[[Path], str], *paths: Path) -> str:
    try:
        return " ".join(map(look, paths))
    except OSError as error:
        raise NoInputError(f"{one_line(error.filename)}: {error.strerror}; run aerialseg tile again") from error


def _read_table(stream: IO[bytes]) -> dict[str, Any]:
    """Return the table at the end of a cache; raises ValueError when it is not whole or not where it should be."""
    size = stream.seek(0, os.SEEK_END)
    length, digest = TAIL.unpack(_read_at(stream, max(0, size - TAIL.size), TAIL.size).rjust(TAIL.size, b"\0"))
    begin = size - TAIL.size - length
    text = _read_at(stream, begin, length) if begin >= 0 else b""
    if hashlib.sha256(text).digest() != digest:
        raise ValueError("its end is missing")
    table: dict[str, Any] = parse_json(text)
    if begin != len(table["tiles"]) * table["size"] ** 2 * (table["bands"] + 1):
        raise ValueError("its length is not that of its tiles")
    return table


def _read_at(stream: IO[bytes], place: int, size: int) -> bytes:
    stream.seek(place)
    return stream.read(size)


def _check_record(path: Path, number: int, size: int, crc: int) -> None:
    """Read one record and compare it with its checksum: an I/O error comes as one, which the map would not give."""
    with path.open("rb", buffering=0) as stream:
        content = _read_at(stream, number * size, size)
    if len(content) != size or crc32(content) != crc:
        raise ReadError(f"tile {number + 1} is not as it was written")


def _write_records(
    path: Path, numbers: Mapping[str, int], read: Callable[[], Generator[tuple[str, Arrays], None, None]]
) -> dict[str, int]:
    """Put the tiles that `read` yields in their places, `numbers`, and return their checksums.

    The file is opened here: after a stop the name is gone, and nothing is written anywhere.
    """
    sums = {}
    with path.open("rb+") as stream, closing(read()) as tiles:
        for name, (pixels, target, valid) in tiles:
            content = pixels.tobytes() + np.where(valid, target, np.uint8(NODATA)).tobytes()
            stream.seek(numbers[name] * len(content))
            stream.write(content)
            sums[name] = crc32(content)
    return sums


def _read_image(path: Path, window: Window, made: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read pixels [rows, cols, bands] and where there is data, [rows, cols]; `made` are the tile's side and bands."""
    with open_raster(path) as source, raster_errors(path):
        _require(path, source, *made)
        pixels = np.empty((window.height, window.width, source.count), np.uint8)
        source.read(out=pixels.transpose(2, 0, 1), window=window)  # as the file is laid out: no turning afterwards
        if source.mask_flag_enums[0] == [MaskFlags.all_valid]:
            return pixels, np.ones(pixels.shape[:2], np.bool_)
        return pixels, source.dataset_mask(window=window) != 0


def _read_mask(path: Path, window: Window, side: int) -> NDArray[np.uint8]:
    with open_raster(path) as source, raster_errors(path):
        _require(path, source, side, 1)
        mask: NDArray[np.uint8] = source.read(1, window=window)
    if not ((mask <= BUILDING) | (mask == IGNORE)).all():
        values = [int(value) for value in np.unique(mask) if value not in (0, BUILDING, IGNORE)]
        raise BadDataError(
            f"{one_line(path)}: holds {', '.join(map(str, values[:8]))}; masks of tiles hold 0, 1 (building) and 255"
            " (ignored) only; cut the tiles again, with --building-values"
        )
    return mask


def _require(path: Path, source: DatasetReader, side: int, bands: int) -> None:
    """Raise BadDataError for a file that is not what its set says of all of them."""
    found, expected = (source.height, source.width, source.count), (side, side, bands)
    if found != expected:
        rows, cols, count = found
        raise BadDataError(
            f"{one_line(path)}: is {rows}x{cols} px with {count} bands, its set has tiles of {side}x{side} px with"
            f" {bands}; run the same aerialseg tile command again"
        )
