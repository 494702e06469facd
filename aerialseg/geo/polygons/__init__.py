"""Buildings as polygons: traced from masks, whole across scenes, and written as GIS formats."""

from __future__ import annotations
