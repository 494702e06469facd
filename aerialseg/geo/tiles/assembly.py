"""The folder of a set, before and after: whose files are there, what was edited by hand, and what makes it whole.

While tiles are being made the folder has no `tileset.json`, so nothing takes it for a finished set. What people edited
in `index.gpkg` is put aside meanwhile and comes back for the tiles that still exist.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aerialseg.errors import BadDataError, OutputError, one_line
from aerialseg.files import refuse_foreign, refuse_input_as_output, write_json
from aerialseg.geo.raster import open_raster
from aerialseg.geo.tiles.cutting import TAG
from aerialseg.geo.tiles.index import read_splits, write_index
from aerialseg.geo.tiles.records import FOLDER, drop_records
from aerialseg.geo.tiles.sources import describe_sources
from aerialseg.geo.tiles.tileset import INDEX, MANIFEST, image_path, mask_path, read_manifest, write_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aerialseg.errors import AerialsegError
    from aerialseg.geo.tiles.options import TilingOptions
    from aerialseg.geo.tiles.records import SceneRecord
    from aerialseg.geo.tiles.survey import Job

REPORT = "report.json"
EDITS = "edits"
PARTS = ("images", "masks")


@dataclass(frozen=True, slots=True)
class Before:
    """What an earlier run left."""

    manifest: dict[str, Any] | None = None
    """Of a finished set; None when there is none."""
    edits: dict[str, str] = field(default_factory=dict)
    """Tile -> split that was set by hand; empty when the tile was taken out of use."""


def refuse_outputs(folder: Path, jobs: Sequence[Job], *, overwrite: bool) -> None:
    """Raise when the set would overwrite an input (UsageError), or strangers' files without consent (OutputError)."""
    inputs = {path for job in jobs for path in job.inputs}
    places = {str((folder / part).resolve()).casefold() for part in PARTS}
    outputs = [folder / INDEX, folder / MANIFEST, folder / REPORT]
    if any(str(path.resolve().parent).casefold() in places for path in inputs):
        names = [tile.name for job in jobs for tile in job.tiles]
        outputs += [path(folder, name) for name in names for path in (image_path, mask_path)]
    refuse_input_as_output(inputs, outputs)
    if overwrite or (folder / FOLDER).is_dir():
        return
    for path in outputs[:3]:
        refuse_foreign(path, ours=False, overwrite=False)
    for part in PARTS:
        if (folder / part).is_dir() and any((folder / part).iterdir()):
            raise OutputError(
                f"{one_line(folder / part)}: holds files that are not tiles of this set; give another folder with -o,"
                " or --overwrite"
            )


def look_before(folder: Path, *, overwrite: bool) -> Before:
    """Return what an earlier run left in the folder; nothing when all is to be made anew."""
    if overwrite:
        return Before()
    aside = folder / FOLDER / EDITS
    try:
        manifest = read_manifest(folder)
    except BadDataError:  # the tiles are still there; what they are is in the records
        manifest = None
    if manifest is None:
        return Before(None, json.loads(aside.read_text(encoding="utf-8")) if aside.is_file() else {})
    if not (folder / INDEX).is_file():
        return Before(manifest)
    now = read_splits(folder / INDEX)
    planned = {tile["name"]: tile["split"] for tile in manifest["tiles"]}
    return Before(manifest, {name: now.get(name, "") for name, split in planned.items() if now.get(name) != split})


def is_finished(
    folder: Path,
    before: Before,
    records: Sequence[SceneRecord],
    failures: Mapping[str, AerialsegError],
    sources: Mapping[str, Any] | None,
) -> bool:
    """Return whether the folder holds the finished set of exactly these scenes, read from these `sources` if any."""
    manifest = before.manifest
    return (
        manifest is not None
        and manifest.get("sources") == sources
        and manifest["scenes"] == _scene_lines(records)
        and manifest["failed"] == {name: str(error) for name, error in failures.items()}
        and (folder / INDEX).is_file()
    )


def sources_of(jobs: Sequence[Job], options: TilingOptions, folder: Path) -> dict[str, Any] | None:
    """Return what the tiles of a set without pixels are read from; None for a set with files of its own."""
    return describe_sources(jobs, options, folder) if options.index_only else None


