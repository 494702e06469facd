"""Scenes predicted in bands, by any number of shards with kills in between, end with the bytes of a plain run."""

from __future__ import annotations

import json
import shutil
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch

from aerialseg.errors import ConfigError, Stopped
from aerialseg.geo.scenes import find_scenes
from aerialseg.prediction import network
from aerialseg.prediction import run as job
from aerialseg.prediction.multi_gpu import predict_on
from aerialseg.prediction.options import PredictOptions, Shard
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aerialseg.prediction.report import PredictReport

    Hashes = Callable[[Path], dict[str, str]]


class Lines(Silent):
    """Keeps what is said; asks for a stop at the n-th batch."""

    def __init__(self, batches: float = float("inf")) -> None:
        self.left = batches
        self.lines: list[str] = []

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.left -= amount > 0
        if self.left < 0:
            raise Stopped(15)

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def model(small_model: Callable[..., Path]) -> Path:
    return small_model()


@pytest.fixture
def scenes(tmp_path: Path, scene_file: Callable[..., Path]) -> Path:
    """Two scenes that touch, the lower one with a hole, and one far away."""
    pixels = np.random.default_rng(3).integers(1, 256, (3, 300, 90)).astype(np.uint8)
    pixels[:, 100:130, :40] = 0
    below = (0.3, 0, 616000, 0, -0.3, 3347000 - 0.3 * 200)
    scene_file(tmp_path / "scenes" / "a.tif", size=(200, 90), seed=1, nodata=0)
    scene_file(tmp_path / "scenes" / "b.tif", pixels, nodata=0, transform=below)
    scene_file(tmp_path / "scenes" / "c.tif", size=(70, 64), seed=2, transform=(0.3, 0, 7e5, 0, -0.3, 3347000))
    return tmp_path / "scenes"


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every batch that goes through a network."""
    sizes: list[int] = []
    real = network.Forward.__call__

    def counted(self: Any, batch: Any) -> Any:
        sizes.append(len(batch.places))
        return real(self, batch)

    monkeypatch.setattr(network.Forward, "__call__", counted)
    return sizes


def run(scenes: Path, model: Path, out: Path, progress: Any = None, **options: Any) -> PredictReport:
    chosen = PredictOptions(**{"batch": 1, "device": "cpu", **options})
    return predict_scenes(find_scenes([scenes]), model, out, chosen, progress or Silent())


def products(hashes: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in hashes.items() if not name.startswith(("report", "."))}


def parts(out: Path) -> list[Path]:
    return sorted(out.glob(".aerialseg-*.part"))


CHOICES: list[dict[str, Any]] = [
    {"polygons": True}, {"overlap": 0.75}, {"gsd_m": 0.2}, {"gsd_m": 0.71}, {"tta": "flips"}, {"disagreement": True},
    {"neighbours": False},
]  # fmt: skip


@pytest.mark.parametrize("options", CHOICES, ids=str)
@pytest.mark.parametrize("count", [5])
def test_shards_with_kills_in_between_make_what_one_run_makes(
    tmp_path: Path, scenes: Path, model: Path, tree_hashes: Hashes, options: dict[str, Any], count: int
) -> None:
    run(scenes, model, tmp_path / "one", **options)
    out = tmp_path / "shards"
    stopped = 0
    for number in range(count, 0, -1):
        try:
            run(scenes, model, out, Lines(number % 4), shard=Shard(number, count), **options)
        except Stopped:
            stopped += 1
        if number % 2:
            run(scenes, model, out, shard=Shard(number, count), **options)
    assert stopped
    run(scenes, model, out, **options)
    assert parts(out) == []
    assert products(tree_hashes(out)) == products(tree_hashes(tmp_path / "one"))


def test_all_shards_work_on_one_scene_and_the_last_one_finishes_it(
    tmp_path: Path, scenes: Path, model: Path, forwards: list[int]
) -> None:
    (scenes / "a.tif").unlink()
    (scenes / "c.tif").unlink()
    out, heard = tmp_path / "out", Lines()
    reports = [run(scenes, model, out, heard, shard=Shard(number, 3)) for number in (3, 1, 2)]
    assert [report.scenes[0].status for report in reports] == ["in part", "in part", "done"]
    assert all(report.scenes[0].windows_run for report in reports)
    assert json.loads((out / "report-3-of-3.json").read_text())["totals"]["in part"] == 1
    assert (
        "b: this shard's rows are there; it is finished by whoever has the last ones" not in reports[2].scenes[0].line()
    )
    assert sum("of them are run twice" in line for line in heard.lines) == 3, heard.lines
    assert parts(out) == []


def test_tasks_run_again_do_exactly_their_own_bands(
    tmp_path: Path, scenes: Path, model: Path, forwards: list[int], tree_hashes: Hashes
) -> None:
    run(scenes, model, tmp_path / "one")
    done = {}
    for number in (1, 2, 4, 5, 6, 8):
        forwards.clear()
        run(scenes, model, tmp_path / "out", shard=Shard(number, 8))
        done[number] = len(forwards)
    for number in (3, 7, 1, 8):
        forwards.clear()
        run(scenes, model, tmp_path / "out", shard=Shard(number, 8))
        assert bool(forwards) == (number in (3, 7))
    assert products(tree_hashes(tmp_path / "out")).keys() < products(tree_hashes(tmp_path / "one")).keys()
    forwards.clear()
    run(scenes, model, tmp_path / "out")
    assert forwards == []
    assert products(tree_hashes(tmp_path / "out")) == products(tree_hashes(tmp_path / "one"))


def test_another_number_of_shards_goes_on_from_what_is_there(
    tmp_path: Path, scenes: Path, model: Path, forwards: list[int], tree_hashes: Hashes
) -> None:
    run(scenes, model, tmp_path / "one")
    whole = len(forwards)
    for number in (1, 2, 3):
        run(scenes, model, tmp_path / "out", shard=Shard(number, 5))
    forwards.clear()
    resumed = 0
    for number in (1, 2):
        resumed += sum(
            scene.resumed_rows for scene in run(scenes, model, tmp_path / "out", shard=Shard(number, 2)).scenes
        )
    assert resumed > 0
    assert len(forwards) < 0.7 * whole
    run(scenes, model, tmp_path / "out")
    assert products(tree_hashes(tmp_path / "out")) == products(tree_hashes(tmp_path / "one"))


def test_the_closing_run_draws_polygons_and_runs_no_window_again(
    tmp_path: Path, scenes: Path, model: Path, forwards: list[int], tree_hashes: Hashes
) -> None:
    run(scenes, model, tmp_path / "one", polygons=True)
    for number in (1, 2, 3):
        run(scenes, model, tmp_path / "out", polygons=True, shard=Shard(number, 3))
    assert not (tmp_path / "out" / "buildings.gpkg").exists()
    forwards.clear()
    run(scenes, model, tmp_path / "out", polygons=True)
    assert forwards == []
    assert products(tree_hashes(tmp_path / "out")) == products(tree_hashes(tmp_path / "one"))


def test_separate_folders_copied_together_count_as_done(
    tmp_path: Path, scenes: Path, model: Path, forwards: list[int], tree_hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scenes, model, tmp_path / "one")
    for number in (1, 2, 3):
        run(scenes, model, tmp_path / str(number), shard=Shard(number, 3))
        shutil.copytree(tmp_path / str(number), tmp_path / "out", dirs_exist_ok=True)
    forwards.clear()
    monkeypatch.setattr(job, "find_device", None)  # nothing is to be computed, on whatever device
    assert {scene.status for scene in run(scenes, model, tmp_path / "out").scenes} <= {"done", "skipped"}
    assert forwards == []
    assert products(tree_hashes(tmp_path / "out")) == products(tree_hashes(tmp_path / "one"))


def test_of_a_damaged_record_only_those_rows_are_computed_again(
    tmp_path: Path, scenes: Path, model: Path, forwards: list[int], tree_hashes: Hashes
) -> None:
    for name in ("a", "c"):
        (scenes / f"{name}.tif").unlink()
    run(scenes, model, tmp_path / "one")
    out = tmp_path / "out"
    for number in (1, 2):
        run(scenes, model, out, shard=Shard(number, 3))
    (first, _) = parts(out)
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    forwards.clear()
    (scene,) = run(scenes, model, out).scenes
    row_of_windows, rows = 2, 48
    assert scene.resumed_rows == pytest.approx(192 - rows, abs=rows)
    assert len(forwards) <= row_of_windows * (2 + 3 + 1)
    assert products(tree_hashes(out)) == products(tree_hashes(tmp_path / "one"))


def test_two_that_would_finish_a_scene_finish_it_once(
    tmp_path: Path, scenes: Path, model: Path, tree_hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "c"):
        (scenes / f"{name}.tif").unlink()
    run(scenes, model, tmp_path / "one")
    written: list[str] = []
    both = threading.Barrier(2, timeout=60)
    real = job.finish

    def finish(rows: Any, *rest: Any, **options: Any) -> Any:
        written.append(rows.name)
        return real(rows, *rest, **options)

    def together(*given: Any) -> Any:
        both.wait()
        return real_finish(*given)

    real_finish = job._finish
    monkeypatch.setattr(job, "finish", finish)
    monkeypatch.setattr(job, "_finish", together)
    statuses: list[str] = []

    def shard() -> None:
        report = run(scenes, model, tmp_path / "out", shard=Shard(1, 1))
        statuses.append(report.scenes[0].status)

    threads = [threading.Thread(target=shard) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert sorted(statuses)[0] == "done"
    assert set(statuses) <= {"done", "in part", "skipped"}
    monkeypatch.undo()
    run(scenes, model, tmp_path / "out")
    assert parts(tmp_path / "out") == []
    assert products(tree_hashes(tmp_path / "out")) == products(tree_hashes(tmp_path / "one"))


def test_auto_takes_what_the_folder_was_begun_with_and_another_wish_is_refused(
    tmp_path: Path, scenes: Path, model: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        run(scenes, model, out, Lines(5), batch=3)
    with pytest.raises(
        ConfigError, match=r"was begun with --batch 3, and --batch 2 would change its last digits"
    ) as no:
        run(scenes, model, out, batch=2)
    assert no.value.exit_code == 78
    report = run(scenes, model, out, batch=None, device="auto")
    assert (report.settings["batch"], max(scene.resumed_rows for scene in report.scenes) > 0) == (3, True)
    shutil.rmtree(out)
    with pytest.raises(Stopped):
        run(scenes, model, out, Lines(5), batch=3)
    assert run(scenes, model, out, batch=2, overwrite=True).settings["batch"] == 2
    for name in ("a", "c"):
        (scenes / f"{name}.tif").unlink()
    shutil.rmtree(out)
    run(scenes, model, out, batch=3, shard=Shard(1, 3))
    assert run(scenes, model, out, batch=None, shard=Shard(3, 3)).settings["batch"] == 3, "nothing of its own is there"
    with pytest.raises(ConfigError, match="was begun with --batch 3"):
        run(scenes, model, out, batch=1, shard=Shard(2, 3))


def test_bands_of_another_card_are_finished_here_and_not_gone_on_with(
    tmp_path: Path, scenes: Path, model: Path, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "c"):
        (scenes / f"{name}.tif").unlink()
    with monkeypatch.context() as there:
        there.setattr("aerialseg.prediction.resume.name_of", lambda device: "cuda Made-up 100")
        run(scenes, model, tmp_path / "half", shard=Shard(1, 2))
        for number in (1, 2):
            run(scenes, model, tmp_path / str(number), shard=Shard(number, 2))
            shutil.copytree(tmp_path / str(number), tmp_path / "whole", dirs_exist_ok=True)
    forwards.clear()
    assert run(scenes, model, tmp_path / "whole").scenes[0].status == "done"
    assert forwards == []
    with pytest.raises(ConfigError, match="was begun with --device cuda, and --device cpu would"):
        run(scenes, model, tmp_path / "half")
    (scene,) = run(scenes, model, tmp_path / "half", device="auto").scenes
    assert (scene.status, scene.resumed_rows) == ("done", 0)


def test_when_memory_runs_out_the_rows_are_those_of_the_smaller_batch(
    tmp_path: Path, scenes: Path, model: Path, tree_hashes: Hashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(scenes, model, tmp_path / "one", batch=2)
    real, calls = network.Forward._run, []

    def tight(self: Any, pixels: Any, *rest: Any) -> None:
        calls.append(len(pixels))
        if len(pixels) > 2 and len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB")
        real(self, pixels, *rest)

    monkeypatch.setattr(network.Forward, "_run", tight)
    heard = Lines()
    report = run(scenes, model, tmp_path / "out", heard, batch=5)
    assert report.settings["batch"] == 2
    assert "out of memory: going on with 2 windows in a batch" in heard.lines
    assert set(calls[3:]) == {2}, "no part of another size, either"
    assert products(tree_hashes(tmp_path / "out")) == products(tree_hashes(tmp_path / "one"))
    shutil.rmtree(tmp_path / "out")
    calls.clear()
    with pytest.raises(Stopped):
        run(scenes, model, tmp_path / "out", Lines(7), batch=5)
    monkeypatch.undo()
    assert run(scenes, model, tmp_path / "out", batch=5).settings["batch"] == 2, "the same command goes on"


def test_several_devices_share_one_scene(tmp_path: Path, scenes: Path, model: Path, tree_hashes: Hashes) -> None:
    for name in ("a", "c"):
        (scenes / f"{name}.tif").unlink()
    options = PredictOptions(device="cpu", batch=1, polygons=True)
    predict_scenes(find_scenes([scenes]), model, tmp_path / "one", options)
    report = predict_on(("cpu", "cpu"), find_scenes([scenes]), model, tmp_path / "two", options, Silent())
    (scene,) = report.scenes
    assert scene.status == "done"
    one = json.loads((tmp_path / "one" / "report.json").read_text())["scenes"]["b"]
    assert scene.windows == one["windows"] + 2, "one border, of a row of two windows"
    assert products(tree_hashes(tmp_path / "two")) == products(tree_hashes(tmp_path / "one"))


def test_a_scene_damaged_inside_costs_its_own_bands(tmp_path: Path, scenes: Path, model: Path) -> None:
    with rasterio.open(scenes / "b.tif") as scene:
        pixels, profile = scene.read(), {**scene.profile, "compress": "deflate", "blockysize": 16}
    with rasterio.open(scenes / "b.tif", "w", **profile) as scene:
        scene.write(pixels)
    content = bytearray((scenes / "b.tif").read_bytes())
    content[-3000:-1000] = b"x" * 2000
    (scenes / "b.tif").write_bytes(content)
    out = tmp_path / "out"
    found = [{s.name: s.status for s in run(scenes, model, out, shard=Shard(n, 4)).scenes} for n in (1, 2, 3, 4)]
    assert [entry["b"] for entry in found if "b" in entry].count("failed") < sum("b" in entry for entry in found)
    closing = {scene.name: scene.status for scene in run(scenes, model, out).scenes}
    assert closing["b"] == "failed"
    assert {closing["a"], closing["c"]} <= {"done", "skipped"}
