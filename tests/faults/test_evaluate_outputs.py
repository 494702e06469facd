"""FAULTS.md for what evaluate, compare and submit write: full disks, stops, odd names, hostile files in a zip."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from html_pages import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]
    Hashes = Callable[[Path], dict[str, str]]


@pytest.fixture
def pair(tmp_path: Path, mask_file: Write) -> Path:
    """Noisy masks, so that what is written is not small."""
    rng = np.random.default_rng(0)
    for side in ("out", "gt"):
        blocks = np.kron(rng.random((175, 175)) < 0.3, np.ones((4, 4)))
        mask_file(tmp_path / side / "sfo1.tif", blocks.astype(np.uint8), nodata=255)
    return tmp_path


def commands(folder: Path) -> dict[str, list[Any]]:
    """The commands that write, into a folder `new`."""
    evaluate = ["evaluate", folder / "out", "--masks", folder / "gt"]
    return {
        "report": [*evaluate, "--pixels-only", "--report", folder / "new/r.html"],
        "errors": [*evaluate, "--pixels-only", "--errors", folder / "new"],
        "submit": ["submit", folder / "out", "--out", folder / "new/x.zip", "--test-root", folder / "out"],
    }


@pytest.mark.parametrize("what", ["report", "errors", "submit"])
def test_row_14_a_full_disk_ends_with_74_and_leaves_nothing(
    pair: Path, cli: Callable[..., subprocess.CompletedProcess[str]], tree_hashes: Hashes, what: str
) -> None:
    (pair / "new").mkdir()
    before = tree_hashes(pair)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    done = cli(*commands(pair)[what], preexec_fn=small_files)
    assert done.returncode == 74, done.stderr
    assert "Traceback" not in done.stderr
    assert ".aerialseg-" not in done.stderr, "a temporary name says nothing to a user"
    assert {
        name: digest for name, digest in tree_hashes(pair).items() if not name.endswith(".aerialseg-lock")
    } == before


def test_row_14_a_disk_that_is_full_where_masks_are_unpacked(
    pair: Path, run: Run, cli: Callable[..., subprocess.CompletedProcess[str]], tree_hashes: Hashes
) -> None:
    assert run("submit", pair / "out", "--out", pair / "x.zip", "--test-root", pair / "out")[0] == 0
    (pair / "room").mkdir()
    before = tree_hashes(pair)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    check = ("submit", pair / "x.zip", "--check", "--test-root", pair / "out")
    done = cli(*check, preexec_fn=small_files, env={"TMPDIR": str(pair / "room")})
    assert done.returncode == 74, done.stderr
    assert f"sfo1.tif: cannot be unpacked in {pair / 'room'}" in done.stderr
    assert ".aerialseg-" not in done.stderr
    assert tree_hashes(pair) == before


@pytest.mark.parametrize("share", [0.9, 0.3])
def test_row_1_a_truncated_mask_is_told_from_a_disk_that_is_full(pair: Path, run: Run, share: float) -> None:
    path = pair / "out/sfo1.tif"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    code, _, err = run("submit", pair / "out", "--out", pair / "x.zip", "--test-root", pair / "gt")
    assert code == 65
    assert "out/sfo1.tif: " in err
    assert [file.name for file in pair.iterdir() if not file.is_dir()] == []


def test_row_15_what_a_killed_submit_left_goes_with_the_next(pair: Path, run: Run) -> None:
    left = pair / ".aerialseg-work-0123456789ab"
    left.mkdir()
    (left / "sfo1.tif").touch()
    (left / ".aerialseg-lock").touch()
    assert run("submit", pair / "out", "--out", pair / "x.zip", "--test-root", pair / "out")[0] == 0
    assert not list(pair.glob(".aerialseg-*"))


@pytest.mark.parametrize("what", ["report", "errors", "submit"])
def test_row_17_an_output_that_cannot_be_made_is_refused_before_any_work(
    pair: Path, run: Run, tree_hashes: Hashes, what: str
) -> None:
    (pair / "new").write_text("in the way")
    before = tree_hashes(pair)
    code, out, err = run(*commands(pair)[what])
    assert (code, out) == (73, "")
    assert "new" in err
    assert tree_hashes(pair) == before


@pytest.mark.parametrize("name", ["a b#%'\"<&>", "überbau", "-dash", "two\nlines", "n" * 251])
def test_row_19_odd_names_in_pages_rasters_and_layers(tmp_path: Path, mask_file: Write, run: Run, name: str) -> None:
    import geopandas as gpd
    import rasterio

    truth = np.zeros((64, 64), np.uint8)
    truth[10:20, 10:20] = 1
    mask_file(tmp_path / "gt" / f"{name}.tif", truth)
    mask_file(tmp_path / "out" / f"{name}.tif", np.roll(truth, 30, 0), nodata=255)
    outputs = ("--report", tmp_path / "r.html", "--errors", tmp_path / "errors")
    code, _, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt", *outputs)
    assert code == 0, err
    assert name.replace("\n", "\\n") in check((tmp_path / "r.html").read_text()).text
    with rasterio.open(tmp_path / "errors" / f"{name}.tif") as raster:
        assert np.array_equal(raster.read(1), 2 * truth + 3 * np.roll(truth, 30, 0))
    assert list(gpd.read_file(tmp_path / "errors/errors.gpkg", layer="missed").scene) == [name]


def test_row_20_a_link_at_the_final_name_is_replaced_and_never_followed(pair: Path, run: Run) -> None:
    (pair / "precious").write_text("<!doctype html>\n<!-- aerialseg evaluate: report -->")
    (pair / "r.html").symlink_to(pair / "precious")
    assert run("evaluate", pair / "out", "--masks", pair / "gt", "--report", pair / "r.html")[0] == 0
    assert not (pair / "r.html").is_symlink()
    assert (pair / "precious").read_text().endswith("report -->")


def test_row_21_remote_paths_are_refused_before_any_work(pair: Path, run: Run, tree_hashes: Hashes) -> None:
    before, far = tree_hashes(pair), "http://127.0.0.1:9/x.tif"
    masks = ("--masks", pair / "gt")
    for arguments in (
        ("compare", far, pair / "out", *masks),
        ("compare", pair / "out", "/vsicurl/" + far, *masks),
        ("submit", far, "--out", pair / "x.zip"),
        ("submit", far, "--check"),
        ("submit", "/vsicurl/" + far, "--check"),
        ("evaluate", pair / "out", *masks, "--report", pair / "r.html", "--scenes", far),
        ("evaluate", pair / "out", *masks, "--labelled-area", "http://127.0.0.1:9/x.gpkg"),
        ("evaluate", pair / "out", "--masks", "http://127.0.0.1:9/x.gpkg"),
        ("calibrate", pair / "none", "--scenes", far, "-o", pair / "m.safetensors"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert "only local files are read" in err
    assert tree_hashes(pair) == before


def test_rows_2_and_23_a_model_that_is_none(pair: Path, run: Run, scene_file: Write) -> None:
    import pickle

    scene_file(pair / "scenes/sfo1.tif", size=(700, 700))
    arguments = ("--scenes", pair / "scenes", "--masks", pair / "gt", "-o", pair / "new.safetensors")
    assert run("calibrate", pair / "missing", *arguments)[0] == 66
    (pair / "p.safetensors").write_bytes(pickle.dumps({"a": 1}))
    code, _, err = run("calibrate", pair / "p.safetensors", *arguments)
    assert code == 78
    assert "pickle" in err
    assert not (pair / "new.safetensors").exists()


@pytest.mark.slow
def test_row_16_a_stop_leaves_within_ten_seconds_and_nothing_behind(tmp_path: Path, mask_file: Write) -> None:
    big = {"size": (12000, 12000), "compress": "DEFLATE", "tiled": True, "blockxsize": 512, "blockysize": 512}
    for side in ("out", "gt"):
        mask_file(tmp_path / side / "x.tif", **big)
    arguments = ["evaluate", tmp_path / "out", "--masks", tmp_path / "gt", "--report", tmp_path / "new/r.html"]
    command = [sys.executable, "-m", "aerialseg", *map(str, arguments)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not (tmp_path / "new").exists():  # made by the checks before any counting
        time.sleep(0.05)
        assert running.poll() is None
    time.sleep(1)
    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 143, err
    assert time.monotonic() - began < 10
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("what", ["report", "errors", "submit", "masks"])
def test_row_38_nothing_that_is_read_is_ever_written_over(
    pair: Path, run: Run, scene_file: Write, tree_hashes: Hashes, what: str
) -> None:
    scene = scene_file(pair / "img" / "sfo1.tif", size=(700, 700))
    before = tree_hashes(pair)
    evaluate = ["evaluate", pair / "out", "--masks", pair / "gt" / "sfo1.tif", "--pixels-only", "-f"]
    call = {
        "report": [*evaluate, "--scenes", pair / "img", "--report", scene],
        "errors": [*evaluate, "--scenes", pair / "img", "--report", pair / "r.html", "--errors", pair / "img"],
        "submit": ["submit", pair / "out", "--out", scene, "-f", "--test-root", pair / "img"],
        "masks": [*evaluate, "--report", pair / "gt" / "sfo1.tif"],
    }[what]
    code, _, err = run(*call)
    assert code == 2, err
    assert "would overwrite the input" in err
    assert tree_hashes(pair) == before


@pytest.mark.parametrize("name", ["a.geojson", "errors.gpkg"])
def test_row_38_no_vector_file_of_a_folder_is_written_over(
    pair: Path, run: Run, tree_hashes: Hashes, name: str
) -> None:
    import geopandas as gpd
    from shapely.geometry import box

    (pair / "true").mkdir()
    for file in ("a.geojson", "errors.gpkg"):
        gpd.GeoDataFrame(geometry=[box(616010, 3346850, 616030, 3346870)], crs=26914).to_file(pair / "true" / file)
    before = tree_hashes(pair)
    output = ("--report", pair / "true" / name) if name == "a.geojson" else ("--errors", pair / "true")
    code, _, err = run("evaluate", pair / "out", "--masks", pair / "true", "--pixels-only", "-f", *output)
    assert code == 2, err
    assert f"would overwrite the input {pair / 'true' / name}" in err
    assert tree_hashes(pair) == before


def test_row_38_a_stranger_s_style_beside_an_error_map_stays(pair: Path, mask_file: Write, run: Run) -> None:
    for side in ("out", "gt"):
        mask_file(pair / side / "sfo1.tif")
    style = pair / "errors" / "sfo1.qml"
    style.parent.mkdir()
    style.write_text("mine")
    command = ["evaluate", pair / "out", "--masks", pair / "gt", "--pixels-only", "--errors", pair / "errors"]
    code, _, err = run(*command)
    assert (code, style.read_text()) == (73, "mine"), err
    assert run(*command, "-f")[0] == 0
    assert run(*command)[0] == 0, "its own files are no stranger's"
