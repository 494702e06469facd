"""What every command has in common: one line for a mistake, and results that reach stdout or say that they did not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_run import write_run

from aerialseg.cli import build_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., tuple[int, str, str]]

ONE_RESULT = "from aerialseg.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


def shell(line: str, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `aerialseg` is the command of this tree."""
    function = f'aerialseg() {{ "{sys.executable}" -c "{ONE_RESULT}" "$@"; }}; '
    environment = {"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": unbuffered}
    command = ["bash", "-c", function + line]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "words",
    [
        ("tile", "in", "--size", "x"),
        ("tile", "in", "--bands", "1,,2"),
        ("tile", "in", "--scale", "a"),
        ("tile", "in", "--scale", "1:2:3"),
        ("tile", "in", "--building-values", "a\nb"),
        ("tile", "in", "--nonsense"),
        ("tile",),
        ("train", "tiles"),
        ("tyle", "in"),
        ("sample", "out", "--scenes", "0"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line_and_2(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and "Usage" not in err and "Traceback" not in err
    assert words[-1].splitlines()[0] in err or "see aerialseg " in err


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    code, out, err = run()
    assert code == 2 and "predict" in out + err


@pytest.mark.parametrize(
    "words",
    [
        ("tile", "in", "-o", ""),
        ("tile", "in", "--out="),
        ("train", "tiles", "-o", ""),
        ("predict", "in", "-m", "m", "-o", ""),
        ("evaluate", "", "--masks", "m"),
        ("demo", "-o", ""),
        ("sample", ""),
    ],
)
def test_an_empty_argument_is_no_name_for_the_current_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "the value is empty" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--version", "--help", "models", "models --json"])
def test_results_that_cannot_be_written_are_74_and_one_line(words: str, unbuffered: str) -> None:
    done = shell(f"aerialseg {words} > /dev/full", unbuffered)
    assert done.returncode == 74
    assert done.stderr.startswith("error: standard output: ") and "No space left" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_closed_stdout_is_74_and_a_closed_stderr_no_matter() -> None:
    done = shell("aerialseg models >&-")
    assert done.returncode == 74 and done.stderr.startswith("error: standard output is closed")
    assert done.stderr.count("\n") == 1
    done = shell("aerialseg models --json 2>&-")
    assert done.returncode == 0 and done.stdout.startswith("[")


@pytest.mark.parametrize("words", ["models", "models --json", "--help"])
def test_a_reader_that_has_left_is_no_error(words: str) -> None:
    done = shell(f"set -o pipefail; {{ sleep 0.5; aerialseg {words}; }} | true")
    assert (done.returncode, done.stderr) == (141, "")


def test_a_log_that_cannot_be_written_does_not_end_the_work(tmp_path: Path, scene_file: Any, mask_file: Any) -> None:
    scene, mask = scene_file(tmp_path / "a.tif"), mask_file(tmp_path / "mask.tif")
    done = shell(f"aerialseg tile {scene} --masks {mask} -o {tmp_path / 'set'} --size 64 --split 0 2> /dev/full")
    assert done.returncode == 0 and (tmp_path / "set" / "tileset.json").is_file()
    assert shell("aerialseg tile nowhere --masks nowhere 2> /dev/full").returncode == 66


@pytest.mark.parametrize("words", [("--debug", "info", "nowhere"), ("info", "nowhere", "--debug")])
def test_debug_adds_the_traceback_and_keeps_the_line_and_the_code(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (66, "")
    assert err.startswith("Traceback") and err.splitlines()[-1].startswith("error: nowhere: ")


def test_debug_shows_the_traceback_of_a_mistake_in_the_arguments_too(run: Run) -> None:
    code, _, err = run("--debug", "tile", "in", "--nonsense")
    assert code == 2 and err.startswith("Traceback") and "--nonsense" in err.splitlines()[-1]


def test_a_file_may_be_called_like_the_option(run: Run) -> None:
    code, _, err = run("info", "--", "--debug")
    assert code == 66 and err.startswith("error: --debug: ") and err.count("\n") == 1


def commands(group: Any, parent: str = "aerialseg") -> Iterator[tuple[str, Any]]:
    """Yield every command and how it is called, those of groups too."""
    for name, command in group.commands.items():
        called = f"{parent} {name}"
        yield from commands(command, called) if hasattr(command, "commands") else [(called, command)]


@pytest.mark.parametrize(("called", "command"), list(commands(build_app())))
def test_every_command_takes_json_and_shows_examples(called: str, command: Any) -> None:
    assert "--json" in {option for parameter in command.params for option in parameter.opts}
    assert f"\n\b\nExamples:\n  {called}" in command.help


@pytest.mark.parametrize(("called", "command"), list(commands(build_app())))
def test_the_first_sentence_of_every_help_fits_beside_the_command(called: str, command: Any) -> None:
    first = command.help.partition("\n\n")[0]
    assert first.endswith(".") and "\n" not in first and len(first) < 60, first


def test_preview_names_its_pictures_as_json(run: Run, tmp_path: Path) -> None:
    scenes = {entry.name: {"image": str(entry.scene), "status": "done"} for entry in write_run(tmp_path, ["a", "b"])}
    (tmp_path / "out/report.json").write_text(json.dumps({"aerialseg": "0", "command": "predict", "scenes": scenes}))
    code, out, _ = run("preview", tmp_path / "out", "--json")
    found = json.loads(out)
    assert (code, [Path(picture).name for picture in found["pictures"]]) == (0, ["a.png", "b.png"])
    assert all(Path(path).is_file() for path in [found["sheet"], *found["pictures"]])
