"""Building segmentation of aerial scenes: tiles, training, and georeferenced masks that open in QGIS."""

from __future__ import annotations

__version__ = "0.1.0"
