"""Many scenes through one model: one after the other, each whole or not at all, and what happens when one fails.

A scene's rasters are finished in a thread of their own while the next scenes run.

What has become of each scene of a run so far, and report.json.

The model of a run, on its device; this is where torch is imported, once it is known that there is work.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import deque
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.errors import (
    AerialsegError,
    BadDataError,
    InUseError,
    ModelError,
    NoInputError,
    OutputError,
    Stopped,
    StorageError,
    one_line,
)
from aerialseg.files import (
    locked,
    prepare_output_folder,
    refuse_input_as_output,
    require_space,
    sha256_of,
    sweep,
    write_json,
)
from aerialseg.geo.ownership import check_overwrite
from aerialseg.models.package import find_model, read_card
from aerialseg.prediction.arrays import Model
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
    report_name,
    stamps_of,
)
from aerialseg.prediction.exports import check_products, make_products
from aerialseg.prediction.options import PredictOptions, check_window
from aerialseg.prediction.outputs import SceneFiles, count_pixels, finish, output_tags
from aerialseg.prediction.reading import in_background
from aerialseg.prediction.report import PredictReport, SceneResult
from aerialseg.prediction.resume import ResumeFile, forget_part, part_path
from aerialseg.progress import Silent
from aerialseg.values import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    import torch

    from aerialseg.geo.scenes import Scene
    from aerialseg.models.build import Segmenter
    from aerialseg.models.package import ModelCard
    from aerialseg.prediction.network import Forward
    from aerialseg.prediction.outputs import SeamCounter
    from aerialseg.progress import Progress

POLL_S, PATIENCE_S = 0.2, 5.0
"""How often waiting for a scene's files looks for a stop, and how long a stop waits for them."""


