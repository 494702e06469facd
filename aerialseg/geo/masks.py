"""What a building mask's values mean, decided once for a whole set of masks.

A mask has one band. Declared nodata (value, alpha or mask band) is ground nobody labelled; of the rest, 0 is background
and 1 or 255 is building, whichever the set uses. Other values need a word from the user. Deciding looks at a sample of
each file; reading is strict, so that a value the sample missed stops the work instead of being taken for background.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, UsageError, one_line
from aerialseg.geo.raster import Access, GeoBox, open_raster, raster_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

BYTE = 255
SAMPLED_WINDOWS = 8
WINDOW_PIXELS = 2**18
"""A sample is 8 windows of about 512 x 512 px spread over the file; files smaller than that are read whole."""


@dataclass(frozen=True, slots=True)
class MaskRule:
    """What the user says about the masks; all defaults mean: look at the values and decide."""

    building_values: tuple[int, ...] | None = None
    """These are building and every other value is background."""
    ignore_values: tuple[int, ...] = ()
    """These are unlabelled ground, whatever the file declares."""
    threshold: int | None = None
    """This value and above is building: for anti-aliased or probability masks."""

    def __post_init__(self) -> None:
        if self.building_values is not None and self.threshold is not None:
            raise UsageError("--building-values and --mask-threshold contradict each other; give one of them")
        if self.threshold is not None and not 1 <= self.threshold <= 65535:
            raise UsageError(f"--mask-threshold {self.threshold}: give a value of the masks above 0, such as 128")
        both = set(self.building_values or ()) & set(self.ignore_values)
        if both:
            raise UsageError(f"value {min(both)} is both in --building-values and in --ignore-values")


@dataclass(frozen=True, slots=True)
class ResolvedRule:
    """A rule that leaves nothing open; what `read_mask` goes by."""

    building_values: tuple[int, ...]
    ignore_values: tuple[int, ...] = ()
    threshold: int | None = None
    background_only_zero: bool = False
    """Any value but 0, building and ignore is an error: the rule was decided from a sample."""
    zero_is_background: bool = False
    """Some file declares nodata 0, but nothing else could be its background."""
    warnings: tuple[str, ...] = ()


def decide_rule(
    paths: Sequence[Path], rule: MaskRule | None = None, skip: Callable[[Path, AerialsegError], None] | None = None
) -> ResolvedRule:
    """Decide what the values of a set of masks mean, from a sample of every file.

    Without a word from the user building is 1 or 255, whichever occurs; a set with both is refused, since 255 could
    be building or unlabelled ground. A file whose nodata is 0 and which holds only building besides was made for
    display, and its 0 is background. Raises BadDataError naming the files and the values found. A file that cannot be
    read raises too, unless `skip` is given, which is told of it.
    """
    rule = rule or MaskRule()
    found, zero_nodata = _sample(paths, skip)
    if rule.threshold is not None and found and max(found) <= BYTE < rule.threshold:
        raise BadDataError(
            f"{one_line(found[max(found)])}: its highest value is {max(found)}, as of all masks, and --mask-threshold"
            f" {rule.threshold} is never reached; give a lower one, such as 128"
        )
    values = {value: path for value, path in found.items() if value not in rule.ignore_values}
    building = _decide_building(values, rule)
    background = set(values) - {0, *building}
    zero_is_background = zero_nodata is not None and (rule.threshold is not None or not background)
    warnings: tuple[str, ...] = ()
    if zero_nodata is not None and zero_is_background:
        name = one_line(zero_nodata)
        warnings = (f"{name}: declares 0 as nodata but has no other background, so 0 is taken as background",)
    strict = rule.building_values is None and rule.threshold is None
    return ResolvedRule(building, rule.ignore_values, rule.threshold, strict, zero_is_background, warnings)


def read_mask(mask: DatasetReader, rule: ResolvedRule, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Read a window inside the mask as (building, valid), boolean arrays of the window's (rows, cols).

    `valid` is False on declared nodata, non-finite values and ignored values; `building` is False there too. Raises
    BadDataError for values the rule does not know and for colour masks whose bands differ.
    """
    path = Path(mask.name)
    with raster_errors(path):
        values, valid = _read_values(mask, window, rule.zero_is_background)
    building = _any_of(values, rule.building_values) if rule.threshold is None else values >= rule.threshold
    if rule.ignore_values:
        valid &= ~_any_of(values, rule.ignore_values)
    counted = int(np.count_nonzero(valid))
    if counted < valid.size:
        building &= valid
    if rule.background_only_zero:
        labelled = values if counted == valid.size else values[valid]
        if np.count_nonzero(labelled) != np.count_nonzero(building):
            _refuse(np.unique(labelled).tolist(), path, rule.building_values)
    return building, valid


def mask_box(path: Path, access: Access | None = None) -> GeoBox:
    """Return a mask's grid; raises BadDataError when it is too large or has no place, unless `access` permits it."""
    access = access or Access()
    with open_raster(path) as mask:
        box = GeoBox.of(mask)
    name, pixels = one_line(path), box.height * box.width
    if pixels > access.max_pixels:
        raise BadDataError(
            f"{name}: {box.height}x{box.width} is {pixels:.3g} pixels, more than --max-pixels {access.max_pixels:g};"
            " raise it if the mask is really that large"
        )
    if not box.georeferenced and not access.allow_ungeoreferenced:
        raise BadDataError(
            f"{name}: has no georeferencing: gdal_translate -a_srs EPSG:... -a_ullr ..., or compare pixel by pixel"
            " with --allow-ungeoreferenced"
        )
    return box


