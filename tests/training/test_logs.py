"""Loggers: what TensorBoard shows is what the tiles hold; the extras get every number, and may fail without harm."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from small_tiles import settings, tiny_config
from told import Told

from aerialseg.errors import ConfigError
from aerialseg.geo.tiles.tileset import TileRecord, TileSet
from aerialseg.training import logs, loop
from aerialseg.training.data import TileReader
from aerialseg.training.history import EpochRecord, scalars
from aerialseg.training.logs import choose, compose
from aerialseg.training.loop import train
from aerialseg.training.run_folder import TrainOptions, read_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = TrainOptions("cpu")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda run, records: None)


def fake_wandb(monkeypatch: pytest.MonkeyPatch, *, fails_at: int | None = None) -> SimpleNamespace:
    """Put a stand-in for wandb in its place that keeps what it gets; its call of `log` with that number raises."""
    seen = SimpleNamespace(init=None, logged=[], finished=None, quiet=None)

    def log(values: dict[str, float], step: int) -> None:
        if len(seen.logged) + 1 == fails_at:
            raise RuntimeError("the service is gone")
        seen.logged.append((step, values))

    def init(**options: Any) -> SimpleNamespace:
        seen.init = options
        return SimpleNamespace(log=log, finish=lambda exit_code: setattr(seen, "finished", exit_code))

    def quiet(**options: Any) -> None:
        seen.quiet = options

    module = ModuleType("wandb")
    module.init, module.Settings = init, quiet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(sys.modules, "wandb.sdk", ModuleType("wandb.sdk"))
    return seen


def events_of(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_tensorboard_shows_the_tiles_themselves_beside_what_is_thought_of_them(
    tiles_folder: Path, tiles: TileSet, tmp_path: Path
) -> None:
    config = tiny_config()
    train(tiles_folder, config, tmp_path, options=CPU)
    found = events_of(tmp_path)
    tags = [f"scene, truth, probability/{tile.name}" for tile in tiles.of_split("val")]
    assert found.Tags()["images"] == tags
    assert [event.step for event in found.Images(tags[0])] == [6]  # short epochs: the last one alone is worth it
    for tile, tag in zip(tiles.of_split("val"), tags, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(found.Images(tag)[0].encoded_image_string)))
        pixels, target, _ = TileReader(tiles, config.data, 32).whole(tile)
        inside = slice(16, 80)
        assert shown.shape == (64, 3 * 64 + 2 * 4, 3)
        assert (shown[:, :64] == pixels[inside, inside]).all()
        truth = np.select([target == 1, target == 255], [255, 128], 0)[inside, inside]
        assert (shown[:, 68:132] == truth[..., None]).all()
        assert shown[:, 136:].std() > 0 and (shown[:, 64:68] == 255).all()
    assert [event.step for event in found.Scalars("validation/iou")] == [3, 6]


def test_pictures_come_again_when_enough_time_has_passed(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "PICTURE_EVERY_S", 0.0)
    train(tiles_folder, tiny_config(), tmp_path, options=CPU)
    found = events_of(tmp_path)
    assert [event.step for event in found.Images(found.Tags()["images"][0])] == [3, 6]


def test_drawing_changes_nothing_of_the_training(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("run.ema=0.0", "model.encoder=tu-test_convnext", "model.encoder_arguments.drop_path_rate=0.5")
    train(tiles_folder, config, tmp_path / "few", options=CPU)
    monkeypatch.setattr(logs, "PICTURE_EVERY_S", 0.0)
    train(tiles_folder, config, tmp_path / "many", options=CPU)
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("few", "many")]
    assert models[0] == models[1]


def test_the_tiles_shown_are_the_same_each_time_and_have_buildings() -> None:
    tile = TileRecord("t", "val", "s", (0, 0, 8, 8), (0, 0, 8, 8), 0.0, 1.0)
    many = tuple(replace(tile, name=f"t{i}", building=0.1 * (i % 2)) for i in range(40))
    assert [shown.name for shown in choose(many)] == ["t1", "t11", "t21", "t31"]
    assert choose(many[:1]) == many[:1] and choose(()) == ()


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_other_numbers_of_bands_are_shown_too(bands: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, bands), dtype=np.uint8)
    shown = compose(pixels, np.zeros((6, 7), np.uint8), np.full((6, 7), 9, np.uint8))
    assert shown.shape == (6, 3 * 7 + 8, 3) and shown.dtype == np.uint8
    assert (shown[:, :7] == (pixels[..., :3] if bands >= 3 else pixels[..., :1])).all()


def test_weights_and_biases_gets_every_number_and_stays_offline(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fake_wandb(monkeypatch)
    config = tiny_config("run.loggers=['wandb']")
    train(tiles_folder, config, tmp_path, options=CPU)
    assert seen.quiet["mode"] == "offline" and seen.init["dir"] == str(tmp_path)
    assert seen.init["id"] == read_run(tmp_path)["id"] and seen.init["config"]["run"]["seed"] == 0
    assert [step for step, _ in seen.logged] == [3, 6] and seen.finished == 0
    assert {"training/loss", "training/lr", "validation/iou"} <= seen.logged[0][1].keys()


def test_a_logger_that_fails_is_left_out_and_the_training_is_the_same(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = tiny_config("run.loggers=['wandb']", "schedule.epochs=3"), Told()
    fake_wandb(monkeypatch)
    train(tiles_folder, config, tmp_path / "well", options=CPU)
    seen = fake_wandb(monkeypatch, fails_at=2)
    train(tiles_folder, config, tmp_path / "ill", options=CPU, progress=said)
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("well", "ill")]
    assert models[0] == models[1] and len(seen.logged) == 1
    lines = [line for line in said.lines if "wandb" in line]
    assert lines == ["warning: wandb failed and is left out from here on (the service is gone); training goes on"]


def test_a_logger_that_cannot_be_opened_ends_the_run_before_its_first_step(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wandb(monkeypatch)
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **options: 1 / 0)
    with pytest.raises(ConfigError, match=r"wandb cannot be started: division by zero; take it out of run\.loggers"):
        train(tiles_folder, tiny_config("run.loggers=['wandb']"), tmp_path, options=CPU)
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_logger_that_is_not_installed_is_78_before_anything_is_made(
    run: Callable[..., tuple[int, str, str]],
    tiles_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    for module in ("mlflow", "mlflow.tracking", "wandb", "wandb.sdk"):
        monkeypatch.setitem(sys.modules, module, None)
    words = settings(f"run.loggers=['{name}']")
    code, _, err = run("train", tiles_folder, "-o", tmp_path / "run", "-c", "demo", "--device", "cpu", *words)
    assert code == 78 and f"pip install 'aerialseg[{name}]'" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_score_that_does_not_exist_is_not_logged() -> None:
    assert set(scalars(EpochRecord(1, 3, 0.1, 0.5))) == {"training/lr", "training/loss", "training/skipped"}


@pytest.mark.slow
def test_mlflow_itself_keeps_every_number_across_a_resume(tiles_folder: Path, tmp_path: Path) -> None:
    """Needs the extra: pip install 'aerialseg[mlflow]'."""
    tracking = pytest.importorskip("mlflow.tracking")
    pytest.importorskip("alembic")
    folder, config = tmp_path / "a run #1", tiny_config("run.loggers=['mlflow']")

    class AfterTheFirst(Told):
        def say(self, line: str) -> None:
            if line.startswith("epoch 1"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiles_folder, config, folder, options=CPU, progress=AfterTheFirst())
    train(tiles_folder, config, folder, options=replace(CPU, resume=True))
    client = tracking.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("aerialseg").experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["run.seed"] == "0"
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "validation/iou")] == [3, 6]


@pytest.mark.slow
def test_weights_and_biases_itself_writes_below_the_run_and_nowhere_else(tiles_folder: Path, tmp_path: Path) -> None:
    """Needs the extra: pip install 'aerialseg[wandb]'."""
    pytest.importorskip("wandb.sdk")
    folder = tmp_path / "a run #1"
    train(tiles_folder, tiny_config("run.loggers=['wandb']"), folder, options=CPU)
    (written,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert read_run(folder)["id"] in written.name and b"validation/iou" in written.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
