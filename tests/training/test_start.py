"""What a training starts from: what cannot work is said before anything is downloaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_tiles import tiny_config

from aerialseg.config import TrainConfig
from aerialseg.errors import BadDataError, ConfigError
from aerialseg.models import weights
from aerialseg.training import start

if TYPE_CHECKING:
    from aerialseg.geo.tiles.tileset import TileSet

RESNET = ("model.architecture=linknet", "model.encoder=resnet18", "model.weights=imagenet")


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        pytest.fail("weights are asked for")

    monkeypatch.setattr(weights, "downloading", fail)


@pytest.mark.usefixtures("no_downloads")
def test_a_crop_that_the_network_does_not_take_is_refused_before_a_download(tiles: TileSet) -> None:
    with pytest.raises(ConfigError, match="does not take tiles of 70x70"):
        start.start_fresh(tiles, tiny_config(*RESNET, "data.crop=70"))
    preset = TrainConfig.model_validate({"model": {"preset": "unet-r18"}, "data": {"crop": 70}})
    with pytest.raises(ConfigError, match=r"data\.crop 70: unet-r18 takes multiples of 32, for example 64"):
        start.start_fresh(tiles, preset)


@pytest.mark.usefixtures("no_downloads")
def test_whole_tiles_that_the_network_does_not_take_are_refused_before_a_download(
    tiles: TileSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "SIZE_MULTIPLE", 70)  # validation tiles of 96 px become 140 px
    with pytest.raises(ConfigError, match="does not take tiles of 140x140"):
        start.start_fresh(tiles, tiny_config(*RESNET))
    with pytest.raises(pytest.fail.Exception, match="weights are asked for"):  # without validation none is looked at
        start.start_fresh(tiles, tiny_config(*RESNET, "data.train_on=all"))


@pytest.mark.usefixtures("no_downloads")
def test_a_set_without_a_training_tile_is_refused_before_a_download(tiles: TileSet) -> None:
    validation = replace(tiles, tiles=tiles.of_split("val"))
    with pytest.raises(BadDataError, match="no labelled training tile"):
        start.start_fresh(validation, tiny_config(*RESNET))


@pytest.mark.parametrize("architecture", ["deeplabv3", "deeplabv3plus", "upernet"])
def test_a_batch_of_one_is_refused_where_maps_are_pooled_to_a_pixel(tiles: TileSet, architecture: str) -> None:
    network = (f"model.architecture={architecture}", "model.encoder=tu-test_efficientnet", "model.weights=none")
    with pytest.raises(ConfigError, match=r"data\.batch 1: .* over maps of one pixel.* data\.batch 2 or more"):
        start.start_fresh(tiles, tiny_config(*network, "data.batch=1"))
    network = start.start_fresh(tiles, tiny_config(*network, "data.batch=2")).segmenter.train()
    network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("architecture", ["unet", "linknet", "fpn", "segformer"])
def test_a_batch_of_one_trains_where_nothing_is_pooled_to_a_pixel(tiles: TileSet, architecture: str) -> None:
    network = (f"model.architecture={architecture}", "model.encoder=tu-test_efficientnet", "model.weights=none")
    segmenter = start.start_fresh(tiles, tiny_config(*network, "data.batch=1")).segmenter.train()
    segmenter(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_tiles_of_absurd_values_make_no_model_and_no_network(tiles: TileSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "build_network", lambda spec: pytest.fail("a network is built"))
    with pytest.raises(BadDataError, match=r"no model can be made of these tiles: mean is .*"):
        start.start_fresh(replace(tiles, mean=(1e300,) * 3), tiny_config())
