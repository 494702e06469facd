"""What a run of predict would take, before it is started: windows, memory, disk, and time from a short probe."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.errors import NoInputError, one_line
from aerialseg.files import free_space, size_line
from aerialseg.geo.areas import read_area
from aerialseg.models.package import read_model
from aerialseg.prediction.bands import share_out
from aerialseg.prediction.checks import Run, check_scenes, disk_bytes
from aerialseg.prediction.engine import peak_bytes
from aerialseg.prediction.lattice import Lattice
from aerialseg.prediction.options import ALL_GPUS, PredictOptions, check_window
from aerialseg.prediction.reading import WindowBatch, wanted_windows
from aerialseg.prediction.run import find_device, load_forward
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.scenes import Scene
    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.network import EngineSettings, Forward
    from aerialseg.progress import Progress

PROBES = 3
"""Batches that are timed, after one that is not: the first one is slower."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What predicting would take; everything counts all scenes, as if none was done before."""

    scenes: int
    mpx: float
    windows: int
    resampled: int
    """Scenes that would be run at another GSD than their own."""
    grouped: int
    """Scenes that would see into neighbours."""
    device: str
    precision: str
    batch: int
    seconds_per_window: float
    seconds: float
    """Time in the network; reading and writing happen beside it."""
    memory_bytes: int
    """Host memory of the largest scene, beside the network itself and its libraries."""
    disk_bytes: int
    free_bytes: int
    asked_km2: float | None = None
    """With an area, its ground in the scenes that it meets; theirs that would be run, margin and whole windows counted;
    and what of them would be skipped."""
    run_km2: float | None = None
    skipped_km2: float | None = None
    failures: tuple[str, ...] = ()
    """What is wrong with the scenes that could not be predicted, a line each."""

    def rows(self) -> list[list[str]]:
        """Return what a person wants to know, as label and value."""
        seen = [f"{self.grouped:,} see into neighbours"] * bool(self.grouped)
        seen += [f"{self.resampled:,} are run at another GSD"] * bool(self.resampled)
        hours, rest = divmod(round(self.seconds), 3600)
        area = [] if self.asked_km2 is None else [["area", self._ground()]]
        return [
            ["scenes", ", ".join([f"{self.scenes:,}, {self.mpx:,.1f} Mpx", *seen])],
            *area,
            ["windows", f"{self.windows:,}, in batches of {self.batch}"],
            ["network", f"{self.device}, {self.precision}, {self.seconds_per_window * 1000:,.1f} ms a window"],
            ["time", f"{hours}:{rest // 60:02}:{rest % 60:02}, when nothing was done before"],
            ["memory", f"{self.memory_bytes / 1e6:,.0f} MB beside the network"],
            ["disk", f"{size_line(self.disk_bytes)} at most, {size_line(self.free_bytes)} free"],
        ]

    def _ground(self) -> str:
        asked, run, skipped = (value or 0.0 for value in (self.asked_km2, self.run_km2, self.skipped_km2))
        return f"{asked:,.3g} km2 asked, {run:,.3g} run, {skipped:,.3g} skipped"

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON-able values."""
        return dataclasses.asdict(self) | {"failures": list(self.failures)}


def estimate(
    scenes: Sequence[Scene],
    model: Path,
    out: Path,
    options: PredictOptions = PredictOptions(),
    progress: Progress = Silent(),
) -> Estimate:
    """Check the scenes, load the model and time it on a few batches of random pixels; nothing is written.

    Scenes that cannot be predicted are told of in `failures`. Raises NoInputError when none can, UsageError for options
    the model does not take, ModelError, DeviceError and Stopped.
    """
    read = read_model(model)
    if options.device == ALL_GPUS:  # the time is then that of one, for all scenes
        from aerialseg.models.device import every_gpu

        options = dataclasses.replace(options, device=every_gpu()[0])
    area = None if options.area is None else read_area(options.area)
    run = Run(read.path, read.digest(), read.card, out, options, progress, area=area)
    check_window(run.card, run.window)
    found, failures = check_scenes(run, scenes)
    if not found:
        for failure in failures.values():
            progress.say(f"error: {failure}")
        progress.finish()
        raise NoInputError(f"no scene can be predicted; first: {next(iter(failures.values()))}")
    share = share_out(found, run.window, run.overlap, options.shard)
    placements = [found[path] for path in share.bands]
    forward = load_forward(run, read, find_device(run))
    settings, bands = forward.settings, run.card.bands
    counts = [_windows(found[path], settings, (rows[0][0], rows[-1][1])) for path, rows in share.bands.items()]
    windows = sum(run for run, _ in counts)
    each = time_windows(forward, bands, progress)
    pixels = [placement.source.box.height * placement.source.box.width for placement in placements]
    return Estimate(
        scenes=len(placements),
        mpx=sum(pixels) / 1e6,
        windows=windows,
        resampled=sum(placement.gsd_m is not None for placement in placements),
        grouped=sum(bool(placement.halo) for placement in placements),
        device=str(settings.device),
        precision=settings.precision,
        batch=forward.together,
        seconds_per_window=each,
        seconds=windows * each,
        memory_bytes=max((peak_bytes(placement, settings, bands) for placement in placements), default=0),
        disk_bytes=disk_bytes(options, pixels, settings.device.type),
        free_bytes=free_space(out),
        **({} if area is None else _ground(placements, counts)),
        failures=tuple(one_line(str(error)) for error in failures.values()),
    )


def _windows(placement: ScenePlacement, settings: EngineSettings, rows: tuple[int, int]) -> tuple[int, int]:
    """Return how many windows the scene's rows take, and how many that would be without an area."""
    lattice = Lattice.of(placement, settings.size, settings.overlap, *rows)
    return sum(int(wanted_windows(placement, lattice, row).sum()) for row in lattice.down), lattice.count


def _ground(placements: Sequence[ScenePlacement], counts: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Return how much ground of the scenes is asked for, would be run and would be skipped, by its field."""
    asked = run = whole = 0.0
    for placement, (windows, every) in zip(placements, counts, strict=True):
        box = placement.source.box
        pixel = (box.gsd_m or 0.0) ** 2 / 1e6
        scene = box.height * box.width * pixel
        asked += placement.ground.shown * pixel if placement.ground is not None else scene
        run, whole = run + scene * windows / every, whole + scene
    return {"asked_km2": asked, "run_km2": run, "skipped_km2": whole - run}


def time_windows(forward: Forward, bands: int, progress: Progress) -> float:
    """Return the seconds that one window takes when whole batches of random pixels are run."""
    settings = forward.settings
    batch = WindowBatch.empty(settings.batch, bands, settings.size, pinned=settings.device.type == "cuda")
    shape = tuple(batch.pixels.shape)
    batch.pixels.numpy()[:] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    taken = []
    for _ in range(1 + PROBES):
        progress.advance(0)
        began = time.perf_counter()
        float(forward(batch).sum())  # reading a number waits for the device
        taken.append(time.perf_counter() - began)
    return median(taken[1:]) / settings.batch
