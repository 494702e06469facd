"""What the commands show: results on stdout, progress and warnings on stderr, and what a signal does.

On a terminal a progress bar; elsewhere one line per finished scene and at most one progress line a minute, so that a
log of a thousand scenes stays readable.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from aerialseg import system
from aerialseg.errors import Stopped, StorageError
from aerialseg.values import to_values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

MINUTE = 60.0
READER_GONE = 141
"""128 + SIGPIPE, as shells say it."""
FEW_ROWS = 3
ALIKE = 3
"""Errors that say the same of one file after the other are shown so often, and then counted."""
PROSE_WIDTH, NO_WIDTH = 140, 10_000
"""Characters in a line of what is no terminal."""


@contextmanager
def console_progress(*, quiet: bool = False) -> Iterator[ConsoleProgress]:
    """Yield the Progress of a command, with the signals that ask for one turned into a clean stop.

    The first signal lets the verb reach its next safe point, where `advance` raises Stopped; the second one ends the
    process at once, and so does the first one as long as no work has been started. A `quiet` one shows nothing.
    """
    progress = ConsoleProgress(quiet)
    previous = {number: signal.signal(number, progress.on_signal) for number in system.STOPS}
    try:
        yield progress
    finally:
        progress.finish()
        for number, handler in previous.items():
            signal.signal(number, handler)


class ConsoleProgress:
    """Implements `aerialseg.progress.Progress` for a person at a terminal or a log file."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._signum: int | None = None
        self._working = False
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._label, self._unit = "", ""
        self._done = self._total = 0.0
        self._began = self._spoke = time.monotonic()
        self._errors: dict[str, tuple[str, int]] = {}
        """What errors say of a file, without its numbers -> how the first one says it, and how many are not shown."""

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Remember the first signal; leave at once on the second, or while libraries and models are still loading."""
        if not self._working and not self._quiet:
            os.write(2, f"error: {Stopped(signum)}\n".encode())
        if self._signum is not None or not self._working:
            os._exit(128 + signum)
        self._signum = signum
        if not self._quiet:
            os.write(2, b"\nstopping cleanly; press again to stop at once\n")

    def start(self, label: str, total: float, unit: str) -> None:
        """Begin a piece of work."""
        self.finish()
        self._working = True
        self._label, self._unit, self._total, self._done = label, unit, float(total), 0.0
        self._began = self._spoke = time.monotonic()
        if sys.stderr.isatty() and not self._quiet:
            self._bar = _new_bar()
            self._task = self._bar.add_task(label, total=total, unit=unit, note="")
            self._bar.start()
        self._raise_if_stopped()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count work as done; raises Stopped after a signal."""
        self._done += amount
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, note=note)
        elif self._label and not self._quiet and time.monotonic() - self._spoke >= MINUTE:
            self._spoke = time.monotonic()
            self.say(self._status(note))
        self._raise_if_stopped()

    def say(self, line: str) -> None:
        """Show one line."""
        if not self._quiet and not self._is_one_of_many(line):
            self._show(line)

    def _show(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            with suppress(OSError):  # a log that cannot be written does not end the work
                print(line, file=sys.stderr, flush=True)  # noqa: T201

    def finish(self) -> None:
        """End the piece of work."""
        for kind, (reason, hidden) in self._errors.items():
            if hidden > 0 and not self._quiet:
                self._errors[kind] = reason, 0
                self._show(f"error: and {hidden:,} more: {reason.partition(': ')[0]}")
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _is_one_of_many(self, line: str) -> bool:
        """Whether as many errors of other files have said the same as are shown; numbers may differ."""
        reason = line.partition(": ")[2].partition(": ")[2]
        if not line.startswith("error: ") or not reason:
            return False
        kind = re.sub(r"[^\s:;,]*\d[^\s:;,]*", "...", reason)
        first, hidden = self._errors.get(kind, (reason, -ALIKE))
        self._errors[kind] = reason if reason == first else kind, hidden + 1
        return hidden >= 0

    def _raise_if_stopped(self) -> None:
        if self._signum is not None:
            raise Stopped(self._signum)

    def _status(self, note: str) -> str:
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        counted = f"{self._label}: {self._done:,.0f}/{self._total:,.0f} {self._unit}"
        return f"{counted}, {rate:,.1f} {self._unit}/s, {left / 60:,.1f} min left{f', {note}' if note else ''}"


class ResultStream:
    """Standard output, whose failures are told from the program's own: a text stream in all other ways."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`."""
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _failed_result(error) from error

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            raise _failed_result(error) from error

    def __getattr__(self, name: str) -> Any:
        """Return whatever else the stream has."""
        return getattr(self._stream, name)


@contextmanager
def guarded_stdout() -> Iterator[None]:
    """Let failures of standard output end a command with one line: StorageError, or SystemExit for `| head`."""
    original = sys.stdout
    if sys.stderr is None:  # closed: `2>&-`
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if original is None:
        raise StorageError("standard output is closed, so results have no way out; send it to a file or to /dev/null")
    guarded = ResultStream(original)
    sys.stdout = cast("TextIO", guarded)
    try:
        yield
        guarded.flush()
    finally:
        sys.stdout = original
        drop_unwritable(original)


def drop_unwritable(stream: TextIO) -> None:
    """Let vanish what a stream cannot write: it would fail once more, and change the exit code, at the very end."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _failed_result(error: OSError) -> BaseException:
    """Return what ends a command whose result cannot be written: quietly when its reader has left."""
    if system.is_reader_gone(error):
        return SystemExit(READER_GONE)
    return StorageError(
        f"standard output: the result cannot be written: {error.strerror}; files are complete; send it elsewhere"
    )


def say_loading() -> None:
    """Tell a person at a terminal that libraries are loading, which takes seconds before anything else is seen."""
    if sys.stderr is not None and sys.stderr.isatty():
        print("loading ...", file=sys.stderr, flush=True)  # noqa: T201


def say_next(*words: str | Path) -> None:
    """Tell on stderr which command comes next; words in capitals are the user's to fill in."""
    with suppress(OSError):
        print(f"next: aerialseg {shlex.join(map(str, words))}", file=sys.stderr, flush=True)  # noqa: T201


def print_json(value: Any) -> None:
    """Print a dataclass, or plain values with some inside, as JSON on stdout; what is not finite becomes null."""
    print(json.dumps(to_values(value), indent=2))  # noqa: T201


def print_table(title: str, columns: list[str], rows: list[list[str]], *, prose: bool = False) -> None:
    """Print a table on stdout; columns of numbers are aligned on the right.

    Where it is too wide for the terminal, a table of a few rows is turned, and others lose their last columns, which
    is said on stderr: no number and no name is folded. The sentences of a table of `prose` are. Into a file or a pipe
    every column goes.
    """
    from rich.table import Table

    piped = PROSE_WIDTH if prose else NO_WIDTH
    console = _console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else piped)
    columns, rows, hidden = (columns, rows, []) if prose else _fitted(columns, rows, console.width)
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numbers = index > 0 and all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if hidden:
        sys.stdout.flush()
        text = f"left out for want of width: {', '.join(hidden)}; a wider terminal shows them, and --json has all"
        print(text, file=sys.stderr)  # noqa: T201


