"""Two runs against each other: differences by hand, intervals that are paired, and the page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from html_pages import check

from aerialseg.counts import Confusion
from aerialseg.evaluation.comparison import compare_reports
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
