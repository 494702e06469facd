"""FAULTS row 15: killed again and again at random moments, a run still ends with the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCENES, KILLS = 200, 25
LONGEST_S = 240.0


def command(scenes: Path, model: Path, out: Path) -> list[str]:
    options = ["--polygons", "--disagreement", "--device", "cpu", "--precision", "fp32", "--batch", "2"]
    return [sys.executable, "-m", "aerialseg", "predict", str(scenes), "-m", str(model), "-o", str(out), *options]


def start(scenes: Path, model: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(scenes, model, out), env=environment, stderr=subprocess.DEVNULL)


def kept(hashes: dict[str, str]) -> dict[str, str]:
    """Without the report, which holds times, and the lock."""
    return {name: value for name, value in hashes.items() if name not in ("report.json", ".aerialseg-lock")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_row_15_killed_at_random_moments_every_output_is_that_of_an_undisturbed_run(
    tmp_path: Path,
    scene_file: Callable[..., Path],
    tiny_model: Callable[..., Path],
    tree_hashes: Callable[[Path], dict[str, str]],
) -> None:
    scenes, model, chance = tmp_path / "scenes", tiny_model(), random.Random(7)
    for number in range(SCENES):
        scene_file(scenes / f"city{number}.tif", size=(64, 70), seed=number)
    scene_file(scenes / "long.tif", size=(2600, 70), seed=999)  # long enough to be killed inside
    began = time.monotonic()
    assert start(scenes, model, tmp_path / "straight").wait() == 0
    whole_s = time.monotonic() - began
    out, interrupted = tmp_path / "killed", 0
    for kill in range(KILLS):
        process = start(scenes, model, out)
        seen = len(list(out.glob("*.tif")))
        deadline = time.monotonic() + LONGEST_S
        # The first kills hit loading, the later ones work: each waits until a few more scenes stand.
        while (
            kill > 3
            and len(list(out.glob("*.tif"))) < min(seen + SCENES // KILLS - 1, SCENES)
            and process.poll() is None
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2 if kill > 3 else whole_s / 20))
        interrupted += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert interrupted >= KILLS - 5
    assert start(scenes, model, out).wait() == 0
    assert kept(tree_hashes(out)) == kept(tree_hashes(tmp_path / "straight"))
