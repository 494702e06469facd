"""The benchmark of evaluating runs, at toy size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_prints_its_ratios() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "evaluate.py"
    command = [sys.executable, str(script), "--side", "300", "--rounds", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=200)
    row = [line for line in done.stdout.splitlines() if line.startswith("| ")][-1]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2] == "300"
    assert int(cells[3]) > 0
    assert cells[-2].endswith("MB")
