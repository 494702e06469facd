"""Many scenes on several devices: a shard for each, in a process of its own, and the closing run over all of them.

The processes share nothing but the output folder; each sends its progress through a pipe and is stopped by SIGTERM,
which on Windows ends it at once: what it has finished is kept there, too.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from aerialseg import errors
from aerialseg.errors import AerialsegError, ResourceError, Stopped, UsageError
from aerialseg.files import remove, write_json
from aerialseg.models.package import find_model
from aerialseg.prediction.checks import REPORT, report_name
from aerialseg.prediction.exports import check_products
from aerialseg.prediction.options import Shard
from aerialseg.prediction.run import predict_scenes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    if sys.platform == "win32":
        from multiprocessing.connection import PipeConnection as Connection
    else:
        from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from pathlib import Path
    from types import FrameType

    from aerialseg.geo.scenes import Scene
    from aerialseg.prediction.options import PredictOptions
    from aerialseg.prediction.report import PredictReport, SceneResult
    from aerialseg.progress import Progress

POLL_S, PATIENCE_S = 0.2, 8.0
"""How often a stop is looked for, and how long the processes have to follow it."""


def predict_on_all_gpus(
    scenes: Sequence[Scene], model: Path, out: Path, options: PredictOptions, progress: Progress
) -> PredictReport:
    """Predict on every GPU there is; raises what `predict_on` does, and DeviceError when there is none."""
    from aerialseg.models.device import every_gpu

    devices = every_gpu()
    if len(devices) > 1:
        return predict_on(devices, scenes, model, out, options, progress)
    return predict_scenes(scenes, model, out, replace(options, device=devices[0]), progress)


def predict_on(
    devices: Sequence[str],
    scenes: Sequence[Scene],
    model: Path,
    out: Path,
    options: PredictOptions,
    progress: Progress,
) -> PredictReport:
    """Predict a shard on each device, side by side; outputs and report are those of `predict_scenes`.

    Raises UsageError for options that name a shard, what the first process to fail raised, ResourceError when one is
    lost, and Stopped; the same call then goes on from there.
    """
    if options.shard is not None:
        raise UsageError("--device cuda:all --shard: every GPU has its shard already; give one or the other")
    model = find_model(model)
    check_products(options, out, [model, *(scene.image for scene in scenes)])
    began, context = time.monotonic(), multiprocessing.get_context("spawn")
    workers = []
    for number, device in enumerate(devices, 1):
        own = replace(options, device=device, shard=Shard(number, len(devices)))
        ours, theirs = context.Pipe(duplex=False)
        arguments = (theirs, scenes, model, out, own)
        process = context.Process(target=_work, args=arguments, name=f"aerialseg {device}", daemon=True)
        process.start()
        theirs.close()
        workers.append(_Worker(device, process, ours))
    try:
        _follow(workers, progress, fail_fast=options.fail_fast)
    finally:
        _end(workers)
    known = _joined(result for worker in workers for result in worker.results)
    report = predict_scenes(scenes, model, out, replace(options, device=devices[0]), progress, known)
    loading = min(worker.loading_seconds for worker in workers)
    report = replace(report, seconds=time.monotonic() - began, loading_seconds=loading)
    write_json(out / REPORT, report.to_json())
    for number in range(1, len(devices) + 1):
        remove(out / report_name(Shard(number, len(devices))))
    return report


def _joined(results: Iterable[SceneResult]) -> dict[str, SceneResult]:
    """Return what became of each scene, by its name, of which several processes may have had a band.

    Scenes that none has finished are left out: the closing run finishes them.
    """
    known: dict[str, SceneResult] = {}
    order = ("in part", "not started", "skipped", "done", "failed")
    for result in results:
        other = known.get(result.name, result)
        last = max(result, other, key=lambda one: order.index(one.status))
        if other is not result:
            last = replace(
                last,
                windows=(other.windows or 0) + (result.windows or 0),
                windows_run=(other.windows_run or 0) + (result.windows_run or 0),
                resumed_rows=other.resumed_rows + result.resumed_rows,
            )
        known[result.name] = last
    return {name: result for name, result in known.items() if result.status not in order[:2]}


@dataclass(slots=True)
class _Worker:
    """A process, and what is known of its progress."""

    device: str
    process: SpawnProcess
    pipe: Connection
    total: float | None = None
    results: tuple[SceneResult, ...] = field(default_factory=tuple)
    loading_seconds: float = 0.0
    ended: bool = False


def _follow(workers: Sequence[_Worker], progress: Progress, *, fail_fast: bool) -> None:
    """Show what the processes tell until all have ended, or with `fail_fast` until one tells of a scene that failed.

    Raises what ends a process, and Stopped.
    """
    shown, ahead = False, 0.0
    while not all(worker.ended for worker in workers):
        ready = wait([worker.pipe for worker in workers if not worker.ended], POLL_S)
        for worker in (worker for worker in workers if worker.pipe in ready):
            ahead += _hear(worker, progress)
        if fail_fast and any(result.status == "failed" for worker in workers for result in worker.results):
            break
        if not shown and all(worker.ended or worker.total is not None for worker in workers):
            progress.start("predict", sum(worker.total or 0.0 for worker in workers), "Mpx")
            shown = True
        progress.advance(ahead if shown else 0)
        ahead = 0.0 if shown else ahead
    progress.finish()


def _hear(worker: _Worker, progress: Progress) -> float:
    """Take one message; returns the million pixels it tells of."""
    try:
        kind, value = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        raise ResourceError(
            f"{worker.device}: its process was lost (exit code {worker.process.exitcode}); run the same command again"
            " to go on from here, with a smaller --batch if memory ran out"
        ) from None
    match kind:
        case "start":
            worker.total = value
        case "say":
            progress.say(value)
        case "advance":
            return float(value)
        case "report":
            (worker.results, worker.loading_seconds), worker.ended = value, True
        case "error":
            name, message = value
            raise getattr(errors, name)(message)
    return 0.0


def _end(workers: Sequence[_Worker]) -> None:
    """Stop the processes that still run, cleanly where they follow in time."""
    for worker in workers:
        if worker.process.is_alive() and not worker.ended:
            worker.process.terminate()
    for worker in workers:
        worker.process.join(PATIENCE_S)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _work(pipe: Connection, scenes: Sequence[Scene], model: Path, out: Path, options: PredictOptions) -> None:
    """What a process does; a signal for the whole group, such as Ctrl-C, is its parent's to pass on."""
    told = _Told(pipe)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, told.on_signal)
    with suppress(BrokenPipeError):  # the parent is gone, and so is who would read this
        try:
            report = predict_scenes(scenes, model, out, options, told)
            pipe.send(("report", (report.scenes, report.loading_seconds)))
        except Stopped:
            pipe.send(("say", f"{options.device}: stopped"))
        except AerialsegError as error:
            pipe.send(("error", (type(error).__name__, str(error))))


class _Told:
    """A Progress that tells another process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._signum: int | None = None

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Remember that a stop was asked for."""
        self._signum = signum

    def start(self, label: str, total: float, unit: str) -> None:
        """Tell how much there is to do."""
        self._send("start", total)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Tell of work done; raises Stopped after a signal, and when nobody listens any more."""
        if amount:
            self._send("advance", amount)
        if self._signum is not None:
            raise Stopped(self._signum)

    def say(self, line: str) -> None:
        """Pass a line on."""
        self._send("say", line)

    def finish(self) -> None:
        """Tell nothing: the report does."""

    def _send(self, kind: str, value: Any) -> None:
        try:
            self._pipe.send((kind, value))
        except BrokenPipeError:
            self._signum = signal.SIGTERM
