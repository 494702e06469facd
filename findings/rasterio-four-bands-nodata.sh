#!/usr/bin/env bash
# rasterio 1.4.4: dataset_mask() of a four-band raster whose first band is red and which has a nodata value is the mask
# of the last band alone, whatever the colour bands hold. Seen: a pixel whose red, green and blue are all nodata counts as
# valid (255), one whose fourth band alone is nodata does not (0). With three bands the same file answers from all bands.
# Ends with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rasterio==1.4.4 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import rasterio
from rasterio.transform import Affine


def masks(bands: int) -> list[int]:
    """Return what dataset_mask() says of three pixels: all data, colours nodata, last band nodata."""
    pixels = np.full((bands, 1, 3), 9, np.uint8)
    pixels[:3, 0, 1] = 0
    pixels[-1, 0, 2] = 0
    grid = {"crs": "EPSG:32633", "transform": Affine(1, 0, 0, 0, -1, 0)}
    with rasterio.open("x.tif", "w", driver="GTiff", height=1, width=3, count=bands, dtype="uint8", nodata=0,
                       photometric="rgb", **grid) as target:
        target.write(pixels)
    with rasterio.open("x.tif") as source:
        return source.dataset_mask()[0].tolist()


print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
print("three bands", masks(3))
print("four bands ", four := masks(4))
sys.exit(four != [255, 255, 0])
PYTHON