def _fitted(columns: list[str], rows: list[list[str]], width: int) -> tuple[list[str], list[list[str]], list[str]]:
    """Return columns and rows that fit into `width` characters without a fold, and the columns left out for that."""
    lines = [columns, *rows]
    if _table_width(lines) <= width or len(columns) <= 2:
        return columns, rows, []
    turned = [list(line) for line in zip(*lines, strict=True)]
    if len(rows) <= FEW_ROWS and _table_width(turned) <= width:
        return turned[0], turned[1:], []
    kept = max(2, *(n for n in range(len(columns)) if _table_width([line[:n] for line in lines]) <= width))
    return columns[:kept], [row[:kept] for row in rows], columns[kept:]


def _table_width(lines: list[list[str]]) -> int:
    """Return how many characters a table needs in a row: each column its longest text, two spaces and a border."""
    from rich.cells import cell_len

    return 1 + sum(max(map(cell_len, column)) + 3 for column in zip(*lines, strict=True))


def number(value: float, form: str = ".4f", unit: str = "") -> str:
    """Return a number as a table shows it; one that is not defined is a dash."""
    return "-" if value != value else f"{value:{form}}{unit}"


def _is_number(text: str) -> bool:
    return text.strip(" -+%").replace(",", "").replace(".", "", 1).isdigit() or text in ("", "-", "nan")


def _console(**settings: Any) -> Console:
    """Return a console on which names are text: `roof[east]` is no markup, and `:smile:` no emoji."""
    from rich.console import Console

    return Console(markup=False, emoji=False, **settings)


def _new_bar() -> RichProgress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=_console(stderr=True),
        transient=False,
    )
