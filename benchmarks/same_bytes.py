"""Whether the working tree still writes the same bytes as another commit: the same commands by both, file by file.

Run by hand before and after a change that is to change nothing:

    python benchmarks/same_bytes.py                           all steps against BASE, a few minutes on two cores
    python benchmarks/same_bytes.py --base HEAD~3 --only predict polygonize
    python benchmarks/same_bytes.py --keep differs            keeps both sides' files

Both sides run at the same time with the same Python and one thread, from folders of the same content, and what they
wrote, printed and returned is compared (`same_files.py`: what counts as the same, and which differences are meant).
Every step begins from what the base wrote, on both sides: so a difference is told once, where it arises, and the
working tree shows that it reads the base's files. Ends with 1 when something differs.

`--write-fixture FILE` has the base write what `tests/test_written_before.py` reads: an archive of folders as a user has
them after tiling, a stopped training, predictions, one of them stopped inside a scene, and an evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from same_files import compare_folders, listed, mirror

ROOT = Path(__file__).resolve().parent.parent
BASE = "df9f0b9"
"""The last commit before the redesign; its files are what users have."""
DATE = 1_700_000_000
"""Seconds: the time of change of every file in the fixture."""

TRAINING = """\
[model]
architecture = "linknet"
encoder = "tu-test_efficientnet"
weights = "none"
{more}
[data]
crop = 64
batch = 8
threads = 1
augment = "light"

[optimizer]
lr = 1e-2

[schedule]
epochs = 2
steps_per_epoch = {steps}
warmup_steps = 5

[run]
precision = "fp32"
ema = 0.9
"""
"""The smallest network in the catalogue of smp and timm: 95 thousand weights, BatchNorm inside."""

LOSSES = ("lovasz", "focal", "tversky", "boundary")
MORE = [word for loss in LOSSES for word in ("--set", f"loss.{loss}=0.5")]
STOP = """
import sys
from pathlib import Path
from aerialseg.errors import Stopped
from aerialseg.progress import Silent

class StopAfter(Silent):
    def __init__(self, left, label):
        self.left, self.wanted, self.label = left, label, ""
    def start(self, label, total, unit):
        self.label = label
    def advance(self, amount=1, note=""):
        self.left -= amount > 0 and self.label.startswith(self.wanted)
        if self.left < 0:
            raise Stopped(15)

try:
    {call}
except Stopped:
    sys.exit(0)
sys.exit("was not stopped")
"""
"""What Ctrl-C does to a command, at a moment of its own choice."""
STOPPED_TRAINING = """
    from aerialseg.config import load_config
    from aerialseg.training.folder import TrainOptions
    from aerialseg.training.loop import train
    train(Path("tiles"), load_config("train.toml"), Path("run"), options=TrainOptions("cpu"),
          progress=StopAfter(190, "epoch"))
"""
STOPPED_PREDICTION = """
    from aerialseg.geo.scenes import find_scenes
    from aerialseg.prediction.job import PredictOptions, predict_scenes
    chosen = PredictOptions(batch=1, device="cpu", precision="fp32", probability=True, agreement=True)
    predict_scenes(find_scenes(["scenes/town1.tif"]), Path("run"), Path("stopped"), chosen, StopAfter(12, "predict"))
"""

HEAVY = (
    "torch._dynamo",
    "torch.utils.tensorboard",
    "lightning.fabric",
    "segmentation_models_pytorch",
    "albumentations",
)
"""Packages of others that take ten seconds to import; none of them is GDAL, which aerialseg sets up before."""
NURSERY = f"""
import importlib, json, os, runpy, sys
for name in {HEAVY}:
    importlib.import_module(name)
