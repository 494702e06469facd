"""Our own encoder: its maps, its arguments, its decoders, and what a batch, a size or a precision may not change."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aerialseg.config import load_config, to_toml
from aerialseg.config.sections import ModelSection
from aerialseg.errors import ConfigError
from aerialseg.models.build import Segmenter, build_network, check_network, input_statistics
from aerialseg.models.mixers import MIXERS
from aerialseg.models.package import ModelCard, load_model, save_model
from aerialseg.models.presets import ModelSpec, resolve
from aerialseg.models.pyramid import PyramidDesign, PyramidEncoder, Scale, parse_design

DECODERS = ("unet", "segformer", "fpn", "upernet")
GUIDE = Path(__file__).parents[2] / "docs" / "mixers.md"
SMALL = {"width": 8, "depths": "1", "window": 4, "tokens": 4}


def spec(architecture: str = "unet", bands: int = 3, **arguments: Any) -> ModelSpec:
    return resolve(None, architecture, "pyramid", encoder_arguments={**SMALL, **arguments}, bands=bands)


@pytest.mark.parametrize("mixer", MIXERS)
def test_features_halve_from_the_input_down_at_any_size(mixer: str) -> None:
    encoder = PyramidEncoder(4, parse_design({**SMALL, "mixers": mixer})).eval()
    for height, width in ((5, 5), (64, 32), (37, 90)):
        with torch.inference_mode():
            maps = encoder(torch.randn(1, 4, height, width))
        assert [item.shape[1] for item in maps] == encoder.out_channels == [4, 16, 8, 16, 40, 64]
        halves = [(-(-height // 2**level), -(-width // 2**level)) for level in range(6)]
        assert [tuple(item.shape[2:]) for item in maps] == halves
        assert all(item.isfinite().all() for item in maps)


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_decoder_takes_it_and_all_of_it_learns(architecture: str) -> None:
    torch.manual_seed(0)
    network = build_network(spec(architecture, bands=2, mixers="conv,window,linear,full")).train()
    logits = network(torch.randn(2, 2, 64, 96))
    assert logits.shape == (2, 1, 64, 96)
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0 or architecture == "upernet", name  # its norms cancel some biases


@pytest.mark.parametrize("mixer", MIXERS)
def test_shapes_are_known_without_numbers(mixer: str) -> None:
    with torch.device("meta"):
        network = build_network(spec("segformer", mixers=mixer)).eval()
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_a_unet_takes_tiles_of_any_size() -> None:
    check_network(spec("unet", mixers="window"), 45)
    check_network(spec("unet", mixers="nystrom"), 5)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    network = build_network(spec(mixers="window,grid,nystrom,latent")).double().eval()
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(network(pixels)[:1], network(pixels[:1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["unet", "segformer"])
def test_half_precision_stays_close(architecture: str, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    network = build_network(spec(architecture, mixers="conv,linear,global,full")).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network(pixels)
        with torch.autocast("cpu", kind):
            found = network(pixels)
            maps = network.get_submodule("encoder")(pixels)
    assert {item.dtype for item in maps[1:]} == {kind}
    assert (found.float() - expected).abs().max() < (0.05 if kind == torch.bfloat16 else 0.005) * expected.abs().max()


def test_stochastic_depth_drops_samples_whole_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    scale, x = Scale(3, 0.4), torch.ones(4000, 3, 2, 2)
    factors = scale(x)[:, 0, 0, 0] / 0.1
    kept = factors > 0
    torch.testing.assert_close(scale.eval()(x), 0.1 * x)
    torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / 0.6))
    assert 0.57 < kept.float().mean() < 0.63
    assert scale(x.bfloat16()).dtype == torch.bfloat16  # or all that follows would be float32 under autocast
    assert (scale.train()(x).flatten(1).std(1) == 0).all()


def test_stochastic_depth_grows_from_nothing_to_what_was_asked() -> None:
    encoder = PyramidEncoder(3, parse_design({"depths": "1,2,1,1", "width": 8, "drop_path": 0.4}))
    drops = [module.drop for module in encoder.modules() if isinstance(module, Scale)]
    assert drops == pytest.approx([rate for rate in (0.0, 0.1, 0.2, 0.3, 0.4) for _ in range(2)])


def test_arguments_become_a_design() -> None:
    assert parse_design({}) == PyramidDesign()
    found = parse_design({"mixers": "conv, conv,window ,full", "depths": "1,1,3,1", "width": 48, "drop_path": 0})
    assert found == PyramidDesign(("conv", "conv", "window", "full"), (1, 1, 3, 1), 48, 8, 64, 0.0)
    assert parse_design({"mixers": "axial"}).mixers == 4 * ("axial",)
    assert parse_design({"depths": 3}).depths == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"mixer": "conv"}, "'mixer' is unknown.*one of mixers, depths"),
        ({"mixers": "windw"}, "'mixers' names 'windw', expected .* of identity, conv"),
        ({"mixers": "conv,full"}, "'mixers' has 2 values"),
        ({"mixers": ""}, "'mixers' names ''"),
        ({"depths": "2,2,0,2"}, "'depths' is '2,2,0,2'"),
        ({"depths": "2,2,x,2"}, "'depths'"),
        ({"depths": "²"}, "'depths'"),
        ({"depths": True}, "'depths' is True"),
        ({"width": 20}, "'width' is 20, expected a multiple of 8"),
        ({"width": 0}, "'width' is 0, expected a number from 8 to 512"),
        ({"width": "32"}, "'width' is '32'"),
        ({"width": True}, "'width' is True"),
        ({"window": 1}, "'window' is 1"),
        ({"window": 7.5}, "'window' is 7.5"),
        ({"tokens": 50}, "'tokens' is 50, expected a square"),
        ({"drop_path": 1.0}, "'drop_path' is 1.0"),
        ({"drop_path": float("nan")}, "'drop_path' is nan"),
        ({"classes": 3}, "'classes' is unknown"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_by_its_name(arguments: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        build_network(resolve(None, "unet", "pyramid", encoder_arguments=arguments))


def test_other_decoders_and_pretrained_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="goes with unet, segformer, fpn, upernet"):
        build_network(spec("dpt"))
    with pytest.raises(ConfigError, match="no pretrained weights: set model"):
        check_network(resolve("unet-pyramid-window", weights="imagenet"), 64)
    assert input_statistics(resolve("unet-pyramid-window")) is None


def test_a_model_file_brings_the_same_network_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    chosen = spec("segformer", mixers="performer,routing,sinkhorn,fourier")
    segmenter = Segmenter(build_network(chosen), (90.0,) * 3, (40.0,) * 3).eval()
    described = (chosen.preset, chosen.architecture, chosen.encoder, dict(chosen.encoder_arguments))
    names = ("preset", "architecture", "encoder", "encoder_arguments")
    card = ModelCard(
        **dict(zip(names, described, strict=True)), bands=3, mean=(90.0,) * 3, std=(40.0,) * 3, tile_size=64
    )
    save_model(tmp_path / "m.safetensors", segmenter, card)
    again, _ = load_model(tmp_path / "m.safetensors")
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again(pixels), segmenter(pixels))


def test_lists_in_a_configuration_become_text(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        '[model]\narchitecture = "unet"\nencoder = "pyramid"\nweights = "none"\n'
        'encoder_arguments = {mixers = ["conv", "conv", "window", "full"], depths = [1, 1, 3, 1], width = 16}\n'
    )
    config = load_config(path)
    assert config.model.encoder_arguments == {"mixers": "conv,conv,window,full", "depths": "1,1,3,1", "width": 16}
    path.write_text(to_toml(config))
    assert load_config(path) == config


def guide_examples() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("number", range(4))
def test_the_examples_of_the_guide_build(number: int) -> None:
    section = ModelSection(**tomllib.loads(guide_examples()[number])["model"])
    chosen = resolve(section.preset, section.architecture, section.encoder, encoder_arguments=section.encoder_arguments)
    check_network(chosen, 64)


def test_the_guide_lists_every_mixer_once() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", GUIDE.read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted(MIXERS)
    assert len(guide_examples()) == 4


def test_encoder_weights_come_from_a_file_of_ours(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = build_network(spec("unet", mixers="linformer"))
    save_file(first.state_dict(), tmp_path / "unet.safetensors")
    again = build_network(replace(spec("fpn", mixers="linformer"), weights=tmp_path / "unet.safetensors"))
    expected = first.get_submodule("encoder").state_dict()
    for name, tensor in again.get_submodule("encoder").state_dict().items():
        assert torch.equal(tensor, expected[name]), name
