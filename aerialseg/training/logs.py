"""Where a run's numbers go beside metrics.csv: TensorBoard always, MLflow and Weights & Biases when asked for.

All of them write below the run folder and call nobody; their own programs show or send it later. A logger that fails is
left out from then on, with one line: a training is worth more than its log, and metrics.csv has every number. A few
validation tiles are shown as people judge them: scene, truth and probability side by side.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aerialseg.drawing import as_rgb, beside
from aerialseg.errors import ConfigError, first_line, one_line
from aerialseg.training.history import scalars
from aerialseg.training.losses import IGNORE
from aerialseg.training.run_folder import read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from aerialseg.geo.tiles.tileset import TileRecord
    from aerialseg.training.history import EpochRecord
    from aerialseg.training.job import TrainJob

    Log = Callable[[EpochRecord, bool], None]

PICTURE_EVERY_S = 30.0
"""Pictures are drawn at the end of an epoch, but no more often than this; the last epoch always has some."""
PROJECT = "aerialseg"
DATABASE = "mlflow.db"
TAG = "aerialseg_run"
NEEDED = {"mlflow": ("mlflow.tracking", "sqlalchemy", "alembic"), "wandb": ("wandb.sdk",)}
SILENCE = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "WANDB_ERROR_REPORTING": "false"}
"""What keeps both from telling their makers that they are used."""
SAMPLES = 4
SIDE = 256
"""Pixels of a tile that are shown; a picture then takes about a quarter of a megabyte."""
GAP = 4
UNKNOWN = 128


@dataclass(frozen=True, slots=True)
class Logger:
    """One place that numbers go to."""

    name: str
    write: Log
    """Takes an epoch, and whether it was the last."""
    close: Callable[[bool], object]
    """Takes whether the run is finished."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise ConfigError when the package of a logger that the configuration names is not installed."""
    for name in names:
        try:
            for module in NEEDED[name]:
                importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"run.loggers: {name} is not installed here ({first_line(error)}): pip install 'aerialseg[{name}]', or"
                " take it out of run.loggers"
            ) from error


@contextmanager
def open_loggers(job: TrainJob, step: int, say: Callable[[str], None]) -> Iterator[Log]:
    """Yield a function that takes an epoch's record and whether it was the last; `step` steps were taken before.

    A resumed run goes on under the id of run.json. Raises ConfigError when a logger cannot be opened at all.
    """
    live = [_open_tensorboard(job, step)]
    finished = False

    def log(record: EpochRecord, last: bool) -> None:
        nonlocal finished
        finished = last
        for logger in tuple(live):
            if not _works(logger, partial(logger.write, record, last), say):
                live.remove(logger)

    try:
        run_id = read_run(job.run).get("id") or secrets.token_hex(8)
        for name in job.config.run.loggers:
            os.environ.update({key: value for key, value in SILENCE.items() if key not in os.environ})
            try:
                live.append(_open_mlflow(job, run_id) if name == "mlflow" else _open_wandb(job, run_id))
            except Exception as error:  # other people's programs may raise anything
                raise ConfigError(
                    f"{one_line(job.run)}: {name} cannot be started: {first_line(error)}; take it out of run.loggers"
                ) from error
        yield log
    finally:
        for logger in live:
            _works(logger, partial(logger.close, finished), say)


def _works(logger: Logger, call: Callable[[], object], say: Callable[[str], None]) -> bool:
    """Return whether a call of a logger went well; say it when it did not."""
    try:
        call()
    except Exception as error:  # other people's programs may raise anything
        say(f"warning: {logger.name} failed and is left out from here on ({first_line(error)}); training goes on")
        return False
    return True


def _open_tensorboard(job: TrainJob, step: int) -> Logger:
    """Scalars of every epoch, and pictures of a few validation tiles; what was written past `step` is void."""
    from torch.utils.tensorboard import SummaryWriter

    events = SummaryWriter(str(job.run), purge_step=step + 1)
    drawn = time.monotonic()

    def write(record: EpochRecord, last: bool) -> None:
        nonlocal drawn
        for name, value in scalars(record).items():
            events.add_scalar(name, value, record.step)
        if last or time.monotonic() - drawn >= PICTURE_EVERY_S:
            for name, picture in draw_samples(job):
                events.add_image(f"scene, truth, probability/{name}", picture, record.step, dataformats="HWC")
            drawn = time.monotonic()
        events.flush()

    return Logger("tensorboard", write, lambda finished: events.close())