for line in sys.stdin:
    words, folder, out, err = json.loads(line)
    child = os.fork()
    if not child:
        for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
        os.chdir(folder)
        sys.argv = ["aerialseg", *words]
        runpy.run_module("aerialseg", run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A process that has imported HEAVY and forks for each command, which then begins as `python -m aerialseg` does."""
WARM = ("train", "predict", "calibrate")
"""Commands that import HEAVY anyway."""


@dataclass(frozen=True, slots=True)
class Step:
    """Commands that run one after the other, and the steps whose files they read."""

    commands: tuple[str, ...]
    needs: tuple[str, ...] = ()


TRUTH = "--masks masks"
FULL = "predict scenes -m run -o full --device cpu --precision fp32 --batch 4"
STEPS: dict[str, Step] = {
    "sample": Step(("sample drawn --scenes 2 --size 200",)),
    "tile": Step((f"tile scenes {TRUTH} -o tiles --size 96 --split val=town6",)),
    "tile-again": Step((f"tile scenes {TRUTH} -o tiles --size 96 --split val=town6",), ("tile",)),
    "polygonize": Step(
        (
            "polygonize masks -o truth.gpkg --min-area-m2 2",
            "polygonize masks -o truth.geojson --simplify 0.5",
            "polygonize masks -o truth.fgb --crs EPSG:4326 --regularise",
        )
    ),
    "tile-vectors": Step(
        (
            "tile scenes --masks truth.gpkg -o blocks --size 64 --overlap 0.25 --split blocks=2 --index-only",
            "tile scenes --masks truth.gpkg -o shrunk --size 96 --gsd 0.45 --split 0 --keep-empty 0.5",
        ),
        ("polygonize",),
    ),
    "train": Step(("train tiles -c train.toml -o run --device cpu",), ("tile",)),
    "train-again": Step(("train tiles -o run --resume --device cpu --json",), ("train",)),
    "train-more": Step(
        (
            "train blocks -c train.toml -o more --from run --teacher run --device cpu --set schedule.epochs=1"
            f" --set data.crop=64 --set data.sampling=balanced --set run.ema=0 --set data.wear=0.5 {' '.join(MORE)}",
        ),
        ("tile-vectors", "train"),
    ),
    "info": Step(("info tiles --json", "info run --json", "info scenes --json", "models --json"), ("train",)),
    "predict": Step(("predict scenes -m run -o out --device cpu",), ("train",)),
    "predict-again": Step(("predict scenes -m run -o out --device cpu --json",), ("predict",)),
    "predict-full": Step((f"{FULL} --probability --polygons --tta d4 --agreement",), ("train",)),
    "predict-pair": Step(
        ("predict scenes/town1.tif scenes/town2.tif -m run -o pair --device cpu --window 96 --overlap 0.5 --batch 3",),
        ("train",),
    ),
    "predict-gsd": Step(("predict coarse -m run -o coarsely --device cpu --probability --blend linear",), ("train",)),
    "evaluate": Step(
        (f"evaluate full {TRUTH} --report report.html --errors errors --scenes scenes --json", f"evaluate out {TRUTH}"),
        ("predict", "predict-full"),
    ),
    "evaluate-polygons": Step(
        ("evaluate full --masks truth.gpkg --polygons full/buildings.gpkg --trained-on tiles --json",),
        ("polygonize", "tile", "predict-full"),
    ),
    "compare": Step((f"compare full out {TRUTH} --json",), ("predict", "predict-full")),
    "submit": Step(("submit full -o submission.zip --test-root scenes", "submit submission.zip --check --test-root "
                    "scenes --json"), ("predict-full",)),
    "preview": Step(("preview full -o pictures --size 300 --json",), ("predict-full",)),
    "calibrate": Step((f"calibrate run --scenes scenes {TRUTH} -o calibrated.safetensors --device cpu --json",),
                      ("train",)),
}  # fmt: skip
"""In this order; words are split at blanks."""


FIXTURE = {
    "predict": "predict scenes -m run -o out --device cpu --precision fp32 --probability --agreement --polygons"
    " --min-area-m2 4",
    "scores": "evaluate out --masks masks --report report.html --errors errors --json",
    "preview": "preview out -o pictures --size 64",
    "info-run": "info run --json",
    "info-tiles": "info tiles --json",
    "info-out": "info out --json",
}
"""What the fixture's folders are written by, beside a stopped training and a stopped prediction."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: the program's tree, and the folder that its commands run in."""

    tree: Path
    folder: Path

    nursery: subprocess.Popen[str]

    @classmethod
    @contextmanager
    def open(cls, tree: Path, folder: Path) -> Iterator[Side]:
        """Yield a side, after proving that its package comes from this tree and nowhere else."""
        folder.mkdir(parents=True, exist_ok=True)
        found = Path(python(tree, folder, "-c", "import aerialseg; print(aerialseg.__file__)").communicate()[0].strip())
        if not found.is_relative_to(tree):
            sys.exit(f"error: {tree}: Python takes aerialseg from {found}")
        with python(tree, tree, "-c", NURSERY, stderr=None) as nursery:
            yield cls(tree, folder, nursery)
            nursery.communicate()  # ends it

    def run(self, name: str, line: str) -> None:
        """Run a command of aerialseg; keep its exit code and stdout as NAME.code and NAME.stdout, stderr outside."""
        words = line.split()
        code, printed, told = self.folder / f"{name}.code", self.folder / f"{name}.stdout", self.stderr(name)
        if words[0] in WARM:
            print(json.dumps([words, *map(str, (self.folder, printed, told))]), file=self.nursery.stdin, flush=True)
            code.write_text(self.nursery.stdout.readline())
        else:
            with printed.open("w") as out, told.open("w") as err:
                process = python(self.tree, self.folder, "-m", "aerialseg", *words, stdout=out, stderr=err)
            code.write_text(f"{process.wait()}\n")
        place = re.escape(str(self.folder.parent)) + r"/[^/\s\"]+"  # of either side: the base's files name its own
        printed.write_text(re.sub(place, ".", printed.read_text()))

    def stderr(self, name: str) -> Path:
        """Return where a command's stderr goes: it tells of progress, so it is not compared."""
        return self.folder.parent / f"{self.folder.name}-{name}.stderr"


def python(tree: Path, folder: Path, *command: str, **streams: Any) -> subprocess.Popen[str]:
    """Start Python with a tree's package, in a folder, with one thread and no GPU."""
    settings = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "200"}
    settings |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0", "TZ": "UTC", "NO_ALBUMENTATIONS_UPDATE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env={**os.environ, **settings}, text=True, **pipes)


