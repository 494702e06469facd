"""A digest of what a raster or vector file says, side files included: how "is it done?" is decided, never by times.

A digest vouches for what was read only if nothing changed between the first look at a file and the last: that is told
from outside, by size, time and inode, which `seen` notes before a header is read and `what_changed` compares at last.
Of a GDAL `.aux.xml` counts what it says of the raster, without what looking at the raster in a GIS adds to it. What the
pixels or polygons mean is not known here.
"""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING
from xml.parsers import expat

from aerialseg.errors import BadDataError, one_line
from aerialseg.files import exists, is_folder, is_regular, open_regular, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PAM = ".aux.xml"
LAYER_NAME = "|layername="
"""How QGIS names a layer behind its file."""
APPENDED = (PAM, ".msk", ".MSK", "-wal", ".aux", ".AUX")
"""Side files named after the whole name: GDAL's metadata, a mask, a GeoPackage's changes, Erdas Imagine's metadata."""
REPLACED = {
    ".tif": (".tfw", ".tifw", ".wld", ".tab", ".xml", ".aux"),
    ".tiff": (".tfw", ".tiffw", ".wld", ".tab", ".xml", ".aux"),
    ".jp2": (".j2w", ".jp2w", ".wld", ".aux"),
    ".j2k": (".jkw", ".j2kw", ".wld", ".aux"),
    ".png": (".pgw", ".pngw", ".wld", ".aux"),
    ".jpg": (".jgw", ".jpgw", ".jpegw", ".jpw", ".wld", ".tab", ".aux"),
    ".jpeg": (".jgw", ".jpgw", ".jpegw", ".jpw", ".wld", ".tab", ".aux"),
    ".shp": (".shx", ".dbf", ".prj", ".cpg"),
}
"""Side files with the same stem: world files, MapInfo's and ArcGIS's ways of placing a raster, a Shapefile's parts."""
JOURNALS, INDEXES = ("-journal", "-shm"), (".qix", ".sbn", ".sbx", ".idm", ".ind")
"""Side files that say nothing of a database's or a Shapefile's content but are opened with it."""
LARGEST = 1 << 24
"""Bytes; GDAL's own files have a few thousand, and no larger one is parsed."""
DEEPEST = 64
"""Levels of elements; GDAL needs six."""


def content_digest(path: Path) -> str:
    """Return a SHA-256 over the bytes of a raster or vector file and of the side files that GDAL reads with it.

    Of an `.aux.xml` counts what it says, without the statistics that a GIS leaves there when it shows the raster.
    """
    return hashlib.sha256("\n".join([sha256_of(path), *_beside(path, sha256_of)]).encode()).hexdigest()


def content_stamp(path: Path) -> str:
    """Return what all that `content_digest` reads looks like from outside: sizes and times of change.

    It changes whenever the digest does, and at times when that does not. Raises OSError for a missing file.
    """
    return " ".join([file_stamp(path), *_beside(path, file_stamp)])


def seen(paths: Iterable[Path | None]) -> dict[Path, str]:
    """Return what each file and its side files look like from outside before anything of it is read.

    Sizes, times of change and inodes; empty for a file that cannot be found, which whoever reads it will say.
    """
    files = [Path(str(path).partition(LAYER_NAME)[0]) for path in paths if path is not None]
    return {file: _seen(file) for file in dict.fromkeys(files)}


def what_changed(before: Mapping[Path, str], done: str) -> BadDataError | None:
    """Return an error naming the first file that no longer looks as it did `before`: while it was `done`; or None."""
    changed = next((path for path, look in before.items() if _seen(path) != look), None)
    return None if changed is None else BadDataError(f"{one_line(changed)}: changed while it was {done}; run again")


def _seen(path: Path) -> str:
    def look(file: Path) -> str:
        return f"{file_stamp(file)}:{file.stat().st_ino}"

    try:
        return " ".join([look(path), *_beside(path, look)])
    except OSError:  # gone, or going
        return ""


def side_files(path: Path) -> list[Path]:
    """Return the files beside a raster or vector file that GDAL reads with it."""
    return [file for file in _side_names(path) if is_regular(file)]


def irregular_beside(path: Path) -> Path | None:
    """Return what GDAL would read with a raster or vector file but is a pipe or a device, where it would hang."""
    indexes = [path.with_name(path.name + suffix) for suffix in JOURNALS]
    indexes += [path.with_suffix(suffix) for suffix in INDEXES] if path.suffix.lower() == ".shp" else []
    there = (file for file in (*_side_names(path), *indexes) if exists(file))
    return next((file for file in there if not is_regular(file) and not is_folder(file)), None)


def _side_names(path: Path) -> list[Path]:
    # As programs write a suffix: .tfw, .TFW and, beside an upper-case name, .TFw.
    suffixes = [
        form
        for suffix in REPLACED.get(path.suffix.lower(), ())
        for form in (suffix, suffix.upper(), suffix[:-1].upper() + suffix[-1])
    ]
    return [*(path.with_name(path.name + suffix) for suffix in APPENDED), *map(path.with_suffix, suffixes)]


def file_stamp(path: Path) -> str:
    """Return a file's size and time of change; raises OSError for a missing one."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def _beside(path: Path, look: Callable[[Path], str]) -> list[str]:
    """Return for each side file that says something its suffix and what `look`, or `pam_digest`, finds."""
    found = [(file, pam_digest(file) if file.name.endswith(PAM) else look(file)) for file in side_files(path)]
    # Once each: a file system that ignores case finds one file under all of its spellings.
    return list(dict.fromkeys(f"{file.suffix.lower()} {said}" for file, said in found if said is not None))


def pam_digest(path: Path) -> str | None:
    """Return a digest of an `.aux.xml` that is blind to statistics, histograms and layout; None when nothing is left.

    Of a file that does not parse, is too large or declares a document type, that of its bytes.
    """
    root = _parse(path)
    if root is None:
        return sha256_of(path)
    said = _said(root)
    return None if said is None else hashlib.sha256(repr(said).encode()).hexdigest()


def _parse(path: Path) -> ET.Element | None:
    """Return the root element; a document type, without which there are no entities, is refused before it is read."""
    parser, builder = expat.ParserCreate(), ET.TreeBuilder()
    depth = 0

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise ValueError("too deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError("a document type")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        with open_regular(path) as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            return None
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError):
        return None
    return builder.close()


def _said(element: ET.Element) -> tuple[object, ...] | None:
    """Return what an element says, however it is laid out, or None where it says only what a GIS leaves by looking."""
    if element.tag == "Histograms" or (element.tag == "MDI" and element.get("key", "").startswith("STATISTICS_")):
        return None
    inner = [said for said in map(_said, element) if said is not None]
    text = " ".join((element.text or "").split())
    if not inner and not text and element.tag in ("PAMDataset", "PAMRasterBand", "Metadata"):
        return None
    return element.tag, sorted(element.attrib.items()), text, inner
