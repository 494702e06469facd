"""What the encoder arguments of our own encoder say: four mixers, four depths and a few numbers, checked by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from aerialseg.errors import ConfigError, one_line
from aerialseg.models.mixers import MIXERS

if TYPE_CHECKING:
    from collections.abc import Mapping

LIMITS: dict[str, tuple[float, float]] = {
    "width": (8, 512),
    "window": (2, 64),
    "tokens": (1, 1024),
    "drop_path": (0.0, 0.9),
}


@dataclass(frozen=True, slots=True)
class PyramidDesign:
    """What `encoder_arguments` say; each stage's value stands at strides 4, 8, 16 and 32 in turn."""

    mixers: tuple[str, ...] = ("conv", "conv", "window", "full")
    depths: tuple[int, ...] = (2, 2, 6, 2)
    width: int = 32
    """Channels of the first stage; a multiple of 8."""
    window: int = 8
    """Side of windows, of a grid's groups, of blocks, in positions of the stage."""
    tokens: int = 64
    """Landmarks, latent points or features where a mixer has them; a square. Routing has its root as many clusters."""
    drop_path: float = 0.1
    """Probability at which the last block is left out of a training step; it grows from 0 with depth."""


def parse_design(arguments: Mapping[str, str | int | float | bool]) -> PyramidDesign:
    """Read `encoder_arguments`; a list is written as text with commas, one value stands for all four stages.

    Raises ConfigError naming the key, what was found and what is expected.
    """
    known = [field.name for field in fields(PyramidDesign)]
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        match name:
            case "mixers":
                values[name] = _mixers(value)
            case "depths":
                values[name] = _depths(value)
            case _ if name in known:
                values[name] = _number(name, value)
            case _:
                raise _refused(name, "is unknown to encoder pyramid", f"one of {', '.join(known)}")
    design = PyramidDesign(**values)
    if design.width % 8:
        raise _refused("width", f"is {design.width}", "a multiple of 8")
    if math.isqrt(design.tokens) ** 2 != design.tokens:
        raise _refused("tokens", f"is {design.tokens}", "a square, such as 16, 49 or 64")
    return design


def _mixers(value: object) -> tuple[str, ...]:
    names = _four("mixers", value)
    for name in names:
        if name not in MIXERS:
            raise _refused("mixers", f"names {name!r}", f"one, or four with commas, of {', '.join(MIXERS)}")
    return names


def _depths(value: object) -> tuple[int, ...]:
    texts = _four("depths", value)
    if not all(text.isascii() and text.isdigit() and 1 <= int(text) <= 64 for text in texts):
        raise _refused("depths", f"is {value!r}", "four numbers of blocks from 1 to 64, such as '2,2,6,2'")
    return tuple(int(text) for text in texts)


def _number(name: str, value: object) -> float:
    low, high = LIMITS[name]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, int | float) and (whole or name == "drop_path") and low <= value <= high:
        return value
    raise _refused(name, f"is {value!r}", f"a number from {low} to {high}")


def _four(name: str, value: object) -> tuple[str, ...]:
    items = [item.strip() for item in str(value).split(",")]
    if len(items) not in (1, 4):
        raise _refused(name, f"has {len(items)} values", "one for all stages, or four: at strides 4, 8, 16 and 32")
    return tuple(items * (4 // len(items)))


def _refused(name: str, found: str, expected: str) -> ConfigError:
    return ConfigError(f"encoder argument {one_line(name)!r} {one_line(found)}, expected {expected}")
