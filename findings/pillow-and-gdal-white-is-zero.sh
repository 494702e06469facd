#!/usr/bin/env bash
# Pillow 12.0.0 and rasterio 1.4.4 read opposite masks from one TIFF whose photometric interpretation says that white is
# zero, as scanners, CCITT writers and some GIS programs write bilevel masks: Pillow turns the values round (buildings
# 0, ground 255), GDAL hands them out as stored. A model that is trained through one library and scored through the
# other learns the ground. Seen: 255 at a building by rasterio, 0 by Pillow, in 8 bits; 1 and 0 in 1 bit. Ends with 1
# when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==12.0.0 rasterio==1.4.4 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import PIL
import rasterio
from PIL import Image
from rasterio.transform import Affine

grid = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6)}
building = np.zeros((1, 8, 8), np.uint8)
building[0, 2:6, 2:6] = 1
print("Pillow", PIL.__version__, "rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
found = []
for bits in (8, 1):
    with rasterio.open("mask.tif", "w", driver="GTiff", height=8, width=8, count=1, dtype="uint8", nbits=bits,
                       photometric="miniswhite", **grid) as target:
        target.write(building * (255 if bits == 8 else 1))
    with rasterio.open("mask.tif") as source:
        by_gdal = int(source.read(1)[3, 3])
    by_pillow = int(np.asarray(Image.open("mask.tif"))[3, 3])
    found.append((by_gdal, by_pillow))
    print(f"{bits} bits: at a building rasterio reads {by_gdal}, Pillow {by_pillow}")
sys.exit(found != [(255, 0), (1, 0)])
PYTHON
