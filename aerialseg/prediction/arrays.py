"""A model in memory: an array in, probabilities out, blended and padded as `predict` does with a scene.

Nothing here opens a raster or writes a file. torch is imported when it is first needed.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from aerialseg.errors import BadDataError, ModelError
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.inspection import Source
from aerialseg.geo.raster import scaled
from aerialseg.geo.validity import ValidityRule
from aerialseg.models.package import load_model as read_model
from aerialseg.models.package import model_bytes
from aerialseg.prediction.lattice import Lattice, ScenePlacement, Schedule
from aerialseg.prediction.options import PredictOptions, check_window
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from rasterio.windows import Window
    from torch import Tensor, nn

    from aerialseg.models.build import Segmenter
    from aerialseg.models.package import ModelCard
    from aerialseg.prediction.engine import Accumulator
    from aerialseg.prediction.network import Forward
    from aerialseg.prediction.reading import Validity, WindowBatch

ARRAY = Path("array")
"""Stands for the file in messages."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A network and its card: what `load_model` reads, or a torch module of your own with a card that you write.

    `network` is given float32 [N, bands, H, W], standardised by the card's `mean` and `std` (0 where a pixel is
    invalid), with H = W = `card.tile_size` unless another window is asked for; it returns logits of building,
    [N, 1, H, W]. It is moved to the device that is used and put into eval mode. Scenes count as predicted before when
    card and weights were equal; the network's code is not looked at, so name it anew in the card when it changes.

    Example:
        >>> import torch
        >>> card = aerialseg.ModelCard(
        ...     preset="own", architecture="one convolution", encoder="none", bands=3,
        ...     mean=(100.0, 100.0, 100.0), std=(50.0, 50.0, 50.0), tile_size=64,
        ... )
        >>> aerialseg.Model(torch.nn.Conv2d(3, 1, kernel_size=3, padding=1), card).card.tile_size
        64
    """

    network: nn.Module = field(repr=False)
    card: ModelCard

    def predict_array(
        self,
        pixels: NDArray[Any],
        valid: NDArray[np.bool_] | None = None,
        options: PredictOptions | None = None,
    ) -> NDArray[np.float32]:
        """Return the probability of building of every pixel, float32 (rows, cols) from 0 to 1; NaN where invalid.

        `pixels` (bands, rows, cols) are the model's bands in its order, as `dataset.read(model.card.band_indexes)`
        gives them: uint8, or numbers of any type when the card has a `scale`. `valid` (rows, cols) is False where there
        is no data, as `dataset.dataset_mask() != 0`; None means everywhere, but for pixels that are not finite. Rows
        and columns may be any number; pixels are taken to be as large as the model's, `card.gsd_m`.

        Of `options` those count that say how windows are cut, run and blended (window, overlap, blend, tta, batch,
        precision, device, compiled). round(254 p) is what `predict --probability` writes for a scene of these pixels
        that is run at its own GSD and has no neighbours. Memory: beside the result, rows of a window's height.

        Raises ValueError for arrays whose shapes do not fit each other, BadDataError for bands or values that the model
        does not take, UsageError for a window that the network does not take, DeviceError, ResourceError when a window
        does not fit into memory, and ModelError when the network gives NaN or another shape.

        Example:
            >>> import numpy as np
                >>> model = aerialseg.load_model("runs/town")
            >>> pixels = np.zeros((3, 200, 300), dtype=np.uint8)
            >>> probability = model.predict_array(pixels)
            >>> probability.shape, probability.dtype
            ((200, 300), dtype('float32'))
        """
        from aerialseg.models.device import pick_device
        from aerialseg.prediction.network import place_on_device

        options = options or PredictOptions()
        pixels, valid = _checked(pixels, valid, self.card)
        check_window(self.card, options.window or self.card.tile_size)
        forward = place_on_device(self.segmenter(), self.card, options, pick_device(options.device), Silent())
        return _blended(forward, pixels, valid, self.card.scale)

    def segmenter(self) -> Segmenter:
        """Return the network behind the card's standardisation: uint8 [N, bands, H, W] in, logits [N, 1, H, W] out."""
        from aerialseg.models.build import Segmenter

        return Segmenter(self.network, self.card.mean, self.card.std)

    def digest(self) -> str:
        """Return the SHA-256 of the model file that card and weights would make; raises Diverged for weights of NaN."""
        return sha256(model_bytes(Path("model"), self.segmenter(), self.card)).hexdigest()


