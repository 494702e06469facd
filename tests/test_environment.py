"""Commands started in the shell of another GIS do what they do in a plain one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rasterio

from aerialseg import environment
from aerialseg.files import sha256_of
from aerialseg.workflows import doctor

if TYPE_CHECKING:
    from collections.abc import Sequence

VARIABLES = ("PROJ_DATA", "PROJ_LIB", "GDAL_DATA", "GDAL_DRIVER_PATH")
WHEEL = Path(rasterio.__file__).parent


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An empty folder, and another installation's: its proj.db has a layout that the wheels do not read."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("empty", "older")}
    shutil.copy(WHEEL / "proj_data" / "proj.db", folders["older"])
    database = sqlite3.connect(folders["older"] / "proj.db")
    with database:
        database.execute("UPDATE metadata SET value = '2' WHERE key = 'DATABASE.LAYOUT.VERSION.MINOR'")
    database.close()
    return folders


COMMANDS = {
    "tile": "tile images --masks gt.geojson -o tiles --size 64 --split 0 --labelled-area gt.geojson",
    "polygonize": "polygonize gt -o b.gpkg --crs EPSG:4326",
    "evaluate": "evaluate gt --polygons gt.geojson --report s.html --errors maps --masks gt.geojson",
    "info": "info images/a.tif",
    "predict": "predict images -m model.safetensors -o out --device cpu --polygons --probability",
    "plan": "plan images -m model.safetensors --device cpu",
    "preview": "preview before -o pictures",
    "compare": "compare gt gt --masks gt --report c.html",
    "calibrate": "calibrate model.safetensors --scenes images --masks gt -o calibrated.safetensors --device cpu",
    "submit": "submit gt --out s.zip",
    "sample": "sample drawn --scenes 1 --size 128",
    "doctor": "doctor .",
}
SCRIPT = (
    "import sys; from aerialseg.cli import main; print([main(line.split()) for line in sys.argv[1:]], file=sys.stderr)"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: Any, scene_file: Any, mask_file: Any, tiny_model: Any) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    scene_file(folder / "images" / "a.tif")
    mask_file(folder / "gt" / "a.tif")
    tiny_model(folder / "model.safetensors")
    return folder


def results(inputs: Path, parent: Path, variables: dict[str, str], names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Run commands in one fresh process that has `variables`.

    Returns what it says, exit codes last, and the SHA-256 of every file but the reports, which hold seconds.
    """
    folder = parent / "same"  # as a part of some outputs
    shutil.copytree(inputs, folder)
    lines = ["polygonize gt -o gt.geojson", *(COMMANDS[name] for name in names)]
    known = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", SCRIPT, *lines]
    done = subprocess.run(command, cwd=folder, env={**known, **variables}, capture_output=True, text=True, check=True)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "report.json"]
    return done.stderr, {str(path.relative_to(folder)): sha256_of(path) for path in files}


OFTEN = ("tile", "polygonize", "evaluate", "info", "predict")


@pytest.fixture(scope="module")
def plain(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    return results(inputs, tmp_path_factory.mktemp("plain"), {}, OFTEN)


@pytest.mark.parametrize("kind", ["empty", "older"])
def test_commands_do_the_same_in_the_shell_of_another_gis(
    plain: tuple[str, dict[str, str]], inputs: Path, foreign: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    said, files = results(inputs, tmp_path, dict.fromkeys(VARIABLES, str(foreign[kind])), OFTEN)
    assert said.splitlines()[-1] == plain[0].splitlines()[-1] == str([0] * 6)
    assert said.count(f"PROJ_DATA={foreign[kind]}, PROJ_LIB=") == said.count("of another installation") == 1
    assert files == plain[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "older"])
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_does_with_every_variable(
    inputs: Path, foreign: dict[str, Path], tmp_path: Path, name: str, variable: str, kind: str
) -> None:
    before = ["predict"] if name == "preview" else []
    plain, with_it = (
        results(inputs, tmp_path / str(number), given, [*before, name])
        for number, given in enumerate(({}, {variable: str(foreign[kind])}))
    )
    assert with_it[0].splitlines()[-1] == plain[0].splitlines()[-1]
    assert with_it[0].count(f"{variable}={foreign[kind]}: of another installation") == 1
    assert with_it[1] == plain[1]


def test_rasterio_imported_first_is_put_right_and_grids_stay_findable(foreign: dict[str, Path], tmp_path: Path) -> None:
    """Also in a process started from that one."""
    shutil.copytree(foreign["older"], tmp_path / "grids")
    shift = struct.pack(">4d2i4f", 40.0, 10.0, 10.0, 10.0, 2, 2, 7.0, 7.0, 7.0, 7.0)
    (tmp_path / "grids" / "seven_metres.gtx").write_bytes(shift)
    script = (
        "import rasterio, subprocess, sys; from aerialseg.geo import geobox; from rasterio.crs import CRS\n"
        "from pyproj import Transformer\n"
        "way = Transformer.from_pipeline('+proj=vgridshift +grids=seven_metres.gtx +multiplier=1')\n"
        "print(CRS.from_epsg(27700).to_epsg(), round(way.transform(0.25, 0.8, 0, radians=True)[2], 9), flush=True)\n"
        "if sys.argv[1:]: subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)\n"
    )
    shell = {**os.environ, "PROJ_DATA": str(tmp_path / "grids")}
    command = [sys.executable, "-c", script, script]
    done = subprocess.run(command, env=shell, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["27700 7.0"] * 2, done.stderr
    assert done.stderr.count("of another installation") == 1


def test_builds_without_data_of_their_own_keep_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROJ_DATA", "/opt/conda/share/proj")
    assert environment.take_out(tmp_path) == environment.take_out(None) == {}
    assert os.environ["PROJ_DATA"] == "/opt/conda/share/proj"
    assert environment.take_out(WHEEL) == {"PROJ_DATA": "/opt/conda/share/proj"}
    assert "PROJ_DATA" not in os.environ


def test_doctor_names_the_variable_and_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TAKEN_OUT", {"PROJ_LIB": "/usr/share/proj"})
    (found,) = [finding for finding in doctor._gdal() if finding.name == "PROJ_LIB"]
    assert found.found.startswith("/usr/share/proj: another installation's")
    assert (found.state, found.advice) == (
        "warning",
        "unset PROJ_LIB here to be rid of this line, or keep it for its grids",
    )
