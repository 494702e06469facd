"""Predicted memory against memory measured in a process of its own; run with: make test-all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window

from aerialseg.geo.inspection import inspect_scene
from aerialseg.prediction.engine import peak_bytes
from aerialseg.prediction.lattice import ScenePlacement, place_scenes
from aerialseg.prediction.network import EngineSettings

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")
MEASURE = """
import json, sys
from pathlib import Path
import torch
from aerialseg.geo.inspection import inspect_scene
from aerialseg.prediction.lattice import place_scenes
from aerialseg.prediction.engine import predict_scene
from aerialseg.prediction.engine import peak_bytes
from aerialseg.prediction.network import EngineSettings, Forward
from aerialseg.models.build import Segmenter

class First(torch.nn.Module):
    def forward(self, pixels):
        return pixels[:, :1]

def memory(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024

def sink():
    while (strip := (yield)) is not None:
        strip.planes()

torch.set_num_threads(1)
paths, chosen = json.loads(sys.argv[1])
gsd_m = chosen.pop("gsd_m", None)
settings = EngineSettings(512, 0.25, 4, torch.device("cpu"), **chosen)
sources = [inspect_scene(Path(path)) for path in paths]
canvas = list(place_scenes(sources, neighbours=True, gsd_m=gsd_m).values())[0]
forward = Forward(Segmenter(First(), [0.0] * 3, [1.0] * 3), settings)
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
predict_scene(forward, canvas, sink())
print(json.dumps([peak_bytes(canvas, settings, 3), memory("VmHWM") - before]))
"""


def wide_scene(path: Path, width: int, dtype: str = "uint8", left: float = 616000) -> Path:
    """Write 1,500 rows of noise in strips."""
    noise = np.random.default_rng(0).integers(1, 255, (3, 100, width)).astype(dtype)
    profile = {"height": 1500, "width": width, "count": 3, "dtype": dtype, "crs": "EPSG:26914"}
    grid = rasterio.Affine(0.3, 0, left, 0, -0.3, 3347000)
    with rasterio.open(path, "w", driver="GTiff", transform=grid, **profile) as target:
        for row in range(0, 1500, 100):
            target.write(noise, window=Window(0, row, width, 100))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("width", [3000, 15000])
@pytest.mark.parametrize("chosen", [{}, {"planes": 2}, {"gsd_m": 0.6}, {"gsd_m": 0.2}, {"tta": "d4"}], ids=str)
def test_measured_memory_stays_within_what_is_predicted(tmp_path: Path, width: int, chosen: dict[str, Any]) -> None:
    path = wide_scene(tmp_path / "scene.tif", width)
    expected, measured = measure([path], chosen)
    assert 0.4 * expected < measured < 1.1 * expected, f"{expected / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB"


@pytest.mark.slow
def test_neighbours_cost_what_is_predicted_and_not_their_size(tmp_path: Path) -> None:
    first = wide_scene(tmp_path / "a.tif", 3000)
    second = wide_scene(tmp_path / "b.tif", 15000, left=616900)
    expected, measured = measure([first, second], {})
    alone, _ = measure([first], {})
    assert 0.5 * expected < measured < 1.1 * expected
    assert expected < alone + (64 << 20)  # GDAL's cache holds blocks of both


def measure(paths: list[Path], chosen: dict[str, Any]) -> tuple[int, int]:
    command = [sys.executable, "-c", MEASURE, json.dumps([[str(path) for path in paths], chosen])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    expected, measured = json.loads(found.stdout)
    return expected, measured


def test_a_valid_mask_that_is_read_beside_the_rows_is_counted(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    settings, sizes = EngineSettings(64, 0.25, 4, CPU), []
    for nodata in (None, 0):
        source = inspect_scene(scene_file(tmp_path / "scene.tif", size=(300, 900), nodata=nodata))
        (canvas,) = place_scenes([source], neighbours=False, gsd_m=0.6).values()
        sizes.append(peak_bytes(canvas, settings, 3))
    assert sizes[1] - sizes[0] == 128 * 900 * (3 + 2)


def test_memory_grows_with_the_width_and_not_with_the_height(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    settings = EngineSettings(64, 0.25, 4, CPU)
    sizes = {}
    for size in [(300, 300), (900, 300), (300, 900)]:
        canvas = ScenePlacement.alone(inspect_scene(scene_file(tmp_path / "scene.tif", size=size)))
        sizes[size] = peak_bytes(canvas, settings, 3) - size[0] * size[1] * 3  # GDAL's cache holds so small a scene
    assert sizes[900, 300] == sizes[300, 300] < sizes[300, 900]
