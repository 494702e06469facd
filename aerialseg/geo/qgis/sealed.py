"""Files that carry a digest of their own bytes, so that a user's edit is told from what this program wrote.

The digest, of the bytes with zeros in its place, stands wherever the format has room for a remark: an XML comment, a
JSON value, the comment of a zip archive. A file that a user has changed, or QGIS has saved, no longer matches it.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Literal

from aerialseg.errors import one_line
from aerialseg.files import refuse_foreign, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

Origin = Literal["absent", "ours", "edited", "foreign"]

MARK = "aerialseg-sha256:"
BLANK = MARK + "0" * 64
"""What a caller puts where the digest shall stand."""
LARGEST = 1 << 28
"""Nothing that is sealed comes near 256 MB; a larger file is not read into memory to find out."""
ENDS = 1 << 16
"""Where in a file of any size its digest may stand: among so many of the first or of the last bytes."""
CHUNK = 1 << 20

_SEAL = re.compile(rb"aerialseg-sha256:[0-9a-f]{64}")


def seal(content: bytes) -> bytes:
    """Return `content`, which holds BLANK once, with the digest in its place."""
    if content.count(BLANK.encode()) != 1:
        raise ValueError("a file to be sealed has one place for its digest")
    return content.replace(BLANK.encode(), _seal_of(content))


def origin_of(path: Path, remembers: Callable[[bytes], bool] | None = None) -> Origin:
    """Return whose file stands at `path`: ours as it was written, ours but edited since, or a stranger's.

    `remembers` says of bytes without any seal whether they once were ours, where a format loses it on saving.
    """
    if not os.path.lexists(path):
        return "absent"
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST else b""
    except OSError:
        return "foreign"
    seals = _SEAL.findall(content)
    if not seals:
        return "edited" if remembers is not None and remembers(content) else "foreign"
    blank = content.replace(seals[-1], BLANK.encode())
    return "ours" if seals[-1] == _seal_of(blank) else "edited"


def write_sealed(
    path: Path, content: bytes, *, remembers: Callable[[bytes], bool] | None = None, overwrite: bool = False
) -> str | None:
    """Write a sealed file unless it is there already; return a line about a user's edit, which stays.

    Raises OutputError for a stranger's file at `path`, which `overwrite` replaces.
    """
    sealed = seal(content)
    origin = origin_of(path, remembers)
    refuse_foreign(path, ours=origin != "foreign", overwrite=overwrite)
    if origin == "edited":
        return f"{one_line(path)}: was changed since aerialseg wrote it and stays as it is; delete it to have it anew"
    if origin in ("absent", "foreign") or path.is_symlink() or path.read_bytes() != sealed:
        write_bytes(path, sealed)
    return None


def seal_file(path: Path) -> None:
    """Put the digest in its place in a file of any size, which holds BLANK near its beginning or end."""
    with path.open("rb+") as stream:
        found = _find_seal(stream)
        if found is None or found[1] != BLANK.encode():
            raise ValueError("a file to be sealed has one place for its digest")
        sealed = _stream_seal(stream, found[0])
        stream.seek(found[0])
        stream.write(sealed)


def is_as_sealed(path: Path) -> bool:
    """Return whether a file of any size is byte for byte what `seal_file` left; False without a seal."""
    with path.open("rb") as stream:
        found = _find_seal(stream)
        return found is not None and found[1] == _stream_seal(stream, found[0])


def _find_seal(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Return where the digest stands, and what stands there."""
    for start in (0, max(0, stream.seek(0, 2) - ENDS)):
        stream.seek(start)
        match = _SEAL.search(stream.read(ENDS))
        if match is not None:
            return start + match.start(), match[0]
    return None


def _stream_seal(stream: BinaryIO, place: int) -> bytes:
    """Return what belongs at `place`: the digest over all bytes around it."""
    digest, position = hashlib.sha256(), 0
    for stop, then in ((place, BLANK.encode()), (stream.seek(0, 2), b"")):
        stream.seek(position)
        while position < stop and (chunk := stream.read(min(CHUNK, stop - position))):
            digest.update(chunk)
            position += len(chunk)
        digest.update(then)
        position += len(then)
    return MARK.encode() + digest.hexdigest().encode()


def _seal_of(blank: bytes) -> bytes:
    return MARK.encode() + hashlib.sha256(blank).hexdigest().encode()
