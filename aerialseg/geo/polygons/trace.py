"""The outlines of the buildings in a mosaic of masks, from the top down, without ever holding the mosaic.

Masks that lie on one pixel grid are read in strips of rows; where they overlap, a pixel is building if any of them says
so, and has the largest of their probabilities. Of a strip only its corners are kept: every building pixel is a square;
outlines run along the sides of squares and turn where the four pixels around a point are not alike in pairs. Where two
building pixels touch by a corner only, the outline passes twice, and there are two corners in one place: buildings are
4-connected.

Along a row, and along a column, an outline's sides lie between the first corner and the second, the third and the
fourth, and so on; so each corner knows the next one, and rings are followed from corner to corner: what is closed comes
out, what is open is kept. Memory: the corners of the strip and of the buildings that reach below it. The sum of any
raster over a building is a signed sum of its summed-area table over the building's corners, which is how mean
probabilities come for free. Positions are (row, col) of pixel corners on the mosaic's grid; where that lies on the
ground is not known here.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rasterio.windows import Window

from aerialseg.geo.dates import NOT_KNOWN, Taken
from aerialseg.geo.masks import ResolvedRule, read_mask
from aerialseg.geo.opening import open_raster, raster_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.crs import CRS
    from rasterio.io import DatasetReader

    from aerialseg.geo.geobox import GeoBox

STRIP_PIXELS = 1 << 22
STRIP_ROWS = (64, 1024)
PROBABILITY_NODATA = 255
ALONG_ROW, LATER, HOLE = np.uint8(1), np.uint8(2), np.uint8(4)
"""What a corner's kind says: the outline, with building on its left, leaves along the row; of two corners in one place,
this one belongs to the part below; here begins a hole, if the ring begins here."""


@dataclass(frozen=True, slots=True)
class PlacedMask:
    """A mask and where its first pixel lies on the grid of its mosaic."""

    name: str
    mask: Path
    probability: Path | None
    box: GeoBox
    row: int = 0
    col: int = 0
    taken: Taken = NOT_KNOWN
    """When its ground was seen."""

    @property
    def crs(self) -> CRS:
        """The CRS, which `check_mask` has found to be there."""
        return self.box.crs

    @property
    def bottom(self) -> int:
        """The row below its last."""
        return self.row + self.box.height

    @property
    def right(self) -> int:
        """The column right of its last."""
        return self.col + self.box.width


def read_corners(mosaic: Sequence[PlacedMask], rule: ResolvedRule) -> Iterator[tuple[Corners, int]]:
    """Yield the corners of the buildings of masks on one grid, strip by strip, and how many pixels were read for them.

    The corners' sums are those of the probabilities 0..254 of building pixels and of their number, where probability is
    known. Memory: a strip of about 4 million pixels, five times that in bytes with probabilities eight times more.
    """
    width = max(placed.right for placed in mosaic)
    above = np.zeros(width + 2, dtype=np.bool_)
    columns = np.zeros((2, width + 1), dtype=np.int64)
    with _Readers(rule) as readers:
        for top, bottom, active in _strips(mosaic):
            readers.keep(active)
            spans = [_Span.read(span, top, bottom, readers) for span in _side_by_side(active)]
            below = np.zeros(width + 2, dtype=np.bool_)
            for span in spans:
                below[span.left + 1 : span.right + 1] = span.building[0, 1:-1]
            border = find_corners(np.stack([above, below]), top, 0, (columns[:1], columns[1:]))
            inner = [span.corners(top, columns) for span in spans]
            above = np.zeros(width + 2, dtype=np.bool_)
            for span in spans:
                above[span.left + 1 : span.right + 1] = span.building[-1, 1:-1]
            found = join([border, *inner])
            pixels = sum(span.building.shape[0] * (span.right - span.left) for span in spans)
            yield (by_place(found) if len(spans) > 1 else found), pixels


@dataclass(frozen=True, slots=True, eq=False)
class _Span:
    """Masks side by side in a strip, without a gap."""

    left: int
    right: int
    building: NDArray[np.bool_]
    """(rows, cols + 2), with a column of background on either side."""
    sums: NDArray[np.int64] | None
    """(2, rows, cols + 1): sums of probability and of known pixels left of each pixel corner; None: all unknown."""

    @classmethod
    def read(cls, masks: Sequence[PlacedMask], top: int, bottom: int, readers: _Readers) -> _Span:
        left, right = min(placed.col for placed in masks), max(placed.right for placed in masks)
        building = np.zeros((bottom - top, right - left + 2), dtype=np.bool_)
        quanta = None
        for placed in masks:
            window = Window(0, top - placed.row, placed.box.width, bottom - top)
            inside = slice(placed.col - left + 1, placed.right - left + 1)
            building[:, inside] |= readers.mask(placed, window)
            if placed.probability is not None:
                found, known = readers.probability(placed, window)
                if quanta is None:
                    quanta = np.full(building.shape, -1, dtype=np.int16)
                quanta[:, inside] = np.maximum(quanta[:, inside], np.where(known, found, np.int16(-1)))
        sums = None if quanta is None else _row_sums(building, quanta)
        return cls(left, right, building, sums)

    def corners(self, top: int, columns: NDArray[np.int64]) -> Corners:
        """Return the corners below the strip's first row, and add the strip to the sums of whole columns."""
        if self.sums is None:
            still = columns[:, self.left : self.right + 1]
            rows = (len(self.building) - 1, self.right - self.left + 1)
            tables = np.broadcast_to(still[0], rows), np.broadcast_to(still[1], rows)
            return find_corners(self.building, top + 1, self.left, tables)
        own = columns[:, self.left : self.right + 1]
        for row in range(self.sums.shape[1]):
            own += self.sums[:, row]
            self.sums[:, row] = own
        return find_corners(self.building, top + 1, self.left, (self.sums[0], self.sums[1]))


