"""Networks by name: what they put out, what is refused before anything is built, and what smp does silently."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from aerialseg.errors import ConfigError
from aerialseg.models import build
from aerialseg.models.build import build_network, check_network
from aerialseg.models.presets import ModelSpec, resolve

SMALL = "tu-test_convnext"  # timm's own test network; like most transformers it has no half-resolution features


def small(**changes: Any) -> ModelSpec:
    return replace(resolve(None, "unet", SMALL), **changes)


@pytest.mark.parametrize("name", ["unet-r18", "segformer-pvt2-b0"])
@pytest.mark.parametrize("bands", [1, 3])
def test_logits_have_one_channel_and_the_full_size(name: str, bands: int) -> None:
    network = build_network(resolve(name, bands=bands)).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(2, bands, 64, 96))
    assert logits.shape == (2, 1, 64, 96)
    assert logits.isfinite().all()


def test_nothing_named_is_the_default_and_any_pair_of_smp_has_a_name() -> None:
    assert resolve().preset == "unet-r34"
    assert resolve(None, "FPN", "resnet18") == ModelSpec("fpn-resnet18", "fpn", "resnet18", {}, 3, "none")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("unet-r99",), "'unet-r99' is unknown, expected one of unet-r18, unet-r34"),
        (("unet-r18", "unet", "resnet18"), "both preset"),
        ((None, "unet", None), "architecture and encoder together"),
        ((None, None, "resnet18"), "architecture and encoder together"),
    ],
)
def test_a_name_that_says_too_little_or_too_much_is_refused(arguments: tuple[Any, ...], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        resolve(*arguments)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (small(architecture="unet9"), "architecture 'unet9' is unknown, expected one of unet"),
        (small(encoder="resnet9"), "encoder 'resnet9' is unknown"),
        (small(encoder="tu-resnet9"), "encoder 'tu-resnet9' is unknown"),
        (small(encoder="tu-hf-hub:someone/network"), "is unknown"),
        (small(encoder="tu-hf_hub:someone/network"), "is unknown"),
        (small(encoder="tu-local-dir:/tmp/network"), "is unknown"),
        (small(encoder="tu-resnet18.no_such_tag"), "cannot be built"),
        (small(bands=0), "at least 1 band"),
        (resolve("segformer-mit-b0"), "non-commercial.*segformer-pvt2-b0.*model.accept_licence = true"),
        (small(encoder="mit_b3"), "non-commercial.*segformer-pvt2-b3.*model.accept_licence = true"),
        (small(encoder="resnet18", encoder_arguments={"drop_path_rate": 0.1}), "'drop_path_rate'.*takes none"),
        (small(encoder_arguments={"drop_pth_rate": 0.1}), "drop_pth_rate.*cannot be built"),
        (small(encoder_arguments={"checkpoint_path": "x.pth"}), "'checkpoint_path' is not for the encoder"),
        (small(encoder_arguments={"pretrained_cfg": "hf-hub:x/y"}), "'pretrained_cfg' is not for the encoder"),
        (small(encoder_arguments={"classes": 7}), "'classes' is not for the encoder"),
        (small(encoder_arguments={"decoder_attention_type": "scse"}), "is not for the encoder"),
    ],
)
def test_a_network_that_cannot_or_may_not_be_built_is_refused(spec: ModelSpec, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        build_network(spec)
    with pytest.raises(ConfigError, match=found):
        check_network(spec, 64)


def test_a_known_encoder_argument_reaches_the_encoder() -> None:
    network = build_network(small(encoder_arguments={"drop_path_rate": 0.5}))
    rates = [float(getattr(module, "drop_prob", 0.0) or 0.0) for module in network.modules()]
    assert max(rates) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (resolve("segformer-pvt2-b0"), 500),
        (resolve(None, "fpn", "resnet18"), 80),
        (resolve(None, "unet", "tu-swin_tiny_patch4_window7_224"), 256),
        (resolve(None, "dpt", "tu-vit_small_patch14_dinov2", encoder_arguments={"dynamic_img_size": True}), 224),
    ],
)
def test_a_tile_size_that_does_not_fit_is_refused_by_one_forward_pass(spec: ModelSpec, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"encoder {spec.encoder} .* {size}x{size}"):
        check_network(spec, size)


def test_an_encoder_argument_can_make_a_tile_size_fit() -> None:
    free = resolve(None, "unet", "tu-swin_tiny_patch4_window7_224", encoder_arguments={"strict_img_size": False})
    check_network(free, 256)


def test_a_network_that_cannot_be_traced_without_numbers_runs_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    class NeedsNumbers(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels[:, :1] if pixels.sum().item() == 0 else pixels

    monkeypatch.setattr(build, "construct", lambda spec, *, pretrained: NeedsNumbers())
    check_network(small(), 32)


def test_an_output_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "construct", lambda spec, *, pretrained: nn.Conv2d(3, 1, 3))
    with pytest.raises(ConfigError, match=r"output is \(1, 1, 62, 62\), expected \(1, 1, 64, 64\)"):
        check_network(small(), 64)


def test_upsampled_logits_stay_where_they_belong() -> None:
    """A ramp in the quarter-size logits must come out as the same ramp, at the centres of the full-size pixels."""
    upsample = build_network(resolve("segformer-pvt2-b0")).get_submodule("segmentation_head.1")
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    found = upsample(ramp)[0, 0, 30]
    expected = (torch.arange(64.0) + 0.5) / 4 - 0.5
    torch.testing.assert_close(found[2:-2], expected[2:-2])


def test_an_empty_skip_leaves_autocast_alone() -> None:
    """smp's zero-channel float32 skip must not turn UNet's half-resolution block into float32."""
    network = build_network(small()).eval()
    seen: list[torch.dtype] = []
    block = network.get_submodule("decoder.blocks.3.conv1")
    block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        network(torch.zeros(1, 3, 64, 64))
    assert seen == [torch.bfloat16]


def test_importing_the_table_does_not_import_torch() -> None:
    code = "import sys, aerialseg.models.presets, aerialseg.models.package; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
