"""Masks in colours: one colour means building, in three bands or in a palette; which colours a mask holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.enums import ColorInterp, MaskFlags

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, counted, folded, one_line
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.raster import block_windows
from aerialseg.geo.validity import NEAR, is_lossy, tagged_alpha

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from rasterio.io import DatasetReader
    from rasterio.windows import Window

    Colour = tuple[int, int, int]

SHOWN = 5
"""Colours that a message names."""
MOST = 256
"""What holds more colours than this is no mask, and they are not counted on."""


def read_colour(mask: DatasetReader, colour: Colour, window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Read a window of a mask as (building, valid), each (rows, cols): where it has a colour, and where it has any.

    The colour is met exactly, in a file that is compressed with loss nearly; it counts also where its values are the
    declared nodata. Raises BadDataError for a mask without colours.
    """
    bands = _colour_bands(mask)
    with raster_errors(Path(mask.name)):
        values = mask.read(bands, window=window)
        flags = mask.mask_flag_enums[bands[0] - 1]
        if MaskFlags.all_valid in flags:
            valid = np.ones(values.shape[1:], dtype=np.bool_)
        elif MaskFlags.nodata in flags:
            valid = (values != mask.nodata).any(axis=0)
        else:
            valid = mask.dataset_mask(window=window) != 0
        alpha = tagged_alpha(mask)
        if alpha is not None and MaskFlags.alpha not in flags:
            valid &= mask.read(alpha, window=window) != 0
    told = _in_colours(mask, values)
    slack = NEAR if is_lossy(mask) else 0
    building = np.ones(valid.shape, dtype=np.bool_)
    for band, wanted in zip(told, colour, strict=True):
        building &= np.abs(band.astype(np.int32) - wanted) <= slack
    if MaskFlags.nodata in flags:
        valid |= building
    return building & valid, valid


def colour_notes(
    paths: Sequence[Path], colour: Colour, skip: Callable[[Path, AerialsegError], None] | None
) -> tuple[str, ...]:
    """Say which masks do not hold a colour, and which colours instead, and which are compressed with loss.

    Raises BadDataError when none holds it. A file that cannot be read raises too, unless `skip` is told of it.
    """
    notes, without, read = [], [], 0
    shown = ",".join(map(str, colour))
    for path in paths:
        try:
            with open_raster(path) as mask, raster_errors(path):
                if not any(read_colour(mask, colour, window)[0].any() for window in block_windows(mask)):
                    held = describe_colours(
                        _in_colours(mask, mask.read(_colour_bands(mask), window=window))
                        for window in block_windows(mask)
                    )
                    without.append(f"{one_line(path)}: no pixel has the colour {shown}; it holds {held}")
                if is_lossy(mask):
                    notes.append(
                        f"{one_line(path)}: is compressed with loss, which blurs its colours: what is within {NEAR} of"
                        f" {shown} counts as building; masks as PNG or GeoTIFF are exact"
                    )
            read += 1
        except (BadDataError, NoInputError) as error:
            if skip is None:
                raise
            skip(path, error)
    if read and len(without) == read:
        more = f", and so it is with {counted(read - 1, 'other mask')}" if read > 1 else ""
        raise BadDataError(f"{without[0]}{more}; --building-colour names another one")
    few = f"{without[0]} (and {len(without) - 1:,} more without it)" if len(without) > 1 else "".join(without)
    return (*([few] if few else []), *folded(notes))


def describe_colours(pieces: Iterable[NDArray[Any]]) -> str:
    """Return the colours of pixels (3, rows, cols), the most frequent first, for a message."""
    found: Counter[int] = Counter()
    for piece in pieces:
        red, green, blue = piece.astype(np.int64)
        codes, counts = np.unique(red << 32 | green << 16 | blue, return_counts=True)
        found.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        if len(found) > MOST:
            return f"more than {MOST} colours, as an image does"
    named = ", ".join(f"{code >> 32},{code >> 16 & 65535},{code & 65535}" for code, _ in found.most_common(SHOWN))
    return f"{named} and {len(found) - SHOWN} more" if len(found) > SHOWN else named


def _colour_bands(mask: DatasetReader) -> list[int]:
    """Return the bands that hold colours: one with a palette, or three."""
    bands = [i for i, kind in zip(mask.indexes, mask.colorinterp, strict=True) if kind != ColorInterp.alpha]
    if len(bands) != 3 and not (len(bands) == 1 and mask.colorinterp[0] == ColorInterp.palette):
        raise BadDataError(
            f"{one_line(mask.name)}: has {counted(len(bands), 'band')} and no colours to look for --building-colour in;"
            " say which values mean building with --building-values"
        )
    return bands


def _in_colours(mask: DatasetReader, values: NDArray[Any]) -> NDArray[Any]:
    """Return (3, rows, cols), looked up in the palette where there is one."""
    if len(values) == 3:
        return values
    table = np.zeros((65536, 3), dtype=np.int32)
    for value, entry in mask.colormap(1).items():
        table[value] = entry[:3]
    return np.moveaxis(table[values[0]], -1, 0)
