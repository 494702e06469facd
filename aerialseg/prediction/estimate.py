"""What a run of predict would take, before it is started: windows, memory, disk, and time from a short probe.

How much memory a scene takes beside the network: a closed form over sizes, for `plan` and for those who rent it.

Every term is an array of the engine; what a network needs for its layers is not among them. Nothing is allocated here.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg.errors import NoInputError, one_line
from aerialseg.files import is_folder, sha256_of
from aerialseg.geo.resampling import ROWS_AT_ONCE
from aerialseg.models.package import find_model, read_card
from aerialseg.prediction.checks import Run, check_scenes, disk_bytes
from aerialseg.prediction.lattice import CHUNK_ROWS, Lattice
from aerialseg.prediction.network import batch_size
from aerialseg.prediction.options import ALL_GPUS, PredictOptions, check_window
from aerialseg.prediction.reading import BANDS, READ_DEPTH, WRITE_DEPTH, is_read_twice
from aerialseg.prediction.run import load_forward
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.scenes import Scene
    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.network import EngineSettings, Forward
    from aerialseg.progress import Progress

PROBES = 3
"""Batches that are timed, after one that is not: the first one is slower."""
FLOAT = 4
OVERHEAD = 44 << 20
"""Threads, the allocator's reserves, code that is loaded on first use: measured."""


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
    failures: tuple[str, ...]
    """What is wrong with the scenes that could not be predicted, a line each."""

    def rows(self) -> list[list[str]]:
        """Return what a person wants to know, as label and value."""
        seen = [f"{self.grouped:,} see into neighbours"] * bool(self.grouped)
        seen += [f"{self.resampled:,} are run at another GSD"] * bool(self.resampled)
        hours, rest = divmod(round(self.seconds), 3600)
        return [
            ["scenes", ", ".join([f"{self.scenes:,}, {self.mpx:,.1f} Mpx", *seen])],
            ["windows", f"{self.windows:,}, in batches of {self.batch}"],
            ["network", f"{self.device}, {self.precision}, {self.seconds_per_window * 1000:,.1f} ms a window"],
            ["time", f"{hours}:{rest // 60:02}:{rest % 60:02}, when nothing was done before"],
            ["memory", f"{self.memory_bytes / 1e6:,.0f} MB beside the network"],
            ["disk", f"{self.disk_bytes / 1e6:,.0f} MB at most, {self.free_bytes / 1e6:,.0f} MB free"],
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON-able values."""
        return dataclasses.asdict(self) | {"failures": list(self.failures)}


def estimate(
    scenes: Sequence[Scene],
    model: Path,
    out: Path,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Check the scenes, load the model and time it on a few batches of random pixels; nothing is written.

    Scenes that cannot be predicted are told of in `failures`. Raises NoInputError when none can, UsageError for options
    the model does not take, ModelError, DeviceError and Stopped.
    """
    options, progress, model = options or PredictOptions(), progress or Silent(), find_model(model)
    if options.device == ALL_GPUS:
        options = _on_one_gpu(options)
    run = Run(model, sha256_of(model), read_card(model), out, options, progress)
    check_window(run.card, run.window)
    found, failures = check_scenes(run, scenes)
    if not found:
        raise NoInputError(f"no scene can be predicted; first: {next(iter(failures.values()))}")
    mine = {scene.image for scene in (scenes if options.shard is None else options.shard.of(scenes))}
    canvases = [canvas for path, canvas in found.items() if path in mine]
    forward = load_forward(run)
    return _sum_up(run, canvases, forward, [str(error) for error in failures.values()])


def _on_one_gpu(options: PredictOptions) -> PredictOptions:
    """Return the options for the first GPU; the time is then that of one, for all scenes."""
    from aerialseg.models.device import every_gpu

    return dataclasses.replace(options, device=every_gpu()[0])


def _sum_up(run: Run, canvases: Sequence[ScenePlacement], forward: Forward, failures: Sequence[str]) -> Estimate:
    from aerialseg.prediction.engine import count_windows

    settings = forward.settings
    windows = sum(count_windows(canvas, settings) for canvas in canvases)
    each = time_windows(forward, run.card.bands, run.progress)
    pixels = [canvas.source.box.height * canvas.source.box.width for canvas in canvases]
    return Estimate(
        scenes=len(canvases),
        mpx=sum(pixels) / 1e6,
        windows=windows,
        resampled=sum(canvas.gsd_m is not None for canvas in canvases),
        grouped=sum(bool(canvas.halo) for canvas in canvases),
        device=str(settings.device),
        precision=settings.precision,
        batch=forward.together,
        seconds_per_window=each,
        seconds=windows * each,
        memory_bytes=max((peak_bytes(canvas, settings, run.card.bands) for canvas in canvases), default=0),
        disk_bytes=disk_bytes(run.options, pixels, settings.device.type),
        free_bytes=shutil.disk_usage(_existing(run.out)).free,
        failures=tuple(one_line(text) for text in failures),
    )


def time_windows(forward: Forward, bands: int, progress: Progress) -> float:
    """Return the seconds that one window takes when whole batches of random pixels are run."""
    from aerialseg.prediction.reading import WindowBatch

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


def _existing(folder: Path) -> Path:
    """Return the folder, or the first above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if is_folder(place))


def peak_bytes(canvas: ScenePlacement, settings: EngineSettings, bands: int) -> int:
    """Return about how much host memory predicting the scene takes at most, beyond the network itself."""
    lattice = Lattice.of(canvas, settings.size, settings.overlap)
    planes = 2 if settings.agreement else 1
    batch, area = batch_size(settings, lattice), settings.size * settings.size
    under, width = lattice.size * lattice.padded, canvas.source.box.width
    total = OVERHEAD + min(_cache_bytes(), _scene_bytes(canvas))
    total += BANDS * under * (bands + 1) + _reading(canvas, lattice, bands)
    total += READ_DEPTH * batch * area * (bands + 1)
    rows = lattice.size if canvas.factor == 1 else CHUNK_ROWS
    strips = planes * rows * width
    total += strips * (WRITE_DEPTH + 2) + 4 * rows * width  # quantised; valid, and what the sink makes of a strip
    if settings.device.type != "cuda":
        total += batch * area * FLOAT * (3 * bands + 3)  # standardised pixels, logits, probabilities
        if settings.tta != "none":
            total += batch * area * (2 * (bands + 1) + FLOAT * (bands + 2))  # the view, what it says, turned back
        total += planes * (under + area) * FLOAT
        if canvas.factor != 1:
            total += planes * FLOAT * (under + 4 * rows * width)
        elif planes > 1:
            total += under * FLOAT
    return total


def _reading(canvas: ScenePlacement, lattice: Lattice, bands: int) -> int:
    """Return what reading the rows under a row of windows takes, in pixels of the scene's own grid."""
    rows = min(canvas.height, round(lattice.size * canvas.factor))
    cols = min(canvas.width, round(lattice.padded * canvas.factor))
    item = np.dtype(canvas.source.dtype).itemsize
    each = bands * item + 2
    if canvas.source.scale is not None:
        each += bands * (1 + FLOAT * (1 if item <= 2 else 2))
    total = CHUNK_ROWS * canvas.source.box.width * each if is_read_twice(canvas) else 0  # beside what follows
    if canvas.neighbours:
        each += bands + 1
    total += rows * cols * each
    if canvas.factor != 1:
        total += 5 * FLOAT * bands * ROWS_AT_ONCE * (cols + lattice.padded)
        total += lattice.size * lattice.padded * (bands + 1)
    return total


def _scene_bytes(canvas: ScenePlacement) -> int:
    boxes = [canvas.source.box, *(neighbour.source.box for neighbour in canvas.neighbours)]
    pixels = sum(box.height * box.width for box in boxes)
    return pixels * len(canvas.source.bands) * np.dtype(canvas.source.dtype).itemsize


def _cache_bytes() -> int:
    """Return GDAL's block cache in bytes; its variable holds megabytes when it is a small number."""
    given = os.environ.get("GDAL_CACHEMAX", "")
    size = int(given) if given.isdigit() else 64
    return size << 20 if size < 100000 else size
