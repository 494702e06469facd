"""Square metres in any CRS, and outlines that leave the pixels' edges without losing a building."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import CRS, Transformer

from aerialseg.errors import UsageError
from aerialseg.geo.polygons import shape
from aerialseg.geo.polygons.polygonize import BuildingsReport, MaskLayer, PolygonOptions, write_buildings
from aerialseg.geo.polygons.shape import regularise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

METRES = (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)
FEET = (1.0, 0.0, 2300000.0, 0.0, -1.0, 10000000.0)
DEGREES = (1.356e-6, 0.0, 85.5, 0.0, -1.2e-6, 27.6)
"""Squares on the ground, 0.13 m, at that latitude."""
MERCATOR = (0.5, 0.0, 1300000.0, 0.0, -0.5, 6700000.0)
FOOT = 1200 / 3937
"""A US survey foot in metres."""


def blocks(count: int = 3) -> np.ndarray:
    """Return a mask of squares of 10, 20, 30 ... pixels."""
    mask = np.zeros((10 * count + 10, 70 * count), np.uint8)
    for number in range(count):
        mask[5 : 15 + 10 * number, 60 * number + 5 : 60 * number + 15 + 10 * number] = 1
    return mask


def slanted(turns: float = 0.3, size: int = 200, *, courtyard: bool = True) -> np.ndarray:
    """Return a mask of one turned rectangle of 120 x 60 pixels, with a turned courtyard."""
    rows, cols = np.mgrid[:size, :size] - size / 2
    along, across = cols * np.cos(turns) + rows * np.sin(turns), rows * np.cos(turns) - cols * np.sin(turns)
    inside = (np.abs(along) < 60) & (np.abs(across) < 30)
    if courtyard:
        inside &= ~((np.abs(along) < 30) & (np.abs(across) < 12))
    return inside.astype(np.uint8)


def write(
    scene_file: Callable[..., Path], folder: Path, mask: np.ndarray, options: PolygonOptions | None = None, **place: Any
) -> tuple[BuildingsReport, geopandas.GeoDataFrame]:
    path = scene_file(folder / "m.tif", mask, **place)
    report = write_buildings([MaskLayer("m", path)], folder / "b.gpkg", options, overwrite=True)
    return report, geopandas.read_file(folder / "b.gpkg", layer="buildings")


def true_areas(found: geopandas.GeoDataFrame) -> np.ndarray:
    """Return the areas in an equal-area projection around the polygons."""
    lon, lat = found.to_crs(4326).union_all().centroid.coords[0]
    return found.to_crs(f"+proj=laea +lat_0={lat} +lon_0={lon} +datum=WGS84").area.to_numpy()


@pytest.mark.parametrize(
    ("crs", "transform", "tolerance"),
    [
        ("EPSG:26914", METRES, 1e-3),
        ("EPSG:2277", FEET, 1e-3),
        ("EPSG:4326", DEGREES, 1e-6),
        ("EPSG:3857", MERCATOR, 1e-6),
    ],
    ids=["metres", "us-survey-feet", "degrees", "web-mercator"],
)
def test_areas_are_square_metres_on_the_ground(
    tmp_path: Path, scene_file: Callable[..., Path], crs: str, transform: tuple[float, ...], tolerance: float
) -> None:
    report, found = write(scene_file, tmp_path, blocks(), crs=crs, transform=transform)
    expected = true_areas(found)  # a projection's own scale, as 0.9996 in UTM, is not corrected for
    assert found.area_m2.to_numpy() == pytest.approx(expected, rel=tolerance, abs=6e-4)
    middle = float(np.sqrt(expected[0] * expected[1]))
    report, found = write(scene_file, tmp_path, blocks(), PolygonOptions(middle), crs=crs, transform=transform)
    assert (report.kept, report.removed) == (2, 1)
    assert found.area_m2.min() > middle


def test_areas_in_a_crs_nobody_knows_are_those_of_its_plane(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    local = 'LOCAL_CS["site grid",UNIT["US survey foot",0.304800609601219],AXIS["x",EAST],AXIS["y",NORTH]]'
    _, found = write(scene_file, tmp_path, blocks(1), crs=local, transform=FEET)
    assert found.area_m2.tolist() == [pytest.approx(100 * FOOT**2, abs=6e-4)]


def test_small_means_small_before_anything_else_is_done(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    """A plus of five pixels: simplified it would be smaller than asked for, and is kept."""
    plus = np.zeros((7, 7), np.uint8)
    plus[2:5, 3] = plus[3, 2:5] = 1
    options = PolygonOptions(min_area_m2=5 * 0.09, simplify_m=0.29)
    report, found = write(scene_file, tmp_path, plus, options, crs="EPSG:26914", transform=METRES)
    assert report.kept == 1
    assert found.area_m2[0] == pytest.approx(found.area[0], abs=6e-4)


def specks() -> np.ndarray:
    """Return a mask of a square of 20 x 20 pixels with a hole of 2 x 2 and one of 7 x 7, one of 5 x 5 and a pixel."""
    mask = np.zeros((40, 60), np.uint8)
    mask[5:25, 5:25] = mask[5:10, 30:35] = mask[30, 30] = 1
    mask[7:9, 7:9] = mask[12:19, 12:19] = 0
    return mask


@pytest.mark.parametrize(
    ("gsd", "floor", "kept", "area"), [(0.3, 4.0, 1, 351 * 0.09), (0.5, 4.0, 2, 351 * 0.25), (2.0, 36.0, 2, 351 * 4.0)]
)
def test_specks_and_small_holes_are_left_out_by_four_square_metres_or_nine_pixels(
    tmp_path: Path, scene_file: Callable[..., Path], gsd: float, floor: float, kept: int, area: float
) -> None:
    place = {"crs": "EPSG:26914", "transform": (gsd, 0.0, 616000.0, 0.0, -gsd, 3347000.0)}
    report, found = write(scene_file, tmp_path, specks(), PolygonOptions(min_area_m2=None), **place)
    assert (report.kept, report.removed, report.floors_m2) == (kept, 3 - kept, (pytest.approx(floor),))
    assert found.area_m2[0] == pytest.approx(area, abs=6e-4)
    assert shapely.get_num_interior_rings(found.geometry[0]) == 1
    assert found.area_m2[0] == pytest.approx(found.geometry[0].area, abs=6e-4)
    counted = "1 building" if kept == 1 else "2 buildings"
    said = f"{counted}, {3 - kept} smaller than {floor:g} m2 left out (--min-area-m2 0 keeps them)"
    assert report.line() == f"{tmp_path / 'b.gpkg'}: {said}"
    everything, found = write(scene_file, tmp_path, specks(), **place)
    assert (everything.kept, everything.removed) == (3, 0)
    assert shapely.get_num_interior_rings(found.geometry[0]) == 2


@pytest.mark.parametrize(
    ("crs", "transform", "metre"),
    [("EPSG:26914", METRES, None), ("EPSG:2277", FEET, None), ("EPSG:4326", DEGREES, 32645)],
    ids=["metres", "us-survey-feet", "degrees"],
)
def test_simplifying_stays_within_metres_and_smooths_stairs(
    tmp_path: Path, scene_file: Callable[..., Path], crs: str, transform: tuple[float, ...], metre: int | None
) -> None:
    _, before = write(scene_file, tmp_path, slanted(), crs=crs, transform=transform)
    _, after = write(scene_file, tmp_path, slanted(), PolygonOptions(simplify_m=0.4), crs=crs, transform=transform)
    if metre is not None:
        before, after = before.to_crs(metre), after.to_crs(metre)
    unit = FOOT if crs == "EPSG:2277" else 1.0
    distance = before.geometry[0].boundary.hausdorff_distance(after.geometry[0].boundary) * unit
    assert 0.05 < distance < 0.4 * 1.001
    assert shapely.get_num_coordinates(after.geometry[0]) < shapely.get_num_coordinates(before.geometry[0]) / 5
    assert len(after.geometry[0].interiors) == 1


def test_what_is_smaller_than_the_tolerance_keeps_its_shape(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    dots = np.zeros((9, 9), np.uint8)
    dots[2, 2] = dots[5:7, 5] = 1
    place = {"crs": "EPSG:26914", "transform": METRES}
    _, found = write(scene_file, tmp_path, dots, PolygonOptions(simplify_m=5), **place)
    assert found.area.tolist() == pytest.approx([0.09, 0.18])


@pytest.mark.parametrize(
    ("crs", "transform"), [("EPSG:26914", METRES), ("EPSG:2277", FEET), ("EPSG:4326", DEGREES)], ids=["m", "ft", "deg"]
)
def test_regularised_walls_meet_at_right_angles_in_any_crs(
    tmp_path: Path, scene_file: Callable[..., Path], crs: str, transform: tuple[float, ...]
) -> None:
    mask = slanted(courtyard=False)
    report, found = write(scene_file, tmp_path, mask, PolygonOptions(regularise=True), crs=crs, transform=transform)
    _, raw = write(scene_file, tmp_path, mask, crs=crs, transform=transform)
    assert (report.kept, report.unregularised) == (1, 0)
    if crs == "EPSG:4326":
        found, raw = found.to_crs(32645), raw.to_crs(32645)
    corners = shapely.get_coordinates(found.geometry[0])
    assert len(corners) == 5, "a rectangle"
    sides = np.diff(corners, axis=0)
    turns = np.degrees(np.arctan2(sides[:, 1], sides[:, 0])) % 90
    assert np.ptp(np.minimum(turns, 90 - turns)) < 0.5
    shared = found.geometry[0].intersection(raw.geometry[0]).area
    assert shared / found.geometry[0].union(raw.geometry[0]).area > 0.95
    assert found.area_m2[0] == pytest.approx(true_areas(found.to_crs(4326))[0], rel=1e-3)


def test_regularising_keeps_courtyards_and_never_loses_a_building(
    tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    place = {"crs": "EPSG:26914", "transform": METRES}
    speckled = slanted()
    speckled[95:98, 45:48] = 0
    report, found = write(scene_file, tmp_path, speckled, PolygonOptions(regularise=True), **place)
    assert report.unregularised == 0
    assert len(found.geometry[0].interiors) == 1, "the courtyard, not nine pixels"
    sides = [np.diff(shapely.get_coordinates(ring), axis=0) for ring in shapely.get_rings(found.geometry[0])]
    angles = np.degrees(np.arctan2(*np.concatenate(sides).T)) % 90
    assert np.ptp((angles - angles[0] + 45) % 90) < 3, "its walls are parallel to the outer ones"
    rng = np.random.default_rng(0)
    mask = (rng.random((60, 60)) < 0.55).astype(np.uint8)
    _, raw = write(scene_file, tmp_path, mask, **place)
    report, found = write(scene_file, tmp_path, mask, PolygonOptions(regularise=True), **place)
    assert report.kept == len(found) == len(raw)
    assert found.id.tolist() == raw.id.tolist()
    assert found.is_valid.all()
    assert (found.geom_type == "Polygon").all()
    shared = found.intersection(raw.geometry).area / found.union(raw.geometry).area
    assert shared.min() > 0.5, "0.7 to the outline with its specks closed"
    same = found.geometry.geom_equals_exact(raw.geometry, 1e-6)
    assert 0 < report.unregularised <= same.sum()


@pytest.mark.parametrize("fault", ["raises", "drops", "splits", "shrinks", "empties"])
def test_what_the_regulariser_breaks_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    shapes = np.array([shapely.box(20 * n, 0, 20 * n + 10, 10) for n in range(5)], dtype=object)

    def call(given: np.ndarray, gsd_m: float) -> tuple[np.ndarray, np.ndarray]:
        made, index = shapely.buffer(given, 0.5, join_style="mitre"), np.arange(len(given))
        odd = np.flatnonzero(shapely.bounds(given)[:, 0] == 40)
        if len(odd) and fault == "raises":
            raise IndexError("list index out of range")
        if fault == "drops":
            return np.delete(made, odd), np.delete(index, odd)
        if fault == "splits":
            return np.append(made, made[odd]), np.append(index, odd)
        made[odd] = shapely.Polygon() if fault == "empties" else shapely.buffer(made[odd], -1.5)
        return made, index

    monkeypatch.setattr(shape, "_call", call)
    ((after, failed),) = regularise(shapes, 0.3)
    assert failed == 1
    assert shapely.area(after).tolist() == [121, 121, 100, 121, 121]


def test_regularising_starts_no_processes(
    tmp_path: Path, scene_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("a process was started")

    for name in ("Pool", "Process"):
        monkeypatch.setattr(multiprocessing, name, refuse)
    monkeypatch.setattr("buildingregulariser.coordinator.Pool", refuse)
    mask = slanted(courtyard=False)
    report, _ = write(scene_file, tmp_path, mask, PolygonOptions(regularise=True), crs="EPSG:26914", transform=METRES)
    assert (report.kept, report.unregularised) == (1, 0)


def test_reprojected_buildings_lie_where_the_pixels_lie(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    place = {"crs": "EPSG:26914", "transform": METRES}
    _, native = write(scene_file, tmp_path, slanted(), **place)
    _, found = write(scene_file, tmp_path, slanted(), PolygonOptions(crs="EPSG:3857"), **place)
    assert found.crs.to_epsg() == 3857
    way = Transformer.from_crs(CRS.from_epsg(3857), CRS.from_epsg(26914), always_xy=True)
    back = shapely.transform(found.geometry[0], way.transform, interleaved=False)
    assert back.equals_exact(native.geometry[0], 1e-6)
    assert found.area_m2.tolist() == native.area_m2.tolist(), "square metres on the ground, not of the projection"


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_options_that_mean_nothing_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="--min-area-m2"):
        PolygonOptions(min_area_m2=value)
    with pytest.raises(UsageError, match="--simplify"):
        PolygonOptions(simplify_m=value)
