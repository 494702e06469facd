"""The engine on a CUDA device: the same answers as on a processor; run with: pytest -m gpu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from known_networks import Neighbourhood, PixelRule, certain, plain, standardised

from aerialseg.errors import ModelError
from aerialseg.geo.inspection import inspect_scene
from aerialseg.prediction.engine import predict_scene
from aerialseg.prediction.lattice import ScenePlacement
from aerialseg.prediction.network import EngineSettings, Forward

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from aerialseg.models.build import Segmenter
    from aerialseg.prediction.engine import Strip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def predicted(
    canvas: ScenePlacement, segmenter: Segmenter, device: torch.device, skip: int = 0, **chosen: Any
) -> np.ndarray:
    """Return quanta and, where asked for, disagreement: [1 or 2, rows, width]."""
    strips: list[np.ndarray] = []

    def sink() -> Generator[None, Strip | None]:
        while (strip := (yield)) is not None:
            strips.append(strip.planes().copy())

    settings = EngineSettings(**{"size": 64, "overlap": 0.25, "batch": 3, "device": device, **chosen})
    predict_scene(Forward(segmenter, settings), canvas, sink(), skip=skip)
    return np.concatenate(strips, axis=1)


@pytest.fixture
def scene(tmp_path: Path, scene_file: Callable[..., Path]) -> tuple[ScenePlacement, np.ndarray]:
    pixels = np.random.default_rng(1).integers(1, 256, (3, 500, 297), dtype=np.uint8)
    pixels[:, 150:260, 40:200] = 0
    return ScenePlacement.alone(inspect_scene(scene_file(tmp_path / "scene.tif", pixels, nodata=0))), pixels


@pytest.mark.parametrize("chosen", [{}, {"tta": "d4"}, {"overlap": 0.75, "blend": "crop"}, {"batch": 64}], ids=str)
def test_an_exact_model_has_no_wrong_pixel(scene: tuple[ScenePlacement, np.ndarray], chosen: dict[str, Any]) -> None:
    canvas, pixels = scene
    expected = np.where((pixels == 0).all(0), 255, certain(pixels))
    found = predicted(canvas, plain(PixelRule()), GPU, planes=2, **chosen)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], np.where(expected == 255, 255, 0))


@pytest.mark.parametrize("gsd_m", [None, 0.5, 0.2])
def test_probabilities_are_those_of_the_processor(
    scene: tuple[ScenePlacement, np.ndarray], gsd_m: float | None
) -> None:
    canvas = ScenePlacement.alone(scene[0].source, gsd_m)
    on_cpu, on_gpu = (
        predicted(canvas, standardised(Neighbourhood()), device, planes=2).astype(int) for device in (CPU, GPU)
    )
    assert np.abs(on_cpu - on_gpu).max() <= 2  # convolutions on a card may use TF32
    np.testing.assert_array_equal(on_cpu == 255, on_gpu == 255)


def test_a_run_repeated_and_one_that_goes_on_give_the_same_bytes(scene: tuple[ScenePlacement, np.ndarray]) -> None:
    canvas, _ = scene
    first, second = (predicted(canvas, standardised(Neighbourhood()), GPU) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    rest = predicted(canvas, standardised(Neighbourhood()), GPU, skip=96)
    np.testing.assert_array_equal(rest, first[:, 96:])


class NanBelow(PixelRule):
    """Exact for its first batches, then NaN."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        return super().forward(pixels) * (1 if self.left >= 0 else torch.nan)


@pytest.mark.parametrize("gsd_m", [None, 0.5])
def test_no_row_with_a_nan_is_handed_out(scene: tuple[ScenePlacement, np.ndarray], gsd_m: float | None) -> None:
    canvas = ScenePlacement.alone(scene[0].source, gsd_m)
    clean, strips = predicted(canvas, plain(PixelRule()), GPU), []

    def sink() -> Generator[None, Strip | None]:
        while (strip := (yield)) is not None:
            strips.append((strip.row, strip.planes()[0].copy()))

    forward = Forward(plain(NanBelow(4)), EngineSettings(64, 0.25, 3, GPU))
    with pytest.raises(ModelError, match="NaN; use --precision fp32"):
        predict_scene(forward, canvas, sink())
    assert strips
    for row, quanta in strips:
        np.testing.assert_array_equal(quanta, clean[0, row : row + len(quanta)])
