"""How far a training is: the counters, and the whole state as a checkpoint keeps it.

`last.ckpt` holds all a run needs to go on as if it had never stopped; `previous.ckpt` is there in case that one is
damaged. Plain tensors, numbers and text in dicts and lists, so torch.load(weights_only=True) reads it and nothing in it
can run. The format is private to a run in progress; what others use is the model file.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from aerialseg.errors import ModelError, first_line, one_line
from aerialseg.files import exists, is_regular, open_regular, staged
from aerialseg.models.build import tensor_bytes
from aerialseg.training.history import LAST, PREVIOUS, EpochRecord
from aerialseg.values import from_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from aerialseg.training.job import TrainJob

FORMAT = 1
PLAIN = (type(None), bool, int, float, str)
Checkpoint = dict[str, Any]


@dataclass(slots=True)
class TrainState:
    """The counters of a run; the one value here that changes in place, by the loop alone."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the epoch after those."""
    taken: int = 0
    """Finished steps of the whole run."""
    loss: float = 0.0
    """Sum over the finished steps of this epoch that were not skipped."""
    skipped: int = 0
    """Steps of this epoch that float16's loss scaling left out."""
    skipped_in_a_row: int = 0
    best_iou: float | None = None
    """Of the saved model; None before the first validation."""
    best_epoch: int = 0
    """The epoch, from 1, whose weights are saved; 0 before the first."""
    threshold: float = 0.5
    finished: bool = False
    records: list[EpochRecord] = field(default_factory=list)

    @property
    def mean_loss(self) -> float:
        """Over this epoch's steps so far."""
        return self.loss / max(1, self.step - self.skipped)


def state_dict(job: TrainJob, state: TrainState) -> Checkpoint:
    """Return everything that decides how the run goes on."""
    device = job.fabric.device
    return {
        "config": job.config.model_dump(),
        "tiles": job.tiles.digest,
        "card": asdict(job.card),
        "standing": asdict(state),
        "model": job.model.state_dict(),
        "average": None if job.average is None else job.average.state_dict(),
        "optimizer": job.optimizer.state_dict(),
        "precision": job.fabric.strategy.precision.state_dict(),
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def load_state_dict(job: TrainJob, checkpoint: Checkpoint) -> TrainState:
    """Put a checkpoint's state into the job's modules and return its counters.

    Raises ModelError when the counters are not those of this version.
    """
    try:
        counters = from_values(TrainState, checkpoint["standing"])
    except ValueError as error:
        raise ModelError(
            f"{one_line(job.run / LAST)}: was written by another version of aerialseg ({error}); start again with"
            " --overwrite"
        ) from error
    job.model.load_state_dict(checkpoint["model"])
    if job.average is not None:
        job.average.load_state_dict(checkpoint["average"])
    job.optimizer.load_state_dict(checkpoint["optimizer"])
    job.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
    torch.set_rng_state(checkpoint["rng"])
    if job.fabric.device.type == "cuda" and checkpoint["device_rng"] is not None:
        torch.cuda.set_rng_state(checkpoint["device_rng"], job.fabric.device)
    return counters


def disk_bytes(run: Path, segmenter: nn.Module, *, averaged: bool) -> int:
    """Return about how much more disk a run takes: its model, and three checkpoints while the last one is written."""
    kept = sum(path.stat().st_size for path in (run / LAST, run / PREVIOUS) if is_regular(path))
    checkpoint = (4 if averaged else 3) * tensor_bytes(segmenter)  # the optimizer keeps two numbers for each weight
    return max(checkpoint, tensor_bytes(segmenter) + 3 * checkpoint - kept)


def save_checkpoint(run: Path, state: Checkpoint) -> None:
    """Write `state` as the run's last checkpoint and keep the one before; at every moment one of the two is whole."""
    last = run / LAST
    content = {"format": FORMAT, "digest": digest_of(state), "state": state}
    with staged(last) as temporary:
        try:
            with temporary.open("wb") as stream:  # torch's own writer hides the reason of a full disk
                torch.save(content, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        if exists(last):
            last.replace(run / PREVIOUS)


def load_checkpoint(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, None when there is none at all.

    Tells `say` when the last one is damaged and the previous one is used; raises ModelError when both are.
    """
    found = [path for path in (run / LAST, run / PREVIOUS) if os.path.lexists(path)]
    problems: list[str] = []
    for path in found:
        try:
            state = _read(path)
        except ModelError as error:
            problems.append(str(error))
            continue
        if problems:
            say(f"{problems[0]}; going on from {path.name} instead")
        return state
    if problems:
        raise ModelError(f"{problems[0]}, and there is no older one to go on from; start again with --overwrite")
    return None


def digest_of(state: Any) -> str:
    """Return the SHA-256 of a nest of dicts, lists, tensors, numbers and text; dicts count in their own order."""
    digest = hashlib.sha256()
    _feed(digest.update, state)
    return digest.hexdigest()


def _feed(update: Callable[[Any], None], value: Any) -> None:
    match value:
        case torch.Tensor():
            update(f"{value.dtype}{tuple(value.shape)}".encode())
            update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        case dict():
            update(f"dict{len(value)}".encode())
            for key, item in value.items():
                _feed(update, key)
                _feed(update, item)
        case list() | tuple():
            update(f"list{len(value)}".encode())
            for item in value:
                _feed(update, item)
        case _ if type(value) in PLAIN:  # a subclass would be pickled as an object
            update(f"{type(value).__name__}:{value!r};".encode())
        case _:
            raise TypeError(f"a checkpoint holds plain values only, not {type(value)}")


def _read(path: Path) -> Checkpoint:
    try:
        with open_regular(path) as stream, warnings.catch_warnings(action="ignore", category=UserWarning):
            content = torch.load(stream, map_location="cpu", weights_only=True)  # warns about a stranger's pickle
        state: Checkpoint = content["state"]
        whole = content["format"] == FORMAT and content["digest"] == digest_of(state)
    except Exception as error:  # damaged bytes surface as nearly any type
        raise ModelError(f"{one_line(path)}: damaged: {first_line(error)[:120]}") from error
    if not whole:
        raise ModelError(f"{one_line(path)}: damaged: its content does not match its digest")
    return state
