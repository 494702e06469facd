"""One real scene, kitsap11 of Inria shrunk to 1000 x 1000 px of 1.5 m: on its own training pixels, and honestly.

A published U-Net reports IoU 0.738 on this picture after 200 epochs, scored on the very pixels it was trained on. The
first row repeats that with our recipe; it says how well a network learns a picture by heart, and nothing else. The
second is trained on the west half and scored on the east half. Both have the same budget (from_scratch.py).

    python benchmarks/real_kitsap.py [--minutes 5] [--seeds 0 1] [--write]
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from from_scratch import Budget, measure_cost, train
from PIL import Image
from real_austin import DATA, SCORES, SMALL
from record import RESULTS, SCRATCH, Row, aerialseg, machine, merge, table, versions

PICTURE, TRUTH = "inria_kitsap11_1.5m/RGB.png", "inria_kitsap11_1.5m/GT.png"
MIDDLE = 500
HALVES = {"whole": slice(None), "west": slice(None, MIDDLE), "east": slice(MIDDLE, None)}
WAYS = {"its own training pixels": ("whole", "whole"), "trained west, scored east": ("west", "east")}
RECIPE = SMALL.but({"model.preset": "unet-r18"})


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    data: Path
    work: Path
    budget: Budget


def cut(bench: Bench) -> None:
    """Write the picture and its halves, each with its mask: the published one is anti-aliased, and cut at 128."""
    image, truth = (np.asarray(Image.open(bench.data / name)) for name in (PICTURE, TRUTH))
    building = np.where((truth if truth.ndim == 2 else truth[..., 0]) >= 128, 255, 0).astype(np.uint8)
    for name, cols in HALVES.items():
        for kind, pixels in (("images", image[..., :3]), ("gt", building)):
            folder = bench.work / name / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels[:, cols])).save(folder / f"{name}.png")


def measure(bench: Bench, way: str, seed: int) -> Row:
    """Train on one part of the picture, and score on one."""
    learned, scored = WAYS[way]
    run, maps, tiles = (bench.work / f"{learned}-{scored}-{seed}-{kind}" for kind in ("run", "maps", "tiles"))
    for folder in (run, maps, tiles):
        shutil.rmtree(folder, ignore_errors=True)
    options = ("--masks", bench.work / learned / "gt", "--size", 512, "--split", "0", "--allow-ungeoreferenced")
    aerialseg("tile", bench.work / learned / "images", "-o", tiles, *options)
    cost = measure_cost(bench.budget, RECIPE, tiles, run)
    trained = train(bench.budget, RECIPE, tiles, run, seed=seed, cost=cost)
    options = ("--device", bench.budget.device, "--allow-ungeoreferenced")
    aerialseg("predict", bench.work / scored / "images", "-m", run, "-o", maps, *options)
    scores, _ = aerialseg("evaluate", maps, "--masks", bench.work / scored / "gt", "--allow-ungeoreferenced")
    return {
        "way": way,
        "seed": seed,
        "preset": RECIPE.changes["model.preset"],
        "minutes": bench.budget.minutes,
        "machine": machine(bench.budget.device),
        **trained,
        **{score: scores["overall"][score] for score in SCORES},
        "versions": versions(),
        "measured": time.strftime("%Y-%m-%d"),
    }


def page(rows: list[Row]) -> str:
    """Return the results as Markdown."""
    columns = {
        "scored on": "{way}",
        "network": "{preset}",
        "seed": "{seed}",
        "minutes": "{minutes:g}",
        "steps": "{steps:,}",
        "**IoU**": "**{iou:.3f}**",
        "accuracy": "{accuracy:.3f}",
        "precision": "{precision:.3f}",
        "recall": "{recall:.3f}",
    }
    machines = sorted({f"- {row['machine']}; torch {row['versions']['torch']}; {row['measured']}" for row in rows})
    return f"""# One real scene, by heart and honestly

Made by `python benchmarks/real_kitsap.py --minutes M --write`; what it does is written at its top.
Published for the first way:
IoU 0.738 after 200 epochs. Minutes are of one processor on a CPU, and of wall time on a GPU.

{table(columns, rows)}

{chr(10).join(machines)}
"""


def main() -> None:
    """Read the command line, measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with inria_kitsap11_1.5m")
    parser.add_argument("--minutes", type=float, default=5.0, help="what every training may cost")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--work", type=Path, default=SCRATCH / "real_kitsap", help="where tiles, runs and maps go")
    parser.add_argument("--write", action="store_true", help="put the rows into the results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results lie")
    options = parser.parse_args()
    if not (options.data / PICTURE).is_file():
        print(f"skipped: the real picture of Kitsap is not at {options.data}; give its folder with --data")
        return
    bench = Bench(options.data, options.work, Budget(options.device, options.minutes))
    cut(bench)
    rows = [measure(bench, way, seed) for way in WAYS for seed in options.seeds]
    if options.write:
        rows = merge(options.out / "real_kitsap.json", rows, ("machine", "minutes", "arithmetic", "way", "seed"))
        (options.out / "real_kitsap.md").write_text(page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
