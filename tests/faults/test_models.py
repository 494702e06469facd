"""FAULTS rows 23, 24 and 27: what is no model, a damaged model, another model; a device that cannot be used."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from aerialseg.errors import ModelError
from aerialseg.models.build import Segmenter, build_network
from aerialseg.models.package import ModelCard, _canonical, _digest, _split, load_model, read_card, save_model
from aerialseg.models.presets import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

MEAN, STD = (90.0, 95.5, 100.1), (40.0, 41.0, 42.0)


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="session")
def good() -> bytes:
    """Return the bytes of a small whole model."""
    import tempfile

    torch.manual_seed(0)
    spec = resolve(None, "unet", "tu-test_efficientnet")
    card = ModelCard(
        preset=spec.preset, architecture="unet", encoder=spec.encoder, bands=3, mean=MEAN, std=STD, tile_size=64
    )
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "m", Segmenter(build_network(spec), MEAN, STD), card)
        return (Path(folder) / "m").read_bytes()


def rewritten(good: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None], *, honest: bool = True) -> bytes:
    """Return a model whose card and tensor table went through `change`; with an `honest` digest it is well-formed."""
    header, data = _split(Path("m"), good)
    card = json.loads(header.pop("__metadata__")["aerialseg"])
    digest = card.pop("digest")
    change(card, header)
    if honest:
        digest = _digest(card, header, data)
    metadata = {"aerialseg": _canonical({**card, "digest": digest})}
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def refusal(path: Path, content: bytes | None = None) -> str:
    """Return the one line with which a model is refused, by both readers alike."""
    if content is not None:
        path.write_bytes(content)
    said = []
    for read in (read_card, load_model):
        with pytest.raises(ModelError) as caught:
            read(path)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].startswith(str(path))
    assert "\n" not in said[0]
    return said[0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_raw_pickle_is_refused_unopened(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps({"card": Trap(tmp_path / "sprung")}, protocol)
    assert "model" in refusal(tmp_path / "m.safetensors", content)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(content)
    assert (tmp_path / "sprung").exists()  # the trap works, so its silence above means something


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "last.ckpt"])
def test_a_torch_checkpoint_is_refused_unopened(zipped: bool, name: str, tmp_path: Path) -> None:
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert "is a pickle, expected a .safetensors model" in refusal(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"x", b"<html>not found</html>", b"\0" * 4096, b"II*\0" + b"\0" * 99])
def test_anything_else_is_refused(content: bytes, tmp_path: Path) -> None:
    assert "is not a .safetensors model" in refusal(tmp_path / "m.safetensors", content)


def test_the_weights_of_another_program_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert "has no aerialseg model card" in refusal(tmp_path / "m.safetensors")


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.1, 0.001])
def test_a_truncated_model_is_refused(good: bytes, share: float, tmp_path: Path) -> None:
    said = refusal(tmp_path / "m", good[: int(len(good) * share)])
    assert "truncated" in said or "damaged" in said


def test_a_model_with_bytes_after_its_end_is_refused(good: bytes, tmp_path: Path) -> None:
    assert f"{len(good) + 1} bytes, its header says {len(good)}" in refusal(tmp_path / "m", good + b"\0")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), near_start=st.booleans(), flip=st.integers(1, 255))
def test_one_changed_byte_anywhere_is_found(
    good: bytes, tmp_path: Path, place: float, near_start: bool, flip: int
) -> None:
    header = int.from_bytes(good[:8], "little") + 8
    index = int(place * (header if near_start else len(good)))
    changed = bytearray(good)
    changed[index] ^= flip
    (tmp_path / "m").write_bytes(changed)
    try:
        card = read_card(tmp_path / "m")
    except ModelError:
        return
    # A space between header and data may become another: JSON's blanks mean the same, and nothing was lost.
    assert bytes(good[index : index + 1]).isspace() and bytes([changed[index]]).isspace()
    assert card == read_card_of(good, tmp_path)


def read_card_of(content: bytes, folder: Path) -> ModelCard:
    (folder / "good").write_bytes(content)
    return read_card(folder / "good")


def test_swapped_tensors_of_one_shape_are_found(good: bytes, tmp_path: Path) -> None:
    def swap(card: dict[str, Any], table: dict[str, Any]) -> None:
        table["mean"], table["std"] = table["std"], table["mean"]

    assert "SHA-256" in refusal(tmp_path / "m", rewritten(good, swap, honest=False))


CARDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a newer format": (lambda card: card.update(format=2), "is of format 2, this aerialseg reads format 1"),
    "other classes": (lambda card: card.update(classes=["background", "road"]), "expected ['background', 'building']"),
    "an unknown field": (lambda card: card.update(colour="red"), "unknown fields ['colour']"),
    "a missing field": (lambda card: card.pop("tile_size"), "tile_size"),
    "text for a number": (lambda card: card.update(tile_size="64"), "tile_size is '64', expected int"),
    "a truth for a number": (lambda card: card.update(tile_size=True), "tile_size is 'True', expected int"),
    "a number for text": (lambda card: card.update(encoder=5), "encoder is '5', expected str"),
    "a mean too few": (lambda card: card.update(mean=[1.0, 2.0]), "mean has 2 values for 3 bands"),
    "no size of a pixel": (lambda card: card.update(gsd_m=0.0), "gsd_m is 0.0, expected 0.0001 to 10000"),
    "a pixel smaller than an atom": (lambda card: card.update(gsd_m=1e-9), "gsd_m is 1e-09"),
    "a pixel larger than the world": (lambda card: card.update(gsd_m=1e300), "gsd_m is 1e+300"),
    "a negative pixel": (lambda card: card.update(gsd_m=-0.3), "gsd_m is -0.3"),
    "a scale of one value": (lambda card: card.update(scale=[5.0]), "scale"),
    "a scale of no width": (lambda card: card.update(scale=[5.0, 5.0]), "scale is (5.0, 5.0), expected two numbers"),
    "a scale beyond any value": (lambda card: card.update(scale=[0.0, 1e300]), "scale is (0.0, 1e+300), expected two"),
    "windows without end": (lambda card: card.update(overlap=0.9999), "overlap is 0.9999, expected 0 to 0.75"),
    "a band that does not count": (lambda card: card.update(band_indexes=[0, 1, 2]), "expected 3 from 1 on"),
    "a hair of a deviation": (lambda card: card.update(std=[1e-300] * 3), "std is [1e-300, 1e-300, 1e-300]"),
    "an endless temperature": (lambda card: card.update(temperature=1e300), "temperature is 1e+300"),
    "statistics of other tensors": (
        lambda card: card.update(mean=[1.0, 2.0, 3.0]),
        "its card says mean [1.0, 2.0, 3.0]",
    ),
    "a card that is a list": (lambda card: card.clear(), "card is damaged"),
}


@pytest.mark.parametrize(("change", "said"), CARDS.values(), ids=CARDS)
def test_a_card_that_means_something_else_is_refused(
    good: bytes, change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    assert said in refusal(tmp_path / "m", rewritten(good, lambda card, table: change(card)))


def test_a_card_of_tiles_that_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    spec = resolve(architecture="linknet", encoder="tu-test_resnet", weights="none")
    card = ModelCard(
        preset=spec.preset, architecture=spec.architecture, encoder=spec.encoder,
        encoder_arguments=dict(spec.encoder_arguments), bands=3, mean=(100.0,) * 3, std=(50.0,) * 3, tile_size=7,
    )  # fmt: skip
    save_model(tmp_path / "m", Segmenter(build_network(spec), card.mean, card.std), card)
    assert read_card(tmp_path / "m").tile_size == 7
    with pytest.raises(ModelError, match="does not take tiles of 7x7"):
        load_model(tmp_path / "m")


NETWORKS: dict[str, tuple[dict[str, Any], str]] = {
    "another encoder": ({"encoder": "tu-test_resnet"}, "expected the tensors of unet with tu-test_resnet"),
    "another architecture": ({"architecture": "fpn"}, "expected the tensors of fpn with tu-test_efficientnet"),
    "an unknown encoder": ({"encoder": "resnet9"}, "encoder 'resnet9' is unknown"),
    "an encoder from a hub": ({"encoder": "tu-hf-hub:someone/network"}, "is unknown"),
    "a folder as encoder": ({"encoder": "tu-local-dir:/tmp"}, "is unknown"),
    "an encoder argument that loads": ({"encoder_arguments": {"checkpoint_path": "/tmp/x"}}, "'checkpoint_path'"),
    "a non-commercial encoder": ({"encoder": "mit_b0"}, "non-commercial"),
}


@pytest.mark.parametrize(("changes", "said"), NETWORKS.values(), ids=NETWORKS)
def test_a_card_of_another_network_is_refused(good: bytes, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(rewritten(good, lambda card, table: card.update(changes)))
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / "m")
    assert said in str(caught.value) and str(tmp_path / "m") in str(caught.value)


HUGE: dict[str, dict[str, Any]] = {
    "an encoder of any width": {
        "architecture": "dpt", "encoder": "tu-vit_tiny_patch16_224",
        "encoder_arguments": {"embed_dim": 3_000_000, "num_heads": 3, "dynamic_img_size": True},
    },
    "an encoder of many parts": {"encoder": "resnet152"},
}  # fmt: skip


@pytest.mark.parametrize("changes", HUGE.values(), ids=HUGE)
def test_a_network_far_larger_than_its_tensors_is_refused_before_it_is_built(
    good: bytes, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(spec: Any) -> Any:
        raise AssertionError("it was built")

    monkeypatch.setattr("aerialseg.models.build.build_network", built)
    (tmp_path / "m").write_bytes(rewritten(good, lambda card, table: card.update(changes)))
    with pytest.raises(ModelError, match="far larger than its tensors"):
        load_model(tmp_path / "m")


def test_missing_and_misshapen_tensors_are_named(good: bytes, tmp_path: Path) -> None:
    name = "network.segmentation_head.0.bias"

    def rename(card: dict[str, Any], table: dict[str, Any]) -> None:
        table["network.other"] = table.pop(name)

    def reshape(card: dict[str, Any], table: dict[str, Any]) -> None:
        table["network.segmentation_head.0.weight"]["shape"] = [1, 9, 4, 4]

    for change, said in ((rename, f"{name} is missing"), (reshape, "weight is (1, 9, 4, 4), expected (1, 16, 3, 3)")):
        (tmp_path / "m").write_bytes(rewritten(good, change))
        with pytest.raises(ModelError, match="network") as caught:
            load_model(tmp_path / "m")
        assert said in str(caught.value)


def test_a_table_that_lies_about_its_tensors_is_refused(good: bytes, tmp_path: Path) -> None:
    """The digest holds, for its maker lied from the start; safetensors finds the shape that does not fit."""

    def lie(card: dict[str, Any], table: dict[str, Any]) -> None:
        table["mean"]["shape"] = [4]

    (tmp_path / "m").write_bytes(rewritten(good, lie))
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("kind", ["pickle", "truncated", "flipped", "missing"])
def test_predict_refuses_a_bad_model_and_leaves_everything_as_it_was(
    kind: str, good: bytes, cli: Any, scene_file: Any, tree_hashes: Any, tmp_path: Path
) -> None:
    flipped = bytearray(good)
    flipped[random.Random(0).randrange(len(good) // 2, len(good))] ^= 1
    contents = {
        "pickle": pickle.dumps(Trap(tmp_path / "sprung")),
        "truncated": good[:-1000],
        "flipped": bytes(flipped),
    }
    model = tmp_path / "model.safetensors"
    if kind in contents:
        model.write_bytes(contents[kind])
    scene = scene_file(tmp_path / "scene.tif")
    before = tree_hashes(tmp_path)
    answer = cli("predict", scene, "-m", model, "-o", tmp_path / "out")
    assert answer.returncode == (66 if kind == "missing" else 78), answer.stderr
    assert answer.stderr.count("\n") == 1 and f"error: {model}" in answer.stderr
    after = tree_hashes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert [name for name in after if name not in before and not Path(name).name.startswith(".aerialseg-")] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a working CUDA device")
def test_cuda_without_a_card_is_never_the_cpu(cli: Any, good: bytes, scene_file: Any, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(good)
    scene = scene_file(tmp_path / "scene.tif")
    out = tmp_path / "out"
    answer = cli("predict", scene, "-m", tmp_path / "m.safetensors", "-o", out, "--device", "cuda")
    assert answer.returncode == 69, answer.stderr
    assert "--device cpu" in answer.stderr
    assert not list(out.glob("*.tif"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a working CUDA device")
@pytest.mark.parametrize("command", ["predict", "doctor"])
def test_an_unusable_card_stops_what_would_silently_run_on_the_cpu(
    command: str, run: Any, good: bytes, scene_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Tesla K80, 410.48, 3.7'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (tmp_path / "m.safetensors").write_bytes(good)
    scene = scene_file(tmp_path / "scene.tif")
    arguments = {"predict": [scene, "-m", tmp_path / "m.safetensors", "-o", tmp_path / "out"], "doctor": [tmp_path]}
    code, _, said = run(command, *arguments[command])
    assert code == 69, said
    assert [piece for piece in ("Tesla K80", "410.48", "3.7", torch.__version__) if piece not in said] == []
    assert not list((tmp_path / "out").glob("*.tif"))


def test_predict_refuses_a_model_of_another_network(run: Any, good: bytes, scene_file: Any, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    model.write_bytes(rewritten(good, lambda card, table: card.update(encoder="tu-test_resnet")))
    code, _, said = run("predict", scene_file(tmp_path / "scene.tif"), "-m", model, "-o", tmp_path / "out")
    assert code == 78, said
    assert f"error: {model}" in said and "expected the tensors of unet with tu-test_resnet" in said
    assert not list((tmp_path / "out").glob("*.tif"))
