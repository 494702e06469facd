"""Scenes and their labels become a set of tiles to train on: GeoTIFF pairs, an index to look at, and a manifest.

Scenes are checked first (`survey`), then cut row by row in threads (`cutting`), or only counted for a set without
pixels, each finished scene being remembered (`records`), so that the same command goes on where a killed one stopped
and does nothing when nothing has changed. The manifest comes last (`assembly`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, one_line
from aerialseg.files import locked, prepare_output_folder, sweep, usable_processors, write_json
from aerialseg.geo.tiles.assembly import (
    REPORT,
    begin_set,
    building_share,
    finish_set,
    is_finished,
    look_before,
    pooled_classes,
    refuse_outputs,
    sources_of,
    total_left_out,
)
from aerialseg.geo.tiles.cutting import CutTile, cut_tiles, rows_of
from aerialseg.geo.tiles.index import read_splits
from aerialseg.geo.tiles.options import TilingOptions
from aerialseg.geo.tiles.records import SceneRecord, load_record, save_record, summarise
from aerialseg.geo.tiles.survey import Job, Survey, none_left, set_aside, survey
from aerialseg.geo.tiles.tileset import INDEX
from aerialseg.progress import Progress, Silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from aerialseg.geo.scenes import Scene
    from aerialseg.geo.tiles.survey import PlannedTile

    Row = Sequence[PlannedTile]

__all__ = ["TilingOptions", "TilingReport", "tile_scenes"]

MAX_THREADS = 16
AHEAD = 3
"""Pieces of work handed out per thread, so that none waits for the main thread."""


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
    found = survey(scenes, options, progress)
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
    out: Path, found: Survey, options: TilingOptions, progress: Progress
) -> tuple[list[SceneRecord], list[Job], dict[str, AerialsegError], bool]:
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


def _digests(jobs: Sequence[Job], options: TilingOptions, progress: Progress) -> dict[str, str]:
    """Return each scene's digest by stem; all input files are read once."""
    digests = {}
    progress.start("comparing", len(jobs), "scene")
    with ThreadPoolExecutor(_threads(options)) as pool:
        for job, digest in zip(jobs, pool.map(Job.digest, jobs), strict=True):
            digests[job.stem] = digest
            progress.advance(1, job.scene.name)
    progress.finish()
    return digests


def _reusable(out: Path, jobs: Sequence[Job], digests: Mapping[str, str]) -> dict[str, SceneRecord]:
    """Return the records, by stem, of scenes whose tiles are there and would come out the same."""
    known = ((job.stem, load_record(out, job.stem)) for job in jobs)
    return {stem: record for stem, record in known if record and record.digest == digests[stem] and record.holds(out)}


def _cut_all(
    jobs: Sequence[Job], out: Path | None, options: TilingOptions, progress: Progress
) -> Iterator[tuple[Job, list[CutTile] | AerialsegError]]:
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
    pool: ThreadPoolExecutor, pieces: Sequence[tuple[Job, Row]], out: Path | None, ahead: int
) -> Iterator[tuple[Job, Row, Future[list[CutTile]]]]:
    """Yield every piece of work in order once it has been handed out, with at most `ahead` waiting or running."""
    waiting: deque[tuple[Job, Row, Future[list[CutTile]]]] = deque()
    for job, row in pieces:
        waiting.append((job, row, pool.submit(cut_tiles, job, row, out)))
        if len(waiting) >= ahead:
            yield waiting.popleft()
    yield from waiting


def _collect(
    results: Iterable[tuple[Job, Row, Future[list[CutTile]]]], options: TilingOptions, progress: Progress
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
    out: Path, records: Sequence[SceneRecord], cut: Sequence[Job], failures: Mapping[str, AerialsegError], began: float
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
