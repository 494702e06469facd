"""What `aerialseg tile` must survive: every row of the fault table that concerns it, through the command line."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.control import GroundControlPoint

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]
    Write = Callable[..., Path]
    Hashes = Callable[[Path], dict[str, str]]

SIZE = ("--size", 64, "--split", "0")
AUSTIN = (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)


@pytest.fixture
def inputs(tmp_path: Path, scene_file: Write, mask_file: Write) -> Path:
    """A folder with two scenes below images/ and their masks below gt/."""
    for number in (1, 2):
        scene_file(tmp_path / "in" / "images" / f"austin{number}.tif", seed=number)
        mask_file(tmp_path / "in" / "gt" / f"austin{number}.tif")
    return tmp_path / "in"


def one_error(stderr: str) -> str:
    """Return the error's line; there must be exactly one, the last, and no traceback."""
    lines = stderr.strip().splitlines()
    assert "Traceback" not in stderr
    assert lines[-1].startswith("error: "), stderr
    return lines[-1]


def polygons(path: Path, *shapes: shapely.Polygon) -> Path:
    geometry = shapely.to_wkb(np.array(shapes))
    pyogrio.raw.write(path, geometry, [], [], driver="GPKG", crs="EPSG:26914", geometry_type="Polygon")
    return path


def test_the_command_makes_a_set_and_prints_the_split(run: Run, inputs: Path, tmp_path: Path) -> None:
    code, out, err = run("tile", inputs, "-o", tmp_path / "set", "--size", 64, "--json")
    assert code == 0, err
    body = json.loads(out)
    assert (
        body["tiles"] == {"train": 4, "val": 4} and body["scenes"] == {"train": 1, "val": 1} and body["scenes_cut"] == 2
    )
    code, out, err = run("tile", inputs, "-o", tmp_path / "set", "--size", 64)
    assert code == 0 and "nothing had changed" in err
    assert "train" in out and "val" in out and "%" in out


def test_polygons_say_where_validation_is(run: Run, inputs: Path, tmp_path: Path) -> None:
    east = polygons(tmp_path / "east.gpkg", shapely.box(616000 + 0.3 * 60, 3346900, 616000 + 0.3 * 200, 3347000))
    arguments = ("tile", inputs, "-o", tmp_path / "set", "--size", 16, "--val-area", east, "--json")
    code, out, err = run(*arguments)
    assert code == 0, err
    assert json.loads(out)["tiles"] == {"train": 48, "val": 64} and json.loads(out)["left_out"]["gap"] == 16
    code, _, err = run(*arguments, "--split", "inria")
    assert code == 2 and "--val-area and --split" in one_error(err)


