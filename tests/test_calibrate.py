"""Calibrating a model: what the new file holds and does, and that the old one is never touched."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from quick_predict import without_network
from rasters import rectangles

from aerialseg.workflows import calibrate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plain(data: Path, tiny_model: Write) -> Path:
    """A model, two scenes, and masks."""
    tiny_model(data / "model.safetensors")
    return data


@pytest.fixture
def data(tmp_path: Path, scene_file: Write, mask_file: Write) -> Path:
    """Two scenes and masks, and a file for a model."""
    (tmp_path / "model.safetensors").write_bytes(b"a model")
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


@pytest.fixture
def quick(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without a network."""
    without_network(monkeypatch)
    return data


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
    assert not list(work.glob(".aerialseg-*"))


def test_nothing_is_replaced(data: Path, run: Run) -> None:
    model = (data / "model.safetensors").read_bytes()
    code, _, err = run(*arguments(data, "model.safetensors"), "-f")
    assert code == 2
    assert "would overwrite the input" in err
    (data / "mine.safetensors").write_bytes(b"precious")
    assert run(*arguments(data, "mine.safetensors"))[0] == 73
    assert (data / "mine.safetensors").read_bytes() == b"precious"
    assert (data / "model.safetensors").read_bytes() == model


def test_masks_of_one_class_are_refused(quick: Path, run: Run, mask_file: Write) -> None:
    for seed in (1, 2):
        mask_file(quick / f"gt/austin{seed}.tif", np.zeros((96, 128), np.uint8))
    code, _, err = run(*arguments(quick))
    assert code == 65
    assert "hold no building" in err
    assert not (quick / "new.safetensors").exists()
    assert not list(quick.glob(".aerialseg-*"))


def test_scenes_without_masks_are_named(data: Path, run: Run) -> None:
    (data / "gt/austin2.tif").unlink()
    code, _, err = run(*arguments(data))
    assert code == 65
    assert "austin2.tif: no mask found" in err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"transform": (0.3, 0, 616000.6, 0, -0.3, 3347000.0)}, "2.00 columns"),
        ({"size": (96, 127)}, "96x127"),
        ({"crs": "EPSG:31256"}, "EPSG:31256"),
    ],
)
def test_row_7_a_mask_on_another_grid_is_refused_before_anything_is_predicted(
    quick: Path, run: Run, mask_file: Write, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], expected: str
) -> None:
    monkeypatch.setattr(calibrate, "predict_scenes", None)
    mask_file(quick / "gt/austin2.tif", **{"size": (96, 128), **change})
    code, _, err = run(*arguments(quick))
    assert code == 65
    assert "scenes/austin2.tif" in err and "gt/austin2.tif" in err and expected in err
    assert not (quick / "new.safetensors").exists()


def test_row_7_half_a_pixel_is_tolerated_with_a_warning(quick: Path, run: Run, mask_file: Write) -> None:
    mask_file(quick / "gt/austin2.tif", size=(96, 128), transform=(0.3, 0, 616000.12, 0, -0.3, 3347000.0))
    code, _, err = run(*arguments(quick))
    assert code == 0
    assert "0.40 px off" in err


def test_values_that_nobody_explained_are_refused_before_anything_is_predicted(
    quick: Path, run: Run, mask_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "predict_scenes", None)
        mask_file(quick / "gt/austin2.tif", rectangles(96, 128) // 255 * 6)
        code, _, err = run(*arguments(quick))
        assert code == 65
        assert "austin2.tif: mask values" in err
        assert run(*arguments(quick), "--max-pixels", 100)[0] == 65
    code, _, err = run(*arguments(quick), "--building-values", "6,255", "--ignore-values", "9")
    assert code == 0, err


def test_polygons_are_as_good_a_truth_as_the_mask_burned_from_them(quick: Path, run: Run) -> None:
    import geopandas as gpd
    from rasterio.features import shapes
    from shapely.geometry import box, shape

    with rasterio.open(quick / "gt/austin1.tif") as mask:
        values, grid = mask.read(1), mask.transform
    drawn = [shape(geometry) for geometry, value in shapes(values, values > 0, transform=grid) if value]
    kinds = ["house"] * len(drawn) + ["lake"]
    west = box(616000, 3346900, 616000 + 0.3 * 64, 3347000)
    gpd.GeoDataFrame({"kind": kinds}, geometry=[*drawn, west], crs="EPSG:26914").to_file(quick / "truth.gpkg")
    gpd.GeoDataFrame(geometry=[west], crs="EPSG:26914").to_crs("EPSG:4326").to_file(quick / "area.geojson")
    found = []
    for masks in (("--masks", quick / "truth.gpkg", "--where", "kind = 'house'"), ("--masks", quick / "gt")):
        code, out, err = run(*arguments(quick)[:4], *masks, "-o", quick / "new.safetensors", "-f", "--device", "cpu",
                             "--json", "--labelled-area", quick / "area.geojson")  # fmt: skip
        assert code == 0, err
        found.append(json.loads(out)["after"])
    assert found[0] == found[1]
    code, out, _ = run(*arguments(quick), "-f", "--json")
    assert json.loads(out)["after"] != found[1], "the labelled area was not used"


def test_a_temperature_at_its_limit_is_said(quick: Path, run: Run, mask_file: Write) -> None:
    rng = np.random.default_rng(0)
    for seed in (1, 2):  # masks that have nothing to do with the scenes
        mask_file(quick / f"gt/austin{seed}.tif", (rng.random((96, 128)) < 0.5).astype(np.uint8))
    code, out, err = run(*arguments(quick), "--json")
    assert code == 0, err
    assert "warning: " in err and "no temperature fits: the best of those tried is the last, 10" in err
    assert len(json.loads(out)["warnings"]) == 1


def test_row_15_what_a_killed_run_left_goes_with_the_next(quick: Path, run: Run) -> None:
    left = quick / ".aerialseg-work-0123456789ab"
    (left / "first").mkdir(parents=True)
    (left / "first/austin1.tif").touch()
    (left / ".aerialseg-lock").touch()
    assert run(*arguments(quick))[0] == 0
    assert not list(quick.glob(".aerialseg-*"))
