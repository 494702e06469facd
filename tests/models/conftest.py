"""A small segmenter with its card, and machines with any GPU one likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aerialseg.models.build import Segmenter
    from aerialseg.models.package import ModelCard


@pytest.fixture(scope="session")
def segmenter() -> Segmenter:
    import torch

    from aerialseg.models.build import Segmenter, build_network
    from aerialseg.models.presets import resolve

    torch.manual_seed(0)
    return Segmenter(build_network(resolve(None, "unet", "tu-test_efficientnet")), (90.0, 95.5, 100.1), (40.0, 41, 42))


@pytest.fixture(scope="session")
def card() -> Callable[..., ModelCard]:
    """Return the card of `segmenter`, with changes."""
    from aerialseg.models.package import ModelCard

    def make(**changes: Any) -> ModelCard:
        values: dict[str, Any] = {
            "preset": "unet-tu-test_efficientnet",
            "architecture": "unet",
            "encoder": "tu-test_efficientnet",
            "bands": 3,
            "mean": (90.0, 95.5, 100.1),
            "std": (40.0, 41.0, 42.0),
            "tile_size": 64,
            **changes,
        }
        return ModelCard(**values)

    return make


@pytest.fixture(scope="session")
def model_file(segmenter: Segmenter, card: Callable[..., ModelCard], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aerialseg.models.package import save_model

    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_model(path, segmenter, card())
    return path
