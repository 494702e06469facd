"""Calls into rasterio that work on rasters in memory: burning and warping arrays.

Such a call sets Python's warning filters while it runs. They belong to the whole process, and threads that open files
meanwhile rely on them, so all of them take turns.
"""

from __future__ import annotations

import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rasterio.errors import NotGeoreferencedWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock = threading.Lock()


@contextmanager
def in_memory() -> Iterator[None]:
    """Hold the warning filters, with rasterio's complaint about arrays without a place on the ground switched off."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
