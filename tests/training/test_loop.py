"""The whole training on a set of eight small tiles: it learns, repeats itself, stops and goes on exactly."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from affine import Affine
from rasterio.crs import CRS
from small_tiles import NETWORK, tiny_config, write_splits, write_tileset
from told import Told

from aerialseg.counts import ScoreHistogram
from aerialseg.errors import BadDataError, ConfigError, Diverged, ModelError, ResourceError, Stopped
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.tiles.tileset import TileSet, load_tileset, write_index
from aerialseg.models.build import Segmenter, build_network
from aerialseg.models.package import load_model, read_card, save_model
from aerialseg.models.presets import resolve
from aerialseg.progress import Silent
from aerialseg.training import loop
from aerialseg.training.data import TileReader
from aerialseg.training.loop import train
from aerialseg.training.run_folder import TrainOptions

CPU = TrainOptions(device="cpu")


@pytest.fixture(autouse=True)
def _no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings; one test looks at the picture."""
    if "leaves_what_it_promises" not in request.node.name:
        monkeypatch.setattr(loop, "draw_curves", lambda run, records: None)


@pytest.fixture(scope="module")
def finished(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete, uninterrupted run of two epochs of three steps."""
    run = tmp_path_factory.mktemp("finished")
    train(tiles_folder, dropping(), run, options=CPU)
    return run


def config(*more: str) -> Any:
    return tiny_config("optimizer.lr=0.01", "data.cache=off", *more)


def dropping(*more: str) -> Any:
    """Return the configuration of `finished`: its network drops paths at random, so torch's generator matters."""
    return config("model.encoder=tu-test_convnext", "model.encoder_arguments.drop_path_rate=0.5", *more)


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def untimed(run: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in ("images_per_s", "seconds")} for row in rows(run)]


def test_it_learns_and_leaves_what_it_promises(tiles_folder: Path, tiles: TileSet, tmp_path: Path) -> None:
    said = Told()
    longer = config("schedule.epochs=3", "schedule.steps_per_epoch=10")
    report = train(tiles_folder, longer, tmp_path, options=CPU, progress=said)
    assert report.best_iou > 0.85 and report.steps == 30 and report.epochs == 3
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith((".", "events"))}
    assert names == {
        "model.safetensors", "last.ckpt", "previous.ckpt", "config.toml", "run.json", "metrics.csv", "curves.png"
    }  # fmt: skip
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [line for line in said.lines if line.startswith("epoch 3/3: loss")]
    card = read_card(tmp_path)
    assert card.threshold == report.threshold and card.scores["val_iou"] == pytest.approx(report.best_iou)
    assert card.tile_size == 64 and card.gsd_m == 0.3 and card.mean == tiles.mean and card.band_indexes is None
    assert card.training["tiles"]["digest"] == tiles.digest and card.training["config"] == longer.model_dump()
    assert card.training["precision"] == "fp32" and card.training["versions"]["torch"] == torch.__version__
    json.dumps(card.training, allow_nan=False)
    assert str(tmp_path) not in json.dumps(card.training)


def test_the_saved_threshold_and_iou_are_those_of_the_saved_weights(tiles: TileSet, finished: Path) -> None:
    segmenter, card = load_model(finished)
    reader, histogram = TileReader(tiles, dropping().data, 32), ScoreHistogram()
    for tile in tiles.of_split("val"):
        pixels, target, valid = reader.whole(tile)
        with torch.inference_mode():
            logits = segmenter(torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.from_numpy(valid)[None])
        stored = (logits[0, 0].sigmoid() * 254).round().byte().numpy()
        histogram.add(stored, target == 1, target != 255)
    assert histogram.confusion(card.threshold).iou == pytest.approx(card.scores["val_iou"], abs=1e-4)
    assert max(histogram.confusion(t / 254).iou for t in range(1, 254)) == pytest.approx(
        card.scores["val_iou"], abs=1e-4
    )
    assert float(rows(finished)[-1]["iou"]) <= card.scores["val_iou"] + 1e-6


