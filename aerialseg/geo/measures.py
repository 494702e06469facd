"""Which rasters measure something (a probability, an agreement) instead of saying building or not, and whose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.errors import one_line
from aerialseg.geo.opening import open_raster
from aerialseg.geo.ownership import PREDICTION_TAG, mark_of, read_tags

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROBABILITY = "probability"
MEASURES = frozenset((PROBABILITY, "agreement"))
"""The folders in which `predict` keeps what does not say building or not."""


def kind_of(path: Path) -> str | None:
    """Return "mask" or "measure" for a raster that `predict` wrote, wherever it lies; None for any other file."""
    if not mark_of(path, "prediction"):
        return None
    with open_raster(path) as dataset:
        return "measure" if any(scale != 1 for scale in dataset.scales) else "mask"


def is_of_another_run(measure: Path, mask: Path) -> bool:
    """Return whether `predict` made a mask from other things, such as another model, than the measure of its name.

    Never of a foreign mask, which has no key, nor when one cannot be read: whoever reads it next says so.
    """
    made_from, tags = mark_of(mask, "prediction"), read_tags(measure)
    return bool(made_from) and tags is not None and tags.get(PREDICTION_TAG) != made_from


def left_out_note(measures: Sequence[Path]) -> str:
    """Return a line on measures, one or more, that are of another run than their masks."""
    more = f" and {len(measures) - 1} more" if len(measures) > 1 else ""
    return (
        f"{one_line(measures[0])}{more}: made with another model or options than its mask, and left out;"
        " run predict --probability again to have it anew"
    )
