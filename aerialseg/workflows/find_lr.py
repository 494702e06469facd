"""A learning-rate range test: a few steps at rates from hopeless to absurd, and what the loss makes of them.

Smith, arXiv:1506.01186. The network is thrown away; nothing is written but the picture that is asked for.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from aerialseg.errors import BadDataError, Diverged, ResourceError, UsageError, one_line
from aerialseg.files import exists, prepare_output_folder, resolved, staged
from aerialseg.geo.ownership import check_overwrite
from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.device import is_out_of_memory, pick_device
from aerialseg.progress import Silent
from aerialseg.training.batches import open_readers
from aerialseg.training.job import build_job, reading_threads
from aerialseg.training.loop import train_step
from aerialseg.training.start import start_fresh
from aerialseg.training.state import TrainState

if TYPE_CHECKING:
    from pathlib import Path

    from aerialseg.config import TrainConfig
    from aerialseg.progress import Progress
    from aerialseg.training.job import TrainJob

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
MEMORY = 0.9
"""How much of the smoothed loss survives a step; it looks back over about ten."""
DIVERGED = 2.0
"""A smoothed loss so many times the lowest one ends the test."""
FIRST = STEPS // 10
"""So many steps at the lowest rates tell the loss before anything is learnt."""


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The losses by learning rate, as far as the test got."""

    suggestion: float
    """For optimizer.lr, to two digits."""
    diverged: bool
    """Whether the loss blew up before the highest rate."""
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def find_learning_rate(
    tileset_folder: Path, config: TrainConfig, device: str = "auto", progress: Progress = Silent()
) -> RangeTest:
    """Train `config`'s network on a set's tiles for STEPS steps, each at a higher rate than the one before.

    Batch, loss, augmentation, precision and optimizer are the configuration's, its schedule is not. The same seed gives
    the same losses on a processor. Raises what a training raises before its first step, BadDataError when the loss is
    not even finite at the lowest rates, ResourceError when memory does not suffice.
    """
    tiles = load_tileset(tileset_folder)
    short = {"epochs": 1, "steps_per_epoch": STEPS, "freeze_steps": 0}
    updates = {"schedule": config.schedule.model_copy(update=short), "run": config.run.model_copy(update={"ema": 0.0})}
    chosen = pick_device(device)
    with open_readers(reading_threads(config.data.threads)) as readers:
        start = start_fresh(tiles, config.model_copy(update=updates))
        job = build_job(tiles.folder, start, device=chosen, readers=readers, progress=progress)
        try:
            losses = _losses(job, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            crops = f"{config.data.batch} crops of {config.data.crop} px"
            raise ResourceError(f"{chosen} has too little memory for {crops}; --set a smaller data.batch") from error
    if len(losses) <= FIRST:
        raise BadDataError(f"{one_line(tiles.folder)}: the loss is not finite at any learning rate; look at the tiles")
    return _judge(losses)


def draw_range_test(path: Path, found: RangeTest, *, tiles: Path, overwrite: bool = False) -> None:
    """Draw loss by learning rate as a PNG, with the suggestion marked; raises as `claim_picture` does."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    claim_picture(path, tiles=tiles, overwrite=overwrite)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever MPLBACKEND says
    axes = figure.subplots()
    axes.semilogx(found.rates, found.losses, color="tab:blue", alpha=0.3, label="each step")
    axes.semilogx(found.rates, found.smoothed, color="tab:blue", label="smoothed")
    axes.axvline(found.suggestion, color="tab:red", label=f"suggested: {found.suggestion:g}")
    axes.set(xlabel="learning rate", ylabel="training loss", xlim=(LOWEST, HIGHEST))
    axes.set_ylim(0, 1.3 * max(*found.smoothed[:FIRST], found.smoothed[-1]))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    with staged(path, apart=True) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def claim_picture(path: Path, *, tiles: Path, overwrite: bool, config: Path | None = None) -> None:
    """Raise UsageError where the tiles or the configuration lie, OutputError when a file is in the picture's place."""
    if resolved(tiles) in (resolved(path), *resolved(path).parents):
        raise UsageError(f"{one_line(path)}: lies in the folder of the tiles; give another place for the picture")
    if config is not None and exists(path) and exists(config) and path.samefile(config):
        raise UsageError(f"{one_line(path)}: is the configuration; give another place for the picture")
    prepare_output_folder(path.parent)
    check_overwrite(path, overwrite=overwrite)


def _rate(step: int) -> float:
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)))


def _losses(job: TrainJob, progress: Progress) -> list[float]:
    """Return each step's loss until one is not finite or the smoothed one has left the lowest far below."""
    losses: list[float] = []
    state = TrainState()
    progress.start("learning rates", STEPS, "step")
    with closing(job.training_batches(0, 0)) as batches:
        job.model.train()
        for step in range(STEPS):
            try:
                taken = train_step(job, state, batches, lr=_rate(step))
            except Diverged:
                break
            if not math.isfinite(taken.loss):  # float16: the scaler left the step out
                break
            losses.append(taken.loss)
            smoothed = _smooth(losses)
            if smoothed[-1] > DIVERGED * min(smoothed):
                break
            progress.advance(1, f"lr {_rate(step):.1e}, loss {smoothed[-1]:.3f}")
    progress.finish()
    return losses


def _smooth(losses: list[float]) -> list[float]:
    """Return the running average, without the pull towards 0 of its beginning."""
    average, smoothed = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = MEMORY * average + (1.0 - MEMORY) * loss
        smoothed.append(average / (1.0 - MEMORY**count))
    return smoothed


def _judge(losses: list[float]) -> RangeTest:
    """Suggest the rate at which the loss has come down half-way: how far it reaches, and where, is mostly noise."""
    smoothed = _smooth(losses)
    lowest = min(smoothed[FIRST - 1 :])
    half_way = max(lowest, (sum(losses[:FIRST]) / FIRST + lowest) / 2)
    there = next(step for step in range(FIRST - 1, len(losses)) if smoothed[step] <= half_way)
    return RangeTest(
        suggestion=float(f"{_rate(there):.1e}"),
        diverged=len(losses) < STEPS or smoothed[-1] > DIVERGED * min(smoothed),
        rates=tuple(map(_rate, range(len(losses)))),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
    )