def block_windows(dataset: DatasetReader, pixels: int = 2**22) -> Iterator[Window]:
    """Yield windows that cover the raster once, row after row, of about `pixels` pixels and of whole blocks.

    They are as wide as the raster unless its rows of blocks are far too large for that. Blocks larger than four times
    `pixels` (a file stored as one strip) are cut, since a block in memory costs less than eight arrays of its size.
    """
    block_rows, block_cols = dataset.block_shapes[0]
    height, width = dataset.height, dataset.width
    cols = width
    if block_rows * width > 2 * pixels:
        cols = min(width, max(1, pixels // block_rows // block_cols) * block_cols)
    rows = max(1, pixels // cols)
    if block_rows * cols <= 4 * pixels:
        rows = max(1, rows // block_rows) * block_rows
    for row in range(0, height, rows):
        for col in range(0, width, cols):
            yield Window(col, row, min(cols, width - col), min(rows, height - row))


def _decide_building(values: dict[float, Path], rule: MaskRule) -> tuple[int, ...]:
    if rule.threshold is not None:
        return ()
    if rule.building_values is not None:
        return rule.building_values
    strangers = sorted(value for value in values if value not in (0, 1, 255))
    if strangers:
        path = values[strangers[0]]
        _refuse(sorted(value for value, where in values.items() if where == path), path, (1, 255))
    if 1 in values and 255 in values:
        raise BadDataError(
            f"{one_line(values[255])}: 255 here is not declared as nodata, and {one_line(values[1])} holds 1; say what "
            "they mean with --building-values 1,255 or with --building-values 1 --ignore-values 255"
        )
    return tuple(value for value in (1, 255) if value in values) or (1, 255)


def _refuse(values: list[float], path: Path, building: tuple[int, ...]) -> None:
    many = len(values) > 8
    shown = ", ".join(f"{value:g}" for value in values[:8]) + (f" and {len(values) - 8} more" if many else "")
    advice = "--mask-threshold 128 (an anti-aliased mask)" if many else "--building-values and --ignore-values"
    expected = f"0 for background and {' or '.join(map(str, building))} for building"
    raise BadDataError(
        f"{one_line(path)}: mask values {shown} found, {expected} expected; say what they mean with {advice}"
    )


def _sample(
    paths: Sequence[Path], skip: Callable[[Path, AerialsegError], None] | None
) -> tuple[dict[float, Path], Path | None]:
    """Return each valid value with a file that holds it, and a file whose nodata is 0 if there is one.

    Samples every file; where that brings nothing but background, files are read whole until a building turns up.
    """
    found: dict[float, Path] = {}
    zero_nodata: list[Path] = []
    left = list(paths)
    for windows_of in (_spread, block_windows):
        for path in tuple(left):
            if windows_of is block_windows and not set(found) <= {0}:
                break
            try:
                with open_raster(path) as mask, raster_errors(path):
                    values = {value for window in windows_of(mask) for value in _values_in(mask, window)}
                    zero_nodata += [path] if mask.nodata == 0 else []
            except (BadDataError, NoInputError) as error:
                if skip is None:
                    raise
                skip(path, error)
                left.remove(path)
                continue
            found = dict.fromkeys(values, path) | found
    return found, next(iter(zero_nodata), None)


def _spread(mask: DatasetReader) -> Iterator[Window]:
    """Yield the sample's windows: whole blocks, one after another downwards, their columns mixed."""
    if mask.height * mask.width <= SAMPLED_WINDOWS * WINDOW_PIXELS:
        yield Window(0, 0, mask.width, mask.height)
        return
    block_rows, block_cols = mask.block_shapes[0]
    cols = min(mask.width, -(-512 // block_cols) * block_cols)
    rows = min(mask.height, max(1, WINDOW_PIXELS // cols // block_rows) * block_rows)
    for step in range(SAMPLED_WINDOWS):
        row = (mask.height - rows) * step // (SAMPLED_WINDOWS - 1) // block_rows * block_rows
        col = (mask.width - cols) * (step * 3 % SAMPLED_WINDOWS) // (SAMPLED_WINDOWS - 1) // block_cols * block_cols
        yield Window(col, row, cols, rows)


def _values_in(mask: DatasetReader, window: Window) -> list[float]:
    values, valid = _read_values(mask, window, zero_is_background=False)
    kept = values if valid.all() else values[valid]
    usual = {value: np.count_nonzero(kept == value) for value in (0, 1, 255)}
    if sum(usual.values()) == kept.size:  # thirty times faster than sorting
        return [value for value, count in usual.items() if count]
    return list(np.unique(kept).tolist())


def _read_values(
    mask: DatasetReader, window: Window, zero_is_background: bool
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read one band's values (rows, cols) and which of them are neither nodata, masked out, nor NaN."""
    bands = [i for i, colour in zip(mask.indexes, mask.colorinterp, strict=True) if colour != ColorInterp.alpha]
    values = mask.read(bands[0], window=window)
    for band in bands[1:]:
        if not np.array_equal(values, mask.read(band, window=window)):
            raise BadDataError(
                f"{one_line(mask.name)}: a mask has one band, this one has {len(bands)} that differ; is it an image?"
            )
    flags = mask.mask_flag_enums[bands[0] - 1]
    if MaskFlags.all_valid in flags or (zero_is_background and mask.nodata == 0 and MaskFlags.nodata in flags):
        valid = np.ones(values.shape, dtype=np.bool_)
    else:
        valid = mask.dataset_mask(window=window) != 0
    if values.dtype.kind == "f":
        valid &= np.isfinite(values)
    return values, valid


def _any_of(values: NDArray[Any], wanted: tuple[int, ...]) -> NDArray[np.bool_]:
    found = np.zeros(values.shape, dtype=np.bool_) if not wanted else values == wanted[0]
    for value in wanted[1:]:
        found |= values == value
    return found
