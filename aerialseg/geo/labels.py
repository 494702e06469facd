"""Labels of scenes: where they come from, and how a window of them is read.

Labels are either masks, one raster per scene on the scene's own pixels, or polygons, which are burned window by window;
they are read as 0 background, 1 building, 255 unlabelled. What the values of masks mean is decided by
`aerialseg.geo.masks`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from aerialseg.counts import UNLABELLED
from aerialseg.errors import BadDataError, UsageError, one_line
from aerialseg.files import is_folder
from aerialseg.geo.masks import ResolvedRule, read_mask
from aerialseg.geo.opening import open_raster
from aerialseg.geo.resampling import resampled
from aerialseg.geo.scenes import SUFFIXES, mask_folder, pair_masks, require_masks
from aerialseg.geo.vector_files import is_vector, split_layer, with_layer
from aerialseg.geo.vectors import named, overlay, places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.scenes import Scene
    from aerialseg.geo.vectors import Overlay, VectorLayer

HALF = 128
OUTSIDE_SAID = 0.01
"""A smaller share of the ground outside the polygons is no news: labels end at the outermost building."""
MaskReader = Callable[[Window], "tuple[NDArray[np.bool_], NDArray[np.bool_]]"]
"""Reads a window as (building, valid), each (rows, cols)."""


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """One scene's labels; holds no handle. With neither `mask` nor `polygons` nothing is labelled."""

    mask: Path | None
    rule: ResolvedRule | None
    """What the values of `mask` mean."""
    polygons: Overlay | None
    """Buildings on the grid the tiles are cut from."""
    area: Overlay | None
    """The ground that was labelled, on that grid; None means all of it."""


def find_labels(
    scenes: Sequence[Scene],
    given: Sequence[str | Path],
    pattern: str | None = None,
    *,
    layer: str | None = None,
    partly: bool = False,
) -> tuple[tuple[Scene, ...], tuple[Path, ...]]:
    """Return the scenes with their masks, or the scenes and the vector files that label them all by their ground.

    `given` are masks or vector files: files, folders, globs; without any, the scenes must have come with masks, or have
    them in a folder beside their own, such as ../gt. Of vector files `layer` is read, unless a path says another.
    Raises UsageError when both kinds are given, or a pattern or layer alone, and BadDataError naming scenes without a
    mask, which are welcome beside others when the ground is labelled `partly`.
    """
    vectors, rasters = [], []
    for item in given:
        found = _vectors_of(Path(item))
        vectors += found
        rasters += [] if found else [item]
    if vectors and (rasters or pattern is not None):
        raise UsageError("--masks names vector files, which pair by ground, and masks as well; give one kind")
    if layer is not None and not vectors:
        raise UsageError(f"--layer {one_line(layer)}: chooses a layer of vector files, but --masks names none")
    if vectors:
        named_alone = (file if layer is None or split_layer(file)[1] else with_layer(file, layer) for file in vectors)
        return tuple(scenes), tuple(named_alone)
    if pattern is not None and not rasters:
        raise UsageError(f"--mask-pattern {one_line(pattern)}: needs --masks, the place to look for such masks")
    if not rasters and all(scene.mask is None for scene in scenes):
        rasters = sorted({masks for scene in scenes if (masks := mask_folder(scene.image.parent.parent)) is not None})
    if rasters:
        return pair_masks(scenes, rasters, pattern, partly=partly), ()
    return require_masks(scenes, partly=partly), ()


def _vectors_of(path: Path) -> list[Path]:
    """Return the vector files that a path stands for: itself, a glob's, or those of a folder that holds no raster."""
    if is_folder(path):
        rasters = any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))
        return [] if rasters else sorted(file for file in path.iterdir() if is_vector(file))
    if os.path.lexists(path) or not glob.has_magic(str(path)):
        return [path] if is_vector(path) else []
    return sorted(file for file in map(Path, glob.glob(str(path))) if is_vector(file))  # noqa: PTH207


