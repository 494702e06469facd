"""The demo: every verb in turn on drawn scenes; the held-out scene decides nothing, and a second call is cheap."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from told import Told

from aerialseg.counts import Confusion
from aerialseg.drawing import FLAT_FOUND, INVENTED, MISSED
from aerialseg.errors import OutputError, Stopped
from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.build import Segmenter, build_network
from aerialseg.models.package import ModelCard, load_model, read_card, save_model
from aerialseg.models.presets import licence_of, resolve
from aerialseg.progress import Silent
from aerialseg.workflows import bench_train, demo
from aerialseg.workflows.demo import draw_picture

if TYPE_CHECKING:
    from pathlib import Path

QUICK = (
    "data.crop=64", "data.batch=2", "data.threads=1", "schedule.epochs=2", "schedule.steps_per_epoch=2",
    "run.precision=fp32",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _small_scenes() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SIZE", 128)
        patch.setattr(demo, "TILE", 64)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    demo.run_demo(folder, device="cpu", overrides=QUICK)
    return folder


def test_everything_promised_is_there(out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    for scores in (report["held_out"], report["untrained"]):
        assert set(scores) == {"iou", "accuracy", "precision", "recall", "f1"}
    assert report["training"]["steps"] == 4
    steps = report["seconds"]
    assert steps["total"] == pytest.approx(sum(s for name, s in steps.items() if name != "total"), abs=1.0)
    assert (out / "run" / "model.safetensors").is_file()
    assert (out / "out" / "vienna2.tif.aux.xml").is_file()


def test_the_reported_scores_are_those_of_the_masks_left_behind(out: Path) -> None:
    report = json.loads((out / "report.json").read_text())
    for folder, key in ((out / "out", "held_out"), (out / "untrained" / "out", "untrained")):
        with rasterio.open(folder / "vienna2.tif") as mask, rasterio.open(out / "truth" / "vienna2.tif") as truth:
            assert (mask.crs, mask.transform, mask.shape) == (truth.crs, truth.transform, truth.shape)
            counts = Confusion.of(mask.read(1) == 1, truth.read(1) == 255)
        assert report[key]["accuracy"] == pytest.approx(counts.accuracy)
        assert report[key]["iou"] == pytest.approx(counts.iou)


def test_the_held_out_scene_neither_trains_nor_validates(out: Path) -> None:
    scenes = {tile.scene: tile.split for tile in load_tileset(out / "tiles").tiles}
    assert scenes == {"vienna1": "val"} | {f"vienna{number}": "train" for number in range(6, 14)}
    assert (out / "out" / "vienna2.tif").is_file()


def test_the_untrained_model_is_the_same_network(out: Path) -> None:
    trained, untrained = read_card(out / "run"), read_card(out / "untrained")
    names = ("architecture", "encoder", "encoder_arguments", "bands", "mean", "std", "tile_size")
    assert [getattr(trained, name) for name in names] == [getattr(untrained, name) for name in names]
    model = "model.safetensors"
    assert (out / "run" / model).read_bytes() != (out / "untrained" / model).read_bytes()


def test_a_network_whose_licence_was_accepted_is_also_built_untrained(tmp_path: Path) -> None:
    spec = resolve("segformer-mit-b0", accept_licence=True)
    card = ModelCard(
        preset=spec.preset, architecture=spec.architecture, encoder=spec.encoder, licence=licence_of(spec),
        encoder_arguments=dict(spec.encoder_arguments), bands=3, mean=(90.0,) * 3, std=(40.0,) * 3, tile_size=64,
    )  # fmt: skip
    save_model(tmp_path / "trained.safetensors", Segmenter(build_network(spec), card.mean, card.std), card)
    made = demo._save_untrained(tmp_path / "trained.safetensors", tmp_path / "untrained.safetensors", 0)
    assert load_model(made)[1] == card


def test_a_second_call_trains_and_predicts_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train, "seconds_per_step", lambda *_: pytest.fail("a finished training was timed again"))
    before = {path: path.stat().st_mtime_ns for name in ("run/*.safetensors", "out/*.tif") for path in out.glob(name)}
    report = demo.run_demo(out, device="cpu", overrides=QUICK)
    assert report.training.complete_before
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_configuration_trains_anew(out: Path) -> None:
    report = demo.run_demo(out, device="cpu", overrides=(*QUICK, "run.seed=1"))
    assert not report.training.complete_before
    assert report.training.steps == 4


def test_a_demo_stopped_again_and_again_goes_on(tmp_path: Path) -> None:
    short = (*QUICK, "schedule.epochs=1")
    for label in ("draw", "epoch", "predict"):
        with pytest.raises(Stopped):
            demo.run_demo(tmp_path, device="cpu", overrides=short, progress=Told(1, label))
        assert not (tmp_path / "report.json").exists()
    report = demo.run_demo(tmp_path, device="cpu", overrides=short)
    assert report.training.complete_before
    assert report.training.steps == 2
    assert report.mask.is_file()


def test_a_slow_machine_takes_fewer_steps_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(bench_train, "seconds_per_step", lambda *_: 6.0)
    monkeypatch.setattr(Silent, "say", lambda _, line: said.append(line))
    config = demo.load_config("demo", QUICK)
    assert demo._within(1.0, config, tmp_path, "cpu", Silent()) == config  # four steps fit into ten
    assert said == []
    shorter = demo._within(0.2, config, tmp_path, "cpu", Silent())
    assert shorter.schedule.steps_per_epoch * shorter.schedule.epochs == 2
    assert len(said) == 1
    assert "4 training steps would take longer than 0.2 minutes here: taking 2" in said[0]


def test_a_step_is_timed() -> None:
    assert 0 < bench_train.seconds_per_step(demo.load_config("demo", QUICK), "cpu") < 30


def test_a_step_takes_all_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train.time, "monotonic", iter(range(100)).__next__)
    config = demo.load_config("demo", [*QUICK, "optimizer.accumulate=4"])
    assert bench_train.seconds_per_step(config, "cpu") == 4


def test_other_peoples_results_are_not_replaced(tmp_path: Path) -> None:
    for content in ("[" * 200_000, '{"mine": 1}'):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(OutputError, match=r"report\.json: exists and was not written by aerialseg"):
            demo.run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_picture_shows_what_was_found_missed_and_invented(tmp_path: Path) -> None:
    pixels = np.full((3, 500, 500), 120, np.uint8)
    truth, prediction = (np.zeros((500, 500), np.bool_) for _ in range(2))
    truth[100:300, 100:300] = True
    prediction[200:400, 100:300] = True
    draw_picture(tmp_path / "p.png", "x", pixels, truth, prediction, np.ones_like(truth))
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
    errors = picture[:, 3 * picture.shape[1] // 4 :]
    areas = {c: int((np.abs(errors - np.array(c)).max(axis=2) < 6).sum()) for c in (FLAT_FOUND, MISSED, INVENTED)}
    for area in areas.values():
        assert 0.9 * 100 * 200 < area < 1.15 * 100 * 200 + 500  # a panel of 500 px and a swatch in the legend


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_the_demo_maps_a_held_out_scene_in_five_minutes(cli, tmp_path: Path, precision: str) -> None:
    began = time.monotonic()
    options = ("--set", f"run.precision={precision}")
    result = cli("demo", "-o", tmp_path, *options, env={"OMP_NUM_THREADS": "2"}, timeout=900)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["held_out"]["iou"] >= 0.70
    assert report["untrained"]["iou"] < 0.30
    assert time.monotonic() - began < 300
    assert "in QGIS" in result.stdout
    assert (tmp_path / "picture.png").stat().st_size < 500_000
