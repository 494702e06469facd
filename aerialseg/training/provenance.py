"""`run.json`: what a run was made with, so that it can be repeated: commands, tiles, device, versions, git revision.

config.toml beside it says what is trained. Places and times stand here and not in the model file, so that equal
trainings give equal files.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aerialseg.files import write_json
from aerialseg.models.device import cpu_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.training.job import Job

RUN = "run.json"
PACKAGES = ("aerialseg", "segmentation-models-pytorch", "timm", "albumentations", "lightning", "numpy")
GIT_WAIT_S = 10.0


def write_start(job: Job, step: int, command: Sequence[str]) -> str:
    """Add a start, after `step` steps of the run, to run.json, which is begun anew at step 0; return the run's id."""
    path, device = job.run / RUN, job.fabric.device
    known = read_run(job.run) if step else {}
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": list(command),
        "folder": str(Path.cwd()),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "processes": job.ranks.world,
        "precision": job.precision,
        "seed": job.config.run.seed,
        "git": git_revision(),
        "versions": versions(),
    }
    tiles = {"folder": str(job.tiles.folder.absolute()), "digest": job.tiles.digest}
    whole = {"id": known.get("id") or secrets.token_hex(8), "tiles": tiles, "starts": [*known.get("starts", []), start]}
    write_json(path, whole)
    return str(whole["id"])


def read_run(run: Path) -> dict[str, Any]:
    """Return what run.json says; nothing when it is missing or damaged, for no training depends on it."""
    try:
        known = json.loads((run / RUN).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get("starts"), list) else {}


def versions() -> dict[str, str]:
    """Return the versions of what weights depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **found}


def git_revision(package: Path = Path(__file__).parent.parent) -> str | None:
    """Return the commit of the checkout that the program runs from, with "-dirty" when files differ from it.

    None when it is no checkout, and wherever git is missing or refuses.
    """
    root = package.parent
    if not (root / ".git").exists():  # else the user's own repository, around a virtual environment, would answer
        return None
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_WAIT_S, env=environment, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
