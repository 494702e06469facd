"""The engine run over a file, with a sink that keeps what it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from aerialseg.geo.inspection import Access, BandRule, inspect_scene
from aerialseg.models.build import Segmenter, build_network
from aerialseg.models.package import ModelCard, save_model
from aerialseg.models.presets import resolve
from aerialseg.prediction.engine import predict_scene
from aerialseg.prediction.lattice import ScenePlacement
from aerialseg.prediction.network import EngineSettings, Forward
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.prediction.engine import Strip

    Kept = tuple[int, NDArray[np.uint8], NDArray[np.uint8] | None]


def keep(strips: list[Kept]) -> Generator[None, Strip | None]:
    while (strip := (yield)) is not None:
        quanta, *more = strip.planes().copy()
        strips.append((strip.row, quanta, more[0] if more else None))


@pytest.fixture
def stream() -> Callable[..., NDArray[np.uint8]]:
    """Run the engine over a file and return its quanta [rows, cols], joined from strips that must follow each other.

    `canvas` gives the file's place among others; of `skip` and `stop` the rows between are returned; `strips` is a list
    that receives (row, quanta, disagreement) of each strip.
    """

    def call(
        path: Path,
        segmenter: Segmenter,
        *,
        rule: BandRule | None = None,
        progress: Any = Silent(),
        canvas: ScenePlacement | None = None,
        skip: int = 0,
        stop: int | None = None,
        strips: list[Kept] | None = None,
        size: int = 64,
        overlap: float = 0.25,
        batch: int = 3,
        **settings: Any,
    ) -> NDArray[np.uint8]:
        source = inspect_scene(path, rule or BandRule(), Access(allow_ungeoreferenced=True))
        strips = [] if strips is None else strips
        before, stop = len(strips), source.box.height if stop is None else stop
        chosen = EngineSettings(size, overlap, batch, torch.device("cpu"), **settings)
        forward = Forward(segmenter, chosen, progress)
        place = canvas or ScenePlacement.alone(source)
        predict_scene(forward, place, keep(strips), progress.advance, skip=skip, stop=stop)
        rows = [len(quanta) for _, quanta, _ in strips[before:]]
        assert [row for row, _, _ in strips[before:]] == [skip, *(skip + np.cumsum(rows)[:-1])]
        joined = np.concatenate([quanta for _, quanta, _ in strips[before:]])
        assert joined.shape == (stop - skip, source.box.width)
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
