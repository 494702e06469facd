"""What a command meets of the package: `tile`, `train` (one epoch) and `predict` (one scene) of small drawn scenes.

Each is traced in all threads of a process of its own, with a network and tiles so small that it takes seconds.

modules entered   at least one function or class body of theirs ran; other top-level statements do not count
functions         the different functions and class bodies that ran, lambdas and comprehensions apart
frames            calls of the package that are open, both ends counted, from `main` to `Segmenter.forward` in predict
                  and to `building_loss` in train; the deepest, if there are several ways
types             dataclasses of the package of which a value was made
model file read   how often Python opened the model file in predict; none, if something else than Python did
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = "aerialseg"
NETWORK, LOSS = "Segmenter.forward", "building_loss"
TINY = (
    "model.encoder=tu-test_efficientnet", "data.crop=64", "schedule.epochs=1", "schedule.steps_per_epoch=2",
    "schedule.warmup_steps=1",
)  # fmt: skip
"""What makes the shipped demo configuration one of seconds."""

Figures = dict[str, float]
Names = dict[str, list[str]]
"""What is behind a figure: modules, functions, classes."""


@dataclass(frozen=True)
class Trace:
    """What one command met in the package."""

    modules: list[str]
    functions: int
    types: list[str]
    """Dataclasses of which a value was made."""
    path: list[str]
    """The open calls from `main` to the target, the deepest way."""
    reads: int
    """How often the watched file was opened."""


def trace(root: Path, arguments: list[str], target: str | None = None, watched: Path | None = None) -> Trace:
    """Run one command of the checkout `root` in this process, which should be a fresh one, and return what it met.

    `target` is the qualified name of the function to which the open calls are counted.
    """
    package = f"{root / PACKAGE}{os.sep}"
    ran, types, paths, opened = set(), set(), [list[str]()], []

    def see(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code.co_filename.startswith(package):
            if not code.co_name.startswith("<"):
                ran.add(code)
            if code.co_qualname == target:
                paths.append(open_calls(frame, package))
        elif code.co_name == "__init__" and str(frame.f_globals.get("__name__")).startswith(f"{PACKAGE}."):
            types.add(type(frame.f_locals["self"]).__qualname__)  # the code that dataclass wrote has no file

    def audit(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and str(details[0]) == str(watched):
            opened.append(details)

    sys.path.insert(0, str(root))
    sys.addaudithook(audit)
    with tempfile.TemporaryFile("w+") as log, redirect_stdout(log), redirect_stderr(log):
        from aerialseg.cli import main

        threading.setprofile(see)
        sys.setprofile(see)
        code = main(arguments)
        sys.setprofile(None)
        threading.setprofile(None)
        log.seek(0)
        if code:
            raise RuntimeError(f"aerialseg {' '.join(arguments)} ended with {code}: {log.read()}")
    path = max(paths, key=len)
    if target is not None and not path:
        raise RuntimeError(f"aerialseg {' '.join(arguments)}: nothing called {target} below main")
    return Trace(sorted({code.co_filename.removeprefix(package) for code in ran}), len(ran), sorted(types), path,
                 len(opened))  # fmt: skip


def open_calls(frame: FrameType | None, package: str) -> list[str]:
    """Return the open calls of the package from `main` to `frame`; none if it was not called below `main`."""
    path: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(package):
            path.insert(0, f"{code.co_filename.removeprefix(package)}:{code.co_qualname}")
            if code.co_qualname == "main":
                return path
        frame = frame.f_back
    return []


def measure_commands(root: Path) -> tuple[Figures, Names]:
    """Trace tile, train and predict on drawn scenes; return their figures and the names behind them."""
    with tempfile.TemporaryDirectory() as folder:
        scenes, tiles, run, out = (Path(folder).resolve() / name for name in ("scenes", "tiles", "run", "out"))
        scene, model = scenes / "train" / "images" / "austin1.tif", run / "model.safetensors"
        settings = [word for value in TINY for word in ("--set", value)]
        in_fresh_process(root, ["sample", str(scenes), "--scenes", "4", "--size", "256"])
        traces = {
            "tile": in_fresh_process(root, ["tile", str(scenes), "-o", str(tiles), "--size", "128"]),
            "train": in_fresh_process(
                root, ["train", str(tiles), "-o", str(run), "-c", "demo", "--device", "cpu", *settings], LOSS
            ),
            "predict": in_fresh_process(
                root, ["predict", str(scene), "-m", str(model), "-o", str(out), "--device", "cpu"], NETWORK, model
            ),
        }
    figures: Figures = {}
    names: Names = {}
    for command, met in traces.items():
        figures |= {f"{command}: modules entered": len(met.modules), f"{command}: functions": met.functions}
        names[f"{command}: modules entered"] = met.modules
    for command, end in (("train", "the loss"), ("predict", "the network")):
        names[f"{command}: frames from main to {end}"] = traces[command].path
    names["predict: types"] = traces["predict"].types
    figures |= {name: len(names[name]) for name in names if name not in figures}
    return figures | {"predict: model file read": traces["predict"].reads}, names


def in_fresh_process(root: Path, arguments: list[str], target: str | None = None, watched: Path | None = None) -> Trace:
    """Do `trace` where nothing of the package has been imported."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(trace, root, arguments, target, watched).result()
