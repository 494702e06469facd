"""What a run of predict leaves, written without a network: scenes, masks, probabilities, and the entries over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine

from aerialseg.geo.styles import write_mask_sidecars
from aerialseg.models.package import ModelCard
from aerialseg.prediction.checks import Run
from aerialseg.prediction.exports import write_collection
from aerialseg.prediction.options import PredictOptions
from aerialseg.prediction.report import SceneResult
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aerialseg.progress import Progress

HASH = "0123456789abcdef" * 4
HEIGHT, WIDTH = 100, 120
ODD_NAMES = ("plain", "ünïcode 日本", "hash#1 100%25", "quo'te\"d", "-dash", "sub dir/x", "new\nline", "amp&<lt>")
CARD = ModelCard(
    preset="unet-r18", architecture="unet", encoder="resnet18", bands=3, mean=(100.0, 90.0, 80.0), std=(50.0,) * 3,
    tile_size=512, gsd_m=0.3,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A scene and its outputs."""

    name: str
    scene: Path
    mask: Path
    probability: Path | None


def collect(
    out: Path,
    entries: Sequence[Entry],
    buildings: Path | None = None,
    *,
    card: ModelCard = CARD,
    progress: Progress = Silent(),
    **options: Any,
) -> tuple[Path, ...]:
    """Write what a run makes of all its scenes together."""
    results = [
        SceneResult(e.name, e.scene, "done", outputs={k: p for k in ("mask", "probability") if (p := getattr(e, k))})
        for e in entries
    ]
    run = Run(Path("model.safetensors"), HASH, card, out, PredictOptions(**options), progress)
    return write_collection(run, results, buildings)


def labels_of(index: int) -> np.ndarray:
    """Return a mask with one building, its place told by the index, and a corner without data."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[30:60, 10 + 5 * index : 50 + 5 * index] = 1
    mask[:10, :20] = 255
    return mask


def grid_of(index: int, pixel: float = 0.3) -> tuple[float, ...]:
    """Return the six numbers of a scene in a row of three that touch."""
    return (pixel, 0.0, 616000 + index % 3 * WIDTH * pixel, 0.0, -pixel, 3347000 - index // 3 * HEIGHT * pixel)


def write_raster(path: Path, array: np.ndarray, transform: tuple[float, ...], **profile: Any) -> Path:
    """Write (rows, cols) or (bands, rows, cols)."""
    stack = array[np.newaxis] if array.ndim == 2 else array
    shape = {"count": stack.shape[0], "height": stack.shape[1], "width": stack.shape[2], "dtype": stack.dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"driver": "GTiff", "crs": "EPSG:26914", **profile}
    with rasterio.open(path, "w", transform=Affine(*transform), **shape, **settings) as target:
        target.write(stack)
    return path


def write_entry(root: Path, name: str, index: int, *, probability: bool = True, **profile: Any) -> Entry:
    """Write the files of one scene: rasters in root/scenes, root/out and root/out/probability."""
    settings = {"transform": grid_of(index), **profile}
    pixels = np.full((3, HEIGHT, WIDTH), 40 + 10 * (index % 4), np.uint8)
    mask = labels_of(index)
    scene = write_raster(root / "scenes" / f"{name}.tif", np.where(mask == 1, np.uint8(220), pixels), **settings)
    written = write_raster(root / "out" / f"{name}.tif", mask, nodata=255, driver="COG", **settings)
    write_mask_sidecars(written)
    if not probability:
        return Entry(name, scene, written, None)
    quanta = np.where(mask == 255, 255, np.where(mask == 1, 254, 20)).astype(np.uint8)
    path = write_raster(root / "out/probability" / f"{name}.tif", quanta, nodata=255, **settings)
    return Entry(name, scene, written, path)


def write_run(root: Path, names: Iterable[str] = ODD_NAMES, **profile: Any) -> list[Entry]:
    """Write the files of several scenes that touch."""
    return [write_entry(root, name, index, **profile) for index, name in enumerate(names)]
