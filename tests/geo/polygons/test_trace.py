"""Outlines traced strip by strip are the polygons that GDAL draws around 4-connected pixels of the whole mask."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize, shapes

from aerialseg.geo.opening import without_warnings
from aerialseg.geo.polygons.trace import Outlines, Tracer, find_corners


def traced(mask: np.ndarray, rows: int, values: np.ndarray | None = None) -> tuple[list[shapely.Polygon], np.ndarray]:
    """Trace a mask in strips of so many rows; return polygons in (col, row) and the sums of values and of ones."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    tables = np.zeros((2, height + 1, width + 1), dtype=np.int64)
    tables[:, 1:, 1:] = [
        np.cumsum(np.cumsum(t, 0), 1) for t in (mask if values is None else values, np.ones_like(mask))
    ]
    tracer, polygons, sums = Tracer(), [], []
    for row in range(0, height + 1, rows):
        last = min(row + rows, height + 1)
        found = tracer.add(find_corners(padded[row : last + 1], row, 0, (tables[0, row:last], tables[1, row:last])))
        polygons += polygons_of(found)
        sums.append(found.sums)
        assert [tuple(first) for first in found.first] == sorted(tuple(first) for first in found.first)
    return polygons, np.concatenate(sums, axis=1)


def polygons_of(found: Outlines) -> list[shapely.Polygon]:
    if not len(found):
        return []
    indices = np.repeat(np.arange(len(found.rings)), found.rings)
    rings = shapely.linearrings(found.points[:, ::-1].astype(float), indices=indices)
    return list(shapely.polygons(rings, indices=found.building))


def by_gdal(mask: np.ndarray) -> list[shapely.Geometry]:
    with without_warnings():
        found = [shapely.geometry.shape(shape) for shape, _ in shapes(mask.astype(np.uint8), mask=mask, connectivity=4)]
    return [shape if shape.is_valid else shapely.make_valid(shape) for shape in found]


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    density = draw(st.sampled_from([0.1, 0.4, 0.6, 0.8, 0.95]))
    return np.random.default_rng(draw(st.integers(0, 2**32))).random((height, width)) < density


@settings(max_examples=150, deadline=None)
@given(mask=masks(), rows=st.integers(1, 21))
def test_the_polygons_are_gdals_whatever_the_strips(mask: np.ndarray, rows: int) -> None:
    polygons, sums = traced(mask, rows)
    expected = by_gdal(mask)
    assert len(polygons) == len(expected)
    assert all(polygon.is_valid for polygon in polygons)
    tree = shapely.STRtree(expected)
    for polygon in polygons:
        assert any(expected[index].equals(polygon) for index in tree.query(polygon))
    assert [polygon.area for polygon in polygons] == sums[1].tolist()


@settings(max_examples=60, deadline=None)
@given(mask=masks(), rows=st.integers(1, 21), seed=st.integers(0, 2**32))
def test_sums_over_corners_are_sums_over_pixels(mask: np.ndarray, rows: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 255, mask.shape)
    polygons, sums = traced(mask, rows, values)
    for polygon, total in zip(polygons, sums[0].tolist(), strict=True):
        with without_warnings():
            inside = rasterize([polygon], out_shape=mask.shape).astype(bool)
        assert values[inside].sum() == total


def test_outer_rings_run_anticlockwise_on_a_map_and_holes_clockwise() -> None:
    mask = np.ones((5, 5), dtype=bool)
    mask[2, 2] = False
    ((polygon,), _) = traced(mask, 2)
    downwards = shapely.transform(polygon, lambda points: points * (1, -1))
    assert downwards.exterior.is_ccw
    assert not downwards.interiors[0].is_ccw


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_corner_joins_nothing_and_a_pinched_bay_is_a_hole(rows: int) -> None:
    diagonal, _ = traced(np.eye(3, dtype=bool), rows)
    assert [polygon.area for polygon in diagonal] == [1, 1, 1]
    bay = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], dtype=bool)
    ((polygon,), _) = traced(bay, rows)
    assert polygon.is_valid
    assert polygon.area == 13
    assert len(polygon.interiors) == 1


def test_nothing_is_traced_where_there_is_nothing() -> None:
    polygons, sums = traced(np.zeros((4, 5), dtype=bool), 3)
    assert polygons == []
    assert sums.shape == (2, 0)