def test_without_o_the_set_goes_below_tiles(
    run: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("tile", inputs, *SIZE)[0] == 0
    assert (tmp_path / "tiles" / "in" / "tileset.json").is_file()


@pytest.mark.parametrize("share", [0.999, 0.5, 0.02])
def test_row_1_a_truncated_scene_fails_alone_and_is_named(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write, share: float
) -> None:
    scene = scene_file(inputs / "images" / "austin1.tif", compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    whole = scene.read_bytes()
    scene.write_bytes(whole[: int(len(whole) * share)])
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 3 and any(line.startswith("error: ") and "austin1.tif: " in line for line in err.splitlines())
    assert "1 of 2 scenes failed" in one_error(err)
    code, _, err = run("tile", scene, "--masks", inputs / "gt" / "austin1.tif", "-o", tmp_path / "alone", *SIZE)
    assert code == 65 and "austin1.tif: " in one_error(err) and err.count("error: ") == 1
    assert not (tmp_path / "alone" / "tileset.json").exists()


@pytest.mark.parametrize("share", [0.999, 0.5, 0.02])
def test_row_1_a_truncated_mask_fails_its_scene_alone(
    run: Run, inputs: Path, tmp_path: Path, mask_file: Write, share: float
) -> None:
    mask = mask_file(inputs / "gt" / "austin1.tif", compress="deflate", tiled=True, blockxsize=64, blockysize=64)
    whole = mask.read_bytes()
    mask.write_bytes(whole[: int(len(whole) * share)])
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 3 and err.count("gt/austin1.tif: ") == 1 and "1 of 2 scenes failed" in one_error(err)
    body = json.loads((tmp_path / "set" / "tileset.json").read_text())
    assert list(body["failed"]) == ["austin1"] and {tile["scene"] for tile in body["tiles"]} == {"austin2"}
    code, _, err = run("tile", inputs, "-o", tmp_path / "strict", *SIZE, "--fail-fast")
    assert code == 65 and "gt/austin1.tif: " in one_error(err) and err.count("error: ") == 1
    code, _, err = run("tile", inputs / "images/austin1.tif", "--masks", mask, "-o", tmp_path / "alone", *SIZE)
    assert code == 65 and "gt/austin1.tif: " in one_error(err) and err.count("error: ") == 1


def test_scenes_without_masks_do_not_hide_what_else_is_wrong(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write
) -> None:
    scene_file(inputs / "images" / "alone.tif")
    (inputs / "images" / "austin2.tif").write_bytes(b"no raster")
    code, _, err = run("tile", inputs / "images", "--masks", inputs / "gt", "-o", tmp_path / "set", *SIZE)
    lines = err.splitlines()
    assert code == 65 and len(lines) == 2, err
    assert lines[0] == f"error: {inputs / 'images/austin2.tif'}: is not a GeoTIFF, JPEG 2000, PNG or JPEG"
    assert lines[1].startswith(f"error: {inputs / 'images/alone.tif'}: no mask found; ")


def test_row_1_when_no_scene_is_left_each_is_named_and_then_the_first(run: Run, inputs: Path, tmp_path: Path) -> None:
    for kind in ("images", "gt"):
        broken = shutil.copytree(inputs, tmp_path / f"broken {kind}")
        for path in (broken / kind).iterdir():
            path.write_bytes(path.read_bytes()[:-5000])
        code, _, err = run("tile", broken, "-o", tmp_path / "set", *SIZE)
        assert code == 65 and err.count("error: ") == 3
        assert "none of 2 scenes can be cut; first: " in one_error(err) and "austin1.tif" in one_error(err)


@pytest.mark.parametrize("content", [b"", b"hello", b"<!DOCTYPE html><html></html>", b"II*\0"])
def test_row_2_what_is_no_raster_is_named(run: Run, inputs: Path, tmp_path: Path, content: bytes) -> None:
    (inputs / "images" / "austin1.tif").write_bytes(content)
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 3 and "austin1.tif: " in err
    (inputs / "images" / "austin2.tif").unlink()
    code, _, err = run("tile", inputs, "-o", tmp_path / "other", *SIZE)
    assert code == 65 and "austin1.tif: " in one_error(err)


def test_row_2_missing_files_and_empty_folders_are_named(run: Run, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given, name in ((tmp_path / "none.tif", "none.tif"), (tmp_path / "empty", "empty"), ("x*.tif", "x*.tif")):
        code, _, err = run("tile", given, "--masks", inputs / "gt", "-o", tmp_path / "set")
        assert code == 66 and name in one_error(err)
    code, _, err = run("tile", inputs / "images", "--masks", tmp_path / "none.gpkg", "-o", tmp_path / "set")
    assert code == 66 and "none.gpkg" in one_error(err)
    (inputs / "gt").rename(inputs / "truth")  # else it is found beside the images
    code, _, err = run("tile", inputs / "images", "-o", tmp_path / "set")
    assert code == 65 and "no mask" in one_error(err)


def test_row_4_scenes_without_a_place_need_permission(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write
) -> None:
    points = [GroundControlPoint(r, c, 616000 + c, 3347000 - r) for r, c in ((0, 0), (0, 128), (128, 0), (128, 128))]
    for number, grid in ((1, {"gcps": points}), (2, {"transform": None})):
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning) if number == 2 else pytest.MonkeyPatch.context():
            settings = {"transform": None, "crs": "EPSG:26914" if number == 1 else None, **grid}
            scene_file(inputs / "images" / f"austin{number}.tif", **settings)
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 65 and "--allow-ungeoreferenced" in one_error(err)
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE, "--allow-ungeoreferenced")
    assert code == 0, err
    with rasterio.open(tmp_path / "set" / "images" / "austin1_00064_00064.tif") as tile:
        found = {(p.row, p.col, p.x, p.y) for p in tile.gcps[0]}
    assert found == {(r - 64, c - 64, 616000 + c, 3347000 - r) for r in (0, 128) for c in (0, 128)}


@pytest.mark.parametrize(("crs", "transform"), [
    ("EPSG:2277", AUSTIN), ("+proj=tmerc +lat_0=30 +lon_0=-97 +ellps=GRS80 +units=m", AUSTIN),
    ('LOCAL_CS["site",UNIT["metre",1]]', AUSTIN), ("EPSG:26914", tuple(Affine(*AUSTIN) @ Affine.rotation(33))[:6]),
    ("EPSG:26914", (0.3, 0, 9, 0, 0.5, 8)),
])  # fmt: skip
def test_rows_5_and_6_any_crs_and_grid_are_kept_to_the_letter(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write, mask_file: Write, crs: str, transform: tuple[float, ...]
) -> None:
    scene = scene_file(inputs / "images" / "austin1.tif", crs=crs, transform=transform)
    mask_file(inputs / "gt" / "austin1.tif", crs=crs, transform=transform)
    code, _, err = run("tile", scene, "--masks", inputs / "gt" / "austin1.tif", "-o", tmp_path / "set", *SIZE)
    assert code == 0, err
    with rasterio.open(scene) as whole, rasterio.open(tmp_path / "set" / "masks" / "austin1_00064_00064.tif") as tile:
        assert tile.crs.to_wkt() == whole.crs.to_wkt()
        assert np.abs(np.array(tile.transform) - whole.transform @ Affine.translation(64, 64)).max() < 1e-9


@pytest.mark.parametrize(("change", "words"), [
    ({"size": (120, 128)}, "120x128"),
    ({"transform": (0.3, 0, 616000.6, 0, -0.3, 3347000)}, "offset +0.00 rows, +2.00 columns"),
    ({"transform": (0.5, 0, 616000, 0, -0.5, 3347000)}, "0.5"), ({"crs": "EPSG:32614"}, "EPSG:32614"),
])  # fmt: skip
def test_row_7_a_mask_on_another_grid_is_refused(
    run: Run, inputs: Path, tmp_path: Path, mask_file: Write, change: dict[str, Any], words: str
) -> None:
    mask = mask_file(inputs / "gt" / "austin1.tif", **change)
    scene = inputs / "images" / "austin1.tif"
    code, _, err = run("tile", scene, "--masks", mask, "-o", tmp_path / "set", *SIZE)
    assert code == 65 and words in one_error(err) and "128x128" in err
    code, _, err = run("tile", inputs, "-o", tmp_path / "both", *SIZE)
    assert code == 3 and words in err


def test_row_7_half_a_pixel_is_tolerated_with_a_warning(
    run: Run, inputs: Path, tmp_path: Path, mask_file: Write
) -> None:
    mask_file(inputs / "gt" / "austin1.tif", transform=(0.3, 0, 616000.1, 0, -0.3, 3347000))
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 0 and "austin1.tif: lies 0.33 px off" in err


@pytest.mark.parametrize(("profile", "words"), [
    ({"dtype": "uint16"}, "uint8 is wanted: use --scale LO:HI"), ({"dtype": "float32"}, "use --scale LO:HI"),
    ({"bands": 1, "photometric": "palette"}, "palette"),
])  # fmt: skip
def test_row_8_pixels_that_need_a_decision_are_refused(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write, profile: dict[str, Any], words: str
) -> None:
    scene = scene_file(inputs / "images" / "austin1.tif", **profile)
    code, _, err = run("tile", scene, "--masks", inputs / "gt" / "austin1.tif", "-o", tmp_path / "set", *SIZE)
    assert code == 65 and words in one_error(err)


def test_row_8_four_bands_and_sixteen_bits_are_taken_when_said_how(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write
) -> None:
    for number in (1, 2):
        scene_file(inputs / "images" / f"austin{number}.tif", bands=4, dtype="uint16")
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE, "--bands", "4,3,2", "--scale", "0:4095")
    assert code == 0, err
    body = json.loads((tmp_path / "set" / "tileset.json").read_text())
    assert (body["bands"], body["scale"], len(body["mean"])) == ([4, 3, 2], [0, 4095], 3)
    for option, value in (
        ("--bands", "1;2"),
        ("--scale", "9"),
        ("--scale", "9:1"),
        ("--building-values", "a"),
        ("--bands", "9"),
    ):
        code, _, err = run("tile", inputs, "-o", tmp_path / "other", *SIZE, "--scale", "0:4095", option, value)
        assert code in ((2,) if value != "9" or option == "--scale" else (65,)), (option, value, err)
        assert option in err


