"""Whose file stands where one is to be written: nobody's, ours as it was written, ours but edited since, or foreign.

One table says where each kind of file that this program writes has its mark. Marks are promises to folders that were
written before: they keep their bytes. Files that users like to change carry a digest of their own content beside it,
wherever the format has room for a remark; a file that a user has changed, or QGIS has saved, no longer matches. What
counts as content is every byte, but for a mosaic also what it shows and for a GeoPackage what its tables say.

Whether a file of ours is up to date, and what stays or goes, the callers decide.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sqlite3
import zipfile
import zlib
from typing import TYPE_CHECKING, Literal, NamedTuple

from aerialseg.errors import AerialsegError, OutputError, one_line
from aerialseg.files import DIGEST, PLACEHOLDER, is_regular, open_regular, write_bytes
from aerialseg.geo import geopackage
from aerialseg.geo.opening import open_raster
from aerialseg.geo.vrt import shows_what_was_written
from aerialseg.values import read_json

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

Owner = Literal["absent", "ours", "edited", "foreign"]
Kind = Literal[
    "prediction", "error map", "sample", "tile", "preview", "page", "run", "bench run", "predict report",
    "demo report", "bench report", "error buildings", "buildings", "collection",
]  # fmt: skip

PREDICTION_TAG = "AERIALSEG_KEY"
PIXELS_TAG = "AERIALSEG_PIXELS_SHA256"
"""Of a prediction: the digest of its own pixels, row by row, by which an edited one is known."""
ERRORS_TAG = "AERIALSEG_ERRORS"
SAMPLE_TAG = "AERIALSEG_SAMPLE"
TILE_TAG = "AERIALSEG_TILE"
PREVIEW_SOFTWARE = "aerialseg preview"
PAGE_COMMENT = "<!-- aerialseg evaluate: report -->"
RUN_COMMENT = "# Written by aerialseg train; a training goes on with --resume.\n"
BENCH = "aerialseg bench"
BUILDINGS = "aerialseg-buildings"
PROJECT_PROPERTY = "<aerialseg>"
"""Stands among a QGIS project's properties, which QGIS keeps when it saves and so loses the digest."""


class _Mark(NamedTuple):
    """Where a mark stands, what it is, and among how many of the file's first bytes."""

    place: Literal["tag", "text", "command", "starts", "buildings", "digest"]
    text: str
    within: int = 0


TABLE: dict[Kind, _Mark] = {
    "prediction": _Mark("tag", PREDICTION_TAG),
    "error map": _Mark("tag", ERRORS_TAG),
    "sample": _Mark("tag", SAMPLE_TAG),
    "tile": _Mark("tag", TILE_TAG),
    "preview": _Mark("text", f"tEXtSoftware\0{PREVIEW_SOFTWARE}", 256),
    "page": _Mark("text", PAGE_COMMENT, 200),
    "run": _Mark("text", RUN_COMMENT, len(RUN_COMMENT)),
    "bench run": _Mark("starts", BENCH),
    "predict report": _Mark("command", "predict"),
    "demo report": _Mark("command", "demo"),
    "bench report": _Mark("text", f'"made_by": "{BENCH}"', 200),
    "error buildings": _Mark("text", ERRORS_TAG, 1 << 20),
    "buildings": _Mark("buildings", BUILDINGS),
    "collection": _Mark("digest", DIGEST),
}
"""Kind of file -> its mark: a TIFF tag; PNG text, HTML comment, JSON key, first line of TOML or GeoPackage description
within the first bytes; the command in a report; the commands in run.json; the description of building polygons; and of
mosaics, STAC and QGIS projects (VRT metadata, JSON key, zip comment) the digest itself."""
LARGEST_READ = 1 << 28
"""No file of a collection comes near 256 MB; a larger one is not read into memory to find out."""
ENDS = 1 << 16
"""Where in a file of buildings its mark may stand: among so many of the first or of the last bytes."""
CHUNK = 1 << 20
_DIGEST = re.compile(rf"{DIGEST}[0-9a-f]{{64}}".encode())
_BUILDINGS = re.compile(rf"{BUILDINGS}:([0-9a-f]{{64}})")


def owner_of(path: Path, kind: Kind) -> Owner:
    """Return whose file stands at `path`, where one of a `kind` belongs; what cannot be read is foreign.

    Only "buildings" and "collection" tell "edited" from "ours": the others carry no digest.
    """
    if not os.path.lexists(path):
        return "absent"
    mark = mark_of(path, kind)
    if mark is None:
        return "foreign"
    return "ours" if _is_as_written(path, kind, mark) else "edited"


def mark_of(path: Path, kind: Kind) -> str | None:
    """Return what the mark in a file of a `kind` says; None without one: absent, foreign, or not to be read.

    A tag's value, such as a prediction's done-key; of buildings the digest of what they were made from; else the mark.
    """
    mark = TABLE[kind]
    try:
        if not is_regular(path):
            return None
        match mark.place:
            case "tag":
                return (read_tags(path) or {}).get(mark.text)
            case "text":
                with open_regular(path) as stream:
                    return mark.text if mark.text.encode() in stream.read(mark.within) else None
            case "command":
                report = read_json(path)
                return mark.text if "aerialseg" in report and report["command"] == mark.text else None
            case "starts":
                commands = [start["command"] for start in read_json(path)["starts"]]
                return mark.text if commands and all(command == mark.text.split() for command in commands) else None
            case "buildings":
                found = _BUILDINGS.search(_description_of(path))
                return None if found is None else found[1]
            case "digest":
                return _embedded_in(path)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, sqlite3.Error):
        return None


