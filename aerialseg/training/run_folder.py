"""The run folder: what may be started in it, what a start has to respect, and what it was made with.

RUN/model.safetensors   the best model so far      RUN/last.ckpt, previous.ckpt   to resume from
RUN/config.toml         what is being trained      RUN/metrics.csv, curves.png, events.out.tfevents.*
RUN/run.json            what it is made with: commands, tiles, device, versions, git revision

Places and times stand in run.json and not in the model file, so that equal trainings give equal files.
"""

from __future__ import annotations

import math
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aerialseg.config import TrainConfig, differences, to_toml
from aerialseg.errors import BadDataError, ConfigError, OutputError, UsageError, one_line
from aerialseg.files import (
    locked,
    prepare_output_folder,
    refuse_input_as_output,
    remove,
    sweep,
    write_json,
    write_text,
)
from aerialseg.geo.ownership import RUN_COMMENT, check_overwrite, mark_of
from aerialseg.models.device import cpu_name
from aerialseg.models.package import FILE_NAME, find_model
from aerialseg.training.history import CONFIG, CURVES, EVENTS, LAST, METRICS, PREVIOUS, RUN
from aerialseg.training.start import git_revision, versions
from aerialseg.training.state import load_checkpoint
from aerialseg.values import from_values, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aerialseg.geo.tiles.tileset import TileSet
    from aerialseg.training.job import TrainJob
    from aerialseg.training.state import Checkpoint

