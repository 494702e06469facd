"""Real QGIS, offscreen, opens what a run leaves beside its rasters: mosaics, buildings, project (FAULTS rows 19, 36).

Run with `make test-all`; needs Debian's python3-qgis.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from in_qgis import BUILDING, CANVAS, look, pixels_of
from pyogrio.raw import write
from small_run import HEIGHT, ODD_NAMES, WIDTH, Entry, labels_of, write_entry, write_run
from small_run import collect as write_collection
from told import Told

from aerialseg.geo.styles import write_building_style

pytestmark = pytest.mark.qgis

NORTH, WEST = 3347000.0, 616000.0


def buildings_at(path: Path) -> Path:
    house = np.array([shapely.to_wkb(shapely.box(WEST + 75, NORTH - 27, WEST + 90, NORTH - 21))], dtype=object)
    columns = [np.array(["a"], dtype=object)], ["scene"]
    write(path, house, *columns, layer="buildings", driver="GPKG", geometry_type="Polygon", crs="EPSG:26914")
    write_building_style(path)
    return path


def collect(root: Path, entries: list[Entry], buildings: Path | None = None) -> list[str]:
    told = Told()
    write_collection(root / "out", entries, buildings, progress=told)
    return told.lines


def houses(count: int) -> int:
    return sum(int((labels_of(index) == 1).sum()) for index in range(count))


def test_a_project_opens_with_every_layer_in_its_place(tmp_path: Path) -> None:
    entries = write_run(tmp_path)
    collect(tmp_path, entries, buildings_at(tmp_path / "out/buildings.gpkg"))
    moved = tmp_path / "elsewhere #1"
    moved.mkdir()
    for folder in ("out", "scenes"):
        (tmp_path / folder).rename(moved / folder)
    project = moved / "out/project.qgz"
    (seen,) = look(project, options=("--width", str(3 * WIDTH)))
    assert (seen["valid"], seen["error"], seen["crs"]) == (True, "", "EPSG:26914")
    assert seen["extent"] == pytest.approx([WEST, NORTH - 0.9 * HEIGHT, WEST + 0.9 * WIDTH, NORTH])
    shown = [name.replace("\n", "\\n") for name in ODD_NAMES]
    assert seen["tree"] == [
        "buildings",
        ["masks", True, [f"{name} mask" for name in shown]],
        ["probability", False, [f"{name} probability" for name in shown]],
        ["scenes", True, shown],
    ]
    assert all(layer["valid"] for layer in seen["layers"])
    assert {layer["crs"] for layer in seen["layers"]} == {"EPSG:26914"}
    kinds = ["singleSymbol", *["paletted"] * 8, *["singlebandpseudocolor"] * 8, *["multibandcolor"] * 8]
    assert [layer["renderer"] for layer in seen["layers"]] == kinds
    assert seen["layers"][1]["legend"] == ["background", "building"]
    sources = {layer["source"] for layer in seen["layers"]}
    assert {str(moved / "out" / f"{name}.tif") for name in ODD_NAMES} < sources
    assert seen["colours"][CANVAS] == WIDTH * HEIGHT, "one of nine places is empty"
    assert pixels_of("#e08a90", seen) == houses(8), "roofs of 220 under masks at half opacity"
    assert BUILDING in seen["colours"], "the outline of the polygon"
    assert pixels_of("#5d3b3e", seen) > 0.9 * 50 * 20 * 0.9, "its tint over a ground of 60"


def test_mosaics_show_the_parts(tmp_path: Path) -> None:
    entries = write_run(tmp_path)
    collect(tmp_path, entries)
    mask, probability = look(tmp_path / "out/mosaic.vrt", tmp_path / "out/probability/mosaic.vrt")
    for seen in (mask, probability):
        assert (seen["valid"], seen["crs"]) == (True, "EPSG:26914")
        assert seen["extent"] == pytest.approx([WEST, NORTH - 0.9 * HEIGHT, WEST + 0.9 * WIDTH, NORTH])
    assert mask["classes"] == [[0, "background", [0, 0, 0, 0]], [1, "building", [230, 57, 70, 255]]]
    assert mask["colours"] == {BUILDING: houses(8), CANVAS: 9 * HEIGHT * WIDTH - houses(8)}
    assert probability["renderer"] == "singlebandpseudocolor"
    assert probability["colours"][BUILDING] == houses(8)
    assert probability["colours"][CANVAS] == HEIGHT * WIDTH + 8 * 10 * 20


def test_many_scenes_and_several_crs_are_shown_by_mosaics(tmp_path: Path) -> None:
    entries = write_run(tmp_path, [f"s{i}" for i in range(9)])
    far = write_entry(tmp_path, "far", 0, crs="EPSG:26915")
    degrees = write_entry(tmp_path, "degrees", 0, crs="EPSG:4326", transform=(3e-6, 0, -97.79, 0, -3e-6, 30.249))
    collect(tmp_path, [*entries, far, degrees])
    (seen,) = look(tmp_path / "out/project.qgz")
    assert seen["valid"]
    assert seen["tree"][0][2] == [f"mask mosaic-EPSG-{code}" for code in (26914, 26915, 4326)]
    assert all(layer["valid"] for layer in seen["layers"])
    assert [layer["crs"] for layer in seen["layers"][:3]] == ["EPSG:26914", "EPSG:26915", "EPSG:4326"]


def test_buildings_are_outlined_and_tinted_without_a_click(tmp_path: Path) -> None:
    (seen,) = look(buildings_at(tmp_path / "buildings.gpkg"))
    assert seen["valid"]
    assert seen["renderer"] == "singleSymbol"
    assert BUILDING in seen["colours"], "the outline"
    del seen["colours"][CANVAS], seen["colours"][BUILDING]
    fill = max(seen["colours"], key=lambda colour: seen["colours"][colour])
    assert fill == "#fa0bdb", "a fifth of the building's red over the canvas"
    assert seen["colours"][fill] > 0.8 * 512 * 512 * 6 / 15


def test_a_project_that_qgis_has_saved_is_the_users(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b"])
    collect(tmp_path, entries)
    project = tmp_path / "out/project.qgz"
    (seen,) = look(project, options=("--save",))
    assert (seen["title"], seen["saved"]) == ("Buildings", True)
    saved = project.read_bytes()
    (said,) = collect(tmp_path, entries)
    assert "stays as it is" in said
    assert project.read_bytes() == saved
    (seen,) = look(project)
    assert seen["title"] == "mine"
    assert all(layer["valid"] for layer in seen["layers"])


def test_scenes_of_many_kinds_are_drawn(tmp_path: Path) -> None:
    import rasterio

    entries = write_run(tmp_path, ["deep", "grey", "alpha"], probability=False)
    ramp = np.linspace(300, 900, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, : WIDTH // 2] = 0
    stacks = {
        "deep": (np.stack([ramp] * 4).astype(np.uint16), {}),
        "grey": (ramp[np.newaxis].astype(np.float32), {}),
        "alpha": (np.stack([*[np.full_like(alpha, 90)] * 3, alpha]), {"photometric": "RGB", "alpha": "YES"}),
    }
    for entry in entries:
        stack, options = stacks[entry.name]
        with rasterio.open(entry.scene) as scene:
            profile = {**scene.profile, "count": len(stack), "dtype": stack.dtype, "interleave": "pixel", **options}
        with rasterio.open(entry.scene, "w", **profile) as scene:
            scene.write(stack)
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        with rasterio.open(entry.mask) as mask:
            profile = {**mask.profile, "driver": "GTiff"}
        with rasterio.open(entry.mask, "w", **profile) as mask:
            mask.write(labels, 1)
    collect(tmp_path, entries)
    (seen,) = look(tmp_path / "out/project.qgz", options=("--width", str(3 * WIDTH)))
    assert all(layer["valid"] for layer in seen["layers"])
    assert seen["colours"][CANVAS] == HEIGHT * WIDTH // 2, "where alpha is 0"
    greys = [int(colour[1:3], 16) for colour in seen["colours"] if colour[1:3] == colour[3:5] == colour[5:7]]
    assert min(greys) < 10
    assert max(greys) > 245, "deep values are stretched over what there is"
