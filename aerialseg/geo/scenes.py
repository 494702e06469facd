"""Finding scenes: what the user's files, folders, globs and data set roots mean, and what each scene is called.

A scene's name is its path below the folder given, without suffix, with "/"; outputs mirror it. A mosaic, `.vrt`, stands
for its scenes where it is named; in a folder it is passed over. Only names are looked at here, and what a mosaic says;
whether a file is a usable raster is for `aerialseg.geo.raster.inspect_scene` to say.
"""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from aerialseg.errors import BadDataError, NoInputError, UsageError, one_line
from aerialseg.geo.mosaic import mosaic_sources
from aerialseg.geo.opening import refuse_remote
from aerialseg.geo.pairing import check_same_grid, pair_by_ground, pair_by_name, with_masks
from aerialseg.geo.split import split_scenes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["Scene", "check_same_grid", "find_scenes", "pair_masks", "require_masks", "split_scenes"]

SUFFIXES = frozenset((".tif", ".tiff", ".jp2", ".j2k", ".png", ".jpg", ".jpeg"))
MOSAIC = ".vrt"
ROOTS = ("", "AerialImageDataset", "data", "raw")
"""Where Inria's `train/images` stands below what users point at."""
MASK_FOLDERS = ("gt", "masks", "labels")

_CITY = re.compile(r"(?P<city>\D*[^\W\d])(?P<number>\d+)")


@dataclass(frozen=True, slots=True)
class Scene:
    """A source raster, perhaps with its mask."""

    name: str
    """The path below the folder given, without suffix: unique among the scenes, also without regard to case."""
    image: Path
    mask: Path | None = None

    @property
    def city(self) -> str | None:
        """The place in a stem such as `tyrol-w12`; None when the stem is not <city><number>."""
        match = _CITY.fullmatch(self.name.rpartition("/")[2])
        return match["city"] if match else None

    @property
    def number(self) -> int | None:
        """The number in a stem such as `tyrol-w12`; None when the stem is not <city><number>."""
        match = _CITY.fullmatch(self.name.rpartition("/")[2])
        return int(match["number"]) if match else None


def find_scenes(inputs: Sequence[str | Path], ours: Callable[[Path], bool] | None = None) -> tuple[Scene, ...]:
    """Return the scenes that files, folders, globs and Inria roots stand for, in natural order (austin2 < austin10).

    Of a data set root the training scenes are taken, with their masks. Files that are `ours` are outputs of an earlier
    run among its scenes; they are passed over. Raises UsageError when two scenes would share an output name or a path
    is remote, BadDataError for a name that is not UTF-8 and for a `.vrt` that is more than a mosaic of files below its
    folder, NoInputError when nothing is found.
    """
    scenes: dict[Path, Scene] = {}
    for given in inputs:
        for scene in _scenes_of(given):
            scenes.setdefault(Path(os.path.abspath(scene.image)), scene)  # noqa: PTH100  (links are not followed)
    if ours is not None:
        scenes = {path: scene for path, scene in scenes.items() if not ours(scene.image)}
        if inputs and not scenes:
            raise NoInputError(f"{one_line(inputs[0])}: holds nothing but what aerialseg wrote; give the scenes")
    once = {(scene.name, scene.image.resolve()): scene for scene in reversed(scenes.values())}
    _refuse_collisions(once.values())
    return tuple(sorted(once.values(), key=lambda scene: natural_key(scene.name)))


def pair_masks(
    scenes: Sequence[Scene], masks: Sequence[str | Path], pattern: str | None = None, *, partly: bool = False
) -> tuple[Scene, ...]:
    """Return the scenes with their masks: by relative stem or `pattern`, or by ground when `masks` is one file.

    Scenes that turn out to be another scene's mask are left out. Raises BadDataError naming scenes without a mask;
    labelled `partly`, one mask is enough.
    """
    candidates: list[Scene] = []
    for given in masks:
        layout = _layout(Path(given))
        candidates += _scenes_of(given if layout is None or layout[1] is None else layout[1])
    found = pair_by_name(scenes, candidates, pattern)
    if not found and len(candidates) == 1:
        found = pair_by_ground([s for s in scenes if s.image != candidates[0].image], candidates[0].image)
    return with_masks(scenes, found, partly=partly)


