"""The clock every contestant is measured by, and the mask they all must draw; needs numpy alone."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np

STEP = 0.75
"""Of a window's size, where the next window stands."""
SQUARES = 8
"""Squares of mask in a step, an even number: windows that stand a step apart agree about every pixel."""


def step_of(window: int) -> int:
    """Return how many pixels apart windows stand."""
    return round(window * STEP)


def squares(window: int, rows: int, cols: int) -> np.ndarray:
    """Return what `compete.Free` says of a window, bool [rows, cols], or of a scene that its windows cover."""
    side = step_of(window) // SQUARES
    return (np.arange(rows)[:, None] // side + np.arange(cols) // side) % 2 == 0


class Meter:
    """Wall, user and system seconds of a block, and the memory above what the process held before it, in MB."""

    def __enter__(self) -> Meter:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.before = memory_mb("VmRSS")
        self.usage = resource.getrusage(resource.RUSAGE_SELF)
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wall = time.perf_counter() - self.began
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.found = {
            "wall_s": wall,
            "user_s": usage.ru_utime - self.usage.ru_utime,
            "system_s": usage.ru_stime - self.usage.ru_stime,
            "extra_mb": memory_mb("VmHWM") - self.before,
        }


def memory_mb(field: str) -> float:
    """Return VmRSS or VmHWM of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024
