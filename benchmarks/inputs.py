"""What benchmarks measure on: sizes, drawn scenes, tiles cut from them, random models, training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from record import aerialseg

if TYPE_CHECKING:
    from aerialseg.workflows.bench_train import FeedReport

WARM_UP = 5
"""Steps or batches before the clock starts; cuDNN chooses its kernels in the first ones."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    presets: tuple[str, ...] = ("unet-r34", "segformer-pvt2-b0")
    precisions: tuple[str, ...] = ("bf16", "fp16", "fp32")
    scene: int = 5000
    scenes: int = 4
    window: int = 512
    batch: int = 16
    steps: int = 60
    seconds: float = 8.0
    """For each of training's rates."""
    drawn: int = 1500
    """Side of the drawn scenes that training reads."""
    minutes: float = 1.0


SMOKE = Sizes(
    ("unet-r18",), ("fp32",), scene=200, scenes=2, window=64, batch=2, steps=2, seconds=0.2, drawn=256, minutes=0.5
)


@dataclass(frozen=True)
class Bench:
    """What every measurement is given."""

    device: str
    sizes: Sizes
    work: Path
    data: Path
    out: Path

    def synchronise(self) -> None:
        """Wait until the device has done all it was given."""
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def rate(self, call: Callable[[], object], times: int) -> float:
        """Return calls a second, after a few calls to warm up."""
        for _ in range(min(WARM_UP, times)):
            call()
        self.synchronise()
        began = time.monotonic()
        for _ in range(times):
            call()
        self.synchronise()
        return times / (time.monotonic() - began)


def combinations(sizes: Sizes) -> Iterator[tuple[str, str]]:
    """Yield every preset with every precision."""
    for preset in sizes.presets:
        for precision in sizes.precisions:
            yield preset, precision


def measure_training(bench: Bench, preset: str, precision: str) -> FeedReport:
    """Time training steps with data and on one batch that stays on the device, by what `aerialseg bench train` does."""
    from aerialseg.config import load_config
    from aerialseg.progress import Silent
    from aerialseg.workflows.bench_train import bench_train

    sizes = bench.sizes
    settings = {
        "model.preset": preset, "run.precision": precision, "data.crop": sizes.window, "data.batch": sizes.batch,
    }  # fmt: skip
    config = load_config("inria", [f"{key}={value}" for key, value in settings.items()])
    tiles = cut_drawn_tiles(bench)
    return bench_train(tiles, config, device=bench.device, seconds=sizes.seconds, progress=Silent())


def draw_large_scenes(bench: Bench) -> Path:
    """Write scenes of blotches and noise; a network's speed does not depend on what it sees."""
    import rasterio

    folder, size = bench.work / f"scenes{bench.sizes.scene}", bench.sizes.scene
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, bench.sizes.scenes + 1):
        path = folder / f"drawn{number}.tif"
        if path.exists():
            continue
        rng = np.random.default_rng(number)
        blotches = np.kron(rng.integers(0, 200, (3, size // 40 + 1, size // 40 + 1)), np.ones((1, 40, 40)))
        pixels = (blotches[:, :size, :size] + rng.integers(0, 56, (3, size, size))).astype(np.uint8)
        grid = rasterio.transform.from_origin(616000 + 1500 * number, 3347000, 0.3, 0.3)
        profile = {"driver": "GTiff", "height": size, "width": size, "count": 3, "dtype": "uint8"}
        with rasterio.open(path, "w", crs="EPSG:26914", transform=grid, interleave="pixel", **profile) as target:
            target.write(pixels)
    return folder


def cut_drawn_tiles(bench: Bench) -> Path:
    """Draw scenes with buildings and tile them, once."""
    from aerialseg.sample import write_sample

    side = min(1024, bench.sizes.drawn)
    tiles = bench.work / f"tiles{bench.sizes.drawn}"
    if not (tiles / "tileset.json").exists():
        drawn = bench.work / f"drawn{bench.sizes.drawn}"
        write_sample(drawn, 8, bench.sizes.drawn)
        aerialseg("tile", drawn, "-o", tiles, "--size", side)
    return tiles


def save_random_model(bench: Bench, preset: str) -> Path:
    """Save a model file with random weights, once."""
    import torch

    from aerialseg.models.build import Segmenter, build_network
    from aerialseg.models.package import ModelCard, save_model
    from aerialseg.models.presets import resolve

    path = bench.work / f"{preset}-{bench.sizes.window}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        spec = resolve(preset=preset, bands=3, weights="none")
        mean, std = (100.0,) * 3, (50.0,) * 3
        card = ModelCard(
            preset=spec.preset, architecture=spec.architecture, encoder=spec.encoder,
            encoder_arguments=dict(spec.encoder_arguments), bands=3, mean=mean, std=std,
            tile_size=bench.sizes.window, overlap=0.25,
        )  # fmt: skip
        save_model(path, Segmenter(build_network(spec), mean, std), card)
    return path
