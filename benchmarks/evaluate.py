"""How fast `aerialseg evaluate` counts a pair of masks, against the floor: both files read and thrown away.

The contestants take turns, several rounds of them in one run, and their best times are compared as ratios, so that a
busy machine slows all of them alike. One thread does all the work.

read       both files through bare rasterio, in rows of whole blocks
pixels     what IoU, accuracy, F1 ... are made of (`evaluate --pixels-only`)
outlines   pixels, and boundary IoU and F1 at 3 and 5 px
objects    pixels, and buildings matched one to one
all        everything, as `evaluate` does it

The prediction is the truth moved by one pixel, with small blobs added and some houses left out. Memory is the peak of
a process of its own that counts everything, above one that has only imported what it needs.

    python benchmarks/evaluate.py [--side 5000] [--rounds 5] [--write]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from record import RESULTS, SCRATCH, Row, machine, merge, table

COLUMNS = {
    "machine": "{machine}",
    "side, px": "{side:,}",
    "true objects": "{true_objects:,}",
    "read": "{read:.0f} Mpx/s",
    "pixels": "{pixels:.0f} Mpx/s",
    "**pixels' time / read's**": "**{pixels_over_read:.2f}**",
    "outlines add": "{outlines_add:.2f} x read",
    "objects add": "{objects_add:.2f} x read",
    "all / read": "{all_over_read:.2f}",
    "memory": "{memory:.0f} MB",
}
PARTS = ("pixels", "outlines", "objects", "all")


def draw(folder: Path, side: int) -> tuple[Path, Path]:
    """Write a truth as Inria's are stored (striped, 0/255) and a prediction as `predict` writes it, once."""
    import rasterio
    from rasterio.shutil import copy

    truth, prediction = folder / "truth.tif", folder / "prediction.tif"
    if truth.exists() and prediction.exists():
        return prediction, truth
    folder.mkdir(parents=True, exist_ok=True)
    grid = {"crs": "EPSG:26914", "transform": rasterio.transform.from_origin(616000, 3347000, 0.3, 0.3)}
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8", **grid}
    tiled = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "DEFLATE", "nodata": 255}
    rough = folder / "rough.tif"
    with rasterio.open(truth, "w", **profile) as true, rasterio.open(rough, "w", **profile, **tiled) as predicted:
        for row in range(0, side, 512):
            rows = min(512, side - row)
            mask, guess = draw_strip(row, rows, side)
            window = rasterio.windows.Window(0, row, side, rows)
            true.write(mask * np.uint8(255), 1, window=window)
            predicted.write(guess, 1, window=window)
    copy(rough, prediction, driver="COG", compress="DEFLATE", blocksize=512, overview_resampling="mode")
    rough.unlink()
    return prediction, truth


def draw_strip(row: int, rows: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 14 % of building as rotated rectangles of many sizes, and a prediction of them."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(row)
    pictures = [Image.new("L", (side, rows)) for _ in range(2)]
    for _ in range(int(0.16 * rows * side / 900)):
        middle, angle = rng.uniform((0, 0), (side, rows)), rng.uniform(0, np.pi)
        half = rng.uniform(6, 24, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ turn + middle
        ImageDraw.Draw(pictures[0]).polygon([tuple(map(float, corner)) for corner in corners], fill=1)
        if rng.random() < 0.9:
            ImageDraw.Draw(pictures[1]).polygon([tuple(map(float, corner + 1)) for corner in corners], fill=1)
        if rng.random() < 0.3:
            x, y = rng.uniform((0, 0), (side, rows))
            ImageDraw.Draw(pictures[1]).ellipse((x, y, x + 6, y + 4), fill=1)
    return np.array(pictures[0], dtype=np.uint8), np.array(pictures[1], dtype=np.uint8)


def read_both(prediction: Path, truth: Path) -> None:
    """Read both files in full rows of blocks, as fast as rasterio gives them."""
    import rasterio

    with rasterio.open(prediction) as one, rasterio.open(truth) as other:
        for row in range(0, one.height, 512):
            window = rasterio.windows.Window(0, row, one.width, min(512, one.height - row))
            one.read(1, window=window)
            other.read(1, window=window)


def count(part: str, prediction: Path, truth: Path) -> int:
    """Count one part of what an evaluation counts; returns the number of true objects where they are counted."""
    from aerialseg.evaluation import pairs
    from aerialseg.evaluation.pairs import Pair
    from aerialseg.geo.masks import decide_rule

    pair = Pair("x", prediction, truth)
    rules = pairs.Rules(decide_rule([prediction]), decide_rule([truth]), part != "pixels")
    with pairs.open_pair(pair, rules) as (box, strips):
        counter = pairs.PairCounter(box, details=part != "pixels")
        counter.boundary = counter.boundary if part in ("outlines", "all") else None
        counter.objects = counter.objects if part in ("objects", "all") else None
        for strip in strips:
            counter.add(strip)
    objects = counter.result(pair).objects
    return 0 if objects is None else sum(objects.true)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_mb(what: str, prediction: Path, truth: Path) -> float:
    """Return the largest memory of a process that counts `what`, in MB."""
    command = [sys.executable, __file__, "--alone", what, str(prediction), str(truth)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_mb() -> float:
    """Return this process's peak of resident memory; unlike getrusage's it does not begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def measure(work: Path, side: int, rounds: int) -> Row:
    """Return the best of some rounds, in which all contestants take turns."""
    pair = draw(work / str(side), side)
    best = dict.fromkeys(("read", *PARTS), np.inf)
    for _ in range(rounds):
        best["read"] = min(best["read"], timed(lambda: read_both(*pair)))
        for part in PARTS:
            best[part] = min(best[part], timed(lambda part=part: count(part, *pair)))
    mpx, floor = side * side / 1e6, best["read"]
    return {
        "machine": machine("cpu"), "side": side, "true_objects": count("objects", *pair),
        **{part: mpx / best[part] for part in ("read", *PARTS)}, "pixels_over_read": best["pixels"] / floor,
        "outlines_add": (best["outlines"] - best["pixels"]) / floor,
        "objects_add": (best["objects"] - best["pixels"]) / floor, "all_over_read": best["all"] / floor,
        "memory": peak_mb("all", *pair) - peak_mb("nothing", *pair),
    }  # fmt: skip


def page(rows: list[Row]) -> str:
    """Return the results as Markdown."""
    what = (
        "A pair of masks counted by one thread: the truth striped and not compressed, as Inria's, the prediction a"
        " COG, as `predict` writes it. Best of several rounds; `benchmarks/evaluate.py` describes the columns."
    )
    return (
        f"# Evaluating masks\n\n{what}\n\n{table(COLUMNS, rows)}\n\nMade by `python benchmarks/evaluate.py --write`.\n"
    )


def main() -> None:
    """Measure, print, and write when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=5000, help="of the masks, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="add the result to benchmarks/results/evaluate.md")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        what, prediction, truth = given.alone
        from aerialseg.evaluation import scores  # noqa: F401  (what the comparison must hold too)

        if what != "nothing":
            count(what, Path(prediction), Path(truth))
        print(memory_mb())
        return
    row = measure(SCRATCH / "evaluate", given.side, given.rounds)
    rows = merge(RESULTS / "evaluate.json", [row], ("machine", "side")) if given.write else [row]
    text = page(rows)
    print(text)
    if given.write:
        (RESULTS / "evaluate.md").write_text(text)


if __name__ == "__main__":
    main()
