"""The one double of a Progress: it remembers what it is told, and asks for a stop where a test wants one."""

from __future__ import annotations

import signal

from aerialseg.errors import Stopped
from aerialseg.progress import Silent


class Told(Silent):
    """Remembers lines, labels, total and what is done; raises Stopped at call number `stop_at` of those that count.

    All calls of `advance` count, or those with some work in them (`idle=False`), or those of the pieces of work whose
    label begins with `label`; calls of `start` only where asked (`starts=True`).
    """

    def __init__(
        self, stop_at: float = float("inf"), label: str = "", *, idle: bool = True, starts: bool = False
    ) -> None:
        self.lines: list[str] = []
        self.labels: list[str] = [""]
        self.total = self.done = 0.0
        self.calls, self.stop_at = 0, stop_at
        self._label, self._idle, self._starts = label, idle, starts

    def start(self, label: str, total: float, unit: str) -> None:
        """Remember the piece of work."""
        self.labels.append(label)
        self.total = total
        self._count(self._starts)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Remember the amount."""
        self.done += amount
        self._count(self._idle or amount > 0)

    def say(self, line: str) -> None:
        """Remember the line."""
        self.lines.append(line)

    def _count(self, counts: bool) -> None:
        self.calls += counts and self.labels[-1].startswith(self._label)
        if self.calls >= self.stop_at:
            raise Stopped(signal.SIGTERM)
