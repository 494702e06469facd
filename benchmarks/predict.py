"""What `predict` costs beside the network, against the floor and against its peers.

One drawn scene, stored as Inria's are (uncompressed, striped, interleaved by pixel), goes through a network that costs
nothing: the same logits for every window. Windows of 512 px that overlap by a quarter, four in a batch, one thread of
torch. Every measurement runs in a process of its own, imports not counted, the contestants in turn, so that a busy
minute hits them alike; times are the least of the runs, each by itself, memory (the peak above what the process held
before) is the largest. The scene's file is in the page cache.

floor        reading the scene in strips, and putting the finished mask through the COG writer; before the COG step:
             reading, and writing the mask's bytes
aerialseg    the engine as `aerialseg predict` runs it, hashing, counting, side files and reading back included; before
             the COG step: up to the finished part
numpy        rasterio and numpy in aerialseg's own environment: all read, all added up in arrays of the scene's size
the others   from PyPI, each in an environment of its own (benchmarks/peers/*.txt), used as its documentation shows
             (benchmarks/peers/with_*.py); its mask goes through aerialseg's COG writer, in a process of its own, whose
             memory is not counted

Two masks are compared with aerialseg's, pixel by pixel. `bright` is a network that judges every pixel by itself, so
whoever loses, moves or doubles a pixel is found out. `free` shows where windows stand: those of MONAI's last row and
column are moved back to the scene's edge, pytorch-toolbelt centres its grid on the scene, torchgeo's begins at the
lowest row, so their squares lie elsewhere; nobody's are wrong.

A second table is the same at 20000 px for the floor and aerialseg: what memory does. A third one has a real network,
UNet with a ResNet-18, on two threads: how much of the wall is not the forward pass. It is trained for a minute on drawn
scenes first, for random weights draw specks, whose COG takes longer than that of buildings. One scene runs alone; over
many, its COG is written while the next one runs.

    python benchmarks/predict.py [--times 3] [--no-peers] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from peers.environments import NAMES, PEERS, environments
from record import RESULTS, SCRATCH, Row, aerialseg, machine, merge, table, versions

ENVIRONMENT = dict(os.environ)
"""As it was given: importing aerialseg.geo tells GDAL what it may not do, through variables that peers must not see."""
PRESET = "unet-r18"
FREE = {
    "": "{contestant}",
    "before the COG: wall, s": "{wall_s:.2f}",
    "user, s": "{user_s:.2f}",
    "system, s": "{system_s:.2f}",
    "with the COG: wall, s": "{cog_wall_s:.2f}",
    "user, s ": "{cog_user_s:.2f}",
    "system, s ": "{cog_system_s:.2f}",
    "wall / floor": "{over_floor:.2f}",
    "extra memory, MB": "{extra_mb:.0f}",
    "pixels that differ, bright": "{differ_bright}",
    "free": "{differ_free}",
    "version": "{version}",
}
NETWORK = {
    "precision": "{asked}",
    "found": "{precision}",
    "scene": "{size}x{size}",
    "wall, s": "{wall_s:.2f}",
    "forward pass, s": "{forward_s:.2f}",
    "not the forward pass": "{beside:.1%}",
    "up to the finished part": "{beside_engine:.1%}",
    "after it, s": "{after_s:.2f}",
    "extra memory, MB": "{extra_mb:.0f}",
}
TARGETS = {
    "question": "{question}",
    "wanted": "{wanted}",
    "found": "{found:.3g}",
}
RIVALRY = {
    "wall": ("cog_wall_s",),
    "user time": ("cog_user_s",),
    "user and system time": ("cog_user_s", "cog_system_s"),
}
"""What aerialseg should be first of all in."""


class Runner:
    """Runs contestants in processes of their own; holds where they work and how large windows are."""

    def __init__(self, work: Path, window: int, times: int) -> None:
        self.work, self.window, self.times = work, window, times

    def ours(self, kind: str, scene: Path, *options: object, threads: int = 1) -> Row:
        """Measure one kind of `peers/with_aerialseg.py`."""
        folder = self.work / "written"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = "--kind", kind, "--scene", scene, "--folder", folder, "--threads", threads, *options
        return self._run(Path(sys.executable), "with_aerialseg.py", words, threads)

    def peer(self, name: str, python: Path, scene: Path, network: str) -> Row:
        """Measure a peer before the COG step; its mask is at `self.mask`."""
        words = "--scene", scene, "--mask", self.mask(name, network), "--network", network
        return self._run(python, f"with_{name}.py", words, 1)

    def mask(self, name: str, network: str) -> Path:
        """Return where a contestant leaves its mask."""
        return self.work / f"{name}-{network}.npy"

    def _run(self, python: Path, script: str, words: Iterable[object], threads: int) -> Row:
        command = [str(python), str(PEERS / script), "--window", str(self.window), *map(str, words)]
        count = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        environment = {**ENVIRONMENT, **count, "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{script}: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}")
        row: Row = json.loads(done.stdout.splitlines()[-1])
        return row


def draw_scene(work: Path, size: int) -> Path:
    """Write a square scene, once: a drawn one of 1024 px repeated, so that its masks compress as masks do."""
    import rasterio
    from rasterio.windows import Window

    from aerialseg.sample import write_sample

    path = work / f"scene{size}.tif"
    if path.exists():
        return path
    write_sample(work / "drawn", 1, 1024)
    with rasterio.open(next((work / "drawn").rglob("images/*.tif"))) as source:
        drawn = np.tile(source.read(), (1, 1, size // 1024 + 1))[..., :size]
    grid = rasterio.transform.from_origin(616000, 3347000, 0.3, 0.3)
    profile = {"height": size, "width": size, "count": 3, "dtype": "uint8", "crs": "EPSG:26914", "transform": grid}
    unfinished = path.with_suffix(".part.tif")
    with rasterio.open(unfinished, "w", driver="GTiff", interleave="pixel", BIGTIFF="IF_SAFER", **profile) as target:
        for row in range(0, size, 1024):
            target.write(drawn[:, : size - row], window=Window(0, row, size, min(1024, size - row)))
    unfinished.replace(path)
    return path


def least(runs: list[Row]) -> Row:
    """Return the least of all times, each by itself, and the largest memory."""
    best = {key: min(run[key] for run in runs) for key in runs[0] if key.endswith("_s")}
    return {**runs[0], **best, "extra_mb": max(run["extra_mb"] for run in runs), "runs": runs}


def with_cog(before: Row, after: Row, *, added: bool) -> Row:
    """Put what was measured with the COG step beside what was before it; `added`: `after` is the step alone."""
    keys = "wall_s", "user_s", "system_s"
    cog = {f"cog_{key}": after[key] + (before[key] if added else 0) for key in keys}
    extra = max(before["extra_mb"], 0 if added else after["extra_mb"])
    return {**before, **cog, "extra_mb": extra, "cog_runs": after["runs"]}


def measure_free(runner: Runner, size: int, peers: dict[str, Path]) -> list[Row]:
    """Measure all contestants in turn, and compare their masks."""
    scene = draw_scene(runner.work, size)
    known = {"floor": ("raw", "floor"), "aerialseg": ("part", "whole")}
    peers = dict(peers)
    runs: dict[tuple[str, bool], list[Row]] = {}
    for _ in range(runner.times):
        for name, kinds in known.items():
            for kind, finished in zip(kinds, (False, True), strict=True):
                mask = ["--mask", runner.mask(name, "free")] if kind == "whole" else []
                runs.setdefault((name, finished), []).append(runner.ours(kind, scene, *mask))
        for name, python in list(peers.items()):
            try:
                runs.setdefault((name, False), []).append(runner.peer(name, python, scene, "free"))
            except RuntimeError as error:
                print(f"skipped: {error}", file=sys.stderr)
                del peers[name]
                continue
            runs.setdefault((name, True), []).append(runner.ours("cog", scene, "--mask", runner.mask(name, "free")))
    ours, rows = f"aerialseg {versions()['aerialseg']}", []
    for name in (*known, *peers):
        row = with_cog(least(runs[name, False]), least(runs[name, True]), added=name not in known)
        rows.append({"version": ours, **row, "contestant": NAMES.get(name, name)})
    compare_masks(runner, scene, peers, rows)
    floor = rows[0]["cog_wall_s"]
    return [{**row, "over_floor": row["cog_wall_s"] / floor, "part": "free", "size": size} for row in rows]


def compare_masks(runner: Runner, scene: Path, peers: dict[str, Path], rows: list[Row]) -> None:
    """Add to every peer's row how many pixels differ from aerialseg's."""
    if not peers:
        return
    runner.ours("whole", scene, "--network", "bright", "--mask", runner.mask("aerialseg", "bright"))
    for (name, python), row in zip(peers.items(), rows[-len(peers) :], strict=True):
        runner.peer(name, python, scene, "bright")
        for network in ("free", "bright"):
            one, other = (np.load(runner.mask(whose, network)) for whose in (name, "aerialseg"))
            row[f"differ_{network}"] = int(np.count_nonzero(one != other)) if one.shape == other.shape else "all"


def train_network(work: Path) -> Path:
    """Train a network on drawn scenes, once: long enough that its masks are of buildings; returns the model's file."""
    run = work / PRESET
    model = run / "model.safetensors"
    if not model.exists():
        from aerialseg.sample import write_sample

        write_sample(work / "sample", 4, 1000)
        aerialseg("tile", work / "sample", "-o", work / "tiles", "--size", 256)
        changes = {"model.preset": PRESET, "model.weights": "none", "data.crop": 128, "schedule.steps_per_epoch": 200}
        settings = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        once = ("--set", "schedule.epochs=1", "--device", "cpu", "--overwrite")
        aerialseg("train", work / "tiles", "-o", run, "-c", "small", *settings, *once)
    return model


