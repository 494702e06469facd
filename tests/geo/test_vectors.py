"""Polygons on a raster's grid, against points in polygons at pixel centres and against gdal_rasterize."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.windows import Window

from aerialseg.errors import BadDataError, NoInputError
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.vector_files import DRIVERS, is_vector
from aerialseg.geo.vectors import datum_notes, overlay, read_layer, read_layers

if TYPE_CHECKING:
    from collections.abc import Callable

UTM = "EPSG:26914"
NORTH_UP = Affine(0.3, 0, 616000, 0, -0.3, 3347000)
GRIDS = {
    "north up": NORTH_UP,
    "south up": Affine(0.3, 0, 616000, 0, 0.3, 3346970),
    "rotated": NORTH_UP @ Affine.rotation(30),
    "not square": Affine(0.3, 0, 616000, 0, -0.5, 3347000),
}


def box(transform: Affine = NORTH_UP, height: int = 80, width: int = 100, crs: str | None = UTM) -> GeoBox:
    return GeoBox(height, width, transform, None if crs is None else CRS.from_user_input(crs))


def random_polygons(grid: GeoBox, seed: int = 0, count: int = 12) -> list[shapely.Polygon]:
    """Draw triangles on the ground of a grid, some of them over its edges."""
    points = np.random.default_rng(seed).uniform(-0.2, 1.2, (count, 3, 2)) * (grid.width, grid.height)
    return [shapely.Polygon([grid.transform @ tuple(corner) for corner in triangle]) for triangle in points]


def write(path: Path, shapes: Any, crs: str | None = UTM, **columns: Any) -> Path:
    """Write shapes given in EPSG:26914 to a vector file in `crs`."""
    shapes = np.array(shapes, dtype=object)
    if crs not in (None, UTM):
        to = Transformer.from_crs(UTM, crs, always_xy=True).transform
        shapes = shapely.transform(shapes, to, interleaved=False)
    values = {"kind": np.array(["house"] * len(shapes), dtype=object), **columns}
    if path.suffix == ".parquet":
        return write_parquet(path, shapes, crs, values)
    types = {shape.geom_type for shape in shapes if shape is not None}
    options = {"RFC7946": "YES"} if path.suffix == ".geojson" else {}
    pyogrio.raw.write(
        path, shapely.to_wkb(shapes), list(values.values()), list(values), driver=DRIVERS[path.suffix], crs=crs,
        geometry_type=types.pop() if len(types) == 1 else "Unknown", **options,
    )  # fmt: skip
    return path


def write_parquet(path: Path, shapes: Any, crs: str | None, values: dict[str, Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    known = None if crs is None else json.loads(pyproj.CRS(crs).to_json())
    about = {"primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB", "crs": known}}}
    table = pyarrow.table(values | {"geometry": pyarrow.array(shapely.to_wkb(shapes), pyarrow.binary())})
    parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(about)}), path)
    return path


def centres_inside(shapes: list[shapely.Polygon], grid: GeoBox) -> np.ndarray:
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    t = grid.transform
    x, y = t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f
    return shapely.contains_xy(shapely.union_all(shapes), x, y)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("suffix", DRIVERS)
def test_a_pixel_is_burned_when_its_centre_lies_in_a_polygon(tmp_path: Path, name: str, suffix: str) -> None:
    grid = box(GRIDS[name])
    shapes = random_polygons(grid)
    crs = UTM if suffix in (".gpkg", ".fgb", ".shp", ".parquet") else "EPSG:4326"
    layer = read_layer(write(tmp_path / f"labels{suffix}", shapes, crs))
    burned = overlay([layer], grid).burn(Window(0, 0, grid.width, grid.height))
    truth = centres_inside(shapes, grid)
    assert 0.2 < truth.mean() < 0.95
    assert np.count_nonzero(burned != truth) <= (2 if crs != UTM else 0), "seven decimals of a degree are 1 cm"


def test_windows_are_cut_from_one_picture_also_over_the_edge(tmp_path: Path) -> None:
    grid = box()
    laid = overlay([read_layer(write(tmp_path / "labels.gpkg", random_polygons(grid)))], grid)
    whole = laid.burn(Window(-20, -10, 140, 110))
    for row, col, height, width in [(0, 0, 80, 100), (13, 57, 31, 29), (70, 90, 30, 30), (-10, -20, 5, 5)]:
        part = laid.burn(Window(col, row, width, height))
        assert np.array_equal(part, whole[row + 10 : row + 10 + height, col + 20 : col + 20 + width])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:2277", "EPSG:32615"])
def test_labels_in_any_crs_land_on_the_same_pixels(tmp_path: Path, crs: str) -> None:
    grid = box()
    shapes = random_polygons(grid)
    burned = overlay([read_layer(write(tmp_path / "labels.gpkg", shapes, crs))], grid).burn(Window(0, 0, 100, 80))
    assert np.count_nonzero(burned != centres_inside(shapes, grid)) <= 3


def test_labels_in_metres_land_on_a_scene_in_degrees(tmp_path: Path) -> None:
    to = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform
    lon, lat = to(616000, 3347000)
    grid = box(Affine(3e-6, 0, lon, 0, -3e-6, lat), crs="EPSG:4326")
    shapes = random_polygons(box())
    burned = overlay([read_layer(write(tmp_path / "labels.gpkg", shapes))], grid).burn(Window(0, 0, 100, 80))
    truth = centres_inside([shapely.transform(shape, to, interleaved=False) for shape in shapes], grid)
    assert truth.any() and np.count_nonzero(burned != truth) <= 2


def test_several_files_in_different_crs_are_one_overlay(tmp_path: Path) -> None:
    grid = box()
    shapes = random_polygons(grid)
    layers = [
        read_layer(write(tmp_path / "a.gpkg", shapes[:6])),
        read_layer(write(tmp_path / "b.fgb", shapes[6:], "EPSG:3857")),
    ]
    burned = overlay(layers, grid).burn(Window(0, 0, 100, 80))
    assert np.count_nonzero(burned != centres_inside(shapes, grid)) <= 2


def test_where_chooses_features(tmp_path: Path) -> None:
    grid = box()
    shapes = random_polygons(grid, count=2)
    path = write(tmp_path / "labels.gpkg", shapes, levels=np.array([1, 7]))
    burned = overlay([read_layer(path, where="levels > 5")], grid).burn(Window(0, 0, 100, 80))
    assert np.array_equal(burned, centres_inside(shapes[1:], grid))
    with pytest.raises(BadDataError, match="holds no polygon where levels > 9"):
        read_layer(path, where="levels > 9")
    with pytest.raises(BadDataError, match=r"labels\.gpkg: --where nonsense >: .*; its columns are kind, levels"):
        read_layer(path, where="nonsense >")


def test_invalid_polygons_are_repaired_and_lines_and_points_burned(tmp_path: Path) -> None:
    grid = box(Affine(1, 0, 0, 0, -1, 40), 40, 40)
    bow_tie = shapely.Polygon([(5, 5.2), (25, 25.2), (25, 5.2), (5, 25.2)])
    house = shapely.box(30, 30, 35, 35)
    point, line = shapely.Point(1.5, 1.5), shapely.LineString([(0.5, 0.5), (39.5, 39.5)])
    path = write(tmp_path / "labels.gpkg", [bow_tie, house, point, line, None])
    layer = read_layer(path)
    assert [line.split(": ")[1] for line in layer.warnings] == [
        "1 of 5 features have no geometry; left out",
        "1 invalid polygons were repaired",
        "1 line and 1 point among the polygons; the pixels they lie in are taken, as gdal_rasterize takes them",
    ]
    burned = overlay([layer], grid).burn(Window(0, 0, 40, 40))
    known = centres_inside([shapely.make_valid(bow_tie), house], grid)
    known[np.arange(40), np.arange(39, -1, -1)] = True
    assert np.array_equal(burned, known)


@pytest.mark.parametrize("name", GRIDS)
def test_lines_and_points_are_burned_as_gdal_burns_them(tmp_path: Path, name: str) -> None:
    """Piece by piece as all at once; some run far over the raster, some lie beyond it."""
    grid, draw = box(GRIDS[name]), np.random.default_rng(3)
    places = draw.uniform(-0.3, 1.3, (60, 2)) * (grid.width, grid.height)
    ground = [grid.transform @ tuple(place) for place in places]
    shapes = [
        shapely.box(616003, 3346990, 616006, 3346993),
        *map(shapely.LineString, (ground[:2], ground[2:5], ground[5:15])),
        shapely.MultiLineString([ground[15:17], ground[17:20]]),
        shapely.MultiPoint(ground[20:40]),
        *map(shapely.Point, ground[40:]),
        shapely.LineString([ground[0], ground[0]]),
    ]
    laid = overlay([read_layer(write(tmp_path / "labels.gpkg", shapes))], grid)
    oracle = rasterize(shapes, out_shape=(grid.height, grid.width), transform=grid.transform) == 1
    assert np.array_equal(laid.burn(WHOLE), oracle)
    for row, col in np.ndindex(8, 10):
        part = laid.burn(Window(col * 10, row * 10, 10, 10))
        assert np.array_equal(part, oracle[row * 10 : row * 10 + 10, col * 10 : col * 10 + 10])


def test_a_line_that_leads_far_away_is_burned_as_far_as_the_raster_goes(tmp_path: Path) -> None:
    grid = box()
    line = shapely.LineString([grid.transform @ (20.5, 10.5), grid.transform @ (2020.5, 10.5)])
    burned = overlay([read_layer(write(tmp_path / "a.gpkg", [line, shapely.box(0, 0, 1, 1)]))], grid).burn(WHOLE)
    assert np.argwhere(burned).tolist() == [[10, col] for col in range(20, grid.width)]


def test_lines_and_points_alone_are_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.gpkg", [shapely.Point(616001, 3346999)])
    with pytest.raises(BadDataError, match=r"labels\.gpkg.* holds no polygon|layers that can hold polygons: none"):
        read_layer(path)
    with pytest.raises(BadDataError, match="holds no polygon"):
        read_layer(geojson(tmp_path / "labels.geojson", [shapely.Point(1, 2), shapely.LineString([(1, 2), (2, 3)])]))


def test_covered_is_the_share_of_the_scene_within_the_labels_hull(tmp_path: Path) -> None:
    grid = box(Affine(1, 0, 0, 0, -1, 100), 100, 100)
    corners = [
        shapely.box(0, 0, 1, 1),
        shapely.box(49, 0, 50, 1),
        shapely.box(0, 99, 1, 100),
        shapely.box(49, 99, 50, 100),
    ]
    laid = overlay([read_layer(write(tmp_path / "labels.gpkg", corners))], grid)
    assert laid.covered == pytest.approx(0.5)
    assert overlay([read_layer(tmp_path / "labels.gpkg")], box()).covered == 0


def test_share_of_counts_overlapping_polygons_once(tmp_path: Path) -> None:
    grid = box(Affine(1, 0, 0, 0, -1, 100), 100, 100)
    area = write(tmp_path / "area.gpkg", [shapely.box(0, 0, 50, 100), shapely.box(10, 0, 50, 100)])
    laid = overlay([read_layer(area)], grid)
    assert laid.share_of(Window(0, 0, 100, 100)) == pytest.approx(0.5)
    assert laid.share_of(Window(60, 0, 10, 10)) == 0


def test_a_gpkg_that_qgis_has_styled_still_has_one_layer(tmp_path: Path) -> None:
    import sqlite3

    path = write(tmp_path / "labels.gpkg", [shapely.box(0, 0, 1, 1)])
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, styleQML TEXT)")
    connection.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', 's')"
    )
    connection.commit()
    connection.close()
    assert len(read_layer(path).shapes) == 1


def secret_csv(folder: Path) -> Path:
    path = folder / "secret.csv"
    path.write_text('id,WKT\n1,"POLYGON((0 0,9 0,9 9,0 0))"\n')
    return path


def ogr_vrt(secret: Path) -> str:
    layer = f'<OGRVRTLayer name="secret"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
    return f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>"


def pipeline(secret: Path) -> str:
    return json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read {secret}"})


@pytest.mark.parametrize(
    "content", [ogr_vrt, pipeline, lambda _: "plain text", lambda _: "", lambda _: '{"type": "Nothing"}']
)
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".fgb", ".shp", ".ndjson", ".kml", ".parquet"])
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, content: Callable[[Path], str], suffix: str
) -> None:
    path = tmp_path / f"evil{suffix}"
    path.write_text(content(secret_csv(tmp_path)))
    with pytest.raises(BadDataError, match=rf"evil\{suffix}: (the content is not|cannot be read)"):
        read_layer(path)


def test_a_disguised_file_is_refused_before_any_driver_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyogrio, "list_layers", lambda path: pytest.fail("opened"))
    for content in (ogr_vrt, pipeline):
        path = tmp_path / "evil.geojson"
        path.write_text(content(secret_csv(tmp_path)))
        with pytest.raises(BadDataError):
            read_layer(path)


def test_missing_files_and_unknown_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"none\.gpkg: no such file"):
        read_layer(tmp_path / "none.gpkg")
    with pytest.raises(BadDataError, match=r"x\.dxf: .*\.gpkg, "):
        (tmp_path / "x.dxf").touch()
        read_layer(tmp_path / "x.dxf")
    with pytest.raises(BadDataError, match="has no CRS"):
        with pytest.warns(UserWarning, match="crs"):
            path = write(tmp_path / "nowhere.fgb", [shapely.box(0, 0, 1, 1)], crs=None)
        read_layer(path)
    layer = read_layer(write(tmp_path / "labels.gpkg", [shapely.box(0, 0, 1, 1)]))
    with pytest.raises(BadDataError, match="cannot be placed"):
        overlay([layer], box(crs=None))
    with pytest.raises(BadDataError, match="no way"):
        overlay([layer], box(crs='LOCAL_CS["site",UNIT["metre",1]]'))
    assert is_vector(Path("A.GPKG")) and not is_vector(Path("a.tif"))


@pytest.mark.parametrize("method", ["open", "stat"])  # the file may not be read, or its folder not be entered
def test_a_file_that_may_not_be_read_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    path = write(tmp_path / "labels.gpkg", [shapely.box(0, 0, 1, 1)])

    def refuse(*arguments: object, **settings: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)
    if method == "stat":
        monkeypatch.setattr(os.path, "isfile", lambda path: False)
    with pytest.raises(NoInputError, match=r"labels\.gpkg: may not be read; check its permissions"):
        read_layer(path)


@pytest.mark.gdal
@pytest.mark.parametrize("name", ["north up", "rotated", "not square"])
def test_gdal_rasterize_burns_the_same_pixels(tmp_path: Path, name: str, scene_file: Callable[..., Path]) -> None:
    import rasterio

    grid = box(GRIDS[name])
    path = write(tmp_path / "labels.gpkg", random_polygons(grid, seed=3))
    blank = np.zeros((grid.height, grid.width), np.uint8)
    oracle = scene_file(tmp_path / "oracle.tif", blank, transform=tuple(grid.transform)[:6])
    subprocess.run(["gdal_rasterize", "-q", "-burn", "1", path, oracle], check=True)
    burned = overlay([read_layer(path)], grid).burn(Window(0, 0, grid.width, grid.height))
    with rasterio.open(oracle) as dataset:
        assert np.array_equal(burned, dataset.read(1) == 1)


def test_crs_without_a_code_is_understood(tmp_path: Path) -> None:
    grid = box(crs="+proj=utm +zone=14 +datum=NAD83 +units=m")
    shapes = random_polygons(grid)
    burned = overlay([read_layer(write(tmp_path / "labels.gpkg", shapes))], grid).burn(Window(0, 0, 100, 80))
    assert np.count_nonzero(burned != centres_inside(shapes, grid)) <= 2


WHOLE = Window(0, 0, 100, 80)


@pytest.mark.parametrize("suffix", DRIVERS)
@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("kind = 'house'", [0]),
        ("kind = 'House'", []),
        ("kind LIKE 'HO%'", [0]),
        ("KIND IS NULL", [2]),
        ("kind <> 'house'", [1]),
        ("level > 3 OR code = 7", [0, 2]),
        ("level = '1' -- a remark", [1]),
    ],
)
def test_a_condition_finds_the_same_in_every_format(tmp_path: Path, suffix: str, where: str, rows: list[int]) -> None:
    grid, shapes = box(), [shapely.box(x, 3346980, x + 5, 3346995) for x in (616002, 616010, 616020)]
    kinds, codes = np.array(["house", "shed", None], dtype=object), np.array(["7", "8", "9"], dtype=object)
    crs = UTM if suffix in (".gpkg", ".fgb", ".shp", ".parquet") else "EPSG:4326"
    path = write(tmp_path / f"labels{suffix}", shapes, crs, kind=kinds, code=codes, level=np.array([0, 1, 7]))
    if not rows:
        with pytest.raises(BadDataError, match=r"holds no polygon where .*; its columns are .*kind.*code.*level"):
            read_layer(path, where=where)
        return
    burned = overlay([read_layer(path, where=where)], grid).burn(WHOLE)
    truth = centres_inside([shapes[row] for row in rows], grid)
    assert truth.any() and np.count_nonzero(burned != truth) <= 2


@pytest.mark.parametrize("suffix", DRIVERS)
@pytest.mark.parametrize(
    "where", ["knid = 'house'", "1); DROP TABLE features; --", "load_extension('x')", "kind = '\0"]
)
def test_a_condition_that_is_none_names_the_columns(tmp_path: Path, suffix: str, where: str) -> None:
    crs = UTM if suffix in (".gpkg", ".fgb", ".shp", ".parquet") else "EPSG:4326"
    path = write(tmp_path / f"labels{suffix}", [shapely.box(616002, 3346980, 616009, 3346995)], crs)
    with pytest.raises(BadDataError, match=rf"labels\{suffix}: --where .*; its columns are .*kind"):
        read_layer(path, where=where)


def test_polygons_in_collections_are_burned_as_gdal_burns_them(tmp_path: Path) -> None:
    grid = box(Affine(1, 0, 0, 0, -1, 40), 40, 40)
    inner = shapely.GeometryCollection([shapely.box(20, 20, 30, 30), shapely.LineString([(0, 0), (5, 5)])])
    outer = shapely.GeometryCollection([shapely.box(2, 2, 9, 9), shapely.Point(1, 1), inner])
    both = shapely.MultiPolygon([shapely.box(32, 1, 38, 5), shapely.box(32, 10, 38, 15)])
    path = write(
        tmp_path / "labels.gpkg", [outer, None, both, shapely.GeometryCollection(), shapely.box(11, 30, 15, 39)]
    )
    layer = read_layer(path)
    assert [line.split(": ")[1] for line in layer.warnings] == [
        "2 of 5 features have no geometry; left out",
        "1 line and 1 point among the polygons; the pixels they lie in are taken, as gdal_rasterize takes them",
    ]
    burned = [outer, both, shapely.box(11, 30, 15, 39)]
    oracle = rasterize(burned, out_shape=(40, 40), transform=grid.transform)
    assert np.array_equal(overlay([layer], grid).burn(Window(0, 0, 40, 40)), oracle == 1)


@pytest.mark.parametrize("kind", [15, 16, 17])
def test_surfaces_of_3d_buildings_are_burned_by_their_patches(tmp_path: Path, kind: int) -> None:
    grid = box(Affine(1, 0, 0, 0, -1, 40), 40, 40)
    triangles = [
        shapely.Polygon([(2.3, 2.1), (30.2, 2.1), (30.2, 30.7)]),
        shapely.Polygon([(2.3, 2.1), (30.2, 2.1), (10.4, 30.7)]),
    ]
    patches = [b"\1" + (3 if kind == 15 else 17).to_bytes(4, "little") + shapely.to_wkb(t)[5:] for t in triangles]
    wkb = patches[0] if kind == 17 else b"\1" + kind.to_bytes(4, "little") + b"\2\0\0\0" + b"".join(patches)
    path = tmp_path / "roofs.gpkg"
    pyogrio.raw.write(path, np.array([wkb], dtype=object), [], [], driver="GPKG", crs=UTM, geometry_type="Unknown")
    burned = overlay([read_layer(path)], grid).burn(Window(0, 0, 40, 40))
    assert np.array_equal(burned, centres_inside(triangles[: 1 if kind == 17 else 2], grid))


def geojson(path: Path, shapes: list[Any]) -> Path:
    features = [{"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(s))} for s in shapes]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_polygons_far_from_a_scene_do_not_touch_it(tmp_path: Path) -> None:
    grid, shapes = box(), random_polygons(box())
    near = [
        shapely.transform(s, Transformer.from_crs(UTM, 4326, always_xy=True).transform, interleaved=False)
        for s in shapes
    ]
    strange = [shapely.box(151, -34, 151.001, -33.999), shapely.box(16, 48, 17, 49), shapely.box(400, 95, 500, 1e300)]
    alone = overlay([read_layer(geojson(tmp_path / "near.geojson", near))], grid)
    laid = overlay([read_layer(geojson(tmp_path / "all.geojson", [*strange, *near]))], grid)
    assert np.array_equal(laid.burn(WHOLE), alone.burn(WHOLE)) and alone.burn(WHOLE).any()
    assert laid.covered == pytest.approx(1)
    assert overlay([read_layer(geojson(tmp_path / "far.geojson", strange[:2]))], grid).covered == pytest.approx(0)


def test_a_polygon_of_half_the_earth_covers_the_scene_in_it(tmp_path: Path) -> None:
    path = geojson(tmp_path / "west.geojson", [shapely.box(-180, -90, -1, 90)])
    laid = overlay([read_layer(path)], box())
    assert laid.burn(WHOLE).all() and laid.covered == pytest.approx(1)


def test_labels_on_both_sides_of_the_180th_meridian(tmp_path: Path) -> None:
    east, north = Transformer.from_crs(4326, 32660, always_xy=True).transform(180.0, 60.0)
    grid = box(Affine(10, 0, east - 500, 0, -10, north + 400), crs="EPSG:32660")
    sides = [shapely.box(179.992, 59.998, 179.997, 60.002), shapely.box(-179.997, 59.998, -179.992, 60.002)]
    burned = overlay([read_layer(geojson(tmp_path / "labels.geojson", sides))], grid).burn(WHOLE)
    to = Transformer.from_crs(4326, 32660, always_xy=True).transform
    truth = centres_inside([shapely.transform(side, to, interleaved=False) for side in sides], grid)
    assert truth[:, :50].any() and truth[:, 50:].any() and np.count_nonzero(burned != truth) <= 2


def test_a_layer_is_chosen_by_its_name(tmp_path: Path) -> None:
    path, shapes = tmp_path / "town.gpkg", random_polygons(box(), count=2)
    for name, shape in zip(("houses", "sheds"), shapes, strict=True):
        pyogrio.raw.write(
            path, shapely.to_wkb([shape]), [], [], layer=name, append=path.exists(), driver="GPKG", crs=UTM,
            geometry_type="Polygon",
        )  # fmt: skip
    with pytest.raises(BadDataError, match=r"houses, sheds; choose one with --layer NAME, or as .*\|layername=NAME"):
        read_layer(path)
    layer = read_layer(Path(f"{path}|layername=sheds"))
    assert layer.path == path and is_vector(Path(f"{path}|layername=sheds"))
    assert np.array_equal(overlay([layer], box()).burn(WHOLE), centres_inside(shapes[1:], box()))
    with pytest.raises(BadDataError, match="has no layer barns; its layers are houses, sheds"):
        read_layer(Path(f"{path}|layername=barns"))


def test_files_of_one_crs_are_one_layer_and_empty_ones_are_said(tmp_path: Path) -> None:
    shapes = random_polygons(box(), count=3)
    paths = [write(tmp_path / f"{n}.gpkg", [shape]) for n, shape in enumerate(shapes)]
    empty = geojson(tmp_path / "none.geojson", [])
    (layer, nothing) = read_layers([*paths, empty])
    assert layer.paths == tuple(paths) and nothing.paths == (empty,)
    assert layer.warnings == (f"1 of 4 label files is empty: {empty}",) and not nothing.warnings
    assert np.array_equal(overlay([layer, nothing], box()).burn(WHOLE), centres_inside(shapes, box()))
    with pytest.raises(BadDataError, match="holds no polygon; at least one was expected"):
        read_layers([empty])
    with pytest.raises(BadDataError, match=r"2 label files \(.*none.* \.\.\.\): hold no polygon"):
        read_layers([empty, empty])


def test_a_datum_shift_without_its_grid_is_said_where_it_costs_a_pixel(tmp_path: Path) -> None:
    layer = read_layer(geojson(tmp_path / "osm.geojson", [shapely.box(1.31, 52.62, 1.32, 52.63)]))
    fine = GeoBox(256, 256, Affine(0.25, 0, 624129, 0, -0.25, 308491.58), CRS.from_epsg(27700))
    coarse = GeoBox(256, 256, Affine(25, 0, 624129, 0, -25, 308491.58), CRS.from_epsg(27700))
    (line,) = datum_notes([layer], [coarse, fine])
    assert re.search(r"osm\.geojson: moved by '.*OSGB36.*', good to 2 m = 8 px; .*OSTN15.*not installed", line)
    assert not datum_notes([layer], [coarse]) and not datum_notes(
        [read_layer(write(tmp_path / "a.gpkg", [shapely.box(616000, 3346990, 616001, 3346991)]))], [box()]
    )


def test_degrees_of_one_datum_taken_for_those_of_another_are_said_in_short(tmp_path: Path) -> None:
    layer = read_layer(geojson(tmp_path / "osm.geojson", [shapely.box(-97.8, 30.2, -97.7, 30.3)]))
    grids = [box(Affine(0.3, 0, 616000 + x, 0, -0.3, 3347000)) for x in range(3)]
    (line,) = datum_notes([layer, replace(layer, paths=(tmp_path / "area.geojson",))], grids)
    short = (
        r"osm\.geojson: WGS 84 is taken for NAD83, good to 4 m = 13.3 px \(2 m with the grid that pyproj sync --file"
    )
    assert re.search(short, line) and line.endswith("fetches) (and 1 more like it)")
    assert not datum_notes([layer], [box(Affine(10, 0, 616000, 0, -10, 3347000))])
    assert not datum_notes([layer], [box(Affine(0.3, 0, 500000, 0, -0.3, 5300000), crs="EPSG:25832")])


@pytest.mark.parametrize("word", ["<!DOCTYPE kml [", "<NetworkLink>"])
def test_a_kml_that_would_read_other_files_is_refused(tmp_path: Path, word: str) -> None:
    path = tmp_path / "evil.kml"
    path.write_text(f"<?xml version='1.0'?>{word}")
    with pytest.raises(BadDataError, match=r"evil\.kml: the content is not KML"):
        read_layer(path)


@pytest.mark.parametrize(
    "about", [None, "[" * 100_000, {"primary_column": 3}, {"primary_column": "kind", "columns": []}]
)
def test_a_parquet_file_of_strange_metadata_is_refused(tmp_path: Path, about: Any) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"kind": ["house"]})
    geo = {} if about is None else {"geo": about if isinstance(about, str) else json.dumps(about)}
    parquet.write_table(table.replace_schema_metadata(geo), tmp_path / "a.parquet")
    with pytest.raises(BadDataError, match=r"a\.parquet: cannot be read as GeoParquet"):
        read_layer(tmp_path / "a.parquet")
