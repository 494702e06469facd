"""Where an encoder's weights come from: local files in every usual shape, a hub that answers, and one that does not."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from aerialseg.errors import ConfigError, ModelError, NoInputError
from aerialseg.models import weights
from aerialseg.models.build import build_network, input_statistics
from aerialseg.models.presets import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor, nn

ENCODERS = ("resnet18", "tu-test_convnext")


def encoder(name: str, weights: str | Path = "none", bands: int = 3) -> nn.Module:
    return build_network(resolve(None, "unet", name, bands=bands, weights=weights)).get_submodule("encoder")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module", params=ENCODERS)
def donor(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor]]:
    """An encoder's name and the random weights that every file below is made of."""
    torch.manual_seed(5)
    return request.param, encoder(request.param).state_dict()


@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder.", "network.encoder."])
def test_a_local_file_fills_the_encoder_whatever_its_names_begin_with(
    donor: tuple[str, dict[str, Tensor]], prefix: str, tmp_path: Path
) -> None:
    name, tensors = donor
    content = {f"{prefix}{key}": tensor.clone() for key, tensor in tensors.items()}
    if prefix:
        content["decoder.somewhere.weight"] = torch.ones(1)
    save_file(content, tmp_path / "w.safetensors")
    assert same(encoder(name, tmp_path / "w.safetensors").state_dict(), tensors)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_a_pth_file_may_carry_a_classifier_and_a_wrapping(
    donor: tuple[str, dict[str, Tensor]], wrap: str | None, tmp_path: Path
) -> None:
    name, tensors = donor
    content: dict[str, Any] = {**tensors, "fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}
    torch.save({wrap: content, "epoch": 3} if wrap else content, tmp_path / "w.pth")
    assert same(encoder(name, tmp_path / "w.pth").state_dict(), tensors)


@pytest.mark.parametrize("name", ["test_convnext", "pvt_v2_b0", "resnet18"])
def test_timm_s_own_file_of_the_whole_network_fits(name: str, tmp_path: Path) -> None:
    """timm spells the same tensors differently in its plain networks and in its feature extractors."""
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    spec = resolve(None, "unet", f"tu-{name}", weights=tmp_path / "w.pth")
    network = build_network(spec).get_submodule("encoder.model")
    pixels = torch.randn(1, 3, 64, 64)
    reference = timm.create_model(name, features_only=True)
    reference.load_state_dict({key: whole.state_dict()[_plain(key, whole)] for key in reference.state_dict()})
    with torch.inference_mode():
        for ours, theirs in zip(network.eval()(pixels)[-2:], reference.eval()(pixels)[-2:], strict=True):
            torch.testing.assert_close(ours, theirs)


def _plain(name: str, whole: nn.Module) -> str:
    (found,) = [key for key in whole.state_dict() if key.replace(".", "_") == name.replace(".", "_")]
    return found


def test_an_aerialseg_model_lends_its_encoder(model_file: Path, segmenter: nn.Module) -> None:
    found = encoder("tu-test_efficientnet", model_file).state_dict()
    assert same(found, segmenter.get_submodule("network.encoder").state_dict())


@pytest.mark.parametrize("bands", [1, 4, 8])
def test_a_first_convolution_of_three_bands_is_adapted(bands: int, tmp_path: Path) -> None:
    """As timm does: one band gets the sum, more repeat the three; either way grey excites it as before."""
    three = encoder("resnet18")
    torch.save(three.state_dict(), tmp_path / "w.pth")
    weight = three.get_submodule("conv1").weight
    expected = weight.sum(1, keepdim=True) if bands == 1 else weight.repeat(1, 3, 1, 1)[:, :bands] * 3 / bands
    torch.testing.assert_close(encoder("resnet18", tmp_path / "w.pth", bands).get_submodule("conv1").weight, expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("layer1.0.conv1.weight"), r"1 missing \(layer1_0_conv1_weight\)"),
        (lambda tensors: tensors.update({"layer9.weight": torch.ones(1)}), r"1 unexpected \(layer9_weight\)"),
        (lambda tensors: tensors.update({"conv1.weight": torch.ones(64, 3, 5, 5)}), r"conv1_weight is \(64, 3, 5, 5\)"),
        (lambda tensors: tensors.clear(), r"\d+ missing \(.*, \.\.\.\)"),
    ],
)
def test_a_file_of_another_network_is_refused_by_name(change: Any, said: str, tmp_path: Path) -> None:
    tensors = dict(encoder("resnet18").state_dict())
    change(tensors)
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=rf"w\.pth.*{said}"):
        encoder("resnet18", tmp_path / "w.pth")


def test_the_weights_of_a_deeper_sibling_are_refused(tmp_path: Path) -> None:
    """resnet34 holds every tensor that resnet18 wants, and more."""
    torch.save(encoder("resnet34").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"0 missing, .* unexpected"):
        encoder("resnet18", tmp_path / "w.pth")


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_with_code_in_it_is_refused_unopened(name: str, old_format: bool, tmp_path: Path) -> None:
    content = {"conv1.weight": Trap(tmp_path / "sprung")}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ModelError, match="cannot be read as tensors only"):
        encoder("resnet18", tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", b"\x80\x04broken"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_broken_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        encoder("resnet18", tmp_path / name)


def test_no_file_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"w\.pth: no such file.*model\.weights=none"):
        encoder("resnet18", tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["tu-hiera_tiny_224", "tu-convnextv2_tiny", "tu-resnet50.fb_swsl_ig1b_ft_in1k"])
