#!/usr/bin/env bash
# rasterio 1.4.4 (GDAL 3.10.3): GDAL_SKIP=VRT, which keeps GDAL from opening virtual rasters (they can name any file or
# host), holds only until the process makes one WarpedVRT of any other file: that registers the driver again, for good.
# A service that warps what it is given opens virtual rasters from its second request on. Seen: a .vrt is refused
# before, and opened after. Ends with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rasterio==1.4.4 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
import sys
from pathlib import Path

os.environ["GDAL_SKIP"] = "VRT"

import numpy as np
import rasterio
from rasterio.errors import RasterioIOError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT

VRT = """<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>
</VRTDataset>"""
grid = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6)}
with rasterio.open("a.tif", "w", driver="GTiff", height=8, width=8, count=1, dtype="uint8", **grid) as target:
    target.write(np.ones((1, 8, 8), np.uint8))
Path("a.vrt").write_text(VRT)


def opens() -> bool:
    try:
        with rasterio.open("a.vrt"):
            return True
    except RasterioIOError:
        return False


print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
before = opens()
with rasterio.open("a.tif") as source, WarpedVRT(source, crs="EPSG:4326") as warped:
    warped.read()
after = opens()
print(f"with GDAL_SKIP=VRT a .vrt opens: {before}; once another file was warped: {after}")
sys.exit((before, after) != (False, True))
PYTHON
