"""Outlines, objects, probabilities and intervals of whole files, through the command line and against whole arrays."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyproj import Geod
from rasterio.errors import NotGeoreferencedWarning

from aerialseg.counts import QUANTA, Confusion
from aerialseg.evaluation import pairs
from aerialseg.evaluation.boundary import DISTANCES, BoundaryCounter
from aerialseg.evaluation.objects import ObjectCounter
from aerialseg.evaluation.pairs import Pair
from aerialseg.evaluation.results import Counts, bootstrap_intervals, total
from aerialseg.evaluation.scores import EvaluateOptions, evaluate_pairs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]


def houses(seed: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for _ in range(size[0] * size[1] // 900):
        row, col, height, width = (*rng.integers(0, size), *rng.integers(4, 22, 2))
        mask[row : row + height, col : col + width] = 1
    return mask


def whole(prediction: np.ndarray, truth: np.ndarray, m2: float) -> Counts:
    """The tallies, which are tested by themselves, given whole arrays: 255 is no data."""
    valid = (prediction != 255) & (truth != 255)
    p, t = (prediction == 1) & valid, (truth == 1) & valid
    boundary, objects = BoundaryCounter(), ObjectCounter(p.shape[1], m2)
    boundary.add(p, t, valid)
    objects.add(p, t, valid)
    outlines = boundary.finish()
    return Counts(Confusion.of(p, t, valid), tuple(outlines[d] for d in DISTANCES), objects.finish())


@pytest.fixture
def dataset(tmp_path: Path, mask_file: Write) -> tuple[Path, dict[str, Counts]]:
    """Three pairs of odd sizes and differing blocks, with nodata, the predictions shifted truths."""
    expected = {}
    for seed, name in enumerate(("austin1", "austin2", "vienna3")):
        size = (150 + 40 * seed, 230 - 50 * seed)
        truth = houses(seed, size)
        prediction = np.roll(truth, (1, seed), (0, 1))
        prediction[houses(seed + 9, size) * houses(seed + 5, size) == 1] = 255
        tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "nodata": 255}
        mask_file(tmp_path / f"out/{name}.tif", prediction, **tiles)
        mask_file(tmp_path / f"gt/{name}.tif", truth * 255)
        expected[name] = whole(prediction, truth, 0.09)
    return tmp_path, expected


@pytest.mark.parametrize("pixels", [700, 20000])
def test_files_in_strips_equal_whole_arrays(
    dataset: tuple[Path, dict[str, Counts]], run: Run, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    folder, expected = dataset
    monkeypatch.setattr(pairs, "STRIP_PIXELS", pixels)
    code, out, _ = run("evaluate", folder / "out", "--masks", folder / "gt", "--json")
    assert code == 0
    found = json.loads(out)
    for name, counts in expected.items():
        assert {k: v for k, v in found["scenes"][name].items() if k != "uncounted"} == plain(counts), name
    city = total([expected["austin1"], expected["austin2"]])
    assert found["cities"]["austin"] == plain(city)
    everything = total(expected.values())
    assert {k: v for k, v in found["overall"].items() if k not in ("uncounted_share", "intervals")} == plain(everything)
    assert sum(city.objects.true) > 20  # type: ignore[union-attr]
    assert 0 < found["overall"]["boundary_iou_3px"] < found["overall"]["boundary_iou_5px"] < 1


def plain(counts: Counts) -> dict[str, Any]:
    return json.loads(json.dumps(counts.to_json()))


def test_tables_show_what_was_asked_for(dataset: tuple[Path, dict[str, Counts]], run: Run) -> None:
    folder, expected = dataset
    code, out, _ = run("evaluate", folder / "out", "--masks", folder / "gt")
    assert code == 0
    everything = total(expected.values())
    scores = everything.scores()
    row = next(line for line in out.splitlines() if line.startswith("│ overall"))
    assert all(f"{scores[name]:.4f}" in row for name in ("iou", "mcc", "boundary_iou_3px", "object_f1"))
    below_50 = next(line for line in out.splitlines() if line.startswith("│ below 50 m2"))
    assert f"{everything.objects.true[0]}" in below_50  # type: ignore[union-attr]
    assert "95 % of the time" in out
    code, out, _ = run("evaluate", folder / "out", "--masks", folder / "gt", "--pixels-only")
    assert code == 0
    assert "bound." not in out
    assert "Buildings by size" not in out
    code, out, _ = run("evaluate", folder / "out", "--masks", folder / "gt", "--pixels-only", "--json")
    assert not {"object_f1", "boundary_iou_3px", "objects"} & set(json.loads(out)["overall"])


@pytest.mark.parametrize(
    ("crs", "step"), [("EPSG:2277", 1.0), ("EPSG:4326", 2.75e-6), ("EPSG:3857", 0.36), ("EPSG:26914", 0.305)]
)
def test_the_size_of_a_building_is_right_in_feet_degrees_and_web_mercator(
    tmp_path: Path, mask_file: Write, crs: str, step: float
) -> None:
    """A square of 25 px is about 58 m2 everywhere here; one of 20 px 37 m2: measured on the ellipsoid."""
    from pyproj import Transformer

    centre = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(-97.7, 30.3)
    mask = np.zeros((100, 100), np.uint8)
    mask[10:35, 10:35] = mask[60:80, 60:80] = 255
    mask_file(tmp_path / "t.tif", mask, crs=crs, transform=(step, 0, centre[0], 0, -step, centre[1]))
    mask_file(tmp_path / "p.tif", mask, crs=crs, transform=(step, 0, centre[0], 0, -step, centre[1]))
    (result,) = evaluate_pairs(
        [Pair("x", tmp_path / "p.tif", tmp_path / "t.tif")], EvaluateOptions(details=True)
    ).results
    corners = [(centre[0] + a * step, centre[1] + b * step) for a, b in ((0, 0), (25, 0), (25, -25), (0, -25))]
    lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*zip(*corners, strict=True))
    area = abs(Geod(ellps="WGS84").polygon_area_perimeter(*lonlat)[0])
    assert 50 < area < 78
    assert area * 400 / 625 < 50
    assert result.objects is not None
    assert result.objects.true == (1, 1, 0, 0)


def test_without_a_place_sizes_are_unknown(tmp_path: Path, mask_file: Write, run: Run) -> None:
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
        for side in ("out", "gt"):
            mask_file(tmp_path / side / "x.tif", crs=None, transform=None)
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--allow-ungeoreferenced")
    assert code == 0
    assert "size unknown" in out


def test_probabilities_are_found_beside_the_masks(tmp_path: Path, mask_file: Write, run: Run) -> None:
    rng = np.random.default_rng(0)
    quanta = rng.integers(0, QUANTA + 1, (90, 70)).astype(np.uint8)
    truth = rng.random((90, 70)) < quanta / QUANTA
    quanta[:9, :9] = 255
    mask = np.where(quanta == 255, 255, quanta >= 100).astype(np.uint8)
    mask_file(tmp_path / "out/a/x.tif", mask, nodata=255)
    mask_file(tmp_path / "out/probability/a/x.tif", quanta, nodata=255)
    mask_file(tmp_path / "gt/a/x.tif", truth.astype(np.uint8))
    from aerialseg.evaluation.pairs import pair_predictions

    pairing = pair_predictions([tmp_path / "out"], [tmp_path / "gt"])
    report = evaluate_pairs(pairing.pairs, EvaluateOptions(details=True))
    assert report.histogram is not None
    assert report.histogram.confusion(100 / QUANTA) == report.overall
    assert evaluate_pairs(pairing.pairs).histogram is None
    mask_file(tmp_path / "out/probability/a/x.tif", quanta.astype(np.uint16), nodata=255)
    code, _, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt")
    assert code == 65
    assert "probability/a/x.tif: 1 bands of uint16, expected one band of uint8" in err
    mask_file(tmp_path / "out/probability/a/x.tif", quanta[:80], nodata=255)
    code, _, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt")
    assert code == 65
    assert "probability/a/x.tif: does not lie on the grid" in err


def test_labelled_ground_without_a_prediction_is_said(tmp_path: Path, mask_file: Write, run: Run) -> None:
    truth = houses(1, (100, 100))
    prediction = truth.copy()
    prediction[:, :30] = 255
    mask_file(tmp_path / "out/x.tif", prediction, nodata=255)
    mask_file(tmp_path / "gt/x.tif", truth)
    code, out, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--json")
    assert code == 0
    buildings = int((truth[:, :30] == 1).sum())
    line = (
        f"x: the prediction has no data on 30.00% of the labelled ground, {buildings:,} of these pixels true building"
    )
    assert line in err
    assert line in json.loads(out)["warnings"][0]
    mask_file(tmp_path / "out/x.tif", np.full((100, 100), 255, np.uint8), nodata=255)
    assert "x: nothing was counted" in run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt")[2]
    mask_file(tmp_path / "out/x.tif", truth, nodata=255)
    assert "warning" not in run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt")[2]


def test_intervals_are_percentiles_of_pooled_resamples() -> None:
    rng = np.random.default_rng(5)
    scenes = [Counts(Confusion(*(int(n) for n in rng.integers(1, 1000, 4)))) for _ in range(7)]
    found = bootstrap_intervals(scenes)
    assert found == bootstrap_intervals(scenes)
    draws = []
    other = np.random.default_rng(99)
    for _ in range(4000):  # other draws: the interval may not hang on the seed
        some = other.integers(0, 7, 7)
        tp, fp, fn = (sum(getattr(scenes[i].confusion, name) for i in some) for name in ("tp", "fp", "fn"))
        draws.append(tp / (tp + fp + fn))
    low, high = np.percentile(draws, [2.5, 97.5])
    assert found["iou"] == pytest.approx((low, high), abs=0.02)
    assert low < total(scenes).scores()["iou"] < high
    assert bootstrap_intervals(scenes[:1]) == {}
    assert "mcc" not in bootstrap_intervals([Counts(Confusion(tn=5))] * 3)


def test_numbers_and_back() -> None:
    counts = whole(houses(1, (80, 80)), houses(2, (80, 80)), 0.1)
    assert counts.with_numbers(counts.numbers()) == counts
    assert total([counts, counts]).numbers() == [2 * n for n in counts.numbers()]
    assert total([]) == Counts()
