"""How well a network trained from scratch on eleven real 512 px pieces maps a real scene it never saw.

The data is Inria's (Austin): eleven pieces of four scenes to train on, and a 1000 x 1000 crop of other ground to map.
For each preset and precision half the training budget goes into a run that validates on the pieces of austin4; it
settles the number of steps and the threshold. The other half trains a fresh network for that many steps on all eleven.
The crop is then mapped and scored; it selects nothing. Everything is done by the commands a user would type.

    python benchmarks/real_austin.py [--minutes 10] [--presets unet-r18] [--precisions auto] [--write]
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from record import RESULTS, ROOT, SCRATCH, Row, aerialseg, machine, merge, table, versions

DATA = ROOT.parent / "shared" / "data"
PRESETS = ("unet-r18", "unet-r34", "segformer-pvt2-b0")
PRECISIONS = {"cpu": ("auto",), "cuda": ("bf16", "fp16", "fp32")}
MINUTES = {"cpu": 10.0, "cuda": 5.0}
VALIDATION = "val=austin4*"
SCORES = ("iou", "accuracy", "precision", "recall", "f1", "mcc")
SCENE, TRUTH = "inria_austin/aerial_sample_image.tif", "inria_austin/aerial_sample_label.tif"

SETTINGS = {
    "model.weights": "none", "data.crop": 256, "data.batch": 4, "optimizer.lr": 1e-3, "schedule.patience": 0
}  # fmt: skip
"""Beside these the shipped configuration `small` is used as it is."""
EPOCHS = 4
"""Times the selecting run validates; the refit stops where the best of these did."""
PROBE_STEPS = {"cpu": 4, "cuda": 40}
"""Steps an epoch of the run that measures how fast this machine trains; it is not part of the budget."""


@dataclass(frozen=True)
class Experiment:
    """One row of the table to be."""

    preset: str
    precision: str
    device: str
    minutes: float
    """Training time in all: selecting and refitting, start-up of both included."""
    tiles: Path
    work: Path
    changes: tuple[str, ...] = ()
    """What to set otherwise than SETTINGS and the shipped configuration do, as KEY=VALUE."""

    @property
    def settings(self) -> dict[str, object]:
        """What is set beside the shipped configuration in every run."""
        changed = dict(change.split("=", 1) for change in self.changes)
        return {**SETTINGS, "model.preset": self.preset, "run.precision": self.precision, **changed}

    def train(self, name: str, **schedule: object) -> tuple[Row, float]:
        """Run `aerialseg train` afresh into the folder `name`; returns its report and wall time."""
        settings = {**self.settings, **schedule}
        assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        options = ("-c", "small", "--device", self.device, "--overwrite", *assignments)
        return aerialseg("train", self.tiles, "-o", self.work / name, *options)

    @property
    def family(self) -> str:
        """cpu or cuda."""
        return self.device.partition(":")[0]


def cut_tiles(data: Path, work: Path) -> Path:
    """Tile the eleven pieces; each is one tile."""
    pieces, tiles = data / "inria_austin_png", work / "tiles"
    options = ("--size", 512, "--split", VALIDATION, "--allow-ungeoreferenced")
    aerialseg("tile", pieces / "images", "--masks", pieces / "gt", "-o", tiles, *options)
    return tiles


def measure(experiment: Experiment, data: Path) -> Row:
    """Select, refit, map and score; returns everything the table shows."""
    shutil.rmtree(experiment.work, ignore_errors=True)
    epochs, steps_per_epoch = plan(experiment)
    schedule = {"schedule.epochs": epochs, "schedule.steps_per_epoch": steps_per_epoch}
    selected, select_s = experiment.train("select", **schedule)
    refitted, refit_s = experiment.train(
        "refit",
        **{
            "data.train_on": "all",
            "schedule.epochs": selected["best_epoch"],
            "schedule.steps_per_epoch": steps_per_epoch,
            "run.threshold": selected["threshold"],
        },
    )
    scene, maps = data / SCENE, experiment.work / "maps"
    options = ("--device", experiment.device, "--precision", experiment.precision)
    _, predict_s = aerialseg("predict", scene, "-m", experiment.work / "refit", "-o", maps, *options)
    mask = maps / Path(SCENE).name
    scores, _ = aerialseg("evaluate", mask, "--masks", data / TRUTH)
    return {
        "preset": experiment.preset,
        "arithmetic": refitted["precision"],
        "device": experiment.family,
        "changes": list(experiment.changes),
        "machine": machine(experiment.device),
        "minutes": experiment.minutes,
        "validation_iou": selected["best_iou"],
        "threshold": selected["threshold"],
        "steps": refitted["steps"],
        "crops_per_s": refitted["images_per_s"],
        "select_s": select_s,
        "refit_s": refit_s,
        "predict_s": predict_s,
        **{name: scores["overall"][name] for name in SCORES},
        "same_grid": compare_grids(scene, mask),
        "versions": versions(),
        "measured": time.strftime("%Y-%m-%d"),
    }


def plan(experiment: Experiment) -> tuple[int, int]:
    """Return how many epochs of how many steps fill half the budget, from a short run at the same settings."""
    few = PROBE_STEPS[experiment.family]
    _, wall_s = experiment.train("probe", **{"schedule.epochs": 3, "schedule.steps_per_epoch": few})
    with (experiment.work / "probe" / "metrics.csv").open() as stream:
        epochs = [(float(row["seconds"]), float(row["images_per_s"])) for row in csv.DictReader(stream)]
    later = epochs[1:]  # the first one is slower: buffers are touched, kernels are chosen
    crops = few * int(str(experiment.settings["data.batch"]))
    step_s = median(crops / rate for _, rate in later) / few
    judge_s = median(seconds - crops / rate for seconds, rate in later)
    start_up_s = wall_s - len(epochs) * median(seconds for seconds, _ in later)
    return share_out(experiment.minutes * 30 - start_up_s, step_s=step_s, judge_s=judge_s)


def share_out(seconds: float, *, step_s: float, judge_s: float) -> tuple[int, int]:
    """Return (epochs, steps an epoch) that take `seconds`: EPOCHS of them, fewer when that leaves no step for each."""
    epochs = max(1, min(EPOCHS, int(seconds // (step_s + judge_s))))
    return epochs, max(1, int((seconds / epochs - judge_s) / step_s))


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
    """Put rows into the results, in place of older ones of the same machine, preset and arithmetic."""
    everything = merge(out / "real_austin.json", rows, ("machine", "preset", "arithmetic"))
    (out / "real_austin.md").write_text(page(everything))


def page(rows: list[Row]) -> str:
    """Return the results as Markdown."""
    columns = {
        "preset": "{preset}",
        "arithmetic": "{arithmetic}",
        "device": "{device}",
        "budget, min": "{minutes:g}",
        "steps": "{steps:,}",
        "crops/s": "{crops_per_s:.1f}",
        "training wall, s": "{training_s:.0f}",
        "predict, s": "{predict_s:.0f}",
        "changes": "{changed}",
        "validation IoU": "{validation_iou:.3f}",
        "**IoU**": "**{iou:.3f}**",
        "accuracy": "{accuracy:.3f}",
        "precision": "{precision:.3f}",
        "recall": "{recall:.3f}",
    }
    shown = [
        {**row, "training_s": row["select_s"] + row["refit_s"], "changed": ", ".join(row["changes"]) or "none"}
        for row in rows
    ]
    machines = sorted(
        {f"- {row['device']}: {row['machine']}; {_listed(row['versions'])}; {row['measured']}" for row in rows}
    )
    grids = sorted({row["same_grid"] for row in rows})
    return f"""# From scratch on eleven real pieces

