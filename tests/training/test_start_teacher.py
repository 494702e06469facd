"""A teacher: what it says is learned, on unlabelled ground too; it stays as it is, and a resumed run has the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from small_tiles import NETWORK, settings, tiny_config, write_pair, write_tileset
from told import Told
from torch import nn

from aerialseg.config.sections import DistilSection
from aerialseg.errors import BadDataError, ConfigError, ModelError, Stopped, UsageError
from aerialseg.geo.tiles.tileset import load_tileset, read_manifest, write_manifest
from aerialseg.models.build import Segmenter, build_network
from aerialseg.models.package import ModelCard, load_model, read_card, save_model
from aerialseg.models.presets import resolve
from aerialseg.training import loop, start
from aerialseg.training.data import TileReader
from aerialseg.training.loop import train
from aerialseg.training.losses import distillation_loss
from aerialseg.training.run_folder import TrainOptions
from aerialseg.training.start import load_teacher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BRIGHT = 115.0


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda run, records: None)


class Bright(nn.Module):
    """A known function: building where a smoothed pixel is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 3, 5, 5), 1 / 75))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (nn.functional.conv2d(x, self.weight, padding=2) - BRIGHT)


def save_teacher(path: Path, seed: int = 1, **changes: Any) -> Path:
    torch.manual_seed(seed)
    bands = changes.get("bands", 3)
    spec = resolve(None, NETWORK["architecture"], NETWORK["encoder"], bands=bands)
    mean, std = (95.0,) * bands, (45.0,) * bands
    values = {"preset": spec.preset, "architecture": spec.architecture, "encoder": spec.encoder, "bands": bands,
              "mean": mean, "std": std, "tile_size": 64, "gsd_m": 0.3, **changes}  # fmt: skip
    save_model(path, Segmenter(build_network(spec), mean, std), ModelCard(**values))
    return path


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training tiles, of which the first alone has labels; two to validate."""
    folder = write_tileset(tmp_path_factory.mktemp("unlabelled"), train=6, val=2)
    tiles, body = load_tileset(folder), read_manifest(folder)
    assert body is not None
    changed = []
    for tile in tiles.tiles:
        if tile.split == "train" and tile.name != tiles.tiles[0].name:
            pixels = TileReader(tiles, tiny_config().data, 32).whole(tile)[0].transpose(2, 0, 1)
            write_pair(folder, tile.name, pixels, np.full((96, 96), 255, np.uint8))
            with_data = write_valid(folder, tile.name, pixels)
            assert with_data
            tile = replace(tile, building=0.0, valid=0.0)
        changed.append(tile)
    kept = {key: value for key, value in body.items() if key not in ("format", "digest", "tiles")}
    write_manifest(folder, kept, changed)
    return folder


def write_valid(folder: Path, name: str, pixels: np.ndarray) -> bool:
    """Write the image again without a mask of its own: there is data everywhere, and labels nowhere."""
    import rasterio
    from affine import Affine

    path = folder / "images" / f"{name}.tif"
    grid = {"crs": "EPSG:26914", "transform": Affine(0.3, 0, 616000, 0, -0.3, 3347000), "driver": "GTiff"}
    with rasterio.open(path, "w", count=3, height=96, width=96, dtype="uint8", **grid) as target:
        target.write(pixels)
    with rasterio.open(path) as dataset:
        return bool((dataset.dataset_mask() == 255).all())


@pytest.mark.parametrize("softness", [1.0, 3.0])
def test_the_loss_is_the_cross_entropy_to_the_teacher_over_valid_pixels(softness: float) -> None:
    torch.manual_seed(0)
    logits, taught = torch.randn(2, 1, 7, 9), 4 * torch.randn(2, 1, 7, 9)
    valid = torch.rand(2, 7, 9) > 0.3
    taught[0, 0][~valid[0]] = torch.inf
    section = DistilSection(weight=2.0, temperature=softness)
    found = distillation_loss(logits, taught, valid, section)
    z, q = (x[:, 0][valid].double().numpy() / softness for x in (logits, taught))
    p, t = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-q))
    expected = 2.0 * softness**2 * -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert found.item() == pytest.approx(expected, rel=1e-5) and found.dtype == torch.float32


def test_who_agrees_with_the_teacher_has_nothing_to_learn() -> None:
    taught = torch.randn(1, 1, 8, 8)
    logits = taught.clone().requires_grad_()
    distillation_loss(logits, taught, torch.ones(1, 8, 8, dtype=torch.bool), DistilSection(temperature=2.0)).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-7
    nothing = distillation_loss(logits, taught, torch.zeros(1, 8, 8, dtype=torch.bool), DistilSection())
    assert nothing.item() == 0.0


def test_a_student_learns_on_unlabelled_tiles_what_its_teacher_knows(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels alone weigh next to nothing; the teacher's file stands in for a card, its function is `Bright`."""
    file = save_teacher(tmp_path / "teacher.safetensors")
    teacher = Segmenter(Bright(), (0.0,) * 3, (1.0,) * 3)
    monkeypatch.setattr(start, "load_model", lambda path: (teacher, read_card(path)))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = tiny_config("optimizer.lr=0.01", "schedule.epochs=1", "schedule.steps_per_epoch=30", "loss.bce=1e-6",
                         "loss.dice=0.0", "run.ema=0.5")  # fmt: skip
    train(unlabelled, config, tmp_path / "run", options=TrainOptions("cpu", teacher=file))
    student, card = load_model(tmp_path / "run")
    tiles = load_tileset(unlabelled)
    agreed = buildings = 0.0
    for tile in tiles.of_split("train")[1:]:
        pixels = torch.from_numpy(TileReader(tiles, config.data, 32).whole(tile)[0]).permute(2, 0, 1)[None]
        with torch.inference_mode():
            taught = teacher(pixels) > 0
            agreed += ((student(pixels) > 0) == taught).float().mean().item() / 5
            buildings += taught.float().mean().item() / 5
    assert agreed > 0.93 and 0.1 < buildings < 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert card.training["teacher"] == start.sha256_of(file)


