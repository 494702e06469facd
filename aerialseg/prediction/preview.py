"""Pictures of a run: for each scene a PNG with the mask's outline and the probability, and a sheet with all of them.

What there is to show comes from report.json in the folder that predict wrote; masks are found beside it, so the folder
may have been moved. A scene that is gone or cannot be read is drawn grey. Equal files give equal pictures.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from aerialseg.counts import NODATA
from aerialseg.errors import AerialsegError, BadDataError, NoInputError, Stopped, UsageError, one_line
from aerialseg.files import locked, prepare_output_folder, refuse_foreign, refuse_input_as_output, sweep
from aerialseg.geo.opening import open_raster
from aerialseg.geo.outputs import is_of_another_run, left_out_note
from aerialseg.geo.qgis.styles import shown_bands
from aerialseg.geo.resampling import block_mean, small_shape
from aerialseg.prediction.checks import REPORT
from aerialseg.prediction.exports import STAC
from aerialseg.prediction.pictures import Looks, draw, draw_sheet, draw_thumbnail, is_our_png, save_png
from aerialseg.prediction.stac import ITEMS, identifier_of
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from aerialseg.prediction.pictures import Picture
    from aerialseg.progress import Progress

SHEET = "contact-sheet.png"
GREY = 150


@dataclass(frozen=True, slots=True)
class Predicted:
    """A scene of a report whose mask is there."""

    name: str
    scene: Path
    mask: Path
    probability: Path | None
    left_out: Path | None = None
    """The probability that another run left in its place."""

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read for it, and may therefore not be written over."""
        return tuple(path for path in (self.scene, self.mask, self.probability, self.left_out) if path is not None)


def write_previews(
    out: Path, folder: Path, *, size: int, overwrite: bool, progress: Progress | None = None
) -> tuple[Path, ...]:
    """Write FOLDER/NAME.png for each scene predicted into `out`, and the contact sheet; return them, the sheet last.

    `size` is the longer side of a scene in pixels. Raises NoInputError when `out` is no folder of predict's,
    UsageError where a picture would replace a scene, OutputError for a stranger's picture in the way unless
    `overwrite`, BadDataError for a mask that cannot be read.
    """
    progress = progress or Silent()
    found = read_predicted(out)
    targets = {item.name: folder / f"{item.name}.png" for item in found}
    sheet = folder / SHEET
    if sheet in targets.values():
        raise UsageError(f"{one_line(sheet)}: a scene has the name of the contact sheet; rename the scene")
    refuse_input_as_output([path for item in found for path in item.files], [*targets.values(), sheet])
    left_out = [item.left_out for item in found if item.left_out is not None]
    if left_out:
        progress.say(left_out_note(left_out))
    for path in {folder, *(target.parent for target in targets.values())}:
        prepare_output_folder(path)
    with locked(folder):
        sweep(folder)
        for path in (*targets.values(), sheet):
            refuse_foreign(path, ours=is_our_png(path), overwrite=overwrite)
        progress.start("preview", sum(map(_mpx, found)), "Mpx")
        thumbnails = []
        for item in found:
            looks = _look(item, size, progress)
            save_png(targets[item.name], draw(looks, one_line(item.name)))
            thumbnails.append((one_line(item.name), draw_thumbnail(looks, len(found))))
        progress.finish()
        save_png(sheet, draw_sheet(thumbnails))
    return *targets.values(), sheet


def read_predicted(out: Path) -> tuple[Predicted, ...]:
    """Return the scenes in report.json whose masks are there; raises NoInputError when there are none."""
    path = out / REPORT
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise NoInputError(f"{one_line(path)}: not found; give a folder that aerialseg predict wrote") from error
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{one_line(path)}: is not JSON; run aerialseg predict again") from error
    scenes = value.get("scenes") if isinstance(value, dict) and value.get("command") == "predict" else None
    if not isinstance(scenes, dict):
        raise BadDataError(f"{one_line(path)}: is not a report of aerialseg predict")
    found = [_predicted(out, name, entry) for name, entry in scenes.items()]
    there = tuple(item for item in found if item is not None)
    if not there:
        raise NoInputError(f"{one_line(out)}: no mask of the scenes in {REPORT} is there; run aerialseg predict")
    return there


def _predicted(out: Path, name: str, entry: Any) -> Predicted | None:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or not place.name or not isinstance(entry, dict):
        raise BadDataError(f"{one_line(out / REPORT)}: scene {one_line(name)} cannot be a scene's name")
    mask, probability = out / f"{name}.tif", out / "probability" / f"{name}.tif"
    if not mask.is_file():
        return None
    item = Predicted(name, _scene_of(out, name, entry), mask, None)
    if not probability.is_file():
        return item
    strange = is_of_another_run(probability, mask)
    return replace(item, left_out=probability) if strange else replace(item, probability=probability)


def _scene_of(out: Path, name: str, entry: dict[str, Any]) -> Path:
    """Return where a scene is: where it was predicted from, or from `out` on the way that its STAC item says."""
    image = Path(str(entry.get("image", "")))
    item = out / STAC / ITEMS / f"{identifier_of(name)}.json"
    try:
        if not image.is_file():
            href = json.loads(item.read_bytes())["assets"]["scene"]["href"]
            return Path(os.path.normpath(item.parent / unquote(href)))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # the scene is named where it was, and cannot be read
    return image


def _mpx(item: Predicted) -> float:
    with open_raster(item.mask) as mask:
        pixels: float = mask.height * mask.width / 1e6
    return pixels * (3 if item.probability is not None else 2)


def _look(item: Predicted, size: int, progress: Progress) -> Looks:
    advance: Callable[[float], None] = progress.advance
    with open_raster(item.mask) as mask:
        full = mask.height, mask.width
    shape = small_shape(*full, size)
    building, valid = block_mean(item.mask, (1,), shape, _labels, advance)
    probability = None
    if item.probability is not None:
        total, where = block_mean(item.probability, (1,), shape, _quanta, advance)
        probability = total / np.maximum(where, 1e-9) / 254
    try:
        pixels = _pixels(item.scene, full, shape, advance)
    except Stopped:
        raise
    except AerialsegError as error:
        progress.say(f"warning: {error}; drawn grey")
        pixels = np.full((*shape, 3), GREY, np.uint8)
    return Looks(pixels, building, valid, probability)


def _labels(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([values == 1, values != NODATA]).view(np.uint8)


def _quanta(values: NDArray[Any]) -> NDArray[Any]:
    where = values != NODATA
    return np.concatenate([np.where(where, values, 0), where.astype(np.uint8)])


def _pixels(path: Path, full: tuple[int, int], shape: tuple[int, int], advance: Callable[[float], None]) -> Picture:
    """Return a scene's colours, small; other types than uint8 are stretched between their 2nd and 98th percentiles."""
    with open_raster(path) as dataset:
        bands, dtype, found = shown_bands(dataset), np.dtype(dataset.dtypes[0]), (dataset.height, dataset.width)
    if found != full:
        raise BadDataError(f"{one_line(path)}: is {found[0]}x{found[1]} now, its mask is {full[0]}x{full[1]}")
    means = block_mean(path, bands, shape, partial(np.nan_to_num, nan=0.0, posinf=0.0, neginf=0.0), advance)
    if dtype != np.uint8:
        low, high = np.percentile(means, (2, 98))
        means = (means - low) * (255 / max(high - low, 1e-9))
    colours = np.clip(np.rint(means), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(colours, (3, *shape)), 0, -1))
