"""The engine run over a file, with a sink that keeps what it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from aerialseg.geo.raster import Access, BandRule, inspect_scene
from aerialseg.models.catalog import build_network, resolve
from aerialseg.models.package import ModelCard, save_model
from aerialseg.models.segmenter import Segmenter
from aerialseg.prediction.engine import predict_scene
from aerialseg.prediction.forward import EngineSettings, Forward

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.prediction.engine import Strip


def keep(strips: list[tuple[int, NDArray[np.uint8]]]) -> Generator[None, Strip | None]:
    while (strip := (yield)) is not None:
        strips.append((strip.row, strip.quanta().copy()))


@pytest.fixture
def stream() -> Callable[..., NDArray[np.uint8]]:
    """Run the engine over a file and return its quanta [rows, cols], joined from strips that must follow each other."""

    def call(
        path: Path,
        segmenter: Segmenter,
        *,
        rule: BandRule | None = None,
        progress: Any = None,
        size: int = 64,
        overlap: float = 0.25,
        batch: int = 3,
        **settings: Any,
    ) -> NDArray[np.uint8]:
        source = inspect_scene(path, rule or BandRule(), Access(allow_ungeoreferenced=True))
        strips: list[tuple[int, NDArray[np.uint8]]] = []
        chosen = EngineSettings(size, overlap, batch, torch.device("cpu"), **settings)
        told = () if progress is None else (progress.advance,)
        predict_scene(Forward(segmenter, chosen, progress), source, keep(strips), *told)
        rows = [len(strip) for _, strip in strips]
        assert [row for row, _ in strips] == [0, *np.cumsum(rows)[:-1]]
        joined = np.concatenate([strip for _, strip in strips])
        assert joined.shape == (source.box.height, source.box.width)
        return joined

    return call


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a real model of 0.2 million random weights: `small_model(bands=3, seed=0, **card)`."""

    def save(*, bands: int = 3, seed: int = 0, **card: Any) -> Path:
        torch.manual_seed(seed)
        spec = resolve(architecture="linknet", encoder="tu-lcnet_035", bands=bands, weights="none")
        values = {
            "preset": spec.preset, "architecture": spec.architecture, "encoder": spec.encoder,
            "encoder_arguments": dict(spec.encoder_arguments), "bands": bands, "mean": (100.0,) * bands,
            "std": (50.0,) * bands, "tile_size": 64, "overlap": 0.25, **card,
        }  # fmt: skip
        path = tmp_path_factory.mktemp("model") / "model.safetensors"
        save_model(path, Segmenter(build_network(spec), values["mean"], values["std"]), ModelCard(**values))
        return path

    return save
