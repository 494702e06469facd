#!/usr/bin/env bash
# rasterio 1.4.4's wheel brings a proj.db of its own and still takes the one of PROJ_DATA, which shells of conda, QGIS
# and OSGeo4W set: with that of an older PROJ, rasters open, read and have a CRS, but to_epsg() answers None,
# from_epsg() raises CRSError "The EPSG code is unknown", and the reason goes to the log. A code that compares to_epsg()
# finds None equal to None. pyproj 3.4.1's wheel (PROJ 9.1) stands in for the other installation. Seen: EPSG 32633
# without the variable, None with it. Ends with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --target "$folder/other" pyproj==3.4.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rasterio==1.4.4 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
import subprocess
import sys

import numpy as np
import rasterio
from rasterio.transform import Affine

grid = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6)}
with rasterio.open("a.tif", "w", driver="GTiff", height=8, width=8, count=1, dtype="uint8", **grid) as target:
    target.write(np.ones((1, 8, 8), np.uint8))
ASK = """
import rasterio
with rasterio.open("a.tif") as source:
    print(source.crs is not None, source.crs.to_epsg())
try:
    print(rasterio.crs.CRS.from_epsg(32633).to_epsg())
except rasterio.errors.CRSError as error:
    print("CRSError", str(error)[:24])
"""
print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
found = []
for variables in ({}, {"PROJ_DATA": os.path.abspath("other/pyproj/proj_dir/share/proj")}):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PROJ_")}
    done = subprocess.run([sys.executable, "-c", ASK], env=plain | variables, capture_output=True, text=True, check=True)
    found.append(done.stdout.splitlines())
    print("with PROJ_DATA:" if variables else "without:", found[-1])
sys.exit(found != [["True 32633", "32633"], ["True None", "CRSError The EPSG code is unknown"]])
PYTHON
