"""How well networks trained from scratch on eleven real 512 px pieces map a real scene they never saw.

The data is Inria's (Austin): eleven pieces of four scenes to train on, and a 1000 x 1000 crop of other ground to map.
`networks`: the plain baseline (plain_unet.py), and the recipe for few tiles on several networks; every row costs the
same (from_scratch.py). `options`: that recipe on a light network, with one thing changed in each row, and with as many
steps as the recipe takes as it is; a teacher has had four times as long. In a row the crop selects nothing: the last
weights are used, and the threshold 0.5. Between rows it does: the recipe's strength of augmentation was chosen by it,
so a fair guess at other ground is a little lower. The best threshold's IoU, with the threshold chosen on that very
crop, is a bound that nobody reaches; it is shown because it varies less from seed to seed.

    python benchmarks/real_austin.py [--rows networks] [--minutes 5] [--seeds 0 1] [--jobs 2] [--write]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from from_scratch import Budget, Recipe, known_cost, train
from record import RESULTS, ROOT, SCRATCH, Row, aerialseg, machine, merge, table, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA = ROOT / "data"
SCENE, TRUTH = "inria_austin/aerial_sample_image.tif", "inria_austin/aerial_sample_label.tif"
PIECES = "inria_austin_png"
BASELINE = "textbook U-Net"
MINUTES = 5.0
SCORES = ("iou", "accuracy", "precision", "recall", "f1", "mcc")
GROUP = ("machine", "minutes", "name", "arithmetic")
"""What rows of one line share."""

SMALL = Recipe({"data.crop": 256, "data.batch": 4, "optimizer.lr": 1e-3})
PYRAMID = SMALL.but({"model.preset": "unet-pyramid-window"})
LIGHTEST = SMALL.but({"model.architecture": "linknet", "model.encoder": "tu-resnet10t"})
"""It takes the most steps in a short time, so what an option is worth is measured on it."""
NETWORKS: dict[str, Recipe | None] = {
    BASELINE: None,
    "linknet-r10": LIGHTEST,
    **{
        preset: SMALL.but({"model.preset": preset})
        for preset in ("unet-r18", "unet-r34", "segformer-pvt2-b0", "upernet-swin-tiny")
    },
    **{
        f"unet-pyramid {mixers}": PYRAMID.but({"model.encoder_arguments.mixers": mixers})
        for mixers in ("conv", "window", "linear", "conv,conv,window,full")
    },
}
AS_IT_IS, TAUGHT = "as it is", "taught by unet-r34"
CHANGES: dict[str, dict[str, object]] = {
    AS_IT_IS: {},
    "augment medium": {"data.augment": "medium"},
    "augment light": {"data.augment": "light"},
    "degrade 0": {"data.degrade": 0.0},
    "no ema": {"run.ema": 0.0},
    "sampling balanced": {"data.sampling": "balanced"},
    "dice 0": {"loss.dice": 0.0},
    "lovasz 0.5 more": {"loss.lovasz": 0.5},
    "boundary 0.5 more": {"loss.boundary": 0.5},
    "focal for bce": {"loss.focal": 1.0, "loss.bce": 0.0},
    "tversky for dice": {"loss.tversky": 1.0, "loss.dice": 0.0},
    "one-cycle": {"schedule.shape": "one-cycle"},
    "polynomial": {"schedule.shape": "polynomial"},
}
UNET_PVT = SMALL.but({"model.architecture": "unet", "model.encoder": "tu-pvt_v2_b0"})
BASES = {"linknet-r10": LIGHTEST, "unet-pvt2-b0": UNET_PVT}
OPTIONS: dict[str, Recipe | None] = {
    **{f"linknet-r10, {name}": LIGHTEST.but(change) for name, change in CHANGES.items()},
    f"linknet-r10, {TAUGHT}": LIGHTEST,
    f"unet-pvt2-b0, {AS_IT_IS}": UNET_PVT,
    "unet-pvt2-b0, stem skip": UNET_PVT.but({"model.encoder_arguments.stem_skip": "true"}),
}
TEACHER, TEACHER_TIMES = "unet-r34", 4
"""How many times as long as a pupil the teacher is trained."""
ROWS = {"networks": NETWORKS, "options": OPTIONS}


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    data: Path
    work: Path
    budget: Budget

    @property
    def tiles(self) -> Path:
        """Where the tile set is."""
        return self.work / "tiles"

    @property
    def teacher(self) -> Path:
        """Where the run of the network is that others are taught by."""
        return self.work / "teacher" / TEACHER / "0"

    def cut(self) -> None:
        """Cut the eleven pieces, each into one tile, unless that is done."""
        pieces, options = self.data / PIECES, ("--size", 512, "--split", "val=austin4*", "--allow-ungeoreferenced")
        aerialseg("tile", pieces / "images", "--masks", pieces / "gt", "-o", self.tiles, *options)


def measure(bench: Bench, name: str, recipe: Recipe | None, seeds: Sequence[int]) -> list[Row]:
    """Train by a recipe, or the baseline, then map and score, with each of the seeds."""
    work = bench.work / re.sub("[^a-z0-9]+", "-", name.lower())
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if recipe is not None:
        base = name.partition(", ")[0] if name in OPTIONS else ""
        known = bench.work / f"cost-{bench.budget.family}-{base}.json" if base else work / "cost.json"
        cost = known_cost(bench.budget, BASES.get(base, recipe), bench.tiles, known)
        recipe = replace(recipe, teacher=bench.teacher) if name.endswith(TAUGHT) else recipe
    rows = []
    for seed in seeds:
        if recipe is None:
            trained, mask = map_plainly(bench, seed, work / f"{seed}.tif")
        else:
            trained = train(bench.budget, recipe, bench.tiles, work / f"{seed}", seed=seed, cost=cost)
            mask = map_scene(bench, work / f"{seed}", work / f"{seed}-maps", trained["arithmetic"])
        scores, _ = aerialseg("evaluate", mask, "--masks", bench.data / TRUTH)
        rows.append(
            {
                "name": name,
                "seed": seed,
                "minutes": bench.budget.minutes,
                "machine": machine(bench.budget.device),
                **trained,
                **{score: scores["overall"][score] for score in SCORES},
                "best": scores.get("probabilities", {}).get("iou_at_best_threshold"),
                "same_grid": compare_grids(bench.data / SCENE, mask),
                "versions": versions(),
                "measured": time.strftime("%Y-%m-%d"),
            }
        )
        print(f"{name}, seed {seed}: IoU {rows[-1]['iou']:.3f}", file=sys.stderr)
    return rows


def measure_teacher(bench: Bench) -> list[Row]:
    """Train the network that others are taught by, once, and score it; no rows when it is there."""
    if (bench.teacher / "model.safetensors").exists():
        return []
    longer = Budget(bench.budget.device, TEACHER_TIMES * bench.budget.minutes)
    apart = replace(bench, work=bench.work / "teacher", budget=longer)
    apart.cut()
    return measure(apart, TEACHER, NETWORKS[TEACHER], seeds=[0])


def map_plainly(bench: Bench, seed: int, mask: Path) -> tuple[Row, Path]:
    """Train the baseline and write its mask; returns what the table shows of it, and the mask."""
    pieces, seconds = bench.data / PIECES, bench.budget.minutes * 60
    words = (Path(__file__).with_name("plain_unet.py"), pieces / "images", pieces / "gt", bench.data / SCENE)
    options = ("--out", mask, "--seconds", seconds, "--seed", seed, "--device", bench.budget.device)
    report, _ = bench.budget.run(*words, *options)
    return {"arithmetic": "fp32", "steps": report["steps"], "trained_s": seconds}, mask


def map_scene(bench: Bench, run: Path, maps: Path, precision: str) -> Path:
    """Predict the scene; returns its mask."""
    options = ("--device", bench.budget.device, "--precision", precision, "--probability")
    aerialseg("predict", bench.data / SCENE, "-m", run, "-o", maps, *options)
    return maps / Path(SCENE).name


def compare_grids(scene: Path, mask: Path) -> str:
    """Return who found the mask's CRS, transform and size equal to the scene's; exits when one finds a difference."""
    import rasterio

    with rasterio.open(scene) as one, rasterio.open(mask) as other:
        same = one.crs == other.crs and one.transform == other.transform and one.shape == other.shape
    asked = {"rasterio": same}
    if shutil.which("gdalinfo"):
        grids = []
        for path in (scene, mask):
            command = ["gdalinfo", "-json", "-norat", str(path)]
            info = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            grids.append((info["size"], info["geoTransform"], info["coordinateSystem"]["wkt"]))
        asked["gdalinfo"] = grids[0] == grids[1]
    if not all(asked.values()):
        sys.exit(f"error: {mask}: its grid differs from {scene}: {asked}")
    return " and ".join(asked)


def keep(rows: list[Row], out: Path) -> None:
    """Put rows into the results, in place of older ones of the same machine, name and seed."""
    everything = merge(out / "real_austin.json", rows, ("machine", "minutes", "arithmetic", "name", "seed"))
    (out / "real_austin.md").write_text(page(everything))


def page(rows: list[Row]) -> str:
    """Return the results as Markdown, one line for all seeds of a row."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in GROUP)
        groups.setdefault(key, []).append(row)
    columns = {
        "what": "{name}",
        "arithmetic": "{arithmetic}",
        "minutes": "{minutes:g}",
        "steps": "{steps}",
        "IoU of each seed": "{each}",
        "**IoU**": "**{iou:.3f}**",
        "accuracy": "{accuracy:.3f}",
        "precision": "{precision:.3f}",
        "recall": "{recall:.3f}",
    }
    shown = sorted((_together(group) for group in groups.values()), key=lambda row: -row["iou"])
    networks = table(columns, [row for row in shown if row["name"] not in OPTIONS])
    changed = [group for group in groups.values() if group[0]["name"] in OPTIONS]
    options = [{**_together(group), **_beside(group, groups)} for group in changed]
    options.sort(key=lambda row: -row["iou"])
    machines = sorted({f"- {row['machine']}; {_listed(row['versions'])}; {row['measured']}" for row in rows})
    grids = sorted({row["same_grid"] for row in rows})
    return f"""# From scratch on eleven real pieces

Made by `python benchmarks/real_austin.py --minutes M --write`; what it does is written at its top.
Scores are of buildings on a
1000 x 1000 px scene of other ground (14.2 % building), the mean over the seeds. Minutes are what the training steps
took, of processor time of one thread on a CPU and of wall time on a GPU. That the mask has exactly the scene's CRS,
transform and size was found by: {"; ".join(grids)}.

## Networks

{networks}

## Options

Gains are the mean over the seeds of the difference to "as it is" with the same seed, with the standard error of that
mean behind it; one smaller than twice its error means nothing.

{table({**columns, **GAINS}, options) if options else "Not measured yet."}

{chr(10).join(machines)}
"""


