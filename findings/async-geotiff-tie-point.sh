#!/usr/bin/env bash
# async-geotiff 0.5.1: a GeoTIFF whose tie point is not the upper left corner, which is valid (ModelTiepointTag is I, J,
# K, X, Y, Z) and written by cameras' and photogrammetry's programs for the centre, is placed as if it were: I and J are
# left unread. Seen: a tie point at column 4, row 2 gives an origin 4 columns east and 2 rows south of GDAL's, without a
# warning. Ends with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check async-geotiff==0.5.1 rasterio==1.4.4 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import struct
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import rasterio
from async_geotiff import GeoTIFF
from async_tiff.store import LocalStore
from rasterio.transform import Affine

grid = {"driver": "GTiff", "crs": "EPSG:32633", "transform": Affine(1, 0, 500000, 0, -1, 5000000)}
with rasterio.open("a.tif", "w", height=256, width=256, count=1, dtype="uint8", tiled=True, **grid) as target:
    target.write(np.ones((1, 256, 256), np.uint8))
stored, corner = Path("a.tif").read_bytes(), struct.pack("<6d", 0, 0, 0, 500000, 5000000, 0)
assert stored.count(corner) == 1
Path("a.tif").write_bytes(stored.replace(corner, struct.pack("<6d", 4, 2, 0, 500004, 4999998, 0)))


async def placed() -> Affine:
    return (await GeoTIFF.open("a.tif", store=LocalStore(Path.cwd()))).transform


with rasterio.open("a.tif") as source:
    by_gdal = (source.transform.c, source.transform.f)
transform = asyncio.run(placed())
found = (transform.c, transform.f)
print("async-geotiff", version("async-geotiff"), "async-tiff", version("async-tiff"))
print(f"the corner of one file: GDAL {by_gdal}, async-geotiff {found}")
sys.exit(by_gdal != (500000, 5000000) or found != (500004, 4999998))
PYTHON
