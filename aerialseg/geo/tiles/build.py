"""Scenes and their labels become a set of tiles to train on: GeoTIFF pairs, an index to look at, and a manifest.

Scenes are checked first, then cut row by row in threads, or only counted for a set without pixels; each finished scene
is remembered, so that the same command goes on where a killed one stopped and does nothing when nothing has changed.
While tiles are being made the folder has no `tileset.json`, so nothing takes it for a finished set; what people edited
in `index.gpkg` is put aside meanwhile and comes back for the tiles that still exist. The manifest comes last.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, OutputError, ReadError, one_line
from aerialseg.files import (
    is_folder,
    is_regular,
    locked,
    prepare_output_folder,
    refuse_input_as_output,
    remove,
    require_space,
    resolved,
    sweep,
    usable_processors,
    write_json,
)
from aerialseg.geo.digest import what_changed
from aerialseg.geo.ownership import check_overwrite, mark_of
from aerialseg.geo.tiles.cut import (
    FOLDER,
    CutTile,
    SceneRecord,
    cut_tiles,
    describe_sources,
    disk_bytes,
    drop_records,
    load_record,
    rows_of,
    save_record,
    summarise,
)
from aerialseg.geo.tiles.plan import TileJob, TilingOptions, none_left, plan_tiles, set_aside
from aerialseg.geo.tiles.tileset import (
    INDEX,
    MANIFEST,
    TileSet,
    image_path,
    mask_path,
    read_splits,
    read_tileset,
    write_index,
    write_manifest,
)
from aerialseg.progress import Progress, Silent
from aerialseg.values import from_values, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from aerialseg.geo.scenes import Scene
    from aerialseg.geo.tiles.plan import PlannedTile, TilingPlan

    Row = Sequence[PlannedTile]

MAX_THREADS = 16
AHEAD = 3
"""Pieces of work handed out per thread, so that none waits for the main thread."""
REPORT = "report.json"
EDITS = "edits"
"""Tile -> split that was set by hand, while the set is unfinished; empty when the tile was taken out of use."""
PARTS = ("images", "masks")


@dataclass(frozen=True, slots=True)
class TilingReport:
    """What is in the set, and what this run did.

    Example:
        >>> scenes = aerialseg.find_scenes(["scenes"])
        >>> options = aerialseg.TilingOptions(size=128, split="0.5")
        >>> report = aerialseg.tile_scenes(scenes, Path("tiles/town"), options)
        >>> report.scenes, report.failures
        ({'train': 1, 'val': 1}, {})
    """

    folder: Path
    scenes: dict[str, int]
    """Split -> scenes with tiles in it."""
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

    def notes(self, edits: int) -> list[str]:
        """Return what a user should know of a set that was made, `edits` of whose tiles were set by hand."""
        shares = [share for share in self.building.values() if not math.isnan(share)]
        found = [f"kept the split of {edits} tiles as edited in {INDEX}; --overwrite forgets it"] if edits else []
        if shares and not any(shares):
            name = one_line(self.folder)
            found.append(f"{name}: no labelled pixel is building; check the masks' values, or the polygons")
        gap, train = self.left_out.get("gap", 0), self.tiles["train"]
        if gap > train:
            other = "--split auto or " if max(self.scenes.values()) > 1 else ""
            found.append(
                f"{gap} tiles are left out as a gap around those that validate, more than the {train} that train;"
                f" {other}a smaller --size keeps more"
            )
        return found

    def summary(self) -> str:
        """Return what this run did, in a line."""
        if not self.cut:
            return f"{one_line(self.folder)}: nothing had changed ({self.seconds:.1f} s)"
        rate = f"{self.mpx:,.1f} Mpx in {self.seconds:,.1f} s, {self.mpx / self.seconds:,.1f} Mpx/s"
        return f"{one_line(self.folder)}: {self.cut} scene{'s' if self.cut > 1 else ''} cut, {rate}"


def tile_scenes(
    scenes: Sequence[Scene], out: Path, options: TilingOptions | None = None, progress: Progress = Silent()
) -> TilingReport:
    """Cut scenes, each with its mask unless `options.vectors` is given, into the set `out`, and return what is there.

    What has not changed since an earlier call is left as it is. A scene that cannot be used is named in the report's
    `failures` and the others go on. Raises UsageError for options that contradict the scenes, NoInputError and
    BadDataError when no scene is left, OutputError when `out` holds another's files, StorageError when the disk is
    full, and Stopped; then `out` has no manifest, or still the old one if nothing was begun.

    Example:
        >>> scenes = aerialseg.find_scenes(["scenes"])
        >>> options = aerialseg.TilingOptions(size=128, split="0.5")
        >>> report = aerialseg.tile_scenes(scenes, Path("tiles/town"), options)
        >>> report.tiles
        {'train': 4, 'val': 4}
    """
    options, began = options or TilingOptions(), time.monotonic()
    plan = plan_tiles(scenes, options, progress)
    options = replace(options, size=plan.size)
    for note in plan.notes:
        progress.say(note)
    refuse_outputs(out, plan.jobs, overwrite=options.overwrite)
    prepare_output_folder(out)
    with locked(out):
        sweep(out)
        before, edits = look_before(out, overwrite=options.overwrite)
        failures = dict(plan.failures)
        digests = _digests(plan, failures, options, progress)
        records = {} if options.overwrite else _known(out, plan.jobs, digests)
        todo = [job for job in plan.jobs if job.stem in digests and job.stem not in records]
        sources = describe_sources(plan.jobs, options, out) if options.index_only else None
        if not todo and is_finished(out, before, list(records.values()), failures, sources):
            return _report(out, list(records.values()), [], failures, began)
        if not options.index_only:
            require_space(out, sum(map(disk_bytes, todo)))
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        if edits:
            write_json(out / FOLDER / EDITS, edits)
        remove(out / MANIFEST)
        for job, cuts in _cut_all(todo, None if options.index_only else out, options, progress):
            if isinstance(cuts, AerialsegError):
                set_aside(failures, job.scene, cuts, plan.given, progress)
                continue
            records[job.stem] = summarise(job.scene.name, digests[job.stem], cuts, job.gap)
            save_record(out, job.stem, records[job.stem])
        in_order = [records[job.stem] for job in plan.jobs if job.stem in records]
        if not in_order:
            raise none_left(failures)
        finish_set(out, plan.jobs, in_order, failures, options, edits)
        report = _report(out, in_order, [job for job in todo if job.stem in records], failures, began)
        write_json(out / REPORT, report.to_json())
        for note in report.notes(len(edits)):
            progress.say(note)
    return report


def _threads(options: TilingOptions) -> int:
    # Every tile is flushed to the disk before it gets its name; two more threads keep the processors busy meanwhile.
    return options.threads or min(MAX_THREADS, usable_processors() + 2)


def _digests(
    plan: TilingPlan, failures: dict[str, AerialsegError], options: TilingOptions, progress: Progress
) -> dict[str, str]:
    """Return each scene's digest by stem; all input files are read once. What has changed by now joins `failures`."""
    digests = {}
    progress.start("comparing", len(plan.jobs), "scene")
    with ThreadPoolExecutor(_threads(options)) as pool:
        for job, digest in [(job, pool.submit(job.digest)) for job in plan.jobs]:
            try:
                digests[job.stem] = digest.result()
            except ReadError as error:
                reason = what_changed(job.seen, "cut")
                if reason is None or options.fail_fast:
                    raise reason or error from error
                set_aside(failures, job.scene, reason, plan.given, progress)
            progress.advance(1, job.scene.name)
    progress.finish()
    return digests


