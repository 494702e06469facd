"""Which pixels of a scene hold data: what its file marks, what the user says, and what only looks as if it held none.

A mask band, alpha or a nodata value marks pixels in the file. rasterio's `dataset_mask` knows all three, but not which
bands are read, nor alpha beside a nodata value, nor alpha that was compressed with loss; such files are read by a rule
of our own. A fill that no tag names, as around a scene that was turned, is looked for in a few blocks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from aerialseg.errors import AerialsegError, BadDataError, UsageError, one_line
from aerialseg.geo.opening import is_tiff, raster_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

    Colour = tuple[float, ...]
    """A value for each band that is read."""

NEAR = 8
"""By so much a lossy codec may change a fill's values."""
NEAR_TAG = 1e-6
"""Relative: float values were rounded on their way into a tag."""
ALPHA_SAMPLES = 8
ALPHA_SAMPLE_SIZE = 256
ALPHA_DATA_SHARE = 0.01
"""Alpha is 0 or opaque but for a few edge pixels, or else it is looked at more closely."""
ALPHA_OPAQUE_SHARE = 0.2
"""Of the pixels above 0 in alpha with a wide feather; near infrared is hardly ever saturated."""
ALPHA_RINGING = 16
"""A lossy codec leaves alpha by about so much beside 0 and opaque."""
ALPHA_RINGED_SHARE = 0.8
"""Of the values between 0 and opaque that lie within twice that of an end: a feather has a quarter of them there."""
COLLAR_PLACES = 16
"""A collar is looked for at so many places down and across, 3 for a start: corners and middles of the edges."""
COLLAR_PIXELS = 16
"""Side of what is looked at for a start; a quarter of it afterwards."""
COLLAR_SHARE = 0.02
COLLAR_READ = 1 << 25
"""Pixels of blocks that may be decoded for it."""
COLLAR_WHOLE = 1 << 20
"""Pixels of a PNG or JPEG that is decoded wholly for it; of a larger one the top alone is looked at for a start."""


@dataclass(frozen=True, slots=True)
class ValidityRule:
    """How a scene's valid pixels are told, beside those that are not finite; the defaults say: all are valid."""

    by_file: bool = False
    """Whether `dataset_mask` counts."""
    alpha: int | None = None
    """The band whose values mark what is valid, where `dataset_mask` would not do."""
    opaque_from: float = 1
    fills: tuple[tuple[Colour, float], ...] = ()
    """Colours that mean no data, each with the tolerance in every band."""

    @property
    def marks_any(self) -> bool:
        """Whether some pixel may be invalid."""
        return self.by_file or self.alpha is not None or bool(self.fills)

    def settings(self) -> list[Any]:
        """Return what decides the valid pixels beside `by_file`, for a digest; empty when nothing does."""
        own = self.alpha is not None or self.fills
        return [{key: value for key, value in asdict(self).items() if key != "by_file"}] if own else []


def read_valid(
    dataset: DatasetReader, rule: ValidityRule, window: Window, values: NDArray[Any]
) -> NDArray[np.bool_] | Literal[True]:
    """Return which pixels (rows, cols) of a window are valid; `values` (bands, rows, cols) were read there."""
    valid: NDArray[np.bool_] | Literal[True] = True
    if rule.by_file:
        valid = dataset.dataset_mask(window=window) != 0
    if rule.alpha is not None:
        valid = valid & (dataset.read(rule.alpha, window=window) >= rule.opaque_from)
    for colour, tolerance in rule.fills:
        valid = valid & ~_is_colour(values, colour, tolerance)
    return valid


def tagged_alpha(dataset: DatasetReader) -> int | None:
    """Return the band whose tag says that it is alpha, if there is one."""
    colours = dataset.colorinterp
    return colours.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colours else None


def decide_alpha(
    dataset: DatasetReader, path: Path, chosen: int | Literal["auto", "data"], bands: tuple[int, ...] | None
) -> tuple[int | None, str]:
    """Return which band is alpha, if any, and a line on it; `bands` are those that the user wants to be read.

    Raises BadDataError when a band is tagged alpha and looks like data, unless the bands are chosen, and when the
    chosen one is not there.
    """
    name = one_line(path)
    band = tagged_alpha(dataset) if chosen == "auto" else chosen
    if band is None or band == "data":
        return None, ""
    if band > dataset.count:
        raise BadDataError(f"{name}: scene has {dataset.count} bands, --alpha {band} asks for another")
    if band in (bands or ()):
        return None, ""
    if chosen == "auto" and _looks_like_data(dataset, path, band):
        looks = f"{name}: band {band} looks like data, though tagged alpha"
        if bands is None:
            raise BadDataError(f"{looks}: use --bands if it is, as near infrared, or --alpha {band} if it marks data")
        return None, f"{looks}; every pixel counts as valid, unless --alpha {band} says what is"
    return band, f"{name}: band {band} is alpha: it marks valid pixels and is not given to the network"


