"""Ask a real QGIS, in a process of its own, what it makes of files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

LOOK = Path(__file__).with_name("look.py")
CANVAS, BUILDING = "#ff00ff", "#e63946"


def look(*paths: Path, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return what QGIS says of each file; skips when Debian's QGIS is not installed."""
    command = ["/usr/bin/python3", str(LOOK), *options, "--", *map(str, paths)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GDAL_", "PROJ_", "PYTHON"))}
    environment = {**plain, "QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": "/tmp"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if "No module named 'qgis'" in result.stderr or "No such file" in result.stderr:
        pytest.skip("needs Debian's python3-qgis")
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def pixels_of(colour: str, seen: dict[str, Any]) -> int:
    """Return how many rendered pixels have a blended colour (#rrggbb), give or take one grey level in each channel.

    A blend is rounded as the version likes: red at half opacity over grey 220 is #e08a90 in QGIS 3.22, #e18a91 in 3.40.
    """
    wanted = bytes.fromhex(colour[1:])
    levels = ((bytes.fromhex(other[1:]), count) for other, count in seen["colours"].items())
    return sum(count for other, count in levels if max(abs(a - b) for a, b in zip(other, wanted, strict=True)) <= 1)
