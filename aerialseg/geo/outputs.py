"""The rasters that `predict` writes for a scene: what each is called, where it lies, and what its values mean.

A new one is a value here, a plane that the engine blends, and a flag; every loop over a scene's files takes it from
OUTPUTS. Those that do not say building or not (a probability, a disagreement) are measures.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aerialseg.counts import NODATA, QUANTA
from aerialseg.errors import one_line
from aerialseg.geo.opening import open_raster
from aerialseg.geo.ownership import PREDICTION_TAG, mark_of, read_tags
from aerialseg.geo.writing import BandMeaning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.geo.vrt import Kind


@dataclass(frozen=True, slots=True)
class Output:
    """A raster on a scene's grid, uint8."""

    name: str
    """What report.json calls it."""
    folder: str
    """Below the folder of a run; empty for the masks, which lie in it."""
    plane: int
    """Which of the planes that the engine blends it is made from."""
    layer: BandMeaning
    style: Kind | None
    """How mosaics and the QGIS project show it; they leave out what has none."""


_SHARE = BandMeaning(NODATA, "average", scale=1 / QUANTA)
PROBABILITY = Output("probability", "probability", 0, _SHARE, "probability")
DISAGREEMENT = Output("disagreement", "disagreement", 1, _SHARE, None)
"""0 where the windows over a pixel agree, 1 where half of them say 0 and half 1."""
MASK = Output("mask", "", 0, BandMeaning(NODATA, "share"), "mask")
UNCUT = Output("uncut", "uncut", 0, _SHARE, None)
"""The probability of an area with its margin, from which buildings at the border are drawn whole."""
OUTPUTS = (PROBABILITY, DISAGREEMENT, UNCUT, MASK)
"""In the order in which they are written: where a mask stands, all of its scene's outputs do."""
FORMER_FOLDERS = {DISAGREEMENT.folder: "agreement"}
"""Where earlier versions kept an output."""
STAC, ITEMS = "stac", "items"
"""The folder of a run's catalogue, and that of its items below it."""
MEASURE_FOLDERS = frozenset((*(output.folder for output in OUTPUTS if output.folder), *FORMER_FOLDERS.values()))


def identifier_of(name: str) -> str:
    """Return a scene's name where it is plain enough for a file name and an address, else a likeness with a digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return name
    likeness = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "scene"
    return f"{likeness}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def item_path(out: Path, name: str) -> Path:
    """Return where a run into `out` writes a scene's STAC item."""
    return out / STAC / ITEMS / f"{identifier_of(name)}.json"


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
