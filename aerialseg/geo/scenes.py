"""Scenes: which rasters a user's files, folders, globs and data set roots mean, their names, masks and splits.

A scene's name is its path below the folder given, without suffix, with "/"; outputs mirror it. A mosaic, `.vrt`, stands
for its scenes where it is named; in a folder it is passed over. Masks pair by name, or by ground when there is one for
all. Scenes train or validate as a whole, by number, by name or by share. Names are looked at here, what a mosaic says,
and grids where they have to agree; whether a file is a usable raster is for `aerialseg.geo.inspection` to say.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aerialseg.errors import BadDataError, NoInputError, UsageError, counted, one_line
from aerialseg.files import is_folder, resolved
from aerialseg.geo.geobox import GeoBox, same_horizontal
from aerialseg.geo.opening import open_raster, refuse_remote
from aerialseg.geo.vrt import mosaic_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


Split = Literal["train", "val"]
SUFFIXES = frozenset((".tif", ".tiff", ".jp2", ".j2k", ".png", ".jpg", ".jpeg"))
MOSAIC = ".vrt"
ROOTS = ("", "AerialImageDataset", "data", "raw")
"""Where Inria's `train/images` stands below what users point at."""
MASK_FOLDERS = ("gt", "masks", "labels")
NAMED_MISSING = 5
INRIA_CITIES = frozenset(
    ("austin", "chicago", "kitsap", "tyrol-w", "vienna", "bellingham", "bloomington", "innsbruck", "sfo", "tyrol-e")
)
INRIA_VALIDATION = range(1, 6)
"""The data set's authors validate on scenes 1 to 5 of every city."""
AUTO_SHARE = 0.2
_CITY = re.compile(r"(?P<city>\D*[^\W\d])(?P<number>\d+)")
_RANGE = re.compile(r"(?P<city>.*\D)(?P<first>\d+)-(?P<last>\d+)")


@dataclass(frozen=True, slots=True)
class Scene:
    """A source raster, perhaps with its mask.

    Example:
        >>> scene = aerialseg.Scene("austin1", Path("images/austin1.tif"), mask=Path("gt/austin1.tif"))
        >>> scene.city, scene.number
        ('austin', 1)
    """

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

    Example:
        >>> [scene.name for scene in aerialseg.find_scenes(["scenes"])]
        ['austin6', 'vienna1']
    """
    scenes: dict[Path, Scene] = {}
    for given in inputs:
        for scene in _scenes_of(given):
            scenes.setdefault(Path(os.path.abspath(scene.image)), scene)  # noqa: PTH100  (links are not followed)
    if ours is not None:
        scenes = {path: scene for path, scene in scenes.items() if not ours(scene.image)}
        if inputs and not scenes:
            raise NoInputError(f"{one_line(inputs[0])}: holds nothing but what aerialseg wrote; give the scenes")
    once = {(scene.name, resolved(scene.image)): scene for scene in reversed(scenes.values())}
    taken: dict[str, Scene] = {}
    for scene in once.values():
        other = taken.setdefault(_folded(scene.name), scene)
        if other is not scene:
            raise UsageError(
                f"{one_line(other.image)} and {one_line(scene.image)}: both would be called {one_line(scene.name)};"
                " give the folder that holds both, or rename one"
            )
    return tuple(sorted(once.values(), key=lambda scene: natural_key(scene.name)))


def pair_masks(
    scenes: Sequence[Scene], masks: Sequence[str | Path], pattern: str | None = None, *, partly: bool = False
) -> tuple[Scene, ...]:
    """Return the scenes with their masks: by relative stem or `pattern`, or by ground when `masks` is one file.

    Scenes that turn out to be another scene's mask are left out. Raises BadDataError naming scenes without a mask;
    labelled `partly`, one mask is enough.

    Example:
        >>> scenes = aerialseg.find_scenes(["scenes/train/images"])
        >>> [str(scene.mask) for scene in aerialseg.pair_masks(scenes, ["scenes/train/gt"])]
        ['scenes/train/gt/austin6.tif', 'scenes/train/gt/vienna1.tif']
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
    if is_folder(path):
        layout = _layout(path)
        found = _in_folder(path if layout is None else layout[0])
        if layout is not None and layout[1] is not None:
            masks = pair_by_name(found, _in_folder(layout[1]), None)
            found = [replace(scene, mask=masks.get(scene.name)) for scene in found]
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
    folder = resolved(path).parent if path.is_symlink() else path.parent
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
        if is_folder(train / "images"):
            return train / "images", mask_folder(train)
    masks = mask_folder(root)
    return (root / "images", masks) if masks is not None and is_folder(root / "images") else None


def mask_folder(folder: Path) -> Path | None:
    """Return the folder of masks in a folder, by the names that are usual."""
    return next((folder / name for name in MASK_FOLDERS if is_folder(folder / name)), None)


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