GAINS = {
    "gain in IoU": "{gain:+.3f} ± {gain_error:.3f}",
    "best threshold's IoU": "{best:.3f}",
    "gain there": "{best_gain:+.3f} ± {best_gain_error:.3f}",
    "minutes taken": "{taken:.1f}",
}
"""Columns for options."""


def _beside(rows: list[Row], groups: dict[tuple[object, ...], list[Row]]) -> Row:
    """Return what an option changes, seed by seed, against the recipe as it is."""
    machine, minutes, name, arithmetic = (rows[0][key] for key in GROUP)
    base = f"{name.partition(', ')[0]}, {AS_IT_IS}"
    plain = {row["seed"]: row for row in groups.get((machine, minutes, base, arithmetic), [])}
    pairs = [(row, plain[row["seed"]]) for row in rows if row["seed"] in plain]
    found: Row = {"taken": statistics.fmean(row["trained_s"] for row in rows) / 60}
    for score, prefix in (("iou", ""), ("best", "best_")):
        gains = [one[score] - other[score] for one, other in pairs if None not in (one[score], other[score])]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
        found |= {f"{prefix}gain": statistics.fmean(gains) if gains else None, f"{prefix}gain_error": error}
    return found


def _together(rows: list[Row]) -> Row:
    """Return one line for several seeds: the mean of their scores, None where one has none (all or nothing mapped)."""
    found = {score: [row.get(score) for row in rows] for score in (*SCORES, "best")}
    means = {score: None if None in values else statistics.fmean(values) for score, values in found.items()}
    steps = sorted({row["steps"] for row in rows})
    told = f"{steps[0]:,}" if steps[0] == steps[-1] else f"{steps[0]:,} to {steps[-1]:,}"
    return {**rows[0], **means, "steps": told, "each": ", ".join(f"{row['iou']:.3f}" for row in rows)}


