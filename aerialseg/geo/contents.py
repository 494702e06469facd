"""A digest of what a file says, side files included: how "is it done already?" is decided, never by times."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from aerialseg.files import sha256_of
from aerialseg.geo.sidecars import pam_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAM = ".aux.xml"
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


def side_files(path: Path) -> list[Path]:
    """Return the files beside a raster or vector file that GDAL reads with it."""
    suffixes = [form for suffix in REPLACED.get(path.suffix.lower(), ()) for form in _spellings(suffix)]
    beside = [*(path.with_name(path.name + suffix) for suffix in APPENDED), *map(path.with_suffix, suffixes)]
    # Not Path.is_file: beside a name of 255 bytes it raises "File name too long" instead of answering.
    return [file for file in beside if os.path.isfile(file)]  # noqa: PTH113


def file_stamp(path: Path) -> str:
    """Return a file's size and time of change; raises OSError for a missing one."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def _beside(path: Path, look: Callable[[Path], str]) -> list[str]:
    """Return for each side file that says something its suffix and what `look`, or `pam_digest`, finds."""
    found = [(file, pam_digest(file) if file.name.endswith(PAM) else look(file)) for file in side_files(path)]
    # Once each: a file system that ignores case finds one file under all of its spellings.
    return list(dict.fromkeys(f"{file.suffix.lower()} {said}" for file, said in found if said is not None))


def _spellings(suffix: str) -> tuple[str, str, str]:
    """Return a suffix in the ways programs write it: .tfw, .TFW and, beside an upper-case name, .TFw."""
    return suffix, suffix.upper(), suffix[:-1].upper() + suffix[-1]