def pair_by_name(scenes: Sequence[Scene], masks: Sequence[Scene], pattern: str | None) -> dict[str, Path]:
    """Return scene name -> mask file, by relative stem, else by the bare stem where it is unique on both sides.

    `pattern` says how the mask's stem is made from the scene's: "{stem}_label", or "_sat:_mask", which puts another
    part in the last place of one; a suffix in it must agree. Where no name is the very one, its case does not matter.
    """
    rename, suffix = _renaming(pattern)
    masks = [mask for mask in masks if suffix in ("", mask.image.suffix.lower())]
    by_name = {mask.name: mask.image for mask in masks}
    by_stem, own_stems = _unique_stems(masks), _unique_stems(scenes)
    by_folded_name, by_folded_stem = _unique_folded(by_name), _unique_folded(by_stem)
    found = {}
    for scene in scenes:
        folder, _, stem = scene.name.rpartition("/")
        wanted = rename(stem)
        whole = f"{folder}/{wanted}" if folder else wanted
        mask = by_name.get(whole) or (by_stem.get(wanted) if stem in own_stems else None)
        if mask is None:
            mask = by_folded_name.get(_folded(whole))
        if mask is None and stem in own_stems:
            mask = by_folded_stem.get(_folded(wanted))
        if mask is not None and wanted:
            found[scene.name] = mask
    return found


def case_note(scenes: Sequence[Scene], pattern: str | None = None) -> str | None:
    """Say how many scenes have masks by names, as `pattern` makes them, that differ in case only; None when none."""
    rename, _ = _renaming(pattern)
    both = [(rename(scene.name.rpartition("/")[2]), scene.mask, scene.image) for scene in scenes if scene.mask]
    odd = [names for names in both if names[0] != names[1].stem and _folded(names[0]) == _folded(names[1].stem)]
    if not odd:
        return None
    pair = f"{one_line(odd[0][1])} for {one_line(odd[0][2])}"
    return f"{counted(len(odd), 'mask')} by names that differ in case only, such as {pair}; paired all the same"


def _renaming(pattern: str | None) -> tuple[Callable[[str], str], str]:
    """Return what makes a mask's stem of a scene's, nothing where it cannot, and the suffix that the mask must have."""
    if pattern is None:
        return lambda stem: stem, ""
    old, colon, new = pattern.partition(":")
    if "{stem}" not in pattern and not (old and colon):
        raise UsageError(
            f"--mask-pattern {one_line(pattern)}: must hold {{stem}}, for example '{{stem}}_label.tif', or be OLD:NEW,"
            " for example '_sat:_mask'"
        )
    if "{stem}" in pattern:
        suffix = Path(pattern.replace("{stem}", "stem")).suffix
        return lambda stem: pattern.replace("{stem}", stem).removesuffix(suffix), suffix.lower()
    suffix = Path(f"stem{new}").suffix
    old, new = old.removesuffix(Path(f"stem{old}").suffix if suffix else ""), new.removesuffix(suffix)
    return lambda stem: new.join(stem.rsplit(old, 1)) if old in stem else "", suffix.lower()


def _unique_folded(known: Mapping[str, Path]) -> dict[str, Path]:
    """Return folded name -> file, of the names that no other is like but for its case."""
    counts = Counter(map(_folded, known))
    return {_folded(name): path for name, path in known.items() if counts[_folded(name)] == 1}


def _folded(name: str) -> str:
    """Return a name as a file system sees it that ignores case or normalises Unicode."""
    return unicodedata.normalize("NFC", name).casefold()


def pair_by_ground(scenes: Sequence[Scene], mask: Path) -> dict[str, Path]:
    """Return the scenes that a single mask file overlaps; a single scene needs no ground to belong to it."""
    if len(scenes) == 1:
        return {scenes[0].name: mask}
    with open_raster(mask) as dataset:
        box = GeoBox.of(dataset)
    found = {}
    for scene in scenes:
        with open_raster(scene.image) as dataset:
            other = GeoBox.of(dataset)
        if not (box.georeferenced and other.georeferenced) or not same_horizontal(box.crs, other.crs):
            continue
        a, b = other.bounds, box.bounds
        if a.left < b.right and b.left < a.right and a.bottom < b.top and b.bottom < a.top:
            found[scene.name] = mask
    return found


def with_masks(scenes: Sequence[Scene], found: dict[str, Path], *, partly: bool = False) -> tuple[Scene, ...]:
    """Return the scenes with their masks; those that are another's mask are left out.

    Raises BadDataError naming scenes without a mask, or, if they may be labelled `partly`, when none has one;
    UsageError when nothing is left: scenes and masks are the same files.
    """
    used = {resolved(mask) for mask in found.values()}
    kept = [scene for scene in scenes if resolved(scene.image) not in used]
    if scenes and not kept:
        raise UsageError(f"{one_line(scenes[0].image)}: is given as a scene and as a mask; --masks names true masks")
    missing = [one_line(scene.image) for scene in kept if scene.name not in found]
    if missing and not (partly and found):
        more = f" and {len(missing) - NAMED_MISSING} more" if len(missing) > NAMED_MISSING else ""
        raise BadDataError(
            f"{', '.join(missing[:NAMED_MISSING])}{more}: no mask found; masks pair by the same stem, or use"
            " --mask-pattern '{stem}_label.tif', or '_sat:_mask'"
        )
    return tuple(replace(scene, mask=found.get(scene.name)) for scene in kept)


