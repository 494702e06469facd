"""The files of one scene: where they go, whether they are ours and up to date, and how they come into being.

While the network runs, finished strips gather in `StoredRows`. From it, in a thread of its own, the cloud-optimised
files are written, verified and given their names, the mask last: where it stands, all of the scene's outputs do. What
was made from what travels in the file's own metadata, under `ownership.PREDICTION_TAG`. Seams are counted on the way:
how much a scene's probabilities jump where windows begin and end, against everywhere else.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rasterio.enums import Compression
from rasterio.windows import Window

from aerialseg import __version__
from aerialseg.counts import BUILDING, NODATA, quantum_of
from aerialseg.errors import AerialsegError, UsageError, one_line
from aerialseg.files import sha256_of
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.outputs import MASK, UNCUT, Output
from aerialseg.geo.ownership import PIXELS_TAG, PREDICTION_TAG
from aerialseg.geo.styles import write_mask_sidecars
from aerialseg.geo.writing import COG_BLOCK, write_cog
from aerialseg.prediction.lattice import Lattice

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    from aerialseg.geo.areas import Ground
    from aerialseg.geo.scenes import Scene
    from aerialseg.geo.windows import Axis
    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.stored import StoredRows

COUNTS = ("AERIALSEG_VALID_PIXELS", "AERIALSEG_BUILDING_PIXELS")
ENGINE = 2
"""Part of every key: raise it when the same inputs and parameters come to give other pixels."""
EVERY = 4
"""One row in so many is looked at, and all those at window edges: 25 million differences in a third of the time."""
State = Literal["whole", "edited", "damaged"]
SceneFiles = dict[Output, Path]
"""Where a scene's rasters go, the mask last."""


def scene_files(scene: Scene, out: Path, outputs: Collection[Output]) -> SceneFiles:
    """Return the paths below `out` that mirror the scene's name; raises UsageError for a name that leaves it."""
    name = PurePosixPath(scene.name)
    if name.is_absolute() or ".." in name.parts or not name.name:
        raise UsageError(f"{one_line(scene.name)}: a scene's name must be a relative path without ..")
    return {output: out / output.folder / name.with_name(f"{name.name}.tif") for output in outputs}


def with_side_files(files: SceneFiles) -> tuple[Path, ...]:
    """Return every file that may be written for the scene."""
    styles = [path.with_suffix(".qml") for output, path in files.items() if output.style is not None]
    return *files.values(), files[MASK].with_name(f"{files[MASK].name}.aux.xml"), *styles


def done_key(scene: str, parameters: Mapping[str, Any]) -> str:
    """Return the key over the digest of a scene with its side files and everything else that decides its pixels."""
    described = {"engine": ENGINE, "scene": scene, **parameters}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def state_of(path: Path) -> State:
    """Return whether an output reads back as it was written, or has other pixels, such as painted ones.

    One that does not say what its pixels were is whole when its last block can be read: a copy that broke off has its
    head, and its tags. What is not there counts as damaged.
    """
    try:
        with open_raster(path) as dataset, raster_errors(path):
            told = dataset.tags().get(PIXELS_TAG)
            if not told:
                dataset.read(1, window=Window(dataset.width - 1, dataset.height - 1, 1, 1))
                return "whole"
            if pixels_digest(_rows(dataset)) == told:
                return "whole"
            return "edited" if _blocks_are_sound(dataset) else "damaged"
    except AerialsegError:
        return "damaged"


def _blocks_are_sound(dataset: DatasetReader) -> bool:
    """Return whether every compressed block has the checksum of its own bytes, which GDAL does not look at.

    What a program wrote has it, whatever the pixels are; what a disk garbled has not. True where there are none.
    """
    if dataset.compression != Compression.deflate:
        return True
    with Path(dataset.name).open("rb") as stream:
        for (row, col), _ in dataset.block_windows(1):
            place = [dataset.get_tag_item(f"BLOCK_{part}_{col}_{row}", "TIFF", bidx=1) for part in ("OFFSET", "SIZE")]
            if None in place:  # a block of one value need not be stored
                continue
            stream.seek(int(place[0]))
            try:
                zlib.decompress(stream.read(int(place[1])))
            except zlib.error:
                return False
    return True


def pixels_digest(strips: Iterable[NDArray[np.uint8]]) -> str:
    """Return the SHA-256 over pixels given as full-width strips [rows, width], however high they are."""
    digest = hashlib.sha256()
    for strip in strips:
        digest.update(np.ascontiguousarray(strip).data)
    return digest.hexdigest()


def counts_in(mask: Path) -> tuple[int, int]:
    """Return how many pixels of a mask are valid, and building; raises what reading it raises."""
    valid = building = 0
    with open_raster(mask) as dataset, raster_errors(mask):
        for rows in _rows(dataset):
            valid += int(np.count_nonzero(rows != NODATA))
            building += int(np.count_nonzero(rows == BUILDING))
    return valid, building


