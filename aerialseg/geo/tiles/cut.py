"""Tiles and the scene they come from: cutting them out, what is remembered of it, and finding the scene again.

A window of pixels and labels is read, counted, and both are written as GeoTIFFs. Counts are integers and belong to the
tiles' cores, so that sums over any tiles are exact and count no pixel twice. They are kept with the tiles in a small
JSON file per scene, in a hidden folder of the set, written after the scene's last tile. Such a record is only a claim:
it holds as long as the digest of everything the tiles depend on is the same and the files are there in their sizes.

A set may also do without pixels; then its `tileset.json` says what the tiles are read from: scenes, labels and options,
with paths relative to the set, so that both can be moved together. Planned again from the same files, the tiles come
out the same, which the scenes' digests prove; where they differ, the scene is named.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rasterio.windows import Window

from aerialseg.counts import BUILDING, UNLABELLED
from aerialseg.errors import BadDataError, NoInputError, UsageError, one_line
from aerialseg.files import is_regular, remove, resolved, write_text
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.labels import open_labels
from aerialseg.geo.masks import MaskRule
from aerialseg.geo.opening import is_tiff, open_raster
from aerialseg.geo.ownership import TILE_TAG
from aerialseg.geo.raster import read_window
from aerialseg.geo.resampling import Reader, resampled
from aerialseg.geo.scenes import Scene
from aerialseg.geo.tiles.plan import TilingOptions, plan_tiles
from aerialseg.geo.tiles.tileset import TileRecord, check_tiles, image_path, mask_path
from aerialseg.geo.vector_files import split_layer
from aerialseg.geo.writing import COG_BYTES, write_geotiff
from aerialseg.progress import Silent
from aerialseg.values import from_values, read_json, to_values

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from aerialseg.geo.tiles.plan import PlannedTile, TileJob
    from aerialseg.geo.tiles.tileset import TileSet

    Arrays = tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.uint8]]
    """The pixels (bands, rows, cols), valid (rows, cols) and labels (rows, cols) of one window."""

BLOCK = 256
TILE_BYTES = 2000
"""Disk that the two files of a tile take beside its pixels."""
NO_FILES = (-1, -1)
"""The sizes of a tile that was only counted."""
PIECE_BYTES = 1 << 25
"""Of pixels that a thread reads at once, unless a single tile has more."""
FOLDER = ".tiling"
REASONS = ("nodata", "unlabelled", "thinned", "gap")
"""Why planned tiles are left out."""


@dataclass(frozen=True, slots=True)
class CutTile:
    """What became of a planned tile."""

    record: TileRecord | None
    """None when the tile was left out."""
    reason: str
    """Why it was left out: nodata, unlabelled or thinned; empty when it was not."""
    classes: tuple[int, int, int] = (0, 0, 0)
    """Pixels of the core that are background, building, unlabelled."""
    pixels: int = 0
    """Pixels of the core that hold data."""
    sums: tuple[int, ...] = ()
    """Per band, the sum of those pixels' values."""
    squares: tuple[int, ...] = ()
    """Per band, the sum of their squares."""
    sizes: tuple[int, int] = NO_FILES
    """Bytes of the image and of the mask file."""


