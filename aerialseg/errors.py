"""The errors a user can cause and fix, each with the exit code the command line ends with.

A message is one line: what file, what was found, what was expected, what to do next. Programmer's mistakes stay
ValueError or TypeError and end with a traceback and exit code 1.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FIGURE = re.compile(r"\S*[\d/\\._]\S*")


class AerialsegError(Exception):
    """A failure with a clear cause outside the program; `exit_code` follows BSD sysexits where one fits.

    Example:
        >>> try:
        ...     aerialseg.find_scenes(["nowhere"])
        ... except aerialseg.AerialsegError as error:
        ...     print(error.exit_code, error)
        66 nowhere: no such file or folder
    """

    exit_code = 1


class UsageError(AerialsegError):
    """The command line asks for something contradictory or refused by design."""

    exit_code = 2


class SomeScenesFailed(AerialsegError):
    """At least one scene succeeded and at least one failed; the report says which."""

    exit_code = 3


class Diverged(AerialsegError):
    """Loss or gradients became NaN or infinite."""

    exit_code = 4


class BadDataError(AerialsegError):
    """An input file can be reached but its content cannot be used."""

    exit_code = 65


class NoInputError(AerialsegError):
    """No usable input was found at all."""

    exit_code = 66


class DeviceError(AerialsegError):
    """The device asked for, or found, cannot be used."""

    exit_code = 69


class ResourceError(AerialsegError):
    """Out of memory, or a worker was lost."""

    exit_code = 71


class OutputError(AerialsegError):
    """An output cannot be created, or belongs to someone else."""

    exit_code = 73


class InUseError(OutputError):
    """An output is open in another program, which keeps it from being replaced. Another one may well be written."""


class StorageError(AerialsegError):
    """Writing failed half-way: disk full, I/O error. Whatever is written next would meet the same disk."""

    exit_code = 74


class ReadError(AerialsegError):
    """Reading one file failed half-way: I/O error. Another file may well be read."""

    exit_code = 74


class ConfigError(AerialsegError):
    """A configuration file or override is wrong."""

    exit_code = 78


class ModelError(AerialsegError):
    """A model file is damaged, foreign, or does not fit the work."""

    exit_code = 78


class Stopped(AerialsegError):
    """A signal asked for a clean stop; what was finished is kept, and `advice` says how to go on from there."""

    def __init__(self, signum: int, advice: str = "run the same command again to go on from here") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {advice}")
        self.signum = signum
        self.exit_code = 128 + signum


class EndedElsewhere(AerialsegError):
    """Another process of the same work failed, and says why itself: this one ends with its exit code, and quietly."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


def one_line(text: str | Path) -> str:
    """Return `text` with control characters and undecodable bytes escaped, so that a message stays on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: 1 building, 6,621 buildings."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def folded(notes: Iterable[str]) -> list[str]:
    """Return "NAME: what" notes, those that say the same of many names, other figures and paths aside, told once."""
    said: dict[str, list[str]] = {}
    for note in notes:
        said.setdefault(_FIGURE.sub("", note.partition(": ")[2] or note), []).append(note)
    return [f"{same[0]} (and {len(same) - 1:,} more like it)" if len(same) > 1 else same[0] for same in said.values()]


def first_line(error: BaseException) -> str:
    """Return what another library's error says first, or its kind when it says nothing."""
    return one_line(str(error).strip().partition("\n")[0][:200]) or type(error).__name__
