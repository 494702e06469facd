"""What the text of an option means, where several commands take the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.errors import UsageError, one_line

if TYPE_CHECKING:
    from aerialseg.geo.raster import BandRule


def band_rule(bands: str | None, scale: str | None) -> BandRule:
    """Return what `--bands 1,2,3` and `--scale LO:HI` ask for; raises UsageError for anything else."""
    from aerialseg.geo.raster import BandRule

    return BandRule(whole_numbers("--bands", bands), _range(scale))


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return numbers with commas between; None stays None. Raises UsageError naming the option."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {one_line(text)}: give whole numbers with commas between, as 1,2,3") from error


def batch_size(text: str) -> int | None:
    """Return the number of windows that run together; None for auto. Raises UsageError for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--batch {one_line(text)}: give a number of windows, or auto")
    return int(text)


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(":"))
    except ValueError as error:
        raise UsageError(f"--scale {one_line(text)}: give two numbers LO:HI, as 0:2047") from error
    return low, high
