"""A digest of what a file says, side files included: how "is it done already?" is decided, never by times."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from aerialseg.files import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

APPENDED = (".aux.xml", ".msk", ".MSK", "-wal")
"""Side files named after the whole name: GDAL's metadata, a mask, a GeoPackage's pending changes."""
REPLACED = {
    ".tif": (".tfw", ".tifw", ".wld"),
    ".tiff": (".tfw", ".tiffw", ".wld"),
    ".jp2": (".j2w", ".jp2w", ".wld"),
    ".png": (".pgw", ".pngw", ".wld"),
    ".jpg": (".jgw", ".jpgw", ".jpegw", ".wld"),
    ".jpeg": (".jgw", ".jpgw", ".jpegw", ".wld"),
    ".shp": (".shx", ".dbf", ".prj", ".cpg"),
}
"""Side files with the same stem: world files, and the parts of a Shapefile."""


def content_digest(path: Path) -> str:
    """Return a SHA-256 over the bytes of a raster or vector file and of the side files that GDAL reads with it."""
    stem_files = [path.with_suffix(suffix) for suffix in REPLACED.get(path.suffix.lower(), ())]
    upper = [file.with_suffix(file.suffix.upper()) for file in stem_files]
    beside = [*(path.with_name(path.name + suffix) for suffix in APPENDED), *stem_files, *upper]
    # Not Path.is_file: beside a name of 255 bytes it raises "File name too long" instead of answering.
    there = [file for file in beside if os.path.isfile(file)]  # noqa: PTH113
    parts = [sha256_of(path), *(f"{file.suffix.lower()} {sha256_of(file)}" for file in there)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
