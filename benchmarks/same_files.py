"""Which files of two folders differ in what they hold: `same_bytes.py` says why that is asked.

Two files are the same when their bytes are. Some formats keep times, places and durations, which no two runs share;
those named in VIEWS are compared by what is left without them, and by nothing less.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

DURATIONS = ("seconds", "loading_seconds", "mpx_per_s", "images_per_s", "estimated_s")
"""Keys of a JSON value, columns of a table, and names of scalars that a clock decides."""
SPENT = re.compile(r"[\d,.]+ (s|Mpx/s|crops/s)\b")
"""The same in a sentence."""
EVENTS = re.compile(r"(events\.out\.tfevents)\..*")
"""TensorBoard names its files by time, host and process."""
LOCK = ".aerialseg-lock"


@dataclass(frozen=True, slots=True)
class Expected:
    """A difference that is meant."""

    path: str
    """What the file is called in the working tree; `\\1` stands for a group of the pattern."""
    same: Callable[[Path, Path], bool]
    """Whether the base's file and the working tree's are as they ought to be."""
    reason: str


def json_without_durations(path: Path) -> Any:
    """Return a JSON file's value without what a clock decided."""
    return without(json.loads(path.read_bytes()), DURATIONS)


def table_without_durations(path: Path) -> Any:
    """Return the rows of a CSV file without the columns that a clock decided."""
    return without(list(csv.DictReader(io.StringIO(path.read_text()))), DURATIONS)


def run_without_places(path: Path) -> Any:
    """Return what run.json says beside its random id, times, folders, and the program's own place and revision."""
    value = without(json.loads(path.read_bytes()), ("id", "time", "folder", "git"))
    for start in value["starts"]:
        start["command"] = start["command"][1:]
    return value


def checkpoint_without_durations(path: Path) -> Any:
    """Return a checkpoint's nest with a digest for each tensor, without durations and the digest that covers them."""
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    return without(plain(content["state"]), DURATIONS)


def scalars_without_durations(path: Path) -> Any:
    """Return step, name and content of all TensorBoard events, without wall times and what a clock decided."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        (event.step, value.tag, hashlib.sha256(value.tensor.SerializeToString()).hexdigest())
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if not value.tag.endswith(DURATIONS)
    ]


def cache_without_stamps(path: Path) -> Any:
    """Return a training cache's records, and its table without the times at which the tiles' files were written."""
    content = path.read_bytes()
    length, _ = struct.unpack("<Q32s", content[-40:])
    table = json.loads(content[-40 - length : -40])
    table["tiles"] = [[name, crc] for name, _, crc in table["tiles"]]
    return [hashlib.sha256(content[: -40 - length]).hexdigest(), table]


def tables(path: Path) -> Any:
    """Return all tables of a GeoPackage as SQL; its pages may lie in another order."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        database.text_factory = bytes
        names = [name.decode() for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(map(repr, database.execute(f'SELECT * FROM "{name}"'))) for name in sorted(names)}


def text_without_durations(path: Path) -> Any:
    """Return what a command printed, as JSON or as text, without what a clock decided."""
    text = path.read_text()
    try:
        return without(json.loads(text), DURATIONS)
    except ValueError:
        return SPENT.sub(r"- \1", text)


VIEWS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "report*.json": (json_without_durations, "reports say how long a command took"),
    "metrics.csv": (table_without_durations, "an epoch's seconds and rate"),
    "run.json": (run_without_places, "a random id, times, where it ran, and the program's revision"),
    "*.ckpt": (checkpoint_without_durations, "a checkpoint carries the rows of metrics.csv"),
    "events.out.tfevents*": (scalars_without_durations, "events carry the time of writing, and rates"),
    "*.tiles": (cache_without_stamps, "a training cache knows its tiles' files by their times"),
    "*.gpkg": (tables, "SQLite may lay pages out otherwise; the dates in it are pinned"),
    "*.stdout": (text_without_durations, "commands say how long they took"),
}
"""Name of a file -> what of it is compared where its bytes differ, and why bytes are not enough."""


def same_but_for_degrade(base: Path, tree: Path) -> bool:
    """Whether a file of a run is the same, or would be if the base called `data.wear` by its new name, `degrade`."""
    if base.read_bytes() == tree.read_bytes():
        return True
    if base.suffix == ".toml":
        return base.read_text().replace("\nwear = ", "\ndegrade = ") == tree.read_text()
    view = model_without_digest if base.suffix == ".safetensors" else checkpoint_without_durations
    return first_difference(with_degrade(view(base)), view(tree)) is None


