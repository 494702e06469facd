"""What networks learn in equal time: each takes the steps that fit into so many minutes on this device.

A trial says how long a step takes (trial.py); reading, validation and start-up are not counted, so that a slow disk
does not decide between networks. All start from random weights, and train by one configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aerialseg.config import ModelSection, TrainConfig
from aerialseg.errors import BadDataError, ConfigError, Diverged, ResourceError, UsageError, one_line
from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.build import check_network
from aerialseg.models.device import is_out_of_memory

if TYPE_CHECKING:
    from pathlib import Path

    from aerialseg.progress import Progress
    from aerialseg.workflows.cost_table import Contestant

COMMAND = ("aerialseg", "bench")
"""In run.json: by this a run is known to be a bench's."""
EPOCHS = 8
"""Validations of a training; the best one counts."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What every network trains on, and how long; the configuration's network and schedule are replaced."""

    tiles: Path
    minutes: float
    config: TrainConfig

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise UsageError(f"--minutes is {self.minutes:g}, expected minutes above 0")
        if not load_tileset(self.tiles).of_split("val"):
            raise BadDataError(
                f"{one_line(self.tiles)}: has no validation tiles, so accuracy cannot be told; cut tiles with --split"
            )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a network learned, or why it did not."""

    name: str
    iou: float | None = None
    """Of buildings on the validation tiles, at the best threshold of the best epoch."""
    steps: int = 0
    seconds: float | None = None
    """Of the whole training, reading and validation included."""
    note: str = ""


def train_in_time(
    contestant: Contestant, budget: Budget, run: Path, device: str, progress: Progress, *, overwrite: bool = False
) -> Accuracy:
    """Train one network into the folder `run`; what cannot be trained so, for its size or its memory, has a note.

    A run that a bench began is begun anew; raises OutputError for one of another origin, unless `overwrite`.
    """
    from aerialseg.training.loop import train
    from aerialseg.training.run_folder import (
        TrainOptions,  # seconds of libraries, which costs alone do not need
        read_run,
    )

    try:
        config = _configure(contestant, budget, device)
        starts = read_run(run).get("starts", [])
        ours = bool(starts) and all(start.get("command") == [*COMMAND] for start in starts)
        options = TrainOptions(device, overwrite=ours or overwrite, command=COMMAND)
        report = train(budget.tiles, config, run, options=options, progress=progress)
    except (ConfigError, ResourceError, Diverged) as error:
        return Accuracy(contestant.name, note=str(error))
    except RuntimeError as error:  # of the trial: `train` gives advice instead
        if not is_out_of_memory(error):
            raise
        return Accuracy(contestant.name, note="out of memory")
    return Accuracy(contestant.name, report.best_iou, report.steps, report.seconds)


def _configure(contestant: Contestant, budget: Budget, device: str) -> TrainConfig:
    """Return the configuration with this network, and as many steps as the minutes allow."""
    from aerialseg.workflows.trial import seconds_per_step

    spec = contestant.spec
    check_network(spec, budget.config.data.crop)
    named = {"architecture": spec.architecture, "encoder": spec.encoder, "weights": "none"}
    section = ModelSection(**named, encoder_arguments=dict(spec.encoder_arguments), accept_licence=spec.accept_licence)
    config = budget.config.model_copy(update={"model": section})
    steps = max(1, int(60 * budget.minutes / seconds_per_step(config, device)))
    epochs = min(EPOCHS, steps)
    changes = {"epochs": epochs, "steps_per_epoch": steps // epochs, "patience": 0}
    return config.model_copy(update={"schedule": config.schedule.model_copy(update=changes)})