def test_row_9_nan_and_nodata_become_unlabelled(run: Run, inputs: Path, tmp_path: Path, scene_file: Write) -> None:
    pixels = np.full((3, 128, 128), 0.5, np.float32)
    pixels[1, :10, :10], pixels[:, 20:30, 20:30] = np.nan, -9999
    scene = scene_file(inputs / "images" / "austin1.tif", pixels, nodata=-9999)
    code, _, err = run(
        "tile", scene, "--masks", inputs / "gt" / "austin1.tif", "-o", tmp_path / "set", *SIZE, "--scale", "0:1"
    )
    assert code == 0, err
    with rasterio.open(tmp_path / "set" / "masks" / "austin1_00000_00000.tif") as mask:
        holes = mask.read(1) == 255
    assert holes[:10, :10].all() and holes[20:30, 20:30].all() and holes.sum() == 200


def test_row_10_empty_tiles_are_counted_and_an_empty_set_is_an_error(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write
) -> None:
    scene_file(inputs / "images" / "austin1.tif", np.zeros((3, 128, 128), np.uint8), nodata=0)
    code, out, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE, "--json")
    assert code == 0 and json.loads(out)["left_out"]["nodata"] == 4, err
    (inputs / "images" / "austin2.tif").unlink()
    code, _, err = run("tile", inputs, "-o", tmp_path / "none", *SIZE)
    assert code == 65 and "no training tile is left (4 nodata)" in one_error(err)


