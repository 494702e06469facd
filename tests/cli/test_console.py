"""Names are shown as they are: square brackets and colons in them are no markup and no emoji."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from aerialseg.cli.console import ConsoleProgress, _new_bar, print_table

ODD = ["roof[east]", "tiles[/old]", "a:smile:b", "[bold]x[/bold]", "[[1]]"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ODD)
def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str], name: str) -> None:
    print_table(f"title {name}", [f"column {name}", "n"], [[name, "1"]])
    out = capsys.readouterr().out
    assert [f"title {name}" in out, f"column {name}" in out, out.count(name)] == [True, True, 3]


@pytest.mark.parametrize("name", ODD)
def test_a_progress_bar_shows_names_as_they_are(name: str) -> None:
    bar = _new_bar()
    bar.add_task(f"label {name}", total=2, unit=f"unit {name}", note=f"note {name}")
    shown = Console(width=300, file=io.StringIO())
    shown.print(bar.get_renderable())
    text = shown.file.getvalue()
    assert [f"{word} {name}" in text for word in ("label", "unit", "note")] == [True] * 3


@pytest.mark.parametrize("name", ODD)
def test_a_line_said_above_a_progress_bar_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = ConsoleProgress()
    progress.start("predict", 2, "scene")
    progress.say(f"said {name}")
    progress.finish()
    assert f"said {name}" in terminal.getvalue()
