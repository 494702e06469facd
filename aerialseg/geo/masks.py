"""What the values of masks mean, decided once for a whole set, and how a window of a mask is read by it.

A mask has one band. Declared nodata (value, alpha or mask band) is ground nobody labelled; of the rest, 0 is background
and 1 or 255 is building, whichever the set uses. Other values need a word from the user, and so do colours. That is
decided from a sample of each file; reading is strict, so that a value the sample missed stops the work instead of being
taken for background.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, UsageError, one_line
from aerialseg.geo.colours import colour_notes, describe_colours, read_colour
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.inspection import Access
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.raster import block_windows
from aerialseg.geo.validity import tagged_alpha

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader

BYTE = 255
SAMPLED_WINDOWS = 8
WINDOW_PIXELS = 2**18
"""A sample is 8 windows of about 512 x 512 px spread over the file; files smaller than that are read whole."""


@dataclass(frozen=True, slots=True)
class MaskRule:
    """What the user says about the masks; all defaults mean: look at the values and decide.

    Raises UsageError for values that contradict each other.

    Example:
        >>> aerialseg.MaskRule(building_values=(1, 6), ignore_values=(255,))
        MaskRule(building_values=(1, 6), ignore_values=(255,), threshold=None, building_colour=None)
    """

    building_values: tuple[int, ...] | None = None
    """These are building and every other value is background."""
    ignore_values: tuple[int, ...] = ()
    """These are unlabelled ground, whatever the file declares."""
    threshold: int | None = None
    """This value and above is building: for anti-aliased or probability masks."""
    building_colour: tuple[int, int, int] | None = None
    """Red, green and blue of building in masks of colours; every other colour is background."""

    def __post_init__(self) -> None:
        if self.building_colour is not None and replace(self, building_colour=None) != MaskRule():
            raise UsageError(
                "--building-colour is for masks in colours; --building-values, --ignore-values and --mask-threshold are"
                " for others; give one kind"
            )
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
    nodata_is_building: bool = False
    """Some file declares a building value as nodata, and the user has said that it is building."""
    warnings: tuple[str, ...] = ()
    building_colour: tuple[int, int, int] | None = None
    """Only this colour is building, and nothing else is looked at."""

    @property
    def overruled(self) -> tuple[float, ...]:
        """Nodata values that are data all the same."""
        return (0,) * self.zero_is_background + self.building_values * self.nodata_is_building


def decide_rule(
    paths: Sequence[Path], rule: MaskRule | None = None, skip: Callable[[Path, AerialsegError], None] | None = None
) -> ResolvedRule:
    """Decide what the values of a set of masks mean, from a sample of every file.

    Without a word from the user building is 1 or 255, whichever occurs; a set with both is refused, since 255 could
    be building or unlabelled ground. A file whose nodata is 0 and which holds only building besides was made for
    display, and its 0 is background. A building value that the user names counts also where a file declares it as
    nodata; of one that the user does not name a warning tells, if there is a rule, be it empty: it is for labels.
    Raises BadDataError naming the files and the values found. A file that cannot be read raises too, unless `skip` is
    given, which is told of it.
    """
    labels, rule = rule is not None, rule or MaskRule()
    if (colour := rule.building_colour) is not None:
        return ResolvedRule((), warnings=colour_notes(paths, colour, skip), building_colour=colour)
    found, tagged = _sample(paths, rule, skip)
    if rule.threshold is not None and found and max(found) <= BYTE < rule.threshold:
        raise BadDataError(
            f"{one_line(found[max(found)])}: its highest value is {max(found)}, as of all masks, and --mask-threshold"
            f" {rule.threshold} is never reached; give a lower one, such as 128"
        )
    values = {value: path for value, path in found.items() if value not in rule.ignore_values}
    building = _decide_building(values, rule)
    background = set(values) - {0, *building}
    zeros = [] if 0 in building else [path for path, nodata in tagged.items() if nodata == 0]
    zero_is_background = bool(zeros) and (rule.threshold is not None or not background)
    warnings: tuple[str, ...] = ()
    if zero_is_background:
        name = one_line(zeros[0])
        warnings = (f"{name}: declares 0 as nodata but has no other background, so 0 is taken as background",)
    strict = rule.building_values is None and rule.threshold is None
    hidden = [
        path
        for path, nodata in tagged.items()
        if nodata not in rule.ignore_values
        and (nodata in building if rule.threshold is None else nodata >= rule.threshold)
    ]
    wins = rule.building_values is not None and bool(hidden)
    if labels and not wins:
        warnings += _hidden_buildings(hidden)
    return ResolvedRule(building, rule.ignore_values, rule.threshold, strict, zero_is_background, wins, warnings)


def read_mask(mask: DatasetReader, rule: ResolvedRule, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Read a window inside the mask as (building, valid), boolean arrays of the window's (rows, cols).

    `valid` is False on declared nodata, non-finite values and ignored values; `building` is False there too. Raises
    BadDataError for values the rule does not know and for colour masks whose bands differ.
    """
    if rule.building_colour is not None:
        return read_colour(mask, rule.building_colour, window)
    path = Path(mask.name)
    with raster_errors(path):
        values, valid = _read_values(mask, window, rule.overruled)
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
    name = one_line(path)
    access.require_size(box.height, box.width, name, "mask")
    if not box.georeferenced and not access.allow_ungeoreferenced:
        only_crs = box.crs is None and box.transform != Affine.identity()
        lacks, way = (
            ("CRS", f"gdal_edit.py -a_srs EPSG:... {name}")
            if only_crs
            else ("georeferencing", "gdal_translate -a_srs EPSG:... -a_ullr ...")
        )
        raise BadDataError(f"{name}: has no {lacks}: {way}, or compare pixel by pixel with --allow-ungeoreferenced")
    return box


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


