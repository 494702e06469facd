"""Every preset of the table: what it says is what is counted, its sizes work, its licence is known, nothing widens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aerialseg.config.sections import ModelSection
from aerialseg.errors import ConfigError, ModelError
from aerialseg.models.build import Segmenter, build_network, check_network, count_network, outline
from aerialseg.models.package import ModelCard, load_model, save_model
from aerialseg.models.presets import NVIDIA, PRESETS, SMP, licence_of, resolve

TRANSFORMERS = [name for name, preset in PRESETS.items() if preset.attention != "none (convolution)"]
SLOW = ("segformer-mit-b1", "segformer-mit-b2", "segformer-mit-b3", "segformer-mit-b4", "segformer-mit-b5")
SLOW += ("segformer-pvt2-b2", "segformer-pvt2-b3", "segformer-pvt2-b4", "segformer-pvt2-b5")
ALL = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PRESETS]


def spec_of(name: str, **changes: Any) -> Any:
    return resolve(name, accept_licence=True, **changes)


@pytest.mark.parametrize("name", ALL)
def test_the_table_states_the_true_parameters_and_multiply_adds(name: str) -> None:
    """The count runs the network once, in shapes alone, on three bands of 256 x 256."""
    parameters, macs = count_network(outline(spec_of(name)), 3, 256)
    assert PRESETS[name].parameters == parameters
    assert PRESETS[name].gmacs == pytest.approx(macs / 1e9, abs=0.006)


SIZED = ("unet-r18", "segformer-pvt2-b0", "upernet-swin-tiny", "dpt-dinov2-small")


@pytest.mark.parametrize(
    "name", [name if name in SIZED else pytest.param(name, marks=pytest.mark.slow) for name in PRESETS]
)
def test_every_preset_takes_four_bands_at_its_size_rule(name: str) -> None:
    multiple = PRESETS[name].size_multiple
    check_network(spec_of(name, bands=4), multiple if multiple > 32 else 96)


PRECISIONS = pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16"])


def train_once(name: str, *, narrow: bool) -> None:
    """One forward and backward pass of a batch of two: logits and gradients are finite, and every parameter has one."""
    torch.manual_seed(0)
    network = build_network(spec_of(name)).train()
    side = max(64, PRESETS[name].size_multiple)
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        logits = network(torch.randn(2, 3, side, side))
    assert logits.shape == (2, 1, side, side)
    assert logits.dtype == (torch.bfloat16 if narrow else torch.float32)
    logits.float().square().mean().backward()
    grads = {key: parameter.grad for key, parameter in network.named_parameters()}
    assert [key for key, grad in grads.items() if grad is None or not grad.isfinite().all()] == []


@PRECISIONS
@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.encoder == "pyramid"])
def test_our_presets_train(name: str, narrow: bool) -> None:
    train_once(name, narrow=narrow)


@pytest.mark.slow
@PRECISIONS
@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.encoder != "pyramid"])
def test_every_preset_trains(name: str, narrow: bool) -> None:
    train_once(name, narrow=narrow)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.encoder.startswith("tu-")])
def test_the_licence_is_the_one_that_timm_records(name: str) -> None:
    from timm.models import get_pretrained_cfg

    settings = get_pretrained_cfg(PRESETS[name].encoder[3:])
    assert settings is not None
    assert PRESETS[name].licence.lower() == settings.license


def test_licences_of_the_rest() -> None:
    for preset in PRESETS.values():
        if preset.encoder.startswith("mit_b"):
            assert preset.licence == NVIDIA
        elif not preset.encoder.startswith("tu-"):
            assert preset.licence == (SMP if preset.encoder != "pyramid" else "MIT, no weights")


def test_a_non_commercial_encoder_is_built_once_its_licence_is_accepted() -> None:
    section = ModelSection(architecture="Unet", encoder="mit_b0", weights="none", accept_licence=True)
    spec = resolve(None, section.architecture, section.encoder, accept_licence=section.accept_licence)
    assert licence_of(spec) == NVIDIA
    check_network(spec, 64)
    with pytest.raises(ConfigError, match="NVIDIA"):
        check_network(resolve(None, section.architecture, section.encoder), 64)


def test_a_model_file_brings_its_acceptance_along_only_where_its_card_names_the_licence(tmp_path: Path) -> None:
    segmenter = Segmenter(build_network(spec_of("segformer-mit-b0")), (90.0,) * 3, (40.0,) * 3).eval()
    for licence in (NVIDIA, ""):
        card = ModelCard(
            preset="segformer-mit-b0",
            architecture="segformer",
            encoder="mit_b0",
            bands=3,
            mean=(90.0,) * 3,
            std=(40.0,) * 3,
            tile_size=64,
            licence=licence,
        )
        save_model(tmp_path / "m.safetensors", segmenter, card)
        if licence:
            assert load_model(tmp_path / "m.safetensors")[1].licence == NVIDIA
        else:
            with pytest.raises(ModelError, match="non-commercial"):
                load_model(tmp_path / "m.safetensors")


def seen_by_unet(name: str) -> list[torch.dtype]:
    """Return the types that the blocks of a UNet decoder convolve under bfloat16 autocast."""
    network = build_network(spec_of(name)).eval()
    found: list[torch.dtype] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].dtype)

    for index in range(5):
        network.get_submodule(f"decoder.blocks.{index}.conv1").register_forward_pre_hook(note)
    side = PRESETS[name].size_multiple
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert network(torch.randn(1, 3, side, side)).isfinite().all()
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "unet-maxvit-tiny" else name
        for name in TRANSFORMERS
        if PRESETS[name].architecture == "unet"
    ],
)
def test_no_decoder_block_is_widened_to_float32(name: str) -> None:
    assert seen_by_unet(name) == 5 * [torch.bfloat16]


def test_a_convolutional_residual_stream_in_float32_is_narrowed_too() -> None:
    assert seen_by_unet("unet-convnext-tiny") == 5 * [torch.bfloat16]
