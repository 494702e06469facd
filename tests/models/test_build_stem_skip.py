"""The stem skip: features at stride 2 for encoders that have none, in training, in the model file and in predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from aerialseg.errors import ConfigError
from aerialseg.models.build import Segmenter, build_network, check_network, count_network, outline
from aerialseg.models.package import load_model, save_model
from aerialseg.models.presets import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aerialseg.models.package import ModelCard

STEMLESS = "tu-test_convnext"


def spec_of(architecture: str = "unet", encoder: str = STEMLESS, **arguments: Any) -> Any:
    return resolve(None, architecture, encoder, encoder_arguments=arguments or {"stem_skip": True})


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ["unet", "unetplusplus"])
def test_what_the_stem_sees_reaches_the_logits_at_the_edges_of_roofs(architecture: str, pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = build_network(spec_of(architecture)).eval()
    stem = network.get_submodule("stem")
    assert stem(pixels).shape == (2, 32, 32, 32)
    with torch.inference_mode():
        before = network(pixels)
        stem[-1].weight.mul_(2)
        assert (network(pixels) - before).abs().max() > 1e-3 * before.std()


def test_the_stem_learns_beside_the_encoder_not_in_it(pixels: torch.Tensor) -> None:
    network = build_network(spec_of()).train()
    network(pixels).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.get_submodule("stem").parameters())
    plain = build_network(resolve(None, "unet", STEMLESS)).get_submodule("encoder").state_dict()
    assert network.get_submodule("encoder").state_dict().keys() == plain.keys()


def test_the_encoder_alone_is_filled_by_a_file_of_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = build_network(resolve(None, "unet", STEMLESS))
    torch.save(plain.get_submodule("encoder").state_dict(), tmp_path / "w.pth")
    settings = {"encoder_arguments": {"stem_skip": True}, "weights": tmp_path / "w.pth"}
    network = build_network(resolve(None, "unet", STEMLESS, **settings))
    for name, tensor in plain.get_submodule("encoder").state_dict().items():
        assert torch.equal(network.get_submodule("encoder").state_dict()[name], tensor)


def test_half_resolution_is_computed_in_the_narrow_type(pixels: torch.Tensor) -> None:
    """smp's own dummy of zero channels would widen that block to float32."""
    network, found = build_network(spec_of()).eval(), []
    for name in ("stem", "decoder.blocks.3.conv1", "decoder.blocks.4.conv1"):
        network.get_submodule(name).register_forward_hook(lambda _, given, made: found.extend((given[0], made)))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        network(pixels)
    assert [item.dtype for item in found] == [torch.float32, *5 * [torch.bfloat16]]
    assert found[2].shape[1] == 64 + 32  # decoder and stem


def count(spec: Any) -> tuple[int, int]:
    return count_network(outline(spec), spec.bands, 64)


def test_its_multiply_adds_are_those_of_its_two_convolutions_and_of_the_wider_block() -> None:
    with_stem, plain = count(spec_of()), count(spec_of(stem_skip=False))
    weights = 9 * (3 * 32 + 32 * 32 + 32 * 32)  # the stem's two, and 32 more channels into 32 of the decoder
    assert with_stem[1] - plain[1] == 32 * 32 * weights
    assert with_stem[0] - plain[0] == weights + 32 + 2 * 32 + 32  # biases, and GroupNorm


def test_a_model_file_brings_its_stem_along(
    tmp_path: Path, card: Callable[..., ModelCard], run: Any, scene_file: Any
) -> None:
    torch.manual_seed(0)
    saved = Segmenter(build_network(spec_of()), card().mean, card().std).eval()
    path = tmp_path / "m.safetensors"
    save_model(path, saved, card(encoder=STEMLESS, encoder_arguments={"stem_skip": True}))
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(load_model(path)[0](pixels), saved(pixels))
    scene = scene_file(tmp_path / "a.tif")
    code, _, err = run("predict", scene, "-m", path, "-o", tmp_path / "out", "--device", "cpu")
    assert code == 0 and (tmp_path / "out" / "a.tif").is_file(), err


@pytest.mark.parametrize(
    ("architecture", "encoder", "value", "reason"),
    [
        ("unet", "resnet18", True, "resnet18 has features at stride 2 of its own"),
        ("unet", "tu-test_efficientnet", True, "has features at stride 2 of its own"),
        ("fpn", STEMLESS, True, "the decoder of fpn has no skip at stride 2"),
        ("segformer", STEMLESS, True, "the decoder of segformer has no skip"),
        ("unet", STEMLESS, 1, "is 1, expected true or false"),
        ("unet", "pyramid", True, "unknown to encoder pyramid"),
    ],
)
def test_where_it_has_no_place_it_is_refused_in_a_line(
    architecture: str, encoder: str, value: Any, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        check_network(spec_of(architecture, encoder, stem_skip=value), 64)
    assert "\n" not in str(caught.value)


def test_false_leaves_the_network_as_it_is() -> None:
    assert count(spec_of(stem_skip=False)) == count(resolve(None, "unet", STEMLESS))
    assert count(spec_of("fpn", "resnet18", stem_skip=False)) == count(resolve(None, "fpn", "resnet18"))