@pytest.mark.parametrize("size", [(1, 1), (31, 700), (97, 61)])
def test_row_11_odd_sizes_are_covered(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write, mask_file: Write, size: tuple[int, int]
) -> None:
    scene = scene_file(inputs / "images" / "austin1.tif", size=size)
    mask = mask_file(inputs / "gt" / "austin1.tif", size=size)
    assert run("tile", scene, "--masks", mask, "-o", tmp_path / "set", *SIZE)[0] == 0
    tiles = json.loads((tmp_path / "set" / "tileset.json").read_text())["tiles"]
    assert sum(tile["core"][2] * tile["core"][3] for tile in tiles) == size[0] * size[1]


def test_row_12_a_huge_claim_is_refused_before_anything_is_allocated(run: Run, inputs: Path, tmp_path: Path) -> None:
    scene = inputs / "images" / "austin1.tif"
    with rasterio.open(scene, "w", driver="GTiff", width=300000, height=300000, count=3, dtype="uint8", sparse_ok=True,
                       tiled=True, bigtiff="yes", crs="EPSG:26914", transform=Affine(*AUSTIN)):  # fmt: skip
        pass
    code, _, err = run("tile", scene, "--masks", inputs / "gt" / "austin1.tif", "-o", tmp_path / "set")
    assert code == 65 and "--max-pixels" in one_error(err)


def process(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "aerialseg", "tile", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.005)


@pytest.fixture
def many(tmp_path: Path, scene_file: Write, mask_file: Write) -> Path:
    for number in range(1, 5):
        scene_file(tmp_path / "many" / "images" / f"austin{number}.tif", size=(128, 512), seed=number)
        mask_file(tmp_path / "many" / "gt" / f"austin{number}.tif", size=(128, 512))
    return tmp_path / "many"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_rows_15_and_16_a_killed_or_stopped_run_goes_on(
    run: Run, many: Path, tmp_path: Path, tree_hashes: Hashes, signum: signal.Signals
) -> None:
    out = tmp_path / "set"
    running = process(many, "-o", out, *SIZE, "--threads", 1)
    wait_for(out / ".tiling" / "austin1.json", running)
    began = time.monotonic()
    running.send_signal(signum)
    _, err = running.communicate(timeout=30)
    assert running.returncode == (-9 if signum == signal.SIGKILL else 143), err
    if signum == signal.SIGTERM:
        assert time.monotonic() - began < 10 and "run the same command again" in err
    assert not (out / "tileset.json").exists()
    for path in out.glob("*/[!.]*.tif"):  # a kill may leave a temporary file; the next run sweeps it
        with rasterio.open(path) as tile:
            assert tile.read().shape[1:] == (64, 64), "a file under a final name is whole"
    code, stdout, err = run("tile", many, "-o", out, *SIZE, "--json")
    assert code == 0 and 1 <= json.loads(stdout)["scenes_cut"] < 4, err
    assert run("tile", many, "-o", tmp_path / "whole", *SIZE)[0] == 0
    found, expected = tree_hashes(out), tree_hashes(tmp_path / "whole")
    assert {k: v for k, v in found.items() if k != "report.json"} == {
        k: v for k, v in expected.items() if k != "report.json"
    }


