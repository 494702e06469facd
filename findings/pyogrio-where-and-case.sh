#!/usr/bin/env bash
# pyogrio 0.11.1 (GDAL 3.10.3): `where="kind = 'house'"` ignores case in Shapefile, FlatGeobuf and GeoJSON files and
# heeds it in a GeoPackage; with LIKE it is the other way round. So the same condition picks other features once a file
# is converted. The first three are asked in OGR's SQL, whose = ignores case, the last in SQLite's, whose LIKE does.
# Seen, for one feature "House": = 'house' finds 1, 1, 1 and 0, LIKE 'house' 0, 0, 0 and 1. Ends with 1 when that
# changes.
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

shape = shapely.to_wkb(np.array([shapely.box(0, 0, 1, 1)], dtype=object))
kind = [np.array(["House"], dtype=object)]
print("pyogrio", pyogrio.__version__, "GDAL", ".".join(map(str, pyogrio.__gdal_version__)))
found = {}
for name, driver in (("a.shp", "ESRI Shapefile"), ("a.fgb", "FlatGeobuf"), ("a.geojson", "GeoJSON"), ("a.gpkg", "GPKG")):
    pyogrio.raw.write(name, shape, kind, ["kind"], crs="EPSG:4326", geometry_type="Polygon", driver=driver)
    wheres = ("kind = 'house'", "kind LIKE 'house'", "kind = 'House'")
    found[driver] = [len(pyogrio.raw.read(name, where=where)[2]) for where in wheres]
    print(driver, dict(zip(wheres, found[driver], strict=True)))
sys.exit(list(found.values()) != [[1, 0, 1], [1, 0, 1], [1, 0, 1], [0, 1, 1]])
PYTHON
