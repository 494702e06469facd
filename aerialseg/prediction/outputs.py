"""The files of one scene: where they go, whether they are ours and up to date, and how they come into being.

While the network runs, finished strips gather in a part (see `parts`). From it, in a thread of its own, the
cloud-optimised files are written, verified and given their names, the mask last: where it stands, all of the scene's
outputs do. What was made from what travels in the file's own metadata, under `ownership.PREDICTION_TAG`.

How much a scene's probabilities jump where windows begin and end, against everywhere else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from aerialseg import __version__
from aerialseg.counts import NODATA, QUANTA, quantum_of
from aerialseg.errors import AerialsegError, UsageError, one_line
from aerialseg.files import sha256_of
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.ownership import PREDICTION_TAG
from aerialseg.geo.styles import write_mask_sidecars
from aerialseg.geo.writing import BandMeaning, write_cog
from aerialseg.prediction.lattice import Lattice

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from numpy.typing import NDArray

    from aerialseg.geo.scenes import Scene
    from aerialseg.geo.windows import Axis
    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.network import EngineSettings
    from aerialseg.prediction.resume import ResumeFile

COUNTS = ("AERIALSEG_VALID_PIXELS", "AERIALSEG_BUILDING_PIXELS")
ENGINE = 2
"""Part of every key: raise it when the same inputs and parameters come to give other pixels."""
MASK = BandMeaning(NODATA, "share")
MEASURE = BandMeaning(NODATA, "average", scale=1 / QUANTA)
"""A probability, or the windows' disagreement: 0 to 254 stand for 0 to 1."""
LAYERS = {"probability": 0, "agreement": 1}
"""Which layer of a part holds what."""
EVERY = 4
"""One row in so many is looked at, and all those at window edges: 25 million differences in a third of the time."""


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """Where a scene's outputs go."""

    mask: Path
    probability: Path | None
    agreement: Path | None = None

    @classmethod
    def of(cls, scene: Scene, out: Path, measures: Collection[str] = ()) -> SceneFiles:
        """Return the paths below `out` that mirror the scene's name; raises UsageError for a name that leaves it.

        `measures` says which of the LAYERS are written beside the mask.
        """
        name = PurePosixPath(scene.name)
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise UsageError(f"{one_line(scene.name)}: a scene's name must be a relative path without ..")
        file = name.with_name(f"{name.name}.tif")
        probability, agreement = (out / kind / file if kind in measures else None for kind in LAYERS)
        return cls(out / file, probability, agreement)

    @property
    def by_kind(self) -> dict[str, Path]:
        """The files that carry pixels, the mask last."""
        found = {"probability": self.probability, "agreement": self.agreement, "mask": self.mask}
        return {kind: path for kind, path in found.items() if path is not None}

    @property
    def rasters(self) -> tuple[Path, ...]:
        """The files that carry pixels, the mask last."""
        return tuple(self.by_kind.values())

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that may be written for the scene."""
        styles = [path.with_suffix(".qml") for path in (self.mask, self.probability) if path is not None]
        return *self.rasters, self.mask.with_name(f"{self.mask.name}.aux.xml"), *styles


def done_key(scene: str, parameters: Mapping[str, Any]) -> str:
    """Return the key over the digest of a scene with its side files and everything else that decides its pixels."""
    described = {"engine": ENGINE, "scene": scene, **parameters}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def reads_to_the_end(path: Path) -> bool:
    """Return whether the last block of an output can be read: a copy that broke off has its head, and its tags."""
    try:
        with open_raster(path) as dataset, raster_errors(path):
            dataset.read(1, window=Window(dataset.width - 1, dataset.height - 1, 1, 1))
    except AerialsegError:
        return False
    return True


def count_pixels(part: ResumeFile, threshold: float, seams: SeamCounter) -> tuple[int, int]:
    """Return how many pixels of a finished scene are valid, and building; lets `seams` see every strip.

    Raises StorageError when the part does not read back as written; what is read from it later is not checked again.
    """
    valid = building = 0
    for row, quanta in part.strips(checked=True):
        seams.add(row, quanta)
        invalid = int(np.count_nonzero(quanta == NODATA))
        valid += quanta.size - invalid
        building += int(np.count_nonzero(quanta >= quantum_of(threshold))) - invalid
    return valid, building


def finish(
    part: ResumeFile, files: SceneFiles, box: GeoBox, tags: Mapping[str, str], *, threshold: float, replace_sides: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write the scene's rasters from its part, under their final names, the mask last.

    Returns their SHA-256 by kind, and warnings. The mask is a function of the quantised probability: building where
    q >= round(254 x threshold). Side files that exist stay, unless `replace_sides`: they may hold a user's changes, or
    belong to a foreign raster that is being replaced. Raises what `write_cog` and `Part.strips` raise.
    """
    hashes = {}
    for kind, path in files.by_kind.items():
        if kind == "mask":
            write_cog(path, box, partial(_mask_strips, part, threshold), MASK, tags=tags)
        else:
            write_cog(path, box, partial(_measured_strips, part, LAYERS[kind]), MEASURE, tags=tags)
        hashes[kind] = sha256_of(path)
    write_sides(files, replace=replace_sides)
    with open_raster(files.mask) as mask:
        found = GeoBox.of(mask)
    moved = (found.transform, found.crs) != (box.transform, box.crs)
    name = one_line(files.mask)
    return hashes, (f"{name}: a side file beside it moves it off its scene; remove {name}.*",) if moved else ()


def write_sides(files: SceneFiles, *, replace: bool = False) -> None:
    """Write the side files that are missing; with `replace`, all."""
    write_mask_sidecars(files.mask, replace=replace)


