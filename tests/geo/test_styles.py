"""Side files of masks as GDAL reads them; the style inside an index as sqlite does. QGIS itself: tests/qgis."""

from __future__ import annotations

import sqlite3
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from aerialseg.geo.styles import (
    MASK_CLASSES,
    SPLIT_COLOURS,
    write_index_style,
    write_mask_sidecars,
    write_probability_sidecar,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def mask_at(path: Path, scene_file: Callable[..., Path]) -> Path:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 5:10] = 1
    return scene_file(path, mask, nodata=255)


def test_gdal_reads_a_two_entry_palette_from_the_side_file(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = mask_at(tmp_path / "mask.tif", scene_file)
    before = path.read_bytes()
    written = write_mask_sidecars(path)
    assert [file.name for file in written] == ["mask.tif.aux.xml", "mask.qml"]
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp == (ColorInterp.palette,)
        palette = dataset.colormap(1)
        assert palette[0][3] == 0, "background is transparent"
        assert palette[1] == MASK_CLASSES[1].colour
        assert dataset.nodata == 255
    assert path.read_bytes() == before


def test_the_side_file_names_the_classes() -> None:
    from aerialseg.geo.styles import _auxiliary

    band = ElementTree.fromstring(_auxiliary(MASK_CLASSES, "building mask")).find("PAMRasterBand")
    assert band is not None
    assert [category.text for category in band.iter("Category")] == ["background", "building"]
    assert len(list(band.iter("Entry"))) == 2
    names = [field.text for field in band.iter("Name")]
    rows = [[cell.text for cell in row] for row in band.iter("Row")]
    assert names == ["Value", "Class", "Red", "Green", "Blue", "Alpha"]
    assert rows == [["0", "background", "0", "0", "0", "0"], ["1", "building", "230", "57", "70", "255"]]


def test_what_exists_stays_unless_it_is_to_be_replaced(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = mask_at(tmp_path / "mask.tif", scene_file)
    style = tmp_path / "mask.qml"
    style.write_text("mine")
    assert [file.name for file in write_mask_sidecars(path)] == ["mask.tif.aux.xml"]
    assert style.read_text() == "mine"
    assert write_mask_sidecars(path) == ()
    assert len(write_mask_sidecars(path, replace=True)) == 2
    assert "paletteEntry" in style.read_text()


def test_a_name_too_long_for_one_side_file_has_the_other(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = mask_at(tmp_path / f"{'m' * 251}.tif", scene_file)
    assert [file.suffix for file in write_mask_sidecars(path)] == [".qml"]


def test_equal_masks_have_equal_side_files(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    contents = []
    for name in ("a", "b"):
        write_mask_sidecars(mask_at(tmp_path / f"{name}.tif", scene_file))
        contents.append([(tmp_path / f"{name}.tif.aux.xml").read_bytes(), (tmp_path / f"{name}.qml").read_bytes()])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("scale", [1.0, 1 / 254])
def test_a_probability_is_clear_at_zero_and_red_at_one(tmp_path: Path, scale: float) -> None:
    path = tmp_path / "p.tif"
    assert write_probability_sidecar(path, scale) == (tmp_path / "p.qml",)
    assert write_probability_sidecar(path, scale) == ()
    shader = next(ElementTree.fromstring((tmp_path / "p.qml").read_text().split("\n", 1)[1]).iter("colorrampshader"))
    items = [(float(item.get("value", "")), item.get("alpha")) for item in shader]
    assert items[0] == (0, "0")
    assert items[-1] == (pytest.approx(254 * scale), "255")
    assert shader[-1].get("color") == MASK_CLASSES[1].hex


def index_at(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE gpkg_geometry_columns (table_name TEXT, column_name TEXT)")
        database.execute("INSERT INTO gpkg_geometry_columns VALUES ('tiles', 'geom')")
        database.execute(
            "CREATE TABLE gpkg_contents (table_name TEXT, data_type TEXT, identifier TEXT, description TEXT,"
            " last_change TEXT, srs_id INTEGER)"
        )
    return path


def test_the_index_carries_its_default_style(tmp_path: Path) -> None:
    path = index_at(tmp_path / "index.gpkg")
    write_index_style(path)
    with closing(sqlite3.connect(path)) as database:
        ((table, column, style, default),) = database.execute(
            "SELECT f_table_name, f_geometry_column, styleQML, useAsDefault FROM layer_styles"
        )
        assert ("layer_styles", "attributes") in database.execute("SELECT table_name, data_type FROM gpkg_contents")
    assert (table, column, default) == ("tiles", "geom", 1)
    renderer = ElementTree.fromstring(style.split("\n", 1)[1]).find("renderer-v2")
    assert renderer is not None
    assert renderer.get("attr") == "split"
    assert [category.get("value") for category in renderer.iter("category")] == list(SPLIT_COLOURS)


def test_equal_indexes_have_equal_bytes(tmp_path: Path) -> None:
    paths = [index_at(tmp_path / f"{name}.gpkg") for name in "ab"]
    for path in paths:
        write_index_style(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
