"""Grids: ground sample distance against pyproj, windows and bounds against rasterio."""

from __future__ import annotations

import math
import pickle

import pytest
import rasterio.windows
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import array_bounds
from rasterio.windows import Window

from aerialseg.geo.geobox import GeoBox

UTM = CRS.from_epsg(26914)
LOCAL_FEET = 'LOCAL_CS["site",UNIT["US survey foot",0.3048006]]'
ROTATED = Affine.translation(6e5, 3e6) @ Affine.rotation(31) @ Affine.scale(0.3, -0.4)


def geodesic_gsd(box: GeoBox) -> float:
    """Measure the centre pixel's sides on the ellipsoid with pyproj."""
    from pyproj import Geod, Transformer

    to_degrees = Transformer.from_crs(box.crs.to_wkt(), "EPSG:4326", always_xy=True)
    col, row = box.width / 2, box.height / 2
    corners = [to_degrees.transform(*(box.transform @ place)) for place in ((col, row), (col + 1, row), (col, row + 1))]
    geod = Geod(ellps="WGS84")
    sides = [geod.inv(*corners[0], *corner)[2] for corner in corners[1:]]
    return math.sqrt(sides[0] * sides[1])


@pytest.mark.parametrize("latitude", [0.0, 27.63, -48.2, 70.0])
def test_degrees_are_measured_on_the_ellipsoid(latitude: float) -> None:
    box = GeoBox(300, 400, Affine(1.3e-6, 0, 85.5, 0, -1.1e-6, latitude), CRS.from_epsg(4326))
    assert box.gsd_m == pytest.approx(geodesic_gsd(box), rel=1e-4)


def test_web_mercator_metres_are_not_taken_for_metres() -> None:
    box = GeoBox(256, 256, Affine(0.3, 0, 1.8e6, 0, -0.3, 6.14e6), CRS.from_epsg(3857))
    assert box.gsd_m == pytest.approx(geodesic_gsd(box), rel=1e-4)
    assert box.gsd_m == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (GeoBox(100, 100, Affine(0.3, 0, 616000, 0, -0.3, 3347000), UTM), 0.3),
        (GeoBox(100, 100, ROTATED, UTM), math.sqrt(0.12)),
        (GeoBox(100, 100, Affine(0.3, 0, 6e5, 0, 0.3, 3e6), UTM), 0.3),
        (GeoBox(100, 100, Affine(1, 0, 3.1e6, 0, -1, 10.1e6), CRS.from_epsg(2277)), 0.3048006096),
        (GeoBox(100, 100, Affine(0.5, 0, 0, 0, -0.5, 9), CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')), 0.5),
        (GeoBox(100, 100, Affine(1, 0, 0, 0, -1, 9), CRS.from_wkt(LOCAL_FEET)), 0.3048),
        (GeoBox(100, 100, Affine(0.3, 0, 6e5, 0, -0.3, 3e6), None), None),
        (GeoBox(100, 100, Affine.identity(), UTM), None),
    ],
)  # fmt: skip
def test_ground_sample_distance_is_in_metres_whatever_the_unit(box: GeoBox, expected: float | None) -> None:
    assert box.gsd_m == (None if expected is None else pytest.approx(expected, rel=1e-5))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:rasterio")
@pytest.mark.parametrize("transform", [Affine(0.3, 0, 6e5, 0, -0.3, 3e6), ROTATED, Affine(0.3, 0, 6e5, 0, 0.3, 3e6)])
def test_a_windows_grid_is_rasterios(transform: Affine) -> None:
    box = GeoBox(200, 300, transform, UTM)
    window = Window(17, 40, 100, 64)
    inside = box.window_box(window)
    assert (inside.height, inside.width, inside.crs) == (64, 100, UTM)
    assert tuple(inside.transform) == pytest.approx(tuple(rasterio.windows.transform(window, transform)))
    assert box.offset_to(inside) == pytest.approx((40, 17))
    assert inside.offset_to(box) == pytest.approx((-40, -17))


def test_bounds_hold_all_four_corners() -> None:
    upright = GeoBox(200, 300, Affine(0.3, 0, 6e5, 0, -0.3, 3e6), UTM)
    assert tuple(upright.bounds) == pytest.approx(array_bounds(200, 300, upright.transform))
    turned = GeoBox(200, 300, ROTATED, UTM).bounds
    corners = [ROTATED @ corner for corner in ((0, 0), (300, 0), (0, 200), (300, 200))]
    assert all(turned.left <= x <= turned.right and turned.bottom <= y <= turned.top for x, y in corners)
    assert turned.right - turned.left == pytest.approx(
        300 * 0.3 * math.cos(0.541) + 200 * 0.4 * math.sin(0.541), rel=1e-3
    )


def test_a_grid_without_transform_keeps_the_identity_in_its_windows() -> None:
    box = GeoBox(200, 300, Affine.identity(), None, ((10.0, 20.0, 1.0, 2.0, 0.0, "1", ""),), UTM)
    inside = box.window_box(Window(15, 5, 50, 50))
    assert inside.transform == Affine.identity()
    assert inside.gcps[0][:4] == (5, 5, 1, 2)


def test_grids_compare_hash_and_travel() -> None:
    box = GeoBox(200, 300, ROTATED, UTM, ((0.0, 0.0, 1.0, 2.0, 0.0, "1", ""),), UTM)
    assert pickle.loads(pickle.dumps(box)) == box
    assert len({box, pickle.loads(pickle.dumps(box))}) == 1
    assert box.describe().startswith("200x300 px at (600000, 3000000)")
    assert "EPSG:26914" in box.describe()