def _hidden_buildings(paths: Sequence[Path]) -> tuple[str, ...]:
    """Say of files that declare a building value as nodata how much of them that is."""
    hidden: dict[Path, tuple[float, float]] = {}
    for path in paths:
        with open_raster(path) as mask, raster_errors(path):
            share = next(
                filter(None, (_nodata_share(mask, windows(mask)) for windows in (_spread, block_windows))), 0.0
            )
            hidden |= {path: (share, mask.nodata)} if share else {}
    if not hidden:
        return ()
    worst = max(hidden, key=lambda path: hidden[path][0])
    (share, value), more = hidden[worst], f" (and {len(hidden) - 1} more like it)" if len(hidden) > 1 else ""
    return (
        f"{one_line(worst)}: declares {value:g} as nodata, so {share:.1%} of it is unlabelled{more}; if {value:g} means"
        f" building, say --building-values {value:g}, and if it does not, --ignore-values {value:g}",
    )


def _nodata_share(mask: DatasetReader, windows: Iterable[Window]) -> float:
    counts = [
        (np.count_nonzero(values == mask.nodata), values.size) for values in (mask.read(1, window=w) for w in windows)
    ]
    return float(sum(count for count, _ in counts) / sum(size for _, size in counts))


def _refuse(values: list[float], path: Path, building: tuple[int, ...]) -> None:
    many = len(values) > 8
    shown = ", ".join(f"{value:g}" for value in values[:8]) + (f" and {len(values) - 8} more" if many else "")
    advice = "--mask-threshold 128 (an anti-aliased mask)" if many else "--building-values and --ignore-values"
    expected = f"0 for background and {' or '.join(map(str, building))} for building"
    raise BadDataError(
        f"{one_line(path)}: mask values {shown} found, {expected} expected; say what they mean with {advice}"
    )


def _sample(
    paths: Sequence[Path], rule: MaskRule, skip: Callable[[Path, AerialsegError], None] | None
) -> tuple[dict[float, Path], dict[Path, float]]:
    """Return each valid value with a file that holds it, and the nodata values of the files that declare one.

    Samples every file; where that brings nothing but background, files are read whole until a building turns up. A file
    in which 0 is stored as white is refused as long as the rule names no building values.
    """
    found: dict[float, Path] = {}
    tagged: dict[Path, float] = {}
    left = list(paths)
    for windows_of in (_spread, block_windows):
        for path in tuple(left):
            if windows_of is block_windows and not set(found) <= {0}:
                break
            try:
                with open_raster(path) as mask, raster_errors(path):
                    values = {value for window in windows_of(mask) for value in _values_in(mask, window)}
                    if mask.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES" and rule.building_values is None:
                        _refuse_inverted(path, values)
                    if mask.nodata == 0 or (mask.nodata is not None and MaskFlags.nodata in mask.mask_flag_enums[0]):
                        tagged[path] = mask.nodata
            except (BadDataError, NoInputError) as error:
                if skip is None:
                    raise
                skip(path, error)
                left.remove(path)
                continue
            found = dict.fromkeys(values, path) | found
    return found, tagged


def _refuse_inverted(path: Path, values: Iterable[float]) -> None:
    other = max(values, default=1) or 1
    raise BadDataError(
        f"{one_line(path)}: its values are inverted (0 is white), so either may be building: --building-values 0 takes"
        f" what is stored as 0 and looks white, --building-values {other:g} what looks black"
    )


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
    values, valid = _read_values(mask, window)
    kept = values if valid.all() else values[valid]
    usual = {value: np.count_nonzero(kept == value) for value in (0, 1, 255)}
    if sum(usual.values()) == kept.size:  # thirty times faster than sorting
        return [value for value, count in usual.items() if count]
    return list(np.unique(kept).tolist())


def _read_values(
    mask: DatasetReader, window: Window, overruled: tuple[float, ...] = ()
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read one band's values (rows, cols) and which are not masked out, NaN, or nodata that is not overruled."""
    bands = [i for i, colour in zip(mask.indexes, mask.colorinterp, strict=True) if colour != ColorInterp.alpha]
    values = mask.read(bands[0], window=window)
    for band in bands[1:]:
        if not np.array_equal(values, mask.read(band, window=window)):
            held = describe_colours([mask.read(bands, window=window)]) if len(bands) == 3 else "other things"
            raise BadDataError(
                f"{one_line(mask.name)}: a mask has one band, this one has {len(bands)} that differ; is it an image? If"
                f" its colours are classes, --building-colour R,G,B names that of buildings; it holds {held}"
            )
    flags = mask.mask_flag_enums[bands[0] - 1]
    if MaskFlags.all_valid in flags or (MaskFlags.nodata in flags and mask.nodata in overruled):
        valid = np.ones(values.shape, dtype=np.bool_)
    elif MaskFlags.nodata in flags and mask.count > 1:  # dataset_mask would ask other bands, alpha's among them
        valid = values != mask.nodata
    else:
        valid = mask.dataset_mask(window=window) != 0
    alpha = tagged_alpha(mask)
    if alpha is not None and MaskFlags.alpha not in flags:
        valid &= mask.read(alpha, window=window) != 0
    if values.dtype.kind == "f":
        valid &= np.isfinite(values)
    return values, valid


def _any_of(values: NDArray[Any], wanted: tuple[int, ...]) -> NDArray[np.bool_]:
    found = np.zeros(values.shape, dtype=np.bool_) if not wanted else values == wanted[0]
    for value in wanted[1:]:
        found |= values == value
    return found
