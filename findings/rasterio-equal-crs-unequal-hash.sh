#!/usr/bin/env bash
# rasterio 1.4.4: two CRS that are equal (==) have different hashes when one was read from WKT 2 or ESRI's WKT, so a set
# or a dict of CRS holds the same CRS twice: scenes that are grouped by CRS fall into two groups. Python asks of equal
# objects that their hashes are equal; here == asks GDAL whether they are the same, hash() takes the text. Seen:
# EPSG:25832 and its WKT2: equal, a set of both has 2. Ends with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rasterio==1.4.4 pyproj==3.7.2 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import pyproj
import rasterio
from rasterio.crs import CRS

print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
number = CRS.from_epsg(25832)
texts = {version: pyproj.CRS(25832).to_wkt(version) for version in ("WKT1_GDAL", "WKT1_ESRI", "WKT2_2019")}
found = {}
for name, text in texts.items():
    other = CRS.from_string(text)
    found[name] = (number == other, len({number, other}))
    print(f"{name}: equal {found[name][0]}, a set of both has {found[name][1]}")
sys.exit(found["WKT1_GDAL"] != (True, 1) or found["WKT1_ESRI"] != (True, 2) or found["WKT2_2019"] != (True, 2))
PYTHON
