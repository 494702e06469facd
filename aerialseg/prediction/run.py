"""Many scenes through one model, one after the other: what a run does first, for each scene, and at the end.

A scene's rasters are finished in a thread of their own while the next scenes run; each is written whole or not at all.
torch is imported here, once it is known that there is work. What decides that is in `checks`, how one scene is run in
`engine`, what is made of all of them in `exports`.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aerialseg.errors import (
    AerialsegError,
    NoInputError,
    Stopped,
    one_line,
)
from aerialseg.files import (
    locked,
    prepare_output_folder,
    refuse_input_as_output,
    require_space,
    sweep,
)
from aerialseg.geo.areas import read_area
from aerialseg.geo.ownership import check_overwrite
from aerialseg.models.package import find_model, read_model
from aerialseg.prediction.arrays import Model
from aerialseg.prediction.bands import Share, share_out
from aerialseg.prediction.checks import (
    REPORT,
    Run,
    SceneJob,
    check_rasters,
    check_scenes,
    disk_bytes,
    done_before,
    every_output,
    finishers,
    is_output_in,
    note_views,
    refuse_edited,
    report_name,
)
from aerialseg.prediction.exports import check_products, make_products
from aerialseg.prediction.log import RunLog
from aerialseg.prediction.options import PredictOptions, check_window
from aerialseg.prediction.outputs import (
    SceneFiles,
    SeamCounter,
    count_pixels,
    finish,
    output_tags,
    scene_files,
    state_of,
)
from aerialseg.prediction.reading import in_background
from aerialseg.prediction.report import PredictReport, SceneResult
from aerialseg.prediction.resume import Begun, agree, exact_settings, look
from aerialseg.prediction.stored import StoredRows, files_of, finishing
from aerialseg.progress import Silent
from aerialseg.values import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    import torch

    from aerialseg.geo.scenes import Scene
    from aerialseg.models.package import ModelFile
    from aerialseg.prediction.bands import Rows
    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.network import Forward
    from aerialseg.progress import Progress

T = TypeVar("T")
POLL_S, PATIENCE_S = 0.2, 5.0
"""How often waiting for a scene's files looks for a stop, and how long a stop waits for them."""


def predict_scenes(
    scenes: Sequence[Scene],
    model: Path | Model,
    out: Path,
    options: PredictOptions = PredictOptions(),
    progress: Progress = Silent(),
    known: Mapping[str, SceneResult] | None = None,
) -> PredictReport:
    """Write a mask for every scene below `out`, and report.json; what is done already is left as it is.

    `model` is a file, a run's folder, or a `Model` in memory; equal cards and weights are the same model.
    `known` are results of other processes a moment ago, by the scene's name, for the report: scenes that failed there
    are not tried, and those that they finished are not overwritten.
    A scene that fails is reported and the next one is tried: see `PredictReport.raise_failures`. Raises UsageError when
    an output would be an input, OutputError when outputs cannot be written or are not ours, ModelError, DeviceError,
    StorageError when the disk is full, and Stopped; the same call then goes on behind the last finished rows.

    Example:
        >>> report = aerialseg.predict_scenes(aerialseg.find_scenes(["scenes"]), Path("runs/town"), Path("out"))
        >>> report.raise_failures()
        >>> [str(scene.outputs["mask"]) for scene in report.scenes]
        ['out/austin6.tif', 'out/vienna1.tif']
    """
    file = None if isinstance(model, Model) else find_model(model)
    scenes = [scene for scene in scenes if not is_output_in(scene.image, out)]
    if not scenes:
        raise NoInputError(f"{one_line(out)}: no scene to predict; what was given are masks that predict wrote here")
    inputs = [*([] if file is None else [file]), *(scene.image for scene in scenes)]
    files = _prepare_files(scenes, inputs, out, options)
    waiting = None if options.shard is None else partial(progress.advance, 0)
    alone = partial(_sweep, out, [scene.name for scene in scenes])
    with locked(out, shared=options.shard is not None, on_exclusive=alone, waiting=waiting):
        check_overwrite(out / report_name(options.shard), "predict report", overwrite=options.overwrite)
        read = model if isinstance(model, Model) else read_model(model)
        area = None if options.area is None else read_area(options.area)
        run = Run(file, read.digest(), read.card, out, options, progress, area=area)
        check_window(run.card, run.window)
        note_views(run)
        placements, failures = check_scenes(run, scenes)
        scenes = [scene for scene in scenes if scene.image in placements or scene.image in failures]
        share = share_out(placements, run.window, run.overlap, options.shard)
        mine = _own_scenes(run, scenes, share)
        for scene in mine:
            check_rasters(files[scene.name], overwrite=options.overwrite)
        check_products(options, out, inputs, [placement.source.box for placement in placements.values()])
        log = RunLog(run, mine, known or {})
        try:
            jobs = _find_jobs(log, mine, files, placements, failures, share)
            if todo := _finish_complete(log, jobs):
                device, chosen = agree(run, todo.values(), find_device(run))
                require_space(out, disk_bytes(options, [job.pixels for job in jobs], device.type))
                forward = load_forward(replace(run, options=chosen), read, device)
                del read  # the bytes of the file; the network has its own
                _predict_jobs(log, [job for job in jobs if job.scene.name in todo], forward)
            log.products = make_products(run, tuple(log.results.values()))
        except AerialsegError:
            with suppress(AerialsegError):
                log.write()
            raise
        return log.write()