FREE = ("data.cache:", "data.threads:", "data.timeout_s:", "run.loggers:")
"""Settings that no weight depends on: they may change when a run is resumed."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What the command line decides beside the configuration.

    Example:
        >>> aerialseg.TrainOptions(device="cpu", start_from=Path("runs/town")).resume
        False
    """

    device: str = "auto"
    """Or cpu, cuda, cuda:N, mps."""
    resume: bool = False
    """Go on from the run's last checkpoint; without one, start."""
    start_from: Path | None = None
    """A model file, or a run folder, whose weights training starts from."""
    teacher: Path | None = None
    """A model file, or a run folder, whose probabilities are learned as well."""
    overwrite: bool = False
    """Start anew in a folder that holds a run; its model stays until the first new one is saved."""
    command: tuple[str, ...] = ()
    """As it was typed, for run.json."""
    config: Path | None = None
    """The file that the configuration was read from, which stays as it is unless the run wrote it itself."""
    minutes: float | None = None
    """Wall time that the schedule is fitted to, when the run begins; a resumed run keeps its own."""


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Hold the folder for this training alone, free of what killed ones left; OutputError when that cannot be."""
    prepare_output_folder(run)
    with locked(run):
        sweep(run)
        yield


def open_run(
    run: Path, tiles: TileSet, config: TrainConfig, options: TrainOptions, *, say: Callable[[str], None]
) -> Checkpoint | None:
    """Return the state to go on from, or None when a new training may begin in `run`; changes nothing.

    Raises OutputError when the folder holds a run and neither resume nor overwrite was asked for, or files of others;
    UsageError when an output would be an input, or for no minutes; ConfigError and BadDataError when a resumed run was
    begun with another configuration or other tiles; ModelError when its checkpoints are damaged.
    """
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise UsageError(f"--minutes is {options.minutes:g}, expected minutes above 0")
    refuse_input_as_output([tiles.folder], [run])
    checkpoint = load_checkpoint(run, say) if options.resume and not options.overwrite else None
    if checkpoint is not None:
        begun = TrainConfig.model_validate(checkpoint["config"])
        if options.start_from is not None:  # the model file named the network, not the configuration
            config = config.model_copy(update={"model": begun.model})
        if options.minutes is not None:
            say(f"{one_line(run)}: keeps the schedule that it was begun with; --minutes is for a run that begins")
            fitted = {"epochs": begun.schedule.epochs, "steps_per_epoch": begun.schedule.steps_per_epoch}
            config = config.model_copy(update={"schedule": config.schedule.model_copy(update=fitted)})
        changed = [line for line in differences(begun, config) if not line.startswith(FREE)]
        if changed and checkpoint["standing"]["finished"]:
            raise ConfigError(
                f"{one_line(run)}: is finished, so it cannot go on with another configuration"
                f" ({one_line('; '.join(changed))}); train on from its model in a new folder: --from {one_line(run)}"
                " -o NEW, without --resume"
            )
        if changed:
            raise ConfigError(
                f"{one_line(run)}: cannot resume with another configuration ({one_line('; '.join(changed))}); leave -c"
                " and --set away, or start anew with --overwrite"
            )
        if checkpoint["tiles"] != tiles.digest:
            raise BadDataError(
                f"{one_line(tiles.folder)}: the tiles or their split have changed since {one_line(run)} was begun;"
                " start anew with --overwrite, or fine-tune in a new folder with --from"
            )
        return {**checkpoint, "config": config.model_dump()}
    if options.resume and not options.overwrite:
        say(f"{one_line(run)}: nothing to resume yet, starting from the beginning")
    models = [find_model(path) for path in (options.start_from, options.teacher) if path is not None]
    refuse_input_as_output([*models, Path(config.model.weights)], [run / FILE_NAME])  # "imagenet" is no such path
    if options.config is not None and mark_of(run / CONFIG, "run") is None:
        refuse_input_as_output([options.config], [run / CONFIG])
    _claim(run, options)
    return None


def begin_run(run: Path, config: TrainConfig) -> None:
    """Clear away what an earlier run left, except its model, and write down what is trained now."""
    for pattern in (LAST, PREVIOUS, METRICS, CURVES, EVENTS, RUN):
        for stale in run.glob(pattern):
            remove(stale)
    write_text(run / CONFIG, RUN_COMMENT + to_toml(config))


def write_start(job: TrainJob, step: int, options: TrainOptions) -> str:
    """Add a start, after `step` steps of the run, to run.json, which is begun anew at step 0; return the run's id."""
    path, device = job.run / RUN, job.fabric.device
    known = read_run(job.run) if step else {}
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": list(options.command),
        "minutes": options.minutes,
        "epochs": job.config.schedule.epochs,
        "steps_per_epoch": job.steps_per_epoch,
        "folder": str(Path.cwd()),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "processes": job.ranks.world,
        "precision": job.precision,
        "seed": job.config.run.seed,
        "git": git_revision(),
        "versions": versions(),
    }
    tiles = {"folder": str(job.tiles.folder.absolute()), "digest": job.tiles.digest}
    whole = {"id": known.get("id") or secrets.token_hex(8), "tiles": tiles, "starts": [*known.get("starts", []), start]}
    write_json(path, whole)
    return str(whole["id"])


def read_run(run: Path) -> dict[str, Any]:
    """Return what run.json says; nothing when it is missing or damaged, for no training depends on it."""
    try:
        known = from_values(dict[str, Any], read_json(run / RUN))
        starts = from_values(list[dict[str, Any]], known["starts"])
        from_values(list[list[str]], [start.get("command", []) for start in starts])
        from_values(dict[str, Any], known.get("tiles", {}))
    except (OSError, ValueError, KeyError):
        return {}
    return known


def _claim(run: Path, options: TrainOptions) -> None:
    """Raise OutputError when the folder holds a run worth keeping, or files that another program wrote."""
    kept = any(os.path.lexists(run / name) for name in (LAST, PREVIOUS, FILE_NAME))
    if kept and mark_of(run / CONFIG, "run") is not None and not options.resume and not options.overwrite:
        raise OutputError(
            f"{one_line(run)}: holds a run already; go on with --resume, give another folder with -o, or start anew"
            " with --overwrite"
        )
    names = (LAST, PREVIOUS, FILE_NAME, CONFIG, METRICS, CURVES, RUN)
    for path in (*(run / name for name in names), *run.glob(EVENTS)):
        check_overwrite(path, "run", overwrite=options.overwrite, marked=run / CONFIG)
