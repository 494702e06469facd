"""The collection as a whole: what it consists of, reruns, what a user has changed, strangers."""

from __future__ import annotations

import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import shapely
from pyogrio.raw import write
from small_run import Entry, write_entry, write_run
from small_run import collect as write_collection
from told import Told

from aerialseg.errors import BadDataError, NoInputError, OutputError, Stopped
from aerialseg.geo.styles import write_building_style
from aerialseg.geo.vrt import MosaicPart
from aerialseg.prediction.exports import SINGLY, check_collection, collection_paths

if TYPE_CHECKING:
    from collections.abc import Callable
    from xml.etree.ElementTree import Element


def collect(root: Path, entries: list[Entry], buildings: Path | None = None) -> tuple[tuple[Path, ...], list[str]]:
    told = Told()
    paths = write_collection(root / "out", entries, buildings, progress=told)
    return paths, told.lines


def state_of(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def project_of(root: Path) -> Element:
    with zipfile.ZipFile(root / "out/project.qgz") as archive:
        return ElementTree.fromstring(archive.read("project.qgs").split(b"\n", 1)[1])


def buildings_at(path: Path, *tables: str) -> Path:
    drivers = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
    path.parent.mkdir(parents=True, exist_ok=True)
    house = np.array([shapely.to_wkb(shapely.box(616003, 3346982, 616015, 3346991))], dtype=object)
    columns = [np.array(["a"], dtype=object)], ["scene"]
    for table in tables:
        more = {"append": path.exists(), "layer": table} if path.suffix == ".gpkg" else {}
        write(path, house, *columns, driver=drivers[path.suffix], geometry_type="Polygon", crs="EPSG:26914", **more)
    return path


def test_a_run_is_collected(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b/c"])
    before = state_of(tmp_path)
    paths, said = collect(tmp_path, entries, buildings_at(tmp_path / "out/buildings.gpkg", "buildings"))
    assert said == []
    out = tmp_path / "out"
    assert [str(path.relative_to(out)) for path in paths[:2]] == ["mosaic.vrt", "probability/mosaic.vrt"]
    assert {path.name for path in paths[2:]} == {"a.json", "model.json", "collection.json", "project.qgz"} | {
        path.name for path in (out / "stac/items").glob("b-c-*.json")
    }
    assert all(path.is_file() for path in paths)
    after = state_of(tmp_path)
    assert all(after[path] == value for path, value in before.items()), "nothing that was there is touched"
    new = {str(path.relative_to(out)) for path in set(after) - set(before) - set(paths)}
    assert new == {"buildings.gpkg", "probability/a.qml", "probability/b/c.qml", "probability/mosaic.qml"}


def test_the_project_has_buildings_above_masks_above_scenes(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b"])
    collect(tmp_path, entries, buildings_at(tmp_path / "out/buildings.gpkg", "north", "south"))
    root = project_of(tmp_path)
    names = [layer.findtext("layername") for layer in root.iter("maplayer")]
    assert names == ["north", "south", "a mask", "b mask", "a probability", "b probability", "a", "b"]
    groups = {group.get("name"): group.get("checked") for group in root.iter("layer-tree-group") if group.get("name")}
    assert groups == {"masks": "Qt::Checked", "probability": "Qt::Unchecked", "scenes": "Qt::Checked"}
    assert [layer.findtext("srs/spatialrefsys/authid") for layer in root.iter("maplayer")] == ["EPSG:26914"] * 8


@pytest.mark.parametrize("suffix", [".fgb", ".geojson"])
def test_buildings_of_other_formats_are_in_the_project(tmp_path: Path, suffix: str) -> None:
    collect(tmp_path, write_run(tmp_path, ["a"]), buildings_at(tmp_path / f"out/buildings{suffix}", "buildings"))
    layer = next(project_of(tmp_path).iter("maplayer"))
    assert layer.findtext("datasource") == f"./buildings{suffix}"
    assert layer.findtext("srs/spatialrefsys/authid") == ("EPSG:26914" if suffix == ".fgb" else "EPSG:4326")


def test_geoparquet_is_left_out_of_the_project_and_said(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a"])
    path = tmp_path / "out/buildings.parquet"
    path.write_bytes(b"PAR1")
    _, said = collect(tmp_path, entries, path)
    assert "GeoParquet" in said[0]
    assert next(project_of(tmp_path).iter("maplayer")).findtext("layername") == "a mask"


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_a_broken_buildings_file_is_named(tmp_path: Path, suffix: str) -> None:
    entries = write_run(tmp_path, ["a"])
    path = tmp_path / f"out/buildings{suffix}"
    path.write_bytes(b"no such thing" * 100)
    with pytest.raises(BadDataError, match="buildings"):
        collect(tmp_path, entries, path)


def test_fewer_scenes_than_before_leave_the_other_masks_their_items(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b #1", "c"])
    for entry in entries:
        for path in (entry.mask, entry.probability):
            with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
                dataset.update_tags(AERIALSEG_KEY="0")
                dataset.scales = (1.0 if path == entry.mask else 1 / 254,)
    _, said = collect(tmp_path, entries)
    assert said == []
    items = {path.name: path.read_bytes() for path in (tmp_path / "out/stac/items").iterdir()}
    entries[2].mask.unlink()
    _, said = collect(tmp_path, entries[:1])
    assert len(said) == 1
    assert said[0].endswith("out: 1 mask of other scenes, such as b #1, is in neither the mosaics nor project.qgz")
    left = {path.name: path.read_bytes() for path in (tmp_path / "out/stac/items").iterdir()}
    assert left == {name: content for name, content in items.items() if name != "c.json"}
    (tmp_path / "out/mine.tif").write_bytes(entries[0].scene.read_bytes())
    _, said = collect(tmp_path, entries[:2])
    assert said == [], "a stranger's raster is none of ours"


def test_many_scenes_are_shown_by_their_mosaic_and_what_is_not_in_it_singly(tmp_path: Path) -> None:
    entries = write_run(tmp_path, [f"s{i}" for i in range(SINGLY)])
    turned = write_entry(tmp_path, "turned", 0, transform=(0.2, 0.1, 616000, 0.1, -0.2, 3347000))
    _, said = collect(tmp_path, [*entries, turned])
    assert len(said) == 2, "once for the mask, once for the probability"
    names = [layer.findtext("layername") for layer in project_of(tmp_path).iter("maplayer")]
    assert names[:4] == ["mask mosaic", "turned mask", "probability mosaic", "turned probability"]
    assert len(names) == 4 + SINGLY + 1


def test_a_rerun_touches_nothing(tmp_path: Path) -> None:
    entries = write_run(tmp_path)
    first, _ = collect(tmp_path, entries)
    before = state_of(tmp_path)
    second, said = collect(tmp_path, entries)
    assert (second, said) == (first, [])
    assert state_of(tmp_path) == before


def test_equal_runs_in_other_places_have_equal_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        root = tmp_path / name
        collect(root, write_run(root))
        found.append(bytes_of(root / "out"))
    assert found[0] == found[1]


def test_a_run_that_was_cut_off_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b", "c", "d"])
    everything, _ = collect(tmp_path, entries)
    whole = bytes_of(tmp_path / "out")
    collect(tmp_path, entries[:2])
    for path in everything:
        path.unlink(missing_ok=True)
        collect(tmp_path, entries)
        assert bytes_of(tmp_path / "out") == whole


def test_what_a_user_has_changed_stays_and_is_said(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b"])
    collect(tmp_path, entries)
    out = tmp_path / "out"
    (out / "probability/a.qml").write_text("mine")
    item = out / "stac/items/a.json"
    item.write_text(item.read_text().replace('"title": "a"', '"title": "my a"'))
    with zipfile.ZipFile(out / "project.qgz") as archive:
        text = archive.read("project.qgs")
    with zipfile.ZipFile(out / "project.qgz", "w") as archive:
        archive.writestr("project.qgs", text.replace(b"<title>Buildings", b"<title>Mine"))
    before = state_of(tmp_path)
    _, said = collect(tmp_path, entries)
    assert sorted(line.split(":")[0] for line in said) == sorted(map(str, (item, out / "project.qgz")))
    assert all("stays as it is" in line for line in said)
    assert state_of(tmp_path) == before


STRANGERS = ("mosaic.vrt", "probability/mosaic.vrt", "project.qgz", "stac/collection.json", "stac/model.json")


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("content", [b"<VRTDataset/>", b"{}"])
def test_a_strangers_file_is_refused_before_anything_is_written(tmp_path: Path, name: str, content: bytes) -> None:
    entries = write_run(tmp_path, ["a"])
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    before = state_of(tmp_path)
    paths = collection_paths(tmp_path / "out", probability=True)
    for call in (lambda: check_collection(paths), lambda: collect(tmp_path, entries)):
        with pytest.raises(OutputError, match="not written by aerialseg"):
            call()
        assert state_of(tmp_path) == before


def test_several_crs_and_no_probability_have_mosaics_elsewhere(tmp_path: Path) -> None:
    entries = [write_entry(tmp_path, name, 0, crs=crs) for name, crs in (("a", "EPSG:26914"), ("b", "EPSG:32614"))]
    boxes = [MosaicPart.of(entry.mask).box for entry in entries]
    paths = collection_paths(tmp_path / "out", boxes, probability=True)
    written, _ = collect(tmp_path, entries)
    assert {path for path in written if path.suffix != ".json"} < set(paths)
    assert not any("probability" in str(path) for path in collection_paths(tmp_path / "out", probability=False))


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_file_is_replaced_when_asked_for(tmp_path: Path, name: str) -> None:
    entries = write_run(tmp_path, ["a"])
    collect(tmp_path, entries)
    path, before = tmp_path / "out" / name, bytes_of(tmp_path)
    path.write_bytes(b"<VRTDataset/>")
    write_collection(tmp_path / "out", entries, overwrite=True)
    assert bytes_of(tmp_path) == before


def test_no_stranger_is_seen_in_an_empty_folder_or_in_our_own(tmp_path: Path) -> None:
    for _ in range(2):
        check_collection(collection_paths(tmp_path / "out", probability=True))
        collect(tmp_path, write_run(tmp_path, ["a"]))


def test_a_stop_leaves_whole_files_and_the_next_run_goes_on(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b", "c"])
    collect(tmp_path, entries)
    whole = bytes_of(tmp_path / "out")
    for calls in range(1, 8):
        for name in ("mosaic.vrt", "project.qgz", "stac/collection.json", "stac/items/b.json"):
            (tmp_path / "out" / name).unlink(missing_ok=True)
        with pytest.raises(Stopped):
            write_collection(tmp_path / "out", entries, progress=Told(calls + 1))
        there = bytes_of(tmp_path / "out")
        assert there.items() <= whole.items()
    collect(tmp_path, entries)
    assert bytes_of(tmp_path / "out") == whole


def test_scenes_without_a_place_are_collected_too(tmp_path: Path) -> None:
    entries = [write_entry(tmp_path, name, i, crs=None) for i, name in enumerate("ab")]
    paths, said = collect(tmp_path, entries)
    assert "mosaic.vrt" not in {path.name for path in paths}
    assert all("no place on the ground" in line for line in said)
    assert len(list(project_of(tmp_path).iter("maplayer"))) == 6


def test_a_scene_that_is_gone_is_named(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a"])
    entries[0].scene.unlink()
    with pytest.raises(NoInputError, match=r"scenes/a\.tif"):
        collect(tmp_path, entries)


def test_a_control_character_in_a_name_costs_its_layers_only(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b\x01"])
    told = Told()
    written = write_collection(tmp_path / "out", entries, progress=told)
    assert (tmp_path / "out/project.qgz") in written
    assert sum("a mosaic cannot hold this name" in line for line in told.lines) == 2, "mask and probability"


def test_scenes_are_styled_by_their_bands(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    from aerialseg.geo.opening import open_raster
    from aerialseg.geo.styles import scene_pipe

    def renderer(**options: Any) -> Element:
        path = scene_file(tmp_path / "scene.tif", **options)
        with open_raster(path) as dataset:
            return ElementTree.fromstring(scene_pipe(dataset)).find("rasterrenderer")

    plain = renderer()
    assert [plain.get(f"{colour}Band") for colour in ("red", "green", "blue")] == ["1", "2", "3"]
    assert plain.findtext("redContrastEnhancement/algorithm") == "NoEnhancement"
    deep = renderer(dtype="uint16", bands=4)
    assert deep.findtext("redContrastEnhancement/algorithm") == "StretchToMinimumMaximum"
    assert deep.findtext("minMaxOrigin/extent") == "UpdatedCanvas"
    assert renderer(bands=4, photometric="RGB", alpha="YES").get("alphaBand") == "4"
    assert renderer(bands=1).get("type") == "singlebandgray"
    assert renderer(bands=2).get("grayBand") == "1"
    path = scene_file(tmp_path / "scene.tif")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
    with open_raster(path) as dataset:
        turned = ElementTree.fromstring(scene_pipe(dataset)).find("rasterrenderer")
    assert [turned.get(f"{colour}Band") for colour in ("red", "green", "blue")] == ["3", "2", "1"]


def test_every_table_of_buildings_has_a_default_style(tmp_path: Path) -> None:
    path = buildings_at(tmp_path / "b.gpkg", "north", "so'uth")
    write_building_style(path)
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        ).fetchall()
    assert [row[:3] for row in rows] == [("north", "geom", 1), ("so'uth", "geom", 1)]
    style = ElementTree.fromstring(rows[0][3].split("\n", 1)[1])
    options = {option.get("name"): option.get("value") for option in style.iter("Option")}
    assert options["outline_color"] == "230,57,70,255"
    assert options["color"].startswith("230,57,70,")
    assert int(options["color"].rsplit(",", 1)[1]) < 128
