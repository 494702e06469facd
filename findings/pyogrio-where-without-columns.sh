#!/usr/bin/env bash
# pyogrio 0.11.1: a `where` condition beside `columns=[]` (geometries only) finds nothing in Shapefile and FlatGeobuf files,
# and everything for `kind IS NULL`: the drivers then leave the column unread, so it is null to the condition. GeoPackage
# and GeoJSON answer right. No warning is given. Seen: 0 features of 1 in .shp and .fgb, 1 of 1 in .gpkg and .geojson.
# Ends with 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyogrio==0.11.1 numpy==2.2.6 shapely==2.1.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import pyogrio
import pyogrio.raw
import shapely

shapes = shapely.to_wkb(np.array([shapely.box(0, 0, 1, 1), shapely.box(5, 5, 6, 6)], dtype=object))
kinds = [np.array(["house", "shed"], dtype=object)]
found = {}
for name, driver in (("a.shp", "ESRI Shapefile"), ("a.fgb", "FlatGeobuf"), ("a.gpkg", "GPKG"), ("a.geojson", "GeoJSON")):
    pyogrio.raw.write(name, shapes, kinds, ["kind"], crs="EPSG:4326", geometry_type="Polygon", driver=driver)
    wheres = ("kind = 'house'", "kind IS NULL")
    found[driver] = [len(pyogrio.raw.read(name, columns=[], where=where)[2]) for where in wheres]
print("pyogrio", pyogrio.__version__, "GDAL", ".".join(map(str, pyogrio.__gdal_version__)))
for driver, (house, null) in found.items():
    print(f"{driver}: {house} of 1 house, {null} without a kind")
wrong = [0, 2]
sys.exit(not (found["ESRI Shapefile"] == found["FlatGeobuf"] == wrong and found["GPKG"] == found["GeoJSON"] == [1, 0]))
PYTHON
