"""What is there of a scene already, and with which settings it is gone on with: rows of one exact key.

Whoever made them: a scene of which all rows are there is finished on any device; only what is to be computed has to
match. torch is imported once there is something to compute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aerialseg.errors import ConfigError, one_line
from aerialseg.prediction.bands import missing
from aerialseg.prediction.stored import ExactSettings, StoredRows

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from aerialseg.prediction.bands import Rows
    from aerialseg.prediction.checks import Run, SceneJob
    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.network import Forward
    from aerialseg.prediction.options import PredictOptions


@dataclass(frozen=True, slots=True)
class Begun:
    """What is there of a scene from one exact key."""

    rows: StoredRows
    settings: ExactSettings | None
    """None when there is nothing, or an earlier version did not note them."""
    done: int
    """How many rows of the process's own band are there."""
    missing: tuple[Rows, ...]
    """The runs of rows of the band that are not."""
    complete: bool
    """Whether the whole scene is there."""
    total: int = 0
    """How many rows of the scene are there, in whosever band."""


def look(run: Run, job: SceneJob, wanted: ExactSettings | None = None) -> Begun:
    """Return what is there with the settings that are wanted, or with those of which there is most.

    Rows of the job's band count when their checksum is right. Raises what hashing the scene raises.
    """
    rows = job.stored(run)
    if wanted is not None:
        return _begun(job, replace(rows, key=wanted.digest(run.key(job.placement))), wanted)
    best, key = Begun(rows, None, 0, (job.extent,), complete=False), None
    for digest, settings in rows.begun().items():
        key = key or run.key(job.placement)
        if settings is not None and settings.digest(key) == digest:
            best = max(
                best,
                _begun(job, replace(rows, key=digest), settings),
                key=lambda one: (one.complete, one.done, one.total),
            )
    return best


def _begun(job: SceneJob, rows: StoredRows, settings: ExactSettings) -> Begun:
    there = rows.there(*job.extent)
    runs, done = missing(job.rows, there)
    return Begun(rows, settings, done, runs, bool(there.all()), int(there.sum()))


def exact_settings(forward: Forward, placement: ScenePlacement, asked: int | None) -> ExactSettings:
    """Return what the network runs the scene with; `asked` is the batch that the user gave."""
    import torch

    from aerialseg.prediction.lattice import Lattice
    from aerialseg.prediction.network import batch_size

    settings = forward.settings
    return ExactSettings(
        batch_size(settings, Lattice.of(placement, settings.size, settings.overlap)),
        name_of(settings.device),
        settings.precision,
        settings.compile,
        torch.__version__,
        torch.get_num_threads(),
        settings.batch,
        asked,
    )


def name_of(device: torch.device) -> str:
    """Return a device's type, and of a GPU what the card is called."""
    import torch

    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def agree(run: Run, begun: Iterable[Begun], device: torch.device) -> tuple[torch.device, PredictOptions]:
    """Return the device and the options that go on with most of what is there, if `device` and the options can.

    What was left to the machine is as it was then. Raises ConfigError when the user asked for something else, unless
    to overwrite.
    """
    import torch

    options = run.options
    known = [one for one in begun if one.settings is not None and one.total]
    then = max(known, key=lambda one: one.total).settings if known else None
    exact = torch.__version__, torch.get_num_threads(), options.compiled
    if then is None or (then.torch, then.threads, then.compiled) != exact:
        return device, options
    if options.device == "auto" and then.device == "cpu":
        device = torch.device("cpu")
    now = name_of(device)
    for option, other, wish, differs in (
        ("--device", then.device.split()[0], options.device, now.split()[0] != then.device.split()[0]),
        ("--batch", then.setting, options.batch, options.batch not in (then.asked, then.setting, then.batch)),
    ):
        if differs and wish not in (None, "auto"):
            if options.overwrite:
                return device, options
            raise ConfigError(
                f"{one_line(run.out)}: was begun with {option} {other}, and {option} {wish} would change its last"
                f" digits; leave {option} out to go on, or give --overwrite to begin anew"
            )
    if now != then.device:
        return device, options
    precision = then.precision if options.precision == "auto" else options.precision
    return device, replace(options, batch=then.setting, precision=precision)
