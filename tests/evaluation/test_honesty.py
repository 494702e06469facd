"""Scores that would flatter: filtered patches, training ground, and quoted pairs that do not fit the truth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerialseg.counts import Confusion
from aerialseg.evaluation.report import compare_claim, implied_building_share

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("size", [16, 50])
def test_filtered_scores_leave_out_patches_without_building(
    tmp_path: Path, mask_file: Write, run: Run, size: int
) -> None:
    rng = np.random.default_rng(0)
    truth = np.kron(rng.random((9, 7)) < 0.1, np.ones((14, 15))).astype(np.uint8)
    prediction = truth ^ (rng.random(truth.shape) < 0.05)
    mask_file(tmp_path / "out/x.tif", prediction, nodata=255)
    mask_file(tmp_path / "gt/x.tif", truth)
    options = ("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--filtered", size)
    code, out, err = run(*options, "--pixels-only", "--json")
    assert code == 0, err
    total = Confusion()
    for row in range(0, truth.shape[0], size):
        for col in range(0, truth.shape[1], size):
            t, p = (mask[row : row + size, col : col + size] == 1 for mask in (truth, prediction))
            total += Confusion.of(p, t) if t.any() else Confusion()
    found = json.loads(out)
    assert {name: found["overall"][name] for name in ("tp", "fp", "fn", "tn")} == {
        "tp": total.tp, "fp": total.fp, "fn": total.fn, "tn": total.tn,
    }  # fmt: skip
    assert any("do not compare" in line for line in found["warnings"])
    assert "FILTERED, not comparable" in run(*options, "--pixels-only")[1]
    assert run(*options)[0] == 2
    assert run(*options, "--pixels-only", "--report", tmp_path / "r.html")[0] == 2
    assert run(*options[:-1], "0", "--pixels-only")[0] == 2


@settings(max_examples=100, deadline=None)
@given(*[st.integers(0, 10**6)] * 4)
def test_a_true_pair_allows_the_true_share(tp: int, fp: int, fn: int, tn: int) -> None:
    counts = Confusion(tp, fp, fn, tn)
    if not counts.pixels or not fp + fn or not tp + fp + fn:
        return
    low, high = implied_building_share(counts.iou, counts.accuracy)
    assert low - 1e-9 <= counts.building_fraction <= high + 1e-9


def test_a_claim_from_other_ground_is_seen() -> None:
    """IoU 0.8 at accuracy 0.97 needs 12 to 15 % of building."""
    scores = {"val_iou": 0.8, "val_accuracy": 0.97}
    assert implied_building_share(0.8, 0.97) == (pytest.approx(0.12), pytest.approx(0.15))
    assert compare_claim("m", scores, 0.14) == []
    (line,) = compare_claim("m", scores, 0.05)
    assert "imply 12.0% to 15.0% building, the truth here has 5.0%" in line
    assert compare_claim("m", {"val_iou": 0.8}, 0.05) == []
    with pytest.raises(ValueError, match="no pair"):
        implied_building_share(1.0, 0.5)


@pytest.fixture
def tiles(tmp_path: Path, scene_file: Write, mask_file: Write, run: Run) -> Path:
    """Tiles of 64 px from two scenes of one city, one to train and one to validate, and predictions of both."""
    for name, west in (("austin1", 616000.0), ("austin6", 616500.0)):
        grid = {"transform": (0.3, 0, west, 0, -0.3, 3347000.0)}
        scene_file(tmp_path / f"set/images/{name}.tif", **grid)
        mask_file(tmp_path / f"set/gt/{name}.tif", **grid)
        mask_file(tmp_path / f"out/{name}.tif", np.zeros((128, 128), np.uint8), nodata=255, **grid)
    code, _, err = run("tile", tmp_path / "set", "-o", tmp_path / "tiles", "--size", "64", "--split", "inria")
    assert code == 0, err
    return tmp_path


def test_scenes_on_training_ground_are_named(tiles: Path, run: Run, mask_file: Write) -> None:
    options = ("evaluate", tiles / "out", "--masks", tiles / "set", "--trained-on", tiles / "tiles")
    code, out, err = run(*options, "--json")
    assert code == 0, err
    (line,) = [line for line in json.loads(out)["warnings"] if "training tiles" in line]
    assert line.startswith("austin6: 100.0% of it lies under training tiles")
    code, _, _ = run("evaluate", tiles / "out", "--masks", tiles / "set", "--trained-on", tiles / "nothing")
    assert code == 66


def test_validation_tiles_on_training_ground_are_found_whatever_their_names(tiles: Path, run: Run) -> None:
    """The same ground under another name and number, as when a scene was exported twice."""
    import sqlite3

    for place in ("set/images", "set/gt", "out"):
        (tiles / place / "austin1.tif").unlink()
        content = (tiles / place / "austin6.tif").read_bytes()
        (tiles / place / "boston2.tif").write_bytes(content)
    code, _, err = run("tile", tiles / "set", "-o", tiles / "again", "--size", "64", "--split", "inria")
    assert code == 0, err
    code, out, _ = run("evaluate", tiles / "out", "--masks", tiles / "set", "--trained-on", tiles / "again", "--json")
    warnings = json.loads(out)["warnings"]
    assert any("validation tiles lie on the ground of training tiles" in line for line in warnings)
    assert sum("lies under training tiles" in line for line in warnings) == 2
    with sqlite3.connect(tiles / "again/index.gpkg") as database:
        assert database.execute("SELECT count(DISTINCT split) FROM tiles").fetchone() == (2,)
