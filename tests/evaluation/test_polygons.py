"""Polygon measures whose values are known in closed form, and matching against an exhaustive assignment."""

from __future__ import annotations

import json
import math
from itertools import permutations
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pytest
import shapely
from html_pages import check
from pyproj import CRS
from shapely import affinity
from shapely.geometry import Polygon, box

from aerialseg.evaluation.polygons import match_polygons, polis, score_polygons, tangent_angle
from aerialseg.geo.vectors import read_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]

SQUARE = box(0, 0, 10, 10)
EMPTY = np.zeros((128, 128), np.uint8)
"""A mask on the default grid: polygons are judged where it has data."""


@pytest.mark.parametrize("d", [0.3, 1.0, 4.0])
def test_polis_of_a_shifted_square(d: float) -> None:
    """Along a side two corners of each are d away and two lie on the other's outline: 2 x 2d / 8."""
    assert polis(SQUARE, affinity.translate(SQUARE, d, 0)) == pytest.approx(d / 2)
    diagonal = (math.sqrt(2) * d + 2 * d + min(d, 10 - d)) / 4
    assert polis(SQUARE, affinity.translate(SQUARE, d, d)) == pytest.approx(diagonal)


def test_polis_is_symmetric_and_counts_each_corner_once() -> None:
    triangle = Polygon([(0, 0), (10, 0), (0, 7)])
    assert polis(SQUARE, triangle) == polis(triangle, SQUARE)
    assert polis(SQUARE, SQUARE) == 0.0
    # (0, 0) and (10, 0) lie on the triangle; (0, 10) is 3 away; (10, 10) lies off its long side 7x + 10y = 70
    corners = (3 + (70 + 100 - 70) / math.hypot(7, 10)) / 4
    assert polis(SQUARE, triangle) == pytest.approx(corners / 2)  # the triangle's corners all lie on the square


@pytest.mark.parametrize("degrees", [2, 5, 10])
def test_the_tangent_angle_of_a_turned_wall(degrees: float) -> None:
    """A long house turned a little: its walls deviate by just that, and corners are left out."""
    house = box(-40, -5, 40, 5)
    assert tangent_angle(house, house) == pytest.approx(0.0, abs=1e-6)
    turned = math.degrees(tangent_angle(affinity.rotate(house, degrees), house))
    assert turned == pytest.approx(degrees, abs=0.5)
    assert math.degrees(tangent_angle(affinity.translate(house, 3, 2), house)) == pytest.approx(0.0, abs=1e-3)


def test_the_tangent_angle_of_a_house_with_a_courtyard() -> None:
    house = box(0, 0, 40, 30).difference(box(10, 10, 30, 20))
    assert tangent_angle(house, house) == pytest.approx(0.0, abs=1e-6)
    tilted = box(0, 0, 40, 30).difference(affinity.rotate(box(10, 10, 30, 20), 8))
    assert 7 < math.degrees(tangent_angle(tilted, house)) < 60


@pytest.mark.parametrize("seed", range(15))
def test_matching_equals_the_best_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = np.array([box(12 * n, 0, 12 * n + 10, 10) for n in range(5)], dtype=object)
    predicted = np.array([affinity.translate(true[n % 5], *rng.normal(0, 2, 2)) for n in range(5)], dtype=object)

    def iou(a: Polygon, b: Polygon) -> float:
        return a.intersection(b).area / a.union(b).area

    most = max(sum(iou(predicted[i], true[j]) >= 0.5 for i, j in enumerate(order)) for order in permutations(range(5)))
    pairs = match_polygons(predicted, true)
    assert len(pairs) == most
    assert all(value == pytest.approx(iou(predicted[i], true[j])) for i, j, value in pairs)


GROUND = (CRS.from_epsg(32614), box(615000, 3346000, 618000, 3348000))


def write(path: Path, shapes: list[Polygon], crs: str = "EPSG:26914") -> Path:
    placed = [affinity.translate(shape, 616000, 3347000) for shape in shapes]
    gpd.GeoDataFrame(geometry=placed, crs="EPSG:26914").to_crs(crs).to_file(path)
    return path


@pytest.mark.parametrize("crs", ["EPSG:26914", "EPSG:4326", "EPSG:2277"])
def test_whole_files_in_any_unit(tmp_path: Path, crs: str) -> None:
    true = [affinity.translate(SQUARE, 30 * n, 0) for n in range(4)]
    spiky = shapely.segmentize(affinity.translate(SQUARE, 1, 0), 5.0)  # eight corners
    predicted = [affinity.translate(spiky, 30 * n, 0) for n in range(3)] + [box(500, 0, 510, 10)]
    drawn, known = read_layer(write(tmp_path / "p.gpkg", predicted, crs)), read_layer(write(tmp_path / "t.gpkg", true))
    found = score_polygons(drawn, [known], *GROUND)
    assert (found.true, found.predicted, found.matched) == (4, 4, 3)
    assert (found.precision, found.recall, found.f1) == (0.75, 0.75, 0.75)
    assert found.iou == pytest.approx(90 / 110, abs=0.002)
    assert found.c_iou == pytest.approx(90 / 110 * (1 - 4 / 12), abs=0.002)
    assert found.vertex_ratio == 2.0
    # eight corners: (11, 0..10) three times 1 away; (1, 5) once; (6, 0) and (6, 10) and (1, 0), (1, 10) on the outline
    assert found.polis_m == pytest.approx((4 / 8 + 2 / 4) / 2, abs=0.005)


