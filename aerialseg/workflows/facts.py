"""What `aerialseg info` finds: facts with a name, a value for programs and words for people, and what is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aerialseg.errors import one_line

if TYPE_CHECKING:
    from aerialseg.errors import AerialsegError


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known of a file or folder."""

    name: str
    value: Any
    """Plain: text, numbers, truth values, lists and dicts of them, None."""
    words: str = ""
    """For people; the value itself when empty."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a thing is and all that is known of it."""

    kind: str
    """run, model, scene, scenes or tiles."""
    facts: tuple[Fact, ...]
    problems: tuple[AerialsegError, ...] = field(default=())
    """What is damaged or missing; the rest was still found."""

    def to_json(self) -> dict[str, Any]:
        """Return the values by name."""
        found = {fact.name: fact.value for fact in self.facts}
        return {"kind": self.kind, **found, "problems": [str(problem) for problem in self.problems]}

    def rows(self) -> list[list[str]]:
        """Return what people read, (name, words) a row; a nested value takes a row per part."""
        rows = []
        for fact in self.facts:
            nested = not fact.words and isinstance(fact.value, dict) and fact.value
            parts = fact.value.items() if nested else [("", fact.value)]
            for part, value in parts:
                name = f"{fact.name}: {part}" if part else fact.name
                rows.append([one_line(name.removesuffix("_m").replace("_", " ")), fact.words or spelt(value)])
        return rows + [["problem", str(problem)] for problem in self.problems]


def spelt(value: Any) -> str:
    """Return a plain value as people write it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return "-" if math.isnan(value) else f"{value:.6g}"
        case dict():
            return ", ".join(f"{key} {spelt(item)}" for key, item in value.items()) or "-"
        case list() | tuple():
            return ", ".join(map(spelt, value)) or "-"
    return one_line(str(value))