def test_row_17_an_output_that_cannot_be_made_is_refused(
    run: Run, inputs: Path, tmp_path: Path, tree_hashes: Hashes
) -> None:
    (tmp_path / "file").write_text("in the way")
    before = tree_hashes(tmp_path)
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/aerialseg")):
        code, _, err = run("tile", inputs, "-o", out, *SIZE)
        assert code == 73 and str(out) in one_error(err)
    assert tree_hashes(tmp_path) == before


def test_row_18_scenes_of_one_name_keep_apart(run: Run, tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    for folder in "ab":
        scene_file(tmp_path / "images" / folder / "x.tif", size=(64, 64), seed=ord(folder))
        mask_file(tmp_path / "gt" / folder / "x.tif", size=(64, 64))
    assert run("tile", tmp_path / "images", "--masks", tmp_path / "gt", "-o", tmp_path / "set", *SIZE)[0] == 0
    assert sorted(path.name for path in (tmp_path / "set" / "images").iterdir()) == [
        "a__x_00000_00000.tif",
        "b__x_00000_00000.tif",
    ]
    given = [tmp_path / "images" / folder / "x.tif" for folder in "ab"]
    code, _, err = run("tile", *given, "--masks", tmp_path / "gt", "-o", tmp_path / "other", *SIZE)
    assert code == 2 and "a/x.tif" in one_error(err) and "b/x.tif" in err
    shutil.copy(given[0], tmp_path / "images" / "a" / "X.TIF")
    code, _, err = run("tile", tmp_path / "images", "--masks", tmp_path / "gt", "-o", tmp_path / "other", *SIZE)
    assert code == 2 and "X.TIF" in one_error(err)


def test_row_19_strange_names_work_everywhere(run: Run, tmp_path: Path, scene_file: Write, mask_file: Write) -> None:
    for name in ("with space", "ünï ☃", "#1%20", 'it\'s "quoted"', "two\nlines", "-leading", "n" * 251):
        scene_file(tmp_path / "in" / "images" / f"{name}.tif", size=(64, 64))
        mask_file(tmp_path / "in" / "gt" / f"{name}.tif", size=(64, 64))
    code, out, err = run("tile", tmp_path / "in", "-o", tmp_path / "sét # %41", *SIZE, "--json")
    assert code == 0 and json.loads(out)["tiles"]["train"] == 7, err
    assert len(pyogrio.raw.read(tmp_path / "sét # %41" / "index.gpkg", layer="tiles")[2]) == 7


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system refuses such names")
def test_row_19_a_name_that_is_not_utf8_is_refused(run: Run, inputs: Path, tmp_path: Path) -> None:
    broken = os.fsencode(inputs / "images") + b"/caf\xe9.tif"
    shutil.copy(os.fsencode(inputs / "images" / "austin1.tif"), broken)
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 65 and "not UTF-8" in one_error(err)


@pytest.mark.parametrize("prefix", ["GTIFF_DIR:1:", "/vsicurl/http://127.0.0.1:9/", "http://127.0.0.1:9/", "vrt://"])
@pytest.mark.parametrize("option", ["scene", "--masks", "--val-area", "--labelled-area"])
def test_row_21_addresses_and_drivers_are_refused_as_paths(
    run: Run, inputs: Path, tmp_path: Path, tree_hashes: Hashes, prefix: str, option: str
) -> None:
    before = tree_hashes(tmp_path)
    target = f"{prefix}{inputs / 'images' / 'austin1.tif'}"
    scene = target if option == "scene" else inputs / "images"
    masks = target if option == "--masks" else inputs / "gt"
    others = (option, target.replace(".tif", ".gpkg")) if option.endswith("area") else ()
    code, _, err = run("tile", scene, "--masks", masks, *others, "-o", tmp_path / "set", "--size", 64)
    assert code == 2, err
    one_error(err)
    assert tree_hashes(tmp_path) == before


def test_row_22_disguised_files_are_refused_and_read_nothing(run: Run, inputs: Path, tmp_path: Path) -> None:
    secret = inputs / "images" / "austin2.tif"
    source = f"<SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{source}</VRTRasterBand>'
    vrt = f'<VRTDataset rasterXSize="128" rasterYSize="128">{band}</VRTDataset>'
    (inputs / "images" / "austin1.tif").write_text(vrt)
    code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 3 and "virtual raster" in err
    house = polygons(tmp_path / "secret.gpkg", shapely.box(616000, 3346990, 616010, 3347000))
    layer = f'<OGRVRTLayer name="secret"><SrcDataSource>{house}</SrcDataSource></OGRVRTLayer>'
    ogr = f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>"
    pipeline = json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read {house}"})
    for content in (ogr, pipeline):
        (tmp_path / "evil.geojson").write_text(content)
        code, _, err = run("tile", secret, "--masks", tmp_path / "evil.geojson", "-o", tmp_path / "other", *SIZE)
        assert code == 65 and "evil.geojson: the content is not GeoJSON" in one_error(err)


def test_row_30_two_runs_in_one_folder_exclude_each_other(run: Run, inputs: Path, tmp_path: Path) -> None:
    from aerialseg.files import locked

    (tmp_path / "set").mkdir()
    with locked(tmp_path / "set"):
        code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 73 and "another aerialseg run" in one_error(err)


def test_row_38_an_input_is_never_an_output(
    run: Run, inputs: Path, tmp_path: Path, tree_hashes: Hashes, mask_file: Write
) -> None:
    before = tree_hashes(tmp_path)
    code, _, err = run("tile", inputs, "-o", inputs, *SIZE)
    assert code == 73 and "images: holds files that are not tiles" in one_error(err)
    assert tree_hashes(tmp_path) == before
    mask_file(inputs / "gt" / "austin1_00000_00000.tif")
    shutil.copy(inputs / "images" / "austin1.tif", inputs / "images" / "austin1_00000_00000.tif")
    before = tree_hashes(tmp_path)
    code, _, err = run("tile", inputs, "-o", inputs, *SIZE, "--overwrite")
    assert code == 2 and "would overwrite the input" in one_error(err)
    (tmp_path / "link").symlink_to(inputs)
    code, _, err = run("tile", inputs, "-o", tmp_path / "link", *SIZE, "--overwrite")
    assert code == 2
    (tmp_path / "link").unlink()
    assert tree_hashes(tmp_path) == before


def test_row_39_near_infrared_tagged_alpha_is_refused(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write
) -> None:
    scene = scene_file(inputs / "images" / "austin1.tif", bands=4, photometric="RGB", alpha="yes")
    arguments = ("tile", scene, "--masks", inputs / "gt" / "austin1.tif", "-o", tmp_path / "set", *SIZE)
    code, _, err = run(*arguments)
    assert code == 65 and "band 4 looks like data" in one_error(err) and "--bands" in err
    assert run(*arguments, "--bands", "4,1,2")[0] == 0


def test_row_40_the_share_outside_the_labels_is_said_and_can_be_ignored(run: Run, inputs: Path, tmp_path: Path) -> None:
    west = polygons(tmp_path / "west.gpkg", shapely.box(616000, 3346900, 616000 + 0.3 * 64, 3347000))
    arguments = ("tile", inputs / "images", "--masks", west, *SIZE)
    code, _, err = run(*arguments, "-o", tmp_path / "all")
    assert code == 0 and "50% of it lies outside them" in err and "--labelled-area" in err
    code, out, err = run(*arguments, "-o", tmp_path / "part", "--labelled-area", west, "--json")
    assert code == 0 and "lies outside" not in err
    assert json.loads(out)["left_out"]["unlabelled"] == 4


def test_row_45_a_colour_that_is_no_data_is_unlabelled_and_part_of_what_the_set_was_made_with(
    run: Run, inputs: Path, tmp_path: Path, scene_file: Write
) -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (3, 128, 128), dtype=np.uint8)
    pixels[:, :, :30] = 255
    scene_file(inputs / "images" / "austin1.tif", pixels)
    arguments = ("tile", inputs, "-o", tmp_path / "set", *SIZE)
    code, _, err = run(*arguments)
    assert code == 0 and "austin1.tif: a large part of it, from its border on, is of one colour, 255,255,255" in err
    assert "nodata" not in json.loads((tmp_path / "set/tileset.json").read_text())
    code, _, err = run(*arguments, "--nodata", "255,255,255")
    assert code == 0 and "2 scenes cut" in err and "one colour" not in err
    assert json.loads((tmp_path / "set/tileset.json").read_text())["nodata"] == [255, 255, 255]
    with rasterio.open(tmp_path / "set/masks/austin1_00000_00000.tif") as mask:
        labels = mask.read(1)
    assert (labels[:, :30] == 255).all() and (labels[:, 30:] != 255).all()
    code, _, err = run(*arguments, "--nodata", "255,255,255")
    assert code == 0 and "nothing had changed" in err
    for words, line in ((("--nodata", "white"), "--nodata white: give numbers"), (("--alpha", "4th"), "--alpha 4th")):
        code, _, err = run(*arguments, *words)
        assert code == 2 and line in one_error(err)


