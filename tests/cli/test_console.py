"""Names are shown as they are: square brackets and colons in them are no markup and no emoji."""

from __future__ import annotations

import io
import sys
from typing import Any

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


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_number_and_no_name_is_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rows: int, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ["", *(f"score number {n}" for n in range(10))]
    cells = [[f"scene austin{row}", *(f"0.{row}{n:03d}" for n in range(10))] for row in range(rows)]
    print_table("scores", columns, cells)
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= width
    shown = [n for n in range(10) if f"score number {n}" in out]
    assert shown == list(range(10)) if rows == 1 else 2 <= len(shown) < 10
    assert all(cell in out for row in cells for cell in [row[0], *(row[1 + n] for n in shown)])
    left_out = [f"score number {n}" for n in range(10) if n not in shown]
    assert err == (
        f"left out for want of width: {', '.join(left_out)}; a wider terminal shows them, and --json has all\n"
        if left_out
        else ""
    )


def test_into_a_pipe_every_column_goes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    columns = ["", *(f"score number {n}" for n in range(40))]
    print_table("scores", columns, [[f"scene{row}", *("0.5" for _ in range(40))] for row in range(9)])
    out, err = capsys.readouterr()
    assert all(column in out for column in columns) and not err


def test_the_networks_fit_into_eighty_columns(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from aerialseg.models.presets import PRESETS

    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("models")
    assert code == 0
    assert all(name in out for name in PRESETS) and max(map(len, out.splitlines())) <= 80


def test_help_lists_every_command_in_a_panel_with_its_whole_sentence(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("--help")
    assert code == 0 and out.count("...") == 1  # of the usage
    assert [line for line in out.splitlines() if line in ("Prepare:", "Train:", "Map:", "Judge:", "Look:")] == [
        "Prepare:",
        "Train:",
        "Map:",
        "Judge:",
        "Look:",
    ]
    lines = [line for line in out.partition("Prepare:")[2].splitlines() if line.startswith("  ")]
    assert len(lines) == 19 and all(len(line.split(None, 1)[1]) < 60 for line in lines)


@pytest.mark.parametrize("command", ["predict", "plan"])
def test_a_second_model_is_refused(run: Any, command: str) -> None:
    code, _, err = run(command, "scenes", "-m", "a", "--model", "b", "-o", "out")
    assert (code, err) == (
        2,
        f"error: -m is given twice, and one model maps the scenes: give one; see aerialseg {command} --help\n",
    )


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


def test_errors_that_say_the_same_of_many_files_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ConsoleProgress()
    progress.start("checking", 200, "scene")
    for number in range(100):
        progress.say(f"error: a/s{number}.tif: scene has 4 bands uint16, uint8 is wanted: use --scale LO:HI")
    for number in range(5):
        progress.say(f"error: s{number}.tif: does not lie on the grid of m{number}.tif: offset {number}.5 rows; cut it")
        progress.say(f"s{number}: 128x128, 5.0% building, 0.1 s")
    progress.say("error: s7.tif: is not a GeoTIFF")
    progress.finish()
    progress.finish()
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        f"error: a/s{n}.tif: scene has 4 bands uint16, uint8 is wanted: use --scale LO:HI" for n in range(3)
    ]
    assert sum("grid of m" in line for line in lines) == 3 and sum("% building" in line for line in lines) == 5
    assert lines[-3:] == [
        "error: s7.tif: is not a GeoTIFF",
        "error: and 97 more: scene has 4 bands uint16, uint8 is wanted",
        "error: and 2 more: does not lie on the grid of ...",
    ]


def test_a_quiet_progress_counts_nothing_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ConsoleProgress(quiet=True)
    for number in range(9):
        progress.say(f"error: s{number}.tif: is not a GeoTIFF")
    progress.finish()
    assert capsys.readouterr().err == ""