def main() -> None:
    """Read the command line, measure, print, and write if asked to."""
    options = parse()
    if not (options.data / SCENE).is_file():
        print(f"skipped: the real pieces of Austin are not at {options.data}; give their folder with --data")
        return
    bench = Bench(options.data, options.work, Budget(options.device, options.minutes))
    bench.cut()
    chosen = {name: recipe for name, recipe in ROWS[options.rows].items() if any(word in name for word in options.only)}
    rows: list[Row] = measure_teacher(bench) if any(name.endswith(TAUGHT) for name in chosen) else []
    if options.write:
        keep(rows, options.out)
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in pool.map(lambda row: measure(bench, *row, options.seeds), chosen.items()):
            rows += done
            if options.write:
                keep(done, options.out)
    print(page(rows))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder with inria_austin and {PIECES}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="what every training may cost")
    parser.add_argument("--rows", choices=ROWS, default="networks", help="what is compared")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of the rows that are wanted")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--jobs", type=int, default=1, help="rows at once; on a CPU each takes one thread")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--work", type=Path, default=SCRATCH / "real_austin", help="where tiles, runs and maps go")
    parser.add_argument("--write", action="store_true", help="put the rows into the results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results lie")
    return parser.parse_args()


def _listed(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


if __name__ == "__main__":
    main()
