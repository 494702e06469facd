"""Calls into rasterio that work on rasters in memory: burning and warping arrays.

Such a call sets Python's warning filters while it runs. They belong to the whole process, and threads that open files
meanwhile rely on them, so all of them take turns.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rasterio.errors import NotGeoreferencedWarning

from aerialseg.geo.opening import _warnings_lock

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def in_memory() -> Iterator[None]:
    """Hold the warning filters, with rasterio's complaint about arrays without a place on the ground switched off."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
