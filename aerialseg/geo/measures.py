"""Which rasters measure something (a probability, a disagreement) instead of saying building or not, and whose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.errors import AerialsegError, one_line
from aerialseg.geo.opening import open_raster

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROBABILITY = "probability"
FORMER_FOLDERS = {"disagreement": "agreement"}
"""Where earlier versions kept rasters."""
MEASURES = frozenset((PROBABILITY, *FORMER_FOLDERS, *FORMER_FOLDERS.values()))
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


def is_of_another_run(measure: Path, mask: Path) -> bool:
    """Return whether `predict` made a mask from other things, such as another model, than the measure of its name.

    Never of a stranger's mask, which has no key, nor when one cannot be read: whoever reads it next says so.
    """
    made_from = _key_of(mask)
    return bool(made_from) and _key_of(measure) not in (made_from, None)


def left_out_note(measures: Sequence[Path]) -> str:
    """Return a line on measures, one or more, that are of another run than their masks."""
    more = f" and {len(measures) - 1} more" if len(measures) > 1 else ""
    return (
        f"{one_line(measures[0])}{more}: made with another model or options than its mask, and left out;"
        " run predict --probability again to have it anew"
    )


def _key_of(path: Path) -> str | None:
    """Return the key that a raster carries: "" for a stranger's, None for one that cannot be read."""
    try:
        with open_raster(path) as dataset:
            return str(dataset.tags().get(KEY, ""))
    except AerialsegError:
        return None
