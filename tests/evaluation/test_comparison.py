"""Two runs against each other: differences by hand, intervals that are paired, and the page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from html_pages import check

from aerialseg.counts import Confusion
from aerialseg.evaluation.comparison import compare_reports, render_comparison
from aerialseg.evaluation.results import EvaluationReport, SceneScore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]


def report(counts: list[Confusion]) -> EvaluationReport:
    return EvaluationReport(tuple(SceneScore(f"x{n}", None, each, 0) for n, each in enumerate(counts)))


def test_a_small_gain_in_every_scene_is_seen_although_scenes_differ_widely() -> None:
    rng = np.random.default_rng(0)
    a = [Confusion(tp=int(tp), fp=100, fn=1000 - int(tp), tn=9000) for tp in rng.integers(100, 900, 20)]
    b = [Confusion(tp=c.tp + 20, fp=100, fn=c.fn - 20, tn=9000) for c in a]
    compared = compare_reports(report(a), report(b))
    found = {difference.score: difference for difference in compared.differences}["iou"]
    iou = [sum(c.tp for c in run) / sum(c.tp + c.fp + c.fn for c in run) for run in (a, b)]
    assert (found.a, found.b, found.difference) == (iou[0], iou[1], pytest.approx(iou[1] - iou[0]))
    assert found.interval is not None
    assert 0 < found.interval[0] <= found.difference <= found.interval[1] < 0.03  # each alone spreads over 0.1 and more
    low, high = report(a).intervals()["iou"]
    assert high - low > 0.1
    assert (found.verdict, found.better_a, found.better_b) == ("B", 0, 20)
    other = {difference.score: difference for difference in compare_reports(report(b), report(a)).differences}["iou"]
    assert (other.verdict, other.interval) == ("A", (-found.interval[1], -found.interval[0]))


def test_equal_runs_and_single_scenes_decide_nothing() -> None:
    counts = [Confusion(5, 1, 1, 9), Confusion(0, 0, 0, 16)]
    compared = compare_reports(report(counts), report(counts))
    assert {difference.verdict for difference in compared.differences} == {"undecided"}
    assert all(difference.better_a == difference.better_b == 0 for difference in compared.differences)
    single = compare_reports(report(counts[:1]), report([Confusion(6, 0, 0, 10)]))
    assert all(difference.interval is None for difference in single.differences)
    assert json.loads(json.dumps(single.to_json(), allow_nan=False))["overall"]["iou"]["b"] == 1.0
    with pytest.raises(ValueError, match="same scenes"):
        compare_reports(report(counts), report(counts[:1]))


def test_what_comes_from_outside_is_escaped_on_the_page() -> None:
    evil = "</td><script>alert('1')</script>&\"x"
    results = (SceneScore(evil, None, Confusion(5, 1, 1, 9), 0),)
    compared = compare_reports(EvaluationReport(results), EvaluationReport(results), [evil])
    page = render_comparison(compared, (evil, evil), evil)
    assert check(page).text.count(evil) == 6  # both runs, the warning, the dot, the row, the command
    assert render_comparison(compared, (evil, evil), evil) == page


def test_the_command_and_its_page(tmp_path: Path, mask_file: Write, run: Run) -> None:
    rng = np.random.default_rng(1)
    for number in range(1, 5):
        truth = np.kron(rng.random((6, 8)) < 0.3, np.ones((16, 16))).astype(np.uint8)
        mask_file(tmp_path / f"gt/austin{number}.tif", truth * 255)
        mask_file(tmp_path / f"a/austin{number}.tif", np.roll(truth, 3, 0), nodata=255)
        mask_file(tmp_path / f"b/austin{number}.tif", np.roll(truth, 1, 0), nodata=255)
    mask_file(tmp_path / "gt/austin9.tif")
    mask_file(tmp_path / "a/austin9.tif", size=(128, 128))
    page = tmp_path / "page.html"
    code, out, err = run("compare", tmp_path / "a", tmp_path / "b", "--masks", tmp_path / "gt", "--report", page)
    assert code == 0, err
    assert "only A has austin9; left out" in err
    assert "4 scenes are few: the intervals are too narrow" in err
    row = next(line for line in out.splitlines() if line.startswith("│ iou"))
    assert "│ B " in row
    seen = check(page.read_text())
    assert "Scene by scene" in seen.text
    assert f"aerialseg compare {tmp_path / 'a'} {tmp_path / 'b'} --masks" in seen.text
    code, out, _ = run("compare", tmp_path / "a", tmp_path / "b", "--masks", tmp_path / "gt", "--json")
    found = json.loads(out)
    assert found["overall"]["iou"]["scenes_b"] == 4
    assert set(found["scenes"]) == {f"austin{n}" for n in range(1, 5)}
    page.write_text("mine")
    assert run("compare", tmp_path / "a", tmp_path / "b", "--masks", tmp_path / "gt", "--report", page)[0] == 73
    assert run("compare", tmp_path / "a", tmp_path / "b", "--masks", tmp_path / "gt", "-f")[0] == 2
    mask_file(tmp_path / "c/other.tif", nodata=255)
    mask_file(tmp_path / "gt/other.tif")
    code, _, err = run("compare", tmp_path / "a", tmp_path / "c", "--masks", tmp_path / "gt")
    assert code == 65
    assert "no scene of this run is in the other" in err


@pytest.fixture
def two_runs(tmp_path: Path, mask_file: Write) -> Path:
    """Two runs over one scene, each with nodata in another quarter: equal totals, other ground. All of A is wrong in
    the quarter that B hides, and the other way round."""
    truth = np.kron(np.random.default_rng(2).random((8, 8)) < 0.3, np.ones((16, 16))).astype(np.uint8)
    for run, hidden, wrong in (("a", np.s_[:64, :64], np.s_[64:, 64:]), ("b", np.s_[64:, 64:], np.s_[:64, :64])):
        prediction = truth.copy()
        prediction[wrong] ^= 1
        prediction[hidden] = 255
        mask_file(tmp_path / f"{run}/austin1.tif", prediction, nodata=255)
    mask_file(tmp_path / "gt/austin1.tif", truth * 255)
    return tmp_path


def test_only_ground_that_both_runs_know_is_judged(two_runs: Path, run: Run) -> None:
    code, out, err = run("compare", two_runs / "a", two_runs / "b", "--masks", two_runs / "gt", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["overall"]["iou"]["a"] == found["overall"]["iou"]["b"] == 1.0
    assert "A and B have data on different ground (4,096 pixels A alone, 4,096 pixels B alone)" in err
    alone = json.loads(run("evaluate", two_runs / "a", "--masks", two_runs / "gt", "--json")[1])
    assert alone["overall"]["iou"] < 0.8, "each alone is judged by its own ground"


def test_one_prediction_on_each_side_is_a_pair_whatever_the_names(two_runs: Path, run: Run) -> None:
    (two_runs / "b/austin1.tif").rename(two_runs / "b/from-b.tif")
    sides = (two_runs / "a/austin1.tif", two_runs / "b/from-b.tif")
    code, out, err = run("compare", *sides, "--masks", two_runs / "gt/austin1.tif", "--json")
    assert code == 0, err
    assert list(json.loads(out)["scenes"]) == ["austin1"]


def test_runs_on_other_grids_are_refused(two_runs: Path, run: Run, mask_file: Write) -> None:
    import geopandas as gpd
    from shapely.geometry import box

    gpd.GeoDataFrame(geometry=[box(616005, 3346980, 616020, 3346990)], crs=26914).to_file(two_runs / "t.gpkg")
    mask_file(two_runs / "b/austin1.tif", np.zeros((128, 127), np.uint8), nodata=255)
    code, _, err = run("compare", two_runs / "a", two_runs / "b", "--masks", two_runs / "t.gpkg")
    assert code == 65
    assert "does not lie on the grid of" in err and "128x127" in err


def test_the_truth_is_told_by_the_options_of_evaluate(two_runs: Path, run: Run, mask_file: Write) -> None:
    """Classes, polygons with a condition, a labelled area: A against A scores as evaluate scores A."""
    import geopandas as gpd
    from shapely.geometry import box

    values = np.random.default_rng(3).choice(np.array([0, 2, 6, 9], np.uint8), (128, 128))
    mask_file(two_runs / "classes/austin1.tif", values)
    frame = {"kind": ["house", "shed"]}
    shapes = [box(616005, 3346965, 616020, 3346990), box(616025, 3346980, 616030, 3346990)]
    gpd.GeoDataFrame(frame, geometry=shapes, crs=26914).to_file(two_runs / "t.gpkg")
    gpd.GeoDataFrame(geometry=[box(616000, 3346950, 616027, 3347000)], crs=26914).to_file(two_runs / "area.gpkg")
    area = ("--labelled-area", two_runs / "area.gpkg")
    for options in (
        ("--masks", two_runs / "classes", "--building-values", "2,6", "--ignore-values", "9", *area),
        ("--masks", two_runs / "classes", "--mask-threshold", "6"),
        ("--masks", two_runs / "t.gpkg", "--where", "kind = 'house'", *area),
    ):
        code, out, err = run("compare", two_runs / "a", two_runs / "a", *options, "--json")
        assert code == 0, err
        alone = json.loads(run("evaluate", two_runs / "a", *options, "--json")[1])
        assert json.loads(out)["overall"]["iou"]["a"] == alone["overall"]["iou"]
    code, _, err = run("compare", two_runs / "a", two_runs / "b", "--masks", two_runs / "gt", "--max-pixels", 100)
    assert code == 65
    assert "--max-pixels 100" in err
