"""Scenes and their labels become a set of tiles to train on: GeoTIFF pairs, an index to look at, and a manifest.

Scenes are checked first (`plan_tiles`), then cut row by row in threads (`cutting`), or only counted for a set without
pixels, each finished scene being remembered (`records`), so that the same command goes on where a killed one stopped
and does nothing when nothing has changed. The manifest comes last (`assembly`).

The folder of a set, before and after: whose files are there, what was edited by hand, and what makes it whole.

While tiles are being made the folder has no `tileset.json`, so nothing takes it for a finished set. What people edited
in `index.gpkg` is put aside meanwhile and comes back for the tiles that still exist.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, OutputError, one_line
from aerialseg.files import (
    locked,
    prepare_output_folder,
    refuse_input_as_output,
    sweep,
    usable_processors,
    write_json,
)
from aerialseg.geo.ownership import check_overwrite, mark_of
from aerialseg.geo.tiles.cut import (
    FOLDER,
    CutTile,
    SceneRecord,
    cut_tiles,
    drop_records,
    load_record,
    rows_of,
    save_record,
    summarise,
)
from aerialseg.geo.tiles.plan import TileJob, TilingOptions, TilingPlan, none_left, plan_tiles, set_aside
from aerialseg.geo.tiles.sources import describe_sources
from aerialseg.geo.tiles.tileset import (
    INDEX,
    MANIFEST,
    image_path,
    mask_path,
    read_manifest,
    read_splits,
    write_index,
    write_manifest,
)
from aerialseg.progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aerialseg.geo.scenes import Scene
    from aerialseg.geo.tiles.plan import PlannedTile

    Row = Sequence[PlannedTile]

MAX_THREADS = 16
AHEAD = 3
"""Pieces of work handed out per thread, so that none waits for the main thread."""
REPORT = "report.json"
EDITS = "edits"
PARTS = ("images", "masks")


@dataclass(frozen=True, slots=True)
class TilingReport:
    """What is in the set, and what this run did."""

    folder: Path
    scenes: dict[str, int]
    """Split -> scenes with tiles on that side."""
    tiles: dict[str, int]
    """Split -> tiles, edits in the index included."""
    building: dict[str, float]
    """Split -> share of building in the labelled pixels."""
    left_out: dict[str, int]
    """Reason -> tiles."""
    cut: int
    """Scenes that were cut in this run; the others were there already."""
    failures: dict[str, AerialsegError]
    mpx: float
    """Megapixels cut in this run."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        building = {split: None if math.isnan(share) else share for split, share in self.building.items()}
        status = {name: {"status": "failed", "error": str(error)} for name, error in self.failures.items()}
        return {
            "folder": str(self.folder), "scenes": self.scenes, "tiles": self.tiles, "building_fraction": building,
            "left_out": self.left_out, "scenes_cut": self.cut, "failed": status,
            "mpx": round(self.mpx, 3), "seconds": round(self.seconds, 3),
            "mpx_per_s": round(self.mpx / self.seconds, 2) if self.seconds else 0.0,
        }  # fmt: skip

    def summary(self) -> str:
        """Return what this run did, in a line."""
        if not self.cut:
            return f"{one_line(self.folder)}: nothing had changed ({self.seconds:.1f} s)"
        rate = f"{self.mpx:,.1f} Mpx in {self.seconds:,.1f} s, {self.mpx / self.seconds:,.1f} Mpx/s"
        return f"{one_line(self.folder)}: {self.cut} scene{'s' if self.cut > 1 else ''} cut, {rate}"


def tile_scenes(
    scenes: Sequence[Scene], options: TilingOptions, out: Path, progress: Progress | None = None
) -> TilingReport:
    """Cut scenes, each with its mask unless `options.vectors` is given, into the set `out`, and return what is there.

    A scene that cannot be used is named in the report's `failures` and the others go on. Raises what makes the set as a
    whole impossible; then `out` has no manifest, or still the old one if nothing was begun.
    """
    progress, began = progress or Silent(), time.monotonic()
    found = plan_tiles(scenes, options, progress)
    for note in found.notes:
        progress.say(note)
    refuse_outputs(out, found.jobs, overwrite=options.overwrite)
    prepare_output_folder(out)
    with locked(out):
        sweep(out)
        records, cut, failures, changed = _bring_up_to_date(out, found, options, progress)
        report = _report(out, records, cut, failures, began)
        if changed:
            write_json(out / REPORT, report.to_json())
    return report


