"""FAULTS.md for compare, submit and calibrate: what they read and write is guarded like what evaluate reads."""

from __future__ import annotations

import json
import resource
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from quick_predict import without_network
from rasterio.errors import NotGeoreferencedWarning
from rasters import rectangles

from aerialseg.workflows import calibrate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]
    Hashes = Callable[[Path], dict[str, str]]

COMMANDS = ("compare", "submit", "calibrate")
OUTPUTS = {"compare": "r.html", "submit": "x.zip", "calibrate": "m.safetensors"}


@pytest.fixture
def work(tmp_path: Path, mask_file: Write, scene_file: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One scene, its mask, and two runs of it; a predictor that costs nothing."""
    without_network(monkeypatch)
    (tmp_path / "model.safetensors").write_bytes(b"a model")
    scene_file(tmp_path / "scenes/sfo1.tif")
    mask_file(tmp_path / "gt/sfo1.tif", compress="DEFLATE")
    for name, shift in (("a", 2), ("b", 3)):
        mask_file(tmp_path / name / "sfo1.tif", np.roll(rectangles(128, 128) // 255, shift, 1), compress="DEFLATE")
    return tmp_path


def command(name: str, folder: Path, out: str = "new/") -> list[Any]:
    """The command, writing into a folder that is to be made."""
    target = folder / f"{out}{OUTPUTS[name]}"
    return {
        "compare": ["compare", folder / "a", folder / "b", "--masks", folder / "gt", "--report", target],
        "submit": ["submit", folder / "a", "--out", target, "--test-root", folder / "scenes"],
        "calibrate": ["calibrate", folder / "model.safetensors", "--scenes", folder / "scenes", "--masks",
                      folder / "gt", "-o", target, "--device", "cpu"],
    }[name]  # fmt: skip


READ = [("compare", "a"), ("compare", "b"), ("compare", "gt"), ("submit", "a"), ("calibrate", "gt")]
BROKEN = {
    "row 1, half a file": lambda content: content[: len(content) // 2],
    "row 2, nothing": lambda content: b"",
    "row 2, a web page": lambda content: b"<!doctype html><html>",
    "row 22, a virtual raster": lambda content: b'<VRTDataset rasterXSize="128" rasterYSize="128"></VRTDataset>',
}


@pytest.mark.parametrize("row", BROKEN)
@pytest.mark.parametrize(("name", "side"), READ)
def test_rows_1_2_22_a_broken_file_is_named(work: Path, run: Run, name: str, side: str, row: str) -> None:
    path = work / side / "sfo1.tif"
    path.write_bytes(BROKEN[row](path.read_bytes()))
    code, out, err = run(*command(name, work))
    assert (code, out) == (65, "")
    assert f"{side}/sfo1.tif: " in err and "Traceback" not in err
    assert not (work / "new" / OUTPUTS[name]).exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_row_2_nothing_to_read(work: Path, run: Run, name: str) -> None:
    (work / "scenes/sfo1.tif").unlink()
    (work / "a/sfo1.tif").unlink()
    assert run(*command(name, work))[0] == 66


@pytest.mark.parametrize("name", ["compare", "calibrate"])
def test_rows_4_and_5_and_6_places_of_any_kind(
    work: Path, run: Run, mask_file: Write, scene_file: Write, name: str
) -> None:
    grids: list[dict[str, Any]] = [
        {"crs": 'LOCAL_CS["site",UNIT["metre",1]]'},
        {"crs": "EPSG:2277", "transform": (0.3, 0.1, 500.0, 0.1, -0.3, 900.0)},
        {"crs": "EPSG:4326", "transform": (1e-6, 0, 9, 0, 2e-6, 50)},
        {"crs": None, "transform": None},
    ]
    for grid in grids:
        with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
            scene_file(work / "scenes/sfo1.tif", **grid)
            for side in ("a", "b", "gt"):
                mask_file(work / side / "sfo1.tif", rectangles(128, 128) // 255, **grid)
        code, _, err = run(*command(name, work), "-f")
        assert code == (65 if grid["crs"] is None else 0), err
    assert "has no georeferencing" in err and "--allow-ungeoreferenced" in err
    assert run(*command(name, work), "-f", "--allow-ungeoreferenced")[0] == 0


@pytest.mark.parametrize(("name", "side"), [("compare", "b"), ("compare", "gt")])
def test_row_7_another_grid(work: Path, run: Run, mask_file: Write, name: str, side: str) -> None:
    mask_file(work / side / "sfo1.tif", transform=(0.3, 0, 616000.6, 0, -0.3, 3347000.0))
    code, _, err = run(*command(name, work))
    assert code == 65
    assert f"{side}/sfo1.tif" in err and "a/sfo1.tif" in err and "2.00 columns" in err


@pytest.mark.parametrize(("name", "side"), READ)
def test_row_8_an_image_is_no_mask(work: Path, run: Run, scene_file: Write, name: str, side: str) -> None:
    scene_file(work / side / "sfo1.tif")
    code, _, err = run(*command(name, work))
    assert code == 65
    assert f"{side}/sfo1.tif: a mask has one band" in err


@pytest.mark.parametrize("size", [(1, 2), (31, 700), (97, 61)])
@pytest.mark.parametrize("name", COMMANDS)
def test_row_11_any_size(
    work: Path, run: Run, mask_file: Write, scene_file: Write, name: str, size: tuple[int, int]
) -> None:
    mask = np.zeros(size, np.uint8)
    mask[: (size[0] + 1) // 2, : size[1] // 2] = 1
    scene_file(work / "scenes/sfo1.tif", size=size)
    for side in ("a", "b", "gt"):
        mask_file(work / side / "sfo1.tif", mask)
    code, _, err = run(*command(name, work))
    assert code == 0, err


@pytest.mark.parametrize("name", ["compare", "calibrate"])
def test_row_14_a_full_disk_ends_with_74_and_leaves_nothing(
    work: Path, run: Run, tree_hashes: Hashes, name: str
) -> None:
    (work / "new").mkdir()
    before, limits = tree_hashes(work), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000 if name == "calibrate" else 4_000, limits[1]))
    try:
        code, out, err = run(*command(name, work))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (74, "")
    assert f"{work / 'new'}" in err and ": no space" in err and ".aerialseg-" not in err
    assert tree_hashes(work) == before


@pytest.mark.parametrize("name", ["compare", "calibrate"])
def test_row_17_an_output_that_cannot_be_made_is_refused_before_any_work(
    work: Path, run: Run, tree_hashes: Hashes, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(calibrate, "predict_scenes", None)
    (work / "new").write_text("in the way")
    before = tree_hashes(work)
    code, out, err = run(*command(name, work))
    assert (code, out) == (73, "")
    assert "new" in err
    assert tree_hashes(work) == before


def test_row_18_two_files_of_one_name(work: Path, run: Run, mask_file: Write, scene_file: Write) -> None:
    mask_file(work / "a/SFO1.TIF")
    scene_file(work / "scenes/SFO1.TIF")
    for name in COMMANDS:
        code, _, err = run(*command(name, work))
        assert code == 2
        assert "sfo1.tif" in err and "SFO1.TIF" in err


@pytest.mark.parametrize("odd", ["a b#%'\"<&>", "überbau", "-dash", "two\nlines", "n" * 240])
def test_row_19_odd_names(work: Path, run: Run, monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    for side in ("a", "b", "gt", "scenes"):
        (work / side / "sfo1.tif").rename(work / side / f"{odd}.tif")
    monkeypatch.chdir(work)
    for name in COMMANDS:
        suffix = OUTPUTS[name][OUTPUTS[name].index(".") :]
        arguments = command(name, work)
        arguments[arguments.index(work / f"new/{OUTPUTS[name]}")] = f"{odd}{suffix}"
        code, _, err = run(*arguments)
        assert code == 0, err
        assert (work / f"{odd}{suffix}").is_file()


@pytest.mark.parametrize("name", COMMANDS)
def test_row_20_a_link_at_the_final_name_is_never_followed(work: Path, run: Run, name: str) -> None:
    (work / "precious").write_text("mine")
    (work / OUTPUTS[name]).symlink_to(work / "precious")
    assert run(*command(name, work, ""))[0] == 73
    code, _, err = run(*command(name, work, ""), "-f")
    assert code == 0, err
    assert not (work / OUTPUTS[name]).is_symlink()
    assert (work / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", COMMANDS)
def test_row_38_nothing_that_is_read_is_ever_written_over(work: Path, run: Run, tree_hashes: Hashes, name: str) -> None:
    read = {"compare": "gt/sfo1.tif", "submit": "a/sfo1.tif", "calibrate": "gt/sfo1.tif"}[name]
    (work / OUTPUTS[name]).symlink_to(work / read)
    before = tree_hashes(work)
    code, _, err = run(*command(name, work, ""), "-f")
    assert code == 2
    assert "would overwrite the input" in err
    assert tree_hashes(work) == before


def test_row_9_ground_without_data_counts_nowhere(work: Path, run: Run, mask_file: Write) -> None:
    with rasterio.open(work / "gt/sfo1.tif") as source:
        truth = source.read(1)
    found = []
    for hidden in (0, 255):  # what lies under the nodata changes nothing
        half = truth // 255
        half[:, :64] = np.where(hidden, 255, 9)
        mask_file(work / "gt/sfo1.tif", half, nodata=255 if hidden else 9)
        code, out, err = run(*command("compare", work), "-f", "--json")
        assert code == 0, err
        code, calibrated, err = run(*command("calibrate", work), "-f", "--json")
        assert code == 0, err
        found.append((json.loads(out)["overall"], json.loads(calibrated)["after"]))
    assert found[0] == found[1]


@pytest.mark.parametrize("option", ["--polygons", "--labelled-area"])
def test_row_22_a_virtual_vector_file_is_not_followed(work: Path, run: Run, option: str) -> None:
    import geopandas as gpd
    from shapely.geometry import box

    gpd.GeoDataFrame(geometry=[box(616005, 3346970, 616020, 3346990)], crs=26914).to_file(work / "t.gpkg")
    secret = work / "secret.gpkg"
    secret.write_bytes((work / "t.gpkg").read_bytes())
    source = f'<OGRVRTLayer name="t"><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>'
    (work / "x.geojson").write_text(f"<OGRVRTDataSource>{source}</OGRVRTDataSource>")
    code, out, err = run("evaluate", work / "a", "--masks", work / "t.gpkg", option, work / "x.geojson")
    assert (code, out) == (65, "")
    assert "x.geojson: the content is not GeoJSON" in err
