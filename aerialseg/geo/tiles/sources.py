"""What the tiles of a set without pixels are read from: its scenes, labels and options, kept in its `tileset.json`.

Paths are kept relative to the set, so that both can be moved together. Planned again from the same files, the tiles
come out the same, which the scenes' digests prove; where they differ, the scene is named.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.errors import BadDataError, NoInputError, UsageError, one_line
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.labels import MaskRule
from aerialseg.geo.scenes import Scene
from aerialseg.geo.tiles.plan import TilingOptions, plan_tiles
from aerialseg.progress import Silent
from aerialseg.values import from_values, to_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.tiles.plan import TileJob
    from aerialseg.geo.tiles.tileset import TileSet


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


def describe_sources(jobs: Sequence[TileJob], options: TilingOptions, folder: Path) -> dict[str, Any]:
    """Return as JSON values what `plan_again` needs."""

    def place(path: Path) -> str:
        return os.path.relpath(path.resolve(), folder.resolve())

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
    return values


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
    folder = tiles.folder.resolve()

    def place(text: str) -> Path:
        return Path(os.path.normpath(folder / text))

    def maybe(text: str | None) -> Path | None:
        return None if text is None else place(text)

    try:
        known = from_values(Sources, tiles.sources)
        options = TilingOptions(
            tiles.size, tiles.overlap, known.split, maybe(known.val_area), BandRule(tiles.bands, tiles.scale),
            known.gsd_m, MaskRule(*known.masks), tuple(map(place, known.vectors)), known.where,
            maybe(known.labelled_area), known.keep_empty, Access(*known.access), index_only=True,
            keep_unlabelled=known.keep_unlabelled,
        )  # fmt: skip
    except (ValueError, UsageError) as error:
        raise BadDataError(
            f"{one_line(tiles.folder)}: its tileset.json does not say what the tiles are read from ({error}); run"
            " aerialseg tile again"
        ) from error
    return [Scene(name, place(image), maybe(mask)) for name, image, mask in known.scenes], options