def test_files_without_a_match(tmp_path: Path) -> None:
    predicted, true = write(tmp_path / "p.gpkg", [box(500, 0, 510, 10)]), write(tmp_path / "t.gpkg", [SQUARE])
    found = score_polygons(read_layer(predicted), [read_layer(true)], *GROUND).to_json()
    assert (found["matched"], found["recall"], found["polis_m"]) == (0, 0.0, None)


def test_a_least_area_counts_for_true_and_predicted_polygons_alike(tmp_path: Path, mask_file: Write, run: Run) -> None:
    write(tmp_path / "p.gpkg", [box(5, -20, 15, -10), box(20, -11, 21, -10)])
    write(tmp_path / "t.gpkg", [box(5, -20, 15, -10), box(25, -12, 26, -10), box(25, -18, 26, -16)])
    mask_file(tmp_path / "out/x.tif", EMPTY, nodata=255)
    options = ("evaluate", tmp_path / "out", "--masks", tmp_path / "t.gpkg", "--json", "--min-area-m2", "4")
    code, out, err = run(*options, "--polygons", tmp_path / "p.gpkg")
    assert code == 0, err
    found = json.loads(out)["polygons"]
    assert (found["true"], found["predicted"], found["matched"], found["f1"]) == (1, 1, 1, 1.0)
    code, _, err = run(*options)
    assert code == 2
    assert "--min-area-m2 is about --polygons" in err


def test_the_command_takes_polygons_beside_masks(tmp_path: Path, mask_file: Write, run: Run) -> None:
    write(tmp_path / "p.gpkg", [box(5, -20, 15, -10), box(20.5, -20, 30.5, -10)])
    write(tmp_path / "t.gpkg", [box(5, -20, 15, -10), box(20, -20, 30, -10)])
    mask_file(tmp_path / "out/x.tif", EMPTY, nodata=255)
    options = ("evaluate", tmp_path / "out", "--masks", tmp_path / "t.gpkg", "--polygons", tmp_path / "p.gpkg")
    code, out, err = run(*options, "--json")
    assert code == 0, err
    found = json.loads(out)["polygons"]
    assert found["matched"] == 2
    assert found["polis_m"] == pytest.approx(0.125, abs=0.001)
    code, out, _ = run(*options)
    assert code == 0
    assert "PoLiS" in out
    mask_file(tmp_path / "gt/x.tif")
    code, _, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--polygons", tmp_path / "p.gpkg")
    assert code == 2
    assert "--polygons are judged by true polygons" in err


def place(col: float, row: float, width: float, height: float) -> Polygon:
    """A rectangle of the default grid, in pixels, as `write` takes shapes."""
    return box(0.3 * col, -0.3 * (row + height), 0.3 * (col + width), -0.3 * row)


@pytest.mark.parametrize("crs", ["EPSG:26914", "EPSG:4326"])
def test_polygons_off_the_known_ground_are_no_misses(tmp_path: Path, mask_file: Write, run: Run, crs: str) -> None:
    """Two scenes that touch, with nodata in the west; houses inside, over the seam, cut, and beyond."""
    west = np.zeros((128, 128), np.uint8)
    west[:, :40] = 255
    mask_file(tmp_path / "out/west.tif", west, nodata=255)
    mask_file(tmp_path / "out/east.tif", west * 0, nodata=255, transform=(0.3, 0, 616038.4000001, 0, -0.3, 3347000))
    inside, over_the_seam, missed = place(50, 20, 20, 20), place(120, 60, 16, 20), place(170, 20, 20, 20)
    in_nodata, beyond = place(5, 20, 20, 20), place(50, 300, 20, 20)
    cut, mostly_out = place(30, 80, 40, 20), place(248, 80, 40, 20)
    true = [inside, over_the_seam, missed, in_nodata, beyond, cut, mostly_out]
    pieces = [place(40, 80, 30, 20), place(248, 80, 8, 20)]  # what a mask can show of the last two
    write(tmp_path / "t.gpkg", true, crs)
    write(tmp_path / "p.gpkg", [inside, over_the_seam, *pieces, place(200, 100, 9, 9)], crs)
    options = ("evaluate", tmp_path / "out", "--masks", tmp_path / "t.gpkg", "--polygons", tmp_path / "p.gpkg")
    code, out, err = run(*options, "--json")
    assert code == 0, err
    found = json.loads(out)["polygons"]
    assert (found["true"], found["predicted"], found["matched"]) == (3, 3, 2)
    assert (found["true_left_out"], found["predicted_left_out"]) == (4, 2)
    assert found["polis_m"] == pytest.approx(0, abs=1e-3)
    gpd.GeoDataFrame(geometry=[box(616014, 3346950, 616048, 3347010)], crs="EPSG:26914").to_file(tmp_path / "a.gpkg")
    code, out, err = run(*options, "--json", "--labelled-area", tmp_path / "a.gpkg")
    assert code == 0, err
    found = json.loads(out)["polygons"]
    assert (found["true"], found["matched"], found["true_left_out"]) == (2, 2, 5)
    code, out, err = run(*options, "--report", tmp_path / "r.html")
    assert "4 true and 2 predicted ones lie not wholly on known ground" in out
    assert "4 true and 2 predicted polygons do not lie wholly" in check((tmp_path / "r.html").read_text()).text


