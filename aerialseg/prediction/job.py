"""Many scenes through one model: one after the other, each whole or not at all, and what happens when one fails.

A scene's rasters are finished in a thread of their own while the next scene runs.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, OutputError, Stopped, StorageError, one_line
from aerialseg.files import (
    locked,
    prepare_output_folder,
    refuse_input_as_output,
    require_space,
    sha256_of,
    sweep,
    write_json,
)
from aerialseg.models.package import find_model, read_card
from aerialseg.prediction.outputs import SceneFiles, Temporaries, finish, output_tags, scene_key, write_strips
from aerialseg.prediction.pipeline import in_background
from aerialseg.prediction.plan import (
    REPORT,
    PredictOptions,
    Run,
    Work,
    check_scene,
    done_before,
    every_output,
    is_output_in,
    refuse_foreign_rasters,
    refuse_foreign_report,
    stamp_of,
)
from aerialseg.prediction.report import PredictReport, SceneResult
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.geo.scenes import Scene
    from aerialseg.prediction.engine import Streamed
    from aerialseg.prediction.forward import Forward
    from aerialseg.progress import Progress

__all__ = ["PredictOptions", "predict_scenes"]

MASK_BYTES, PROBABILITY_BYTES = 0.1, 1.2
"""Disk a pixel takes, compressed and with overviews; the pixels of buildings rarely need half of it."""
POLL_S, PATIENCE_S = 0.2, 5.0
"""How often waiting for a scene's files looks for a stop, and how long a stop waits for them."""


