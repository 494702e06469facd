"""Which scenes train and which validate: whole scenes only, by number, by name or by share."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from aerialseg.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.scenes import Scene

Side = Literal["train", "val"]

INRIA_CITIES = frozenset(
    ("austin", "chicago", "kitsap", "tyrol-w", "vienna", "bellingham", "bloomington", "innsbruck", "sfo", "tyrol-e")
)
INRIA_VALIDATION = range(1, 6)
"""The data set's authors validate on scenes 1 to 5 of every city."""
AUTO_SHARE = 0.2

_RANGE = re.compile(r"(?P<city>.*\D)(?P<first>\d+)-(?P<last>\d+)")


def split_scenes(scenes: Sequence[Scene], spec: str) -> dict[str, Side]:
    """Return scene name -> side, by "inria", "val=austin1-5,tyrol-w1,vienna*", a share such as "0.2", or "auto".

    "auto" is Inria's rule when every scene is one of Inria's and both sides get some, else a share of 0.2. A share is
    taken evenly from the cities, the same scenes every time. Raises UsageError when the spec is not understood, when an
    item of it matches no scene, or when a side stays empty.
    """
    if spec == "auto":
        inria = all(scene.city in INRIA_CITIES for scene in scenes)
        sides = _by_number(scenes) if inria else {}
        if len(set(sides.values())) < 2:
            sides = _by_share(scenes, AUTO_SHARE)
    elif spec == "inria":
        sides = _by_number(scenes)
    elif spec.startswith("val="):
        sides = _by_name(scenes, spec.removeprefix("val="))
    else:
        sides = _by_share(scenes, _share(spec))
    for side in ("train", "val"):
        if side not in sides.values():
            raise UsageError(f"--split {spec}: no scene is left to {side}; choose another split, or blocks=N")
    return sides


def _by_number(scenes: Sequence[Scene]) -> dict[str, Side]:
    for scene in scenes:
        if scene.number is None:
            raise UsageError(f"--split inria: {scene.name} is not named <city><number>; use val=NAMES or a share")
    return {scene.name: "val" if scene.number in INRIA_VALIDATION else "train" for scene in scenes}


def _by_name(scenes: Sequence[Scene], items: str) -> dict[str, Side]:
    sides: dict[str, Side] = {scene.name: "train" for scene in scenes}
    for item in filter(None, map(str.strip, items.split(","))):
        chosen = [scene for scene in scenes if _matches(scene, item)]
        if not chosen:
            raise UsageError(f"--split val={items}: no scene matches {item}")
        sides.update({scene.name: "val" for scene in chosen})
    return sides


def _matches(scene: Scene, item: str) -> bool:
    """Return whether an item means a scene: its name or stem, a pattern, a city, or a range of a city's numbers."""
    stem = scene.name.rpartition("/")[2]
    if item in (scene.name, stem, scene.city) or fnmatchcase(scene.name, item) or fnmatchcase(stem, item):
        return True
    span = _RANGE.fullmatch(item)
    if span is None or scene.number is None or scene.city != span["city"]:
        return False
    return int(span["first"]) <= scene.number <= int(span["last"])


def _share(spec: str) -> float:
    try:
        share = float(spec)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UsageError(f"--split {spec}: give auto, inria, val=NAMES, blocks=N or a share between 0 and 1")
    return share


def _by_share(scenes: Sequence[Scene], share: float) -> dict[str, Side]:
    """Order every city by a hash of the names, spread the cities evenly over one line, and take its beginning."""
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
    count = min(max(1, round(share * len(scenes))), len(scenes) - 1)
    chosen = {name for _, _, name in line[:count]}
    return {scene.name: "val" if scene.name in chosen else "train" for scene in scenes}