def draw_scene(folder: Path, name: str, place: tuple[float, float], size: tuple[int, int], gsd_m: float = 0.3) -> None:
    """Write folder/scenes/NAME.tif, RGB of (rows, cols), and its mask: bright roofs on dark ground that is not flat.

    `place` is the top-left corner, east and north in metres. The first rows of scenes whose name ends in 1 are nodata.
    """
    import rasterio
    from affine import Affine

    rng = np.random.default_rng([*name.encode()])
    mask = np.zeros(size, np.uint8)
    coarse = rng.integers(60, 100, (3, size[0] // 20 + 1, size[1] // 20 + 1)).astype(np.uint8)
    pixels = coarse.repeat(20, axis=1).repeat(20, axis=2)[:, : size[0], : size[1]]
    for _ in range(size[0] * size[1] // 2500):
        row, col = rng.integers(0, size[0] - 16), rng.integers(0, size[1] - 16)
        roof = slice(row, row + rng.integers(10, 40)), slice(col, col + rng.integers(10, 40))
        mask[roof] = 1
        pixels[:, *roof] = rng.integers(150, 220, 3).astype(np.uint8)[:, np.newaxis, np.newaxis]
    pixels[:, ::7, ::5] += 9
    if name.endswith("1"):
        pixels[:, :20, :40] = 0
    profile = {"driver": "GTiff", "height": size[0], "width": size[1], "dtype": "uint8", "compress": "deflate"}
    grid = {"crs": "EPSG:26914", "transform": Affine(gsd_m, 0, place[0], 0, -gsd_m, place[1])}
    for part, bands, nodata in (("scenes", pixels, 0), ("masks", mask[np.newaxis], None)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            folder / part / f"{name}.tif", "w", count=len(bands), nodata=nodata, **grid, **profile
        ) as target:
            target.write(bands)


def draw_inputs(folder: Path) -> None:
    """Write what all steps begin from: four scenes, of which two touch, one of other pixels, and a configuration."""
    east, north = 616_000.0, 3_347_000.0
    draw_scene(folder, "town1", (east, north), (300, 300))
    draw_scene(folder, "town2", (east + 90, north), (300, 200))
    draw_scene(folder, "town6", (east + 900, north), (260, 320))
    draw_scene(folder, "coarse", (east + 1800, north), (150, 170), gsd_m=0.6)
    (folder / "coarse").mkdir()
    (folder / "scenes" / "coarse.tif").rename(folder / "coarse" / "coarse.tif")
    (folder / "masks" / "coarse.tif").unlink()
    (folder / "train.toml").write_text(TRAINING.format(steps=25, more=""))


def run_steps(base: Side, tree: Side, only: list[str], kept: Path | None) -> int:
    """Run the steps and say of each what differs; return how many differ."""
    wanted, differing = needed(only), 0
    for name, step in STEPS.items():
        if name not in wanted:
            continue
        began, sides = time.monotonic(), [base, tree] if name in only else [base]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda side: run_step(side, name, step), sides))  # noqa: B023
        failed = [command for command in names(name) if (base.folder / f"{command}.code").read_text() != "0\n"]
        if failed:
            sys.exit(f"error: {failed[0]} fails on the base: {base.stderr(failed[0]).read_text()[-500:]}")
        if name in only:
            found = compare_folders(base.folder, tree.folder)
            differing += bool(found)
            print(f"{name}: {f'{len(found)} files differ' if found else 'same'}, {time.monotonic() - began:.0f} s")
            for path, difference in found.items():
                print(f"    {path}: {difference}")
            sys.stdout.flush()
            if kept is not None:
                keep(found, base, tree, kept / name)
        mirror(base.folder, tree.folder)
    return differing


def run_step(side: Side, name: str, step: Step) -> None:
    """Run the commands of a step on one side."""
    for command, line in zip(names(name), step.commands, strict=True):
        side.run(command, line)


def names(step: str) -> list[str]:
    """Return what the commands of a step are called: STEP, STEP-2, ..."""
    return [step if number == 1 else f"{step}-{number}" for number in range(1, len(STEPS[step].commands) + 1)]


def keep(found: Collection[str], base: Side, tree: Side, target: Path) -> None:
    """Copy the files that differ, and what the step's commands told on stderr, to be looked at."""
    for side, folder in ((base, target / "base"), (tree, target / "tree")):
        folder.mkdir(parents=True, exist_ok=True)
        for command in names(target.name):
            shutil.copy2(side.stderr(command), folder)
        for name, path in listed(side.folder).items():
            if name in found:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, folder / name)