def begin_set(folder: Path, before: Before) -> None:
    """Mark the folder as unfinished, with the edits put aside."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    if before.edits:
        write_json(folder / FOLDER / EDITS, before.edits)
    (folder / MANIFEST).unlink(missing_ok=True)


def finish_set(
    folder: Path,
    jobs: Sequence[Job],
    records: Sequence[SceneRecord],
    failures: Mapping[str, AerialsegError],
    options: TilingOptions,
    edits: Mapping[str, str],
) -> None:
    """Remove old tiles, write the index and, last of all, the manifest; raises BadDataError without a training tile.

    `jobs` are all that were to be done, `records` what became of those that could be.
    """
    tiles = [tile for record in records for tile in record.tiles]
    done = {record.scene for record in records}
    boxes = {job.scene.name: job.box for job in jobs if job.scene.name in done}
    if not any(tile.split == "train" for tile in tiles):
        left_out = ", ".join(f"{count} {reason}" for reason, count in total_left_out(records).items() if count)
        raise BadDataError(
            f"{one_line(folder)}: no training tile is left ({left_out}); check masks, areas and the split"
        )
    body = {
        "size": options.size,
        "overlap": options.overlap,
        "bands": options.bands.bands,
        "scale": options.bands.scale,
        "gsd_m": _typical_gsd(list(boxes.values())),
        **_statistics(records),
        "left_out": total_left_out(records),
        "scenes": _scene_lines(records),
        "failed": {name: str(error) for name, error in failures.items()},
        **({} if (sources := sources_of(jobs, options, folder)) is None else {"sources": sources}),
    }
    remove_stale(folder, set() if options.index_only else {tile.name for tile in tiles})
    drop_records(folder, [job.stem for job in jobs if job.scene.name in done])
    write_index(folder / INDEX, [replace(tile, split=edits.get(tile.name, tile.split)) for tile in tiles], boxes)
    write_manifest(folder, body, tiles)
    (folder / FOLDER / EDITS).unlink(missing_ok=True)


def remove_stale(folder: Path, names: set[str]) -> int:
    """Remove tiles that an earlier run made and this one did not, known by their tag, and return how many files."""
    stale = [
        path
        for part in PARTS
        for path in sorted((folder / part).glob("*.tif"))
        if path.stem not in names and _is_our_tile(path)
    ]
    for path in stale:
        path.unlink()
    return len(stale)


def total_left_out(records: Sequence[SceneRecord]) -> dict[str, int]:
    """Return reason -> tiles, over all scenes."""
    reasons = records[0].left_out if records else {}
    return {reason: sum(record.left_out[reason] for record in records) for reason in reasons}


def pooled_classes(records: Sequence[SceneRecord], splits: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Return split -> class -> pixels, over the cores of the tiles that `splits` names."""
    totals = {split: [0, 0, 0] for split in ("train", "val")}
    for record in records:
        for tile, counts in zip(record.tiles, record.classes, strict=True):
            if splits.get(tile.name) in totals:
                total = totals[splits[tile.name]]
                total[:] = [a + b for a, b in zip(total, counts, strict=True)]
    names = ("background", "building", "unlabelled")
    return {split: dict(zip(names, total, strict=True)) for split, total in totals.items()}


def building_share(classes: Mapping[str, int]) -> float:
    """Return the share of building in labelled pixels; NaN when nothing is labelled."""
    labelled = classes["background"] + classes["building"]
    return classes["building"] / labelled if labelled else math.nan


def _statistics(records: Sequence[SceneRecord]) -> dict[str, Any]:
    """Return mean and standard deviation of the training pixels, from integer sums, and the classes' pixels."""
    pixels = sum(record.pixels for record in records)
    if pixels == 0:
        raise BadDataError("the training tiles' cores hold no valid pixel; check the scenes' nodata")
    sums = [sum(band) for band in zip(*(r.sums for r in records if r.sums), strict=True)]
    squares = [sum(band) for band in zip(*(r.squares for r in records if r.squares), strict=True)]
    variances = [
        (pixels * square - total * total) / (pixels * pixels) for total, square in zip(sums, squares, strict=True)
    ]
    planned = {tile.name: tile.split for record in records for tile in record.tiles}
    classes = pooled_classes(records, planned)
    share = building_share(classes["train"])
    return {
        "mean": [round(total / pixels, 6) for total in sums],
        "std": [round(max(1.0, math.sqrt(variance)), 6) for variance in variances],  # a constant band divides by 1
        "building_fraction": None if math.isnan(share) else round(share, 9),
        "classes": classes,
    }


def _scene_lines(records: Sequence[SceneRecord]) -> list[dict[str, Any]]:
    return [{"name": record.scene, "tiles": len(record.tiles), "digest": record.digest} for record in records]


def _typical_gsd(boxes: Sequence[Any]) -> float | None:
    known = [box.gsd_m for box in boxes if box.gsd_m is not None]
    return float(f"{statistics.median(known):.6g}") if known else None


def _is_our_tile(path: Path) -> bool:
    try:
        with open_raster(path) as dataset:
            return bool(dataset.tags().get(TAG) == path.stem)
    except BadDataError:
        return False
