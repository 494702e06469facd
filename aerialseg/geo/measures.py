"""Which rasters measure something (a probability, an agreement) instead of saying building or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.errors import AerialsegError
from aerialseg.geo.opening import open_raster

if TYPE_CHECKING:
    from pathlib import Path

PROBABILITY = "probability"
MEASURES = frozenset((PROBABILITY, "agreement"))
"""The folders in which `predict` keeps what does not say building or not."""
KEY = "AERIALSEG_KEY"
"""The metadata item that every raster of `predict` carries."""


def kind_of(path: Path) -> str | None:
    """Return "mask" or "measure" for a raster that `predict` wrote, wherever it lies; None for any other file."""
    try:
        with open_raster(path) as dataset:
            if not dataset.tags().get(KEY):
                return None
            return "measure" if any(scale != 1 for scale in dataset.scales) else "mask"
    except AerialsegError:
        return None
