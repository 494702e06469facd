"""Where grids lie, against pyproj and shapely."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import shapely.geometry
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS

from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.project import WGS84, around, bounds_in, crs_code, footprint, outline

UTM = CRS.from_epsg(26914)
CUSTOM = CRS.from_proj4("+proj=tmerc +lat_0=47.5 +lon_0=16.3 +k=0.9999 +x_0=1000 +y_0=-5000000 +ellps=bessel +units=m")
GRIDS = {
    "upright": Affine(0.3, 0, 616000, 0, -0.3, 3347000),
    "south-up": Affine(0.3, 0, 616000, 0, 0.3, 3347000),
    "mirrored": Affine(-0.3, 0, 616000, 0, -0.3, 3347000),
    "rotated": Affine(0.2, 0.1, 616000, 0.1, -0.2, 3347000),
    "large": Affine(30, 0, 416000, 0, -30, 3347000),
}


@pytest.mark.parametrize("transform", GRIDS.values(), ids=GRIDS)
def test_an_outline_in_degrees_is_the_scenes_ground(transform: Affine) -> None:
    box = GeoBox(5000, 4000, transform, UTM)
    ring = outline(box, WGS84)
    assert ring is not None
    assert ring[0] == ring[-1]
    assert shapely.LinearRing(ring).is_ccw
    way = Transformer.from_crs(26914, 4326, always_xy=True)
    dense = np.linspace(0, 1, 200)
    edges = [(0 * dense, dense), (dense, 0 * dense + 1), (0 * dense + 1, dense), (dense, 0 * dense)]
    polygon = shapely.Polygon(ring)
    for x, y in edges:
        t = transform
        across, down = x * 4000, y * 5000
        lon, lat = way.transform(t.a * across + t.b * down + t.c, t.d * across + t.e * down + t.f)
        off = shapely.distance(polygon.exterior, shapely.points(lon, lat)).max()
        assert off < 1e-4 * np.hypot(*np.ptp(np.array(ring), axis=0))


def test_the_own_crs_is_exact_and_bounds_are_the_rings(tmp_path: object) -> None:
    box = GeoBox(100, 200, GRIDS["upright"], UTM)
    assert bounds_in(box, UTM) == tuple(box.bounds)
    assert len(outline(box, UTM) or ()) == 5
    assert around([]) is None
    assert around([(0, 1, 2, 3), (-1, 2, 1, 9)]) == (-1, 1, 2, 9)


def test_what_has_no_place_has_no_outline() -> None:
    assert outline(GeoBox(10, 10, Affine.identity(), UTM), WGS84) is None
    assert outline(GeoBox(10, 10, GRIDS["upright"], None), WGS84) is None
    assert outline(GeoBox(10, 10, Affine(0, 0, 1, 0, 0, 1), UTM), WGS84) is None
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]')
    assert outline(GeoBox(10, 10, GRIDS["upright"], local), WGS84) is None


@pytest.mark.parametrize(
    ("crs", "code"), [(UTM, "EPSG:26914"), (WGS84, "EPSG:4326"), (CRS.from_epsg(2277), "EPSG:2277"), (CUSTOM, None)]
)
def test_only_a_crs_that_is_its_code_has_one(crs: CRS, code: str | None) -> None:
    assert crs_code(crs) == code
    assert crs_code(CRS.from_wkt(crs.to_wkt())) == code


@pytest.mark.parametrize(
    ("crs", "west_to_east", "expected"),
    [
        (3857, (-20037508.34, 20037508.34), (-180, 180)),  # the whole earth
        (3857, (-15028131, 15028131), (-135, 135)),  # wider than half of it
        (4326, (-150, 120), (-150, 120)),
        (4326, (170, 190), (170, -170)),
    ],
)
def test_footprints_of_wide_scenes(crs: int, west_to_east: tuple[float, float], expected: tuple[float, float]) -> None:
    west, east = west_to_east
    side = (east - west) / 96
    shape, bounds = footprint(GeoBox(48, 96, Affine(side, 0, west, 0, -side / 10, side * 2), CRS.from_epsg(crs)))
    assert bounds is not None and (bounds[0], bounds[2]) == pytest.approx(expected, abs=1e-4)
    assert shape is not None and shapely.geometry.shape(shape).is_valid


def test_a_scene_around_a_pole_has_no_outline_in_degrees() -> None:
    """EPSG:3031 is centred on the south pole; a scene beside it has one."""
    around_it = GeoBox(100, 100, Affine(20000, 0, -1e6, 0, -20000, 1e6), CRS.from_epsg(3031))
    assert footprint(around_it) == (None, None)
    beside = GeoBox(100, 100, Affine(2000, 0, 1e6, 0, -2000, 1e6), CRS.from_epsg(3031))
    assert footprint(beside)[0] is not None
