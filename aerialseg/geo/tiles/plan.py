"""What will be cut, before anything is: every scene checked, its labels found, its tiles planned, each with its split.

Headers are read, pixels are not. Whatever can be wrong with the input is found here, before the first tile is written;
a scene that cannot be used is set aside with its reason and the others go on.

Tiles train or validate by scene, by blocks of ground, or by an area on the map; never by loose tiles. Where the border
runs through a scene, a tile of ground is left out between the splits, also across scenes that touch: otherwise training
would see the ground it is judged on.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from rasterio.warp import transform as reproject_points

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, UsageError, folded, one_line
from aerialseg.geo.digest import content_digest, seen, what_changed
from aerialseg.geo.geobox import GeoBox, check_same_grid
from aerialseg.geo.inspection import Access, BandRule, Source, inspect_scene
from aerialseg.geo.labels import Labels, LabelSource
from aerialseg.geo.masks import MaskRule, decide_rule
from aerialseg.geo.opening import open_raster
from aerialseg.geo.resampling import at_gsd
from aerialseg.geo.scenes import Scene, require_masks, split_scenes
from aerialseg.geo.vector_files import split_layer
from aerialseg.geo.vectors import datum_notes, overlay, read_layer, read_layers, require_place
from aerialseg.geo.windows import Tile, TileGrid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from affine import Affine
    from numpy.typing import NDArray
    from rasterio.crs import CRS

    from aerialseg.geo.masks import ResolvedRule
    from aerialseg.geo.vectors import VectorLayer
    from aerialseg.progress import Progress

    Polygons = NDArray[np.object_]

FORMAT = "aerialseg tile 1"
"""Part of every digest: changed when a tile comes to hold something else, so that old tiles are made anew."""
LEAST_SIZE, DEFAULT_SIZE = 16, 1024
NAME_BYTES = 180
"""The part of a tile's name that comes from its scene is no longer; file systems allow 255 bytes in all."""
SIMILAR_GSD = 1.1
TileSplit = Literal["train", "val", "gap"]
Splits = dict[str, list[TileSplit]]
"""Scene name -> the split of each of its tiles, in the grid's order."""
VAL_SHARE = 0.2
"""Of the blocks."""
TOUCHING = 0.5
"""Pixels by which two windows may come too close: neighbouring scenes miss each other's grid by fractions."""


@dataclass(frozen=True, slots=True)
class TilingOptions:
    """How scenes are cut into tiles; the defaults are the command line's. Raises UsageError for nonsense.

    Example:
        >>> aerialseg.TilingOptions(size=512, split="blocks=4", gsd_m=0.5).overlap
        0.0
    """

    size: int | None = None
    """Height and width of a tile in pixels; None: 1024, or the longest side of all scenes where that is shorter."""
    overlap: float = 0.0
    """Share of a tile that its neighbour sees too, 0 to 0.9."""
    split: str = "auto"
    """"auto", "inria", "val=austin1-5,...", "blocks=N", a share of the scenes such as "0.2", or "0": all train."""
    val_area: Path | None = None
    """A vector file: the tiles in it validate; takes the place of `split`."""
    bands: BandRule = field(default_factory=BandRule)
    gsd_m: float | None = None
    """Metres per pixel to resample all scenes to."""
    masks: MaskRule = field(default_factory=MaskRule)
    vectors: tuple[Path, ...] = ()
    """Vector files with the buildings of all scenes; they take the place of the scenes' masks."""
    where: str | None = None
    """An SQL condition on the attributes of `vectors`."""
    labelled_area: Path | None = None
    """A vector file: ground outside it is unlabelled."""
    keep_empty: float = 1.0
    """The share of the training tiles without any building that is kept."""
    access: Access = field(default_factory=Access)
    threads: int | None = None
    """None means two more than there are processors, 16 at most."""
    overwrite: bool = False
    """Make everything anew, over foreign files too, and forget what was edited in the index."""
    fail_fast: bool = False
    index_only: bool = False
    """Write no pixels: training reads them from the scenes."""
    keep_unlabelled: bool = False
    """Take scenes without a mask too, and keep training tiles without a label: for `train --teacher`."""

    def __post_init__(self) -> None:
        if self.size is not None and not LEAST_SIZE <= self.size <= 16384:
            raise UsageError(f"--size {self.size}: give the side of a tile in pixels, 16 to 16384")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"--overlap {self.overlap:g}: give the share that neighbours have in common, 0 to 0.9")
        if not 0 <= self.keep_empty <= 1:
            raise UsageError(f"--keep-empty {self.keep_empty:g}: give a share from 0 to 1")
        if self.gsd_m is not None and not 0 < self.gsd_m < 1000:
            raise UsageError(f"--gsd {self.gsd_m:g}: give metres per pixel, above 0")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: give at least 1")
        if self.val_area is not None and self.split != "auto":
            raise UsageError(f"--val-area and --split {self.split} contradict each other; give one of them")
        if self.where is not None and not self.vectors:
            raise UsageError("--where chooses features of vector labels, but --masks names no vector file")


