"""Scenes in, georeferenced masks out: the four commands one after the other, on scenes of every kind they promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 192
KINDS: dict[str, dict[str, Any]] = {
    "four bands": {"bands": 4, "dtype": "uint8", "photometric": "MINISBLACK", "tile": ()},
    "four 16-bit bands, near infrared first": {
        "bands": 4,
        "dtype": "uint16",
        "tile": ("--scale", "0:4000", "--bands", "4,1,2"),
    },
}
TINY = (
    "-c", "small", "--device", "cpu",
    "--set", "model.weights=none", "--set", "data.crop=64", "--set", "data.batch=4", "--set", "schedule.epochs=2",
    "--set", "schedule.steps_per_epoch=12", "--set", "schedule.warmup_steps=2", "--set", "optimizer.lr=1e-3",
)  # fmt: skip


def draw(kind: dict[str, Any], seed: int, buildings: np.ndarray) -> np.ndarray:
    """Return (bands, rows, cols): buildings are bright in the last band, and noise in all of them."""
    top = 255 if kind["dtype"] == "uint8" else 4000
    noise = np.random.default_rng(seed).uniform(0, 0.3 * top, (kind["bands"], SIZE, SIZE))
    noise[-1] += 0.6 * top * (buildings > 0)
    return noise.astype(kind["dtype"])


@pytest.mark.parametrize("name", KINDS)
def test_the_four_commands_map_buildings_in_scenes_with(
    name: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]], scene_file: Any, mask_file: Any
) -> None:
    kind = KINDS[name]
    profile = {"photometric": kind["photometric"]} if "photometric" in kind else {}
    if kind["bands"] == 4 and not profile:
        profile = {"photometric": "RGB", "alpha": "unspecified"}
    for number in range(1, 4):
        with rasterio.open(mask_file(tmp_path / f"masks/town{number}.tif", size=(SIZE, SIZE))) as mask:
            scene_file(tmp_path / f"scenes/town{number}.tif", draw(kind, number, mask.read(1)), **profile)
    tiles, model, out = tmp_path / "tiles", tmp_path / "run", tmp_path / "out"

    def succeed(*arguments: Any) -> str:
        code, stdout, stderr = run(*arguments)
        assert code == 0, stderr
        return stdout

    scenes = [tmp_path / "scenes" / f"town{number}.tif" for number in (1, 2)]
    succeed(
        "tile", *scenes, "--masks", tmp_path / "masks", "-o", tiles, "--size", 96, "--split", "val=town1", *kind["tile"]
    )
    succeed("train", tiles, "-o", model, *TINY)
    succeed("predict", tmp_path / "scenes/town3.tif", "-m", model, "-o", out, "--device", "cpu", "--probability")
    report = json.loads(succeed("evaluate", out, "--masks", tmp_path / "masks", "--json"))
    assert report["overall"]["iou"] > 0.5, "a band this bright is learnt in 24 steps, or bands and scale went wrong"
    with rasterio.open(out / "town3.tif") as mask, rasterio.open(tmp_path / "scenes/town3.tif") as scene:
        assert (mask.transform, mask.crs, mask.shape) == (scene.transform, scene.crs, scene.shape)
        assert set(np.unique(mask.read(1))) <= {0, 1}
        assert mask.nodata == 255
