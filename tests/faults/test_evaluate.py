"""FAULTS.md for `evaluate`: the exit code, one line that names the file, and not a byte changed anywhere."""

from __future__ import annotations

import json
import os
import struct
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]

GRID = (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)


@pytest.fixture
def pair(tmp_path: Path, mask_file: Write) -> Path:
    """A folder with one good pair: out/x.tif as `predict` writes it, gt/x.tif as Inria does."""
    mask_file(tmp_path / "gt/x.tif")
    with rasterio.open(tmp_path / "gt/x.tif") as truth:
        mask_file(tmp_path / "out/x.tif", np.roll(truth.read(1) // 255, 3, 1), nodata=255, compress="DEFLATE")
    return tmp_path


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    """Evaluation writes nothing, GDAL's side files included; `fails` compares the contents too."""
    yield
    assert not list(tmp_path.rglob("*.aux.xml"))
    assert not list(tmp_path.rglob(".aerialseg-*"))


def fails(run: Run, folder: Path, *options: Any) -> tuple[int, str]:
    """Run evaluate on the folder's pair; returns the exit code and the error line, which must be the only one."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = run("evaluate", folder / "out", "--masks", folder / "gt", *options)
    assert out == ""
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return code, lines[0]


@pytest.mark.parametrize("side", ["out", "gt"])
@pytest.mark.parametrize("share", [0.999, 0.5, 0.02])
def test_row_1_a_truncated_file_fails_with_its_name(pair: Path, run: Run, side: str, share: float) -> None:
    path = pair / side / "x.tif"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    code, line = fails(run, pair)
    assert code == 65
    assert f"{side}/x.tif" in line


@pytest.mark.parametrize("side", ["out", "gt"])
@pytest.mark.parametrize("content", [b"", b"hello", b"<!doctype html><html>"])
def test_row_2_a_file_that_is_no_raster(pair: Path, run: Run, side: str, content: bytes) -> None:
    (pair / side / "x.tif").write_bytes(content)
    code, line = fails(run, pair)
    assert code == 65
    assert f"{side}/x.tif" in line


def test_row_2_nothing_to_evaluate(pair: Path, run: Run) -> None:
    (pair / "out/x.tif").unlink()
    assert fails(run, pair)[0] == 66
    code, _, err = run("evaluate", pair / "missing", "--masks", pair / "gt")
    assert code == 66
    assert "missing: no such file or folder" in err


def test_row_4_no_georeferencing_needs_permission(tmp_path: Path, mask_file: Write, run: Run) -> None:
    with warnings.catch_warnings(action="ignore", category=rasterio.errors.NotGeoreferencedWarning):
        for side in ("out", "gt"):
            mask_file(tmp_path / side / "x.tif", crs=None, transform=None)
    code, line = fails(run, tmp_path)
    assert code == 65
    assert "gt/x.tif: has no georeferencing" in line
    assert "--allow-ungeoreferenced" in line
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--allow-ungeoreferenced", "--json")
    assert code == 0
    assert json.loads(out)["overall"]["iou"] == 1.0


def test_row_5_and_6_any_crs_and_any_six_numbers_compare(tmp_path: Path, mask_file: Write, run: Run) -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    rotated = (0.3, 0.1, 500.0, 0.1, -0.3, 900.0)
    for name, crs, transform in (
        ("a", local, GRID),
        ("b", "EPSG:2277", rotated),
        ("c", "EPSG:4326", (1e-6, 0, 9, 0, 2e-6, 50)),
    ):
        for side in ("out", "gt"):
            mask_file(tmp_path / side / f"{name}.tif", crs=crs, transform=transform)
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--json")
    assert code == 0
    assert {scene["iou"] for scene in json.loads(out)["scenes"].values()} == {1.0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": (128, 127)}, "128x127"),
        ({"transform": (0.3, 0, 616000.6, 0, -0.3, 3347000.0)}, "-2.00 columns"),
        ({"transform": (0.5, 0, 616000.0, 0, -0.5, 3347000.0)}, "pixel 0.5 x -0.5"),
        ({"crs": "EPSG:31256"}, "EPSG:31256"),
    ],
)
def test_row_7_another_grid_is_refused_with_both_grids(
    pair: Path, mask_file: Write, run: Run, change: dict[str, Any], expected: str
) -> None:
    mask_file(pair / "gt/x.tif", **change)
    code, line = fails(run, pair)
    assert code == 65
    assert "out/x.tif" in line
    assert "gt/x.tif" in line
    assert "128x128 px at (616000, 3347000)" in line
    assert expected in line


def test_row_7_half_a_pixel_is_tolerated_with_a_warning(pair: Path, mask_file: Write, run: Run) -> None:
    mask_file(pair / "gt/x.tif", transform=(0.3, 0, 616000.12, 0, -0.3, 3347000.0))
    code, out, err = run("evaluate", pair / "out", "--masks", pair / "gt", "--json")
    assert code == 0
    assert "warning: " in err
    assert "0.40 px off" in err
    assert json.loads(out)["warnings"]


def test_row_7_every_pair_that_does_not_fit_is_named(pair: Path, mask_file: Write, run: Run) -> None:
    for name in ("x", "y", "z"):
        mask_file(pair / f"out/{name}.tif", size=(128, 128 if name == "y" else 100), nodata=255)
        mask_file(pair / f"gt/{name}.tif")
    code, _, err = run("evaluate", pair / "out", "--masks", pair / "gt")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 65
    assert len(lines) == 2
    assert any("out/x.tif" in line for line in lines)
    assert any("out/z.tif" in line for line in lines)


def test_row_8_an_image_is_no_mask(pair: Path, scene_file: Write, run: Run) -> None:
    scene_file(pair / "gt/x.tif")
    code, line = fails(run, pair)
    assert code == 65
    assert "gt/x.tif: a mask has one band" in line


def test_row_9_nodata_of_every_kind_is_left_out(tmp_path: Path, mask_file: Write, run: Run) -> None:
    """The same area marked by value, by mask band, and by NaN: equal scores, whatever lies under the mask."""
    draw = np.random.default_rng(0)
    truth, here = draw.random((64, 64)) < 0.4, draw.random((64, 64)) < 0.8
    forms = {
        "value": (np.where(here, truth, 7).astype(np.uint8), {"nodata": 7}),
        "nan": (np.where(here, truth, np.nan).astype(np.float32), {}),
        "band": (np.where(here, truth, True).astype(np.uint8), {}),
    }
    for name, (array, profile) in forms.items():
        mask_file(tmp_path / "gt" / f"{name}.tif", array, **profile)
        mask_file(tmp_path / "out" / f"{name}.tif", np.roll(truth, 1, 0).astype(np.uint8), nodata=255)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "gt/band.tif", "r+") as target:
        target.write_mask(here)
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--json")
    scenes = json.loads(out)["scenes"]
    assert code == 0
    assert scenes["value"] == scenes["nan"] == scenes["band"]
    assert scenes["nan"]["uncounted"] == (~here).sum()


def test_row_10_all_nodata_scores_nothing_and_says_so(pair: Path, mask_file: Write, run: Run) -> None:
    mask_file(pair / "out/x.tif", np.full((128, 128), 255, np.uint8), nodata=255)
    code, out, _ = run("evaluate", pair / "out", "--masks", pair / "gt", "--json")
    assert code == 0
    overall = json.loads(out)["overall"]
    assert overall["iou"] is None
    assert overall["uncounted_share"] == 1.0


@pytest.mark.parametrize("size", [(1, 1), (31, 700), (97, 61)])
def test_row_11_any_size(tmp_path: Path, mask_file: Write, run: Run, size: tuple[int, int]) -> None:
    for side in ("out", "gt"):
        mask_file(tmp_path / side / "x.tif", size=size)
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--json")
    assert code == 0
    assert json.loads(out)["overall"]["accuracy"] == 1.0


def test_row_12_a_small_header_claiming_a_huge_mask(pair: Path, run: Run) -> None:
    (pair / "gt/x.tif").write_bytes(lying_header(300_000))
    code, line = fails(run, pair)
    assert code == 65
    assert "gt/x.tif: 300000x300000 is 9e+10 pixels, more than --max-pixels" in line


def test_row_18_two_predictions_of_one_name(pair: Path, mask_file: Write, run: Run) -> None:
    mask_file(pair / "out/X.TIF")
    code, line = fails(run, pair)
    assert code == 2
    assert "x.tif" in line
    assert "X.TIF" in line


@pytest.mark.parametrize("name", ["a b#%'\"", "überbau", "-dash", "two\nlines", "n" * 251])
def test_row_19_odd_names(tmp_path: Path, mask_file: Write, run: Run, name: str) -> None:
    for side in ("out", "gt"):
        mask_file(tmp_path / side / f"{name}.tif")
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--json")
    assert code == 0
    assert list(json.loads(out)["scenes"]) == [name]
    code, out, _ = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt")
    assert code == 0


def test_row_19_a_name_that_is_not_utf_8(pair: Path, run: Run) -> None:
    os.rename(os.fsencode(pair / "out/x.tif"), os.fsencode(pair / "out") + b"/\xff.tif")  # noqa: PTH104
    code, _, err = run("evaluate", pair / "out", "--masks", pair / "gt")
    assert code == 65
    assert "not UTF-8" in err


@pytest.mark.parametrize(
    "path", ["GTIFF_DIR:1:x.tif", "/vsicurl/http://127.0.0.1:9/x.tif", "http://127.0.0.1:9/x.tif", "vrt://x.tif"]
)
@pytest.mark.parametrize("side", ["prediction", "mask"])
def test_row_21_remote_and_driver_paths_are_usage_errors(pair: Path, run: Run, path: str, side: str) -> None:
    arguments = (path, "--masks", pair / "gt") if side == "prediction" else (pair / "out", "--masks", path)
    code, _, err = run("evaluate", *arguments)
    assert code == 2
    assert err.startswith("error: ")


@pytest.mark.parametrize("side", ["out", "gt"])
def test_row_22_a_virtual_raster_in_disguise_is_not_followed(pair: Path, run: Run, side: str) -> None:
    source = pair / "secret.tif"
    source.write_bytes((pair / "gt/x.tif").read_bytes())
    (pair / side / "x.tif").write_text(
        f'<VRTDataset rasterXSize="128" rasterYSize="128"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    code, line = fails(run, pair)
    assert code == 65
    assert f"{side}/x.tif" in line


def test_a_process_of_its_own_ends_alike(pair: Path, cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = cli("evaluate", pair / "out", "--masks", pair / "gt", "--json")
    assert done.returncode == 0
    assert 0 < json.loads(done.stdout)["overall"]["iou"] < 1
    (pair / "out/x.tif").write_bytes(b"")
    failed = cli("evaluate", pair / "out", "--masks", pair / "gt", "--json")
    assert failed.returncode == 65
    assert failed.stdout == ""
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")


def lying_header(size: int) -> bytes:
    """A classic TIFF of a few hundred bytes that claims `size` x `size` uint8 pixels in one-row strips."""
    tags = ((256, 4), (257, 4), (258, 3), (259, 3), (262, 3), (273, 4), (277, 3), (278, 4), (279, 4))
    values = (size, size, 8, 1, 1, 8, 1, 1, 8)
    entries = [struct.pack("<HHII", *tag, 1, value) for tag, value in zip(tags, values, strict=True)]
    directory = struct.pack("<H", len(entries)) + b"".join(entries)
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + directory + bytes(4)


def test_row_45_a_truth_hidden_by_its_nodata_tag_is_said_or_taken(pair: Path, mask_file: Write, run: Run) -> None:
    with rasterio.open(pair / "gt/x.tif") as truth:
        values = truth.read(1)
    mask_file(pair / "gt/x.tif", values, nodata=255)
    command = ("evaluate", pair / "out", "--masks", pair / "gt", "--json")
    code, out, err = run(*command)
    assert code == 0 and "gt/x.tif: declares 255 as nodata, so 23.5% of it is unlabelled" in err
    assert "no counted pixel is true building" in err
    code, out, err = run(*command, "--building-values", "255")
    assert code == 0 and "nodata" not in err and json.loads(out)["overall"]["iou"] > 0.8


def test_row_45_a_truth_whose_zero_is_white_is_refused_until_told(pair: Path, mask_file: Write, run: Run) -> None:
    with rasterio.open(pair / "gt/x.tif") as truth:
        values = truth.read(1)
    mask_file(pair / "gt/x.tif", 255 - values, photometric="MINISWHITE")
    code, line = fails(run, pair)
    assert code == 65 and "--building-values 0 takes" in line and "--building-values 255" in line
    code, out, _ = run("evaluate", pair / "out", "--masks", pair / "gt", "--building-values", "0", "--json")
    assert code == 0 and json.loads(out)["overall"]["iou"] > 0.8


@pytest.mark.parametrize("changes", ["out/x.tif", "gt/x.tif", "gt/x.tfw"])
def test_row_41_what_changes_while_it_is_evaluated_is_named_and_gives_no_score(
    pair: Path, run: Run, mask_file: Write, monkeypatch: pytest.MonkeyPatch, changes: str
) -> None:
    from aerialseg.evaluation import scores

    real = scores.count_pair

    def count(*arguments: Any) -> Any:
        result = real(*arguments)
        mask_file(pair / "new.tif", seed=3).replace(pair / changes)
        return result

    monkeypatch.setattr(scores, "count_pair", count)
    code, out, err = run("evaluate", pair / "out", "--masks", pair / "gt")
    name = changes.replace(".tfw", ".tif")
    assert (code, out) == (65, "")
    assert err.splitlines()[-1] == f"error: {pair / name}: changed while it was evaluated; run again"


def test_row_41_what_changes_before_the_error_maps_are_drawn_is_said(
    pair: Path, run: Run, mask_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from aerialseg.evaluation import run as evaluation

    real = evaluation.write_error_maps

    def write(*arguments: Any) -> Any:
        mask_file(pair / "gt/x.tif", np.zeros((128, 128), np.uint8))
        return real(*arguments)

    monkeypatch.setattr(evaluation, "write_error_maps", write)
    code, _, err = run("evaluate", pair / "out", "--masks", pair / "gt", "--errors", tmp_path_factory.mktemp("errors"))
    assert code == 65 and err.splitlines()[-1].endswith("gt/x.tif: changed while it was evaluated; run again")
