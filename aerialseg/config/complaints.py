"""What is wrong with a configuration, in one line: which line of the file or which override, what, and how many more.

Knows pydantic's complaints as plain dicts; its neighbours have the values they are about.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aerialseg.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path


def explain(
    path: Path,
    text: str,
    problems: Sequence[Any],
    overridden: Sequence[str],
    alone: Collection[Any],
    known: Mapping[str, Sequence[str]],
) -> str:
    """Return one line for the first of the problems of a file with the content `text`.

    What is wrong comes before what is missing: the misspelt key is often the missing one. `overridden` are the keys of
    overrides: they are to blame for what is not wrong in the file alone, whose problems lie at `alone`. `known` are the
    keys of each section, and of the file under "".
    """
    first = min(problems, key=lambda problem: problem["type"] == "missing")
    keys = [str(part) for part in first["loc"]]
    dotted = ".".join(keys[:3] if keys[:2] == ["model", "encoder_arguments"] else keys[:2])
    inside = () if first["loc"] in alone else tuple(key for key in overridden if key.startswith(f"{dotted}."))
    if dotted in overridden:
        place = f"--set {one_line(dotted)}"
    elif inside:
        place = f"--set {one_line(inside[-1])}: {one_line(dotted)}"
    else:
        line = _line_of(text, dotted)
        place = f"{one_line(path)}: " + (f"line {line}: {one_line(dotted)}" if line else one_line(dotted or "the file"))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place}: {_complaint(first, known.get('.'.join(keys[:-1]), ()))}{more}"


def _complaint(problem: Any, known: Sequence[str]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key; known here: {', '.join(known)}"
    if problem["type"] == "missing":
        return "missing"
    reason = str(problem["msg"]).removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    value = problem["input"]
    return reason if isinstance(value, dict) else f"{reason}, found {one_line(repr(value))[:80]}"


def _line_of(text: str, dotted: str) -> int | None:
    """Return the 1-based line on which a key, or failing that its section's header, stands; None when neither does."""
    section, found = "", None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
        assignment = re.match(r"\s*([\w.\-\"' ]+?)\s*=", line)
        if header:
            section = header[1]
            found = number if section == dotted.rpartition(".")[0] or section == dotted else found
        elif assignment and ".".join(filter(None, (section, assignment[1].strip("\"'")))) == dotted:
            return number
    return found
