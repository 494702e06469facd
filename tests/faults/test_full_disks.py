"""FAULTS.md row 14 through every command that writes: what is needed and free is said before the work, in one line.

A disk that fills all the same ends a command in one line, too: no temporary's name, and no line of a library before it.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
import torch
from small_tiles import settings, write_tileset

from aerialseg.cli import main
from aerialseg.models.build import build_network
from aerialseg.models.presets import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Call = Callable[[str], tuple[int, str, str]]
    Write = Callable[..., Path]

FULL = (
    r"error: new\S*: no space( on new\S*)?: (about [\d.]+ [MG]B are needed, )?[\d.,]+ GB are free,"
    " so a quota or a limit on files is reached; free some and run again"
)
COMMANDS = {
    "tile": "tile scenes --masks gt -o new --size 64 --split 0.5",
    "train": f"train tiles -c small -o new --device cpu {' '.join(settings())}",
    "predict": "predict scenes -m tiny.safetensors -o new --device cpu",
    "predict, polygons": "predict scenes -m tiny.safetensors -o new --device cpu --polygons",
    "evaluate, page": "evaluate mine --masks gt --report new/page.html",
    "evaluate, errors": "evaluate mine --masks gt --errors new",
    "polygonize": "polygonize gt -o new/buildings.gpkg",
    "polygonize, fgb": "polygonize gt -o new/buildings.fgb",
    "polygonize, geojson": "polygonize gt -o new/buildings.geojson",
    "polygonize, parquet": "polygonize gt -o new/buildings.parquet",
    "submit": "submit gt --test-root scenes --out new/mine.zip",
    "preview": "preview out -o new",
    "calibrate": "calibrate tiny.safetensors --scenes scenes --masks gt -o new/model.safetensors --device cpu",
    "compare": "compare mine mine --masks gt --report new/page.html",
    "import": "import plain.pt -o new/model.safetensors --arch unet --encoder resnet18 --mean 0 --std 1 --white 1",
    "sample": "sample new --scenes 2 --size 64",
    "demo": "demo -o new --device cpu",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, scene_file: Write, mask_file: Write, tiny_model: Write) -> Path:
    """Everything that the commands read."""
    root = tmp_path_factory.mktemp("inputs")
    for number in (1, 2):
        scene_file(root / f"scenes/austin{number}.tif", seed=number)
        for folder in ("gt", "mine"):
            mask_file(root / f"{folder}/austin{number}.tif")
    write_tileset(root / "tiles")
    network = build_network(resolve(architecture="unet", encoder="resnet18", weights="none"))
    torch.save(network.state_dict(), root / "plain.pt")
    tiny_model(root / "tiny.safetensors")
    assert main(["predict", str(root / "scenes"), "-m", str(root / "tiny.safetensors"), "-o", str(root / "out")]) == 0
    return root


@pytest.fixture
def new(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a command is to write; the inputs lie beside it, in the current folder."""
    monkeypatch.chdir(inputs)
    yield inputs / "new"
    shutil.rmtree(inputs / "new", ignore_errors=True)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str, str]]:
    """Run a command line in this process; what libraries write themselves counts as its stderr."""

    def run(command: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(command.split())
        return code, *capfd.readouterr()

    return run


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != ".aerialseg-lock"}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_row_14_too_little_disk_is_said_before_the_work(
    new: Path, call: Call, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("aerialseg.files.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    code, out, err = call(command)
    assert (code, out) == (74, ""), err
    (said,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert re.fullmatch(
        r"error: new: about [\d.]+ [MG]B are needed, none is free; free some, or give a folder on another disk", said
    )
    assert written(new) <= {"report.json"}  # predict's, which says so too


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_row_14_a_disk_that_fills_all_the_same_is_one_line(new: Path, call: Call, command: str) -> None:
    new.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, _, err = call(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 74, err
    (said,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert re.fullmatch(FULL, said)
    assert ".aerialseg-" not in err and not re.search("Traceback|TIFF|tiff|ERROR|SQL|sqlite", err)


def test_row_14_a_disk_that_is_really_full(new: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    new.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "none", str(new)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    monkeypatch.setattr("aerialseg.geo.tiles.build.require_space", lambda folder, needed: None)
    try:
        code, _, err = call(COMMANDS["tile"])
    finally:
        subprocess.run(["umount", str(new)], check=True)
    assert code == 74
    (said,) = err.splitlines()
    assert re.fullmatch(
        r"error: new/images/\S+: no space on new/images: about 0.1 MB are needed, .* free; free some.*", said
    )