def test_pretrained_weights_without_a_permissive_licence_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"licen|cc-by-nc"):
        build_network(resolve(None, "unet", name, weights="imagenet"))


def test_an_encoder_without_imagenet_weights_is_a_mistake_in_the_configuration(silent_hub: None) -> None:
    with pytest.raises(ConfigError, match="no usable imagenet weights"):
        build_network(resolve(None, "unet", "resnext101_32x4d", weights="imagenet"))


def test_statistics_are_those_the_encoder_was_trained_with() -> None:
    mean, std = input_statistics(resolve("segformer-pvt2-b0", weights="imagenet")) or ((), ())
    assert mean == pytest.approx((123.675, 116.28, 103.53))
    assert std == pytest.approx((58.395, 57.12, 57.375))


def test_statistics_in_units_of_255_stay_as_they_are(silent_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from segmentation_models_pytorch import encoders

    settings = {"mean": [104.0, 117.0, 128.0], "std": [1.0, 1.0, 1.0], "input_range": [0, 255]}
    monkeypatch.setattr(encoders, "get_preprocessing_params", lambda name: settings)
    statistics = input_statistics(resolve(None, "unet", "bn-something", weights="imagenet"))
    assert statistics == ((104.0, 117.0, 128.0), (1.0, 1.0, 1.0))


def test_statistics_are_the_tiles_own_without_pretrained_weights_or_with_other_bands() -> None:
    assert input_statistics(resolve("segformer-pvt2-b0")) is None
    assert input_statistics(resolve("segformer-pvt2-b0", bands=4, weights="imagenet")) is None


@pytest.fixture
def silent_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that takes connections and never answers, and an empty cache."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(weights, "HUB_TIMEOUT_S", 0.3)
        yield


@pytest.mark.parametrize("name", ["unet-r18", "segformer-pvt2-b0"])
def test_a_hub_that_does_not_answer_is_said_within_seconds(silent_hub: None, name: str) -> None:
    began = time.monotonic()
    with pytest.raises(
        NoInputError, match=r"HF_HOME, .*http://127.*cannot be reached; copy it.* or --set model\.weights=none"
    ):
        build_network(resolve(name, weights="imagenet"))
    assert time.monotonic() - began < 10
    assert constants.HF_HUB_OFFLINE is False


class Page(BaseHTTPRequestHandler):
    """A hub whose first page alone is let through; what is behind it ends in a proxy, or nowhere."""

    status: int | None = 503

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(200)
            self.end_headers()
        elif self.status is not None:
            self.send_error(self.status)
        else:
            time.sleep(5)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize("status", [502, 503, 504, None])
def test_a_hub_that_is_there_and_gives_no_files_is_said_at_once(
    silent_hub: None, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Page, "status", status)
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        began = time.monotonic()
        with pytest.raises(NoInputError, match="cannot be reached"):
            build_network(resolve("unet-r18", weights="imagenet"))
        waited = time.monotonic() - began
        server.shutdown()
    assert waited < 4


def test_that_nothing_is_to_be_downloaded_is_said_and_no_hub_is_asked(
    silent_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "hub_answers", None)
    with pytest.raises(NoInputError, match=r"are not in HF_HOME, .*, and HF_HUB_OFFLINE is set; copy it"):
        build_network(resolve("unet-r18", weights="imagenet"))


@pytest.mark.parametrize("name", ["unet-r18", "segformer-pvt2-b0"])
def test_what_was_downloaded_before_is_used_without_a_hub(
    silent_hub: None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries' own loading, from a cache laid out as the hub's client leaves it."""
    torch.manual_seed(7)
    spec = resolve(name)
    if name == "unet-r18":
        repository, revision = "smp-hub--resnet18.imagenet", "3f2325ff978283d47aa6a1d6878ca20565622683"
        tensors = build_network(spec).get_submodule("encoder").state_dict()
    else:
        repository, revision = "timm--pvt_v2_b0.in1k", "0" * 40
        tensors = timm.create_model("pvt_v2_b0").state_dict()
    folder = tmp_path / "cache" / f"models--{repository}"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    settings = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_range": [0, 1]}
    (folder / "snapshots" / revision / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "snapshots" / revision / "model.safetensors")
    loaded = resolve(name, weights="imagenet")
    first = next(build_network(loaded).get_submodule("encoder").parameters())
    assert any(torch.equal(first, tensor) for tensor in tensors.values())
    assert (input_statistics(loaded) or ((), ()))[0] == pytest.approx((123.675, 116.28, 103.53))


class Refuse(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_any_answer_of_the_hub_counts_and_silence_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert weights.hub_answers(f"http://127.0.0.1:{server.server_port}", 5)
    finally:
        server.shutdown()
        server.server_close()
    assert not weights.hub_answers(f"http://127.0.0.1:{server.server_port}", 5)
    assert not weights.hub_answers("no address at all", 5)
