"""run.json: a run says what it was made with, git can be missing, and nothing depends on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from small_tiles import settings, tiny_config
from told import Told

from aerialseg.errors import Stopped
from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.package import read_card
from aerialseg.training import loop
from aerialseg.training.loop import train
from aerialseg.training.run_folder import TrainOptions, read_run
from aerialseg.training.start import git_revision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda run, records: None)


def test_every_start_is_written_down_and_the_model_file_says_nothing_of_places(
    tiles_folder: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", tiny_config()
    with pytest.raises(Stopped):
        train(
            tiles_folder,
            config,
            run,
            options=TrainOptions("cpu", command=("one",)),
            progress=Told(2, "epoch", idle=False),
        )
    train(tiles_folder, config, run, options=TrainOptions("cpu", resume=True, command=("two",)))
    train(tiles_folder, config, run, options=TrainOptions("cpu", resume=True, command=("nothing to do",)))
    known = json.loads((run / "run.json").read_text())
    assert [(start["step"], start["command"]) for start in known["starts"]] == [(0, ["one"]), (2, ["two"])]
    assert known["tiles"] == {"folder": str(tiles_folder), "digest": load_tileset(tiles_folder).digest}
    first = known["starts"][0]
    assert first["versions"] == read_card(run).training["versions"] and first["git"] == git_revision()
    assert (first["device"], first["precision"], first["seed"], first["processes"]) == ("cpu", "fp32", 0, 1)
    assert str(tmp_path).encode() not in (run / "model.safetensors").read_bytes()
    before = known["id"]
    train(tiles_folder, config, run, options=TrainOptions("cpu", overwrite=True))
    assert read_run(run)["id"] != before and len(read_run(run)["starts"]) == 1


def test_a_damaged_run_json_ends_nothing(tiles_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tiles_folder, tiny_config(), tmp_path, options=TrainOptions("cpu"), progress=Told(2, "epoch", idle=False))
    wrong = (b'{"starts": 3}', b'{"starts": [3]}', b'{"starts": [{"command": [3]}]}', b'{"starts": [], "tiles": 3}')
    for content in (b"{", b"[]", *wrong, b"\xff", b"[" * 200_000):
        (tmp_path / "run.json").write_bytes(content)
        assert read_run(tmp_path) == {}
    train(tiles_folder, tiny_config(), tmp_path, options=TrainOptions("cpu", resume=True))
    assert [start["step"] for start in read_run(tmp_path)["starts"]] == [2]


def test_the_command_is_kept_as_it_was_typed(
    run: Callable[..., tuple[int, str, str]], tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["aerialseg", "train", "a b"])
    words = settings("schedule.epochs=1", "schedule.steps_per_epoch=1")
    assert run("train", tiles_folder, "-o", tmp_path, "-c", "demo", "--device", "cpu", *words)[0] == 0
    assert read_run(tmp_path)["starts"][0]["command"] == ["aerialseg", "train", "a b"]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_is_that_of_the_checkout_around_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    file = package / "module.py"
    file.write_text("one")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(package.parent), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    assert git_revision(package) is None  # no commit yet
    git("add", ".")
    git(*identity, "commit", "-q", "-m", "one")
    git("tag", "v1")
    assert git_revision(package) == git("rev-parse", "HEAD")
    file.write_text("two")
    assert git_revision(package) == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_revision(package) is not None
    inside = package.parent / "venv" / "site-packages" / "aerialseg"
    inside.mkdir(parents=True)
    assert git_revision(inside) is None


def test_without_git_there_is_no_revision_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    assert git_revision(tmp_path / "package") is None
    monkeypatch.setenv("PATH", os.devnull)
    assert git_revision() is None
