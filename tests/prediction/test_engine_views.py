"""Test-time augmentation and disagreement, against the same done to whole windows in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from known_networks import Counting, Neighbourhood, PixelRule, certain, plain, standardised, windows_of

from aerialseg.prediction.network import views_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FLIPS = [lambda w: w, lambda w: w[..., ::-1, :], lambda w: w[..., ::-1], lambda w: w[..., ::-1, ::-1]]
VIEWS: dict[str, list[Any]] = {
    "none": FLIPS[:1],
    "flips": FLIPS,
    "d4": [*FLIPS, *(lambda w, f=flip: np.swapaxes(f(w), -1, -2) for flip in FLIPS)],
}
INVERSES = {**VIEWS, "d4": [*FLIPS, *(lambda w, f=flip: f(np.swapaxes(w, -1, -2)) for flip in FLIPS)]}


@pytest.mark.parametrize("symmetry", VIEWS)
def test_views_are_the_symmetries_of_a_square_and_are_undone(symmetry: Any) -> None:
    window = torch.arange(2 * 3 * 16).reshape(2, 3, 4, 4)
    seen = [view.look(window) for view in views_of(symmetry)]
    assert {tuple(view.flatten().tolist()) for view in seen} == {
        tuple(look(window.numpy()).flatten().tolist()) for look in VIEWS[symmetry]
    }
    for view, looked in zip(views_of(symmetry), seen, strict=True):
        assert torch.equal(view.undo(looked), window)
    assert torch.equal(seen[0], window)
    assert len(seen) == {"none": 1, "flips": 4, "d4": 8}[symmetry]


@pytest.mark.parametrize("symmetry", VIEWS)
def test_an_equivariant_network_answers_the_same(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], symmetry: str
) -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (3, 150, 97), dtype=np.uint8)
    pixels[:, 60:90, 20:60] = 0
    network = Counting()
    found = stream(scene_file(tmp_path / "scene.tif", pixels, nodata=0), plain(network), tta=symmetry)
    np.testing.assert_array_equal(found, np.where((pixels == 0).all(0), 255, certain(pixels)))
    assert len(network.sizes) % len(VIEWS[symmetry]) == 0


@pytest.mark.parametrize("symmetry", ["flips", "d4"])
@pytest.mark.parametrize("blend", ["hann", "linear", "crop"])
def test_probabilities_of_all_views_are_averaged(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], symmetry: str, blend: str
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 150, 97), dtype=np.uint8)
    path, segmenter = scene_file(tmp_path / "scene.tif", pixels), standardised(Neighbourhood())
    total = np.zeros((150, 97))
    for window, weight, place in windows_of(pixels, 64, 0.25, blend):
        answers = []
        for look, undo in zip(VIEWS[symmetry], INVERSES[symmetry], strict=True):
            with torch.no_grad():
                logits = segmenter(torch.from_numpy(np.ascontiguousarray(look(window)))[None])[0, 0].double().numpy()
            answers.append(undo(1 / (1 + np.exp(-logits))))
        inside = total[place]
        inside += (np.mean(answers, axis=0) * weight)[: inside.shape[0], : inside.shape[1]]
    found = stream(path, segmenter, tta=symmetry, blend=blend)
    assert np.abs(found - 254 * total).max() <= 0.51
    assert np.abs(found.astype(int) - stream(path, segmenter, blend=blend)).max() > 3


@pytest.mark.parametrize("overlap", [0, 0.25, 0.75])
@pytest.mark.parametrize("blend", ["hann", "linear", "crop"])
def test_disagreement_is_twice_the_weighted_deviation_of_the_windows(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], overlap: float, blend: str
) -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (3, 150, 97), dtype=np.uint8)
    pixels[:, 60:90, 20:60] = 0
    blank = (pixels == 0).all(0)
    path, segmenter = scene_file(tmp_path / "scene.tif", pixels, nodata=0), standardised(Neighbourhood())
    mean, square, most = (np.zeros((150, 97)) for _ in range(3))
    for window, weight, place in windows_of(pixels, 64, overlap, blend):
        valid = torch.from_numpy((window != 0).any(0))[None]
        with torch.no_grad():
            logits = segmenter(torch.from_numpy(window.copy())[None], valid)[0, 0].double().numpy()
        inside = tuple(slice(0, length) for length in mean[place].shape)
        answer = (1 / (1 + np.exp(-logits)))[inside]
        mean[place] += answer * weight[inside]
        square[place] += answer**2 * weight[inside]
        most[place] = np.maximum(most[place], weight[inside])
    expected = 2 * np.sqrt(np.maximum(square - mean**2, 0))
    strips: list[Any] = []
    quanta = stream(path, segmenter, overlap=overlap, blend=blend, planes=2, strips=strips)
    found = np.concatenate([disagreement for _, _, disagreement in strips])
    assert (found[blank] == 255).all()
    assert np.abs(found - 254 * expected)[~blank].max() <= 0.6
    assert (found[(most > 1 - 1e-9) & ~blank] == 0).all()
    assert (expected.max() > 0.2) == (overlap > 0 and blend != "crop")
    np.testing.assert_array_equal(quanta, stream(path, segmenter, overlap=overlap, blend=blend))


def test_windows_that_agree_disagree_nowhere(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    for overlap in (0.25, 0.5, 0.75):
        strips: list[Any] = []
        stream(scene_file(tmp_path / "s.tif", size=(300, 97)), plain(PixelRule()), overlap=overlap, planes=2,
               strips=strips)  # fmt: skip
        assert all((disagreement == 0).all() for _, _, disagreement in strips)


def test_disagreement_is_none_unless_asked_for(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    strips: list[Any] = []
    stream(scene_file(tmp_path / "scene.tif"), plain(PixelRule()), strips=strips)
    assert [disagreement for _, _, disagreement in strips] == [None] * len(strips)