def _known(out: Path, jobs: Sequence[TileJob], digests: Mapping[str, str]) -> dict[str, SceneRecord]:
    """Return the records, by stem, of the scenes that an earlier run made from the same inputs."""
    known: dict[str, SceneRecord] = {}
    for job in jobs:
        record = load_record(out, job.stem) if job.stem in digests else None
        if record is None or (record.scene, record.digest) != (job.scene.name, digests[job.stem]):
            continue
        if len(record.sums) in (0, len(job.source.bands)) and record.holds(out):
            known[job.stem] = record
    return known


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
            cuts: list[CutTile] = []
            failure: AerialsegError | None = None
            for _, row, future in results:
                try:
                    cuts += future.result()
                except (BadDataError, NoInputError) as error:
                    if options.fail_fast:
                        raise
                    failure = failure or error
                progress.advance(_mpx(row), job.scene.name)
            changed = what_changed(job.seen, "cut")
            if changed is not None and options.fail_fast:
                raise changed
            yield job, changed or failure or cuts
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
        scenes={split: len({scene for scene, own in used if own == split}) for split in classes},
        tiles={split: sum(1 for _, own in used if own == split) for split in classes},
        building={split: building_share(counts) for split, counts in classes.items()},
        left_out=total_left_out(records),
        cut=len(cut),
        failures=dict(failures),
        mpx=sum(_mpx(job.tiles) for job in cut),
        seconds=time.monotonic() - began,
    )


