"""An array through a model gives what predict writes for a scene of the same pixels; other arrays are refused."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch

from aerialseg.errors import BadDataError, Diverged, ModelError, UsageError
from aerialseg.evaluation.pairs import pair_scenes
from aerialseg.evaluation.report import describe_model
from aerialseg.geo.inspection import Access
from aerialseg.geo.scenes import Scene
from aerialseg.models.package import ModelCard
from aerialseg.prediction.arrays import Model, load_model
from aerialseg.prediction.options import PredictOptions
from aerialseg.prediction.run import predict_scenes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

ON_CPU = {"device": "cpu", "precision": "fp32", "access": Access(allow_ungeoreferenced=True)}
CARD = ModelCard(
    preset="own", architecture="own", encoder="own", bands=2, mean=(100.0, 50.0), std=(40.0, 20.0), tile_size=32,
    temperature=2.0,
)  # fmt: skip


class Weighted(torch.nn.Module):
    """One logit of each pixel alone: 2 a - b."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 2 * pixels[:, :1] - pixels[:, 1:2]


def written(scene: Path, model: Path, out: Path, options: PredictOptions) -> NDArray[np.uint8]:
    """Return the probability raster that predict writes."""
    predict_scenes([Scene("scene", scene)], model, out, options).raise_failures()
    with rasterio.open(out / "probability" / "scene.tif") as dataset:
        return dataset.read(1)


def quantised(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.where(np.isnan(probability), 255, np.rint(254 * probability)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(150, 201), (64, 64), (20, 90), (1, 1)], ids=str)
@pytest.mark.parametrize(
    "chosen", [{}, {"blend": "linear", "overlap": 0.5, "batch": 3}, {"tta": "d4", "window": 96}], ids=str
)
def test_an_array_gives_what_predict_writes(
    shape: tuple[int, int], chosen: dict[str, Any], tmp_path: Path, scene_file: Callable[..., Path], small_model: Any
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, *shape), dtype=np.uint8)
    model = small_model(temperature=0.05)
    options = PredictOptions(probability=True, **ON_CPU, **chosen)
    expected = written(scene_file(tmp_path / "scene.tif", pixels), model, tmp_path / "out", options)
    probability = load_model(model).predict_array(pixels, options=options)
    assert probability.dtype == np.float32
    assert probability.shape == shape
    assert np.array_equal(quantised(probability), expected)
    assert len(np.unique(expected)) > min(20, pixels[0].size - 1), "the model says something"


def test_invalid_pixels_are_the_same_and_nan(tmp_path: Path, scene_file: Callable[..., Path], small_model: Any) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(1, 256, (3, 170, 140), dtype=np.uint8)
    valid = np.ones((170, 140), dtype=np.bool_)
    valid[:70, :100], valid[150:, 5:50] = False, False
    pixels[:, ~valid] = 0
    model, options = small_model(temperature=0.05), PredictOptions(probability=True, **ON_CPU)
    expected = written(scene_file(tmp_path / "scene.tif", pixels, nodata=0), model, tmp_path / "out", options)
    pixels[:, ~valid] = 77
    probability = load_model(model).predict_array(pixels, valid, options)
    assert np.array_equal(np.isnan(probability), ~valid)
    assert np.array_equal(quantised(probability), expected)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "uint8"])
def test_values_are_scaled_as_the_card_says(
    dtype: str, tmp_path: Path, scene_file: Callable[..., Path], small_model: Any
) -> None:
    pixels = np.random.default_rng(3).uniform(0, 250, (4, 100, 90)).astype(dtype)
    if dtype == "float32":
        pixels[1, 20:40, 30:50] = np.nan
    model = small_model(temperature=0.05, scale=(10.0, 200.0), band_indexes=(4, 1, 2))
    options = PredictOptions(probability=True, **ON_CPU)
    expected = written(scene_file(tmp_path / "scene.tif", pixels), model, tmp_path / "out", options)
    loaded = load_model(model)
    assert loaded.card.band_indexes is not None
    bands = np.array(loaded.card.band_indexes) - 1
    assert np.array_equal(quantised(loaded.predict_array(pixels[bands], options=options)), expected)


def test_a_module_of_ones_own_sees_standardised_pixels() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (2, 50, 75), dtype=np.uint8)
    first, second = (pixels[0] - 100.0) / 40, (pixels[1] - 50.0) / 20
    expected = 1 / (1 + np.exp(-(2 * first - second) / CARD.temperature))
    probability = Model(Weighted(), CARD).predict_array(pixels, options=PredictOptions(device="cpu", precision="fp32"))
    assert np.allclose(probability, expected, atol=1e-6)