@dataclass(frozen=True, slots=True)
class SceneRecord:
    """A finished scene: its tiles, and exact counts over their cores."""

    scene: str
    digest: str
    tiles: tuple[TileRecord, ...]
    sizes: tuple[tuple[int, int], ...]
    """Bytes of each tile's image and mask."""
    left_out: dict[str, int]
    """Reason -> tiles."""
    classes: tuple[tuple[int, int, int], ...]
    """Each tile's pixels of background, building, unlabelled."""
    pixels: int
    """Valid pixels of the training tiles."""
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.tiles) == len(self.sizes) == len(self.classes) or self.left_out.keys() != set(REASONS):
            raise ValueError(f"the record of {self.scene} does not tell of each tile and each reason")
        if len(self.sums) != len(self.squares):
            raise ValueError(f"the record of {self.scene} has {len(self.sums)} sums and {len(self.squares)} squares")
        counts = [self.pixels, *self.sums, *self.squares, *self.left_out.values(), *chain(*self.classes)]
        spread = [self.pixels * square - total * total for total, square in zip(self.sums, self.squares, strict=True)]
        if min((*counts, *spread)) < 0:
            raise ValueError(f"the record of {self.scene} holds counts that no pixels have")

    def holds(self, folder: Path) -> bool:
        """Return whether all tile files are there in their sizes."""
        return all(
            (path.stat().st_size if is_regular(path) else NO_FILES[0]) == size
            for tile, sizes in zip(self.tiles, self.sizes, strict=True)
            for path, size in zip((image_path(folder, tile.name), mask_path(folder, tile.name)), sizes, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """What `plan_again` needs beside what every set says of itself; paths are relative to the set."""

    scenes: tuple[tuple[str, str, str | None], ...]
    """Name, image and mask of each."""
    split: str
    val_area: str | None
    gsd_m: float | None
    masks: tuple[tuple[int, ...] | None, tuple[int, ...], int | None]
    """Values that mean building and unlabelled, and the threshold."""
    vectors: tuple[str, ...]
    where: str | None
    labelled_area: str | None
    keep_empty: float
    keep_unlabelled: bool
    access: tuple[bool, float]
    """Whether scenes without a place are taken, and pixels at most."""
    nodata: tuple[float, ...] = ()
    """Values of no data and, below, the alpha band; they are left out where nothing was said of them."""
    alpha: int | Literal["auto", "data"] = "auto"
    building_colour: tuple[int, int, int] | None = None
    """Left out, too, where no colour means building."""


def rows_of(job: TileJob) -> list[list[PlannedTile]]:
    """Return the tiles of a scene in pieces of work: rows of tiles, or all at once for a file that reads from the top.

    PNG and JPEG can only be decoded from their beginning, so a second handle would decode everything again.
    """
    if not is_tiff(job.source.path):
        return [list(job.tiles)]
    rows = groupby(job.tiles, key=lambda planned: planned.tile.window.row_off)
    return [list(row) for _, row in rows] or [[]]  # a scene without a tile to cut is one of the set, too


def disk_bytes(job: TileJob) -> int:
    """Return how much disk the tiles of a scene take at most: pixels that no compression makes smaller, and a mask."""
    pixels = sum(planned.tile.window.height * planned.tile.window.width for planned in job.tiles)
    return int((len(job.source.bands) + COG_BYTES) * pixels) + TILE_BYTES * len(job.tiles)


def cut_tiles(job: TileJob, tiles: Sequence[PlannedTile], folder: Path | None) -> list[CutTile]:
    """Write the images and masks of some tiles of a scene below `folder`, if given, and return what became of each.

    Raises BadDataError where the scene or its mask is damaged, StorageError and OutputError where a file cannot be
    written.
    """
    with closing(read_tiles(job, tiles)) as read:
        return [_cut(job, planned, arrays, folder) for planned, arrays in read]


def read_tiles(job: TileJob, tiles: Sequence[PlannedTile]) -> Generator[tuple[PlannedTile, Arrays], None, None]:
    """Yield tiles of a scene with their pixels and labels, as far as the scene goes (`padded` makes them whole).

    Opens its own handles, so that it can run in any thread; close it in the same one, also after an error: a handle
    must not cross threads. Memory: a few times `PIECE_BYTES`. Raises BadDataError
    where the scene or its mask is damaged.
    """
    source = job.source
    with open_raster(source.path) as dataset, open_labels(job.labels, source.box, job.box) as read_labels:
        read: Reader = partial(read_window, dataset, source)
        if job.box != source.box:
            read = resampled(read, source.box, job.box)

        for piece in _pieces(tiles, len(source.bands)):
            first, last = piece[0].tile.window, piece[-1].tile.window
            width = min(last.col_off + last.width, job.box.width) - first.col_off
            around = Window(first.col_off, first.row_off, width, min(first.height, job.box.height - first.row_off))
            pixels, valid = read(around)
            labels = read_labels(around)
            if not valid.all():
                pixels[:, ~valid] = 0
                labels[~valid] = UNLABELLED
            for planned in piece:
                own = planned.tile.window
                part = Window(
                    own.col_off - around.col_off, own.row_off - around.row_off, own.width, own.height
                ).toslices()
                yield planned, (pixels[:, *part], valid[part], labels[part])


def padded(arrays: Arrays, size: int) -> Arrays:
    """Return a tile's arrays in its full size.

    Beyond the scene's edge the image goes on by reflection, as it does in prediction, and nothing is labelled.
    """
    pixels, valid, labels = arrays
    overhang = (0, size - labels.shape[0]), (0, size - labels.shape[1])
    if overhang != ((0, 0), (0, 0)):
        pixels = np.pad(pixels, ((0, 0), *overhang), mode="reflect")
        valid = np.pad(valid, overhang, mode="reflect")
        labels = np.pad(labels, overhang, constant_values=UNLABELLED)
    return pixels, valid, labels


def _pieces(tiles: Sequence[PlannedTile], bands: int) -> Iterator[list[PlannedTile]]:
    """Yield runs of neighbours in a row that are read at once: a file in strips is decoded across its whole width."""
    for _, row in groupby(tiles, key=lambda planned: planned.tile.window.row_off):
        piece: list[PlannedTile] = []
        for planned in row:
            window = planned.tile.window
            first = piece[0].tile.window.col_off if piece else window.col_off
            if piece and (window.col_off + window.width - first) * window.height * bands > PIECE_BYTES:
                yield piece
                piece = []
            piece.append(planned)
        yield piece


def _cut(job: TileJob, planned: PlannedTile, arrays: Arrays, folder: Path | None) -> CutTile:
    pixels, valid, labels = arrays
    window, core = planned.tile.window, planned.tile.core
    reason = _left_out(job, planned, valid, labels)
    if reason:
        return CutTile(None, reason)
    building, labelled = _count(labels == BUILDING), _count(labels != UNLABELLED)
    record = TileRecord(
        planned.name, planned.split, job.scene.name, _numbers(window), _numbers(core),
        building=round(building / max(1, labelled), 6), valid=round(labelled / (window.height * window.width), 6),
    )  # fmt: skip
    sizes = NO_FILES
    if folder is not None:
        whole, box = padded(arrays, window.height), job.box.window_box(window)
        image, mask = image_path(folder, planned.name), mask_path(folder, planned.name)
        blocksize, tags = min(BLOCK, -(-window.height // 16) * 16), {TILE_TAG: planned.name}
        write_geotiff(image, whole[0], box, valid=whole[1], tags=tags, blocksize=blocksize)
        write_geotiff(mask, whole[2], box, nodata=UNLABELLED, tags=tags, blocksize=blocksize)
        sizes = image.stat().st_size, mask.stat().st_size
    own = Window(core.col_off - window.col_off, core.row_off - window.row_off, core.width, core.height).toslices()
    pixels, valid, labels = pixels[:, *own], valid[own], labels[own]
    classes = _count(labels == 0), _count(labels == BUILDING), _count(labels == UNLABELLED)
    sums = pixels.sum(axis=(1, 2), dtype=np.uint64).tolist()
    squares = np.square(pixels, dtype=np.uint16).sum(axis=(1, 2), dtype=np.uint64).tolist()
    return CutTile(record, "", classes, _count(valid), tuple(sums), tuple(squares), sizes)


def _left_out(job: TileJob, planned: PlannedTile, valid: NDArray[np.bool_], labels: NDArray[np.uint8]) -> str:
    """Return why a tile is not kept, or nothing; of empty training tiles a hash of the name draws some."""
    if not valid.any():
        return "nodata"
    if (labels == UNLABELLED).all():
        return "" if job.keep_unlabelled and planned.split == "train" else "unlabelled"
    if planned.split != "train" or job.keep_empty == 1 or (labels == BUILDING).any():
        return ""
    lot = int.from_bytes(hashlib.sha256(planned.name.encode()).digest()[:8]) / 2**64
    return "" if lot < job.keep_empty else "thinned"


def _count(where: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(where))


def _numbers(window: Window) -> tuple[int, int, int, int]:
    return window.row_off, window.col_off, window.height, window.width


def summarise(scene: str, digest: str, cuts: Sequence[CutTile], gap: int) -> SceneRecord:
    """Return the record of a scene whose tiles were all cut."""
    kept = [(cut, cut.record) for cut in cuts if cut.record is not None]
    train = [cut for cut, record in kept if record.split == "train"]
    reasons = [cut.reason for cut in cuts] + ["gap"] * gap
    return SceneRecord(
        scene,
        digest,
        tiles=tuple(record for _, record in kept),
        sizes=tuple(cut.sizes for cut, _ in kept),
        left_out={reason: reasons.count(reason) for reason in REASONS},
        classes=tuple(cut.classes for cut, _ in kept),
        pixels=sum(cut.pixels for cut in train),
        sums=tuple(map(sum, zip(*(cut.sums for cut in train), strict=True))),
        squares=tuple(map(sum, zip(*(cut.squares for cut in train), strict=True))),
    )


def save_record(folder: Path, stem: str, record: SceneRecord) -> None:
    """Write a scene's record into the set `folder`."""
    write_text(_path(folder, stem), json.dumps(to_values(record)) + "\n")


def load_record(folder: Path, stem: str) -> SceneRecord | None:
    """Return a scene's record, or None when there is none that can be read."""
    try:
        record = from_values(SceneRecord, read_json(_path(folder, stem)))
        check_tiles(record.tiles)
    except (OSError, ValueError):
        return None
    return record


def drop_records(folder: Path, keep: Iterable[str]) -> None:
    """Remove the records of scenes that are no longer part of the set."""
    kept = {_path(folder, stem).name for stem in keep}
    for path in (folder / FOLDER).glob("*.json"):
        if path.name not in kept:
            remove(path)


def _path(folder: Path, stem: str) -> Path:
    return folder / FOLDER / f"{stem}.json"


def describe_sources(jobs: Sequence[TileJob], options: TilingOptions, folder: Path) -> dict[str, Any]:
    """Return as JSON values what `plan_again` needs."""

    def place(path: Path) -> str:
        return os.path.relpath(resolved(path), resolved(folder))

    def maybe(path: Path | None) -> str | None:
        return None if path is None else place(path)

    rule, access = options.masks, options.access
    sources = Sources(
        scenes=tuple((job.scene.name, place(job.scene.image), maybe(job.scene.mask)) for job in jobs),
        split=options.split, val_area=maybe(options.val_area), gsd_m=options.gsd_m,
        masks=(rule.building_values, rule.ignore_values, rule.threshold),
        vectors=tuple(map(place, options.vectors)), where=options.where, labelled_area=maybe(options.labelled_area),
        keep_empty=options.keep_empty, keep_unlabelled=options.keep_unlabelled,
        access=(access.allow_ungeoreferenced, access.max_pixels),
    )  # fmt: skip
    values: dict[str, Any] = to_values(sources)
    kept = {name: value for name, value in values.items() if name not in ("nodata", "alpha", "building_colour")}
    colour = {} if rule.building_colour is None else {"building_colour": list(rule.building_colour)}
    return kept | options.bands.marks | colour


def source_files(tiles: TileSet) -> dict[str, tuple[Path, ...]]:
    """Return scene -> the files its tiles are read from, the scene first; raises NoInputError naming a missing one."""
    scenes, options = _planned_from(tiles)
    vectors = (*options.vectors, *((options.labelled_area,) if options.labelled_area else ()))
    labels = [split_layer(path)[0] for path in vectors]
    files = {
        scene.name: tuple(path for path in (scene.image, scene.mask, *labels) if path is not None)
        for scene in scenes
        if scene.name in tiles.scenes
    }
    for path in (path for paths in files.values() for path in paths):
        if not is_regular(path):
            raise NoInputError(
                f"{one_line(path)}: missing, and the tiles of {one_line(tiles.folder)} are read from it; put it back,"
                " or run aerialseg tile again"
            )
    return files


def plan_again(tiles: TileSet) -> list[TileJob]:
    """Return the scenes' jobs as they were when the set was made; raises what `plan_tiles` raises. Headers only."""
    scenes, options = _planned_from(tiles)
    found = plan_tiles(scenes, options, Silent())
    for name in tiles.scenes:
        if name in found.failures:
            raise found.failures[name]
    return [job for job in found.jobs if job.scene.name in tiles.scenes]


def check_unchanged(tiles: TileSet, job: TileJob) -> None:
    """Raise BadDataError when a scene or its labels are not what they were; reads all of its files."""
    if job.digest() != tiles.scenes[job.scene.name]:
        raise BadDataError(
            f"{one_line(job.scene.image)}: the scene or its labels have changed since the tiles of"
            f" {one_line(tiles.folder)} were chosen; run the same aerialseg tile command again"
        )


def _planned_from(tiles: TileSet) -> tuple[list[Scene], TilingOptions]:
    """Return the scenes and options that `describe_sources` wrote down."""
    folder = resolved(tiles.folder)

    def place(text: str) -> Path:
        return Path(os.path.normpath(folder / text))

    def maybe(text: str | None) -> Path | None:
        return None if text is None else place(text)

    try:
        known = from_values(Sources, tiles.sources)
        options = TilingOptions(
            tiles.size, tiles.overlap, known.split, maybe(known.val_area),
            BandRule(tiles.bands, tiles.scale, known.nodata, known.alpha), known.gsd_m,
            MaskRule(*known.masks, known.building_colour),
            tuple(map(place, known.vectors)), known.where,
            maybe(known.labelled_area), known.keep_empty, Access(*known.access), index_only=True,
            keep_unlabelled=known.keep_unlabelled,
        )  # fmt: skip
    except (ValueError, UsageError) as error:
        raise BadDataError(
            f"{one_line(tiles.folder)}: its tileset.json does not say what the tiles are read from ({error}); run"
            " aerialseg tile again"
        ) from error
    return [Scene(name, place(image), maybe(mask)) for name, image, mask in known.scenes], options
