"""A scene's finished rows while it is being predicted, by however many tasks; from them the scene is finished.

Each task writes a file of its own: a head that says from what the strips are made, the settings that decide their last
digits, then the strips of its bands as they come, each with a checksum. A run that was killed goes on with what is
there, whoever wrote it. GDAL plays no part: a GeoTIFF whose writer was killed reads as zeros, and torn bytes are found
here. What the strips become is `outputs`' business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import struct
import zlib
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import IO, TYPE_CHECKING

import numpy as np

from aerialseg import system
from aerialseg.errors import StorageError, one_line
from aerialseg.files import TEMPORARY, open_regular, output_error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.prediction.engine import Strip

SUFFIX = ".part"
MAGIC = b"aerialseg strips\n"
UNKNOWN = bytes(32)
HEAD = struct.Struct("<17s32sII")
"""Magic, key, width of the scene, planes."""
RECORD = struct.Struct("<III")
"""First row, rows, CRC-32 of these two and of the pixels that follow: uint8 [planes, rows, width]."""
PLACE = struct.Struct("<II")
NOTE = 0xFFFFFFFF
"""In place of a first row: what follows is not pixels but so many bytes of JSON, the settings.

A file begins with it; earlier versions wrote none, and took their checksums over pixels alone.
"""
LONGEST_NOTE = 1 << 16


@dataclass(frozen=True, slots=True)
class ExactSettings:
    """What promises equal bytes, beside the done-key that promises equal pixels up to their last digits."""

    batch: int
    """Windows that really ran together."""
    device: str
    """The type, and what the card is called: never which of several it is."""
    precision: str
    compiled: bool
    torch: str
    threads: int
    setting: int = 0
    """What `batch` was bounded by, where a group has fewer windows; in no key."""
    asked: int | None = None
    """The batch that the user asked for, of which memory may have left less; in no key."""

    def digest(self, key: str) -> bytes:
        """Return the exact key of rows with this done-key."""
        exact = key, self.batch, self.device, self.precision, self.compiled, (self.torch, self.threads)
        return hashlib.sha256(repr(exact).encode()).digest()


@dataclass(frozen=True, slots=True)
class Record:
    """A strip in a file."""

    path: Path
    offset: int
    row: int
    rows: int
    checksum: int
    begun: int
    """The checksum of what stands before the pixels."""

    def is_sound(self, pixels: bytes) -> bool:
        """Return whether the pixels are those that were written, and for this place."""
        return zlib.crc32(pixels, self.begun) == self.checksum


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Those rows of a scene that were made from one exact key, in all files of its tasks in one folder."""

    out: Path
    name: str
    height: int
    width: int
    planes: int = 1
    """How many of the engine's planes a strip has, quantised."""
    key: bytes = UNKNOWN

    def files(self) -> list[Path]:
        """Return the files of all tasks, whatever their key is."""
        return sorted(self.out.glob(f"{TEMPORARY}{_mark(self.name)}*{SUFFIX}"))

    def begun(self) -> dict[bytes, ExactSettings | None]:
        """Return the exact keys that files tell, and the settings beside them where they tell these, too."""
        found: dict[bytes, ExactSettings | None] = {}
        for path in self.files():
            with suppress(OSError), open_regular(path) as stream:
                head = stream.read(HEAD.size)
                key = head[len(MAGIC) :][:32]
                if len(head) == HEAD.size and key != UNKNOWN and head == self._head(key):
                    found[key] = found.get(key) or _read_note(stream)
        return found

    def there(self, first: int = 0, stop: int = 0) -> NDArray[np.bool_]:
        """Return which of the scene's rows are there, bool [height]; rows [first, stop) have right checksums, too."""
        there = np.zeros(self.height, dtype=np.bool_)
        with ExitStack() as stack:
            read = _reader(stack)
            for record in self._records():
                checked = record.row < stop and record.row + record.rows > first
                if not checked or record.is_sound(read(record, self._size(record.rows))):
                    there[record.row : record.row + record.rows] = True
        return there

    def begin(self) -> Path:
        """Make an empty file for a task, under a name that is nobody else's, and return its path."""
        path = self.out / f"{TEMPORARY}{_mark(self.name)}-{secrets.token_hex(6)}{SUFFIX}"
        try:
            path.touch(exist_ok=False)
        except OSError as error:
            raise output_error(path, error) from error
        return path

    def write(
        self, path: Path, key: Future[bytes], settings: ExactSettings | None = None
    ) -> Generator[None, Strip | None]:
        """Append the strips that are sent to a task's file; runs in the writer's thread.

        The key goes into the head as soon as it is known: hashing a scene takes as long as reading it.
        """
        told = False
        try:
            with open_regular(path, "ab") as stream:
                if not stream.seek(0, os.SEEK_END):
                    stream.write(self._head(UNKNOWN))
                    note = json.dumps(settings and dataclasses.asdict(settings)).encode()
                    stream.write(RECORD.pack(NOTE, len(note), zlib.crc32(note)) + note)
                while (strip := (yield)) is not None:
                    planes = np.ascontiguousarray(strip.planes())
                    begun = zlib.crc32(PLACE.pack(strip.row, planes.shape[1]))
                    stream.write(RECORD.pack(strip.row, planes.shape[1], zlib.crc32(planes.data, begun)))
                    stream.write(planes.data)
                    stream.flush()
                    if not told and key.done() and key.exception() is None:
                        told = True
                        self.tell(path, key.result())
        except OSError as error:
            raise output_error(path, error) from error

    def tell(self, path: Path, key: bytes) -> None:
        """Write the exact key into a task's file, which counts from then on, unless the scene was finished without."""
        try:
            with suppress(FileNotFoundError), open_regular(path, "r+b") as stream:
                stream.write(self._head(key))
        except OSError as error:
            raise output_error(path, error) from error

    def strips(self, plane: int = 0, *, checked: bool = False) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield first row and pixels [rows, width] of every strip, top to bottom; raises StorageError when some miss.

        With `checked`, strips whose checksum is wrong count as missing; of one that is there twice, always.
        """
        row = 0
        at = {row: list(records) for row, records in groupby(self._records(), attrgetter("row"))}
        try:
            with ExitStack() as stack:
                read = _reader(stack)
                while row < self.height:
                    records = at.get(row, [])
                    every = ((record, read(record, self._size(record.rows))) for record in records)
                    trusted = len(records) == 1 and not checked
                    sound = next((pixels for record, pixels in every if trusted or record.is_sound(pixels)), None)
                    if sound is None:
                        break
                    rows = np.frombuffer(sound, np.uint8).reshape(self.planes, -1, self.width)
                    yield row, rows[plane]
                    row += rows.shape[1]
        except OSError as error:
            name = one_line(error.filename or self.name)
            raise StorageError(f"{name}: cannot be read: {error.strerror}; run again") from error
        if row < self.height:
            raise StorageError(
                f"{one_line(self.name)}: its rows in {one_line(self.out)} do not read back as written;"
                " check the disk and run again"
            )

    def remove(self, but: Collection[bytes] = ()) -> None:
        """Remove the files of all tasks, for the scene is finished or begun anew; those of some exact keys stay."""
        for path in self.files():
            with suppress(PermissionError):  # open on Windows
                if not but or _key_of(path) not in but:
                    path.unlink(missing_ok=True)

    def _records(self) -> list[Record]:
        """Return the records of all files with this key that were written to their end, by row."""
        found: list[Record] = []
        for path in self.files():
            with suppress(FileNotFoundError), open_regular(path) as stream:
                if stream.read(HEAD.size) == self._head(self.key):
                    found += self._records_in(path, stream)
        return sorted(found, key=attrgetter("row"))

    def _records_in(self, path: Path, stream: IO[bytes]) -> Iterator[Record]:
        """Yield the records up to the first whose head makes no sense: what follows it cannot be found."""
        place, end, noted = HEAD.size, os.fstat(stream.fileno()).st_size, False
        while place + RECORD.size <= end:
            stream.seek(place)
            row, rows, checksum = RECORD.unpack(stream.read(RECORD.size))
            place += RECORD.size
            if row == NOTE and not noted:
                noted = zlib.crc32(stream.read(min(rows, LONGEST_NOTE))) == checksum
                if not noted:
                    return
                place += rows
                continue
            size = self._size(rows)
            if place + size > end or not 0 < rows <= self.height - row:
                return
            yield Record(path, place, row, rows, checksum, zlib.crc32(PLACE.pack(row, rows)) if noted else 0)
            place += size

    def _size(self, rows: int) -> int:
        return self.planes * rows * self.width

    def _head(self, key: bytes) -> bytes:
        return HEAD.pack(MAGIC, key, self.width, self.planes)


def files_of(out: Path, names: Collection[str]) -> set[Path]:
    """Return the files of all tasks at scenes of these names."""
    marks = {_mark(name) for name in names}
    length = len(_mark(""))
    found = out.glob(f"{TEMPORARY}*{SUFFIX}")
    return {path for path in found if path.name[len(TEMPORARY) :][:length] in marks}


@contextmanager
def finishing(out: Path, name: str) -> Iterator[bool]:
    """Yield whether nobody else is finishing the scene; if so, nobody else will before the block is left."""
    path = out / f"{TEMPORARY}{_mark(name)}.lock"
    try:
        lock = _claim(path)
    except OSError as error:
        raise output_error(path, error) from error
    try:
        yield lock is not None
    finally:
        if lock is not None:
            system.remove_locked(path, lock)


def _claim(path: Path) -> IO[bytes] | None:
    """Open and lock a file, made if need be; None when another process has it."""
    while True:
        stream = open_regular(path, "ab")
        try:
            if not system.try_lock(stream):
                stream.close()
                return None
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except FileNotFoundError:
            pass
        stream.close()  # its owner finished, and removed it, in between


def _mark(name: str) -> str:
    """Return what the names of a scene's files begin with."""
    return hashlib.sha256(name.encode()).hexdigest()[:20]


def _key_of(path: Path) -> bytes:
    with suppress(OSError), open_regular(path) as stream:
        return stream.read(HEAD.size)[len(MAGIC) :][:32]
    return UNKNOWN


def _read_note(stream: IO[bytes]) -> ExactSettings | None:
    """Return the settings that follow a head; None when they are damaged, or an earlier version wrote none."""
    head = stream.read(RECORD.size)
    if len(head) < RECORD.size:
        return None
    row, size, checksum = RECORD.unpack(head)
    note = stream.read(size) if row == NOTE and size < LONGEST_NOTE else b""
    if not note or zlib.crc32(note) != checksum:
        return None
    try:
        return ExactSettings(**json.loads(note))
    except (TypeError, ValueError):
        return None


def _reader(stack: ExitStack) -> Callable[[Record, int], bytes]:
    """Return a function that reads a record's pixels; the files stay open as long as the stack."""
    open_files: dict[Path, IO[bytes]] = {}

    def read(record: Record, size: int) -> bytes:
        if record.path not in open_files:
            open_files[record.path] = stack.enter_context(open_regular(record.path))
        stream = open_files[record.path]
        stream.seek(record.offset)
        return stream.read(size)

    return read