def _bring_up_to_date(
    out: Path, found: TilingPlan, options: TilingOptions, progress: Progress
) -> tuple[list[SceneRecord], list[TileJob], dict[str, AerialsegError], bool]:
    """Cut what is missing; return the records, the jobs that were cut, the failures, and whether anything changed."""
    before, failures = look_before(out, overwrite=options.overwrite), dict(found.failures)
    digests = _digests(found.jobs, options, progress)
    records = {} if options.overwrite else _reusable(out, found.jobs, digests)
    todo = [job for job in found.jobs if job.stem not in records]
    sources = sources_of(found.jobs, options, out)
    if not todo and is_finished(out, before, list(records.values()), failures, sources):
        return list(records.values()), [], failures, False
    begin_set(out, before)
    for job, cuts in _cut_all(todo, None if options.index_only else out, options, progress):
        if isinstance(cuts, AerialsegError):
            set_aside(failures, job.scene, cuts, found.given, progress)
            continue
        records[job.stem] = summarise(job.scene.name, digests[job.stem], cuts, job.gap)
        save_record(out, job.stem, records[job.stem])
    in_order = [records[job.stem] for job in found.jobs if job.stem in records]
    if not in_order:
        raise none_left(failures)
    finish_set(out, found.jobs, in_order, failures, options, before.edits)
    if before.edits:
        progress.say(f"kept the split of {len(before.edits)} tiles as edited in {INDEX}; --overwrite forgets it")
    return in_order, [job for job in todo if job.stem in records], failures, True


def _threads(options: TilingOptions) -> int:
    # Every tile is flushed to the disk before it gets its name; two more threads keep the processors busy meanwhile.
    return options.threads or min(MAX_THREADS, usable_processors() + 2)


def _digests(jobs: Sequence[TileJob], options: TilingOptions, progress: Progress) -> dict[str, str]:
    """Return each scene's digest by stem; all input files are read once."""
    digests = {}
    progress.start("comparing", len(jobs), "scene")
    with ThreadPoolExecutor(_threads(options)) as pool:
        for job, digest in zip(jobs, pool.map(TileJob.digest, jobs), strict=True):
            digests[job.stem] = digest
            progress.advance(1, job.scene.name)
    progress.finish()
    return digests


def _reusable(out: Path, jobs: Sequence[TileJob], digests: Mapping[str, str]) -> dict[str, SceneRecord]:
    """Return the records, by stem, of scenes whose tiles are there and would come out the same."""
    known = ((job.stem, load_record(out, job.stem)) for job in jobs)
    return {stem: record for stem, record in known if record and record.digest == digests[stem] and record.holds(out)}


def _cut_all(
    jobs: Sequence[TileJob], out: Path | None, options: TilingOptions, progress: Progress
) -> Iterator[tuple[TileJob, list[CutTile] | AerialsegError]]:
    """Cut scenes in threads, and yield each with its tiles, or with the reason it could not be read, in order."""
    pieces = [(job, row) for job in jobs for row in rows_of(job)]
    pool = ThreadPoolExecutor(_threads(options), thread_name_prefix="tile")
    progress.start("cutting", math.ceil(sum(_mpx(row) for _, row in pieces)), "Mpx")
    try:
        handed_out = _hand_out(pool, pieces, out, AHEAD * _threads(options))
        for job, results in groupby(handed_out, key=lambda result: result[0]):
            yield job, _collect(results, options, progress)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        progress.finish()