def _open_mlflow(job: TrainJob, run_id: str) -> Logger:
    """A SQLite database in the run folder: `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db` shows it."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every table they create
    address, artifacts = f"sqlite:///{(job.run / DATABASE).absolute()}", (job.run / "mlflow").absolute().as_uri()
    client: Any = importlib.import_module("mlflow.tracking").MlflowClient(tracking_uri=address, registry_uri=address)
    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found else client.create_experiment(PROJECT, artifact_location=artifacts)
    begun = client.search_runs([experiment], filter_string=f"tags.{TAG} = '{run_id}'")
    own = begun[0] if begun else client.create_run(experiment, tags={TAG: run_id}, run_name=one_line(job.run.name))
    own = own.info.run_id
    client.set_terminated(own, "RUNNING")
    if not begun:
        for section, values in job.config.model_dump().items():
            for key, value in values.items():
                client.log_param(own, f"{section}.{key}", value)
        client.log_param(own, "tiles", job.tiles.digest)

    def write(record: EpochRecord, last: bool) -> None:
        for name, value in scalars(record).items():
            client.log_metric(own, name, value, step=record.step)

    return Logger("mlflow", write, lambda finished: client.set_terminated(own, "FINISHED" if finished else "KILLED"))


def _open_wandb(job: TrainJob, run_id: str) -> Logger:
    """Files below RUN/wandb, which `wandb sync` sends when somebody wants that."""
    wandb: Any = importlib.import_module("wandb")
    quiet = wandb.Settings(
        mode="offline", silent=True, console="off", disable_git=True, disable_code=True, disable_job_creation=True,
        save_code=False, x_disable_meta=True, x_disable_stats=True,
    )  # fmt: skip
    config = {**job.config.model_dump(), "tiles": job.tiles.digest}
    name = one_line(job.run.name)
    run = wandb.init(project=PROJECT, name=name, id=run_id, dir=str(job.run), config=config, settings=quiet)

    def write(record: EpochRecord, last: bool) -> None:
        run.log(scalars(record), step=record.step)

    return Logger("wandb", write, lambda finished: run.finish(exit_code=0 if finished else 1))


def draw_samples(job: TrainJob) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the name and the picture [rows, cols, 3] of the same few validation tiles each time; none without them.

    The network sees a square of the training crops' size from the middle of a tile. Truth is black, white, and grey
    where there is none.
    """
    network, side = job.eval_model.eval(), min(job.config.data.crop, job.reader.validation_side)
    for tile in choose(job.validation):
        pixels, target, valid = (_middle(array, side) for array in job.reader.whole(tile))
        with torch.inference_mode(), job.fabric.autocast():
            batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(job.fabric.device)
            logits = network(batch, torch.from_numpy(valid)[None].to(job.fabric.device))
        probability = (logits[0, 0].float().sigmoid() * 255).round().byte().cpu().numpy()
        yield tile.name, compose(*(_middle(array, SIDE) for array in (pixels, target, probability)))


def choose(tiles: tuple[TileRecord, ...]) -> tuple[TileRecord, ...]:
    """Return a few tiles from all over the set, with buildings if any tile has some."""
    built = tuple(tile for tile in tiles if tile.building > 0) or tiles
    count = min(SAMPLES, len(built))
    return tuple(built[index * len(built) // count] for index in range(count))


def compose(pixels: NDArray[np.uint8], target: NDArray[np.uint8], probability: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the three beside each other: `pixels` [rows, cols, bands], of which the first three, or one, are shown."""
    truth = np.where(target == IGNORE, np.uint8(UNKNOWN), (target == 1) * np.uint8(255))
    return beside([as_rgb(shown) for shown in (pixels, truth[..., None], probability[..., None])], GAP)


def _middle(array: NDArray[Any], side: int) -> NDArray[Any]:
    """Return a square from the middle, as large as `array` [rows, cols, ...] allows."""
    row, col = ((length - min(side, length)) // 2 for length in array.shape[:2])
    return np.ascontiguousarray(array[row : row + side, col : col + side])
