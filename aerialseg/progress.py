"""How a verb tells its caller how far it is, without knowing about terminals or signals."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a verb tells, from the main thread, at points where stopping loses nothing.

    Any object with these four methods will do; an error that `advance` raises ends the work there.

    Example:
        >>> class Lines:
        ...     def start(self, label, total, unit): print(label, total, unit)
        ...     def advance(self, amount=1, note=""): pass
        ...     def say(self, line): print(line)
        ...     def finish(self): pass
        >>> scenes = aerialseg.find_scenes(["scenes"])
        >>> options = aerialseg.TilingOptions(size=128, split="0.5")
        >>> report = aerialseg.tile_scenes(scenes, Path("tiles/town"), options, Lines())
        checking 2 scene
        comparing 2 scene
    """

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
