"""Rasters and vectors on the ground: opening, checking, reading, cutting, stitching, writing; no torch from here down.

Importing this package tells GDAL, through the process environment, what it may not do. It happens here because two
copies of GDAL live in the process (rasterio's and pyogrio's), both read the environment, and drivers are registered
once, at the first use of either.
"""

from __future__ import annotations

import os

from aerialseg.environment import TAKEN_OUT, find_grids, tell

tell(TAKEN_OUT)
find_grids()
# Drivers that read other files or the network on behalf of the file they open. Each once, also in a child process that
# inherits the variable: pyogrio's GDAL prints a line for a driver it cannot find any more.
_given = os.environ.get("GDAL_SKIP", "")
_separator = "," if "," in _given else " "
_skipped = dict.fromkeys(filter(None, (name.strip() for name in _given.split(_separator))))
_skipped |= dict.fromkeys(("VRT", "OGR_VRT", "GTI", "WMS", "WMTS", "WCS", "HTTP"))
os.environ["GDAL_SKIP"] = _separator.join(_skipped)
# A PNG's .aux.xml can name a remote file as its overviews, and a decimated read asks for it even with overviews off.
os.environ.setdefault("CPL_VSIL_CURL_ALLOWED_EXTENSIONS", ".refused")
# The fast path for whole PNGs returns uninitialised memory for a truncated file, without an error (GDAL 3.10, 3.12).
os.environ["GDAL_PNG_WHOLE_IMAGE_OPTIM"] = "NO"
# A truncated JPEG is otherwise filled with grey, with a warning nobody sees.
os.environ["GDAL_ERROR_ON_LIBJPEG_WARNING"] = "TRUE"
# A deprecated CRS would be replaced by its successor on reading, and the output would not have the scene's.
os.environ["OSR_USE_NON_DEPRECATED"] = "NO"
# A mask band belongs into its file: a .msk beside it would be lost when the file is renamed.
os.environ["GDAL_TIFF_INTERNAL_MASK"] = "YES"
# The default, 5 % of the machine's memory, costs more than a gigabyte and buys nothing: windows are read in order.
os.environ.setdefault("GDAL_CACHEMAX", "64")
os.environ.setdefault("PROJ_NETWORK", "OFF")
