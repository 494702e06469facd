"""Calibrating without a network, for tests of all the rest: a scene's first band is its probability."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from rasterio.errors import NotGeoreferencedWarning
from rasters import write_raster

from aerialseg.files import write_bytes
from aerialseg.geo.opening import open_raster
from aerialseg.models.package import ModelCard
from aerialseg.workflows import calibrate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from aerialseg.geo.scenes import Scene

CARD = ModelCard(preset="p", architecture="a", encoder="e", bands=3, mean=(0.0,) * 3, std=(1.0,) * 3, tile_size=64)


def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calibrate take any file for a model, predict by `predict_first_band`, and write models of 2 MB."""
    monkeypatch.setattr(calibrate, "read_card", lambda path: CARD)
    monkeypatch.setattr(calibrate, "load_model", lambda path: (None, CARD))
    monkeypatch.setattr(calibrate, "save_model", lambda path, *_: write_bytes(path, bytes(2_000_000)))
    monkeypatch.setattr(calibrate, "predict_scenes", predict_first_band)


def predict_first_band(scenes: Sequence[Scene], model: Path, folder: Path, *_: object) -> SimpleNamespace:
    """Stand in for `predict_scenes` with probabilities."""
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
        for scene in scenes:
            with open_raster(scene.image) as source:
                quanta, place = source.read(1).clip(0, 254), {"crs": source.crs, "transform": source.transform}
            write_raster(folder / f"{scene.name}.tif", (quanta >= 127).astype(np.uint8), nodata=255, **place)
            write_raster(folder / f"probability/{scene.name}.tif", quanta, nodata=255, **place)
    return SimpleNamespace(raise_failures=lambda: None)