@dataclass(frozen=True, slots=True, eq=False)
class LabelSource:
    """The labels of a whole set: polygons in layers, or else the scenes' masks under one rule."""

    layers: tuple[VectorLayer, ...]
    where: str | None
    rule: ResolvedRule | None
    area: VectorLayer | None

    def of(self, scene: Scene, box: GeoBox) -> Labels:
        """Return the labels of a scene whose tiles are cut from the grid `box`."""
        area = None if self.area is None else overlay([self.area], box)
        if self.layers:
            return Labels(None, None, overlay(self.layers, box), area)
        return Labels(scene.mask, self.rule, None, area)

    def files(self, scene: Scene) -> dict[Path, str | None]:
        """Return the files that a scene's labels are made from, vector files with their digests."""
        own = {file: known for layer in self.layers for file, known in zip(layer.paths, layer.digests, strict=True)}
        masks: dict[Path, str | None] = {} if scene.mask is None or self.layers else {scene.mask: None}
        area = {} if self.area is None else dict(zip(self.area.paths, self.area.digests, strict=True))
        return {**masks, **own, **area}

    def settings(self) -> list[Any]:
        """Return what, besides the files, decides the labels, for a digest."""
        rule = {} if self.rule is None else asdict(self.rule)
        rule.pop("warnings", None)
        for name in ("nodata_is_building", "building_colour"):
            if not rule.get(name):
                rule.pop(name, None)
        layers = [name for layer in self.layers for name in layer.chosen if name is not None]
        return [rule, self.where, self.area is not None, *layers]

    def coverage_notes(self, labels: Mapping[str, Labels], boxes: Mapping[str, GeoBox]) -> list[str]:
        """Say how much ground lies outside the polygons; raises BadDataError when all of it does."""
        outside = {name: 1 - item.polygons.covered for name, item in labels.items() if item.polygons is not None}
        if not outside:
            return []
        files = named([path for layer in self.layers for path in layer.paths])
        if min(outside.values()) >= 1:
            where = places(self.layers, boxes.values())
            raise BadDataError(f"{files}: no polygon near any scene: {where}; check the CRS and place of both")
        pixels = {name: boxes[name].height * boxes[name].width for name in outside}
        share = sum(outside[name] * pixels[name] for name in outside) / sum(pixels.values())
        if self.area is not None or share < OUTSIDE_SAID:
            return []
        most = max(outside, key=lambda name: outside[name])
        return [
            f"{files}: labels cover part of the ground only: {share:.0%} of it lies outside them (in {one_line(most)}"
            f" {outside[most]:.0%}) and counts as background; --labelled-area FILE makes it ignored"
        ]


@contextmanager
def open_labels(labels: Labels, scene: GeoBox, target: GeoBox) -> Iterator[Callable[[Window], NDArray[np.uint8]]]:
    """Yield a function that reads the labels (rows, cols) of a window inside `target`, the grid tiles are cut from.

    `scene` is the grid of the scene's file, on which masks lie; it differs from `target` when the scene is resampled.
    Use it in the thread that opened it.
    """
    if labels.polygons is not None:
        burn = labels.polygons.burn
        yield lambda window: _within(labels.area, window, burn(window).astype(np.uint8))
        return
    mask, rule = labels.mask, labels.rule
    if mask is None:
        yield lambda window: np.full((int(window.height), int(window.width)), UNLABELLED, np.uint8)
        return
    if rule is None:
        raise ValueError("a mask needs a rule for its values")
    with open_raster(mask) as dataset:
        read: MaskReader = partial(read_mask, dataset, rule)
        if target != scene:
            read = _resampled_mask(read, scene, target)

        def read_labels(window: Window) -> NDArray[np.uint8]:
            building, valid = read(window)
            values = building.astype(np.uint8)
            values[~valid] = UNLABELLED
            return _within(labels.area, window, values)

        yield read_labels


def _resampled_mask(read: MaskReader, scene: GeoBox, target: GeoBox) -> MaskReader:
    """Return a reader on which a pixel is building where at least half of its labelled area is."""

    def read_shares(window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        building, valid = read(window)
        return (building * np.uint8(255))[np.newaxis], valid

    resampled_shares = resampled(read_shares, scene, target)

    def read_mask_at_gsd(window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        shares, valid = resampled_shares(window)
        return shares[0] >= HALF, valid

    return read_mask_at_gsd


def _within(area: Overlay | None, window: Window, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mark what lies outside the labelled area as unlabelled."""
    if area is not None:
        values[~area.burn(window)] = UNLABELLED
    return values