def test_the_array_may_be_a_view_that_cannot_be_written() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (40, 60, 2), dtype=np.uint8)
    pixels.flags.writeable = False
    before, model = pixels.copy(), Model(Weighted(), CARD)
    view = np.moveaxis(pixels, -1, 0)
    assert np.array_equal(model.predict_array(view), model.predict_array(np.ascontiguousarray(view)))
    assert np.array_equal(pixels, before)


ZEROS = np.zeros((2, 40, 50), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "valid", "kind", "words"),
    [
        (ZEROS[0], None, ValueError, r"shape \(40, 50\), expected \(bands, rows, cols\)"),
        (ZEROS[:, :0], None, ValueError, r"shape \(2, 0, 50\)"),
        (ZEROS[:1], None, BadDataError, r"^array: has 1 x uint8 bands, the model wants 2 x uint8"),
        (ZEROS.astype(np.float32), None, BadDataError, "has 2 x float32 bands, the model wants 2 x uint8"),
        (ZEROS, np.ones((50, 40), dtype=np.bool_), ValueError, r"valid is bool \(50, 40\), expected bool \(40, 50\)"),
        (ZEROS, np.ones((40, 50), dtype=np.uint8), ValueError, "valid is uint8"),
        (np.ma.masked_equal(ZEROS, 0), None, TypeError, "masked array"),
    ],
)
def test_other_arrays_are_refused(pixels: Any, valid: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Model(Weighted(), CARD).predict_array(pixels, valid)


def test_a_window_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="takes multiples of 32"):
        Model(Weighted(), CARD).predict_array(ZEROS, options=PredictOptions(window=40))


def test_a_network_that_gives_nan_is_refused() -> None:
    class Nan(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels[:, :1] * torch.nan

    with pytest.raises(ModelError, match="gave NaN"):
        Model(Nan(), CARD).predict_array(ZEROS, options=PredictOptions(device="cpu"))


def test_an_array_without_a_valid_pixel_is_all_nan() -> None:
    assert np.isnan(Model(Weighted(), CARD).predict_array(ZEROS, np.zeros((40, 50), dtype=np.bool_))).all()


def test_a_network_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ModelError, match="expected one logit a pixel"):
        Model(torch.nn.Identity(), CARD).predict_array(ZEROS, options=PredictOptions(device="cpu"))


def test_a_model_that_was_loaded_is_the_model_of_its_file(
    tmp_path: Path, scene_file: Callable[..., Path], small_model: Any
) -> None:
    scenes, file, options = (
        [Scene("scene", scene_file(tmp_path / "scene.tif"))],
        small_model(),
        PredictOptions(**ON_CPU),
    )
    loaded = load_model(file)
    assert loaded.digest() == sha256(file.read_bytes()).hexdigest()
    assert predict_scenes(scenes, file, tmp_path / "out", options).scenes[0].status == "done"
    report = predict_scenes(scenes, loaded, tmp_path / "out", options)
    assert report.scenes[0].status == "skipped"
    assert report.model["path"] is None
    other = load_model(small_model(seed=1))
    assert predict_scenes(scenes, other, tmp_path / "out", options).scenes[0].status == "done"


def test_scenes_go_through_a_module_of_ones_own(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    pixels = np.random.default_rng(6).integers(0, 256, (2, 90, 70), dtype=np.uint8)
    scenes, model = [Scene("scene", scene_file(tmp_path / "scene.tif", pixels))], Model(Weighted(), CARD)
    options = PredictOptions(probability=True, **ON_CPU)
    predict_scenes(scenes, model, tmp_path / "out", options).raise_failures()
    with rasterio.open(tmp_path / "out" / "scene.tif") as dataset:
        building = dataset.read(1) == 1
    logits = 2 * (pixels[0] - 100.0) / 40 - (pixels[1] - 50.0) / 20
    clear = abs(logits) > 0.05
    assert np.array_equal(building[clear], (logits > 0)[clear])
    pairs = pair_scenes([replace(scenes[0], mask=scenes[0].image)], tmp_path / "out")
    assert describe_model(pairs)["preset"] == "own", "a report without a model file is read, too"


def test_weights_that_are_not_finite_have_no_digest(small_model: Any) -> None:
    model = load_model(small_model())
    next(model.network.parameters()).data[:] = torch.nan
    with pytest.raises(Diverged, match="not finite"):
        model.digest()