def _hand_out(
    pool: ThreadPoolExecutor, pieces: Sequence[tuple[TileJob, Row]], out: Path | None, ahead: int
) -> Iterator[tuple[TileJob, Row, Future[list[CutTile]]]]:
    """Yield every piece of work in order once it has been handed out, with at most `ahead` waiting or running."""
    waiting: deque[tuple[TileJob, Row, Future[list[CutTile]]]] = deque()
    for job, row in pieces:
        waiting.append((job, row, pool.submit(cut_tiles, job, row, out)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    yield from waiting


def _collect(
    results: Iterable[tuple[TileJob, Row, Future[list[CutTile]]]], options: TilingOptions, progress: Progress
) -> list[CutTile] | AerialsegError:
    """Wait for the pieces of one scene; return its tiles in order, or what was wrong with it."""
    cuts: list[CutTile] = []
    failure: AerialsegError | None = None
    for job, row, future in results:
        try:
            cuts += future.result()
        except (BadDataError, NoInputError) as error:
            if options.fail_fast:
                raise
            failure = failure or error
        progress.advance(_mpx(row), job.scene.name)
    return failure or cuts


def _mpx(row: Row) -> float:
    return sum(int(planned.tile.core.height) * int(planned.tile.core.width) for planned in row) / 1e6


def _report(
    out: Path,
    records: Sequence[SceneRecord],
    cut: Sequence[TileJob],
    failures: Mapping[str, AerialsegError],
    began: float,
) -> TilingReport:
    splits = read_splits(out / INDEX)
    classes = pooled_classes(records, splits)
    used = [(record.scene, splits.get(tile.name)) for record in records for tile in record.tiles]
    return TilingReport(
        out,
        scenes={split: len({scene for scene, side in used if side == split}) for split in classes},
        tiles={split: sum(1 for _, side in used if side == split) for split in classes},
        building={split: building_share(counts) for split, counts in classes.items()},
        left_out=total_left_out(records),
        cut=len(cut),
        failures=dict(failures),
        mpx=sum(_mpx(job.tiles) for job in cut),
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True, slots=True)
class PreviousRun:
    """What an earlier run left."""

    manifest: dict[str, Any] | None = None
    """Of a finished set; None when there is none."""
    edits: dict[str, str] = field(default_factory=dict)
    """Tile -> split that was set by hand; empty when the tile was taken out of use."""


def refuse_outputs(folder: Path, jobs: Sequence[TileJob], *, overwrite: bool) -> None:
    """Raise when the set would overwrite an input (UsageError), or foreign files without consent (OutputError)."""
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
        check_overwrite(path, overwrite=False)
    for part in PARTS:
        if (folder / part).is_dir() and any((folder / part).iterdir()):
            raise OutputError(
                f"{one_line(folder / part)}: holds files that are not tiles of this set; give another folder with -o,"
                " or --overwrite"
            )


def look_before(folder: Path, *, overwrite: bool) -> PreviousRun:
    """Return what an earlier run left in the folder; nothing when all is to be made anew."""
    if overwrite:
        return PreviousRun()
    aside = folder / FOLDER / EDITS
    try:
        manifest = read_manifest(folder)
    except BadDataError:  # the tiles are still there; what they are is in the records
        manifest = None
    if manifest is None:
        return PreviousRun(None, json.loads(aside.read_text(encoding="utf-8")) if aside.is_file() else {})
    if not (folder / INDEX).is_file():
        return PreviousRun(manifest)
    now = read_splits(folder / INDEX)
    planned = {tile["name"]: tile["split"] for tile in manifest["tiles"]}
    return PreviousRun(manifest, {name: now.get(name, "") for name, split in planned.items() if now.get(name) != split})


def is_finished(
    folder: Path,
    before: PreviousRun,
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


def sources_of(jobs: Sequence[TileJob], options: TilingOptions, folder: Path) -> dict[str, Any] | None:
    """Return what the tiles of a set without pixels are read from; None for a set with files of its own."""
    return describe_sources(jobs, options, folder) if options.index_only else None


def begin_set(folder: Path, before: PreviousRun) -> None:
    """Mark the folder as unfinished, with the edits put aside."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    if before.edits:
        write_json(folder / FOLDER / EDITS, before.edits)
    (folder / MANIFEST).unlink(missing_ok=True)


def finish_set(
    folder: Path,
    jobs: Sequence[TileJob],
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
        if path.stem not in names and mark_of(path, "tile") == path.stem
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