def read_tags(path: Path) -> dict[str, str] | None:
    """Return a raster's metadata, whoever wrote it; None when it cannot be read."""
    try:
        with open_raster(path) as dataset:
            return dict(dataset.tags())
    except AerialsegError:
        return None


def check_overwrite(path: Path, kind: Kind | None = None, *, overwrite: bool, marked: Path | None = None) -> None:
    """Raise OutputError when a foreign file stands at `path` and `overwrite` was not asked for.

    Any file is foreign when `kind` is None. `marked` is the file whose mark speaks for `path`, which has none itself.
    """
    if overwrite or not os.path.lexists(path):
        return
    if kind is None or mark_of(marked or path, kind) is None:
        raise OutputError(
            f"{one_line(path)}: exists and was not written by aerialseg; give another folder with -o, or --overwrite"
        )


def write_owned(path: Path, content: bytes, *, overwrite: bool = False) -> str | None:
    """Write a file of a collection unless it is there already; return a line about a user's edit, which stays.

    `content` holds PLACEHOLDER once. Raises OutputError for a foreign file at `path`, which `overwrite` replaces.
    """
    whole, owner = embed_digest(content), owner_of(path, "collection")
    if owner == "edited":
        return f"{one_line(path)}: was changed since aerialseg wrote it and stays as it is; delete it to have it anew"
    if owner == "foreign":
        check_overwrite(path, overwrite=overwrite)
    if owner != "ours" or path.is_symlink() or path.read_bytes() != whole:
        write_bytes(path, whole)
    return None


def embed_digest(content: bytes) -> bytes:
    """Return `content`, which holds PLACEHOLDER once, with the digest in its place."""
    if content.count(PLACEHOLDER.encode()) != 1:
        raise ValueError("a content has one place for its digest")
    return content.replace(PLACEHOLDER.encode(), DIGEST.encode() + hashlib.sha256(content).hexdigest().encode())


def embed_digest_in(path: Path) -> None:
    """Put the digest in its place in a file of buildings, which holds PLACEHOLDER near its beginning or end."""
    if path.suffix.lower() == geopackage.SUFFIX:
        geopackage.replace_in_descriptions(path, PLACEHOLDER, DIGEST + geopackage.tables_digest(path))
        return
    with open_regular(path, "r+b") as stream:
        found = _find_digest(stream)
        if found is None or found[1] != PLACEHOLDER.encode():
            raise ValueError("a content has one place for its digest")
        digest = _digest_around(stream, found[0])
        stream.seek(found[0])
        stream.write(digest)


def _description_of(path: Path) -> str:
    """Return the part of a file of buildings that holds its mark."""
    if path.suffix.lower() == geopackage.SUFFIX:
        return geopackage.read_descriptions(path)
    with open_regular(path) as stream:
        head = stream.read(ENDS)
        stream.seek(max(0, stream.seek(0, 2) - ENDS))
        return (head + stream.read()).decode("latin-1")


def _embedded_in(path: Path) -> str | None:
    """Return the digest in a file of a collection, or what tells that it was there before QGIS saved the file."""
    content = path.read_bytes() if path.stat().st_size <= LARGEST_READ else b""
    found = _DIGEST.findall(content)
    if found:
        return str(found[-1], "ascii")
    return PROJECT_PROPERTY if path.suffix.lower() == ".qgz" and _is_saved_project(content) else None


def _is_saved_project(content: bytes) -> bool:
    """Return whether the bytes of a .qgz that QGIS has saved were ours before."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            inside = [entry for entry in archive.infolist() if entry.filename.endswith(".qgs")]
            small = [entry for entry in inside if entry.file_size <= LARGEST_READ]
            return any(PROJECT_PROPERTY.encode() in archive.read(entry) for entry in small)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError):
        return False


def _is_as_written(path: Path, kind: Kind, mark: str) -> bool:
    """Return whether the content of a file that has our mark is what was written; True where nothing tells."""
    try:
        if kind == "collection":
            content = path.read_bytes()
            blank = content.replace(mark.encode(), PLACEHOLDER.encode())
            whole = blank.count(PLACEHOLDER.encode()) == 1 and embed_digest(blank) == content
            return whole or (path.suffix.lower() == ".vrt" and shows_what_was_written(path))
        if kind == "buildings" and path.suffix.lower() == geopackage.SUFFIX:
            return DIGEST + geopackage.tables_digest(path) in geopackage.read_descriptions(path)
        if kind == "buildings":
            with open_regular(path) as stream:
                found = _find_digest(stream)
                return found is not None and found[1] == _digest_around(stream, found[0])
    except (OSError, sqlite3.Error):
        return False
    return True


def _find_digest(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Return where the digest of a file of any size stands, and what stands there."""
    for start in (0, max(0, stream.seek(0, 2) - ENDS)):
        stream.seek(start)
        match = _DIGEST.search(stream.read(ENDS))
        if match is not None:
            return start + match.start(), match[0]
    return None


def _digest_around(stream: BinaryIO, place: int) -> bytes:
    """Return what belongs at `place`: the digest over all bytes around it."""
    digest, position = hashlib.sha256(), 0
    for stop, then in ((place, PLACEHOLDER.encode()), (stream.seek(0, 2), b"")):
        stream.seek(position)
        while position < stop and (chunk := stream.read(min(CHUNK, stop - position))):
            digest.update(chunk)
            position += len(chunk)
        digest.update(then)
        position += len(then)
    return DIGEST.encode() + digest.hexdigest().encode()