@dataclass(frozen=True, slots=True)
class PlannedTile:
    """A tile, what its files will be called, and what it is for: train or val."""

    name: str
    tile: Tile
    split: TileSplit


@dataclass(frozen=True, slots=True, eq=False)
class TileJob:
    """One scene with all that its tiles depend on; holds no handle."""

    scene: Scene
    stem: str
    """What the names of its tiles begin with."""
    source: Source
    box: GeoBox
    """The grid the tiles are cut from; the scene's own unless it is resampled."""
    labels: Labels
    tiles: tuple[PlannedTile, ...]
    gap: int
    """Tiles left out between training and validation."""
    keep_empty: float
    """The share of training tiles without buildings that is kept."""
    keep_unlabelled: bool
    """Whether training tiles without a label are kept."""
    inputs: Mapping[Path, str | None]
    """The files the tiles are made from, the scene first; with the digests of those that were read for all scenes."""
    seen: dict[Path, str]
    """What those looked like before the first of them was read, without label files that do not reach the scene."""
    settings: str
    """Whatever else the tiles depend on, as JSON."""

    def digest(self) -> str:
        """Return a SHA-256 over everything the tiles depend on; reads the scene and its mask."""
        contents = [known or content_digest(path) for path, known in self.inputs.items()]
        return hashlib.sha256("\n".join([self.settings, *contents]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TilingPlan:
    """The scenes that can be cut, in order, and why the others cannot."""

    given: int
    """Scenes, usable or not."""
    size: int
    """Of a tile."""
    jobs: tuple[TileJob, ...]
    failures: dict[str, AerialsegError]
    notes: tuple[str, ...]
    """Lines for the user."""


def plan_tiles(scenes: Sequence[Scene], options: TilingOptions, progress: Progress) -> TilingPlan:
    """Check scenes and labels and plan the tiles.

    Says why a scene cannot be used. Raises the first one's error when none can, and whatever concerns all of them:
    UsageError for a split that does not fit, BadDataError for labels that lie elsewhere or whose values are unclear.
    """
    masks = (scene.mask for scene in scenes if not options.vectors)
    vectors = [split_layer(path)[0] for path in (*options.vectors, options.labelled_area) if path is not None]
    looks = seen([*vectors, *(scene.image for scene in scenes), *masks])
    layers = read_layers(options.vectors, where=options.where)
    labelled, validation = (read_layer(path) if path else None for path in (options.labelled_area, options.val_area))
    if (changed := what_changed({path: looks[path] for path in vectors}, "read")) is not None:
        raise changed
    sources, failures, notes = _inspect(
        scenes if layers else require_masks(scenes, partly=options.keep_unlabelled), options, progress
    )
    rule = None if layers else _decide(scenes, sources, failures, options, progress)
    usable = [scene for scene in scenes if scene.name in sources]
    boxes = {name: _grid(source, options) for name, source in sources.items()}
    size = options.size or _default_size(boxes.values())
    grids = {name: TileGrid(box.height, box.width, size, options.overlap) for name, box in boxes.items()}
    stems = flat_names([scene.name for scene in usable])
    splits = assign_splits(usable, boxes, grids, options.split, validation)
    if not any("train" in found for found in splits.values()):
        raise BadDataError(
            "no training tile: validation and the gap around it take all; choose another --split or a smaller --size"
        )
    label_source = LabelSource(layers, options.where, rule, labelled)
    jobs = []
    for scene in usable:
        name, stem, source, box = scene.name, stems[scene.name], sources[scene.name], boxes[scene.name]
        tiles = tuple(
            PlannedTile(f"{stem}_{tile.window.row_off:05d}_{tile.window.col_off:05d}", tile, split)
            for tile, split in zip(grids[name], splits[name], strict=True)
            if split != "gap"
        )
        inputs = {scene.image: None, **label_source.files(scene)}
        settings = _settings(source, box, tiles, label_source, options)
        labels = label_source.of(scene, box)
        planned = scene, stem, source, box, labels, tiles, splits[name].count("gap")
        near = {path for laid in (labels.polygons, labels.area) if laid is not None for path in laid.files}
        before = {path: looks[path] for path, known in inputs.items() if known is None or path in near}
        jobs.append(TileJob(*planned, options.keep_empty, options.keep_unlabelled, inputs, before, settings))
    notes += [line for layer in (*layers, labelled, validation) if layer is not None for line in layer.warnings]
    notes += datum_notes([layer for layer in (*layers, labelled, validation) if layer is not None], boxes.values())
    notes += [] if rule is None else rule.warnings
    notes += label_source.coverage_notes({job.scene.name: job.labels for job in jobs}, boxes)
    return TilingPlan(len(scenes), size, tuple(jobs), failures, tuple(folded([*notes, *_set_notes(jobs)])))


def _inspect(
    scenes: Sequence[Scene], options: TilingOptions, progress: Progress
) -> tuple[dict[str, Source], dict[str, AerialsegError], list[str]]:
    """Return the usable scenes' sources by name, why the others are not usable, and lines for the user."""
    sources: dict[str, Source] = {}
    failures: dict[str, AerialsegError] = {}
    notes: list[str] = []
    files = [*options.vectors, *(path for path in (options.labelled_area, options.val_area) if path is not None)]
    # Vector files need a place whatever is allowed.
    access = replace(options.access, allow_ungeoreferenced=True) if files else options.access
    progress.start("checking", len(scenes), "scene")
    for scene in scenes:
        name = one_line(scene.image)
        try:
            source = inspect_scene(scene.image, options.bands, access)
            require_place(name, source.box, files)
            bands = len(next(iter(sources.values()), source).bands)
            if len(source.bands) != bands:
                raise BadDataError(f"{name}: has {len(source.bands)} bands, the scenes before it {bands}: use --bands")
            if options.gsd_m is not None and source.box.gsd_m is None:
                raise BadDataError(
                    f"{name}: the size of its pixels on the ground is unknown, so --gsd cannot resample it"
                )
            if scene.mask is not None and not options.vectors:
                with open_raster(scene.mask) as mask:
                    warning = check_same_grid(source.box, GeoBox.of(mask), (scene.image, scene.mask))
                notes += [] if warning is None else [warning]
            notes += source.warnings
            sources[scene.name] = source
        except (BadDataError, NoInputError) as error:
            if options.fail_fast:
                raise
            set_aside(failures, scene, error, len(scenes), progress)
        progress.advance(1, scene.name)
    progress.finish()
    if not sources:
        raise none_left(failures)
    return sources, failures, notes


def _decide(
    scenes: Sequence[Scene],
    sources: dict[str, Source],
    failures: dict[str, AerialsegError],
    options: TilingOptions,
    progress: Progress,
) -> ResolvedRule:
    """Return what the masks' values mean; a scene whose mask cannot be read moves from `sources` to `failures`."""
    usable = [scene for scene in scenes if scene.name in sources]

    def skip(mask: Path, error: AerialsegError) -> None:
        if options.fail_fast:
            raise error
        for scene in usable:
            if scene.mask == mask:
                del sources[scene.name]
                set_aside(failures, scene, error, len(scenes), progress)

    rule = decide_rule(sorted({scene.mask for scene in usable if scene.mask is not None}), options.masks, skip)
    if not sources:
        raise none_left(failures)
    return rule


def set_aside(
    failures: dict[str, AerialsegError], scene: Scene, error: AerialsegError, scenes: int, progress: Progress
) -> None:
    """Remember why a scene cannot be used, and say it; a lone scene's error ends the command and is said there."""
    failures[scene.name] = error
    if scenes > 1:
        progress.say(f"error: {error}")


def none_left(failures: Mapping[str, AerialsegError]) -> AerialsegError:
    """Return the error to end with when no scene can be used: the first one's own."""
    if not failures:
        return NoInputError("no scenes given")
    first = next(iter(failures.values()))
    return first if len(failures) == 1 else type(first)(f"none of {len(failures)} scenes can be cut; first: {first}")


def _grid(source: Source, options: TilingOptions) -> GeoBox:
    """Return the grid the tiles are cut from; raises UsageError when resampling would make it too large."""
    if not options.gsd_m:
        return source.box
    box = at_gsd(source.box, options.gsd_m)
    pixels = box.height * box.width
    if pixels > options.access.max_pixels:
        raise UsageError(
            f"--gsd {options.gsd_m:g}: {one_line(source.path)} would have {pixels:.3g} pixels, more than --max-pixels"
            f" {options.access.max_pixels:g}; give a coarser one, or raise that"
        )
    return box


def _default_size(boxes: Iterable[GeoBox]) -> int:
    """Return the side of a tile: no longer than the longest of a scene, which would be all padding beyond it."""
    return max(LEAST_SIZE, min(DEFAULT_SIZE, max(max(box.height, box.width) for box in boxes)))


def flat_names(names: Sequence[str]) -> dict[str, str]:
    """Return scene name -> what its tiles' names begin with: unique, of limited length, without folders.

    "a/x" becomes "a__x". Raises UsageError when two scenes come out alike.
    """
    stems: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in names:
        unfolded = name.replace("/", "__")
        stem = "".join(c if c.isprintable() else "_" for c in unfolded)
        if stem != unfolded or len(stem.encode()) > NAME_BYTES:
            digest = hashlib.sha256(name.encode()).hexdigest()[:12]
            stem = f"{stem.encode()[: NAME_BYTES - 13].decode(errors='ignore')}-{digest}"
        other = taken.setdefault(stem.casefold(), name)
        if other != name:
            raise UsageError(f"{one_line(other)} and {one_line(name)}: tiles of both would be called {one_line(stem)}")
        stems[name] = stem
    return stems


def _settings(
    source: Source, box: GeoBox, tiles: Sequence[PlannedTile], labels: LabelSource, options: TilingOptions
) -> str:
    """Return as JSON what, besides the input files, decides the bytes of a scene's tiles."""
    windows = [(t.name, t.split, t.tile.window.toranges(), t.tile.core.toranges()) for t in tiles]
    crs = None if box.crs is None else box.crs.to_wkt()
    grid = [box.height, box.width, tuple(box.transform), crs, box.gcps]
    pixels = [source.bands, source.scale, source.has_mask, *source.validity.settings()]
    chosen = (("index only", options.index_only), ("unlabelled", options.keep_unlabelled))
    flags = [flag for flag, given in chosen if given]
    return json.dumps([FORMAT, windows, grid, pixels, labels.settings(), options.keep_empty, *flags])


def _set_notes(jobs: Sequence[TileJob]) -> list[str]:
    """Say what is worth knowing about the set as a whole."""
    bare = [job for job in jobs if job.labels.mask is None and job.labels.polygons is None]
    notes = [f"{len(bare)} scenes have no labels: only train --teacher learns from them"] if bare else []
    if not any(tile.split == "val" for job in jobs for tile in job.tiles):
        notes.append("no validation tile: training will have nothing to choose its best epoch and threshold by")
    known = {job.scene.name: job.box.gsd_m for job in jobs if job.box.gsd_m is not None}
    if known and max(known.values()) > SIMILAR_GSD * min(known.values()):
        coarse, fine = max(known, key=lambda name: known[name]), min(known, key=lambda name: known[name])
        notes.append(
            f"scenes differ in ground sample distance: {one_line(fine)} has {known[fine]:.3g} m, {one_line(coarse)}"
            f" {known[coarse]:.3g} m; --gsd resamples all to one"
        )
    return notes


def assign_splits(
    scenes: Sequence[Scene],
    boxes: Mapping[str, GeoBox],
    grids: Mapping[str, TileGrid],
    split: str,
    area: VectorLayer | None,
) -> Splits:
    """Return the split of every tile.

    `split` is "auto", "blocks=N", "0" (everything trains) or what `split_scenes` understands; "auto" cuts a single
    scene into about five blocks, unless it is too small for a gap: then all of it trains. With `area`, tiles that lie
    in it at least by half validate. Raises UsageError and BadDataError.
    """
    if area is not None:
        return with_gap(split_by_area(boxes, grids, area), boxes, grids)
    blocks = re.fullmatch(r"blocks=([1-9]\d*)", split)
    if blocks is not None:
        return with_gap(split_by_blocks(grids, int(blocks[1])), boxes, grids)
    if split in ("0", "0.0"):
        return {name: ["train"] * len(grid) for name, grid in grids.items()}
    if split == "auto" and len(scenes) == 1:
        ((name, grid),) = grids.items()
        if len(grid) > 1:
            splits = with_gap(split_by_blocks(grids, math.ceil(math.sqrt(len(grid) * VAL_SHARE))), boxes, grids)
            if "train" in splits[name]:
                return splits
        return {name: ["train"] * len(grid)}
    by_scene = split_scenes(scenes, split, {name: box.height * box.width for name, box in boxes.items()})
    return {name: [by_scene[name]] * len(grid) for name, grid in grids.items()}


def split_by_blocks(grids: Mapping[str, TileGrid], blocks: int) -> Splits:
    """Cut every scene into blocks of `blocks` x `blocks` tiles and let about a fifth of all blocks validate.

    Which ones is drawn by a hash of the scene's name and the block's place, so it stays the same from run to run.
    """
    places = {
        name: [(name, row // blocks, col // blocks) for row, col in np.ndindex(grid.shape)]
        for name, grid in grids.items()
    }
    every = {place for tiles in places.values() for place in tiles}
    drawn = sorted(every, key=lambda place: hashlib.sha256("/".join(map(str, place)).encode()).hexdigest())
    if len(drawn) < 2:
        raise UsageError(f"--split blocks={blocks}: all tiles are one block; choose fewer, or a smaller --size")
    chosen = set(drawn[: max(1, round(VAL_SHARE * len(drawn)))])
    return {name: ["val" if place in chosen else "train" for place in tiles] for name, tiles in places.items()}


def split_by_area(boxes: Mapping[str, GeoBox], grids: Mapping[str, TileGrid], area: VectorLayer) -> Splits:
    """Let the tiles validate whose core lies in the area at least by half; raises BadDataError when none does."""
    splits: Splits = {}
    for name, grid in grids.items():
        laid = overlay([area], boxes[name])
        splits[name] = ["val" if laid.share_of(tile.core) >= 0.5 else "train" for tile in grid]
    if not any("val" in tiles for tiles in splits.values()):
        raise BadDataError(f"{one_line(area.path)}: no tile lies in it by half or more; check its place, or the --size")
    return splits


def with_gap(splits: Splits, boxes: Mapping[str, GeoBox], grids: Mapping[str, TileGrid]) -> Splits:
    """Take away the training tiles that come closer than a tile to a validation tile, of whatever scene."""
    outlines: dict[str, NDArray[np.float64]] = {}
    for name, grid in grids.items():
        chosen = (tile.window.toranges() for tile, split in zip(grid, splits[name], strict=True) if split == "val")
        corners = [[(c0, r0), (c1, r0), (c1, r1), (c0, r1)] for (r0, r1), (c0, c1) in chosen]
        outlines[name] = np.array(corners, dtype=np.float64).reshape(-1, 4, 2)
    every_crs = {box.crs for box in boxes.values() if box.georeferenced}
    ground = {crs: shapely.STRtree(_on_ground(outlines, boxes, crs)) for crs in every_crs}
    result: Splits = {}
    for name, grid in grids.items():
        box, size, reach = boxes[name], grid.size, grid.size - TOUCHING
        if box.georeferenced:  # what lies within a tile of the scene, in its pixel coordinates
            frame = shapely.box(-size, -size, box.width + size, box.height + size)
            tree = ground[box.crs]
            found = tree.geometries[tree.query(shapely.transform(frame, partial(_affine, box.transform)))]
            near = shapely.transform(found, partial(_affine, ~box.transform))
        else:
            near = _polygons(outlines[name])
        ranges = (tile.window.toranges() for tile in grid)
        around = [shapely.box(c0 - reach, r0 - reach, c1 + reach, r1 + reach) for (r0, r1), (c0, c1) in ranges]
        close = set(shapely.STRtree(near).query(around, predicate="intersects")[0].tolist())
        result[name] = ["gap" if split == "train" and i in close else split for i, split in enumerate(splits[name])]
    return result


def _on_ground(outlines: Mapping[str, NDArray[np.float64]], boxes: Mapping[str, GeoBox], crs: CRS) -> Polygons:
    """Return the outlines of all georeferenced scenes in `crs`."""
    grounds = []
    for name, box in boxes.items():
        if box.georeferenced and len(outlines[name]):
            points = _affine(box.transform, outlines[name].reshape(-1, 2))
            if box.crs != crs:
                points = np.array(reproject_points(box.crs, crs, *points.T.tolist())).T
            grounds.append(points.reshape(-1, 4, 2))
    return _polygons(np.concatenate([np.empty((0, 4, 2)), *grounds]))


def _polygons(corners: NDArray[np.float64]) -> Polygons:
    """Return polygons from (tiles, 4, 2), without those that have a corner at infinity."""
    polygons: Polygons = shapely.polygons(corners[np.isfinite(corners).all(axis=(1, 2))])
    return polygons


def _affine(transform: Affine, points: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = points[:, 0], points[:, 1]
    return np.stack(
        [transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f], 1
    )