def predict_scenes(
    scenes: Sequence[Scene],
    model: Path,
    out: Path,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> PredictReport:
    """Write a mask for every scene below `out`, and report.json; what is done already is left as it is.

    A scene that fails is reported and the next one is tried: see `PredictReport.raise_failures`. Raises UsageError when
    an output would be an input, OutputError when outputs cannot be written or are not ours, ModelError, DeviceError,
    StorageError when the disk is full, and Stopped; the scenes finished by then are complete and the same call goes on
    from there.
    """
    options, progress, model = options or PredictOptions(), progress or Silent(), find_model(model)
    scenes = [scene for scene in scenes if not is_output_in(scene.image, out)]
    if not scenes:
        raise NoInputError(f"{one_line(out)}: no scene to predict; what was given are masks that predict wrote here")
    files = {scene.name: SceneFiles.of(scene, out, probability=options.probability) for scene in scenes}
    refuse_input_as_output([model, *(scene.image for scene in scenes)], every_output(files, out))
    for folder in sorted({out, *(path.parent for entry in files.values() for path in entry.rasters)}):
        prepare_output_folder(folder)
    with locked(out):
        sweep(out)
        refuse_foreign_report(out / REPORT, overwrite=options.overwrite)
        foreign = {name: refuse_foreign_rasters(entry, overwrite=options.overwrite) for name, entry in files.items()}
        journal = _Journal(Run(model, sha256_of(model), read_card(model), out, options, progress), scenes)
        try:
            work = _check(journal, scenes, files, foreign)
            if work:
                _predict(journal, work)
        except AerialsegError:
            sweep(out)  # first, for it makes room on a full disk
            with suppress(AerialsegError):
                journal.write()
            raise
        finally:
            sweep(out)
        return journal.write()


class _Journal:
    """What has become of each scene so far; a class because it is all state."""

    def __init__(self, run: Run, scenes: Sequence[Scene]) -> None:
        self.run = run
        self.results = {scene.name: SceneResult(scene.name, scene.image, "not started") for scene in scenes}
        self.settings: dict[str, Any] = {}
        self.loaded: float | None = None
        """When the model was ready."""

    def record(self, result: SceneResult) -> SceneResult:
        """Note and show a scene's result; raises its failure when the next scene would meet the same disk."""
        self.results[result.name] = result
        for warning in result.warnings:
            self.run.progress.say(f"warning: {warning}")
        if isinstance(result.failure, OutputError | StorageError):
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
        model = {"path": str(run.model), "sha256": run.model_hash, **card}
        options = {"window": run.card.tile_size, "probability": run.options.probability}
        settings = {**run.parameters, **options, **self.settings}
        del settings["model"]
        seconds = time.monotonic() - run.began
        loading = seconds if self.loaded is None else self.loaded - run.began
        report = PredictReport(run.out, model, settings, tuple(self.results.values()), seconds, loading)
        write_json(run.out / REPORT, report.to_json())
        return report


def _check(
    journal: _Journal, scenes: Sequence[Scene], files: Mapping[str, SceneFiles], foreign: Mapping[str, bool]
) -> list[Work]:
    """Check every scene and return those to predict; what is done, and what failed, goes into the journal."""
    run, found = journal.run, []
    for scene in scenes:
        run.progress.advance(0)
        try:
            work = check_scene(run, scene, files[scene.name], foreign=foreign[scene.name])
            done = done_before(run, work)
        except (OutputError, Stopped):
            raise
        except AerialsegError as error:
            journal.record(SceneResult(scene.name, scene.image, "failed", failure=error))
            if run.options.fail_fast:
                return []
            continue
        if done is None:
            found.append(work)
        else:
            journal.record(done)
    return found


def _predict(journal: _Journal, work: Sequence[Work]) -> None:
    """Run the scenes through the model, one after the other."""
    run = journal.run
    pixels = [item.pixels for item in work]
    each = MASK_BYTES + (PROBABILITY_BYTES if run.options.probability else 0)
    require_space(run.out, int(each * (sum(pixels) + max(pixels))))
    forward = _load(journal)
    journal.loaded = time.monotonic()
    run.progress.start("predict", sum(pixels) / 1e6, "Mpx")
    finisher = _Finisher(journal)
    try:
        for item in work:
            _stream(journal, item, forward, finisher)
            if run.options.fail_fast and journal.failed:
                break
    finally:
        journal.settings["batch"] = forward.together
        finisher.settle()
        run.progress.finish()


def _load(journal: _Journal) -> Forward:
    """Load the model onto its device; this is where torch is imported."""
    # Threads that spin while they wait take the cores from reader and writer: up to ten times slower on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from aerialseg.models.device import pick_device, pick_precision
    from aerialseg.models.package import load_model
    from aerialseg.prediction.forward import EngineSettings, Forward, automatic_batch

    run = journal.run
    device = pick_device(run.options.device)
    precision = pick_precision(run.options.precision, device)
    size = run.card.tile_size
    batch = run.options.batch or automatic_batch(device, size)
    journal.settings |= {"device": str(device), "used_precision": precision}
    segmenter, card = load_model(run.model)
    settings = EngineSettings(size, run.overlap, batch, device, precision, card.temperature)
    return Forward(segmenter, settings, run.progress)


class _Finisher:
    """Finishes one scene's files while the next one runs, and records it as soon as it is done."""

    def __init__(self, journal: _Journal) -> None:
        self._journal = journal
        self._future: Future[SceneResult] | None = None

    def begin(self, finish_scene: Callable[[], SceneResult]) -> None:
        """Start finishing a scene, once the one before it is finished."""
        self.settle()
        self._future = in_background(finish_scene, "finisher")

    def advance(self, amount: float) -> None:
        """Count million pixels as done, and record the scene before if it is finished by now."""
        self._journal.run.progress.advance(amount)
        if self._future is not None and self._future.done():
            self.settle()

    def settle(self) -> None:
        """Wait until nothing is pending; a stop waits a little, too, for the scene is nearly there."""
        future, self._future = self._future, None
        if future is None:
            return
        try:
            while not wait([future], POLL_S).done:
                self._journal.run.progress.advance(0)
        finally:
            if wait([future], PATIENCE_S).done:
                self._journal.record(future.result())


def _stream(journal: _Journal, work: Work, forward: Forward, finisher: _Finisher) -> None:
    """Run one scene and begin to finish its files; a failure of its own goes into the journal."""
    from aerialseg.prediction.canvas import Canvas
    from aerialseg.prediction.engine import predict_scene

    run, began = journal.run, time.monotonic()
    tally = np.zeros(2, dtype=np.int64)
    try:
        temporaries = Temporaries.in_folder(run.out, probability=run.options.probability)
        sink = write_strips(temporaries, work.source.box, run.card.threshold, tally)
        streamed = predict_scene(forward, Canvas.alone(work.source), sink, finisher.advance)
    except AerialsegError as error:
        if isinstance(error, Stopped) or journal.knows(error):
            raise
        journal.record(replace(work.result, status="failed", failure=error))
        return
    finisher.begin(partial(_finish, run, work, temporaries, streamed, tally, began))


def _finish(
    run: Run, work: Work, temporaries: Temporaries, streamed: Streamed, tally: NDArray[np.int64], began: float
) -> SceneResult:
    """Give a scene's rasters their names; runs beside the next scene, so what goes wrong is part of the result."""
    image, (valid, building) = work.scene.image, map(int, tally)
    try:
        key, scene_hash = scene_key(work.source, run.parameters)
        if stamp_of(image) != work.stamp:
            raise BadDataError(f"{one_line(image)}: changed while it was predicted; run again")
        tags = output_tags(key, run.model_hash, run.card.threshold, valid, building)
        hashes, warnings = finish(temporaries, work.files, tags, replace_sides=work.foreign)
    except AerialsegError as error:
        return replace(work.result, status="failed", failure=error)
    if not valid:
        warnings = (*warnings, f"{one_line(image)}: has no valid pixel; its mask is all nodata")
    return replace(
        work.result,
        status="done",
        outputs=work.files.by_kind,
        seconds=time.monotonic() - began,
        valid_pixels=valid,
        building_pixels=building,
        windows=streamed.windows,
        windows_run=streamed.run,
        hashes={"key": key, "scene": scene_hash, **hashes},
        warnings=(*work.warnings, *warnings),
    )
