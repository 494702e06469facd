"""FAULTS.md row 43 through the commands: links in a circle, names over 255 bytes, pipes, devices, folders.

Wherever a file is expected: as an argument, beside a scene, in the folder of an output. Nothing blocks (the time limit
of a test ends it), that path fails in a line, and the others go on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyogrio
import pytest
import shapely
from small_tiles import settings, write_tileset

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]
    Write = Callable[..., Path]

LONG = "x" * 300
KINDS = ("circle", "pipe", "device", "folder")


def put(kind: str, path: Path) -> Path:
    """Let something stand at `path` that is no regular file."""
    if path.is_file():
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "circle":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
    return path


def errors(stderr: str) -> list[str]:
    assert "Traceback" not in stderr
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture
def places(tmp_path: Path, scene_file: Write, mask_file: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scenes, their masks and a set of tiles, in the current folder."""
    for number in (1, 2):
        scene_file(tmp_path / f"scenes/austin{number}.tif", seed=number)
        mask_file(tmp_path / f"gt/austin{number}.tif")
    write_tileset(tmp_path / "tiles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PIXELS = "--mean 0 --std 1 --white 1"
ARGUMENTS = {
    "info": (["info", "{}.tif"], {65, 66}),
    "info of a model": (["info", "{}"], {66}),
    "tile": (["tile", "{}.tif", "--masks", "gt", "-o", "out"], {65, 66}),
    "tile, masks": (["tile", "scenes", "--masks", "{}.tif", "-o", "out"], {65, 66}),
    "tile, polygons": (["tile", "scenes", "--masks", "{}.gpkg", "-o", "out"], {65, 66}),
    "train, tiles": (["train", "{}", "-c", "small", "-o", "out"], {65, 66}),
    "train, configuration": (["train", "tiles", "-c", "{}.toml", "-o", "out"], {78}),
    "train, model": (["train", "tiles", "-c", "small", "-o", "out", "--from", "{}.safetensors"], {66}),
    "predict": (["predict", "scenes", "-m", "{}.safetensors", "-o", "out"], {66}),
    "evaluate": (["evaluate", "{}.tif", "--masks", "gt"], {65, 66}),
    "evaluate, masks": (["evaluate", "gt", "--masks", "{}.tif"], {65, 66}),
    "evaluate, tiles": (["evaluate", "scenes", "--masks", "gt", "--trained-on", "{}.gpkg"], {65, 66}),
    "polygonize": (["polygonize", "{}.tif", "-o", "out.gpkg"], {65, 66}),
    "submit": (["submit", "{}.zip", "--check"], {65, 66}),
    "preview": (["preview", "{}"], {65, 66}),
    "import": (f"import {{}}.pth --arch unet --encoder resnet18 {PIXELS} -o out.safetensors".split(), {66}),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [*KINDS, "long name"])
@pytest.mark.parametrize(("command", "codes"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_row_43_an_argument_that_is_no_file_is_one_line(
    run: Run, places: Path, command: list[str], codes: set[int], kind: str
) -> None:
    name = LONG if kind == "long name" else "odd"
    words = [word.format(name) for word in command]
    if kind != "long name":
        put(kind, places / next(word for word in words if word.startswith(name)))
    code, _, err = run(*words)
    if kind == "folder" and code == 0:  # a folder that is named like a raster is looked into
        return
    assert code in codes, err
    assert len(errors(err)) == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS[:3])
def test_row_43_a_scene_that_is_no_file_costs_itself_only(run: Run, places: Path, tiny_model: Write, kind: str) -> None:
    put(kind, places / "scenes/austin3.tif")
    code, _, err = run("predict", "scenes", "-m", tiny_model(), "-o", "out", "--device", "cpu")
    assert code == 3
    assert any("scenes/austin3.tif: is " in line for line in errors(err))
    assert Path("out/austin1.tif").is_file() and Path("out/austin2.tif").is_file()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("side", ["austin1.tif.aux.xml", "austin1.tif.msk", "austin1.tfw", "austin1.tif.ovr"])
def test_row_43_a_pipe_beside_a_scene_is_not_waited_for(run: Run, places: Path, tiny_model: Write, side: str) -> None:
    put("pipe", places / "scenes" / side)
    code, _, err = run("predict", "scenes", "-m", tiny_model(), "-o", "out", "--device", "cpu")
    assert code == (0 if side.endswith(".ovr") else 3), err
    assert side in err
    assert Path("out/austin2.tif").is_file()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["l.shp.xml", "l.qix", "l.dbf", "g.gpkg-journal", "g.gpkg-wal"])
def test_row_43_a_pipe_beside_polygons_is_not_waited_for(run: Run, places: Path, name: str) -> None:
    geometry = shapely.to_wkb(np.array([shapely.box(616003, 3346970, 616010, 3346990)]))
    for file in ("l.shp", "g.gpkg"):
        pyogrio.raw.write(places / file, geometry, [], [], crs="EPSG:26914", geometry_type="Polygon")
    put("pipe", places / name)
    code, _, err = run("tile", "scenes", "--masks", "l.shp" if name[0] == "l" else "g.gpkg", "-o", "out", "--size", 64)
    assert code == (0 if name.endswith(".xml") else 65), err
    assert code == 0 or name in errors(err)[0]


OUTPUTS = {
    "a mask": ("out/austin1.tif", 73),
    "a lock": ("out/.aerialseg-lock", 73),
    "a report": ("out/report.json", 73),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "code"), OUTPUTS.values(), ids=OUTPUTS)
def test_row_43_an_output_that_is_no_file_is_not_written_over(
    run: Run, places: Path, tiny_model: Write, name: str, code: int, kind: str
) -> None:
    before = os.lstat(put(kind, places / name))
    found, _, err = run("predict", "scenes", "-m", tiny_model(), "-o", "out", "--device", "cpu")
    assert found == code, err
    assert errors(err)[0].startswith(f"error: {name}")
    assert os.lstat(places / name).st_ino == before.st_ino


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_row_43_a_checkpoint_that_is_no_file_is_not_taken_for_none(run: Run, places: Path, kind: str) -> None:
    words = ["train", "tiles", "-c", "small", *settings(), "-o", "run", "--device", "cpu"]
    assert run(*words)[0] == 0
    model = Path("run/model.safetensors").read_bytes()
    put(kind, places / "run/last.ckpt")
    shutil.rmtree("run/previous.ckpt", ignore_errors=True)
    Path("run/previous.ckpt").unlink(missing_ok=True)
    code, _, err = run(*words, "--resume")
    assert code == 78, err
    assert "run/last.ckpt: damaged" in errors(err)[0]
    assert Path("run/model.safetensors").read_bytes() == model
