"""The counting of whole files against numpy, and the pooling over cities against the benchmark's rule."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from told import Told

from aerialseg.counts import Confusion
from aerialseg.errors import Stopped
from aerialseg.evaluation import pairs, scores
from aerialseg.evaluation.pairs import Pair, Rules, count_pair
from aerialseg.evaluation.results import EvaluationReport, SceneScore
from aerialseg.evaluation.scores import evaluate_pairs, evaluate_scenes
from aerialseg.geo.masks import decide_rule
from aerialseg.geo.scenes import find_scenes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]

NAMES = ("austin2", "austin10", "tyrol-w1", "somewhere")


def draw(seed: int, size: tuple[int, int], values: tuple[int, ...]) -> np.ndarray:
    """Blocks of 4 px, so that masks hold areas rather than noise."""
    coarse = np.random.default_rng(seed).choice(values, (-(-size[0] // 4), -(-size[1] // 4)))
    return np.kron(coarse, np.ones((4, 4))).astype(np.uint8)[: size[0], : size[1]]


def by_hand(prediction: Path, truth: Path) -> Confusion:
    """Our own masks (0, 1, nodata 255) against Inria's (0, 255), with whole arrays."""
    with rasterio.open(prediction) as p, rasterio.open(truth) as t:
        p, t = p.read(1), t.read(1)
    valid = p != 255
    p, t = p[valid] == 1, t[valid] == 255
    return Confusion(int((p & t).sum()), int((p & ~t).sum()), int((~p & t).sum()), int((~p & ~t).sum()))


@pytest.fixture
def dataset(tmp_path: Path, mask_file: Write) -> Path:
    """Four pairs of odd sizes: predictions as `predict` writes them, truth as Inria's, one truth without prediction."""
    for seed, name in enumerate(NAMES):
        size = (97 + seed, 300 - 61 * seed)
        prediction = draw(seed, size, (0, 0, 1, 255))
        tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "ZSTD", "nodata": 255}
        mask_file(tmp_path / f"out/{name}.tif", prediction, **tiles)
        mask_file(tmp_path / f"gt/{name}.tif", draw(seed + 50, size, (0, 255)))
    mask_file(tmp_path / "gt/vienna1.tif")
    return tmp_path


def test_json_equals_counting_by_hand(dataset: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "STRIP_PIXELS", 5000)
    code, out, err = run("evaluate", dataset / "out", "--masks", dataset / "gt", "--json")
    assert code == 0
    found = json.loads(out)
    expected = {name: by_hand(dataset / f"out/{name}.tif", dataset / f"gt/{name}.tif") for name in NAMES}
    assert list(found["scenes"]) == ["austin2", "austin10", "somewhere", "tyrol-w1"]
    for name, counts in expected.items():
        assert {key: found["scenes"][name][key] for key in ("tp", "fp", "fn", "tn")} == {
            "tp": counts.tp, "fp": counts.fp, "fn": counts.fn, "tn": counts.tn
        }  # fmt: skip
        assert found["scenes"][name]["mcc"] == pytest.approx(counts.mcc)
    assert set(found["cities"]) == {"austin", "tyrol-w"}
    assert found["cities"]["austin"]["iou"] == pytest.approx((expected["austin2"] + expected["austin10"]).iou)
    overall = sum(expected.values(), Confusion())
    for score in ("iou", "accuracy", "precision", "recall", "specificity", "f1", "mcc"):
        assert found["overall"][score] == pytest.approx(getattr(overall, score)), score
    pixels = sum((97 + seed) * (300 - 61 * seed) for seed in range(4))
    assert found["overall"]["uncounted_share"] == pytest.approx(1 - overall.pixels / pixels)
    assert found["unused_masks"] == ["vienna1"]
    assert "1 of the masks have no prediction" in err
    assert "vienna1" in err


def test_the_table_shows_scenes_cities_overall_and_what_was_left_out(dataset: Path, run: Run) -> None:
    code, out, err = run("evaluate", dataset / "out", "--masks", dataset / "gt")
    assert code == 0
    overall = EvaluationReport(
        tuple(SceneScore(n, None, by_hand(dataset / f"out/{n}.tif", dataset / f"gt/{n}.tif"), 0) for n in NAMES)
    ).overall
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert {"scene austin2", "scene tyrol-w1", "city austin", "city tyrol-w", "overall"} <= set(rows)
    assert f"{overall.iou:.4f}" in rows["overall"]
    assert "of all pixels are nodata and not counted" in out
    assert "error" not in err


