"""The training cache meets real faults: SIGKILL while it is packed, a disk that fills up, two trainings at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_tiles import settings, write_tileset

COMMAND = [sys.executable, "-m", "aerialseg", "train"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text('[model]\narchitecture = "linknet"\nencoder = "tu-test_efficientnet"\nweights = "none"\n')
    return path


def arguments(tiles: Path, run: Path, config: Path, *more: str) -> list[str]:
    one_step = settings("schedule.epochs=1", "schedule.steps_per_epoch=1", *more)
    return [str(tiles), "-o", str(run), "-c", str(config), "--device", "cpu", *one_step]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *words], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_packing_killed_at_any_moment_is_done_again(run: Any, config: Path, tmp_path: Path) -> None:
    tiles = write_tileset(tmp_path / "set", train=300, val=2, size=128)
    cache = tiles / "training-cache"
    for delay in (0.0, 0.1):
        process = start(*arguments(tiles, tmp_path / "killed", config, "data.threads=1"))
        while not list(cache.glob(".aerialseg-*.tiles")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not list(cache.glob("all.tiles")) and len(list(cache.glob(".aerialseg-*.tiles"))) == 1
    code, _, err = run("train", *arguments(tiles, tmp_path / "run", config))
    assert code == 0 and "packing 302 tiles" in err
    assert sorted(path.name for path in cache.iterdir()) == [".aerialseg-lock", "all.tiles"]


@pytest.mark.slow
def test_two_trainings_on_one_set_pack_it_once(config: Path, tmp_path: Path) -> None:
    tiles = write_tileset(tmp_path / "set", train=40, val=2)
    both = [start(*arguments(tiles, tmp_path / name, config)) for name in ("one", "two")]
    told = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted("packing 42 tiles" in err for err in told) == [False, True]


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_no_training_and_keeps_no_half_cache(run: Any, config: Path, tmp_path: Path) -> None:
    small = tmp_path / "disk"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        tiles = write_tileset(tmp_path / "set", train=60, val=2)
        code, _, err = run("train", *arguments(tiles, tmp_path / "run", config, f"data.cache={small}"))
        assert code == 0 and "no cache (about 2.3 MB are needed, " in err, err
        assert [path.name for path in (small / "training-cache").iterdir()] == [".aerialseg-lock"]
    finally:
        subprocess.run(["umount", small], check=True)
