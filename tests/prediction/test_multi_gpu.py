"""Several processes, a shard each, end with what one process makes; here both are on the CPU."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from told import Told

from aerialseg.errors import DeviceError, ModelError, OutputError, ResourceError, Stopped, UsageError
from aerialseg.geo.polygons.polygonize import PolygonOptions
from aerialseg.geo.scenes import find_scenes
from aerialseg.prediction.multi_gpu import predict_on, predict_on_all_gpus
from aerialseg.prediction.options import PredictOptions, Shard
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TWO = ("cpu", "cpu")
PLAIN = PredictOptions(device="cpu", batch=2, precision="fp32")


@pytest.fixture(scope="module")
def model(small_model: Callable[..., Path]) -> Path:
    return small_model()


@pytest.fixture
def scenes(tmp_path: Path, scene_file: Callable[..., Path]) -> Path:
    for number in range(4):
        scene_file(tmp_path / "scenes" / f"s{number}.tif", size=(96, 70), seed=number)
    return tmp_path / "scenes"


def products(hashes: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in hashes.items() if not k.startswith(("report", ".aerialseg-lock"))}


def test_two_processes_make_what_one_makes(
    tmp_path: Path, scenes: Path, model: Path, tree_hashes: Callable[[Path], dict[str, str]]
) -> None:
    broken = scenes / "s9.tif"
    broken.write_bytes((scenes / "s0.tif").read_bytes()[:-9000])
    heard = Told()
    shaping = PolygonOptions(min_area_m2=0.5, simplify_m=0.3)
    options = PredictOptions(device="cpu", batch=2, precision="fp32", polygons=True, shaping=shaping)
    report = predict_on(TWO, find_scenes([scenes]), model, tmp_path / "two", options, heard)
    predict_scenes(find_scenes([scenes]), model, tmp_path / "one", options)
    assert products(tree_hashes(tmp_path / "two")) == products(tree_hashes(tmp_path / "one"))
    assert [scene.status for scene in report.scenes] == ["done"] * 4 + ["failed"]
    assert sum("s9" in line for line in heard.lines) == 1, "a failure is tried and told once"
    assert heard.total == pytest.approx(4 * 96 * 70 / 1e6)
    written = json.loads((tmp_path / "two" / "report.json").read_text())
    assert written["totals"]["done"] == 4
    assert written["totals"]["mpx_per_s"] < 1e3


@pytest.mark.slow
def test_a_stop_ends_all_processes_and_the_next_run_goes_on(tmp_path: Path, scenes: Path, model: Path) -> None:
    with pytest.raises(Stopped):
        predict_on(TWO, find_scenes([scenes]), model, tmp_path / "out", PLAIN, Told(1, idle=False))
    assert multiprocessing.active_children() == []
    report = predict_on(TWO, find_scenes([scenes]), model, tmp_path / "out", PLAIN, Told())
    assert {scene.status for scene in report.scenes} <= {"done", "skipped"}


@pytest.mark.slow
def test_a_failure_ends_the_other_processes_when_that_was_asked_for(tmp_path: Path, scenes: Path, model: Path) -> None:
    whole = (scenes / "s0.tif").read_bytes()
    (scenes / "s0.tif").write_bytes(whole[:-9000])
    for number in range(100, 128):  # so many that the second process is at work when the first one fails
        (scenes / f"s{number}.tif").write_bytes((scenes / "s1.tif").read_bytes())
    fast = replace(PLAIN, fail_fast=True, neighbours=False)
    report = predict_on(TWO, find_scenes([scenes]), model, tmp_path / "out", fast, Told())
    statuses = [scene.status for scene in report.scenes]
    assert statuses.count("failed") == 1
    assert statuses.count("not started") > len(statuses) / 2 - 1
    assert multiprocessing.active_children() == []
    (scenes / "s0.tif").write_bytes(whole)
    report = predict_on(TWO, find_scenes([scenes]), model, tmp_path / "out", fast, Told())
    assert {scene.status for scene in report.scenes} <= {"done", "skipped"}


@pytest.mark.slow
def test_a_stranger_s_project_is_refused_at_once_and_replaced_when_asked_for(
    tmp_path: Path, scenes: Path, model: Path
) -> None:
    project = tmp_path / "out" / "project.qgz"
    project.parent.mkdir()
    project.write_text("mine")
    heard = Told()
    with pytest.raises(OutputError, match=r"project\.qgz: exists and was not written by aerialseg"):
        predict_on(TWO, find_scenes([scenes]), model, tmp_path / "out", PLAIN, heard)
    assert [path.name for path in project.parent.iterdir()] == ["project.qgz"]
    overwriting = replace(PLAIN, overwrite=True)
    report = predict_on(TWO, find_scenes([scenes]), model, tmp_path / "out", overwriting, heard)
    assert [scene.status for scene in report.scenes] == ["done"] * 4
    assert project.read_bytes() != b"mine"
    assert sum("s0: " in line for line in heard.lines) == 1, "no scene is predicted twice"


@pytest.mark.slow
def test_a_lost_process_is_an_error_that_says_how_to_go_on(tmp_path: Path, scenes: Path, model: Path) -> None:
    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.05)
        children[0].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(ResourceError, match=r"cpu: its process was lost \(exit code -9\); run the same command again"):
        predict_on(TWO, find_scenes([scenes]), model, tmp_path / "out", PLAIN, Told())
    assert multiprocessing.active_children() == []


def test_what_fails_in_a_process_fails_the_run_alike(tmp_path: Path, scenes: Path) -> None:
    wrong = tmp_path / "model.safetensors"
    wrong.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"model.safetensors"):
        predict_on(TWO, find_scenes([scenes]), wrong, tmp_path / "out", PLAIN, Told())


def test_shards_and_all_gpus_exclude_each_other(tmp_path: Path, scenes: Path, model: Path) -> None:
    options = PredictOptions(device="cpu", shard=Shard(1, 2))
    with pytest.raises(UsageError, match="--shard"):
        predict_on(TWO, find_scenes([scenes]), model, tmp_path / "out", options, Silent())


def test_all_gpus_without_one_is_a_device_error(tmp_path: Path, scenes: Path, model: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError):
        predict_on_all_gpus(find_scenes([scenes]), model, tmp_path / "out", PredictOptions(device="cuda:all"), Silent())


def test_one_device_is_a_plain_run(tmp_path: Path, scenes: Path, model: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("aerialseg.models.device.every_gpu", lambda: ("cpu",))
    options = PredictOptions(device="cuda:all", batch=2)
    report = predict_on_all_gpus(find_scenes([scenes]), model, tmp_path / "out", options, Silent())
    assert report.settings["device"] == "cpu"