def write_fixture(side: Side, target: Path) -> None:
    """Have a side write what users have, and pack it into an archive that names neither this machine nor its folders.

    Left out is what nothing reads again: TensorBoard's events, curves.png, and the checkpoint before the last one.
    """
    draw_scene(side.folder, "town1", (616_000.0, 3_347_000.0), (300, 160))
    draw_scene(side.folder, "town2", (616_048.0, 3_347_000.0), (300, 100))
    tiny = "encoder_arguments = { channel_multiplier = 0.1 }\n"
    (side.folder / "train.toml").write_text(TRAINING.format(steps=100, more=tiny))
    side.run("tile", "tile scenes --masks masks -o tiles --size 100 --split val=town2")
    date_all(side.folder)  # before the training cache takes the tiles' times
    stop(side, STOPPED_TRAINING)
    forget_places(side.folder / "run" / "run.json")
    for name, line in FIXTURE.items():
        side.run(name, line)
        if (side.folder / f"{name}.code").read_text() != "0\n":
            sys.exit(f"error: {line}: {side.stderr(name).read_text()}")
    stop(side, STOPPED_PREDICTION)
    unread = (
        "run/events*",
        "run/curves.png",
        "run/previous.ckpt",
        "*.code",
        "tile.stdout",
        "p*.stdout",
        "pictures/contact-sheet.png",
    )
    for path in (path for pattern in unread for path in side.folder.glob(pattern)):
        path.unlink()
    for path in side.folder.glob("*.stdout"):
        path.rename(path.with_suffix(".json"))
    date_all(side.folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for path in sorted(side.folder.rglob("*")):
            archive.add(path, path.relative_to(side.folder), recursive=False, filter=nobodys)
    print(f"{target}: {target.stat().st_size:,} bytes")


def stop(side: Side, call: str) -> None:
    """Run a call that is stopped inside."""
    process = python(side.tree, side.folder, "-c", STOP.format(call=call.strip()), stderr=None)
    process.communicate()
    if process.returncode:
        sys.exit("error: the base was not stopped where it should have been")


def forget_places(path: Path) -> None:
    """Take this machine's folders and processor out of run.json."""
    value = json.loads(path.read_text())
    value["tiles"]["folder"] = "tiles"
    for start in value["starts"]:
        start |= {"command": ["aerialseg", "train", "tiles"], "folder": ".", "device_name": "a processor"}
    path.write_text(json.dumps(value, indent=2) + "\n")


def date_all(folder: Path) -> None:
    """Give every file one time of change, in whole seconds as an archive keeps it."""
    for path in folder.rglob("*"):
        os.utime(path, (DATE, DATE))


def nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Take owner and permissions out of an archive's entry."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() else 0o644
    return entry


def needed(only: list[str]) -> set[str]:
    """Return the steps that were asked for and, behind them, those they read from."""
    return set(only).union(*(needed(list(STEPS[name].needs)) for name in only))


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """Yield a checkout of a commit in `folder`, which git forgets at the end."""
    git = ["git", "-C", str(ROOT), "worktree"]
    made = subprocess.run([*git, "add", "--detach", str(folder), revision], capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(f"error: {revision} cannot be checked out: {made.stderr.strip().splitlines()[-1]}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True, check=False)


def main() -> None:
    """Compare, or write the fixture; exit with 1 when something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE, help=f"the commit to compare with (default: {BASE})")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep files that differ, of both sides, and stderr")
    parser.add_argument("--write-fixture", type=Path, metavar="FILE", help="have the base write the fixture instead")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (
        tempfile.TemporaryDirectory(prefix="same-bytes-") as scratch,
        worktree(given.base, Path(scratch, "tree")) as tree,
    ):
        work = Path(scratch).resolve()
        if given.write_fixture is not None:
            with Side.open(tree.resolve(), work / "base") as base:
                write_fixture(base, given.write_fixture.resolve())
            return
        with Side.open(tree.resolve(), work / "base") as base, Side.open(ROOT, work / "now") as now:
            draw_inputs(base.folder)
            mirror(base.folder, now.folder)
            differing = run_steps(base, now, given.only or list(STEPS), given.keep)
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
