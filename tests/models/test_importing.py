"""Weights of another program: what is imported predicts as smp's own network does, and what does not fit is named."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from aerialseg.errors import ModelError, UsageError
from aerialseg.models.importing import Normalisation, PredictDefaults, import_model
from aerialseg.models.package import load_model, read_card
from aerialseg.models.presets import resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]

ENCODERS = ("tu-test_efficientnet", "tu-test_resnet")
NUMBERS = count()
ASKED = ("--white", "1", "--mean", "0.5", "--std", "0.25")


def network_of(architecture: str, encoder: str, bands: int = 3, classes: int = 1) -> nn.Module:
    """Return smp's network with random weights and running statistics that are not those of a fresh one."""
    network = smp.create_model(architecture, encoder, encoder_weights=None, in_channels=bands, classes=classes)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval()


def save(path: Path, state: dict[str, torch.Tensor], wrapper: str, prefix: str) -> Path:
    """Write a state dict the way that other programs do."""
    named = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in named.items()}, path)
    else:
        torch.save({wrapper: named, "epoch": 7} if wrapper else named, path)
    return path


@settings(
    max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    architecture=st.sampled_from(["unet", "linknet", "manet", "fpn", "segformer"]),
    encoder=st.sampled_from(ENCODERS),
    bands=st.integers(1, 5),
    suffix=st.sampled_from([".pth", ".pt", ".safetensors"]),
    wrapper=st.sampled_from(["", "state_dict", "model_state_dict", "model"]),
    prefix=st.sampled_from(["", "module.", "model.", "module.model.", "_orig_mod."]),
    largest=st.sampled_from([1, 255]),
    seed=st.integers(0, 999),
)
def test_an_imported_network_predicts_what_smp_predicts(tmp_path: Path, **case: Any) -> None:
    torch.manual_seed(case["seed"])
    bands, largest = case["bands"], case["largest"]
    theirs = network_of(case["architecture"], case["encoder"], bands)
    for module in theirs.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = False  # what import says that it does
    place = tmp_path / f"{next(NUMBERS)}"
    weights = save(place.with_suffix(case["suffix"]), theirs.state_dict(), case["wrapper"], case["prefix"])
    mean, std = torch.rand(bands) * largest, (0.1 + torch.rand(bands)) * largest
    if largest == 255:
        mean += 1.01
    spec = resolve(None, case["architecture"], case["encoder"], bands=bands)
    pixels = Normalisation(tuple(mean.tolist()), tuple(std.tolist()), largest)
    out = tmp_path / f"{next(NUMBERS)}.safetensors"
    import_model(weights, out, spec, pixels=pixels, habits=PredictDefaults(tile_size=64))
    ours, card = load_model(out)
    scene = torch.randint(0, 256, (2, bands, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        by_hand = theirs((scene * (largest / 255) - mean[:, None, None]) / std[:, None, None])
        found = ours(scene)
    assert torch.allclose(found, by_hand, rtol=1e-3, atol=1e-4 * float(by_hand.abs().max()))
    assert card.bands == bands


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(tmp_path_factory.mktemp("w") / "w.pth", network_of("unet", ENCODERS[0]).state_dict(), "", "")


def call(run: Run, weights: Path, out: Path, *more: str, encoder: str = ENCODERS[0]) -> tuple[int, str, str]:
    return run("import", weights, "-o", out, "--arch", "unet", "--encoder", encoder, "--tile-size", 64, *ASKED, *more)


def test_the_card_says_what_was_asked_for_and_nothing_of_places(run: Run, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    more = ("--gsd", "0.3", "--threshold", "0.4", "--overlap", "0.5")
    assert call(run, weights, out, *more)[::2] == (0, "")
    card = read_card(out)
    assert card.mean == (127.5,) * 3 and card.std == (63.75,) * 3
    assert (card.gsd_m, card.threshold, card.overlap, card.tile_size) == (0.3, 0.4, 0.5, 64)
    assert str(tmp_path).encode() not in out.read_bytes() and b"w.pth" not in out.read_bytes()
    again = tmp_path / "again.safetensors"
    found = json.loads(call(run, weights, again, *more, "--json")[1])
    assert (found["model"], found["gsd_m"], found["notes"]) == (str(again), 0.3, [])
    assert again.read_bytes() == out.read_bytes()


def test_an_imported_model_predicts_and_is_trained_further(
    run: Run, weights: Path, tmp_path: Path, scene_file: Any
) -> None:
    out, scene = tmp_path / "m.safetensors", scene_file(tmp_path / "town1.tif")
    assert call(run, weights, out)[0] == 0
    assert run("predict", scene, "-m", out, "-o", tmp_path / "out", "--device", "cpu")[0] == 0
    assert (tmp_path / "out" / "town1.tif").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("decoder.blocks.0.conv1.0.weight"), "1 tensors missing (decoder.blocks.0.conv1.0.w"),
        (lambda state: state.update({"encoder.extra": torch.ones(1)}), "1 tensors unexpected (encoder.extra)"),
        (lambda state: state.update({"encoder.model.conv_stem.weight": torch.ones(4, 4)}), "is (4, 4), expected ("),
        (lambda state: state["segmentation_head.0.bias"].fill_(torch.nan), "segmentation_head.0.bias holds values"),
        (lambda state: state.clear(), "tensors missing"),
    ],
)
def test_what_does_not_fit_is_named(run: Run, weights: Path, tmp_path: Path, change: Any, words: str) -> None:
    state = torch.load(weights)
    change(state)
    out = tmp_path / "m.safetensors"
    code, _, err = call(run, save(tmp_path / "bad.pth", state, "", ""), out)
    assert code == 78 and words in err and "bad.pth" in err and err.count("\n") == 1
    assert not out.exists()