def require_masks(scenes: Sequence[Scene], *, partly: bool = False) -> tuple[Scene, ...]:
    """Return the scenes, each of which came with a mask; raises BadDataError naming those without."""
    return with_masks(scenes, {scene.name: scene.mask for scene in scenes if scene.mask is not None}, partly=partly)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key that compares runs of digits as numbers."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts)


def _scenes_of(given: str | Path) -> Iterator[Scene]:
    refuse_remote(given)
    path = Path(given)
    if path.is_dir():
        layout = _layout(path)
        found = _in_folder(path) if layout is None else _in_layout(*layout)
    elif not os.path.lexists(path) and glob.has_magic(str(given)):
        found = _of_glob(str(given))
    elif os.path.lexists(path):
        found = _in_file(path)
    else:
        raise NoInputError(f"{one_line(path)}: no such file or folder")
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        raise NoInputError(f"{one_line(path)}: no scene found; looked for {kinds}")
    yield from found


def _in_file(path: Path) -> list[Scene]:
    """Return the scene that a file is, or the scenes of a mosaic, named from the mosaic's folder."""
    if path.suffix.lower() != MOSAIC:
        return [_scene(path, path.parent)]
    folder = path.resolve().parent if path.is_symlink() else path.parent
    return [_scene(image, folder) for image in mosaic_sources(path)]


def _in_folder(folder: Path) -> list[Scene]:
    """Return every raster below a folder; a folder that holds none but is named like a raster is a broken one."""
    scenes = [_scene(path, folder) for path in _walk(folder)]
    if not scenes and folder.suffix.lower() in SUFFIXES:
        return [_scene(folder, folder.parent)]
    return scenes


def _walk(folder: Path) -> Iterator[Path]:
    """Yield raster files below a folder, through linked folders once, without hidden ones and masks beside images."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        skipped = MASK_FOLDERS if "images" in folders else ()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(place, name)


def _layout(root: Path) -> tuple[Path, Path | None] | None:
    """Return the folders of images and masks when `root` is a data set of Inria's layout, else None."""
    for above, between in product(ROOTS, ROOTS):
        train = root / above / between / "train"
        if (train / "images").is_dir():
            return train / "images", _mask_folder(train)
    masks = _mask_folder(root)
    return (root / "images", masks) if masks is not None and (root / "images").is_dir() else None


def _mask_folder(folder: Path) -> Path | None:
    return next((folder / name for name in MASK_FOLDERS if (folder / name).is_dir()), None)


def _in_layout(images: Path, masks: Path | None) -> list[Scene]:
    scenes = _in_folder(images)
    found = pair_by_name(scenes, _in_folder(masks), None) if masks is not None else {}
    return [Scene(scene.name, scene.image, found.get(scene.name)) for scene in scenes]


def _of_glob(pattern: str) -> list[Scene]:
    """Return what a pattern matches, named from the last folder before its first wildcard.

    Mosaics count where the pattern itself ends with `.vrt`.
    """
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    paths = (Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207  (Path.glob refuses absolute ones)
    if pattern.lower().endswith(MOSAIC):
        return [scene for path in sorted(paths) if path.suffix.lower() == MOSAIC for scene in _in_file(path)]
    return [_scene(path, base) for path in sorted(paths) if path.suffix.lower() in SUFFIXES]


def _scene(path: Path, base: Path) -> Scene:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BadDataError(f"{one_line(path)}: the file name is not UTF-8; rename it") from error
    return Scene(path.relative_to(base).with_suffix("").as_posix(), path)


def _refuse_collisions(scenes: Iterable[Scene]) -> None:
    """Raise when two outputs would share a name, on a file system that ignores case or normalises Unicode too."""
    taken: dict[str, Scene] = {}
    for scene in scenes:
        key = unicodedata.normalize("NFC", scene.name).casefold()
        if key in taken:
            raise UsageError(
                f"{one_line(taken[key].image)} and {one_line(scene.image)}: both would be called"
                f" {one_line(scene.name)}; give the folder that holds both, or rename one"
            )
        taken[key] = scene
