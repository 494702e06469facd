"""All tiles of a set in one file, as bytes that need no decoding, mapped into memory: what training reads.

A record per tile, one after the other: its pixels [size, size, bands], then its labels [size, size]: 0, 1 and 255 as in
the masks, and 254 where there is no data. The table of the tiles comes last, with each record's checksum, and a SHA-256
of that table, so a file that was cut short has none. The file is written under a temporary name and looked through from
end to end whenever it is opened (about 4 GB/s a thread): what cannot be proved whole is not used.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from aerialseg.errors import ReadError, one_line
from aerialseg.files import staged
from aerialseg.training.batches import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from aerialseg.progress import Progress
    from aerialseg.training.batches import Arrays, Readers

FORMAT = "aerialseg training cache 1"
NODATA = 254
TAIL = struct.Struct("<Q32s")
"""At the very end: bytes of the table, and their SHA-256."""


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
class Piece:
    """Tiles that are read together, by one thread."""

    name: str
    """For messages."""
    read: Callable[[], Generator[tuple[str, Arrays], None, None]]
    """Yields tiles' names and their pixels [size, size, bands], target and valid [size, size]."""


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


def open_cache(
    path: Path, wanted: Contents, readers: Readers, *, timeout_s: float, progress: Progress
) -> TileCache | str:
    """Map the file if it holds what is wanted and every byte is as it was written, or return why not."""
    if not path.is_file():
        return "is not there"
    try:
        with path.open("rb") as stream:
            table = _read_table(stream.fileno())
            held = {name: stamp for name, stamp, _ in table["tiles"]}
            expected = [FORMAT, wanted.digest, wanted.size, wanted.bands]
            if [table[key] for key in ("format", "digest", "size", "bands")] == expected and (
                wanted.stamps.items() <= held.items()
            ):
                pieces = [_Check(path, number, wanted.record, crc) for number, (_, _, crc) in enumerate(table["tiles"])]
                for _ in read_all("checking", pieces, readers, timeout_s=timeout_s, progress=progress):
                    pass
                view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
                return TileCache(view, held, wanted)
    except (ReadError, ValueError, KeyError, TypeError, OSError) as error:
        return f"is damaged: {one_line(str(error))}"
    return "holds other tiles"


def write_cache(
    path: Path, contents: Contents, pieces: Sequence[Piece], readers: Readers, *, timeout_s: float, progress: Progress
) -> None:
    """Write the tiles of all pieces, read by the threads of `readers`; raises what `Piece.read` and `staged` raise."""
    numbers = {name: number for number, name in enumerate(contents.stamps)}
    with staged(path) as temporary:
        writes = [_Write(temporary, numbers, piece) for piece in pieces]
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
    label: str, calls: Sequence[_Check | _Write], readers: Readers, *, timeout_s: float, progress: Progress
) -> Generator[Any, None, None]:
    """Run calls in the threads of `readers` and yield their results in order; a stop is heard meanwhile."""
    futures = [readers.submit(call) for call in calls]
    progress.start(label, len(calls), "piece")
    try:
        for call, future in zip(calls, futures, strict=True):
            wait_for([call], [future], timeout_s, lambda: progress.advance(0))
            yield future.result()
            progress.advance(1, call.name)
    finally:
        for future in futures:
            future.cancel()
    progress.finish()


@dataclass(frozen=True, slots=True)
class _Check:
    """Reads one record and compares it with its checksum: an I/O error comes as one, which the map would not give."""

    path: Path
    number: int
    record: int
    crc: int

    @property
    def name(self) -> str:
        return str(self.path)

    def __call__(self) -> None:
        with self.path.open("rb", buffering=0) as stream:
            content = os.pread(stream.fileno(), self.record, self.number * self.record)
        if len(content) != self.record or crc32(content) != self.crc:
            raise ReadError(f"tile {self.number + 1} is not as it was written")


@dataclass(frozen=True, slots=True)
class _Write:
    """Puts the tiles of one piece in their places and returns their checksums.

    It opens the file itself: after a stop the name is gone, and nothing is written anywhere.
    """

    path: Path
    numbers: Mapping[str, int]
    piece: Piece

    @property
    def name(self) -> str:
        return self.piece.name

    def __call__(self) -> dict[str, int]:
        sums = {}
        with self.path.open("rb+") as stream, closing(self.piece.read()) as tiles:
            for name, (pixels, target, valid) in tiles:
                content = pixels.tobytes() + np.where(valid, target, np.uint8(NODATA)).tobytes()
                stream.seek(self.numbers[name] * len(content))
                stream.write(content)
                sums[name] = crc32(content)
        return sums


def _read_table(descriptor: int) -> dict[str, Any]:
    """Return the table at the end of a cache; raises ValueError when it is not whole or not where it should be."""
    size = os.fstat(descriptor).st_size
    length, digest = TAIL.unpack(os.pread(descriptor, TAIL.size, max(0, size - TAIL.size)).rjust(TAIL.size, b"\0"))
    begin = size - TAIL.size - length
    text = os.pread(descriptor, length, begin) if begin >= 0 else b""
    if hashlib.sha256(text).digest() != digest:
        raise ValueError("its end is missing")
    table: dict[str, Any] = json.loads(text)
    if begin != len(table["tiles"]) * table["size"] ** 2 * (table["bands"] + 1):
        raise ValueError("its length is not that of its tiles")
    return table
