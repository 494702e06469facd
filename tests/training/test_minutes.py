"""train --minutes: the pace is measured and forgotten, and the schedule that fits is an ordinary one from then on."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from small_tiles import tiny_config
from told import Told

from aerialseg.config import load_config
from aerialseg.config.sections import ScheduleSection
from aerialseg.errors import ConfigError, Stopped, UsageError
from aerialseg.training import loop
from aerialseg.training.loop import train
from aerialseg.training.optimizer import fit_schedule
from aerialseg.training.run_folder import TrainOptions

if TYPE_CHECKING:
    from pathlib import Path

DROPPING = ("model.encoder=tu-test_convnext", "model.encoder_arguments.drop_path_rate=0.5", "data.cache=off")
"""A network that drops paths at random, so that torch's generator matters."""


@pytest.fixture(autouse=True)
def _fixed_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curves, and a step takes 0.1 s and a validation 0.4 s, whatever this machine does."""
    monkeypatch.setattr(loop, "draw_curves", lambda run, records: None)

    def fitted(schedule: ScheduleSection, steps: int, seconds: float, **measured: float) -> ScheduleSection:
        assert set(measured) == {"step_s", "validation_s"} and min(measured.values()) > 0
        return fit_schedule(schedule, steps, 8.0, step_s=0.1, validation_s=0.4)

    monkeypatch.setattr(loop, "fit_schedule", fitted)


def test_a_schedule_fills_the_time_with_epochs_and_their_validations() -> None:
    section = ScheduleSection(epochs=40, warmup_steps=7)
    fitted = fit_schedule(section, 50, 1000.0, step_s=0.5, validation_s=5.0)
    seconds = fitted.epochs * (fitted.steps_per_epoch * 0.5 + 5.0)
    assert 900.0 < seconds < 1000.0 and abs(fitted.steps_per_epoch - 50) <= 5 and fitted.warmup_steps == 7


def test_an_epoch_that_is_too_long_has_fewer_steps() -> None:
    fitted = fit_schedule(ScheduleSection(), 5000, 60.0, step_s=0.5, validation_s=5.0)
    assert fitted.epochs == 1 and 90 < fitted.steps_per_epoch < 110


@pytest.mark.parametrize(("configured", "epochs"), [(50, 10), (4, 4)])
def test_a_long_epoch_is_cut_where_validations_are_cheap(configured: int, epochs: int) -> None:
    fitted = fit_schedule(ScheduleSection(epochs=configured), 5000, 1000.0, step_s=0.5, validation_s=5.0)
    assert fitted.epochs == epochs
    assert 900 < fitted.epochs * (fitted.steps_per_epoch * 0.5 + 5.0) < 1000


@pytest.mark.parametrize("seconds", [-3.0, 0.0, 6.0])
def test_no_time_for_one_step_is_said(seconds: float) -> None:
    with pytest.raises(UsageError, match=r"--minutes is too short: \d s are left for steps of 0.5 s"):
        fit_schedule(ScheduleSection(), 50, seconds, step_s=0.5, validation_s=5.0)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_are_above_0(tiles_folder: Path, tmp_path: Path, minutes: float) -> None:
    with pytest.raises(UsageError, match="expected minutes above 0"):
        train(tiles_folder, tiny_config(), tmp_path, options=TrainOptions("cpu", minutes=minutes))


def test_the_training_is_the_one_that_its_schedule_gives(tiles_folder: Path, tmp_path: Path) -> None:
    fitted, plain, said = tmp_path / "fitted", tmp_path / "plain", Told()
    train(tiles_folder, tiny_config(*DROPPING), fitted, options=TrainOptions("cpu", minutes=0.15), progress=said)
    found = load_config(fitted / "config.toml").schedule
    assert (found.epochs, found.steps_per_epoch) != (2, 3)
    assert any(line.startswith("--minutes 0.15: a step takes ") for line in said.lines), said.lines
    begun = json.loads((fitted / "run.json").read_text())["starts"][0]
    assert [begun[key] for key in ("minutes", "epochs", "steps_per_epoch")] == [
        0.15, found.epochs, found.steps_per_epoch,
    ]  # fmt: skip
    same = (f"schedule.epochs={found.epochs}", f"schedule.steps_per_epoch={found.steps_per_epoch}")
    train(tiles_folder, tiny_config(*DROPPING, *same), plain, options=TrainOptions("cpu"))
    assert (fitted / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_minutes_hide_no_other_change_of_a_resumed_run(tiles_folder: Path, tmp_path: Path) -> None:
    again = TrainOptions("cpu", resume=True, minutes=0.15)
    with pytest.raises(Stopped):
        begun = TrainOptions("cpu", minutes=0.15)
        train(tiles_folder, tiny_config(), tmp_path, options=begun, progress=Told(3, "epoch", idle=False))
    with pytest.raises(ConfigError, match=r"another configuration \(schedule.warmup_steps: 500 -> 1\)"):
        train(tiles_folder, tiny_config("schedule.warmup_steps=1"), tmp_path, options=again)


@pytest.mark.parametrize("minutes", [0.15, 60.0, None])
def test_a_resumed_run_keeps_the_schedule_it_was_begun_with(
    tiles_folder: Path, tmp_path: Path, minutes: float | None
) -> None:
    whole, parts, said = tmp_path / "whole", tmp_path / "parts", Told()
    config = tiny_config(*DROPPING)
    train(tiles_folder, config, whole, options=TrainOptions("cpu", minutes=0.15))
    with pytest.raises(Stopped):
        train(
            tiles_folder,
            config,
            parts,
            options=TrainOptions("cpu", minutes=0.15),
            progress=Told(13, "epoch", idle=False),
        )
    again = config if minutes else load_config(parts / "config.toml")
    train(tiles_folder, again, parts, options=TrainOptions("cpu", resume=True, minutes=minutes), progress=said)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert sum("keeps the schedule" in line for line in said.lines) == (minutes is not None)


def test_the_pace_is_that_of_the_steps_and_validations_of_this_run(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, score, found = loop.train_step, loop.validate, {}

    def slow_step(*given: Any, **more: Any) -> Any:
        time.sleep(0.1)
        return take(*given, **more)

    def slow_validation(*given: Any, **more: Any) -> Any:
        time.sleep(0.7)
        return score(*given, **more)

    def fitted(schedule: ScheduleSection, steps: int, seconds: float, **measured: float) -> ScheduleSection:
        found.update(measured, steps=steps, seconds=seconds)
        return schedule

    monkeypatch.setattr(loop, "train_step", slow_step)
    monkeypatch.setattr(loop, "validate", slow_validation)
    monkeypatch.setattr(loop, "fit_schedule", fitted)
    train(tiles_folder, tiny_config("schedule.epochs=1"), tmp_path, options=TrainOptions("cpu", minutes=5))
    assert 0.1 < found["step_s"] < 0.6 and 0.7 < found["validation_s"] < 4.0
    assert found["steps"] == 3 and found["seconds"] < 300 - 20 * 0.1 - 2 * 0.7