def load_model(path: Path | str) -> Model:
    """Read a model file, or the model in a run's folder; on the CPU, in eval mode.

    Raises NoInputError when there is none and ModelError when it is damaged, not of aerialseg or of another format.

    Example:
        >>> model = aerialseg.load_model("runs/town")
        >>> model.card.bands, model.card.tile_size
        (3, 128)
    """
    segmenter, card = read_model(Path(path))
    return Model(segmenter.network, card)


def _checked(
    pixels: NDArray[Any], valid: NDArray[np.bool_] | None, card: ModelCard
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return the arrays, which fit each other and the model."""
    if isinstance(pixels, np.ma.MaskedArray):
        raise TypeError(
            "pixels are a masked array, whose mask would be lost; give pixels.data, and valid=~mask of a band"
        )
    pixels, valid = np.asarray(pixels), None if valid is None else np.asarray(valid)
    if pixels.ndim != 3 or not pixels.size:
        raise ValueError(f"pixels have the shape {pixels.shape}, expected (bands, rows, cols)")
    if valid is not None and (valid.shape != pixels.shape[1:] or valid.dtype != np.bool_):
        raise ValueError(
            f"valid is {valid.dtype} {valid.shape}, expected bool {pixels.shape[1:]}, True where there is data"
        )
    wanted = f"the model wants {card.bands} x {'uint8' if card.scale is None else 'any number'}"
    if len(pixels) != card.bands or not (pixels.dtype == np.uint8 or (card.scale and pixels.dtype.kind in "uif")):
        raise BadDataError(
            f"array: has {len(pixels)} x {pixels.dtype} bands, {wanted}: use dataset.read(model.card.band_indexes)"
        )
    return pixels, valid


def _blended(
    forward: Forward, pixels: NDArray[Any], valid: NDArray[np.bool_] | None, scale: tuple[float, float] | None
) -> NDArray[np.float32]:
    """Return what `engine.predict_scene` quantises, for a whole array, and NaN where there is no data."""
    from aerialseg.prediction.engine import Accumulator
    from aerialseg.prediction.network import batch_size
    from aerialseg.prediction.reading import WindowBatch, read_batches

    (bands, height, width), settings = pixels.shape, forward.settings
    box = GeoBox(height, width, Affine.identity(), None)
    marked = ValidityRule(by_file=True)
    source = Source(ARRAY, box, tuple(range(1, bands + 1)), str(pixels.dtype), scale, marked, ())
    placement = ScenePlacement.alone(source)
    lattice = Lattice.of(placement, settings.size, settings.overlap)
    schedule, accumulator = Schedule.of(placement, lattice), Accumulator(lattice, settings)
    validity: Validity = SimpleQueue()
    batch = WindowBatch.empty(
        batch_size(settings, lattice), bands, settings.size, pinned=settings.device.type == "cuda"
    )
    result = np.empty((height, width), dtype=np.float32)
    with closing(read_batches(placement, schedule, [batch], validity, partial(_fill, pixels, valid, scale))) as batches:
        for index, rows in _finished_rows(forward, batches, accumulator, lattice.down.stop):
            for start, stop in schedule.strips(index):
                strip, own = result[start:stop], validity.get()
                strip[:] = rows[0].cpu().numpy()
                if np.isnan(strip).any():
                    raise ModelError(f"{ARRAY}: the model gave NaN; use precision fp32")
                if own is not None:
                    strip[~own] = np.nan
    return result


def _finished_rows(
    forward: Forward, batches: Iterator[WindowBatch], accumulator: Accumulator, stop: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each row of windows and what is final after it, as `Accumulator.finish` does."""
    for batch in batches:
        for (row, col), probability in zip(batch.places, forward(batch), strict=False):
            yield from accumulator.finish(row)
            accumulator.add(row, col, probability)
    yield from accumulator.finish(stop)


def _fill(
    pixels: NDArray[Any], valid: NDArray[np.bool_] | None, scale: tuple[float, float] | None,
    window: Window, into: NDArray[np.uint8], into_valid: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Do what `read_window_into` does, from an array."""
    rows, cols = window.toslices()
    values = pixels[:, rows, cols]
    into_valid[:] = True if valid is None else valid[rows, cols]
    if values.dtype.kind == "f":
        into_valid &= np.isfinite(values).all(axis=0)
    into[:] = values if scale is None else scaled(values, scale)
