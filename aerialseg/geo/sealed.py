"""Files that carry a digest of their own bytes, so that a user's edit is told from what this program wrote.

The digest, of the bytes with zeros in its place, stands wherever the format has room for a remark: an XML comment, a
JSON value, the comment of a zip archive. A file that a user has changed, or QGIS has saved, no longer matches it.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, Literal

from aerialseg.errors import OutputError, one_line
from aerialseg.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Origin = Literal["absent", "ours", "edited", "foreign"]

MARK = "aerialseg-sha256:"
BLANK = MARK + "0" * 64
"""What a caller puts where the digest shall stand."""
LARGEST = 1 << 28
"""Nothing that is sealed comes near 256 MB; a larger file is not read into memory to find out."""

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


def write_sealed(path: Path, content: bytes, *, remembers: Callable[[bytes], bool] | None = None) -> str | None:
    """Write a sealed file unless it is there already; return a line about a user's edit, which stays.

    Raises OutputError for a stranger's file at `path`.
    """
    sealed = seal(content)
    origin = origin_of(path, remembers)
    if origin == "foreign":
        raise OutputError(
            f"{one_line(path)}: exists and was not written by aerialseg; move it away or give another folder with -o"
        )
    if origin == "edited":
        return f"{one_line(path)}: was changed since aerialseg wrote it and stays as it is; delete it to have it anew"
    if origin == "absent" or path.is_symlink() or path.read_bytes() != sealed:
        write_bytes(path, sealed)
    return None


def _seal_of(blank: bytes) -> bytes:
    return MARK.encode() + hashlib.sha256(blank).hexdigest().encode()
