"""The learning-rate range test: it repeats itself, leaves nothing behind, and finds the slope of known curves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tiles import settings, tiny_config, write_tileset

from aerialseg.errors import BadDataError, OutputError, ResourceError, UsageError
from aerialseg.training import loop
from aerialseg.workflows import find_lr
from aerialseg.workflows.find_lr import STEPS, draw_range_test, find_learning_rate


@pytest.fixture(scope="module")
def tiles_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tileset(tmp_path_factory.mktemp("tiles"), train=2, val=1, size=64)


def losses_of(curve: Callable[[float], float]) -> list[float]:
    """Return the loss of each step as far as a test of this curve, of the exponent of 10, would go."""
    losses: list[float] = []
    for exponent in np.linspace(-6, 0, STEPS):
        losses.append(curve(float(exponent)))
        smoothed = find_lr._smooth(losses)
        if smoothed[-1] > find_lr.DIVERGED * min(smoothed):
            break
    return losses


@pytest.mark.parametrize("middle", [-4.5, -3.5, -2.0])
def test_the_suggestion_lies_on_the_slope_of_a_known_curve(middle: float) -> None:
    """A fall of one unit around `middle`, a long plateau, and an explosion near 1, with noise on it."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = find_lr._judge(
            losses_of(
                lambda x, rng=rng: (
                    1.5 - 1 / (1 + math.exp(-6 * (x - middle))) + math.exp(30 * (x + 0.2)) + rng.normal(0, 0.05)
                )
            )
        )
        assert middle - 0.2 < math.log10(found.suggestion) < middle + 0.9  # the average lags behind by half a decade
        assert found.diverged and found.rates[-1] < 1.0 and len(found.rates) == len(found.smoothed)


def test_a_loss_that_only_rises_still_has_an_answer() -> None:
    found = find_lr._judge(losses_of(lambda x: 1.0 + math.exp(8 * (x + 2))))
    assert 1e-6 < found.suggestion < 1e-4 and found.diverged


def test_the_rates_run_from_a_millionth_to_one() -> None:
    rates = [find_lr._rate(step) for step in range(STEPS)]
    assert rates[0] == pytest.approx(1e-6) and rates[-1] == pytest.approx(1.0)
    assert np.allclose(np.diff(np.log(rates)), np.log(rates[1] / rates[0]))


def test_it_repeats_itself_obeys_the_configuration_and_leaves_nothing_behind(
    tiles_folder: Path, tree_hashes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_lr, "STEPS", 16)
    config = tiny_config("data.crop=32", "data.batch=2", "data.cache=off", "schedule.freeze_steps=1000")
    before = tree_hashes(tiles_folder)
    first, again = (find_learning_rate(tiles_folder, config, "cpu") for _ in range(2))
    assert first == again and tree_hashes(tiles_folder) == before
    assert len(first.losses) == 16 and first.rates[-1] == pytest.approx(1.0)
    other = find_learning_rate(
        tiles_folder, config.model_copy(update={"loss": config.loss.model_copy(update={"dice": 0.0})}), "cpu"
    )
    assert other.losses[0] != first.losses[0]
    assert len(set(first.losses)) == 16, "the weights move"


def test_the_command_prints_a_line_for_the_configuration_and_draws(
    tiles_folder: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_lr, "STEPS", 12)
    picture = tmp_path / "new" / "lr.png"
    words = ("find-lr", tiles_folder, "-c", "demo", *settings("data.crop=32", "data.cache=off"), "--device", "cpu")
    code, out, _ = run(*words, "--plot", picture)
    assert code == 0 and out.startswith("optimizer.lr = ") and len(out.splitlines()) == 1
    assert picture.read_bytes().startswith(b"\x89PNG") and [path.name for path in picture.parent.iterdir()] == [
        "lr.png"
    ]
    code, out, _ = run(*words, "--json", "--plot", picture, "-f")
    values = json.loads(out)
    assert code == 0 and len(values["rates"]) == len(values["losses"]) == len(values["smoothed"]) <= 12
    assert run(*words, "--plot", picture)[0] == 73
    assert run(*words, "--plot", tiles_folder)[0] == 2
    own = tmp_path / "own.toml"
    own.write_text("[model]\npreset = 'unet-r18'\n")
    code, _, err = run("find-lr", tiles_folder, "-c", own, "--plot", own, "-f")
    assert code == 2 and "own.toml: is the configuration" in err and own.read_text().startswith("[model]")


def test_a_picture_is_refused_before_anything_is_trained(tiles_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_text("mine")
    found = find_lr._judge([1.0] * STEPS)
    with pytest.raises(OutputError):
        draw_range_test(tmp_path / "mine.png", found, tiles=tiles_folder)
    with pytest.raises(UsageError):
        draw_range_test(tiles_folder / "lr.png", found, tiles=tiles_folder)
    assert (tmp_path / "mine.png").read_text() == "mine"


def test_a_loss_that_is_never_finite_and_memory_that_does_not_suffice_are_told(
    tiles_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("data.crop=32", "data.cache=off")
    monkeypatch.setattr(loop, "building_loss", lambda logits, *others: logits.mean() * torch.nan)
    with pytest.raises(BadDataError, match="not finite at any learning rate"):
        find_learning_rate(tiles_folder, config, "cpu")

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "building_loss", full)
    with pytest.raises(ResourceError, match=r"too little memory for 4 crops of 32 px; --set a smaller data\.batch"):
        find_learning_rate(tiles_folder, config, "cpu")
