"""The engine run over a file, with a sink that keeps what it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from aerialseg.geo.raster import Access, BandRule, inspect_scene
from aerialseg.prediction.engine import predict_scene
from aerialseg.prediction.forward import EngineSettings, Forward

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from numpy.typing import NDArray

    from aerialseg.models.segmenter import Segmenter
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
