#!/usr/bin/env bash
# rasterio 1.4.4 (GDAL 3.10.3): a disk that is full while a compressed GeoTIFF is written raises an error, unless the
# file was opened with num_threads: then write() and close() succeed and the file cannot be read. build_overviews() into
# a full disk succeeds, too, with one thread, and the overview cannot be read. Lines on stderr are all that tells. The
# full disk is a limit on a file's size here, which the system answers in the same way (EFBIG for ENOSPC). Seen:
# RasterioIOError with one thread, no error with two and for overviews; reading either raises. Ends with 1 when that
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rasterio==1.4.4 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioIOError
from rasterio.transform import Affine

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
pixels = np.random.default_rng(0).integers(0, 255, (1, 2048, 2048), np.uint8)
grid = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6)}
shape = {"height": 2048, "width": 2048, "count": 1, "dtype": "uint8", "tiled": True, "compress": "deflate"}


@contextmanager
def room(size: int):
    """Let no file grow over so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def write(name: str, **options: int) -> None:
    with rasterio.open(name, "w", driver="GTiff", **shape, **grid, **options) as target:
        target.write(pixels)


def outcome(call, *arguments, **options) -> str:
    try:
        call(*arguments, **options)
    except RasterioIOError:
        return "RasterioIOError"
    return "no error"


def read(name: str, **options) -> np.ndarray:
    with rasterio.open(name, **options) as source:
        return source.read()


def add_overviews(name: str) -> None:
    with rasterio.open(name, "r+") as target:
        target.build_overviews([2, 4], rasterio.enums.Resampling.average)


print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
with room(1_000_000):
    one, two = outcome(write, "one.tif"), outcome(write, "two.tif", num_threads=2)
again = outcome(read, "two.tif")
print(f"written with one thread: {one}; with two: {two}, read again: {again}")
write("overviews.tif")
with room(Path("overviews.tif").stat().st_size + 200_000):
    built = outcome(add_overviews, "overviews.tif")
level = outcome(read, "overviews.tif", OVERVIEW_LEVEL=0)
print(f"overviews: {built}; read again: {level}")
sys.exit([one, two, again, built, level] != ["RasterioIOError", *["no error", "RasterioIOError"] * 2])
PYTHON