def output_tags(key: str, model_hash: str, threshold: float, counts: tuple[int, int]) -> dict[str, str]:
    """Return what every output says about itself; `counts` are its valid and its building pixels."""
    return {
        PREDICTION_TAG: key,
        "AERIALSEG_VERSION": __version__,
        "AERIALSEG_MODEL_SHA256": model_hash,
        "AERIALSEG_THRESHOLD": repr(threshold),
        **dict(zip(COUNTS, map(str, counts), strict=True)),
    }


def _mask_strips(part: ResumeFile, threshold: float) -> Iterator[NDArray[np.uint8]]:
    for _, quanta in part.strips():
        yield _labels(quanta, threshold)


def _measured_strips(part: ResumeFile, layer: int) -> Iterator[NDArray[np.uint8]]:
    for _, values in part.strips(layer):
        yield values


def _labels(quanta: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """Return 0, 1 or NODATA for each quantised probability."""
    labels = (quanta >= quantum_of(threshold)).view(np.uint8)
    if quanta.max() == NODATA:
        labels[quanta == NODATA] = NODATA
    return labels


class SeamCounter:
    """Adds up differences between neighbouring pixels, at window edges and elsewhere; a class because it is all state.

    A difference lies at a window's edge when a window of the lattice begins or ends between the two pixels (on the grid
    that was run: a resampled scene's edges are those nearest on its own). Pixels without data have no neighbours.
    """

    def __init__(self, row_edges: NDArray[np.bool_], col_edges: NDArray[np.bool_]) -> None:
        self._row_edges, self._col_edges = row_edges, col_edges
        self._sums = np.zeros(2, dtype=np.int64)
        """Differences elsewhere and at edges, in quanta."""
        self._counts = np.zeros(2, dtype=np.int64)
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    @classmethod
    def of(cls, canvas: ScenePlacement, settings: EngineSettings) -> SeamCounter:
        """Return an empty tally for a scene; memory: a byte for each of its rows and columns, and a row of pixels."""
        lattice = Lattice.of(canvas, settings.size, settings.overlap)
        box, factor = canvas.source.box, canvas.factor
        return cls(
            _edges(lattice.rows, canvas.row, box.height, factor), _edges(lattice.cols, canvas.col, box.width, factor)
        )

    def add(self, row: int, quanta: NDArray[np.uint8]) -> None:
        """Take the strip [rows, width] that begins at `row`, 255 where there is no data.

        Strips that do not follow the last one (a run that went on elsewhere) are not compared with it.
        """
        if self._last is not None and self._last[0] == row:
            self._count_rows(np.stack([self._last[1], quanta[0]]), row)
        self._count_rows(quanta, row + 1)
        some = quanta[-row % EVERY :: EVERY]
        marked = bool((some == NODATA).any())
        across = _differences(some[:, :-1], some[:, 1:], marked=marked)
        sums = across.sum(0, dtype=np.uint32).astype(np.int64)  # a strip has no more than 2^24 rows
        self._count(sums, _pairs(some[:, :-1], some[:, 1:], 0, marked), self._col_edges)
        self._last = row + len(quanta), quanta[-1].copy()

    def _count_rows(self, quanta: NDArray[np.uint8], row: int) -> None:
        """Add the differences between the rows; the second one is `row`."""
        upper = np.arange(row - 1, row - 2 + len(quanta))
        edges = self._row_edges[upper]
        chosen = np.flatnonzero(edges | (upper % EVERY == 0))
        one, other = quanta[chosen], quanta[chosen + 1]
        marked = bool((one == NODATA).any() or (other == NODATA).any())
        down = _differences(one, other, marked=marked)
        self._count(down.sum(1, dtype=np.int64), _pairs(one, other, 1, marked), edges[chosen])

    def _count(self, sums: NDArray[np.int64], pairs: NDArray[np.int64], edges: NDArray[np.bool_]) -> None:
        self._sums += sums[~edges].sum(), sums[edges].sum()
        self._counts += pairs[~edges].sum(), pairs[edges].sum()

    @property
    def index(self) -> float | None:
        """The mean difference at window edges over that elsewhere: 1 means no seam.

        None where one of them is unknown: a scene of one window, or without a single difference.
        """
        if not self._counts.all() or not self._sums[0]:
            return None
        elsewhere, edges = self._sums / self._counts
        return float(edges / elsewhere)


def _edges(axis: Axis, offset: int, length: int, factor: float) -> NDArray[np.bool_]:
    """Return for each pair of neighbouring pixels of a scene's axis whether a window begins or ends between them."""
    starts = np.array(axis.starts)
    borders = np.concatenate([starts[1:], starts[:-1] + axis.size])
    places = np.rint(borders * factor).astype(np.int64) - offset
    edges = np.zeros(max(0, length - 1), dtype=np.bool_)
    edges[places[(places > 0) & (places < length)] - 1] = True
    return edges


def _differences(one: NDArray[np.uint8], other: NDArray[np.uint8], *, marked: bool) -> NDArray[np.uint8]:
    """Return |one - other|, 0 where either has no data."""
    differences = np.maximum(one, other)
    np.subtract(differences, np.minimum(one, other), out=differences)
    if marked:
        differences[(one == NODATA) | (other == NODATA)] = 0
    return differences


def _pairs(one: NDArray[np.uint8], other: NDArray[np.uint8], axis: int, marked: bool) -> NDArray[np.int64]:
    """Return how many pairs have data, along `axis`."""
    if not marked:
        return np.full(one.shape[1 - axis], one.shape[axis], dtype=np.int64)
    pairs: NDArray[np.int64] = ((one != NODATA) & (other != NODATA)).sum(axis, dtype=np.int64)
    return pairs
