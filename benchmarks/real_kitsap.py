"""One real scene, kitsap11 of Inria shrunk to 1000 x 1000 px of 1.5 m: on its own training pixels, and honestly.

A published U-Net reports IoU 0.738 on this picture after 200 epochs, scored on the very pixels it was trained on. The
first way repeats that with our recipe; it says how well a network learns a picture by heart, and nothing else. In the
second, networks are trained on the west half and scored on the east half. All have the same budget (from_scratch.py);
what changes the recipe takes as many steps as the recipe as it is. These changes were found to be worth something in
Austin (real_austin.py), so here is ground that had no say in the choice.

    python benchmarks/real_kitsap.py [--minutes 5] [--seeds 0 1] [--only linknet] [--write]
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from from_scratch import Budget, known_cost, train
from PIL import Image
from real_austin import CHANGES, DATA, LIGHTEST, SCORES, SMALL
from record import RESULTS, SCRATCH, Row, aerialseg, machine, merge, table, versions

PICTURE, TRUTH = "inria_kitsap11_1.5m/RGB.png", "inria_kitsap11_1.5m/GT.png"
MIDDLE = 500
HALVES = {"whole": slice(None), "west": slice(None, MIDDLE), "east": slice(MIDDLE, None)}
BY_HEART, HONESTLY = "its own training pixels", "trained west, scored east"
WAYS = {BY_HEART: ("whole", "whole"), HONESTLY: ("west", "east")}
UNET = SMALL.but({"model.preset": "unet-r18"})
LOVASZ, BALANCED = CHANGES["lovasz 0.5 more"], CHANGES["sampling balanced"]
RECIPES = {
    (BY_HEART, "unet-r18"): UNET,
    (HONESTLY, "unet-r18"): UNET,
    (HONESTLY, "linknet-r10"): LIGHTEST,
    (HONESTLY, "linknet-r10, lovasz 0.5 more"): LIGHTEST.but(LOVASZ),
    (HONESTLY, "linknet-r10, sampling balanced"): LIGHTEST.but(BALANCED),
    (HONESTLY, "linknet-r10, both"): LIGHTEST.but(LOVASZ | BALANCED),
}
"""By how they are scored and what they are called; up to the comma it is the recipe whose steps they take."""


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


def measure(bench: Bench, way: str, name: str, seed: int) -> Row:
    """Train on one part of the picture, and score on one."""
    learned, scored = WAYS[way]
    named = re.sub("[^a-z0-9]+", "-", name)
    run, maps = (bench.work / f"{learned}-{scored}-{named}-{seed}-{kind}" for kind in ("run", "maps"))
    for folder in (run, maps):
        shutil.rmtree(folder, ignore_errors=True)
    tiles, base = bench.work / f"{learned}-tiles", name.partition(", ")[0]
    options = ("--masks", bench.work / learned / "gt", "--size", 512, "--split", "0", "--allow-ungeoreferenced")
    aerialseg("tile", bench.work / learned / "images", "-o", tiles, *options)
    known = bench.work / f"cost-{bench.budget.family}-{learned}-{base}.json"
    cost = known_cost(bench.budget, RECIPES[way, base], tiles, known)
    trained = train(bench.budget, RECIPES[way, name], tiles, run, seed=seed, cost=cost)
    options = ("--device", bench.budget.device, "--allow-ungeoreferenced")
    aerialseg("predict", bench.work / scored / "images", "-m", run, "-o", maps, *options)
    scores, _ = aerialseg("evaluate", maps, "--masks", bench.work / scored / "gt", "--allow-ungeoreferenced")
    return {
        "way": way,
        "seed": seed,
        "name": name,
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
        "recipe": "{name}",
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
    parser.add_argument("--only", default="", help="part of the names of the recipes that are wanted")
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
    chosen = [(way, name, seed) for way, name in RECIPES if options.only in name for seed in options.seeds]
    rows = [measure(bench, *row) for row in chosen]
    if options.write:
        rows = merge(
            options.out / "real_kitsap.json", rows, ("machine", "minutes", "arithmetic", "way", "name", "seed")
        )
        (options.out / "real_kitsap.md").write_text(page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