def test_a_gap_that_takes_more_than_it_leaves_is_said_with_a_way_out(
    run: Run, tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    """Blocks lie within a scene: of touching scenes that are a tile each, most are the gap of some other."""
    for row, col in np.ndindex(5, 5):
        place = Affine(0.3, 0, 616000 + 19.2 * col, 0, -0.3, 3347000 - 19.2 * row)
        for write, folder in ((scene_file, "images"), (mask_file, "gt")):
            write(tmp_path / "in" / folder / f"town{5 * row + col}.tif", size=(64, 64), transform=place)
    arguments = ("tile", tmp_path / "in/images", "-o", tmp_path / "set")
    code, out, err = run(*arguments, "--split", "blocks=4", "--json")
    tiles, gap = json.loads(out)["tiles"], json.loads(out)["left_out"]["gap"]
    assert code == 0 and gap == 25 - sum(tiles.values()) > tiles["train"]
    assert f"{gap} tiles are left out as a gap around those that validate, more than the {tiles['train']} that" in err
    assert "--split auto or a smaller --size keeps more" in err and "25 scenes cut" in err
    code, _, err = run(*arguments, "--split", "blocks=4")
    assert code == 0 and "nothing had changed" in err
    code, _, err = run(*arguments, "-f")
    assert code == 0 and "left out" not in err
    assert err.endswith(f"next: aerialseg train {tmp_path / 'set'} -c small -o {Path('runs/set')}\n")


def test_row_45_labels_hidden_by_a_nodata_tag_are_said_or_taken(
    run: Run, inputs: Path, tmp_path: Path, mask_file: Write
) -> None:
    labels = np.zeros((128, 128), np.uint8)
    labels[20:60, 20:100] = 1
    for number in (1, 2):
        mask_file(inputs / "gt" / f"austin{number}.tif", labels, nodata=1)
    arguments = ("tile", inputs / "images", "--masks", inputs / "gt", "-o", tmp_path / "set", *SIZE)
    code, _, err = run(*arguments)
    assert code == 0 and "declares 1 as nodata, so 19.5% of it is unlabelled (and 1 more like it)" in err
    assert "no labelled pixel is building" in err
    code, out, err = run(*arguments, "--building-values", "1", "--json")
    assert code == 0 and "nodata" not in err and "2 scenes cut" in err
    assert json.loads(out)["building_fraction"]["train"] == pytest.approx(3200 / 128**2)


def test_row_45_masks_whose_zero_is_white_are_refused_until_told(
    run: Run, inputs: Path, tmp_path: Path, mask_file: Write
) -> None:
    with rasterio.open(inputs / "gt/austin1.tif") as mask:
        stored = (mask.read(1) == 0).astype(np.uint8)
    mask_file(inputs / "gt/austin1.tif", stored, nbits=1, compress="CCITTFAX4", photometric="MINISWHITE")
    image = inputs / "images/austin1.tif"
    arguments = ("tile", image, "--masks", inputs / "gt/austin1.tif", "-o", tmp_path / "set", *SIZE)
    code, _, err = run(*arguments)
    assert code == 65 and "--building-values 0 takes" in one_error(err) and "--building-values 1 what" in err
    code, out, err = run(*arguments, "--building-values", "0", "--json")
    assert code == 0 and json.loads(out)["building_fraction"]["train"] == pytest.approx((stored == 0).mean()), err


@pytest.mark.parametrize("changes", ["images/austin1.tif", "gt/austin1.tif", "images/austin1.tfw", "gone"])
@pytest.mark.parametrize("reader", ["plan.inspect_scene", "build.cut_tiles"])
def test_row_41_an_input_that_changes_meanwhile_fails_its_scene_and_counts_for_nothing(
    run: Run,
    inputs: Path,
    tmp_path: Path,
    scene_file: Write,
    mask_file: Write,
    monkeypatch: pytest.MonkeyPatch,
    changes: str,
    reader: str,
) -> None:
    """Replaced right after it was first looked at, or while it is cut: the set must not vouch for the new bytes."""
    module, name = reader.split(".")
    module = f"aerialseg.geo.tiles.{module}"
    real, left = getattr(importlib.import_module(module), name), [1]

    def change() -> None:
        if changes == "gone":
            (inputs / "gt/austin1.tif").unlink()
        elif changes.endswith(".tfw"):
            (inputs / changes).write_text("0.5\n0\n0\n-0.5\n0\n0\n")
        else:
            fresh = scene_file if changes.startswith("images") else mask_file
            fresh(tmp_path / "new.tif", seed=9, transform=(0.3, 0.0, 700000.0, 0.0, -0.3, 3347000.0))
            (tmp_path / "new.tif").replace(inputs / changes)

    def read(*arguments: Any) -> Any:
        result = real(*arguments)
        if left and "austin1" in str(arguments[0]):
            left.clear()
            change()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{name}", read)
        code, _, err = run("tile", inputs, "-o", tmp_path / "set", *SIZE)
    assert code == 3 and not left, err
    said = next(line for line in err.splitlines() if line.startswith("error: "))
    if (changes, reader) == ("gone", "plan.inspect_scene"):
        assert said.endswith("gt/austin1.tif: no such file")
    elif (changes, reader) != ("gt/austin1.tif", "plan.inspect_scene"):  # that one lies elsewhere now, and is named
        changed = {"images/austin1.tfw": "images/austin1.tif", "gone": "gt/austin1.tif"}.get(changes, changes)
        assert said.endswith(f"{changed}: changed while it was cut; run again")
    body = json.loads((tmp_path / "set" / "tileset.json").read_text())
    assert [scene["name"] for scene in body["scenes"]] == ["austin2"] and list(body["failed"]) == ["austin1"]
    assert not (tmp_path / "set" / ".tiling" / "austin1.json").exists()


def test_row_41_labels_that_change_meanwhile_fail_every_scene_not_yet_cut(
    run: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aerialseg.geo.tiles import build

    labels = polygons(tmp_path / "l.gpkg", shapely.box(616000, 3346970, 616030, 3347000))
    real = build.cut_tiles

    def cut(job: Any, *arguments: Any) -> Any:
        if job.scene.name == "austin2":
            polygons(tmp_path / "l.gpkg", shapely.box(616010, 3346980, 616030, 3347000))
        return real(job, *arguments)

    monkeypatch.setattr("aerialseg.geo.tiles.build.cut_tiles", cut)
    arguments = ("tile", inputs / "images", "--masks", labels, "-o", tmp_path / "set", *SIZE, "--threads", 1)
    code, _, err = run(*arguments)
    assert code in (3, 65) and f"{labels}: changed while it was cut; run again" in err, err
    code, _, err = run(*arguments, "--fail-fast")
    assert code == 65 and one_error(err).endswith("l.gpkg: changed while it was cut; run again")


@pytest.mark.slow
def test_row_41_a_scene_replaced_under_the_command_is_cut_again_by_the_next_run(
    cli: Callable[..., Any], tmp_path: Path, scene_file: Write, mask_file: Write
) -> None:
    """One scene large enough to be caught at work, another written over it from outside."""
    scene = scene_file(tmp_path / "in" / "images" / "a.tif", size=(6000, 6000))
    other = scene_file(tmp_path / "other.tif", size=(6000, 6000), seed=5)
    mask_file(tmp_path / "in" / "gt" / "a.tif", size=(6000, 6000))
    words = ("tile", tmp_path / "in", "-o", tmp_path / "set", "--size", "256", "--split", "0", "--threads", "1")
    work = subprocess.Popen([sys.executable, "-m", "aerialseg", *map(str, words)], stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "set" / "images").glob("*.tif")):
        assert work.poll() is None, work.communicate()
        time.sleep(0.01)
    other.replace(scene)
    err = work.communicate()[1]
    assert work.returncode == 65 and one_error(err).endswith("images/a.tif: changed while it was cut; run again")
    assert not (tmp_path / "set" / "tileset.json").exists()
    again = cli(*map(str, words))
    assert again.returncode == 0, again.stderr
    with rasterio.open(scene) as whole, rasterio.open(tmp_path / "set" / "images" / "a_00000_00000.tif") as tile:
        assert np.array_equal(whole.read(window=((0, 256), (0, 256))), tile.read([1, 2, 3]))
