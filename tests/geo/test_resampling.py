"""Cell means, read in pieces, against one numpy expression over the whole array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aerialseg.geo import resampling
from aerialseg.geo.resampling import block_mean, shrink, small_shape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def slow_means(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Each pixel falls into cell floor(index * cells / pixels), the cell's mean in float64."""
    rows, cols = (np.arange(n) * m // n for n, m in zip(array.shape[1:], shape, strict=True))
    result = np.empty((len(array), *shape))
    for row in range(shape[0]):
        for col in range(shape[1]):
            result[:, row, col] = array[:, rows == row][:, :, cols == col].mean(axis=(1, 2))
    return result


@pytest.mark.parametrize(
    ("size", "shape", "profile"),
    [
        ((97, 61), (16, 10), {}),
        ((200, 300), (20, 30), {"tiled": True, "blockxsize": 64, "blockysize": 48}),
        ((31, 700), (1, 16), {}),
        ((128, 128), (128, 128), {}),
        ((150, 90), (7, 5), {"dtype": "uint16"}),
        ((150, 90), (7, 5), {"dtype": "float32"}),
    ],
)
@pytest.mark.parametrize("at_once", [500, 10**9])
def test_means_do_not_depend_on_the_pieces(
    tmp_path: Path, scene_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int], shape: tuple[int, int], profile: dict[str, Any], at_once: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(resampling, "PIXELS_AT_ONCE", at_once)
    array = np.random.default_rng(0).integers(0, 255, (3, *size)).astype(profile.pop("dtype", "uint8"))
    path = scene_file(tmp_path / "scene.tif", array, **profile)
    read: list[float] = []
    found = block_mean(path, (1, 2, 3), shape, lambda values: values, read.append)
    assert np.allclose(found, slow_means(array, shape), atol=1e-9)
    assert np.allclose(shrink(array, shape), slow_means(array, shape), atol=1e-9)
    assert sum(read) == pytest.approx(size[0] * size[1] / 1e6)


def test_what_is_looked_at_may_be_other_layers(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = scene_file(tmp_path / "scene.tif")
    found = block_mean(path, (2,), (4, 4), lambda values: np.concatenate([values > 99, values < 9]), lambda _: None)
    assert found.shape == (2, 4, 4)
    assert 0 < found.mean() < 1


def test_a_picture_is_never_enlarged_and_keeps_its_shape() -> None:
    assert small_shape(100, 50, 1024) == (100, 50)
    assert small_shape(5000, 2500, 1000) == (1000, 500)
    assert small_shape(1, 100_000, 100) == (1, 100)


def test_memory_stays_bounded(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    import tracemalloc

    path = scene_file(tmp_path / "scene.tif", np.zeros((3, 4000, 3000), np.uint8), compress="deflate", tiled=True)
    tracemalloc.start()
    block_mean(path, (1, 2, 3), (64, 48), lambda values: values, lambda _: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # the scene itself is 36 MB, 2**21 pixels of it are 6, their sums along rows little
