"""The command that is running, as a shell takes it: what a page shows under "How to reproduce"."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from aerialseg.errors import one_line

if TYPE_CHECKING:
    import typer


def command_line(context: typer.Context) -> str:
    """Return the command with what was given and differs from the defaults, on one line.

    Arguments that begin with a dash come last, behind "--", which keeps them from being taken for options.
    """
    arguments: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value in (None, False, parameter.default) or parameter.name == "as_json":
            continue
        values = value if isinstance(value, list | tuple) else [value]
        option = max(parameter.opts, key=len)
        if parameter.param_type_name == "argument":
            arguments += map(str, values)
        else:
            options += [option] if value is True else [word for each in values for word in (option, str(each))]
    dashed = any(word.startswith("-") for word in arguments)
    words = [*options, "--", *arguments] if dashed else [*arguments, *options]
    return " ".join(map(_quoted, ["aerialseg", context.info_name or "", *words]))


def _quoted(word: str) -> str:
    """Quote a word for a shell; one with control characters as bash, zsh and ksh write them."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{one_line(escaped)}'"
