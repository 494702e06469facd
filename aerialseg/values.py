"""Values and JSON: frozen dataclasses to what JSON keeps and back with their types checked, and JSON of unknown origin.

Types are checked by pydantic, which is loaded with the first value. What the values mean is not known here.
"""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from aerialseg.errors import one_line
from aerialseg.files import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import TypeAdapter

MOST_BYTES = 1 << 30
"""Of a file that is read as JSON: a set of a million tiles has a fifth of it."""
T = TypeVar("T")
TYPES = {"int_type": "int", "int_from_float": "int", "float_type": "float", "bool_type": "bool", "string_type": "str"}
"""What pydantic's commonest complaints are the lack of."""


def to_values(value: Any) -> Any:
    """Return dataclasses, and plain values with some inside, as JSON keeps them.

    That is dicts and lists, text for paths and keys, None for what is not finite. Raises TypeError for anything else.
    """
    return json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)


def from_values(cls: type[T], data: Any) -> T:
    """Build a `cls`, a dataclass or a nest of plain types, from JSON values.

    Nothing is converted but a list to a tuple, a whole number to a float, text to a path; what `cls` does not know is
    left out. Raises ValueError naming the field, in one line, where a type is wrong or `cls` itself refuses.
    """
    from pydantic import ValidationError

    try:
        value: T = _adapter(cls).validate_json(json.dumps(data), strict=True)  # type: ignore[arg-type]  # mypy: classes have no hash
    except ValidationError as error:
        raise ValueError(_complaint(error.errors(include_url=False)[0])) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text says; raises ValueError for all that can be wrong with it, also for too deep a nest."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Return what a JSON file says.

    Raises OSError when it cannot be read or is no file, ValueError when it is larger than `most` bytes or not JSON.
    """
    with open_regular(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"is larger than {most:,} bytes")
    return parse_json(content)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return os.fspath(value)


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _complaint(problem: Any) -> str:
    field = one_line(".".join(map(str, problem["loc"])))
    if problem["type"] == "missing":
        return f"{field} is missing"
    if problem["type"] in TYPES:
        return f"{field} is {str(problem['input'])[:60]!r}, expected {TYPES[problem['type']]}"
    reason = str(problem["msg"]).removeprefix("Value error, ")
    return one_line(f"{field}: {reason}" if field else reason)
