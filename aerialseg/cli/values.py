"""What the text of an option means, where several commands take the same one."""

from __future__ import annotations

import math
import tomllib
from typing import TYPE_CHECKING, Literal

from aerialseg.errors import UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.inspection import BandRule
    from aerialseg.prediction.options import Shard


def band_rule(bands: str | None, scale: str | None) -> BandRule:
    """Return what `--bands 1,2,3` and `--scale LO:HI` ask for; raises UsageError for anything else."""
    from aerialseg.geo.inspection import BandRule

    return BandRule(whole_numbers("--bands", bands), _range(scale))


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return numbers with commas between; None stays None. Raises UsageError naming the option."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {one_line(text)}: give whole numbers with commas between, as 1,2,3") from error


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Return numbers with commas between; raises UsageError naming the option."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {one_line(text)}: give numbers with commas between, as 0.5,0.4,0.3") from error
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{option} {one_line(text)}: give finite numbers")
    return values


def named_values(option: str, assignments: Sequence[str]) -> dict[str, str | int | float | bool]:
    """Return what KEY=VALUE says, values being TOML's or else text; raises UsageError naming the option."""
    found: dict[str, str | int | float | bool] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not (name and equals):
            raise UsageError(f"{option} {one_line(assignment)}: write it as KEY=VALUE")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        found[name] = value if isinstance(value, str | int | float | bool) else text
    return found


def batch_size(text: str) -> int | None:
    """Return the number of windows that run together; None for auto. Raises UsageError for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--batch {one_line(text)}: give a number of windows, or auto")
    return int(text)


def gsd_of(text: str) -> float | Literal["auto", "keep"]:
    """Return what `--gsd` asks for: metres per pixel, or a word. Raises UsageError for anything else."""
    words: dict[str, Literal["auto", "keep"]] = {"auto": "auto", "keep": "keep"}
    if text in words:
        return words[text]
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--gsd {one_line(text)}: give metres per pixel, auto, or keep") from error


def shard_of(text: str | None) -> Shard | None:
    """Return what `--shard I/N` asks for; None stays None. Raises UsageError for anything else."""
    from aerialseg.prediction.options import Shard

    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise UsageError(f"--shard {one_line(text)}: give the part and how many there are, as 1/4")
    return Shard(int(number), int(count))


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(":"))
    except ValueError as error:
        raise UsageError(f"--scale {one_line(text)}: give two numbers LO:HI, as 0:2047") from error
    return low, high
