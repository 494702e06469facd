"""What an NVIDIA card makes of aerialseg, and what keeps it waiting.

Four parts, each a few minutes, so that a machine rented for ten minutes at a time will do:

accuracy    training on the real pieces of Austin in bf16, fp16 and fp32, scored on a scene it never saw
prediction  whole scenes through `predict`, from file to file, against the bare network on pixels that are there already
feeding     training steps with batches from the disk, against steps on one batch that stays on the device
memory      the device memory that training and prediction take at their most

    python benchmarks/gpu.py [--part prediction] [--minutes 1] [--out benchmarks/results]

`--device cpu --smoke` runs tiny sizes, to see that the script works; such numbers mean nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import real_austin
from from_scratch import Budget
from inputs import SMOKE, Bench, Sizes, combinations, draw_large_scenes, measure_training, save_random_model
from record import RESULTS, SCRATCH, Row, machine, merge, table, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.scenes import Scene
    from aerialseg.prediction.report import PredictReport

DEVICE_UNAVAILABLE = 69


def measure_accuracy(bench: Bench) -> Iterator[Row]:
    """Train on the real pieces for each precision; the rows go to real_austin.md too."""
    if not (bench.data / real_austin.SCENE).is_file():
        print(f"accuracy skipped: the real pieces of Austin are not at {bench.data}; give their folder with --data")
        return
    budget = Budget(bench.device, bench.sizes.minutes)
    austin = real_austin.Bench(bench.data, bench.work / "austin", budget)
    austin.cut()
    for preset, precision in combinations(bench.sizes):
        changes = {"model.preset": preset, "data.batch": 16, "run.precision": precision}
        (row,) = real_austin.measure(austin, preset, real_austin.SMALL.but(changes), seeds=[0])
        real_austin.keep([row], bench.out)
        yield {"preset": preset, **row}


def measure_prediction(bench: Bench) -> Iterator[Row]:
    """Time `predict` over several scenes, less its time over one, against the network alone."""
    from aerialseg.geo.scenes import find_scenes

    scenes = find_scenes([draw_large_scenes(bench)])
    for preset, precision in combinations(bench.sizes):
        model = save_random_model(bench, preset)
        one_s, report = predict(bench, scenes[:1], model, precision)
        all_s, _ = predict(bench, scenes, model, precision)
        scene_s = (all_s - one_s) / (len(scenes) - 1)
        windows_per_s, batch = network_rate(bench, model, precision)
        network_s = (report.scenes[0].windows or 0) / windows_per_s
        yield {
            "preset": preset,
            "arithmetic": precision,
            "scene": bench.sizes.scene,
            "batch": batch,
            "start_up_s": one_s - scene_s,
            "scene_s": scene_s,
            "mpx_per_s": report.scenes[0].mpx / scene_s,
            "network_s": network_s,
            "network_windows_per_s": windows_per_s,
            "share": network_s / scene_s,
        }


def predict(bench: Bench, scenes: Sequence[Scene], model: Path, precision: str) -> tuple[float, PredictReport]:
    """Predict scenes into an empty folder; returns the wall time, loading the model included, and the report."""
    from aerialseg.prediction.options import PredictOptions
    from aerialseg.prediction.run import predict_scenes

    shutil.rmtree(bench.work / "maps", ignore_errors=True)
    began = time.monotonic()
    report = predict_scenes(
        scenes, model, bench.work / "maps", PredictOptions(device=bench.device, precision=precision)
    )
    report.raise_failures()
    return time.monotonic() - began, report


def network_rate(bench: Bench, model: Path, precision: str) -> tuple[float, int]:
    """Return how many windows a second the network takes that lie on the device already, and how many together."""
    import torch

    from aerialseg.models.device import autocast
    from aerialseg.models.package import load_model
    from aerialseg.prediction.network import automatic_batch

    device = torch.device(bench.device)
    batch, side = automatic_batch(device, bench.sizes.window), bench.sizes.window
    segmenter = load_model(model)[0].to(device).to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    with torch.inference_mode(), autocast(device, precision):
        return batch * bench.rate(lambda: segmenter(pixels), bench.sizes.steps), batch


def measure_feeding(bench: Bench) -> Iterator[Row]:
    """Time training steps with crops from tiles, and on one batch that stays on the device."""
    for preset, precision in combinations(bench.sizes):
        report = measure_training(bench, preset, precision)
        yield {
            "preset": preset,
            "arithmetic": precision,
            "batch": report.batch,
            "crop": report.crop,
            "raw": report.raw,
            "augmented": report.augmented,
            "crops_per_s": report.fed * report.batch,
            "kept_crops_per_s": report.fixed * report.batch,
            "share": report.ratio,
            "spent": ", ".join(f"{phase} {share:.0%}" for phase, share in report.spent.items()),
        }


def measure_memory(bench: Bench) -> Iterator[Row]:
    """Read the most device memory that tensors took while training, and while predicting; None on a CPU."""
    import torch

    from aerialseg.geo.scenes import find_scenes

    scene = find_scenes([draw_large_scenes(bench)])[:1]

    def peak_mb(call: Callable[[], object]) -> float | None:
        if not bench.device.startswith("cuda"):
            call()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
        call()
        return torch.cuda.max_memory_allocated(bench.device) / 2**20

    for preset, precision in combinations(bench.sizes):
        training_mb = peak_mb(lambda: measure_training(bench, preset, precision))  # noqa: B023
        model = save_random_model(bench, preset)
        predict_mb = peak_mb(lambda: predict(bench, scene, model, precision))  # noqa: B023
        yield {
            "preset": preset,
            "arithmetic": precision,
            "batch": bench.sizes.batch,
            "crop": bench.sizes.window,
            "training_mb": training_mb,
            "predict_mb": predict_mb,
        }


PARTS = {
    "accuracy": measure_accuracy,
    "prediction": measure_prediction,
    "feeding": measure_feeding,
    "memory": measure_memory,
}
COLUMNS = {
    "prediction": {
        "scene, px": "{scene}",
        "windows together": "{batch}",
        "start-up, s": "{start_up_s:.1f}",
        "predict, s a scene": "{scene_s:.2f}",
        "Mpx/s": "{mpx_per_s:.1f}",
        "network alone, s a scene": "{network_s:.2f}",
        "windows/s": "{network_windows_per_s:.0f}",
        "network's share": "{share:.0%}",
    },
    "feeding": {
        "batch": "{batch} x {crop} px",
        "crops/s read": "{raw:.0f}",
        "and augmented": "{augmented:.0f}",
        "crops/s trained": "{crops_per_s:.0f}",
        "crops/s, one batch kept": "{kept_crops_per_s:.0f}",
        "share": "{share:.0%}",
        "time of a step": "{spent}",
    },
    "memory": {
        "training batch": "{batch} x {crop} px",
        "training, MB": "{training_mb:.0f}",
        "predict, MB": "{predict_mb:.0f}",
    },
    "accuracy": {
        "training, min": "{minutes:g}",
        "crops/s": "{images_per_s:.0f}",
        "steps": "{steps:,}",
        "IoU": "{iou:.3f}",
        "accuracy": "{accuracy:.3f}",
    },
}


def page(rows: list[Row]) -> str:
    """Return the results as Markdown, a table for each part."""
    parts = (__doc__ or "").split("\n\n")[2].splitlines()
    lines = ["# On a GPU", "", "Made by `python benchmarks/gpu.py`.", ""]
    for part in PARTS:
        measured = [row for row in rows if row["part"] == part]
        if measured:
            meaning = next(line for line in parts if line.startswith(part)).removeprefix(part).strip()
            columns = {"preset": "{preset}", "arithmetic": "{arithmetic}", **COLUMNS[part]}
            lines += [f"## {part.capitalize()}: {meaning}", "", table(columns, measured), ""]
            lines += [*sorted({f"- {row['machine']}; torch {row['versions']['torch']}" for row in measured}), ""]
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure part by part, print, and write after every row."""
    options = parse()
    if not usable(options):
        print(
            "error: no CUDA device is usable here; `aerialseg doctor` says why. Run this on a machine with an NVIDIA"
            " card, or with --device cpu --smoke to try the script",
            file=sys.stderr,
        )
        sys.exit(DEVICE_UNAVAILABLE)
    sizes = SMOKE if options.smoke else Sizes()
    given = {key: getattr(options, key) for key in ("presets", "precisions", "minutes") if getattr(options, key)}
    bench = Bench(options.device, replace(sizes, **given), options.work, options.data, options.out)
    bench.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for part in options.part or PARTS:
        for row in PARTS[part](bench):
            rows.append({"part": part, "machine": machine(options.device), "versions": versions(), **row})
            everything = merge(bench.out / "gpu.json", rows, ("part", "machine", "preset", "arithmetic"))
            (bench.out / "gpu.md").write_text(page(everything))
    print(page(rows))


def usable(options: argparse.Namespace) -> bool:
    """Return whether the device asked for can be measured on: a CUDA one that works, or the CPU to try the script."""
    import torch

    if options.device.startswith("cuda"):
        return torch.cuda.is_available()
    return options.device == "cpu" and options.smoke


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this only; may be repeated")
    parser.add_argument("--presets", nargs="+")
    parser.add_argument("--precisions", nargs="+")
    parser.add_argument("--minutes", type=float, help="training time for each row of the part accuracy (default: 1)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --smoke")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that the script works")
    parser.add_argument("--data", type=Path, default=real_austin.DATA, help="folder with the real pieces of Austin")
    parser.add_argument("--work", type=Path, default=SCRATCH / "gpu", help="where scenes, tiles and maps go")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
