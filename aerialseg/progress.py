"""How a verb tells its caller how far it is, without knowing about terminals or signals."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by a verb, from the main thread, at points where stopping loses nothing."""

    def start(self, label: str, total: float, unit: str) -> None:
        """Begin a piece of work of `total` units ("Mpx", "tile", "step")."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` units as done; raises Stopped when a signal has asked for a stop."""

    def say(self, line: str) -> None:
        """Show one line for the user: a warning, or a finished scene."""

    def finish(self) -> None:
        """End the piece of work begun by `start`."""


class Silent:
    """A Progress that shows nothing: the default when a verb is called from Python."""

    def start(self, label: str, total: float, unit: str) -> None:
        """Show nothing."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""
