"""A scene's finished strips while it is being predicted; a run that was killed goes on behind the last whole one.

One file for each scene: a head that says from what the strips are made, then the strips from the top down, each with a
checksum. GDAL plays no part: a GeoTIFF whose writer was killed reads as zeros, and these bytes tell when they are torn.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import numpy as np

from aerialseg.errors import StorageError, one_line
from aerialseg.files import TEMPORARY, is_regular, open_regular, output_error, reserve

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.prediction.engine import Strip

SUFFIX = ".part"
MAGIC = b"aerialseg strips\n"
UNKNOWN = bytes(32)
HEAD = struct.Struct("<17s32sII")
"""Magic, key, width of the scene, layers."""
RECORD = struct.Struct("<III")
"""First row, rows, CRC-32 of the pixels that follow: uint8 [layers, rows, width]."""


@dataclass(frozen=True, slots=True)
class ResumeFile:
    """Where a scene's strips are kept, and their shape."""

    path: Path
    height: int
    width: int
    layers: int = 1
    """1: probability, quantised; 2: agreement, too."""
    claim: IO[bytes] | None = field(default=None, compare=False)
    """Open and locked, for as long as the part is this process's."""

    @classmethod
    def claimed(cls, out: Path, name: str, shape: tuple[int, int], layers: int) -> ResumeFile:
        """Return the part of the scene called `name`, in `out`, as nobody else's until it is removed or released.

        When another process is at the same scene, it is one of another name, with nothing to go on from.
        """
        path = part_path(out, name)
        try:
            while (claim := _claim(path)) is None:
                path = reserve(out, SUFFIX)
        except OSError as error:
            raise output_error(path, error) from error
        return cls(path, *shape, layers, claim)

    def remove(self) -> None:
        """Remove the file, for its scene is finished, or has to be begun anew."""
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave the file for another run to go on from."""
        if self.claim is not None:
            self.claim.close()

    def finished(self, key: bytes) -> int:
        """Return how many rows are there, whole and made from `key`; what follows them is cut off."""
        rows, end = 0, 0
        try:
            with open_regular(self.path, "r+b") as stream:
                if self._head(key) == stream.read(HEAD.size):
                    end = HEAD.size
                    for record in self._records(stream):
                        rows, end = record.row + len(record.layers[0]), stream.tell()
                stream.truncate(end)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise output_error(self.path, error) from error
        return rows

    @property
    def keyed(self) -> bool:
        """Whether there is a part that says what it is made from; without one there is nothing to go on from."""
        try:
            with open_regular(self.path) as stream:
                return stream.read(HEAD.size)[len(MAGIC) :][:32] not in (b"", UNKNOWN)
        except OSError:
            return False

    def write(self, skip: int, key: Future[bytes]) -> Generator[None, Strip | None]:
        """Append the strips that are sent, behind `skip` finished rows; runs in the writer's thread.

        The key goes into the head as soon as it is known: hashing a scene takes as long as reading it.
        """
        told = skip > 0
        with _open_to_write(self.path, new=not told) as stream:
            if not told:
                stream.write(self._head(UNKNOWN))
            while (strip := (yield)) is not None:
                found = (strip.quanta(), strip.agreement())[: self.layers]
                _append(stream, strip.row, [pixels for pixels in found if pixels is not None])
                if not told and key.done() and key.exception() is None:
                    told = True
                    os.pwrite(stream.fileno(), self._head(key.result()), 0)

    def strips(self, layer: int = 0, *, checked: bool = False) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield first row and pixels [rows, width] of every strip; raises StorageError when some are missing.

        With `checked`, strips whose checksum is wrong count as missing.
        """
        row = 0
        try:
            with open_regular(self.path) as stream:
                stream.seek(HEAD.size)
                for record in self._records(stream, checked=checked):
                    yield record.row, record.layers[layer]
                    row += len(record.layers[layer])
        except OSError as error:
            raise StorageError(f"{one_line(self.path)}: cannot be read: {error.strerror}; run again") from error
        if row != self.height:
            raise StorageError(f"{one_line(self.path)}: does not read back as written; check the disk and run again")

    def _head(self, key: bytes) -> bytes:
        return HEAD.pack(MAGIC, key, self.width, self.layers)

    def _records(self, stream: IO[bytes], *, checked: bool = True) -> Iterator[_Record]:
        """Yield the records from here on that are whole and follow each other; the stream stands behind the last."""
        expected, end = 0, stream.tell()
        while len(head := stream.read(RECORD.size)) == RECORD.size:
            row, rows, checksum = RECORD.unpack(head)
            if row != expected or not 0 < rows <= self.height - row:
                break
            pixels = stream.read(self.layers * rows * self.width)
            if len(pixels) != self.layers * rows * self.width or (checked and zlib.crc32(pixels) != checksum):
                break
            expected, end = row + rows, stream.tell()
            yield _Record(row, np.frombuffer(pixels, np.uint8).reshape(self.layers, rows, self.width))
        stream.seek(end)


@dataclass(frozen=True, slots=True)
class _Record:
    row: int
    layers: NDArray[np.uint8]


def part_path(out: Path, name: str) -> Path:
    """Return where the strips of the scene called `name` are kept."""
    return out / f"{TEMPORARY}{hashlib.sha256(name.encode()).hexdigest()[:20]}{SUFFIX}"


def forget_part(out: Path, name: str) -> None:
    """Remove what is left of a scene that is finished, unless another process is at it."""
    path = part_path(out, name)
    if is_regular(path) and (claim := _claim(path)) is not None:
        path.unlink(missing_ok=True)
        claim.close()


def _claim(path: Path) -> IO[bytes] | None:
    """Open and lock a file, made if need be; None when another process has it."""
    while True:
        stream = open_regular(path, "ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except BlockingIOError:
            stream.close()
            return None
        except FileNotFoundError:
            pass
        stream.close()  # its owner finished, and removed it, in between


@contextmanager
def _open_to_write(path: Path, *, new: bool) -> Iterator[IO[bytes]]:
    try:
        with open_regular(path, "wb" if new else "r+b") as stream:
            stream.seek(0, os.SEEK_END)
            yield stream
    except OSError as error:
        raise output_error(path, error) from error


def _append(stream: IO[bytes], row: int, layers: list[NDArray[np.uint8]]) -> None:
    """Write one record; a checksum over the layers in turn is that of their bytes together."""
    checksum = 0
    for pixels in layers:
        checksum = zlib.crc32(np.ascontiguousarray(pixels).data, checksum)
    stream.write(RECORD.pack(row, len(layers[0]), checksum))
    for pixels in layers:
        stream.write(np.ascontiguousarray(pixels).data)
    stream.flush()