def test_settings_for_a_teacher_without_one_are_said(tiles_folder: Path, tmp_path: Path) -> None:
    said = Told()
    config = tiny_config("distil.weight=2.0", "schedule.epochs=1", "schedule.steps_per_epoch=1", "data.cache=off")
    train(tiles_folder, config, tmp_path, options=TrainOptions("cpu"), progress=said)
    assert any("[distil] is set, but no --teacher" in line for line in said.lines)


def test_a_stopped_student_goes_on_exactly_and_only_with_its_teacher(unlabelled: Path, tmp_path: Path) -> None:
    teacher, other = save_teacher(tmp_path / "t.safetensors"), save_teacher(tmp_path / "other.safetensors", seed=2)
    bytes_before = teacher.read_bytes()
    config = tiny_config("distil.temperature=2.0")
    options = TrainOptions("cpu", teacher=teacher)
    train(unlabelled, config, tmp_path / "whole", options=options)
    with pytest.raises(Stopped):
        train(unlabelled, config, tmp_path / "part", options=options, progress=Told(2, "epoch", idle=False))
    again = replace(options, resume=True)
    with pytest.raises(ConfigError, match="--teacher MODEL"):
        train(unlabelled, config, tmp_path / "part", options=replace(again, teacher=None))
    with pytest.raises(ModelError, match="begun with another teacher"):
        train(unlabelled, config, tmp_path / "part", options=replace(again, teacher=other))
    train(unlabelled, config, tmp_path / "part", options=again)
    models = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "part")]
    assert models[0] == models[1] and teacher.read_bytes() == bytes_before
    train(unlabelled, config, tmp_path / "alone", options=TrainOptions("cpu"))
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() != models[0]
    assert read_card(tmp_path / "alone").training["teacher"] is None
    with pytest.raises(ModelError, match="begun without a teacher"):
        train(unlabelled, config, tmp_path / "alone", options=again)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"bands": 4}, ModelError, "the teacher takes bands"),
        ({"band_indexes": (3, 2, 1)}, ModelError, r"bands \(3, 2, 1\), the tiles hold \(1, 2, 3\)"),
        ({"scale": (0.0, 4000.0)}, ModelError, "value range"),
        ({"gsd_m": 0.5}, BadDataError, "its pixels are 0.3 m, the teacher .* was trained at 0.5 m"),
    ],
)
def test_a_teacher_of_other_tiles_is_refused(
    unlabelled: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], words: str
) -> None:
    teacher = save_teacher(tmp_path / "t.safetensors", **changes)
    with pytest.raises(kind, match=words):
        load_teacher(teacher, load_tileset(unlabelled), tiny_config())


def test_a_teacher_is_neither_written_over_nor_made_up(
    run: Callable[..., tuple[int, str, str]], unlabelled: Path, tmp_path: Path
) -> None:
    teacher = save_teacher(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="would overwrite the input"):
        train(unlabelled, tiny_config(), tmp_path, options=TrainOptions("cpu", teacher=teacher, overwrite=True))
    words = ("train", unlabelled, "-c", "demo", *settings(), "--device", "cpu", "-o", tmp_path / "run", "--teacher")
    assert run(*words, tmp_path / "none.safetensors")[0] == 66
    (tmp_path / "half.safetensors").write_bytes(teacher.read_bytes()[:9000])
    assert run(*words, tmp_path / "half.safetensors")[0] == 78