def test_row_34_the_same_seed_gives_the_same_file_whatever_the_threads(
    tiles_folder: Path, finished: Path, tmp_path: Path
) -> None:
    train(tiles_folder, dropping("data.threads=5"), tmp_path / "a", options=CPU)
    train(tiles_folder, dropping("run.seed=1"), tmp_path / "b", options=CPU)
    first, again, other = (load_model(run)[0].state_dict() for run in (finished, tmp_path / "a", tmp_path / "b"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


# Calls of start and advance: 1 start, 2-4 steps, 5-7 start and tiles of validation; 8-14 the second epoch.
@pytest.mark.parametrize("stop_at", [1, 3, 6, 10, 14])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    tiles_folder: Path, finished: Path, tmp_path: Path, stop_at: int
) -> None:
    said = Told(stop_at, starts=True)
    with pytest.raises(Stopped) as caught:
        train(tiles_folder, dropping(), tmp_path, options=CPU, progress=said)
    assert "the same command with --resume goes on" in str(caught.value)
    assert caught.value.exit_code == 143 and (tmp_path / "last.ckpt").is_file()
    torch.manual_seed(12345)
    said = Told()
    report = train(tiles_folder, dropping(), tmp_path, options=replace(CPU, resume=True), progress=said)
    assert report.steps == 6 and weights(tmp_path) == weights(finished)
    assert untimed(tmp_path) == untimed(finished)
    assert any(line.startswith("going on after step") for line in said.lines) == (stop_at > 1)


def test_a_run_that_is_resumed_at_an_epochs_end_prints_no_nan(tiles_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tiles_folder, dropping(), tmp_path, options=CPU, progress=Told(3, "epoch", idle=False))
    said = Told()
    train(tiles_folder, dropping(), tmp_path, options=replace(CPU, resume=True), progress=said)
    first, second = (line for line in said.lines if line.startswith("epoch "))
    assert "nan" not in first and "crops/s" not in first
    assert "crops/s" in second


def test_how_tiles_are_read_may_change_at_a_resume_and_changes_no_weight(
    tiles_folder: Path, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        train(tiles_folder, dropping(), tmp_path / "run", options=CPU, progress=Told(3, starts=True))
    reading = {"threads": 5, "timeout_s": 60.0, "cache": str(tmp_path / "cache")}
    other = dropping()
    other = other.model_copy(update={"data": other.data.model_copy(update=reading)})
    train(tiles_folder, other, tmp_path / "run", options=replace(CPU, resume=True))
    assert weights(tmp_path / "run") == weights(finished)
    assert list((tmp_path / "cache").glob("training-cache/*.tiles"))
    with pytest.raises(ConfigError, match=r"\(optimizer.lr: 0.01 -> 0.02\)"):
        train(tiles_folder, dropping("optimizer.lr=0.02"), tmp_path / "run", options=replace(CPU, resume=True))


@pytest.mark.slow
def test_a_run_stopped_at_every_step_still_ends_alike(tiles_folder: Path, finished: Path, tmp_path: Path) -> None:
    for _ in range(20):
        try:
            train(tiles_folder, dropping(), tmp_path, options=replace(CPU, resume=True), progress=Told(5, starts=True))
        except Stopped:
            continue
        break
    assert weights(tmp_path) == weights(finished)


def test_a_run_that_lost_its_last_checkpoint_ends_alike(tiles_folder: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tiles_folder, dropping(), tmp_path, options=CPU, progress=Told(10, starts=True))
    (tmp_path / "last.ckpt").write_bytes(b"half a checkp")
    said = Told()
    train(tiles_folder, dropping(), tmp_path, options=replace(CPU, resume=True), progress=said)
    assert any("last.ckpt: damaged" in line and "previous.ckpt" in line for line in said.lines)
    assert weights(tmp_path) == weights(finished)


def test_a_finished_run_is_left_alone(tiles_folder: Path, finished: Path, tree_hashes: Any) -> None:
    before = tree_hashes(finished)
    report = train(tiles_folder, dropping(), finished, options=replace(CPU, resume=True))
    assert report.complete_before and report.epochs == 2 and report.best_iou > 0
    assert tree_hashes(finished) == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_resumes_with_its_scaler(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr("aerialseg.training.job.pick_precision", lambda wanted, device: precision)
    short = config()
    report = train(tiles_folder, short, tmp_path / "a", options=CPU)
    assert report.precision == precision and report.best_iou > 0.4
    with pytest.raises(Stopped):
        train(tiles_folder, short, tmp_path / "b", options=CPU, progress=Told(3, starts=True))
    saved = torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["state"]["precision"]
    assert ("scale" in saved) == (precision == "fp16")
    train(tiles_folder, short, tmp_path / "b", options=replace(CPU, resume=True))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_the_loss_scale_goes_on_where_it_was(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aerialseg.training.job.pick_precision", lambda wanted, device: "fp16")
    spoil_steps(monkeypatch, range(0))  # this loss alone is too much for a scale of 2^16, so step 1 halves it
    train(tiles_folder, config("schedule.epochs=1"), tmp_path / "whole", options=CPU)
    with pytest.raises(Stopped):
        train(tiles_folder, config("schedule.epochs=1"), tmp_path / "b", options=CPU, progress=Told(3, starts=True))
    assert torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["state"]["precision"]["scale"] == 2**15
    train(tiles_folder, config("schedule.epochs=1"), tmp_path / "b", options=replace(CPU, resume=True))
    assert rows(tmp_path / "b")[0]["skipped"] == rows(tmp_path / "whole")[0]["skipped"] == "1"
    assert weights(tmp_path / "whole") == weights(tmp_path / "b")


def spoil_steps(monkeypatch: pytest.MonkeyPatch, spoiled: range) -> None:
    """Make the loss infinite at the steps of `spoiled`."""
    count = iter(range(10_000))

    def loss(logits: torch.Tensor, *others: Any) -> torch.Tensor:
        return logits.float().mean() * (torch.inf if next(count) in spoiled else 1.0)

    monkeypatch.setattr(loop, "building_loss", loss)


def test_loss_scaling_may_leave_out_steps_but_not_for_ever(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aerialseg.training.job.pick_precision", lambda wanted, device: "fp16")
    spoil_steps(monkeypatch, range(1, 3))
    said = Told()
    train(tiles_folder, config(), tmp_path / "few", options=CPU, progress=said)
    assert [row["skipped"] for row in rows(tmp_path / "few")] == ["3", "0"]  # and 2^16 is too much at first
    assert any("3 steps skipped by loss scaling" in line for line in said.lines)
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    spoil_steps(monkeypatch, range(2, 10_000))
    with pytest.raises(Diverged, match=r"step 6 "):
        train(tiles_folder, config("schedule.steps_per_epoch=10"), tmp_path / "many", options=CPU)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_model(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_hashes: Any
) -> None:
    spoil_steps(monkeypatch, range(4, 5))
    kept: dict[str, str] = {}

    class Watch(Silent):
        def say(self, line: str) -> None:
            if line.startswith("epoch 1"):
                kept.update({k: v for k, v in tree_hashes(tmp_path).items() if k in ("last.ckpt", "model.safetensors")})

    with pytest.raises(Diverged, match=r"step 5 \(epoch 2\): loss is -?inf.*on tiles city\d") as caught:
        train(tiles_folder, config(), tmp_path, options=CPU, progress=Watch())
    assert caught.value.exit_code == 4 and len(str(caught.value).splitlines()) == 1
    assert len(kept) == 2 and kept.items() <= tree_hashes(tmp_path).items()


def test_gradients_that_are_not_finite_end_the_run_before_the_weights_change(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def loss(logits: torch.Tensor, *others: Any) -> torch.Tensor:
        return (logits.float().abs() * 0.0).sqrt().sum()  # 0, with a gradient of 0 * inf

    monkeypatch.setattr(loop, "building_loss", loss)
    build = loop.build_job

    def keep(*arguments: Any, **named: Any) -> Any:
        job = build(*arguments, **named)
        seen.extend([next(job.model.parameters()), next(job.model.parameters()).detach().clone()])
        return job

    monkeypatch.setattr(loop, "build_job", keep)
    with pytest.raises(Diverged, match="gradient norm nan"):
        train(tiles_folder, config(), tmp_path, options=CPU)
    assert torch.equal(seen[0], seen[1]) and not (tmp_path / "last.ckpt").exists()


def test_memory_that_does_not_suffice_becomes_advice(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Segmenter, pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Segmenter, "forward", forward)
    with pytest.raises(ResourceError, match=r"too little memory for 4 crops of 64 px.*--set data\.batch=2"):
        train(tiles_folder, config(), tmp_path, options=CPU)


def test_patience_ends_a_run_that_gets_no_better(tiles_folder: Path, tmp_path: Path) -> None:
    stubborn = config("schedule.epochs=30", "schedule.steps_per_epoch=1", "schedule.patience=2", "optimizer.lr=1e-12")
    report = train(tiles_folder, stubborn, tmp_path, options=CPU)
    assert report.epochs < 30 and report.epochs - report.best_epoch == 2
    assert train(tiles_folder, stubborn, tmp_path, options=replace(CPU, resume=True)).complete_before


def test_without_validation_tiles_the_newest_weights_and_the_configured_threshold_are_saved(tmp_path: Path) -> None:
    folder, said = write_tileset(tmp_path / "tiles", val=0), Told()
    report = train(folder, config("run.threshold=0.4"), tmp_path / "run", options=CPU, progress=said)
    assert report.best_epoch == 2 and np.isnan(report.best_iou) and report.threshold == 0.4
    assert any("no validation tiles (the tile set has none)" in line and "0.4" in line for line in said.lines)
    assert read_card(tmp_path / "run").threshold == 0.4 and read_card(tmp_path / "run").scores == {}
    assert "validation" not in said.labels and rows(tmp_path / "run")[0]["iou"] == ""


def test_a_refit_trains_on_all_tiles(tiles_folder: Path, tmp_path: Path) -> None:
    said = Told()
    refit = config("data.train_on=all", "schedule.epochs=1", "schedule.steps_per_epoch=0")
    train(tiles_folder, refit, tmp_path, options=CPU, progress=said)
    assert any("from 8 tiles, 0 tiles to validate" in line for line in said.lines)
    assert rows(tmp_path)[0]["step"] == "5"  # 8 tiles of 96 px, a quarter of two of them empty, in crops of 64 by fours


def test_validation_without_a_single_building_still_saves_a_model(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path / "tiles", val=1)
    tiles = load_tileset(folder)
    import rasterio

    with rasterio.open(tiles.mask_path(tiles.of_split("val")[0]), "r+") as mask:
        mask.write(np.zeros((1, 96, 96), np.uint8))
    report = train(folder, config(), tmp_path / "run", options=CPU)
    assert report.model.is_file() and 0 < read_card(tmp_path / "run").threshold < 1


def test_the_split_edited_in_the_index_is_obeyed(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path / "tiles")
    splits = {tile.name: tile.split for tile in load_tileset(folder).tiles}
    write_splits(folder, {name: "train" if name.startswith("city1_") else "val" for name in splits})
    said = Told()
    train(folder, config("schedule.epochs=1"), tmp_path / "run", options=CPU, progress=said)
    assert any("from 1 tile, 7 tiles to validate" in line for line in said.lines)


def test_validation_on_training_ground_is_said(tmp_path: Path) -> None:
    folder, said = write_tileset(tmp_path / "tiles"), Told()
    grid = GeoBox(96, 96, Affine(0.3, 0, 616000, 0, -0.3, 3347000), CRS.from_epsg(26914))
    tiles = load_tileset(folder).tiles
    write_index(folder / "index.gpkg", tiles, {tile.scene: grid for tile in tiles})
    train(folder, config("schedule.epochs=1"), tmp_path / "run", options=CPU, progress=said)
    assert any("2 of 2 validation tiles lie on the ground of training tiles (scene city7 on" in x for x in said.lines)


def test_a_set_without_training_tiles_is_refused(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path / "tiles", train=2, val=0)
    write_splits(folder, {tile.name: "val" for tile in load_tileset(folder).tiles})
    with pytest.raises(BadDataError, match="no labelled training tile"):
        train(folder, config(), tmp_path / "run", options=CPU)


@pytest.mark.parametrize("bands", [1, 4])
def test_other_than_three_bands_are_trained(tmp_path: Path, bands: int) -> None:
    folder = write_tileset(tmp_path / "tiles", bands=bands)
    report = train(folder, config("schedule.epochs=1"), tmp_path / "run", options=CPU)
    card = read_card(report.model)
    assert card.bands == bands
    assert (card.band_indexes, card.scale) == (((4, 1, 2, 3), (0.0, 4000.0)) if bands == 4 else (None, None))


def test_fine_tuning_starts_from_the_models_weights_and_keeps_its_network(
    tiles_folder: Path, finished: Path, tmp_path: Path
) -> None:
    still = tiny_config(
        "optimizer.lr=1e-12", "optimizer.weight_decay=0", "schedule.epochs=1", "model.encoder=tu-test_resnet"
    )
    said = Told()
    train(tiles_folder, still, tmp_path, options=replace(CPU, start_from=finished), progress=said)
    before, after = load_model(finished), load_model(tmp_path)
    assert after[1].encoder == before[1].encoder and after[1].encoder_arguments == before[1].encoder_arguments
    assert any("that is trained, not the configuration's" in line for line in said.lines)
    assert after[1].training["started_from"] and after[1].training["config"]["model"]["encoder"] == before[1].encoder
    for name, parameter in before[0].named_parameters():
        assert torch.allclose(parameter, after[0].state_dict()[name], atol=1e-6), name
    resumed = replace(CPU, start_from=finished, resume=True)
    assert train(tiles_folder, still, tmp_path, options=resumed).complete_before


def save_other(path: Path, *, bands: int = 3, **card: Any) -> Path:
    spec = resolve(None, NETWORK["architecture"], NETWORK["encoder"], bands=bands)
    mean, std = (90.0,) * bands, (40.0,) * bands
    example = read_card_values(spec, mean, std)
    save_model(path, Segmenter(build_network(spec), mean, std), replace(example, **card))
    return path


def read_card_values(spec: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    from aerialseg.models.package import ModelCard

    names = {"preset": spec.preset, "architecture": spec.architecture, "encoder": spec.encoder}
    return ModelCard(**names, bands=spec.bands, mean=mean, std=std, tile_size=64)


def test_fine_tuning_names_a_different_scale_on_the_ground_and_other_bands(tiles_folder: Path, tmp_path: Path) -> None:
    model = save_other(tmp_path / "m.safetensors", gsd_m=1.0, band_indexes=(4, 3, 2))
    said = Told()
    short = config("schedule.epochs=1")
    train(tiles_folder, short, tmp_path / "run", options=replace(CPU, start_from=model), progress=said)
    text = "\n".join(said.lines)
    assert "was trained at 1 m per pixel, the tiles have 0.3 m" in text
    assert "was trained on bands (4, 3, 2), the tiles hold all" in text
    card = read_card(tmp_path / "run")
    assert card.band_indexes is None and card.gsd_m == 0.3 and card.mean == (90.0,) * 3


def test_fine_tuning_refuses_another_number_of_bands(tiles_folder: Path, tmp_path: Path) -> None:
    model = save_other(tmp_path / "m.safetensors", bands=4)
    with pytest.raises(ModelError, match="takes 4 bands, the tiles have 3"):
        train(tiles_folder, config(), tmp_path / "run", options=replace(CPU, start_from=model))
    assert not (tmp_path / "run" / "config.toml").exists()


def test_without_averaging_the_trained_weights_themselves_are_saved(tiles_folder: Path, tmp_path: Path) -> None:
    train(tiles_folder, config("run.ema=0", "schedule.patience=0"), tmp_path, options=CPU)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state"]
    assert state["average"] is None
    if state["standing"]["best_epoch"] == 2:
        saved = load_model(tmp_path)[0].state_dict()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in state["model"].items())