def measure_network(runner: Runner, size: int) -> Iterator[Row]:
    """Run a real network, and say how much of the wall is not its forward pass."""
    scene, model = draw_scene(runner.work, size), train_network(runner.work)
    for precision in ("fp32", "auto"):
        words = "--network", model, "--precision", precision
        row = least([runner.ours("whole", scene, *words, threads=2) for _ in range(runner.times)])
        beside, engine = (min(1 - run["forward_s"] / run[of] for run in row["runs"]) for of in ("wall_s", "engine_s"))
        after = row["counting_s"] + row["cog_s"]
        yield {**row, "part": "network", "contestant": PRESET, "asked": precision, "size": size,
               "beside": beside, "beside_engine": engine, "after_s": after}  # fmt: skip


def answers(rows: list[Row]) -> list[Row]:
    """Return what was wanted of aerialseg and what was found."""
    found = {(row["part"], row["contestant"]): row for row in rows if row["part"] != "network"}
    ours, floor = found.get(("free", "aerialseg")), found.get(("free", "floor"))
    peers = [row for (part, name), row in found.items() if part == "free" and name not in ("aerialseg", "floor")]
    questions: list[tuple[str, str, float]] = []
    if ours and floor:
        size = f"{ours['size']}x{ours['size']}"
        questions = [
            (f"{size}: wall over the floor's", "at most 2", ours["over_floor"]),
            ("the same before the COG step", "at most 2.33 (0.35 s over 0.15 s)", ours["wall_s"] / floor["wall_s"]),
            (f"{size}: extra memory, MB", "at most 250", ours["extra_mb"]),
        ]
        for measure, keys in RIVALRY.items():
            if peers:
                mine, others = sum(ours[key] for key in keys), [sum(row[key] for key in keys) for row in peers]
                questions.append((f"{measure}, over the best peer's", "below 1", mine / min(others)))
    if large := found.get(("large", "aerialseg")):
        questions.append((f"{large['size']}x{large['size']}: extra memory, MB", "at most 450", large["extra_mb"]))
    for row in rows:
        if row["part"] == "network":
            asked = f"{row['contestant']}, {row['asked']}: wall that is not the forward pass, %"
            questions.append((asked, "at most 3", 100 * row["beside"]))
    return [{"question": question, "wanted": wanted, "found": value} for question, wanted, value in questions]


