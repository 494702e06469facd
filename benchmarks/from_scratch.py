"""Trainings from random weights that all cost the same, so that their scores may be compared.

On a CPU the budget is processor time of one thread: other programs on the machine change the wall time, not the result.
On a GPU it is wall time. The number of steps that fill the budget comes from two short runs of the same training,
which are not part of it; their difference is what a step costs, the rest is starting up, which is not counted either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from record import Row

PROBES = {"cpu": (1, 6), "cuda": (40, 240)}
"""Steps of the two short runs."""


@dataclass(frozen=True)
class Recipe:
    """The shipped configuration `small`, and what is set otherwise."""

    changes: dict[str, object]
    """As section.key; the network too."""
    teacher: Path | None = None
    """A finished run, for `--teacher`."""

    def but(self, changes: dict[str, object]) -> Recipe:
        """Return the recipe with more changes."""
        return replace(self, changes={**self.changes, **changes})

    def options(self) -> list[str]:
        """Return the words for `aerialseg train`."""
        settings = {"model.weights": "none", **self.changes}
        taught = [] if self.teacher is None else ["--teacher", str(self.teacher)]
        return [
            "-c",
            "small",
            *taught,
            *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
        ]


@dataclass(frozen=True)
class Budget:
    """What every training may cost."""

    device: str
    minutes: float

    @property
    def family(self) -> str:
        """cpu or cuda."""
        return self.device.partition(":")[0]

    @property
    def unit(self) -> str:
        """What the minutes are of."""
        return "one processor" if self.family == "cpu" else "the GPU's wall time"

    def run(self, *words: object) -> tuple[Any, float]:
        """Run a Python program with these words; returns the JSON it prints and what it cost in seconds.

        On a CPU it has one thread. A program that fails ends the benchmark with its exit code.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": "1"} if self.family == "cpu" else dict(os.environ)
        command, began = [sys.executable, *map(str, words)], time.monotonic()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        with child.stdout or sys.stdin as stream:
            printed = stream.read()
        _, status, usage = os.wait4(child.pid, 0)  # of this child alone: several may run side by side
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(child.returncode)
        cost_s = usage.ru_utime + usage.ru_stime if self.family == "cpu" else time.monotonic() - began
        return json.loads(printed), cost_s


@dataclass(frozen=True)
class Cost:
    """What a training costs on this machine, in seconds of the budget's unit."""

    start_s: float
    step_s: float


def measure_cost(budget: Budget, recipe: Recipe, tiles: Path, run: Path) -> Cost:
    """Train twice for a few steps: the difference is what steps cost, and the rest is starting up."""
    few, more = PROBES[budget.family]
    short, long = (_train(budget, recipe, tiles, run, seed=0, steps=steps)[1] for steps in (few, more))
    step_s = max(1e-6, (long - short) / (more - few))
    return Cost(max(0.0, short - few * step_s), step_s)


def known_cost(budget: Budget, recipe: Recipe, tiles: Path, known: Path) -> Cost:
    """Return what the file `known` says, or measure it and say it there: rows of other days take as many steps."""
    if not known.exists():
        known.write_text(json.dumps(asdict(measure_cost(budget, recipe, tiles, known.with_suffix("")))))
    return Cost(**json.loads(known.read_text()))


def train(budget: Budget, recipe: Recipe, tiles: Path, run: Path, *, seed: int, cost: Cost) -> Row:
    """Train one network for the budget on all of the tiles; returns what a table shows of it.

    Nothing is validated: the last weights are kept and the threshold stays at one half.
    """
    steps = max(1, int(budget.minutes * 60 / cost.step_s))
    report, spent_s = _train(budget, recipe, tiles, run, seed=seed, steps=steps)
    return {
        "arithmetic": report["precision"],
        "steps": report["steps"],
        "trained_s": spent_s - cost.start_s,
        "images_per_s": report["images_per_s"],
    }


def _train(budget: Budget, recipe: Recipe, tiles: Path, run: Path, *, seed: int, steps: int) -> tuple[Row, float]:
    schedule = {"data.train_on": "all", "schedule.epochs": 1, "schedule.steps_per_epoch": steps, "run.seed": seed}
    words = [word for key, value in schedule.items() for word in ("--set", f"{key}={value}")]
    options = ("-o", run, "--overwrite", "--json", "--device", budget.device)
    return budget.run("-m", "aerialseg", "train", tiles, *recipe.options(), *words, *options)