def test_no_predicted_polygon_is_a_recall_of_zero(tmp_path: Path, mask_file: Write, run: Run) -> None:
    gpd.GeoDataFrame({"id": []}, geometry=[], crs="EPSG:26914").to_file(tmp_path / "p.gpkg", geometry_type="Polygon")
    write(tmp_path / "t.gpkg", [place(5, 5, 20, 20)])
    mask_file(tmp_path / "out/x.tif", EMPTY, nodata=255)
    options = ("evaluate", tmp_path / "out", "--masks", tmp_path / "t.gpkg", "--polygons", tmp_path / "p.gpkg")
    code, out, err = run(*options, "--json", "--report", tmp_path / "r.html")
    assert code == 0, err
    found = json.loads(out)["polygons"]
    assert (found["true"], found["predicted"], found["recall"], found["precision"]) == (1, 0, 0.0, None)
    assert "nan" not in check((tmp_path / "r.html").read_text()).text
    assert "nan" not in run(*options)[1]


def test_what_a_file_of_polygons_is_warned_about_is_said(tmp_path: Path, mask_file: Write, run: Run) -> None:
    bowtie = Polygon([(10, -10), (20, -20), (20, -10), (10, -20)])
    write(tmp_path / "p.gpkg", [bowtie, place(5, 5, 20, 20)])
    write(tmp_path / "t.gpkg", [place(5, 5, 20, 20)])
    mask_file(tmp_path / "out/x.tif", EMPTY, nodata=255)
    options = ("evaluate", tmp_path / "out", "--masks", tmp_path / "t.gpkg", "--polygons", tmp_path / "p.gpkg")
    code, out, err = run(*options, "--json")
    assert code == 0, err
    assert "p.gpkg: 1 invalid polygons were repaired" in err
    assert any("repaired" in line for line in json.loads(out)["warnings"])


def test_polygons_of_several_true_files(tmp_path: Path, mask_file: Write, run: Run) -> None:
    houses = [place(5, 5, 20, 20), place(50, 5, 20, 20)]
    write(tmp_path / "a.gpkg", houses[:1])
    write(tmp_path / "b.geojson", houses[1:], "EPSG:4326")
    write(tmp_path / "p.gpkg", houses)
    mask_file(tmp_path / "out/x.tif", EMPTY, nodata=255)
    masks = ("--masks", tmp_path / "a.gpkg", "--masks", tmp_path / "b.geojson")
    code, out, err = run("evaluate", tmp_path / "out", *masks, "--polygons", tmp_path / "p.gpkg", "--json")
    assert code == 0, err
    assert json.loads(out)["polygons"]["matched"] == 2


def test_polygons_in_a_crs_that_leads_nowhere_are_named(tmp_path: Path, mask_file: Write, run: Run) -> None:
    site = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    gpd.GeoDataFrame(geometry=[box(0, 0, 9, 9)], crs=site).to_file(tmp_path / "p.gpkg")
    write(tmp_path / "t.gpkg", [place(5, 5, 20, 20)])
    mask_file(tmp_path / "out/x.tif", EMPTY, nodata=255)
    options = ("evaluate", tmp_path / "out", "--masks", tmp_path / "t.gpkg", "--polygons", tmp_path / "p.gpkg")
    code, out, err = run(*options)
    assert (code, out) == (65, "")
    assert "p.gpkg: no way from its CRS to metres" in err


def test_a_run_without_any_data_has_no_polygons_to_judge(tmp_path: Path, mask_file: Write, run: Run) -> None:
    write(tmp_path / "t.gpkg", [place(5, 5, 20, 20)])
    mask_file(tmp_path / "out/x.tif", EMPTY + np.uint8(255), nodata=255)
    options = ("evaluate", tmp_path / "out", "--masks", tmp_path / "t.gpkg", "--polygons", tmp_path / "t.gpkg")
    code, out, err = run(*options, "--json")
    assert code == 0, err
    found = json.loads(out)["polygons"]
    assert (found["true"], found["true_left_out"], found["f1"]) == (0, 1, None)
