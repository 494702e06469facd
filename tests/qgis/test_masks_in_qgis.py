"""Real QGIS, offscreen, loads what predict and tile write, as a person would (FAULTS row 36).

Run with `make test-all`; needs Debian's python3-qgis.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
import torch
from in_qgis import BUILDING, CANVAS, look

from aerialseg.geo.inspection import inspect_scene
from aerialseg.geo.outputs import MASK, PROBABILITY
from aerialseg.geo.scenes import Scene
from aerialseg.geo.styles import write_probability_sidecar
from aerialseg.models.build import Segmenter
from aerialseg.prediction.engine import predict_scene
from aerialseg.prediction.lattice import ScenePlacement
from aerialseg.prediction.network import EngineSettings, Forward
from aerialseg.prediction.outputs import finish, scene_files
from aerialseg.prediction.stored import StoredRows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.qgis

NAMES = ("plain", "ünïcode 日本", "hash#1 100%25", "quo'te\"d", "-dash")


class Rule(torch.nn.Module):
    """Building where a pixel is bright."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.mean(1, keepdim=True) - 127.3) * 1000


def scene_pixels() -> np.ndarray:
    """A dark scene with two bright houses and a corner without data."""
    pixels = np.full((3, 200, 300), 40, np.uint8)
    pixels[:, 50:100, 60:160] = pixels[:, 140:180, 200:280] = 220
    pixels[:, :20, :40] = 0
    return pixels


def predicted(image: Path, out: Path, name: str) -> Path:
    """Predict one scene with an exact rule, through the program's own engine and writers."""
    out.mkdir(exist_ok=True)
    source = inspect_scene(image)
    files = scene_files(Scene(name, image), out, (PROBABILITY, MASK))
    rows = StoredRows(out, name, source.box.height, source.box.width)
    forward = Forward(Segmenter(Rule(), [0.0] * 3, [1.0] * 3), EngineSettings(64, 0.25, 4, torch.device("cpu")))
    predict_scene(forward, ScenePlacement.alone(source), rows.write(rows.begin(), Future()))
    finish(rows, files, ScenePlacement.alone(source), {"AERIALSEG_KEY": "x"}, threshold=0.5, replace_sides=False)
    return files[MASK]


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory, scene_file: Callable[..., Path]) -> list[Path]:
    root = tmp_path_factory.mktemp("qgis")
    found = []
    for name in NAMES:
        image = scene_file(root / "scenes" / f"{name}.tif", scene_pixels(), nodata=0)
        found.append(predicted(image, root / "out", name))
    return found


def test_row_36_a_mask_shows_two_named_classes_on_a_transparent_background(masks: list[Path]) -> None:
    for path, seen in zip(masks, look(*masks), strict=True):
        assert seen["valid"], path
        assert seen["crs"] == "EPSG:26914"
        with rasterio.open(path) as mask:
            assert seen["extent"] == pytest.approx(
                [mask.bounds.left, mask.bounds.bottom, mask.bounds.right, mask.bounds.top]
            )
            labels = mask.read(1)
        assert seen["renderer"] == "paletted"
        assert seen["classes"] == [[0, "background", [0, 0, 0, 0]], [1, "building", [230, 57, 70, 255]]]
        houses = int((labels == 1).sum())
        assert houses == 50 * 100 + 40 * 80
        assert seen["colours"] == {BUILDING: houses, CANVAS: labels.size - houses}


def test_either_side_file_alone_is_enough(masks: list[Path], tmp_path: Path) -> None:
    alone = []
    for suffix in (".tif.aux.xml", ".qml"):
        copy = tmp_path / f"only{suffix.replace('.', '_')}.tif"
        copy.write_bytes(masks[0].read_bytes())
        copy.with_name(copy.stem + suffix).write_bytes((masks[0].parent / f"plain{suffix}").read_bytes())
        alone.append(copy)
    for seen in look(*alone):
        assert [label for _, label, _ in seen["classes"]] == ["background", "building"]
        assert set(seen["colours"]) == {CANVAS, BUILDING}


def test_a_probability_is_clear_at_zero_and_red_at_one(masks: list[Path], tmp_path: Path) -> None:
    path = masks[0].parent / "probability" / masks[0].name
    path.with_suffix(".qml").unlink(missing_ok=True)
    (bare,) = look(path)
    assert bare["valid"]
    assert bare["renderer"] == "singlebandgray"
    assert bare["colours"][CANVAS] == 20 * 40
    write_probability_sidecar(path, PROBABILITY.layer.scale or 1)
    (seen,) = look(path)
    assert seen["renderer"] == "singlebandpseudocolor"
    houses = 50 * 100 + 40 * 80
    assert seen["colours"] == {BUILDING: houses, CANVAS: 200 * 300 - houses}


def test_an_index_is_drawn_by_split(tmp_path: Path) -> None:
    import pyogrio
    import shapely
    from pyogrio.raw import write

    from aerialseg.geo.styles import write_index_style

    path = tmp_path / "index.gpkg"
    outlines = np.array([shapely.to_wkb(shapely.box(10 * i, 0, 10 * i + 9, 9)) for i in range(3)], dtype=object)
    splits = [np.array(["train", "val", ""], dtype=object)]
    write(path, outlines, splits, ["split"], layer="tiles", driver="GPKG", geometry_type="Polygon", crs="EPSG:26914")
    write_index_style(path)
    (seen,) = look(path)
    assert seen["valid"]
    assert seen["classes"] == [["train", "train"], ["val", "val"], ["", "left out"]]
    assert {"#31688e", "#fd8d3c", "#969696"} <= set(seen["colours"])
    assert pyogrio.list_layers(path)[0][0] == "tiles"
