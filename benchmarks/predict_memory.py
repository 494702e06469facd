"""What `predict` costs beside the network: time, processor time and memory with a network that costs nothing.

Every measurement runs in a process of its own, several in turn, and the floor is taken in the same session:

floor      read the scene's pixels once and write a mask of them, in strips, as predict writes it
stream     read, cut into batches, blend, quantise, write the mask (512 px windows, 25 % overlap)
finished   the same, then the cloud-optimised copy with overviews, read back and compared

Memory is the peak above what the process held after its imports. Times are the best of `--times` runs, the least
disturbed one; memory is the largest. A load average above one means that others used the machine: wall times are then
too long, processor times less so. The scenes are noise, uncompressed and striped, as Inria's are stored.

    python benchmarks/predict_memory.py [--sizes 5000,20000] [--times 3] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from record import RESULTS, SCRATCH, Row, machine, merge, table, versions

KINDS = ("floor", "stream", "finished")
WINDOW, OVERLAP = 512, 0.25
COLUMNS = {
    "scene": "{size}x{size}",
    "what": "{kind}",
    "wall, s": "{wall_s:.2f}",
    "processor, s": "{cpu_s:.2f}",
    "extra memory, MB": "{extra_mb:.0f}",
    "runs": "{times}",
    "load average": "{load:.1f}",
    "machine": "{machine}",
}


def draw_scene(size: int) -> Path:
    """Write a square scene of noise, once."""
    import rasterio
    from rasterio.windows import Window

    import aerialseg.geo  # noqa: F401  (before rasterio)

    path = SCRATCH / "predict_memory" / f"scene{size}.tif"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (3, 100, size), dtype=np.uint8)
    grid = rasterio.Affine(0.3, 0, 616000, 0, -0.3, 3347000)
    profile = {"height": size, "width": size, "count": 3, "dtype": "uint8", "crs": "EPSG:26914", "transform": grid}
    unfinished = path.with_suffix(".part.tif")
    with rasterio.open(unfinished, "w", driver="GTiff", BIGTIFF="IF_SAFER", **profile) as target:
        for row in range(0, size, 100):
            target.write(noise[:, : size - row], window=Window(0, row, size, min(100, size - row)))
    unfinished.replace(path)
    return path


def measure(kind: str, scene: Path) -> Row:
    """Do one thing once in this process and say what it took."""
    import torch

    from aerialseg.geo.raster import inspect_scene
    from aerialseg.prediction.batches import Batch
    from aerialseg.prediction.forward import EngineSettings, Forward

    source = inspect_scene(scene)
    forward = Forward(free_network(), EngineSettings(WINDOW, OVERLAP, 4, torch.device("cpu")))
    forward(Batch.empty(1, 3, WINDOW, pinned=False))  # starts torch's threads and buffers
    work = write_floor if kind == "floor" else write_predicted
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, began, processor = memory_mb("VmRSS"), time.perf_counter(), os.times()
    work(source, forward, scene.with_name(f"out-{os.getpid()}.tif"), finished=kind == "finished")
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.user - processor.user + after.system - processor.system
    return {"wall_s": wall, "cpu_s": cpu, "extra_mb": memory_mb("VmHWM") - before}


def free_network():
    """Return a network that answers with the same logits for every window: squares, so that masks compress as masks."""
    import torch

    rows, cols = np.mgrid[:WINDOW, :WINDOW]
    logits = np.where((rows // 40 + cols // 40) % 3 == 0, 4, -4).astype(np.float32)

    class Free(torch.nn.Module):
        answer = torch.from_numpy(logits)[None, None]

        def forward(self, pixels, valid=None):
            return self.answer.expand(len(pixels), 1, WINDOW, WINDOW)

    return Free()


def write_floor(source, forward, path: Path, *, finished: bool) -> None:
    """Read the scene in strips and write as many rows of mask."""
    from rasterio.windows import Window

    from aerialseg.geo.raster import StripWriter, open_raster, read_window

    step = round(WINDOW * (1 - OVERLAP))
    mask = forward.segmenter.answer[0, 0].numpy() > 0
    strip = np.tile(mask, (1, source.box.width // WINDOW + 1))[:step, : source.box.width].astype(np.uint8)
    try:
        with open_raster(source.path) as dataset, StripWriter(path, source.box, "uint8", 255) as target:
            for row in range(0, source.box.height, step):
                rows = min(step, source.box.height - row)
                read_window(dataset, source, Window(0, row, source.box.width, rows))
                target.write(row, strip[:rows])
    finally:
        path.unlink(missing_ok=True)


def write_predicted(source, forward, path: Path, *, finished: bool) -> None:
    """Run the engine, and where wanted finish the mask as `predict` does."""
    from aerialseg.geo.raster import finish_cog
    from aerialseg.prediction.engine import predict_scene
    from aerialseg.prediction.outputs import Temporaries, write_strips

    final = path.with_name(f"final-{path.name}")
    try:
        sink = write_strips(Temporaries(path, None), source.box, 0.5, np.zeros(2, np.int64))
        predict_scene(forward, source, sink)
        if finished:
            finish_cog(path, final, tags={})
    finally:
        path.unlink(missing_ok=True)
        final.unlink(missing_ok=True)


def memory_mb(field: str) -> float:
    """Return VmRSS or VmHWM of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def measured(kind: str, size: int) -> Row:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--measure", kind, "--scene", str(draw_scene(size))]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    row: Row = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    return row


def compare(sizes: list[int], times: int) -> list[Row]:
    """Measure everything, the kinds in turn, so that a busy minute hits them alike."""
    rows = []
    for size in sizes:
        runs: dict[str, list[Row]] = {kind: [] for kind in KINDS}
        for _ in range(times):
            for kind in KINDS:
                runs[kind].append(measured(kind, size))
        for kind, found in runs.items():
            best = min(found, key=lambda row: row["wall_s"])
            worst = max(row["extra_mb"] for row in found)
            load = os.getloadavg()[0]
            rows.append({**best, "extra_mb": worst, "size": size, "kind": kind, "times": times, "load": load})
    return [{**row, "machine": machine("cpu"), "versions": versions()} for row in rows]


def main() -> None:
    """Read the options, measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="5000,20000")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.scene)))
        return
    rows = compare([int(size) for size in given.sizes.split(",")], given.times)
    if given.write:
        rows = merge(RESULTS / "predict_memory.json", rows, ("size", "kind", "machine"))
        page = f"# predict beside the network\n\n{(__doc__ or '').strip()}\n\n{table(COLUMNS, rows)}\n"
        (RESULTS / "predict_memory.md").write_text(page)
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