def _rows(dataset: DatasetReader) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of an output from the top down, in rows of its blocks."""
    for row in range(0, dataset.height, COG_BLOCK):
        yield dataset.read(1, window=Window(0, row, dataset.width, min(COG_BLOCK, dataset.height - row)))


def count_pixels(
    rows: StoredRows, threshold: float, seams: SeamCounter, ground: Ground | None = None
) -> tuple[int, int]:
    """Return how many pixels of a finished scene are valid, and building; lets `seams` see every strip.

    With `ground`, those that lie in the area asked for.

    Raises StorageError when its rows do not read back as written; what is read of them later is not checked again.
    """
    valid = building = 0
    for row, quanta in rows.strips(checked=True):
        seams.add(row, quanta)
        quanta = _shown(row, quanta, ground)
        invalid = int(np.count_nonzero(quanta == NODATA))
        valid += quanta.size - invalid
        building += int(np.count_nonzero(quanta >= quantum_of(threshold))) - invalid
    return valid, building


def output_tags(key: str, model_hash: str, threshold: float, counts: tuple[int, int]) -> dict[str, str]:
    """Return what every output says about itself; `counts` are its valid and its building pixels."""
    return {
        PREDICTION_TAG: key,
        "AERIALSEG_VERSION": __version__,
        "AERIALSEG_MODEL_SHA256": model_hash,
        "AERIALSEG_THRESHOLD": repr(threshold),
        **dict(zip(COUNTS, map(str, counts), strict=True)),
    }


def finish(
    rows: StoredRows,
    files: SceneFiles,
    placement: ScenePlacement,
    tags: Mapping[str, str],
    *,
    threshold: float,
    replace_sides: bool,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write the scene's rasters from its strips, under their final names, the mask last.

    Returns their SHA-256 by the output's name, and warnings. The mask is a function of the quantised probability:
    building where q >= round(254 x threshold). Side files that exist stay, unless `replace_sides`: they may hold a
    user's changes, or belong to a foreign raster that is being replaced. Raises what `write_cog` and
    `StoredRows.strips` raise.
    """
    hashes, box = {}, placement.source.box
    for output, path in files.items():
        strips = partial(_pixels, rows, output, threshold, placement.ground)
        write_cog(path, box, strips, output.layer, tags={**tags, PIXELS_TAG: pixels_digest(strips())})
        hashes[output.name] = sha256_of(path)
    write_mask_sidecars(files[MASK], replace=replace_sides)
    with open_raster(files[MASK]) as mask:
        found = GeoBox.of(mask)
    moved = (found.transform, found.crs) != (box.transform, box.crs)
    name = one_line(files[MASK])
    return hashes, (f"{name}: a side file beside it moves it off its scene; remove {name}.*",) if moved else ()


def _shown(row: int, quanta: NDArray[np.uint8], ground: Ground | None) -> NDArray[np.uint8]:
    """Return a strip, NODATA outside the area that is asked for."""
    if ground is None:
        return quanta
    return ground.cut(Window(0, row, quanta.shape[1], quanta.shape[0]), quanta, NODATA)


def _pixels(rows: StoredRows, output: Output, threshold: float, ground: Ground | None) -> Iterator[NDArray[np.uint8]]:
    """Yield an output's rows, strip by strip; of the mask, 0, 1 or NODATA for each quantised probability."""
    for row, stored in rows.strips(output.plane):
        quanta = stored if output == UNCUT else _shown(row, stored, ground)
        if output != MASK:
            yield quanta
            continue
        labels = (quanta >= quantum_of(threshold)).view(np.uint8)
        if quanta.max() == NODATA:
            labels[quanta == NODATA] = NODATA
        yield labels


class SeamCounter:
    """Adds up differences between neighbouring pixels, at window edges and elsewhere.

    A difference lies at a window's edge when a window of the lattice begins or ends between the two pixels (on the grid
    that was run: a resampled scene's edges are those nearest on its own). Pixels without data have no neighbours.
    """

    def __init__(self, placement: ScenePlacement, size: int, overlap: float) -> None:
        """Memory: a byte for each of the scene's rows and columns, and a row of pixels."""
        lattice = Lattice.of(placement, size, overlap)
        box, factor = placement.source.box, placement.factor
        self._row_edges = _edges(lattice.rows, placement.row, box.height, factor)
        self._col_edges = _edges(lattice.cols, placement.col, box.width, factor)
        self._sums = np.zeros(2, dtype=np.int64)
        """Differences elsewhere and at edges, in quanta."""
        self._counts = np.zeros(2, dtype=np.int64)
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    def add(self, row: int, quanta: NDArray[np.uint8]) -> None:
        """Take the strip [rows, width] that begins at `row`, 255 where there is no data.

        Strips that do not follow the last one (a run that went on elsewhere) are not compared with it.
        """
        if self._last is not None and self._last[0] == row:
            self._add_rows(np.stack([self._last[1], quanta[0]]), row)
        self._add_rows(quanta, row + 1)
        some = quanta[-row % EVERY :: EVERY]
        self._count(some[:, :-1], some[:, 1:], 0, self._col_edges)
        self._last = row + len(quanta), quanta[-1].copy()

    def _add_rows(self, quanta: NDArray[np.uint8], row: int) -> None:
        """Add the differences between the rows; the second one is `row`."""
        upper = np.arange(row - 1, row - 2 + len(quanta))
        edges = self._row_edges[upper]
        chosen = np.flatnonzero(edges | (upper % EVERY == 0))
        self._count(quanta[chosen], quanta[chosen + 1], 1, edges[chosen])

    def _count(self, one: NDArray[np.uint8], other: NDArray[np.uint8], axis: int, edges: NDArray[np.bool_]) -> None:
        """Add |one - other|, where both have data; `edges` says, across `axis`, which pairs lie at one."""
        differences = np.maximum(one, other)
        blank = differences == NODATA
        np.subtract(differences, np.minimum(one, other), out=differences)
        pairs: NDArray[np.int64] = np.full(one.shape[1 - axis], one.shape[axis], dtype=np.int64)
        if blank.any():
            differences[blank] = 0
            pairs -= blank.sum(axis, dtype=np.int64)
        sums = differences.sum(axis, dtype=np.int64 if axis else np.uint32)  # a strip has no more than 2^24 rows
        self._sums += sums[~edges].sum(dtype=np.int64), sums[edges].sum(dtype=np.int64)
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