def page(rows: list[Row]) -> str:
    """Return the results as Markdown, machine by machine."""
    text = [f"# predict beside the network\n\n{(__doc__ or '').strip()}\n"]
    for where in sorted({row["machine"] for row in rows}):
        mine = [row for row in rows if row["machine"] == where]
        text.append(f"## {where}\n\n{table(TARGETS, answers(mine))}\n")
        for part, title in (("free", "A network that costs nothing"), ("large", "A large scene")):
            if chosen := sorted((row for row in mine if row["part"] == part), key=lambda row: row["order"]):
                text.append(f"### {title}: {chosen[0]['size']}x{chosen[0]['size']} px\n\n{table(FREE, chosen)}\n")
        if chosen := [row for row in mine if row["part"] == "network"]:
            text.append(f"### A real network: {PRESET}\n\n{table(NETWORK, chosen)}\n")
        for run in {row["command"]: row for row in mine}.values():
            about = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
            made = f"Made by `{run['command']}`, {run['times']} runs each, at a load average of {run['load']:.1f}"
            text.append(f"{made}; with {about}.\n")
    return "\n".join(text)


def main() -> None:
    """Read the options, measure, print, and keep the tables when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=5000, help="of the scene, in pixels; 0: leave this part out")
    parser.add_argument("--large", type=int, default=20000, help="of the large scene; 0: leave this part out")
    parser.add_argument("--network", type=int, default=2000, help="of the real network's scene; 0: leave this part out")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="only the floor and aerialseg")
    parser.add_argument("--write", action="store_true", help="keep the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where; default: benchmarks/results")
    parser.add_argument("--work", type=Path, default=SCRATCH / "predict", help="where scenes and masks are put")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    runner = Runner(given.work, given.window, given.times)
    rows: list[Row] = []
    if given.size:
        peers = {} if given.no_peers else {"numpy": Path(sys.executable), **dict(environments(given.work))}
        rows += measure_free(runner, given.size, peers)
    if given.large:
        rows += [{**row, "part": "large"} for row in measure_free(runner, given.large, {})]
    if given.network:
        rows += measure_network(runner, given.network)
    command = " ".join(["python benchmarks/predict.py", *(word for word in sys.argv[1:])])
    about = {"machine": machine("cpu"), "versions": versions(), "times": given.times, "load": load, "command": command}
    rows = [{**row, **about, "order": order} for order, row in enumerate(rows)]
    if given.write:
        keys = ("part", "contestant", "asked", "size", "machine")
        given.results.mkdir(parents=True, exist_ok=True)
        rows = merge(given.results / "predict.json", rows, keys)
        (given.results / "predict.md").write_text(page(rows))
    print(page(rows).partition("\n## ")[2])


if __name__ == "__main__":
    main()