def decide_validity(
    dataset: DatasetReader, path: Path, alpha: int | None, bands: tuple[int, ...], nodata: Colour
) -> ValidityRule:
    """Return how the valid pixels are told when `bands` are read: `nodata` is what the user says, one or one a band.

    A nodata tag counts where all bands that are read have its value. Raises UsageError when `nodata` does not fit them.
    """
    if len(nodata) not in (0, 1, len(bands)):
        given = ",".join(f"{value:g}" for value in nodata)
        raise UsageError(
            f"--nodata {given}: {one_line(path)} is read in {len(bands)} bands; give one value, or as many"
        )
    told = tuple(map(float, nodata)) * (len(bands) // max(1, len(nodata)))
    fills = [(told, float(NEAR if is_lossy(dataset) else 0))] if nodata else []
    flags = [flag for band in bands for flag in dataset.mask_flag_enums[band - 1]]
    has_tag = MaskFlags.nodata in flags
    by_file = not all(MaskFlags.all_valid in kinds for kinds in dataset.mask_flag_enums)
    if MaskFlags.alpha in flags:  # the mask is the alpha band and nothing else
        by_file = alpha is not None
    shadowed = dataset.count == 4 and dataset.colorinterp[0] == ColorInterp.red
    if has_tag and (alpha is not None or shadowed or set(bands) != set(dataset.indexes)):
        by_file = False  # dataset_mask takes all bands, and of four such the last alone
        tags = [dataset.nodatavals[band - 1] for band in bands]
        if None not in tags and not any(map(math.isnan, tags)):
            fills.append((tuple(tags), 0.0))
    if alpha is None:
        return ValidityRule(by_file, fills=tuple(fills))
    opaque_from = _opaque_from(dataset, path, alpha)
    if MaskFlags.alpha in flags and opaque_from == 1 and dataset.colorinterp[alpha - 1] == ColorInterp.alpha:
        return ValidityRule(by_file, fills=tuple(fills))
    return ValidityRule(by_file and MaskFlags.alpha not in flags, alpha, opaque_from, tuple(fills))


def find_collar(dataset: DatasetReader, path: Path, bands: tuple[int, ...], rule: ValidityRule) -> Colour | None:
    """Return the one colour that fills a large part of the scene from its border on, and that nothing marks.

    A few small windows are read, and more only where one of them at a corner or an edge is of one colour. None when
    there is none, when the file has other marks, or cannot be looked at in pieces.
    """
    height, width = dataset.height, dataset.width
    block_rows, block_cols = dataset.block_shapes[0]
    most = COLLAR_READ // max(block_rows * block_cols, COLLAR_PIXELS * width if block_cols == width else 1)
    if rule.by_file or rule.alpha is not None or min(height, width) < 4 * COLLAR_PIXELS or most < 9:
        return None
    from_top = not (is_tiff(path) or dataset.driver.startswith("JP2")) and height * width > COLLAR_WHOLE
    rows = (0.0,) if from_top else (0.0, 0.5, 1.0)
    try:
        with raster_errors(path, "its border"):
            spots = [(down, across) for down in rows for across in (0.0, 0.5, 1.0) if (down, across) != (0.5, 0.5)]
            corners = [_look(dataset, bands, *spot, COLLAR_PIXELS) for spot in spots]
            flat = is_lossy(dataset)  # calm water comes out of such a codec in one colour, but not in black or white
            for colour in dict.fromkeys(map(_one_colour, corners)):
                if colour is None or any(_is_near(colour, *fill) for fill in rule.fills):
                    continue
                if flat and colour not in ((0.0,) * len(bands), (_opaque(corners[0]),) * len(bands)):
                    continue
                places = np.linspace(0, 1, min(COLLAR_PLACES, math.isqrt(most)))
                looks = ((down, across) for down in places for across in places)
                cells = [_one_colour(_look(dataset, bands, *look, COLLAR_PIXELS // 4)) == colour for look in looks]
                if _from_border(np.reshape(cells, (len(places), -1))).mean() >= COLLAR_SHARE:
                    return colour
    except AerialsegError:  # damage is told by what reads the scene
        return None
    return None


def _is_colour(values: NDArray[Any], colour: Colour, tolerance: float) -> NDArray[np.bool_]:
    """Return where all bands have a colour, as bool (rows, cols)."""
    found = np.ones(values.shape[1:], dtype=np.bool_)
    for band, value in zip(values, colour, strict=True):
        if band.dtype.kind == "f":
            found &= np.isclose(band, value, rtol=NEAR_TAG, atol=tolerance)
        elif tolerance:
            found &= (band >= value - tolerance) & (band <= value + tolerance)
        else:
            found &= band == (int(value) if value.is_integer() else value)
    return found


def is_lossy(dataset: DatasetReader) -> bool:
    """Return whether the codec changes values, as far as the file says."""
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    if dataset.driver.startswith("JP2"):
        return "LOSSLESS" not in structure.get("COMPRESSION_REVERSIBILITY", "")
    if "LOSSLESS" in structure.get("COMPRESSION_REVERSIBILITY", ""):
        return False
    compression = structure.get("COMPRESSION", "")
    return dataset.driver == "JPEG" or any(codec in compression for codec in ("JPEG", "WEBP", "JXL"))


def _sampled(dataset: DatasetReader, path: Path, bands: Sequence[int]) -> NDArray[Any]:
    """Return (bands, pixels) of a few windows, the first and the last in corners."""
    height, width = min(ALPHA_SAMPLE_SIZE, dataset.height), min(ALPHA_SAMPLE_SIZE, dataset.width)
    found = []
    for index in range(ALPHA_SAMPLES):
        down, across = index / (ALPHA_SAMPLES - 1), index * 5 / (ALPHA_SAMPLES - 1) % 1
        window = Window(int(across * (dataset.width - width)), int(down * (dataset.height - height)), width, height)
        with raster_errors(path, "the alpha band"):
            found.append(dataset.read(list(bands), window=window).reshape(len(bands), -1))
    return np.concatenate(found, axis=1)


def _opaque(alpha: NDArray[Any]) -> int:
    return 255 if alpha.dtype == np.uint8 else alpha.max()


def _looks_like_data(dataset: DatasetReader, path: Path, band: int) -> bool:
    """Return whether a band tagged alpha holds more than "here" and "not here": near infrared is often tagged so.

    A feathered or lossy one is alpha all the same: much of it is opaque, and where it is 0 there is one colour.
    """
    alpha = _sampled(dataset, path, [band])[0]
    lossy, opaque = is_lossy(dataset), _opaque(alpha)
    slack = ALPHA_RINGING if lossy else 0
    if np.count_nonzero((alpha > slack) & (alpha < opaque - slack)) <= ALPHA_DATA_SHARE * alpha.size:
        return False
    here, full = np.count_nonzero(alpha > slack), np.count_nonzero(alpha >= opaque - slack)
    if full < ALPHA_OPAQUE_SHARE * here or not (alpha == 0).any():
        return True
    colours = _sampled(dataset, path, [other for other in dataset.indexes if other != band])[:, alpha == 0]
    middle = np.median(colours, axis=1, keepdims=True)
    same = (np.abs(colours - middle) <= (2 * NEAR if lossy else 0)).all(axis=0)
    return bool(np.count_nonzero(same) < (1 - ALPHA_DATA_SHARE * lossy) * same.size)


def _opaque_from(dataset: DatasetReader, path: Path, band: int) -> float:
    """Return the least value of an alpha band that means data: 1, or more where a codec has blurred it."""
    alpha = _sampled(dataset, path, [band])[0]
    opaque = float(alpha.max())  # masks of 0 and 1 are made, too
    between, lossy = alpha[(alpha > 0) & (alpha < opaque)], is_lossy(dataset)
    if between.size <= (0 if lossy else ALPHA_DATA_SHARE * alpha.size):
        return 1
    end = math.ceil(2 * ALPHA_RINGING / 255 * opaque)
    if np.count_nonzero((between <= end) | (between >= opaque - end)) >= ALPHA_RINGED_SHARE * between.size:
        return math.ceil(opaque / 2)
    return end if lossy else 1


def _look(dataset: DatasetReader, bands: tuple[int, ...], down: float, across: float, side: int) -> NDArray[Any]:
    row, col = int(down * (dataset.height - side)), int(across * (dataset.width - side))
    values: NDArray[Any] = dataset.read(list(bands), window=Window(col, row, side, side))
    return values


def _one_colour(values: NDArray[Any]) -> Colour | None:
    """Return the colour of (bands, rows, cols) that are all alike."""
    first = values[:, 0, 0]
    return tuple(map(float, first)) if (values == first[:, np.newaxis, np.newaxis]).all() else None


def _is_near(colour: Colour, fill: Colour, tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(colour, fill, strict=True))


def _from_border(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return those of the cells that hang together with one at the border, by their sides."""
    reached = cells.copy()
    reached[1:-1, 1:-1] = False
    while True:
        wider = np.pad(reached, 1)
        grown = cells & (reached | wider[:-2, 1:-1] | wider[2:, 1:-1] | wider[1:-1, :-2] | wider[1:-1, 2:])
        if (grown == reached).all():
            return reached
        reached = grown