Made by `python benchmarks/real_austin.py --write`; what it does is written at its top. IoU, accuracy, precision and
recall are of buildings on a 1000 x 1000 px scene that took no part in training or selection (14.2 % building).
Training wall is what the two training commands took together, start-up included; the networks start from random
weights. Changes are settings other than the script's own. That the mask has exactly the scene's CRS, transform and size
was found by: {"; ".join(grids)}.

{table(columns, shown)}

{chr(10).join(machines)}
"""


def main() -> None:
    """Read the command line, measure, print, and write if asked to."""
    options = parse()
    if not (options.data / SCENE).is_file():
        print(f"skipped: the real pieces of Austin are not at {options.data}; give their folder with --data")
        return
    family = options.device.partition(":")[0]
    tiles = cut_tiles(options.data, options.work)
    rows = []
    for preset in options.presets:
        for precision in options.precisions or PRECISIONS[family]:
            minutes = options.minutes or MINUTES[family]
            work = options.work / f"{preset}-{precision}"
            changes = tuple(options.set)
            experiment = Experiment(preset, precision, options.device, minutes, tiles, work, changes)
            rows.append(measure(experiment, options.data))
            if options.write:
                keep(rows, options.out)
    print(page(rows))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with inria_austin and inria_austin_png")
    parser.add_argument("--minutes", type=float, help="training time per row (default: 10 on a CPU, 5 on a GPU)")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--precisions", nargs="+", help="auto, bf16, fp16, fp32 (default: auto on a CPU, all on a GPU)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="train with another setting")
    parser.add_argument("--work", type=Path, default=SCRATCH / "real_austin", help="where tiles, runs and maps go")
    parser.add_argument("--write", action="store_true", help="put the rows into the results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results lie")
    return parser.parse_args()


def _listed(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


if __name__ == "__main__":
    main()