def model_without_digest(path: Path) -> Any:
    """Return a model file's card as JSON by new names, without the digest that covers it; and its tensors."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:end])
    (text,) = tensors.pop("__metadata__").values()
    card = json.loads(text)
    del card["digest"]
    return [json.dumps(with_degrade(card), sort_keys=True), tensors, hashlib.sha256(content[end:]).hexdigest()]


def with_degrade(value: Any) -> Any:
    """Return a nest of dicts and lists with the key `degrade` for `wear`, in its place."""
    if isinstance(value, dict):
        return {"degrade" if key == "wear" else key: with_degrade(item) for key, item in value.items()}
    return [with_degrade(item) for item in value] if isinstance(value, list | tuple) else value


RENAMED = "data.wear is now data.degrade"


def same_bytes(base: Path, tree: Path) -> bool:
    """Return whether two files hold the same bytes."""
    return base.read_bytes() == tree.read_bytes()


CHANGED = (*DURATIONS, "probability", "disagreement", "mask", "floors_m2", "in part", "uncut")
"""Keys of a report whose values follow from other bytes of a raster, or that are new."""


def same_report_of_disagreement(base: Path, tree: Path) -> bool:
    """Return whether two reports say the same where the base says agreement for disagreement."""
    told = json.loads(base.read_text().replace("agreement", "disagreement"))
    return first_difference(without(told, CHANGED), without(json.loads(tree.read_bytes()), CHANGED)) is None


def same_raster_with_digest(base: Path, tree: Path) -> bool:
    """Return whether two outputs have equal pixels, equal tags but one over the pixels, and, of measures, overviews."""
    import rasterio

    with rasterio.open(base) as one, rasterio.open(tree) as other:
        told, rows, levels = other.tags(), other.read(1), one.overviews(1)
        found = told.pop("AERIALSEG_PIXELS_SHA256", None) == hashlib.sha256(rows.tobytes()).hexdigest()
        same = one.tags() == told and one.profile == other.profile and levels == other.overviews(1)
        same = same and bool((one.read(1) == rows).all())
    for level in range(len(levels) if base.parent.name in ("probability", "agreement") else 0):
        with rasterio.open(base, overview_level=level) as one, rasterio.open(tree, overview_level=level) as other:
            same = same and bool((one.read(1) == other.read(1)).all())
    return found and same


def same_buildings_without_days(base: Path, tree: Path) -> bool:
    """Return whether two files hold the same buildings, the working tree's with a day that is not known."""
    import pyogrio

    one, other = (pyogrio.read_dataframe(path, layer=0) for path in (base, tree))
    days = other[["taken", "taken_from"]].isna().all(axis=None)
    return bool(days) and one.equals(other.drop(columns=["taken", "taken_from"]))


def same_item_with_scale(base: Path, tree: Path) -> bool:
    """Return whether two STAC items are the same but for the scale of the probability, which the base does not tell."""
    one, other = (without(json.loads(path.read_bytes()), ("aerialseg:seal",)) for path in (base, tree))
    scale = other["assets"].get("probability", {})
    told = [scale.pop("raster:scale", None), scale.pop("raster:offset", None)]
    other["stac_extensions"] = [uri for uri in other["stac_extensions"] if "/raster/" not in uri]
    return told == [1 / 254, 0] and first_difference(one, other) is None


def same_info_of_degrade(base: Path, tree: Path) -> bool:
    """Return whether two printed results are the same but for `wear`, which is `degrade` now."""
    both = with_degrade(json.loads(base.read_text())), json.loads(tree.read_text())
    return first_difference(*(without(value, DURATIONS) for value in both)) is None


EXPECTED: dict[str, Expected] = {
    r"full/agreement/(.*)": Expected(
        r"full/disagreement/\1", same_raster_with_digest, "1 always meant that windows disagree"
    ),
    r"((out|pair|coarsely|full)/((probability/)?[^/]*\.tif))": Expected(
        r"\1", same_raster_with_digest, "a raster says what its pixels were, and masks zoomed out keep their buildings"
    ),
    r"((out|pair|coarsely|full)/report\.json|predict-again\.stdout)": Expected(
        r"\1", same_report_of_disagreement, "a report names the option and its rasters"
    ),
    r"((truth|full/buildings)\.(gpkg|fgb|geojson))": Expected(
        r"\1", same_buildings_without_days, "buildings have a day, which is not known here"
    ),
    r"((full|coarsely)/stac/items/[^/]*\.json)": Expected(
        r"\1", same_item_with_scale, "the probability says by which scale its numbers are probabilities"
    ),
    r"(info-2\.stdout)": Expected(r"\1", same_info_of_degrade, RENAMED),
    r"((run|more)/(config\.toml|(last|previous)\.ckpt|model\.safetensors))": Expected(
        r"\1", same_but_for_degrade, RENAMED
    ),
}
"""Pattern of a path in the base's folder -> what the working tree makes of it on purpose."""