def test_overall_is_pooled_and_not_a_mean() -> None:
    """A city of few buildings, mapped badly, weighs by its pixels and not by being a city."""
    good, bad = Confusion(tp=900, fp=50, fn=50, tn=9000), Confusion(tp=1, fp=9, fn=10, tn=9980)
    report = EvaluationReport((SceneScore("austin1", "austin", good, 0), SceneScore("kitsap1", "kitsap", bad, 0)))
    assert report.overall.iou == 901 / (901 + 59 + 60)
    assert np.mean([city.confusion.iou for city in report.by_city.values()]) < 0.5 < report.overall.iou


def test_a_report_without_building_is_valid_json() -> None:
    report = EvaluationReport((SceneScore("x", None, Confusion(tn=5), 0),))
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["overall"]["iou"] is None


def test_nodata_in_the_truth_is_not_counted(tmp_path: Path, mask_file: Write) -> None:
    prediction = mask_file(tmp_path / "p.tif", draw(1, (40, 40), (0, 1)), nodata=255)
    truth = draw(2, (40, 40), (0, 1, 255))
    report = evaluate_pairs([Pair("x", prediction, mask_file(tmp_path / "t.tif", truth, nodata=255))])
    assert report.overall.pixels == (truth != 255).sum()
    assert report.uncounted_share == (truth == 255).mean()


@pytest.mark.parametrize("form", [{"nbits": 1, "compress": "CCITTFAX4"}, {}])
def test_one_bit_and_eight_bit_masks_score_alike(tmp_path: Path, mask_file: Write, form: dict[str, Any]) -> None:
    ones = draw(3, (70, 90), (0, 1))
    truth = draw(4, (70, 90), (0, 255))
    values = ones if form else ones * 255
    report = evaluate_pairs(
        [Pair("x", mask_file(tmp_path / "p.tif", values, **form), mask_file(tmp_path / "t.tif", truth))]
    )
    assert report.overall == Confusion.of(ones == 1, truth == 255)


def test_values_of_the_truth_are_told_by_options(tmp_path: Path, mask_file: Write, run: Run) -> None:
    classes = draw(5, (64, 64), (0, 2, 6, 9))
    prediction = draw(6, (64, 64), (0, 1))
    mask_file(tmp_path / "out/x.tif", prediction, nodata=255)
    mask_file(tmp_path / "gt/x.tif", classes)
    options = ("--building-values", "2,6", "--ignore-values", "9", "--json")
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", *options)
    assert code == 0
    expected = Confusion.of(prediction == 1, (classes == 2) | (classes == 6), classes != 9)
    assert json.loads(out)["overall"]["tp"] == expected.tp
    assert json.loads(out)["overall"]["tn"] == expected.tn
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--mask-threshold", "6", "--json")
    assert json.loads(out)["overall"]["tp"] == Confusion.of(prediction == 1, classes >= 6).tp
    code, _, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--building-values", "two")
    assert code == 2
    assert "--building-values two: give whole numbers" in err


def test_scenes_are_scored_from_python(tmp_path: Path, mask_file: Write, scene_file: Write) -> None:
    scene_file(tmp_path / "train/images/austin1.tif")
    truth = mask_file(tmp_path / "train/gt/austin1.tif")
    with rasterio.open(truth) as source:
        mask_file(tmp_path / "out/austin1.tif", (source.read(1) > 0).astype(np.uint8), nodata=255)
    report = evaluate_scenes(find_scenes([tmp_path]), tmp_path / "out")
    assert report.by_city["austin"].confusion.iou == 1.0


def test_scenes_are_scored_where_the_system_does_not_say_which_processors(
    dataset: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS has none
    assert run("evaluate", dataset / "out", "--masks", dataset / "gt", "--json")[0] == 0


def test_a_stop_does_not_wait_for_a_large_scene(
    tmp_path: Path, mask_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [mask_file(tmp_path / f"{side}.tif", size=(2000, 64)) for side in "pt"]
    reading = pairs.read_mask

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.2)
        return reading(*arguments)

    monkeypatch.setattr(pairs, "STRIP_PIXELS", 2000)
    monkeypatch.setattr(pairs, "read_mask", slowly)
    monkeypatch.setattr(scores, "POLL_S", 0.05)
    began = time.monotonic()
    with pytest.raises(Stopped):
        evaluate_pairs([Pair("x", *paths)], progress=Told(1))
    assert time.monotonic() - began < 5  # sixty strips would take 24 s
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        count_pair(Pair("x", *paths), Rules(decide_rule(paths), decide_rule(paths)), stop)
