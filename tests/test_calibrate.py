"""Calibrating a model: what the new file holds and does, and that the old one is never touched."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plain(tmp_path: Path, scene_file: Write, mask_file: Write, tiny_model: Write) -> Path:
    """A model, two scenes, and masks."""
    tiny_model(tmp_path / "model.safetensors")
    for seed in (1, 2):
        scene_file(tmp_path / f"scenes/austin{seed}.tif", seed=seed, size=(96, 128))
        mask_file(tmp_path / f"gt/austin{seed}.tif", size=(96, 128))
    return tmp_path


@pytest.fixture
def work(plain: Path, run: Run) -> Path:
    """The same with masks drawn from the model's own probabilities with logits divided by 3."""
    tmp_path, model = plain, plain / "model.safetensors"
    code, _, err = run("predict", tmp_path / "scenes", "-m", model, "-o", tmp_path / "first", "--probability",
                       "--device", "cpu")  # fmt: skip
    assert code == 0, err
    rng = np.random.default_rng(0)
    for seed in (1, 2):
        with rasterio.open(tmp_path / f"first/probability/austin{seed}.tif") as source:
            stored, profile = source.read(1).clip(1, 253), source.profile
        logits = np.log(stored / (254.0 - stored)) / 3 - 0.8
        truth = rng.random(stored.shape) < 1 / (1 + np.exp(-logits))
        profile = {key: profile[key] for key in ("height", "width", "count", "dtype", "crs", "transform")}
        with rasterio.open(tmp_path / f"gt/austin{seed}.tif", "w", driver="GTiff", **profile) as target:
            target.write(truth.astype(np.uint8) * 255, 1)
    return tmp_path


def arguments(work: Path, out: str = "new.safetensors") -> list[object]:
    return ["calibrate", work / "model.safetensors", "--scenes", work / "scenes", "--masks", work / "gt", "-o",
            work / out, "--device", "cpu"]  # fmt: skip


def test_the_new_model_has_better_probabilities_and_predict_uses_them(work: Path, run: Run) -> None:
    from aerialseg.models.package import read_card

    old = (work / "model.safetensors").read_bytes()
    code, out, err = run(*arguments(work), "--json")
    assert code == 0, err
    found = json.loads(out)
    before, after = read_card(work / "model.safetensors"), read_card(work / "new.safetensors")
    assert (work / "model.safetensors").read_bytes() == old
    assert found["after"]["temperature"] == after.temperature > 1.3
    assert found["after"]["threshold"] == after.threshold != before.threshold
    assert found["after"]["log_loss"] < found["before"]["log_loss"]
    assert found["after"]["iou"] >= found["before"]["iou"]
    assert after.training["calibration"]["scenes"] == 2
    assert replace(after, threshold=before.threshold, temperature=1.0, training=before.training) == before
    options = ("-o", work / "second", "--device", "cpu", "--probability")
    code, _, _ = run("predict", work / "scenes", "-m", work / "new.safetensors", *options)
    assert code == 0
    code, out, _ = run("evaluate", work / "second", "--masks", work / "gt", "--json")
    scored = json.loads(out)
    assert scored["overall"]["iou"] == pytest.approx(found["after"]["iou"])
    assert scored["probabilities"]["log_loss"] == pytest.approx(found["after"]["log_loss"])
    assert not list(work.rglob(".aerialseg-calibrate*"))


def test_nothing_is_replaced(plain: Path, run: Run) -> None:
    model = (plain / "model.safetensors").read_bytes()
    code, _, err = run(*arguments(plain, "model.safetensors"), "-f")
    assert code == 2
    assert "would overwrite the input" in err
    (plain / "mine.safetensors").write_bytes(b"precious")
    assert run(*arguments(plain, "mine.safetensors"))[0] == 73
    assert (plain / "mine.safetensors").read_bytes() == b"precious"
    assert (plain / "model.safetensors").read_bytes() == model


def test_masks_of_one_class_are_refused(plain: Path, run: Run, mask_file: Write) -> None:
    for seed in (1, 2):
        mask_file(plain / f"gt/austin{seed}.tif", np.zeros((96, 128), np.uint8))
    code, _, err = run(*arguments(plain))
    assert code == 65
    assert "hold no building" in err
    assert not (plain / "new.safetensors").exists()
    assert not [path for path in plain.iterdir() if path.name.startswith(".aerialseg-") and path.is_dir()]


def test_scenes_without_masks_are_named(plain: Path, run: Run) -> None:
    (plain / "gt/austin2.tif").unlink()
    code, _, err = run(*arguments(plain))
    assert code == 65
    assert "austin2.tif: no mask found" in err