def compare_folders(base: Path, tree: Path) -> dict[str, str]:
    """Return relative path -> how the file differs, of all files below two folders; {} when all is the same.

    What EXPECTED names is compared as it says there; it is an error, too, when such a file is missing.
    """
    left, right = listed(base), listed(tree)
    found: dict[str, str] = {}
    for name, path in left.items():
        meant = next(((p, e) for p, e in EXPECTED.items() if re.fullmatch(p, name)), None)
        if name in right and same_bytes(path, right[name]):  # a step before left it to both sides
            meant = None
        other = name if meant is None else re.sub(meant[0], meant[1].path, name)
        if other not in right:
            found[name] = "missing" if meant is None else f"missing: expected as {other}"
            continue
        twin = right.pop(other)
        if meant is not None:
            if not meant[1].same(path, twin):
                found[name] = f"{other} is not as expected: {meant[1].reason}"
        elif (difference := compare_files(path, twin)) is not None:
            found[name] = difference
    return {**found, **dict.fromkeys(right, "new")}


def compare_files(base: Path, tree: Path) -> str | None:
    """Return how two files differ, in a line, or None when they are the same."""
    if base.read_bytes() == tree.read_bytes():
        return None
    view = next((view for pattern, (view, _) in VIEWS.items() if fnmatch(base.name, pattern)), None)
    try:
        return describe(base, tree) if view is None else first_difference(view(base), view(tree))
    except Exception as error:  # a damaged file may raise anything
        return f"cannot be read: {error!r}"[:200]


def first_difference(base: Any, tree: Any, where: str = "") -> str | None:
    """Return the place at which two nests of dicts and lists differ first, and the values there; None when nowhere."""
    if isinstance(base, dict) and isinstance(tree, dict):
        if list(base) != list(tree):
            return f"{where or 'keys'}: {list(base)} -> {list(tree)}"[:300]
        pairs = [(str(key), base[key], tree[key]) for key in base]
    elif isinstance(base, list | tuple) and isinstance(tree, list | tuple) and len(base) == len(tree):
        pairs = [(str(index), *both) for index, both in enumerate(zip(base, tree, strict=True))]
    elif type(base) is type(tree) and (base == tree or base != base != tree):
        return None
    else:
        return f"{where or 'content'}: {base!r:.120} -> {tree!r:.120}"
    found = (first_difference(a, b, f"{where}.{key}" if where else key) for key, a, b in pairs)
    return next((line for line in found if line is not None), None)


def describe(base: Path, tree: Path) -> str:
    """Return how two files of different bytes differ: by pixels, by line, or by size."""
    if base.suffix == ".tif":
        import rasterio

        with rasterio.open(base) as one, rasterio.open(tree) as other:
            if one.shape != other.shape or one.count != other.count:
                return f"shape {one.count, *one.shape} -> {other.count, *other.shape}"
            changed = int((one.read() != other.read()).any(axis=0).sum())
            if changed:
                return f"{changed:,} of {one.height * one.width:,} pixels"
            return f"equal pixels: {first_difference(one.tags(), other.tags()) or 'other bytes'}"
    try:
        lines = base.read_text().splitlines(), tree.read_text().splitlines()
    except UnicodeDecodeError:
        return f"{base.stat().st_size:,} -> {tree.stat().st_size:,} bytes"
    if len(lines[0]) != len(lines[1]):
        return f"{len(lines[0])} -> {len(lines[1])} lines"
    return first_difference(*lines, where="line") or "line ends"


def listed(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by relative path, locks left out; names that hold a time stand without it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {EVENTS.sub(r"\1", path.relative_to(folder).as_posix()): path for path in files}


def without(value: Any, names: tuple[str, ...]) -> Any:
    """Return a nest of dicts and lists without the entries of these names, at any depth."""
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """Return a nest with a digest in place of every tensor."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not hasattr(value, "detach"):
        return value
    array = value.detach().contiguous().numpy()
    return f"{array.dtype}{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def mirror(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`, times included."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
