"""How far a training is: the counters, and the whole state as a checkpoint keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch

from aerialseg.training.history import EpochRecord

if TYPE_CHECKING:
    from aerialseg.training.checkpoint import State
    from aerialseg.training.job import Job


@dataclass(slots=True)
class Standing:
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


def snapshot(job: Job, standing: Standing) -> State:
    """Return everything that decides how the run goes on."""
    device = job.fabric.device
    return {
        "config": job.config.model_dump(),
        "tiles": job.tiles.digest,
        "card": asdict(job.card),
        "standing": asdict(standing),
        "model": job.model.state_dict(),
        "average": None if job.average is None else job.average.state_dict(),
        "optimizer": job.optimizer.state_dict(),
        "precision": job.fabric.strategy.precision.state_dict(),
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(job: Job, state: State) -> Standing:
    """Put a checkpoint's state into the job's modules and return its counters."""
    job.model.load_state_dict(state["model"])
    if job.average is not None:
        job.average.load_state_dict(state["average"])
    job.optimizer.load_state_dict(state["optimizer"])
    job.fabric.strategy.precision.load_state_dict(state["precision"])
    torch.set_rng_state(state["rng"])
    if job.fabric.device.type == "cuda" and state["device_rng"] is not None:
        torch.cuda.set_rng_state(state["device_rng"], job.fabric.device)
    values = dict(state["standing"])
    records = [EpochRecord(**record) for record in values.pop("records")]
    return Standing(**values, records=records)