def test_several_classes_are_refused(run: Run, tmp_path: Path) -> None:
    state = network_of("unet", ENCODERS[0], classes=4).state_dict()
    code, _, err = call(run, save(tmp_path / "four.pth", state, "", ""), tmp_path / "m.safetensors")
    assert code == 78 and "has 4 output classes" in err and "expected 1: building" in err


def test_what_lies_beside_the_network_is_left_out_and_said(run: Run, weights: Path, tmp_path: Path) -> None:
    """segmentation_models_pytorch's own Lightning example keeps mean and std so."""
    state = {f"model.{name}": tensor for name, tensor in torch.load(weights).items()} | {"mean": torch.ones(1, 3, 1, 1)}
    code, _, err = call(run, save(tmp_path / "last.ckpt", state, "state_dict", ""), tmp_path / "m.safetensors")
    assert code == 0 and "left out what is beside the network: mean" in err


def test_half_precision_weights_become_float32(run: Run, weights: Path, tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in torch.load(weights).items()}
    assert call(run, save(tmp_path / "half.pth", halves, "", ""), tmp_path / "m.safetensors")[0] == 0
    assert {tensor.dtype for tensor in load_model(tmp_path / "m.safetensors")[0].parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("mean", "largest"), [((0.485, 0.456, 0.406), 255), ((123.7, 116.3, 103.5), 1), ((0.4, 30.0, 0.4), 1)]
)
def test_a_mean_on_the_other_scale_is_refused(mean: tuple[float, ...], largest: int) -> None:
    with pytest.raises(UsageError, match="not on a scale where white is"):
        Normalisation(mean, (0.2,), largest)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--mean", "0.1,0.2"), 2, "2 values for 3 bands"),
        (("--std", "0"), 2, "give values above 0"),
        (("--std", "nan"), 2, "finite"),
        (("--gsd", "-1"), 2, "--gsd -1"),
        (("--threshold", "1"), 2, "--threshold 1"),
        (("--overlap", "1"), 2, "--overlap 1"),
        (("--encoder", "tu-test_vit"), 78, "tu-test_vit"),
        (("--bands", "4"), 78, "tensor encoder.model.conv_stem.weight is"),
        (("--encoder", "resnet999"), 78, "unknown"),
        (("--preset", "unet-r18"), 78, "give one or the other"),
        (("--encoder-argument", "checkpoint_path=/etc/passwd"), 78, "remove it"),
        (("--encoder-argument", "x"), 2, "KEY=VALUE"),
    ],
)
def test_a_wrong_option_is_one_line(
    run: Run, weights: Path, tmp_path: Path, more: tuple[str, ...], code: int, words: str
) -> None:
    found, out, err = call(run, weights, tmp_path / "m.safetensors", *more)
    assert (found, out) == (code, "") and words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_file_stays_unless_overwrite_says_so(run: Run, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("mine")
    assert call(run, weights, out)[0] == 73 and out.read_text() == "mine"
    assert call(run, weights, out, "--overwrite")[0] == 0 and read_card(out).bands == 3
    code, _, err = call(run, out, out, "--overwrite")
    assert code == 2 and "would overwrite the input" in err


def test_a_model_file_of_ours_is_no_foreign_one(run: Run, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    call(run, weights, out)
    code, _, err = call(run, out, tmp_path / "n.safetensors")
    assert code == 78 and "is a model file of aerialseg already" in err


def test_a_checked_failure_is_a_model_error(weights: Path, tmp_path: Path) -> None:
    spec = resolve(None, "unet", ENCODERS[1])
    with pytest.raises(ModelError, match=f"expected unet with {ENCODERS[1]} for 3 bands"):
        pixels = Normalisation((0.5,), (0.2,), 1)
        import_model(weights, tmp_path / "m.safetensors", spec, pixels=pixels, habits=PredictDefaults(tile_size=64))