def _sweep(out: Path, names: Sequence[str]) -> None:
    """Remove what killed runs left in `out`, but for the rows of these scenes."""
    sweep(out, files_of(out, names))


def _prepare_files(
    scenes: Sequence[Scene], inputs: Sequence[Path], out: Path, options: PredictOptions
) -> dict[str, SceneFiles]:
    """Return where each scene's outputs go, by its name; none of them is an input, and their folders are there."""
    files = {scene.name: scene_files(scene, out, options.outputs) for scene in scenes}
    refuse_input_as_output(inputs, every_output(files, out))
    for folder in sorted({out, *(path.parent for entry in files.values() for path in entry.values())}):
        prepare_output_folder(folder)
    return files


def _own_scenes(run: Run, scenes: Sequence[Scene], share: Share) -> list[Scene]:
    """Return the scenes of which this process has a band, and its part of those without any, which will fail."""
    shard = run.options.shard
    if shard is None:
        return list(scenes)
    bare = [scene for scene in scenes if scene.image not in share.all]
    mine = {scene.image for scene in shard.of(bare)} | set(share.bands)
    run.progress.say(f"{shard}: {share.line()}")
    return [scene for scene in scenes if scene.image in mine]


def _find_jobs(
    log: RunLog,
    scenes: Sequence[Scene],
    files: Mapping[str, SceneFiles],
    placements: Mapping[Path, ScenePlacement],
    failures: Mapping[Path, AerialsegError],
    share: Share,
) -> list[SceneJob]:
    """Return the scenes to predict; what is done, and what failed, goes into the log."""
    run, measured, failed = log.run, _measured_before(log.run.out), False
    jobs: list[SceneJob] = []
    for scene in scenes:
        run.progress.advance(0)
        if run.options.fail_fast and failed:
            return []
        known, result = log.known.get(scene.name), log.results[scene.name]
        if known is not None and known.status == "failed":
            continue
        try:
            if scene.image in failures:
                raise failures[scene.image]
            job = SceneJob(scene, files[scene.name], placements[scene.image], share.bands[scene.image])
            result = job.result
            done = None if run.options.overwrite and not log.known else done_before(run, job)
        except AerialsegError as error:
            log.record(result.failed(error))
            failed = True
            continue
        if done is None:
            jobs.append(job)
            continue
        job.stored(run).remove()
        if known is None:
            log.record(replace(done, **measured.get((scene.name, done.hashes["key"]), {})))
    return [] if run.options.fail_fast and log.failed else jobs


