#!/usr/bin/env bash
# rasterio 1.4.4 (GDAL 3.10.3): a process that is killed between write() and close() leaves a GeoTIFF that opens without
# an error or a warning, with its right size and CRS, and reads as zeros everywhere. So neither "the file is there" nor
# "it can be opened and read" tells that a mask was finished. Seen: 16777216 zeros where sevens were written, without
# compression, with DEFLATE and with ZSTD. Ends with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rasterio==1.4.4 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
import sys
import warnings

import numpy as np
import rasterio
from rasterio.transform import Affine

warnings.simplefilter("error")
grid = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6)}
shape = {"height": 4096, "width": 4096, "count": 1, "dtype": "uint8", "tiled": True}
print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
zeros = []
for compression in ("none", "deflate", "zstd"):
    if (child := os.fork()) == 0:
        target = rasterio.open("killed.tif", "w", driver="GTiff", compress=compression, **shape, **grid)
        target.write(np.full((1, 4096, 4096), 7, np.uint8))
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with rasterio.open("killed.tif") as source:
        zeros.append(int((source.read() == 0).sum()))
        print(f"{compression}: {source.height} x {source.width} px, {source.crs}, {zeros[-1]} zeros")
    os.remove("killed.tif")
sys.exit(zeros != [4096 * 4096] * 3)
PYTHON