def _unique_stems(scenes: Sequence[Scene]) -> dict[str, Path]:
    """Return stem -> file for the stems that occur once."""
    counts = Counter(scene.name.rpartition("/")[2] for scene in scenes)
    stems = ((scene.name.rpartition("/")[2], scene.image) for scene in scenes)
    return {stem: image for stem, image in stems if counts[stem] == 1}


def split_scenes(  # noqa: C901  (a line for each form)
    scenes: Sequence[Scene], spec: str, pixels: Mapping[str, int] | None = None
) -> dict[str, Split]:
    """Return scene name -> split, by "inria", "val=austin1-5,tyrol-w1,vienna*", a share such as "0.2", or "auto".

    "auto" is Inria's rule when every scene is one of Inria's and both splits get some, else a share of 0.2. A share is
    taken evenly from the cities, the same scenes every time; with `pixels` by scene "auto" takes it of them rather than
    of the scenes' number. Raises UsageError when the spec is not understood, when an
    item of it matches no scene, or when a split stays empty.
    """
    if spec == "auto":
        inria = all(scene.city in INRIA_CITIES for scene in scenes)
        splits = _by_number(scenes) if inria else {}
        if len(set(splits.values())) < 2:
            splits = _by_share(scenes, AUTO_SHARE, pixels)
    elif spec == "inria":
        splits = _by_number(scenes)
    elif spec.startswith("val="):
        items = spec.removeprefix("val=")
        splits = {scene.name: "train" for scene in scenes}
        for item in filter(None, map(str.strip, items.split(","))):
            chosen = [scene.name for scene in scenes if _matches(scene, item)]
            if not chosen:
                raise UsageError(f"--split val={items}: no scene matches {item}")
            splits.update(dict.fromkeys(chosen, "val"))
    else:
        try:
            share = float(spec)
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            raise UsageError(f"--split {spec}: give auto, inria, val=NAMES, blocks=N or a share between 0 and 1")
        splits = _by_share(scenes, share)
    for split in ("train", "val"):
        if split not in splits.values():
            raise UsageError(f"--split {spec}: no scene is left to {split}; choose another split, or blocks=N")
    return splits


def _by_number(scenes: Sequence[Scene]) -> dict[str, Split]:
    for scene in scenes:
        if scene.number is None:
            raise UsageError(f"--split inria: {scene.name} is not named <city><number>; use val=NAMES or a share")
    return {scene.name: "val" if scene.number in INRIA_VALIDATION else "train" for scene in scenes}


def _matches(scene: Scene, item: str) -> bool:
    """Return whether an item means a scene: its name or stem, a pattern, a city, or a range of a city's numbers."""
    stem = scene.name.rpartition("/")[2]
    if item in (scene.name, stem, scene.city) or fnmatchcase(scene.name, item) or fnmatchcase(stem, item):
        return True
    span = _RANGE.fullmatch(item)
    if span is None or scene.number is None or scene.city != span["city"]:
        return False
    return int(span["first"]) <= scene.number <= int(span["last"])


def _by_share(scenes: Sequence[Scene], share: float, pixels: Mapping[str, int] | None = None) -> dict[str, Split]:
    """Order every city by a hash of the names, spread the cities evenly over one line, and take its beginning.

    With `pixels`, what would lead further from the share of them than it is without is passed over.
    """
    if len(scenes) < 2:
        raise UsageError("one scene cannot be split by scenes; use --split blocks=N")
    cities: dict[str | None, list[str]] = defaultdict(list)
    for scene in sorted(scenes, key=lambda scene: hashlib.sha256(scene.name.encode()).digest()):
        cities[scene.city].append(scene.name)
    line = sorted(
        ((place + 0.5) / len(names), hashlib.sha256(name.encode()).hexdigest(), name)
        for names in cities.values()
        for place, name in enumerate(names)
    )
    names = [name for _, _, name in line]
    if pixels is None or len({pixels[name] for name in names}) == 1:
        chosen = set(names[: min(max(1, round(share * len(scenes))), len(scenes) - 1)])
    else:
        wanted, chosen = share * sum(pixels[name] for name in names), set()
        for name in names:
            if pixels[name] <= 2 * wanted and pixels[name] > 0:
                chosen.add(name)
                wanted -= pixels[name]
        chosen = chosen or {min(names, key=lambda name: pixels[name])}
    return {scene.name: "val" if scene.name in chosen else "train" for scene in scenes}
