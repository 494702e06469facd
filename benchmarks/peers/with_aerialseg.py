"""aerialseg's own share of the contest: its engine, and the floors below it.

raw     the floor without the COG step: the scene read in strips, the finished mask's bytes written
floor   the scene read in strips, the finished mask put through the COG writer
cog     the COG writer alone, for the mask that a peer left
part    the engine up to the finished part: read, batch, run, blend, quantise, write; the scene hashed beside it
whole   the same, and counting, COG and side files, in the order of prediction/run.py
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from meter import STEP, Meter, squares, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aerialseg.geo.inspection import Source
    from aerialseg.prediction.network import Forward

Stages = dict[str, float]


def floor(source: Source, given: argparse.Namespace, folder: Path) -> Stages:
    """Read the scene's rows into one buffer, and write the mask, which is known."""
    from rasterio.windows import Window

    from aerialseg.geo.opening import open_raster
    from aerialseg.geo.outputs import MASK
    from aerialseg.geo.writing import write_cog

    height, width, rows = source.box.height, source.box.width, step_of(given.window)
    buffer = np.empty((len(source.bands), rows, width), np.uint8)
    strip = squares(given.window, rows, width).astype(np.uint8)

    def strips() -> Iterator[np.ndarray]:
        for row in range(0, height, rows):
            yield strip[: height - row]

    with open_raster(source.path) as dataset:
        for row in range(0, height, rows):
            seen = buffer[:, : height - row]
            dataset.read(out=seen, window=Window(0, row, width, seen.shape[1]))
    if given.kind == "floor":
        write_cog(folder / "mask.tif", source.box, strips, MASK.layer)
        return {}
    with (folder / "mask.raw").open("wb") as stream:
        for pixels in strips():
            stream.write(pixels.data)
    return {}


def cog(source: Source, given: argparse.Namespace, folder: Path) -> Stages:
    """Put a mask that is there as an array through the COG writer."""
    from aerialseg.geo.outputs import MASK
    from aerialseg.geo.writing import write_cog

    rows = step_of(given.window)
    mask = np.load(given.mask)
    write_cog(folder / "mask.tif", source.box, lambda: np.split(mask, range(rows, len(mask), rows)), MASK.layer)
    return {}


def predicted(source: Source, given: argparse.Namespace, folder: Path, forward: Forward) -> Stages:
    """Do what prediction/run.py does for one scene; returns the seconds of each stage."""
    from aerialseg.geo.digest import content_digest
    from aerialseg.geo.outputs import MASK
    from aerialseg.prediction.engine import predict_scene
    from aerialseg.prediction.lattice import place_scenes
    from aerialseg.prediction.outputs import SeamCounter, count_pixels, finish, output_tags
    from aerialseg.prediction.reading import in_background
    from aerialseg.prediction.stored import StoredRows

    began = time.perf_counter()
    box = source.box
    canvas = place_scenes([source], neighbours=True, gsd_m=None, reach=2 * given.window)[source.path]
    rows = StoredRows(folder, "scene", box.height, box.width)
    path = rows.begin()
    key = in_background(lambda: hashlib.sha256(content_digest(source.path).encode()).digest(), "hasher")
    predict_scene(forward, canvas, rows.write(path, key))
    written = time.perf_counter()
    rows.tell(path, key.result())
    rows, digest = dataclasses.replace(rows, key=key.result()), key.result().hex()
    hashed = time.perf_counter()
    stages = {"engine_s": written - began, "waiting_for_hash_s": hashed - written}
    if given.kind == "part":
        return stages
    counts = count_pixels(rows, 0.5, SeamCounter(canvas, given.window, forward.settings.overlap))
    counted = time.perf_counter()
    files = {MASK: folder / "mask.tif"}
    finish(rows, files, canvas, output_tags(digest, digest, 0.5, counts), threshold=0.5, replace_sides=False)
    rows.remove()
    return {**stages, "counting_s": counted - hashed, "cog_s": time.perf_counter() - counted}


def make_forward(given: argparse.Namespace, running: list[float]) -> tuple[Forward, str]:
    """Return the network, warmed up, and its precision; `running` gets the seconds of every call."""
    import torch
    from compete import Bright, Free

    from aerialseg.models.device import pick_precision
    from aerialseg.models.package import load_model
    from aerialseg.prediction.network import EngineSettings, Forward
    from aerialseg.prediction.reading import WindowBatch

    torch.set_num_threads(given.threads)
    device = torch.device("cpu")
    precision = pick_precision(given.precision, device)
    if given.network in ("free", "bright"):
        network = Free(given.window, given.batch) if given.network == "free" else Bright()
    else:
        network = load_model(Path(given.network))[0]

    class Timed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
            began = time.perf_counter()
            logits = self.network(pixels, valid)
            running.append(time.perf_counter() - began)
            return logits

    forward = Forward(Timed(), EngineSettings(given.window, 1 - STEP, given.batch, device, precision))
    warm = WindowBatch.empty(given.batch, 3, given.window, pinned=False)
    warm.pixels.zero_()
    forward(warm)
    running.clear()
    return forward, precision


def main() -> None:
    """Measure one kind once in this process, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("raw", "floor", "cog", "part", "whole"), required=True)
    parser.add_argument("--scene", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="an empty one for what is written")
    parser.add_argument("--mask", type=Path, help="of cog, what to read; of whole, where the mask is kept as .npy")
    parser.add_argument("--network", default="free", help="free, bright, or a model file")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()

    from aerialseg.geo.inspection import inspect_scene
    from aerialseg.geo.opening import open_raster

    running: list[float] = []
    work: Callable[[Source, argparse.Namespace, Path], Stages] = {"cog": cog}.get(given.kind, floor)
    found: dict[str, object] = {}
    if given.kind in ("part", "whole"):
        forward, found["precision"] = make_forward(given, running)
        work = partial(predicted, forward=forward)
    source = inspect_scene(given.scene)
    with Meter() as meter:
        stages = work(source, given, given.folder)
    if given.kind == "whole" and given.mask:
        with open_raster(given.folder / "mask.tif") as mask:
            np.save(given.mask, mask.read(1))
    print(json.dumps({**found, **meter.found, **stages, "forward_s": sum(running), "calls": len(running)}))


if __name__ == "__main__":
    main()
