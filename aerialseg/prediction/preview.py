"""Pictures of a run: for each scene a PNG with the mask's outline and the probability, and a sheet with all of them.

What there is to show comes from report.json in the folder that predict wrote; masks are found beside it, so the folder
may have been moved. A scene that is gone or cannot be read is drawn grey. Equal files give equal pictures.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aerialseg.drawing import frame, read_small, save_png, sheet, thumbnail
from aerialseg.errors import BadDataError, NoInputError, UsageError, one_line
from aerialseg.files import is_regular, locked, prepare_output_folder, refuse_input_as_output, require_space, sweep
from aerialseg.geo.digest import seen, what_changed
from aerialseg.geo.opening import open_raster
from aerialseg.geo.outputs import is_of_another_run, item_path, left_out_note
from aerialseg.geo.ownership import check_overwrite
from aerialseg.geo.resampling import small_shape
from aerialseg.prediction.checks import REPORT
from aerialseg.progress import Silent
from aerialseg.values import read_json

if TYPE_CHECKING:
    from aerialseg.progress import Progress

SHEET = "contact-sheet.png"
PIXEL_BYTES, THUMBNAIL_BYTES = 3, 1_000_000
"""Disk that a pixel of a picture takes at most, and a scene on the contact sheet."""


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
    UsageError where a picture would replace a scene, OutputError for a foreign picture in the way unless
    `overwrite`, BadDataError for a mask that cannot be read.
    """
    progress = progress or Silent()
    found = read_predicted(out)
    targets = {item.name: folder / f"{item.name}.png" for item in found}
    contact = folder / SHEET
    if contact in targets.values():
        raise UsageError(f"{one_line(contact)}: a scene has the name of the contact sheet; rename the scene")
    refuse_input_as_output([path for item in found for path in item.files], [*targets.values(), contact])
    left_out = [item.left_out for item in found if item.left_out is not None]
    if left_out:
        progress.say(left_out_note(left_out))
    for path in {folder, *(target.parent for target in targets.values())}:
        prepare_output_folder(path)
    with locked(folder):
        sweep(folder)
        for path in (*targets.values(), contact):
            check_overwrite(path, "preview", overwrite=overwrite)
        grids = [_shape(item) for item in found]
        pixels = sum(math.prod(small_shape(rows, cols, size)) * panels for rows, cols, panels in grids)
        require_space(folder, PIXEL_BYTES * pixels + THUMBNAIL_BYTES * len(found))
        progress.start("preview", sum(map(math.prod, grids)) / 1e6, "Mpx")
        thumbnails = []
        for item in found:
            name, looks = one_line(item.name), seen(item.files)
            scene = read_small(item.scene, item.mask, item.probability, size, progress)
            if (changed := what_changed(looks, "drawn")) is not None:
                raise changed
            save_png(targets[item.name], frame(scene, name))
            thumbnails.append((name, thumbnail(scene, len(found))))
        progress.finish()
        save_png(contact, sheet(thumbnails))
    return *targets.values(), contact


def read_predicted(out: Path) -> tuple[Predicted, ...]:
    """Return the scenes in report.json whose masks are there; raises NoInputError when there are none."""
    path = out / REPORT
    try:
        value = read_json(path)
    except OSError as error:
        raise NoInputError(f"{one_line(path)}: not found; give a folder that aerialseg predict wrote") from error
    except ValueError as error:
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
    if not is_regular(mask):
        return None
    item = Predicted(name, _scene_of(out, name, entry), mask, None)
    if not is_regular(probability):
        return item
    strange = is_of_another_run(probability, mask)
    return replace(item, left_out=probability) if strange else replace(item, probability=probability)


def _scene_of(out: Path, name: str, entry: dict[str, Any]) -> Path:
    """Return where a scene is: where it was predicted from, or from `out` on the way that its STAC item says."""
    image = Path(str(entry.get("image", "")))
    item = item_path(out, name)
    try:
        if not is_regular(image):
            href = read_json(item)["assets"]["scene"]["href"]
            return Path(os.path.normpath(item.parent / unquote(href)))
    except (OSError, ValueError, TypeError, KeyError):
        pass  # the scene is named where it was, and cannot be read
    return image


def _shape(item: Predicted) -> tuple[int, int, int]:
    """Return a mask's height and width, and how many panels its picture has."""
    with open_raster(item.mask) as mask:
        return mask.height, mask.width, 3 if item.probability is not None else 2
