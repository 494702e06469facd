"""project.qgz as a zip and as XML; QGIS itself: tests/qgis."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from affine import Affine
from rasterio.crs import CRS
from small_run import ODD_NAMES

from aerialseg.errors import OutputError
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.ownership import write_owned
from aerialseg.geo.project import MapGroup, MapLayer, compose_project, relative_to
from aerialseg.geo.styles import building_renderer, mask_pipe

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

UTM = CRS.from_epsg(26914)
BOX = GeoBox(100, 200, Affine(0.3, 0, 616000, 0, -0.3, 3347000), UTM)
FAR = GeoBox(10, 10, Affine(1e-4, 0, -97, 0, -1e-4, 30), CRS.from_epsg(4326))


def groups_in(folder: Path) -> list[MapGroup]:
    masks = tuple(MapLayer(name, folder / f"{name}.tif", UTM, mask_pipe()) for name in ODD_NAMES)
    shapes = MapLayer("all", folder / "b.gpkg", UTM, building_renderer(), "all & more", vector=True)
    scenes = tuple(MapLayer(name, folder.parent / "scenes" / f"{name}.tif", UTM, mask_pipe()) for name in ODD_NAMES)
    return [
        MapGroup("", (shapes,)),
        MapGroup("masks", masks),
        MapGroup("off", scenes, visible=False),
        MapGroup("none", ()),
    ]


def xml_of(path: Path) -> Element:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["project.qgs"]
        return ElementTree.fromstring(archive.read("project.qgs").split(b"\n", 1)[1])


def written(path: Path, frame: tuple[GeoBox, ...] = (BOX, FAR)) -> list[str]:
    said: list[str] = []
    note = write_owned(path, compose_project(path, groups_in(path.parent), frame, said.append))
    return said if note is None else [*said, note]


def test_layers_stand_in_order_with_relative_paths(tmp_path: Path) -> None:
    path = tmp_path / "out" / "project.qgz"
    assert written(path) == []
    root = xml_of(path)
    tree = root.find("layer-tree-group")
    tops = [node.get("name") for node in tree if node.tag != "customproperties"]
    assert tops == ["all", "masks", "off"]
    assert [group.get("checked") for group in tree.iter("layer-tree-group")][1:] == ["Qt::Checked", "Qt::Unchecked"]
    layers = {layer.findtext("id"): layer for layer in root.iter("maplayer")}
    assert len(layers) == 1 + 2 * len(ODD_NAMES)
    assert [node.get("id") for node in tree.iter("layer-tree-layer")] == list(layers)
    assert [node.get("id") for node in root.find("layerorder")] == list(layers)
    assert all(len(identifier) > 10 for identifier in layers)
    sources = [layer.findtext("datasource") for layer in layers.values()]
    assert sources[0] == "./b.gpkg|layername=all & more"
    assert sources[1:9] == [f"./{name}.tif" for name in ODD_NAMES]
    assert sources[9:] == [f"../scenes/{name}.tif" for name in ODD_NAMES]
    assert [node.get("source") for node in tree.iter("layer-tree-layer")] == sources
    assert root.findtext("properties/Paths/Absolute") == "false"
    assert root.findtext("properties/SpatialRefSys/ProjectionsEnabled") == "1"


def test_the_project_opens_on_everything_in_the_crs_of_most_pixels(tmp_path: Path) -> None:
    path = tmp_path / "project.qgz"
    written(path)
    root = xml_of(path)
    assert root.findtext("projectCrs/spatialrefsys/authid") == "EPSG:26914"
    west, south, east, north = (
        float(root.findtext(f"mapcanvas/extent/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")
    )
    assert west <= 616000 < east
    assert south < 3347000 <= north
    assert east - west > 50_000, "the scene in degrees lies far off and is in the frame too"
    written(path, ())
    assert xml_of(path).find("mapcanvas") is None


def test_equal_layers_give_equal_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name / "out" / "project.qgz" for name in "ab"]
    for path in paths:
        written(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with zipfile.ZipFile(paths[0]) as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)
    stamp = paths[0].stat().st_mtime_ns
    assert written(paths[0]) == []
    assert paths[0].stat().st_mtime_ns == stamp


def saved_by_a_user(path: Path, old: bytes = b"<title>Buildings", new: bytes = b"<title>Mine") -> bytes:
    with zipfile.ZipFile(path) as archive:
        text = archive.read("project.qgs")
    assert old in text
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("project.qgs", text.replace(old, new))
        archive.writestr("project.qgd", b"more")
    return path.read_bytes()


def test_a_project_that_a_user_has_saved_stays(tmp_path: Path) -> None:
    path = tmp_path / "project.qgz"
    written(path)
    saved = saved_by_a_user(path)
    (said,) = written(path, ())
    assert "stays as it is" in said
    assert path.read_bytes() == saved


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text", None])
def test_a_foreign_project_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "project.qgz"
    if content is None:
        written(path)
        content = saved_by_a_user(path, b"aerialseg>", b"other>")
    path.write_bytes(content)
    with pytest.raises(OutputError, match="not written by aerialseg"):
        written(path)
    assert path.read_bytes() == content


def test_a_name_that_no_xml_can_hold_is_left_out_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    layers = tuple(MapLayer(name, tmp_path / f"{name}.tif", UTM, mask_pipe()) for name in ("good", "bell\x07"))
    path = tmp_path / "project.qgz"
    write_owned(path, compose_project(path, [MapGroup("masks", layers)], [BOX], said.append))
    assert len(said) == 1
    assert "bell" in said[0]
    assert [layer.findtext("layername") for layer in xml_of(tmp_path / "project.qgz").iter("maplayer")] == ["good"]


def test_the_way_to_a_file_starts_where_the_folder_really_is(tmp_path: Path) -> None:
    (tmp_path / "deep/er/real").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "deep/er/real")
    assert relative_to(tmp_path / "scenes/a.tif", tmp_path / "out") == "../../../scenes/a.tif"
    assert relative_to(tmp_path / "out/a.tif", tmp_path / "real") == "../out/a.tif"
