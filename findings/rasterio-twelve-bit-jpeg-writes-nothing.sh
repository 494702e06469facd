#!/usr/bin/env bash
# rasterio 1.4.4 (GDAL 3.10.3): a GeoTIFF of 12 bits with JPEG compression (nbits=12, compress="jpeg", a usual form of
# aerial archives) cannot be written by the wheel's libtiff, and nobody says so: open(), write() and close() succeed, a
# line goes to the log, and the file of 360 bytes opens, has its size and type, and reads as zeros. Ends with 1 when that
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rasterio==1.4.4 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
pixels = np.arange(4096, dtype=np.uint16).reshape(1, 64, 64)
with rasterio.open("a.tif", "w", driver="GTiff", height=64, width=64, count=1, dtype="uint16", compress="jpeg", nbits=12,
                   crs="EPSG:32633", transform=Affine(1, 0, 5e5, 0, -1, 5e6)) as target:
    target.write(pixels)
with rasterio.open("a.tif") as source:
    found = source.read()
print(f"written: 0 to {pixels.max()}; read: {found.min()} to {found.max()}, from {Path('a.tif').stat().st_size} bytes")
sys.exit(bool(found.any()))
PYTHON
