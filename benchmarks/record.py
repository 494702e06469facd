"""What every benchmark writes down beside its numbers, and how results of several machines share one page."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / ".bench"
"""Where benchmarks put their tiles, runs and maps; ignored by git."""
PACKAGES = ("aerialseg", "torch", "timm", "segmentation-models-pytorch", "rasterio")

Row = dict[str, Any]


def machine(device: str) -> str:
    """Return the processor and, for a CUDA device, the card."""
    from aerialseg.models.device import cpu_name

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = f"{cores} cores of {cpu_name()}"
    if device.startswith("cuda"):
        import torch

        return f"{torch.cuda.get_device_name(device)}, {name}"
    return f"{name}, no GPU used"


def versions() -> dict[str, str]:
    """Return the versions the numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def aerialseg(*arguments: object) -> tuple[Any, float]:
    """Run an `aerialseg` command with --json; returns its result and its wall time in seconds, start-up included.

    Progress and errors go to the terminal; a command that fails ends the benchmark with its exit code.
    """
    command = [sys.executable, "-m", "aerialseg", *map(str, arguments), "--json"]
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout), time.monotonic() - began


def merge(path: Path, rows: list[Row], keys: tuple[str, ...]) -> list[Row]:
    """Put `rows` into the JSON list at `path`, in place of those that agree in all of `keys`, and return the list."""
    before: list[Row] = json.loads(path.read_text()) if path.is_file() else []
    measured = {tuple(row.get(key) for key in keys) for row in rows}
    kept = [row for row in before if tuple(row.get(key) for key in keys) not in measured]
    merged = sorted(kept + rows, key=lambda row: [str(row.get(key)) for key in keys])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(merged, indent=2) + "\n")
    return merged


def table(columns: dict[str, str], rows: list[Row]) -> str:
    """Return a Markdown table; `columns` maps a heading to a format such as "{iou:.3f}" (missing values show as -)."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(form, row) for form in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def _cell(form: str, row: Row) -> str:
    try:
        return form.format(**row)
    except (KeyError, TypeError, ValueError):
        return "-"