def predict_scenes(
    scenes: Sequence[Scene],
    model: Path | Model,
    out: Path,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
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
        >>> scenes = aerialseg.find_scenes(["scenes"])
        >>> report = aerialseg.predict_scenes(scenes, Path("runs/town"), Path("out"))
        >>> report.raise_failures()
        >>> [str(scene.outputs["mask"]) for scene in report.scenes]
        ['out/austin6.tif', 'out/vienna1.tif']
    """
    options, progress = options or PredictOptions(), progress or Silent()
    model = model if isinstance(model, Model) else find_model(model)
    scenes = [scene for scene in scenes if not is_output_in(scene.image, out)]
    if not scenes:
        raise NoInputError(f"{one_line(out)}: no scene to predict; what was given are masks that predict wrote here")
    inputs = [*_file_of(model), *(scene.image for scene in scenes)]
    files = _prepare_files(scenes, inputs, out, options)
    parts = {part_path(out, scene.name) for scene in scenes}
    shared, listen = options.shard is not None, partial(progress.advance, 0)
    with locked(out, shared=shared, on_exclusive=partial(sweep, out, parts), waiting=listen if shared else None):
        check_overwrite(out / report_name(options.shard), "predict report", overwrite=options.overwrite)
        journal = RunLog(Run(model, *_identified(model), out, options, progress), scenes)
        check_window(journal.run.card, journal.run.window)
        check_products(options, out, inputs)
        for result in (known or {}).values():
            journal.take(result)
        foreign = {name: check_rasters(files[name], overwrite=options.overwrite) for name in journal.results}
        try:
            work = _check(journal, scenes, files, foreign)
            if work:
                _predict(journal, work)
            journal.products = make_products(journal.run, tuple(journal.results.values()))
        except AerialsegError:
            with suppress(AerialsegError):
                journal.write()
            raise
        return journal.write()


def _identified(model: Path | Model) -> tuple[str, ModelCard]:
    """Return the SHA-256 of the model file, there or to be made, and its card."""
    return (model.digest(), model.card) if isinstance(model, Model) else (sha256_of(model), read_card(model))


def _file_of(model: Path | Model) -> tuple[Path, ...]:
    return () if isinstance(model, Model) else (model,)


def _prepare_files(
    scenes: Sequence[Scene], inputs: Sequence[Path], out: Path, options: PredictOptions
) -> dict[str, SceneFiles]:
    """Return where each scene's outputs go, by its name; none of them is an input, and their folders are there."""
    files = {scene.name: SceneFiles.of(scene, out, options.measures) for scene in scenes}
    refuse_input_as_output(inputs, every_output(files, out))
    for folder in sorted({out, *(path.parent for entry in files.values() for path in entry.rasters)}):
        prepare_output_folder(folder)
    return files


def _check(
    journal: RunLog, scenes: Sequence[Scene], files: Mapping[str, SceneFiles], mine: Mapping[str, bool]
) -> list[SceneJob]:
    """Check every scene and return those to predict; what is done, and what failed, goes into the journal.

    `mine` holds the scenes of this shard, and whether their outputs replace foreign ones; the others may be neighbours.
    """
    run, found = journal.run, []
    canvases, failures = check_scenes(run, scenes if run.options.neighbours else [s for s in scenes if s.name in mine])
    check_products(
        run.options, run.out, [*_file_of(run.model), *canvases], [canvas.source.box for canvas in canvases.values()]
    )
    for scene in scenes:
        run.progress.advance(0)
        if run.options.fail_fast and journal.failed_here:
            return []
        if scene.name not in mine or journal.knows_failure(scene.name):
            continue
        if scene.image in failures:
            journal.record(SceneResult(scene.name, scene.image, "failed", failure=failures[scene.image]))
            continue
        work = SceneJob(scene, files[scene.name], canvases[scene.image], foreign=mine[scene.name])
        try:
            work = replace(work, stamps=stamps_of(work.canvas))
            done = None if run.options.overwrite and not journal.known else done_before(run, work)
        except AerialsegError as error:
            journal.record(replace(work.result, status="failed", failure=error))
            continue
        if done is None:
            found.append(work)
        else:
            forget_part(run.out, scene.name)
            journal.record(done)
    return [] if run.options.fail_fast and journal.failed else found


def _predict(journal: RunLog, work: Sequence[SceneJob]) -> None:
    """Run the scenes through the model, one after the other."""
    run = journal.run
    pixels = [item.pixels for item in work]
    require_space(run.out, disk_bytes(run.options, pixels, find_device(run).type))
    forward = load_forward(run)
    journal.settings |= {"device": str(forward.settings.device), "used_precision": forward.settings.precision}
    journal.loaded = time.monotonic()
    run.progress.start("predict", sum(pixels) / 1e6, "Mpx")
    finisher = _Finisher(journal, finishers(forward.settings.device.type))
    try:
        for item in work:
            _stream(journal, item, forward, finisher)
            if run.options.fail_fast and journal.failed:
                break
    finally:
        journal.settings["batch"] = forward.together
        finisher.settle()
        run.progress.finish()


class _Finisher:
    """Finishes the files of up to `together` scenes while the next one runs, and records them in their order."""

    def __init__(self, journal: RunLog, together: int = 1) -> None:
        self._journal, self._together = journal, together
        self._pending: deque[Future[SceneResult]] = deque()

    def begin(self, finish_scene: Callable[[], SceneResult]) -> None:
        """Start finishing a scene, once there is a place."""
        self._settle(self._together - 1)
        self._pending.append(in_background(finish_scene, "finisher"))

    def advance(self, amount: float) -> None:
        """Count million pixels as done, and record the scenes before that are finished by now."""
        self._journal.run.progress.advance(amount)
        while self._pending and self._pending[0].done():
            self._journal.record(self._pending.popleft().result())

    def settle(self) -> None:
        """Wait until nothing is pending; a stop waits a little, too, for the scenes are nearly there."""
        try:
            self._settle(0)
        finally:
            left, self._pending = self._pending, deque()
            wait(left, PATIENCE_S)
            for future in left:
                if future.done():
                    self._journal.record(future.result())

    def _settle(self, places: int) -> None:
        """Wait until no more than so many are pending."""
        while len(self._pending) > places:
            _wait(self._pending[0], self._journal.run.progress)
            self._journal.record(self._pending.popleft().result())


def _stream(journal: RunLog, work: SceneJob, forward: Forward, finisher: _Finisher) -> None:
    """Run one scene and begin to finish its files; a failure of its own goes into the journal."""
    from aerialseg.prediction.engine import predict_scene
    from aerialseg.prediction.outputs import SeamCounter

    run, began = journal.run, time.monotonic()
    part = ResumeFile.claimed(run.out, work.scene.name, (work.box.height, work.box.width), 1 + run.options.agreement)
    key = in_background(partial(_part_key, run, work, forward), "hasher")
    try:
        skip = 0
        if part.keyed:  # also to overwrite: it holds what this very run began, or would compute
            _wait(key, run.progress)
            skip = part.finished(key.result())
        run.progress.advance(skip * work.box.width / 1e6)
        streamed = predict_scene(forward, work.canvas, part.write(skip, key), finisher.advance, skip=skip)
    except AerialsegError as error:
        if isinstance(error, Stopped) or journal.knows(error):
            part.release()
            raise
        part.remove()  # on a full disk, it makes room
        journal.record(replace(work.result, status="failed", failure=error))
        return
    seams = SeamCounter.of(work.canvas, forward.settings)
    partly = replace(work.result, windows=streamed.windows, windows_run=streamed.run, resumed_rows=skip)
    finisher.begin(partial(_finish, run, replace(work, known=partly), part, seams, began))


def _finish(run: Run, work: SceneJob, part: ResumeFile, seams: SeamCounter, began: float) -> SceneResult:
    """Write a scene's rasters; runs beside the next scene, so what goes wrong is part of the result."""
    image, threshold = work.scene.image, run.card.threshold
    try:
        key = run.key(work.canvas)
        if not work.unchanged:
            part.remove()
            raise BadDataError(f"{one_line(image)}: changed while it was predicted; run again")
        counts = count_pixels(part, threshold, seams)
        tags = output_tags(key, run.model_hash, threshold, counts)
        hashes, warnings = finish(part, work.files, work.box, tags, threshold=threshold, replace_sides=work.foreign)
        part.remove()
    except AerialsegError as error:
        part.release()  # what was computed stays
        return replace(work.result, status="failed", failure=error)
    if not counts[0]:
        warnings = (*warnings, f"{one_line(image)}: has no valid pixel; its mask is all nodata")
    return replace(
        work.result,
        status="done",
        outputs=work.files.by_kind,
        seconds=time.monotonic() - began,
        valid_pixels=counts[0],
        building_pixels=counts[1],
        seam_index=seams.index,
        hashes={"key": key, "scene": run.digest(image), **hashes},
        warnings=(*work.warnings, *warnings),
    )


def _part_key(run: Run, work: SceneJob, forward: Forward) -> bytes:
    """Return what a part must be made from to be gone on with: what promises equal bytes, not only equal pixels."""
    import torch

    settings, version = forward.settings, (torch.__version__, torch.get_num_threads())
    exact = (run.key(work.canvas), settings.batch, str(settings.device), settings.precision, settings.compile, version)
    return hashlib.sha256(repr(exact).encode()).digest()


def _wait(future: Future[Any], progress: Progress) -> None:
    """Wait for a background task, looking for a stop meanwhile."""
    while not wait([future], POLL_S).done:
        progress.advance(0)


class RunLog:
    """What has become of each scene so far; a class because it is all state."""

    def __init__(self, run: Run, scenes: Sequence[Scene]) -> None:
        self.run = run
        mine = scenes if run.options.shard is None else run.options.shard.of(scenes)
        self.results = {scene.name: SceneResult(scene.name, scene.image, "not started") for scene in mine}
        self._taken: dict[str, SceneResult] = {}
        self._measured = _measured_before(run.out)
        self.settings: dict[str, Any] = {}
        self.products: dict[str, Any] = {}
        """What was made of all scenes together."""
        self.loaded: float | None = None
        """When the model was ready."""

    def take(self, result: SceneResult) -> None:
        """Note what another process made of a scene; it has been shown already."""
        self._taken[result.name] = self.results[result.name] = result

    @property
    def known(self) -> bool:
        """Whether other processes predicted the scenes before."""
        return bool(self._taken)

    @property
    def failed_here(self) -> bool:
        """Whether a scene has failed in this process."""
        return any(result.status == "failed" and name not in self._taken for name, result in self.results.items())

    def knows_failure(self, name: str) -> bool:
        """Return whether another process failed on the scene."""
        return name in self._taken and self._taken[name].status == "failed"

    def record(self, result: SceneResult) -> SceneResult:
        """Note and show a scene's result; raises its failure when the next scene would be written to the same disk."""
        self.results[result.name] = result
        if result.status == "skipped" and result.name in self._taken:  # done a moment ago, by another process
            self.results[result.name] = self._taken[result.name]
            return result
        if result.status == "skipped":
            kept = self._measured.get((result.name, result.hashes["key"]), {})
            self.results[result.name] = result = replace(result, **kept)
        for warning in result.warnings:
            self.run.progress.say(f"warning: {warning}")
        if isinstance(result.failure, OutputError | StorageError) and not isinstance(result.failure, InUseError):
            raise result.failure
        if result.failure is None or len(self.results) > 1:  # a single scene's failure is raised, and so shown once
            self.run.progress.say(result.line())
        return result

    def knows(self, error: AerialsegError) -> bool:
        """Return whether the error is already noted as a scene's failure."""
        return any(result.failure is error for result in self.results.values())

    @property
    def failed(self) -> bool:
        """Whether a scene has failed."""
        return any(result.status == "failed" for result in self.results.values())

    def write(self) -> PredictReport:
        """Write report.json and return it."""
        run = self.run
        names = ("preset", "threshold", "temperature", "gsd_m")
        card = {name: getattr(run.card, name) for name in names}
        model = {"path": str(run.model) if isinstance(run.model, Path) else None, "sha256": run.model_hash, **card}
        asked = {
            name: getattr(run.options, name)
            for name in ("probability", "agreement", "polygons", "neighbours", "compiled")
        }
        settings = {**run.parameters, **asked, **self.settings}
        del settings["model"]
        seconds = time.monotonic() - run.began
        loading = seconds if self.loaded is None else self.loaded - run.began
        report = PredictReport(run.out, model, settings, tuple(self.results.values()), seconds, loading, self.products)
        write_json(run.out / report_name(run.options.shard), report.to_json())
        return report


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


def load_forward(run: Run) -> Forward:
    """Load the run's model; raises DeviceError, ModelError (also when it is not the one hashed before) and Stopped."""
    device = find_device(run)
    from aerialseg.prediction.network import place_on_device

    run.progress.advance(0)
    segmenter = run.model.segmenter() if isinstance(run.model, Model) else _load_unchanged(run.model, run)
    return place_on_device(segmenter, run.card, run.options, device, run.progress)


def _load_unchanged(file: Path, run: Run) -> Segmenter:
    from aerialseg.models.package import load_model

    segmenter, _ = load_model(file)
    run.progress.advance(0)
    if sha256_of(file) != run.model_hash:  # a training goes on improving it
        raise ModelError(f"{one_line(file)}: changed while the scenes were checked; run again")
    return segmenter
