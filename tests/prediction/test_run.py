"""Many scenes: what is written, what is skipped, what a failure does to the others, and what the report says."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from told import Told

from aerialseg.errors import (
    BadDataError,
    NoInputError,
    OutputError,
    SomeScenesFailed,
    Stopped,
    StorageError,
    UsageError,
)
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.outputs import MASK
from aerialseg.geo.polygons.polygonize import write_buildings
from aerialseg.geo.scenes import Scene, find_scenes
from aerialseg.prediction import checks, engine
from aerialseg.prediction import run as job
from aerialseg.prediction.checks import Run, disk_bytes
from aerialseg.prediction.options import PredictOptions, Shard
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from aerialseg.prediction.report import PredictReport


class Town:
    """Three scenes, a model, and a folder for outputs."""

    def __init__(self, root: Path, scene_file: Callable[..., Path], model: Path) -> None:
        self.scenes, self.out, self.model = root / "scenes", root / "out", model
        for number, size in enumerate([(150, 110), (70, 200), (64, 64)], start=1):
            scene_file(self.scenes / f"austin{number}.tif", size=size, seed=number)

    def predict(self, **options: Any) -> PredictReport:
        progress = options.pop("progress", Silent())
        model = options.pop("model", self.model)
        return predict_scenes(find_scenes([self.scenes]), model, self.out, PredictOptions(**options), progress)

    def statuses(self, **options: Any) -> list[str]:
        return [scene.status for scene in self.predict(**options).scenes]

    def masks(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.out.glob("*.tif"))}


@pytest.fixture(scope="session")
def model(small_model: Callable[..., Path]) -> Path:
    return small_model()


@pytest.fixture
def town(tmp_path: Path, scene_file: Callable[..., Path], model: Path) -> Town:
    return Town(tmp_path, scene_file, model)


def test_given_only_its_own_masks_it_says_so_and_keeps_the_report(town: Town) -> None:
    town.predict()
    report = (town.out / "report.json").read_bytes()
    with pytest.raises(NoInputError, match="no scene to predict"):
        predict_scenes(find_scenes([town.out]), town.model, town.out)
    assert (town.out / "report.json").read_bytes() == report


@pytest.fixture
def no_torch_work(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make loading a model an error from the call on."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    return lambda: monkeypatch.setattr(job, "load_forward", refuse)


def test_masks_lie_exactly_on_their_scenes(town: Town) -> None:
    report = town.predict(probability=True)
    assert [scene.status for scene in report.scenes] == ["done"] * 3
    for number in (1, 2, 3):
        name = f"austin{number}.tif"
        with rasterio.open(town.scenes / name) as scene, rasterio.open(town.out / name) as mask:
            assert (mask.shape, mask.transform, mask.crs) == (scene.shape, scene.transform, scene.crs)
            assert (mask.count, mask.dtypes, mask.nodata) == (1, ("uint8",), 255)
            values = mask.read(1)
        with rasterio.open(town.out / "probability" / name) as probability:
            assert (probability.shape, probability.transform, probability.nodata) == (mask.shape, mask.transform, 255)
            quanta = probability.read(1)
        assert set(np.unique(values)) == {0, 1}
        np.testing.assert_array_equal(values, quanta >= 127)


def test_the_report_says_what_was_done(town: Town) -> None:
    report = town.predict(batch=2)
    written = json.loads((town.out / "report.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    first = written["scenes"]["austin1"]
    with rasterio.open(first["mask"]) as mask:
        values = mask.read(1)
        assert mask.tags()["AERIALSEG_KEY"] == first["hashes"]["key"]
        assert mask.tags()["AERIALSEG_MODEL_SHA256"] == written["model"]["sha256"]
    assert first["building_fraction"] == pytest.approx((values == 1).mean())
    assert (first["valid_pixels"], first["height"], first["width"]) == (150 * 110, 150, 110)
    assert (first["windows"], first["windows_run"]) == (6, 6)
    assert written["totals"]["done"] == 3
    assert written["totals"]["mpx"] == pytest.approx((150 * 110 + 70 * 200 + 64 * 64) / 1e6)
    assert written["settings"] | {"window": 64, "batch": 2, "device": "cpu"} == written["settings"]


def test_progress_counts_every_pixel_and_names_every_scene(town: Town) -> None:
    heard = Told()
    town.predict(progress=heard)
    assert heard.done == pytest.approx(heard.total) == pytest.approx((150 * 110 + 70 * 200 + 64 * 64) / 1e6)
    assert [line.split(":")[0] for line in heard.lines] == ["austin1", "austin2", "austin3"]


def test_row_34_reruns_give_equal_bytes_and_overwrite_predicts_again(town: Town) -> None:
    town.predict()
    first = town.masks()
    assert town.statuses(overwrite=True) == ["done"] * 3
    assert town.masks() == first


def test_row_31_what_is_done_is_not_done_again_whatever_the_times_say(
    town: Town, no_torch_work: Callable[[], None]
) -> None:
    town.predict()
    no_torch_work()
    before = town.masks()
    for path in (*town.scenes.iterdir(), *town.out.glob("*.tif")):
        os.utime(path, (2**31, 2**31))
    report = town.predict(batch=1, device="cpu")
    assert [scene.status for scene in report.scenes] == ["skipped"] * 3
    assert town.masks() == before
    assert report.scenes[0].building_fraction is not None


def test_a_changed_scene_or_side_file_is_predicted_again(town: Town, scene_file: Callable[..., Path]) -> None:
    town.predict()
    scene_file(town.scenes / "austin2.tif", size=(70, 200), seed=99)
    assert town.statuses() == ["skipped", "done", "skipped"]
    side = town.scenes / "austin3.tif.aux.xml"
    side.write_text('<PAMDataset><Metadata><MDI key="A">b</MDI></Metadata></PAMDataset>')
    assert town.statuses() == ["skipped", "skipped", "done"]


@pytest.mark.parametrize(
    "change",
    [{"overlap": 0.5}, {"precision": "fp32"}, {"rule": BandRule(bands=(3, 2, 1))}, {"rule": BandRule(nodata=(0,))}],
    ids=str,
)
def test_other_parameters_are_other_work(town: Town, change: dict[str, Any]) -> None:
    town.predict()
    assert town.statuses(**change) == ["done"] * 3
    assert town.statuses(**change) == ["skipped"] * 3


def test_another_model_is_other_work(town: Town, small_model: Callable[..., Path]) -> None:
    town.predict()
    assert town.statuses(model=small_model(seed=1)) == ["done"] * 3


def test_probabilities_asked_for_later_are_added(town: Town) -> None:
    town.predict()
    assert town.statuses(probability=True) == ["done"] * 3
    assert town.statuses() == ["skipped"] * 3
    (town.out / "probability" / "austin1.tif").unlink()
    assert town.statuses(probability=True) == ["done", "skipped", "skipped"]


def test_what_an_earlier_version_called_agreement_is_taken_over(
    town: Town, no_torch_work: Callable[[], None], small_model: Callable[..., Path]
) -> None:
    town.predict(disagreement=True)
    new, old = town.out / "disagreement", town.out / "agreement"
    before = [path.read_bytes() for path in sorted(new.iterdir())]
    new.rename(old)
    no_torch_work()
    assert town.statuses() == ["skipped"] * 3
    assert [path.read_bytes() for path in sorted(old.iterdir())] == before, "who does not ask for it leaves it alone"
    report = town.predict(disagreement=True)
    assert [scene.status for scene in report.scenes] == ["skipped"] * 3
    assert [scene.outputs["disagreement"] for scene in report.scenes] == sorted(new.iterdir())
    assert [path.read_bytes() for path in sorted(new.iterdir())] == before
    assert list(old.iterdir()) == []


def test_agreement_of_another_run_is_not_taken_over(town: Town, small_model: Callable[..., Path]) -> None:
    town.predict(disagreement=True, model=small_model(seed=1))
    new, old = town.out / "disagreement", town.out / "agreement"
    new.rename(old)
    before = [path.read_bytes() for path in sorted(old.iterdir())]
    town.predict()
    assert town.statuses(disagreement=True) == ["done"] * 3
    assert [path.read_bytes() for path in sorted(old.iterdir())] == before
    assert len(list(new.iterdir())) == 3


def test_missing_side_files_come_back_and_edited_ones_stay(town: Town) -> None:
    town.predict()
    (town.out / "austin1.qml").unlink()
    (town.out / "austin1.tif.aux.xml").unlink()
    (town.out / "austin2.qml").write_text("my own style")
    assert town.statuses() == ["skipped"] * 3
    assert (town.out / "austin1.qml").read_bytes() == (town.out / "austin3.qml").read_bytes()
    assert (town.out / "austin1.tif.aux.xml").exists()
    town.predict(overwrite=True)
    assert (town.out / "austin2.qml").read_text() == "my own style"


def test_a_failing_scene_does_not_stop_the_others(town: Town) -> None:
    (town.scenes / "austin2.tif").write_text("no raster")
    heard = Told()
    report = town.predict(progress=heard)
    assert [scene.status for scene in report.scenes] == ["done", "failed", "done"]
    assert heard.lines[0].startswith(f"error: {town.scenes / 'austin2.tif'}: is not a GeoTIFF")
    with pytest.raises(SomeScenesFailed, match="1 of 3 scenes failed"):
        report.raise_failures()


def test_a_scene_damaged_inside_fails_and_leaves_the_older_mask(town: Town) -> None:
    town.predict()
    before = town.masks()
    path = town.scenes / "austin1.tif"
    path.write_bytes(path.read_bytes()[:-3000])
    report = town.predict()
    assert [scene.status for scene in report.scenes] == ["failed", "skipped", "skipped"]
    assert "cannot be read" in str(report.scenes[0].failure)
    assert town.masks() == before
    assert temporaries(town.out) == []


def test_fail_fast_stops_at_the_first_failure(town: Town) -> None:
    path = town.scenes / "austin2.tif"
    path.write_bytes(path.read_bytes()[:-3000])
    assert town.statuses(fail_fast=True) == ["done", "failed", "not started"]
    path.write_text("no raster")
    assert town.statuses(fail_fast=True) == ["skipped", "failed", "not started"]


def test_when_all_fail_the_first_one_s_error_is_raised(town: Town) -> None:
    for path in town.scenes.iterdir():
        path.write_text("no raster")
    with pytest.raises(BadDataError, match=r"3 of 3 failed.*austin1"):
        town.predict().raise_failures()


def test_a_single_failure_is_raised_as_it_is_and_not_said_twice(town: Town) -> None:
    (town.scenes / "austin1.tif").unlink()
    (town.scenes / "austin2.tif").unlink()
    (town.scenes / "austin3.tif").write_text("")
    heard = Told()
    report = town.predict(progress=heard)
    assert heard.lines == []
    with pytest.raises(BadDataError, match=r"austin3.tif: is empty"):
        report.raise_failures()


def test_a_scene_that_changes_while_it_is_predicted_fails(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.predict_scene

    def touching(forward: Any, canvas: Any, *rest: Any, **options: Any) -> Any:
        streamed = real(forward, canvas, *rest, **options)
        if canvas.source.path.name == "austin2.tif":
            with canvas.source.path.open("ab") as stream:
                stream.write(b"more")
        return streamed

    monkeypatch.setattr(engine, "predict_scene", touching)
    report = town.predict()
    assert [scene.status for scene in report.scenes] == ["done", "failed", "done"]
    assert "changed while it was predicted" in str(report.scenes[1].failure)


@pytest.mark.parametrize("size", [64, 128])
def test_a_scene_replaced_after_its_header_was_read_is_not_mapped_onto_the_old_place(
    town: Town, monkeypatch: pytest.MonkeyPatch, scene_file: Callable[..., Path], size: int
) -> None:
    """By one of other ground, and by a smaller one, on which reading the old windows fails."""
    real = checks.inspect_scene
    elsewhere = (0.3, 0.0, 700000.0, 0.0, -0.3, 3347000.0)

    def replacing(path: Path, *rest: Any, **options: Any) -> Any:
        source = real(path, *rest, **options)
        if path.name == "austin2.tif":
            scene_file(town.out / "new.tif", size=(size, size), seed=7, transform=elsewhere).replace(path)
        return source

    town.out.mkdir(exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(checks, "inspect_scene", replacing)
        report = town.predict()
    assert [scene.status for scene in report.scenes] == ["done", "failed", "done"]
    assert str(report.scenes[1].failure).endswith("austin2.tif: changed while it was predicted; run again")
    assert not (town.out / "austin2.tif").exists()
    assert [scene.status for scene in town.predict().scenes] == ["skipped", "done", "skipped"]
    with rasterio.open(town.out / "austin2.tif") as mask:
        assert tuple(mask.transform)[:6] == elsewhere and mask.shape == (size, size)


def test_a_model_that_changes_while_scenes_are_checked_is_run_as_it_was_hashed(
    town: Town, small_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    town.predict()
    masks, first = town.masks(), town.model.read_bytes()
    shutil.rmtree(town.out)
    town.model = Path(shutil.copy(town.model, tmp_path / "live.safetensors"))
    real = job.check_scenes

    def improving(run: Any, scenes: Any) -> Any:
        shutil.copy(small_model(threshold=0.7), town.model)
        return real(run, scenes)

    monkeypatch.setattr(job, "check_scenes", improving)
    report = town.predict()
    assert town.model.read_bytes() != first
    assert report.model["sha256"] == hashlib.sha256(first).hexdigest()
    assert town.masks() == masks


def test_a_scene_that_vanishes_fails_alone(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    real = job.check_scenes

    def losing(run: Any, scenes: Any) -> Any:
        checked = real(run, scenes)
        (town.scenes / "austin2.tif").unlink()
        return checked

    monkeypatch.setattr(job, "check_scenes", losing)
    assert town.statuses() == ["done", "failed", "done"]


def test_half_an_output_is_made_again(town: Town) -> None:
    town.predict()
    before = town.masks()
    path = town.out / "austin1.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert town.statuses() == ["done", "skipped", "skipped"]
    assert town.masks() == before


def test_a_scene_that_was_moved_is_other_work_whatever_file_says_so(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.predict()
    monkeypatch.setattr(Run, "digest", lambda run, path: "the same")  # a side file that the digest does not know
    assert town.statuses() == ["done"] * 3
    assert town.statuses() == ["skipped"] * 3
    with rasterio.open(town.scenes / "austin1.tif", "r+") as scene:
        scene.transform = rasterio.Affine.translation(1e5, 0) @ scene.transform
    assert town.statuses() == ["done", "skipped", "skipped"]


def test_scenes_are_finished_side_by_side_and_recorded_in_their_order() -> None:
    recorded: list[Any] = []
    journal = SimpleNamespace(run=SimpleNamespace(progress=Told()), record=recorded.append)
    finisher = job._Finisher(journal, 3)
    gates = [threading.Event() for _ in range(5)]
    together = threading.Semaphore(0)

    def finish(number: int) -> int:
        together.release()
        assert gates[number].wait(10)
        return number

    for number in range(3):
        finisher.begin(partial(finish, number))
    assert all(together.acquire(timeout=10) for _ in range(3)), "all three are at it"
    for number in (2, 1):
        gates[number].set()
    finisher.advance(1)
    assert recorded == [], "the first is not done yet"
    threading.Timer(0.1, gates[0].set).start()
    finisher.begin(partial(finish, 3))
    assert recorded[0] == 0
    gates[3].set()
    finisher.settle()
    assert recorded == [0, 1, 2, 3]
    journal.run.progress.stop_at = 0
    finisher.begin(partial(finish, 4))
    threading.Timer(2 * job.POLL_S, gates[4].set).start()
    with pytest.raises(Stopped):
        finisher.settle()
    assert recorded == [0, 1, 2, 3, 4], "a stop waits a little"


@pytest.mark.parametrize("stop_at", [1, 3, 8, 9])
def test_a_stop_keeps_what_is_finished_and_the_next_run_goes_on(town: Town, stop_at: int) -> None:
    with pytest.raises(Stopped):
        town.predict(progress=Told(stop_at, idle=False), batch=1)
    assert {path.suffix for path in temporaries(town.out)} <= {".part"}
    statuses = [scene["status"] for scene in json.loads((town.out / "report.json").read_text())["scenes"].values()]
    done = sorted(town.masks())
    assert done == ["austin1.tif", "austin2.tif", "austin3.tif"][: statuses.count("done")]
    assert statuses == ["done"] * len(done) + ["not started"] * (3 - len(done))
    assert town.statuses(batch=1) == ["skipped"] * len(done) + ["done"] * (3 - len(done))
    resumed = town.masks()
    assert temporaries(town.out) == []
    shutil.rmtree(town.out)
    town.predict(batch=1)
    assert town.masks() == resumed


def test_what_a_killed_run_left_is_swept_and_done_again(town: Town) -> None:
    town.predict()
    before = town.masks()
    (town.out / "austin2.tif").rename(town.out / ".aerialseg-abc.tif")
    (town.out / "probability").mkdir()
    (town.out / "probability" / ".aerialseg-xyz.tif").write_bytes(b"half")
    assert town.statuses() == ["skipped", "done", "skipped"]
    assert town.masks() == before
    assert temporaries(town.out) == []


def test_a_full_disk_ends_the_run_and_keeps_the_scenes_before(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    real = job.finish

    def full(temporaries: Any, files: Any, *rest: Any, **options: Any) -> Any:
        if files[MASK].name == "austin2.tif":
            raise StorageError("no space")
        return real(temporaries, files, *rest, **options)

    monkeypatch.setattr(job, "finish", full)
    with pytest.raises(StorageError, match="no space"):
        town.predict()
    assert "austin1.tif" in town.masks()
    assert {path.suffix for path in temporaries(town.out)} <= {".part"}, "what was computed stays"
    scenes = json.loads((town.out / "report.json").read_text())["scenes"]
    assert [scenes[f"austin{n}"]["status"] for n in (1, 2)] == ["done", "failed"]
    monkeypatch.undo()
    assert town.statuses()[:2] == ["skipped", "done"]


def test_too_little_room_is_said_before_the_model_loads(
    town: Town, no_torch_work: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_torch_work()
    monkeypatch.setattr("aerialseg.files.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(StorageError, match=r"about .* are needed, .* free"):
        town.predict()


def test_the_room_asked_for_is_that_of_the_device_that_auto_finds(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("aerialseg.models.device.pick_device", lambda wanted: torch.device("cpu"))
    monkeypatch.setattr(job, "require_space", lambda folder, needed: asked.append(needed))
    for device in ("auto", "cpu"):
        town.predict(device=device, overwrite=True)
    assert asked[0] == asked[1] == disk_bytes(PredictOptions(), [150 * 110, 70 * 200, 64 * 64], "cpu")
    assert asked[0] < disk_bytes(PredictOptions(), [150 * 110, 70 * 200, 64 * 64], "cuda")


def test_polygons_are_drawn_within_the_limit_that_the_scenes_had(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def watched(*arguments: Any, max_pixels: float, **options: Any) -> Any:
        limits.append(max_pixels)
        return write_buildings(*arguments, max_pixels=max_pixels, **options)

    monkeypatch.setattr("aerialseg.prediction.exports.write_buildings", watched)
    town.predict(polygons=True, access=Access(max_pixels=2e10))
    assert limits == [2e10]


def test_a_rerun_keeps_what_was_measured_of_scenes_that_are_still_done(town: Town) -> None:
    first = {scene.name: (scene.seconds, scene.seam_index) for scene in town.predict().scenes}
    assert all(seconds for seconds, _ in first.values())
    assert first["austin1"][1] is not None
    (town.out / "austin2.tif").unlink()
    for _ in range(2):
        again = {scene.name: (scene.seconds, scene.seam_index) for scene in town.predict().scenes}
        written = json.loads((town.out / "report.json").read_text())["scenes"]
        assert {name: (entry["seconds"], entry["seam_index"]) for name, entry in written.items()} == again
        assert (again["austin1"], again["austin3"]) == (first["austin1"], first["austin3"])
    shards = [town.predict(shard=Shard(number, 2), overlap=0.5).scenes for number in (1, 2)]
    merged = town.predict(overlap=0.5).scenes
    assert {scene.status for scene in merged} == {"skipped"}
    known = {scene.name: (scene.seconds, scene.seam_index) for shard in shards for scene in shard}
    assert {scene.name: (scene.seconds, scene.seam_index) for scene in merged} == known
    assert known["austin1"] != first["austin1"], "of another key"


@pytest.mark.parametrize(
    "content",
    ['{"scenes": 3}', '{"scenes": {"austin1": 3}}', '{"scenes": {"austin1": {"hashes": {"key": []}, "seconds": 1.0}}}'],
)
def test_an_older_report_that_is_odd_is_not_believed(town: Town, content: str) -> None:
    town.predict()
    report = town.out / "report.json"
    key = json.loads(report.read_text())["scenes"]["austin3"]["hashes"]["key"]
    odd = json.loads(content)
    if isinstance(odd["scenes"], dict):
        odd["scenes"]["austin3"] = {"hashes": {"key": key}, "seconds": float("nan"), "seam_index": "x"}
    report.write_text(json.dumps(odd | {"aerialseg": "0", "command": "predict"}))
    again = town.predict()
    assert [(scene.status, scene.seconds, scene.seam_index) for scene in again.scenes] == [("skipped", None, None)] * 3


def test_the_card_s_bands_and_scale_hold_unless_others_are_given(
    tmp_path: Path, scene_file: Callable[..., Path], small_model: Callable[..., Path]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (4, 80, 70)).astype(np.uint16)
    path = scene_file(tmp_path / "nir.tif", pixels, photometric="MINISBLACK")
    scenes = [Scene("nir", path)]
    model = small_model(band_indexes=(4, 1, 2), scale=(0.0, 4095.0))
    rule = BandRule((4, 1, 2), (0.0, 4095.0))
    by_card = predict_scenes(scenes, model, tmp_path / "card")
    by_hand = predict_scenes(scenes, model, tmp_path / "hand", PredictOptions(rule=rule))
    other = predict_scenes(scenes, model, tmp_path / "other", PredictOptions(rule=BandRule((1, 2, 3))))
    masks = [rasterio.open(report.out / "nir.tif").read(1) for report in (by_card, by_hand, other)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()


def test_another_ground_sample_distance_is_run_at_the_model_s(town: Town, small_model: Callable[..., Path]) -> None:
    heard = Told()
    town.predict(model=small_model(gsd_m=0.5), progress=heard)
    assert sum("its pixels are 0.3 m; it is run at 0.5 m" in line for line in heard.lines) == 2, "once, and counted"
    heard = Told()
    town.predict(model=small_model(gsd_m=0.31), progress=heard)
    assert not any("learned" in line for line in heard.lines)


def test_a_run_folder_is_a_model(town: Town, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(town.model, tmp_path / "run" / "model.safetensors")
    assert town.statuses(model=tmp_path / "run") == ["done"] * 3


def test_outputs_below_the_scenes_are_not_taken_for_scenes(town: Town) -> None:
    town.out = town.scenes / "out"
    assert town.statuses() == ["done"] * 3
    assert town.statuses() == ["skipped"] * 3


def test_outputs_mirror_the_scenes_folders(town: Town, scene_file: Callable[..., Path]) -> None:
    scene_file(town.scenes / "a" / "x.tif", size=(64, 64))
    scene_file(town.scenes / "b" / "x.tif", size=(64, 64))
    town.predict(probability=True)
    assert (town.out / "a" / "x.tif").exists()
    assert (town.out / "probability" / "b" / "x.tif").exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_a_name_that_leaves_the_folder_is_refused(town: Town, name: str) -> None:
    with pytest.raises(UsageError, match="relative path"):
        predict_scenes([Scene(name, town.scenes / "austin1.tif")], town.model, town.out)


def test_two_scenes_with_one_output_are_refused(town: Town) -> None:
    image = town.scenes / "austin1.tif"
    with pytest.raises(UsageError, match=r"probability/x and x: both would write"):
        predict_scenes(
            [Scene("probability/x", image), Scene("x", image)], town.model, town.out, PredictOptions(probability=True)
        )


@pytest.mark.parametrize("options", [{"overlap": 0.8}, {"overlap": -0.1}, {"batch": 0}], ids=str)
def test_nonsense_options_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PredictOptions(**options)


def test_a_stranger_s_file_is_not_replaced(
    town: Town, scene_file: Callable[..., Path], no_torch_work: Callable[[], None]
) -> None:
    no_torch_work()
    stranger = scene_file(town.out / "austin2.tif", size=(10, 10))
    before = stranger.read_bytes()
    with pytest.raises(OutputError, match=r"austin2.tif: exists and was not written by aerialseg"):
        town.predict()
    assert stranger.read_bytes() == before


def test_overwrite_replaces_a_stranger_s_file_with_its_side_files(town: Town, scene_file: Callable[..., Path]) -> None:
    scene_file(town.out / "austin2.tif", size=(10, 10))
    side = town.out / "austin2.tif.aux.xml"
    side.write_text("<PAMDataset><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform></PAMDataset>")
    report = town.predict(overwrite=True)
    assert [scene.warnings for scene in report.scenes] == [()] * 3
    with rasterio.open(town.out / "austin2.tif") as mask:
        assert mask.transform.a == 0.3


def test_a_side_file_that_moves_a_mask_is_warned_of(town: Town) -> None:
    town.out.mkdir()
    (town.out / "austin2.tif.aux.xml").write_text(
        "<PAMDataset><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform></PAMDataset>"
    )
    assert "moves it off its scene" in town.predict().scenes[1].warnings[0]


def test_a_stranger_s_report_is_not_replaced(town: Town) -> None:
    town.out.mkdir()
    for content in ("[" * 200_000, '{"mine": true}'):
        (town.out / "report.json").write_text(content)
        with pytest.raises(OutputError, match=r"report\.json"):
            town.predict()


def test_a_finished_scene_is_heard_of_while_the_next_one_runs(town: Town) -> None:
    events: list[str] = []

    class Slow(Told):
        def advance(self, amount: float = 1, note: str = "") -> None:
            time.sleep(0.03)
            events.append("batch")

        def say(self, line: str) -> None:
            events.append(line.split(":")[0])

    town.predict(progress=Slow(), batch=1)
    assert events.index("austin1") < len(events) - 1 - events[::-1].index("batch")


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".aerialseg-*") if path.name != ".aerialseg-lock"]


def test_pixels_far_larger_than_the_models_are_refused_with_the_way_out(
    tmp_path: Path, scene_file: Callable[..., Path], tiny_model: Callable[..., Path]
) -> None:
    """2,000 pixels of 10 m would become 63 windows of a network that knows 0.3 m, and of 300 m 52,224."""
    scene = scene_file(tmp_path / "in" / "px10.tif", size=(50, 40), transform=rasterio.Affine(10, 0, 6e5, 0, -10, 3e6))
    model, found = tiny_model(gsd_m=0.3), find_scenes([scene])
    with pytest.raises(BadDataError, match=r"its pixels are 10 m, the model's 0\.3 m.*--gsd keep.*--gsd 10 "):
        predict_scenes(found, model, tmp_path / "a").raise_failures()
    kept = predict_scenes(found, model, tmp_path / "b", PredictOptions(gsd_m="keep"))
    assert [scene.status for scene in kept.scenes] == ["done"]
    few = Access(max_pixels=1e6)
    with pytest.raises(
        BadDataError, match=r"at 0\.3 m a pixel it is 1667x1333, 2\.22e\+06 pixels.*--max-pixels 1e\+06"
    ):
        predict_scenes(found, model, tmp_path / "c", PredictOptions(gsd_m=0.3, access=few)).raise_failures()


def paint(path: Path) -> tuple[int, int]:
    """Draw a house of 10 x 12 px into a mask, in place, as QGIS does; return the valid and the building pixels."""
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        pixels = mask.read(1)
        pixels[5:15, 8:20] = 1 - pixels[5, 8]
        mask.write(pixels, 1)
    return int((pixels != 255).sum()), int((pixels == 1).sum())


def test_a_mask_that_someone_painted_stays_and_is_counted_as_it_is(town: Town) -> None:
    town.predict()
    counts = paint(town.out / "austin2.tif")
    painted = town.masks()
    heard = Told()
    report = town.predict(progress=heard)
    assert [scene.status for scene in report.scenes] == ["skipped"] * 3 and town.masks() == painted
    assert (report.scenes[1].valid_pixels, report.scenes[1].building_pixels) == counts
    stays = "austin2.tif: was changed since aerialseg wrote it and stays as it is; --overwrite has it anew"
    assert [line for line in heard.lines if "changed" in line] == [f"warning: {town.out / stays}"]
    assert [scene.status for scene in town.predict(overwrite=True).scenes] == ["done"] * 3
    assert town.masks() != painted and not any(scene.warnings for scene in town.predict().scenes)


def test_another_models_run_does_not_replace_a_painted_mask(
    town: Town, small_model: Callable[..., Path], no_torch_work: Callable[[], None]
) -> None:
    town.predict()
    paint(town.out / "austin2.tif")
    painted, town.model = town.masks(), small_model(threshold=0.7)
    no_torch_work()
    with pytest.raises(OutputError, match=r"austin2.tif: was changed since .* would be replaced; .*--overwrite"):
        town.predict()
    assert town.masks() == painted


def test_a_mask_painted_while_its_scene_is_predicted_again_is_not_replaced(
    town: Town, small_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    town.predict()
    real, town.model = engine.predict_scene, small_model(threshold=0.7)

    def painting(forward: Any, canvas: Any, *rest: Any, **options: Any) -> Any:
        if canvas.source.path.name == "austin2.tif":
            paint(town.out / "austin2.tif")
        return real(forward, canvas, *rest, **options)

    monkeypatch.setattr(engine, "predict_scene", painting)
    with pytest.raises(OutputError, match=r"austin2.tif: was changed since aerialseg wrote it"):
        town.predict()


def test_row_44_an_output_damaged_inside_is_not_done_before(town: Town) -> None:
    town.predict(probability=True)
    path = town.out / "probability" / "austin2.tif"
    whole = path.read_bytes()
    with rasterio.open(path) as raster:
        offset = int(raster.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
        length = int(raster.get_tag_item("BLOCK_SIZE_0_0", "TIFF", bidx=1))
    middle = offset + length // 2
    path.write_bytes(whole[:middle] + bytes(16) + whole[middle + 16 :])
    assert town.statuses(probability=True) == ["skipped", "done", "skipped"]
    assert path.read_bytes() == whole


def test_an_output_of_before_that_says_nothing_of_its_pixels_counts_as_done(town: Town) -> None:
    town.predict()
    with rasterio.open(town.out / "austin2.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        mask.update_tags(AERIALSEG_PIXELS_SHA256="")
    assert town.statuses() == ["skipped"] * 3


def test_a_warning_about_many_scenes_is_said_once_and_counted(town: Town, small_model: Callable[..., Path]) -> None:
    told = Told()
    report = town.predict(model=small_model(gsd_m=0.45), progress=told)
    assert all("it is run at 0.45 m" in " ".join(scene.warnings) for scene in report.scenes)
    said = [line for line in told.lines if "0.45 m" in line]
    first, counted = said
    assert first.startswith(f"warning: {town.scenes}/austin1.tif: its pixels are 0.3 m")
    assert counted.startswith("warning: 3 scenes: its pixels are 0.3 m")