def refuse_outputs(folder: Path, jobs: Sequence[TileJob], *, overwrite: bool) -> None:
    """Raise when the set would overwrite an input (UsageError), or foreign files without consent (OutputError)."""
    inputs = {path for job in jobs for path in job.inputs}
    places = {str(resolved(folder / part)).casefold() for part in PARTS}
    outputs = [folder / INDEX, folder / MANIFEST, folder / REPORT]
    if any(str(resolved(path).parent).casefold() in places for path in inputs):
        names = [tile.name for job in jobs for tile in job.tiles]
        outputs += [path(folder, name) for name in names for path in (image_path, mask_path)]
    refuse_input_as_output(inputs, outputs)
    if overwrite or is_folder(folder / FOLDER):
        return
    for path in outputs[:3]:
        check_overwrite(path, overwrite=False)
    for part in PARTS:
        if is_folder(folder / part) and any((folder / part).iterdir()):
            raise OutputError(
                f"{one_line(folder / part)}: holds files that are not tiles of this set; give another folder with -o,"
                " or --overwrite"
            )


def look_before(folder: Path, *, overwrite: bool) -> tuple[TileSet | None, dict[str, str]]:
    """Return what an earlier run left: the finished set as it was written, and tile -> split where it was set by hand.

    The split is empty for a tile that was taken out of use. Nothing is returned when all is to be made anew.
    """
    if overwrite:
        return None, {}
    aside = folder / FOLDER / EDITS
    try:
        tileset = read_tileset(folder)
    except BadDataError:  # the tiles are still there; what they are is in the records
        tileset = None
    if tileset is None:
        try:
            kept = from_values(dict[str, str], read_json(aside))
            return None, {name: split for name, split in kept.items() if split in ("train", "val", "")}
        except (OSError, ValueError):
            return None, {}
    if not is_regular(folder / INDEX):
        return tileset, {}
    now = read_splits(folder / INDEX)
    planned = {tile.name: tile.split for tile in tileset.tiles}
    return tileset, {name: now.get(name, "") for name, split in planned.items() if now.get(name) != split}


def is_finished(
    folder: Path,
    tileset: TileSet | None,
    records: Sequence[SceneRecord],
    failures: Mapping[str, AerialsegError],
    sources: Mapping[str, Any] | None,
) -> bool:
    """Return whether the folder holds the finished set of exactly these scenes, read from these `sources` if any."""
    return (
        tileset is not None
        and tileset.sources == sources
        and list(tileset.scenes.items()) == [(record.scene, record.digest) for record in records]
        and tileset.failed == {name: str(error) for name, error in failures.items()}
        and is_regular(folder / INDEX)
    )


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
    known = [box.gsd_m for box in boxes.values() if box.gsd_m is not None]
    body = {
        "size": options.size,
        "overlap": options.overlap,
        "bands": options.bands.bands,
        "scale": options.bands.scale,
        **options.bands.marks,
        "gsd_m": float(f"{statistics.median(known):.6g}") if known else None,
        **_statistics(records),
        "left_out": total_left_out(records),
        "scenes": [{"name": r.scene, "tiles": len(r.tiles), "digest": r.digest} for r in records],
        "failed": {name: str(error) for name, error in failures.items()},
        **({"sources": describe_sources(jobs, options, folder)} if options.index_only else {}),
    }
    remove_stale(folder, set() if options.index_only else {tile.name for tile in tiles})
    drop_records(folder, [job.stem for job in jobs if job.scene.name in done])
    write_index(folder / INDEX, [replace(tile, split=edits.get(tile.name, tile.split)) for tile in tiles], boxes)
    write_manifest(folder, body, tiles)
    remove(folder / FOLDER / EDITS)


def remove_stale(folder: Path, names: set[str]) -> None:
    """Remove tiles that an earlier run made and this one did not, known by their tag."""
    for path in [path for part in PARTS for path in sorted((folder / part).glob("*.tif")) if path.stem not in names]:
        if mark_of(path, "tile") == path.stem:
            remove(path)


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
