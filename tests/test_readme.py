"""What the README tells people to type exists, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("aerialseg ")]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:4]))
def test_the_commands_shown_have_the_options_shown(words: list[str], run: Callable[..., tuple[int, str, str]]) -> None:
    code, text, _ = run(words[0], "--help")
    assert code == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
    assert {word for word in words if word.startswith("-")} <= known


def test_the_python_example_maps_a_folder_of_scenes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scene_file: Any,
    tiny_model: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = blocks("python")
    scene_file(tmp_path / "scenes" / "town1.tif")
    tiny_model(tmp_path / "runs" / "town" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert "town1: 128x128" in capsys.readouterr().out
    assert (tmp_path / "out" / "town1.tif").exists()


def test_files_and_make_targets_that_are_named_exist() -> None:
    root = Path(__file__).parent.parent
    named = set(re.findall(r"\]\(((?!http)[^)]+)\)", README)) | {"LICENSE", "CHANGELOG.md", "benchmarks/README.md"}
    assert [name for name in sorted(named) if not (root / name).exists()] == []
    targets = set(re.findall(r"^([a-z0-9-]+):", (root / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z0-9-]+)", README)) - {"a"} <= targets
