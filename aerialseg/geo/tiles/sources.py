"""What the tiles of a set without pixels are read from: its scenes, labels and options, kept in its `tileset.json`.

Paths are kept relative to the set, so that both can be moved together. Planned again from the same files, the tiles
come out the same, which the scenes' digests prove; where they differ, the scene is named.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.errors import BadDataError, NoInputError, one_line
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.labels import MaskRule
from aerialseg.geo.scenes import Scene
from aerialseg.geo.tiles.plan import TilingOptions, plan_tiles
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.tiles.plan import TileJob
    from aerialseg.geo.tiles.tileset import TileSet


def describe_sources(jobs: Sequence[TileJob], options: TilingOptions, folder: Path) -> dict[str, Any]:
    """Return as JSON values what `plan_again` needs."""

    def place(path: Path | None) -> str | None:
        return None if path is None else os.path.relpath(path.resolve(), folder.resolve())

    rule, access = options.masks, options.access
    return {
        "scenes": [[job.scene.name, place(job.scene.image), place(job.scene.mask)] for job in jobs],
        "split": options.split, "val_area": place(options.val_area), "gsd_m": options.gsd_m,
        "masks": [rule.building_values and list(rule.building_values), list(rule.ignore_values), rule.threshold],
        "vectors": [place(path) for path in options.vectors], "where": options.where,
        "labelled_area": place(options.labelled_area), "keep_empty": options.keep_empty,
        "keep_unlabelled": options.keep_unlabelled,
        "access": [access.allow_ungeoreferenced, access.max_pixels],
    }  # fmt: skip


def source_files(tiles: TileSet) -> dict[str, tuple[Path, ...]]:
    """Return scene -> the files its tiles are read from, the scene first; raises NoInputError naming a missing one."""
    scenes, options = _parse(tiles)
    labels = (*options.vectors, *((options.labelled_area,) if options.labelled_area else ()))
    files = {
        scene.name: tuple(path for path in (scene.image, scene.mask, *labels) if path is not None)
        for scene in scenes
        if scene.name in tiles.scenes
    }
    for path in (path for paths in files.values() for path in paths):
        if not path.is_file():
            raise NoInputError(
                f"{one_line(path)}: missing, and the tiles of {one_line(tiles.folder)} are read from it; put it back,"
                " or run aerialseg tile again"
            )
    return files


def plan_again(tiles: TileSet) -> list[TileJob]:
    """Return the scenes' jobs as they were when the set was made; raises what `plan_tiles` raises. Headers only."""
    scenes, options = _parse(tiles)
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


def _parse(tiles: TileSet) -> tuple[list[Scene], TilingOptions]:
    """Return the scenes and options that `describe_sources` wrote down."""
    folder, body = tiles.folder, tiles.sources or {}

    def place(text: str | None) -> Path | None:
        return None if text is None else Path(os.path.normpath(folder.resolve() / text))

    def known(path: Path | None) -> Path:
        if path is None:
            raise TypeError("a scene or a vector file has no path")
        return path

    try:
        building, ignored, threshold = body["masks"]
        ungeoreferenced, max_pixels = body["access"]
        options = TilingOptions(
            tiles.size, tiles.overlap, body["split"], place(body["val_area"]), BandRule(tiles.bands, tiles.scale),
            body["gsd_m"], MaskRule(None if building is None else tuple(building), tuple(ignored), threshold),
            tuple(known(place(path)) for path in body["vectors"]), body["where"], place(body["labelled_area"]),
            body["keep_empty"], Access(ungeoreferenced, max_pixels), index_only=True,
            keep_unlabelled=body["keep_unlabelled"],
        )  # fmt: skip
        scenes = [Scene(name, known(place(image)), place(mask)) for name, image, mask in body["scenes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BadDataError(
            f"{one_line(folder)}: its tileset.json does not say what the tiles are read from ({error}); run aerialseg"
            " tile again"
        ) from error
    return scenes, options