class _Readers:
    """The files of the masks that are being read; a class because it holds what is open."""

    def __init__(self, rule: ResolvedRule) -> None:
        self._rule = rule
        self._open: dict[Path, tuple[DatasetReader, ExitStack]] = {}

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(())

    def keep(self, active: Sequence[PlacedMask]) -> None:
        """Close the files of masks that are not active."""
        used = {path for placed in active for path in (placed.mask, placed.probability)}
        for path in [path for path in self._open if path not in used]:
            self._open.pop(path)[1].close()

    def mask(self, placed: PlacedMask, window: Window) -> NDArray[np.bool_]:
        """Read where the mask says building."""
        return read_mask(self._dataset(placed.mask), self._rule, window)[0]

    def probability(self, placed: PlacedMask, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read quantised probabilities, and where they are known."""
        path = placed.probability
        if path is None:
            raise ValueError(f"{placed.name} has no probability")
        dataset = self._dataset(path)
        with raster_errors(path):
            quanta = dataset.read(1, window=window)
            known = (dataset.dataset_mask(window=window) != 0) & (quanta != PROBABILITY_NODATA)
        return quanta, known

    def _dataset(self, path: Path) -> DatasetReader:
        if path not in self._open:
            stack = ExitStack()
            self._open[path] = stack.enter_context(open_raster(path)), stack
        return self._open[path][0]


def _row_sums(building: NDArray[np.bool_], quanta: NDArray[np.int16]) -> NDArray[np.int64]:
    known = building & (quanta >= 0)
    sums = np.empty((2, len(building), building.shape[1] - 1), dtype=np.int64)
    np.cumsum(np.where(known, quanta, 0)[:, :-1], axis=1, out=sums[0])
    np.cumsum(known[:, :-1], axis=1, out=sums[1])
    return sums


def _strips(mosaic: Sequence[PlacedMask]) -> Iterator[tuple[int, int, list[PlacedMask]]]:
    """Yield first row, row below the last, and the masks that reach across all rows; an empty row ends it."""
    cuts = sorted({row for placed in mosaic for row in (placed.row, placed.bottom)})
    for top, bottom in pairwise(cuts):
        active = [placed for placed in mosaic if placed.row <= top and bottom <= placed.bottom]
        if not active:  # nothing in between: one row closes what ends here
            yield top, top + 1, []
            continue
        rows = STRIP_PIXELS // sum(placed.box.width for placed in active)
        rows = 1 << max(min(rows, STRIP_ROWS[1]), STRIP_ROWS[0]).bit_length() - 1  # divides blocks of 256 and 512
        for row in range(top, bottom, rows):
            yield row, min(row + rows, bottom), active
    yield cuts[-1], cuts[-1] + 1, []


def _side_by_side(masks: Sequence[PlacedMask]) -> list[list[PlacedMask]]:
    """Return the masks of a strip in runs without a gap, from left to right."""
    runs: list[list[PlacedMask]] = []
    right = -1
    for placed in sorted(masks, key=lambda placed: placed.col):
        if not runs or placed.col > right:
            runs.append([])
        runs[-1].append(placed)
        right = max(right, placed.right)
    return runs


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Finished buildings, by their first pixels in the order of rows and columns."""

    first: NDArray[np.int64]
    """(buildings, 2): row and column of each one's topmost, and there leftmost, pixel."""
    sums: NDArray[np.int64]
    """(2, buildings): what the tables of the corners sum up to over each one's pixels."""
    points: NDArray[np.int64]
    """(n, 2): row and column of the corners, ring after ring, none closed; on a north-up map outer rings run
    anticlockwise and holes clockwise."""
    rings: NDArray[np.int64]
    """How many points each ring has."""
    building: NDArray[np.int64]
    """Of which building each ring is; its outer ring comes first, holes follow."""

    def __len__(self) -> int:
        return len(self.first)


class Tracer:
    """Follows outlines through strips given from the top down; a class because it is all state."""

    def __init__(self) -> None:
        self._waiting = Corners.none()

    def add(self, fresh: Corners) -> Outlines:
        """Take the corners of the rows that follow and return the buildings that are complete with them.

        Rows must be complete. Rings that touch themselves in a point are split there into rings that do not.
        """
        corners = join([self._waiting, fresh])
        order, keys = _down_columns(corners)
        cycle, rings, owners, starts = _follow(*_links(corners, order))
        roots = _roots(corners, cycle, starts, order, keys)
        root = np.append(roots, -1)[cycle]
        self._waiting = corners.take(root < 0)
        return _outlines(corners, root, rings, owners, roots)


def _down_columns(corners: Corners) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the corners' order by columns and then rows, and their sorted keys (see `_key`)."""
    later = ((corners.kind & LATER) != 0).astype(np.int64)
    keys = _key(corners.col, corners.row, later)
    order = np.argsort(keys, kind="stable")
    return order, keys[order]


def _key(col: NDArray[np.int64], row: NDArray[np.int64], later: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return what sorts corners by column, row, and of two in one place the upper part's first."""
    key: NDArray[np.int64] = col * (1 << 34) + row * 2 + later
    return key


def _links(corners: Corners, order: NDArray[np.int64]) -> tuple[list[int], list[int], list[int]]:
    """Return each corner's next one and its twin in the same place (or -1), and where open ways begin."""
    count = len(corners)
    index = np.arange(count)
    col = corners.col[order]
    top = np.append(True, col[1:] != col[:-1])[:count]
    upper = (index - np.maximum.accumulate(np.where(top, index, 0))) % 2 == 0
    above = np.flatnonzero(upper[:-1] & ~top[1:])
    partner = np.full(count, -1, dtype=np.int64)
    partner[order[above]] = order[above + 1]
    partner[order[above + 1]] = order[above]
    along = (corners.kind & ALONG_ROW) != 0
    following = np.where(along, index ^ 1, partner)
    same = np.flatnonzero((corners.row[1:] == corners.row[:-1]) & (corners.col[1:] == corners.col[:-1]))
    twin = np.full(count, -1, dtype=np.int64)
    twin[same], twin[same + 1] = same + 1, same
    return following.tolist(), twin.tolist(), np.flatnonzero(along & (partner < 0)).tolist()


def _follow(
    following: list[int], twin: list[int], heads: list[int]
) -> tuple[NDArray[np.int64], list[list[int]], list[int], list[int]]:
    """Return each corner's cycle (-1: open), the rings, whose cycle each ring is of, and the cycles' first corners.

    A cycle that passes a place twice is split there into several rings; the one with its first corner comes last.
    """
    fresh, way = -2, -1
    cycle = [fresh] * len(following)
    for corner in heads:
        while corner >= 0:
            cycle[corner] = way
            corner = following[corner]
    rings: list[list[int]] = []
    owners: list[int] = []
    starts: list[int] = []
    for start, seen in enumerate(cycle):
        if seen != fresh:
            continue
        path: list[int] = []
        passed: dict[int, int] = {}
        number, corner = len(starts), start
        while cycle[corner] == fresh:
            cycle[corner] = number
            if twin[corner] >= 0:
                since = passed.get(twin[corner])
                if since is None:
                    passed[corner] = len(path)
                else:
                    rings.append(path[since:])
                    owners.append(number)
                    del path[since:]
            path.append(corner)
            corner = following[corner]
        rings.append(path)
        owners.append(number)
        starts.append(start)
    return np.array(cycle, dtype=np.int64), rings, owners, starts


def _roots(
    corners: Corners,
    cycle: NDArray[np.int64],
    starts: Sequence[int],
    order: NDArray[np.int64],
    keys: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the outer cycle of the building that each cycle is of; -1 where that is open.

    Left of a hole's first pixel lies a run of building pixels, and the side at which it begins is of the same building.
    """
    first = np.array(starts, dtype=np.int64)
    holes = np.flatnonzero((corners.kind[first] & HOLE) != 0)
    at = first[holes]
    beside = np.searchsorted(keys, _key(corners.run[at], corners.row[at], 1), side="right") - 1
    roots = list(range(len(starts)))
    for hole, parent in zip(holes.tolist(), cycle[order[beside]].tolist(), strict=True):
        roots[hole] = roots[parent] if parent >= 0 else -1  # a parent begins before its hole, and has its root
    return np.array(roots, dtype=np.int64)


def _outlines(
    corners: Corners, root: NDArray[np.int64], rings: list[list[int]], owners: list[int], roots: NDArray[np.int64]
) -> Outlines:
    """Gather the rings of finished buildings; `root` is each corner's outer cycle."""
    outer = np.flatnonzero(roots == np.arange(len(roots)))
    of_ring = roots[np.array(owners, dtype=np.int64)]
    last = np.append(np.array(owners[1:], dtype=np.int64) != np.array(owners[:-1], dtype=np.int64), True)[: len(owners)]
    is_hole = ~(last & (of_ring == np.array(owners, dtype=np.int64)))
    kept = np.flatnonzero(of_ring >= 0)
    kept = kept[np.lexsort((is_hole[kept], of_ring[kept]))]
    points = np.array([corner for ring in kept.tolist() for corner in rings[ring]], dtype=np.int64)
    lengths = np.array([len(rings[ring]) for ring in kept.tolist()], dtype=np.int64)
    first = np.array([rings[ring][0] for ring in kept[~is_hole[kept]].tolist()], dtype=np.int64)
    closed = root >= 0
    signed = np.where(corners.kind[closed] & ALONG_ROW, -corners.sums[:, closed], corners.sums[:, closed])
    sums = np.zeros((2, len(outer)), dtype=np.int64)
    numbers = np.searchsorted(outer, root[closed])
    for total, part in zip(sums, signed, strict=True):
        np.add.at(total, numbers, part)
    places = np.stack([corners.row, corners.col], axis=1)
    return Outlines(places[first], sums, places[points], lengths, np.searchsorted(outer, of_ring[kept]))


@dataclass(frozen=True, slots=True, eq=False)
class Corners:
    """Corners in the order of rows and then columns, as arrays of one length."""

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    kind: NDArray[np.uint8]
    run: NDArray[np.int64]
    """Where a hole may begin: the column at which the building pixels left of it begin; -1 elsewhere."""
    sums: NDArray[np.int64]
    """(2, n): the caller's two summed-area tables at the corners."""

    @classmethod
    def none(cls) -> Corners:
        """Return no corners."""
        empty = np.empty(0, dtype=np.int64)
        return cls(empty, empty, np.empty(0, dtype=np.uint8), empty, np.empty((2, 0), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Corners:
        """Return some of the corners."""
        return Corners(*(getattr(self, field.name)[..., which] for field in fields(self)))


def join(parts: Sequence[Corners]) -> Corners:
    """Return the corners of all parts, in their order."""
    return Corners(*(np.concatenate([getattr(part, f.name) for part in parts], axis=-1) for f in fields(Corners)))


def by_place(corners: Corners) -> Corners:
    """Return the corners in the order of rows and columns; two in one place keep their order."""
    return corners.take(np.lexsort((corners.col, corners.row)))


def find_corners(
    block: NDArray[np.bool_], row: int, col: int, tables: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
) -> Corners:
    """Return the corners between the rows of `block` (rows + 1, cols + 2), whose first and last columns are False.

    The first corners lie between the first two rows, at `row`; the left side of the second column is at `col`.
    `tables`, each (rows, cols + 1), hold what `Corners.sums` takes; zeros when None.
    """
    turns = block[:-1] ^ block[1:]
    found = turns[:, :-1] & turns[:, 1:]
    found &= block[:-1, :-1] ^ block[:-1, 1:]  # a diagonal pair, where two corners lie in one place
    found |= turns[:, :-1] ^ turns[:, 1:]
    place = np.flatnonzero(found)
    if not len(place):
        return Corners.none()
    i, j = np.divmod(place, found.shape[1])
    code = block[i, j] * 8 + block[i, j + 1] * 4 + block[i + 1, j] * 2 + block[i + 1, j + 1]
    double = (code == 0b1001) | (code == 0b0110)
    if double.any():
        once = np.repeat(np.arange(len(place)), 1 + double)
        second = np.concatenate([[False], once[1:] == once[:-1]]).astype(np.int64)
        i, j, code = i[once], j[once], code[once]
    else:
        second = np.zeros(len(place), dtype=np.int64)
    kind = KINDS[second, code]
    run = _runs_before(block, i, j, (kind & HOLE) != 0)
    run[run >= 0] += col
    sums = np.zeros((2, len(i)), dtype=np.int64) if tables is None else np.stack([table[i, j] for table in tables])
    return Corners(i + row, j + col, kind, run, sums)


def _runs_before(
    block: NDArray[np.bool_], i: NDArray[np.int64], j: NDArray[np.int64], wanted: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return, counted from the block's first corner, where the run of building pixels left of a corner begins, or -1.

    The run lies in the row below the corner.
    """
    run = np.full(len(i), -1, dtype=np.int64)
    if wanted.any():
        rows, which = np.unique(i[wanted] + 1, return_inverse=True)
        lines, width = block[rows], block.shape[1]
        begins = np.flatnonzero(lines[:, 1:] & ~lines[:, :-1])  # in a grid one column narrower
        before = np.searchsorted(begins, which * (width - 1) + j[wanted], side="left") - 1
        run[wanted] = begins[before] % (width - 1)
    return run


def _kinds() -> NDArray[np.uint8]:
    """Return kinds by (second of two in one place, pixels above left, above right, below left, below right as bits)."""
    kinds = np.zeros((2, 16), dtype=np.uint8)
    for code in range(16):
        above_left, above_right, below_left, below_right = (code >> bit & 1 for bit in (3, 2, 1, 0))
        along = (above_right and not below_right) or (below_left and not above_left)
        kinds[:, code] = ALONG_ROW * bool(along) + HOLE * (code == 0b1110)
    kinds[1, 0b1001] |= LATER
    kinds[0, 0b0110] |= LATER
    return kinds


KINDS = _kinds()