def _measured_before(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what the reports that stand in `out` say of scenes beyond what their files do, by name and done-key."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in (*sorted(out.glob("report-*-of-*.json")), out / REPORT):
        try:
            for name, entry in read_json(path)["scenes"].items():
                known = {item: entry[item] for item in ("seconds", "seam_index") if entry.get(item) is not None}
                if all(isinstance(value, float) and 0 <= value < math.inf for value in known.values()):
                    found.setdefault((name, entry["hashes"].get("key")), {}).update(known)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # it was damaged, or is not ours
    return found


def find_device(run: Run) -> torch.device:
    """Return the device that the run's options stand for; raises DeviceError and Stopped."""
    # Threads that spin while they wait take the cores from reader and writer: up to ten times slower on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from aerialseg.models.device import pick_device

    run.progress.advance(0)  # an import takes seconds; a stop that came meanwhile is heard here
    return pick_device(run.options.device)


def load_forward(run: Run, model: Model | ModelFile, device: torch.device) -> Forward:
    """Put the run's network on the device; raises DeviceError, ModelError and Stopped."""
    from aerialseg.prediction.network import place_on_device

    run.progress.advance(0)
    segmenter = model.segmenter()
    run.progress.advance(0)
    return place_on_device(segmenter, run.card, run.options, device, run.progress)


def _finish_complete(log: RunLog, jobs: Sequence[SceneJob]) -> dict[str, Begun]:
    """Finish the scenes of which all rows are there; return what is there of those with rows to compute, by name."""
    run, todo = log.run, {}
    finisher = _Finisher(log)
    try:
        for job in jobs:
            try:
                begun = _wait(in_background(partial(look, run, job), "hasher"), run.progress)
            except Stopped:
                raise
            except AerialsegError as error:
                log.record(job.result.failed(error))
                continue
            result = replace(job.result, windows=0, windows_run=0, resumed_rows=begun.done)
            if begun.complete:
                finisher.begin(partial(_finish, run, job, result, begun.rows, time.monotonic()))
            elif begun.missing:
                todo[job.scene.name] = begun
            else:
                log.record(replace(result, status="in part"))
    finally:
        finisher.settle()
    return {} if run.options.fail_fast and log.failed else todo


def _predict_jobs(log: RunLog, jobs: Sequence[SceneJob], forward: Forward) -> None:
    """Run the scenes' bands and finish what is complete; all of it is in the log when this returns."""
    settings, progress = forward.settings, log.run.progress
    forward.steady = True
    log.settings |= {"device": str(settings.device), "used_precision": settings.precision}
    log.loaded = time.monotonic()
    progress.start("predict", sum(job.band_pixels for job in jobs) / 1e6, "Mpx")
    finisher = _Finisher(log, finishers(settings.device.type))
    try:
        for job in jobs:
            _predict_scene(log, job, forward, finisher)
            if log.run.options.fail_fast and log.failed:
                break
    finally:
        log.settings["batch"] = forward.together
        finisher.settle()
        progress.finish()


class _Finisher:
    """Finishes the files of up to `together` scenes while the next one runs, and records them in their order."""

    def __init__(self, log: RunLog, together: int = 1) -> None:
        self._log, self._together = log, together
        self._pending: deque[Future[SceneResult]] = deque()

    def begin(self, finish_scene: Callable[[], SceneResult]) -> None:
        """Start finishing a scene, once there is a place."""
        self._settle(self._together - 1)
        self._pending.append(in_background(finish_scene, "finisher"))

    def advance(self, amount: float) -> None:
        """Count million pixels as done, and record the scenes before that are finished by now."""
        self._log.run.progress.advance(amount)
        while self._pending and self._pending[0].done():
            self._log.record(self._pending.popleft().result())

    def settle(self) -> None:
        """Wait until nothing is pending; a stop waits a little, too, for the scenes are nearly there."""
        try:
            self._settle(0)
        finally:
            left, self._pending = self._pending, deque()
            wait(left, PATIENCE_S)
            for future in left:
                if future.done():
                    self._log.record(future.result())

    def _settle(self, places: int) -> None:
        """Wait until no more than so many are pending."""
        while len(self._pending) > places:
            result = _wait(self._pending[0], self._log.run.progress)
            self._pending.popleft()
            self._log.record(result)


def _wait(future: Future[T], progress: Progress) -> T:
    """Return what a background task returns, looking for a stop meanwhile."""
    while not wait([future], POLL_S).done:
        progress.advance(0)
    return future.result()


def _predict_scene(log: RunLog, job: SceneJob, forward: Forward, finisher: _Finisher) -> None:
    """Run a scene's band and begin to finish it when all is there; a failure of its own goes into the log."""
    from aerialseg.prediction.network import BatchChanged

    run, began = log.run, time.monotonic()
    if (changed := run.changed(job.placement)) is not None:
        log.record(job.result.failed(changed))
        return
    while True:
        try:
            result, rows = _predict_band(log, job, forward, finisher)
        except BatchChanged:  # equal bytes need one size of batches for a whole scene
            forward.settings = replace(forward.settings, batch=forward.together)
            continue
        except AerialsegError as error:
            if isinstance(error, Stopped) or any(result.failure is error for result in log.results.values()):
                raise
            log.record(job.result.failed(run.changed(job.placement) or error))
            return
        break
    there = rows.there()
    if run.options.shard is None or there.all() or not there.any():  # none: another process has finished it
        finisher.begin(partial(_finish, run, job, result, rows, began))
    else:
        log.record(replace(result, status="in part", seconds=time.monotonic() - began))


def _predict_band(log: RunLog, job: SceneJob, forward: Forward, finisher: _Finisher) -> tuple[SceneResult, StoredRows]:
    """Compute those rows of the job's band that are not there, into a file of their own."""
    from aerialseg.prediction.engine import predict_scene

    run, rows, done = log.run, job.stored(log.run), 0
    runs: tuple[Rows, ...] = (job.extent,)
    exact = exact_settings(forward, job.placement, run.options.batch)
    if rows.begun():  # also to overwrite: it holds what this very run began, or would compute
        begun = _wait(in_background(partial(look, run, job, exact), "hasher"), run.progress)
        runs, done = begun.missing, begun.done
        if run.options.shard is None:
            rows.remove(but=(begun.rows.key,))
    key = in_background(lambda: exact.digest(run.key(job.placement)), "hasher")
    path = rows.begin()
    windows = [0, 0]
    run.progress.advance(done * job.box.width / 1e6)
    try:
        for first, stop in runs:
            sink = rows.write(path, key, exact)
            streamed = predict_scene(forward, job.placement, sink, finisher.advance, skip=first, stop=stop)
            windows = [windows[0] + streamed.windows, windows[1] + streamed.run]
        digest = _wait(key, run.progress)
        rows.tell(path, digest)
    except Exception as error:
        elsewhere = any(result.failure is error for result in log.results.values())
        if not isinstance(error, Stopped) and not elsewhere:
            path.unlink(missing_ok=True)  # on a full disk, it makes room
        raise
    result = replace(job.result, windows=windows[0], windows_run=windows[1], resumed_rows=done)
    return result, replace(rows, key=digest)


def _finish(run: Run, job: SceneJob, result: SceneResult, rows: StoredRows, began: float) -> SceneResult:
    """Write a scene's rasters, unless another process does; what goes wrong is part of the result.

    Runs beside the next scene.
    """
    try:
        with finishing(run.out, job.scene.name) as ours:
            if run.options.shard is None:
                return _write_rasters(run, job, result, rows, began)
            complete = ours and bool(rows.there().all())
            overwriting = complete and run.options.overwrite
            done = done_before(run, job) if ours and not overwriting else None
            if done is not None:
                rows.remove()
            elif complete:
                return _write_rasters(run, job, result, rows, began)
            return done or replace(result, status="in part", seconds=time.monotonic() - began)
    except AerialsegError as error:
        return result.failed(error)


def _write_rasters(run: Run, job: SceneJob, result: SceneResult, rows: StoredRows, began: float) -> SceneResult:
    """Write a scene's rasters from its rows, and remove these; returns the finished result."""
    image, threshold, seams = job.scene.image, run.card.threshold, SeamCounter(job.placement, run.window, run.overlap)
    key = run.key(job.placement)
    if (changed := run.changed(job.placement)) is not None:
        rows.remove()
        raise changed
    counts = count_pixels(rows, threshold, seams, job.placement.ground)
    tags = output_tags(key, run.model_hash, threshold, counts)
    overwrite = run.options.overwrite
    foreign = check_rasters(job.files, overwrite=overwrite)
    refuse_edited([path for path in job.files.values() if state_of(path) == "edited"], overwrite=overwrite)
    hashes, warnings = finish(rows, job.files, job.placement, tags, threshold=threshold, replace_sides=foreign)
    rows.remove()
    if not counts[0]:
        warnings = (*warnings, f"{one_line(image)}: has no valid pixel; its mask is all nodata")
    known = {"key": key, "scene": run.digest(image)}
    return replace(
        result.finished("done", job.files, counts, known | hashes),
        seconds=time.monotonic() - began,
        seam_index=seams.index,
        warnings=(*job.warnings, *warnings),
    )
