"""A scene's finished strips while it is being predicted; a run that was killed goes on behind the last whole one.

One file for each scene: a head that says from what the strips are made, then the strips from the top down, each with a
checksum. GDAL plays no part: a GeoTIFF whose writer was killed reads as zeros, and torn bytes are found here. What the
strips become is `outputs`' business.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import numpy as np

from aerialseg import system
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
"""Magic, key, width of the scene, planes."""
RECORD = struct.Struct("<III")
"""First row, rows, CRC-32 of the pixels that follow: uint8 [planes, rows, width]."""


@dataclass(frozen=True, slots=True)
class ResumeFile:
    """Where a scene's strips are kept, and their shape."""

    path: Path
    height: int
    width: int
    planes: int = 1
    """How many of the engine's planes a strip has, quantised."""
    claim: IO[bytes] | None = field(default=None, compare=False)
    """Open and locked, for as long as the file is this process's."""

    @classmethod
    def claimed(cls, out: Path, name: str, shape: tuple[int, int], planes: int) -> ResumeFile:
        """Return the file of the scene called `name`, in `out`, as nobody else's until it is removed or released.

        When another process is at the same scene, it is one of another name, with nothing to go on from.
        """
        path = resume_path(out, name)
        try:
            while (claim := _claim(path)) is None:
                path = reserve(out, SUFFIX)
        except OSError as error:
            raise output_error(path, error) from error
        return cls(path, *shape, planes, claim)

    def remove(self) -> None:
        """Remove the file, for its scene is finished, or has to be begun anew."""
        if self.claim is None:
            self.path.unlink(missing_ok=True)
        else:
            system.remove_locked(self.path, self.claim)

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
                    for row, planes in self._records(stream):
                        rows, end = row + planes.shape[1], stream.tell()
                stream.truncate(end)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise output_error(self.path, error) from error
        return rows

    @property
    def keyed(self) -> bool:
        """Whether there is a file that says what it is made from; without one there is nothing to go on from."""
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
        try:
            with self.path.open("r+b" if told else "wb") as stream:
                stream.seek(0, os.SEEK_END)
                if not told:
                    stream.write(self._head(UNKNOWN))
                while (strip := (yield)) is not None:
                    planes = np.ascontiguousarray(strip.planes())
                    stream.write(RECORD.pack(strip.row, planes.shape[1], zlib.crc32(planes.data)))
                    stream.write(planes.data)
                    stream.flush()
                    if not told and key.done() and key.exception() is None:
                        told = True
                        stream.seek(0)
                        stream.write(self._head(key.result()))
                        stream.seek(0, os.SEEK_END)
        except OSError as error:
            raise output_error(self.path, error) from error

    def strips(self, plane: int = 0, *, checked: bool = False) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield first row and pixels [rows, width] of every strip; raises StorageError when some are missing.

        With `checked`, strips whose checksum is wrong count as missing.
        """
        row = 0
        try:
            with open_regular(self.path) as stream:
                stream.seek(HEAD.size)
                for first, planes in self._records(stream, checked=checked):
                    yield first, planes[plane]
                    row += planes.shape[1]
        except OSError as error:
            raise StorageError(f"{one_line(self.path)}: cannot be read: {error.strerror}; run again") from error
        if row != self.height:
            raise StorageError(f"{one_line(self.path)}: does not read back as written; check the disk and run again")

    def _head(self, key: bytes) -> bytes:
        return HEAD.pack(MAGIC, key, self.width, self.planes)

    def _records(self, stream: IO[bytes], *, checked: bool = True) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield first row and planes of the records from here on that are whole and follow each other.

        At the end the stream stands behind the last.
        """
        expected, end = 0, stream.tell()
        while len(head := stream.read(RECORD.size)) == RECORD.size:
            row, rows, checksum = RECORD.unpack(head)
            if row != expected or not 0 < rows <= self.height - row:
                break
            pixels = stream.read(self.planes * rows * self.width)
            if len(pixels) != self.planes * rows * self.width or (checked and zlib.crc32(pixels) != checksum):
                break
            expected, end = row + rows, stream.tell()
            yield row, np.frombuffer(pixels, np.uint8).reshape(self.planes, rows, self.width)
        stream.seek(end)


def resume_path(out: Path, name: str) -> Path:
    """Return where the strips of the scene called `name` are kept."""
    return out / f"{TEMPORARY}{hashlib.sha256(name.encode()).hexdigest()[:20]}{SUFFIX}"


def forget_resume_file(out: Path, name: str) -> None:
    """Remove what is left of a scene that is finished, unless another process is at it."""
    path = resume_path(out, name)
    if is_regular(path) and (claim := _claim(path)) is not None:
        system.remove_locked(path, claim)


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
