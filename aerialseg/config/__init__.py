"""What is trained and how: TOML files to frozen, checked values, and in one line what is wrong with a file.

The file says what is trained, the flags which files and where. Nothing here knows what a preset is or whether a device
can hold the batch: models/ and training/ check that.
"""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aerialseg.config.sections import (
    STRENGTHS,
    DataSection,
    DistilSection,
    LossSection,
    ModelSection,
    OptimizerSection,
    RunSection,
    ScheduleSection,
    Section,
    renamed,
)
from aerialseg.errors import ConfigError, one_line
from aerialseg.files import is_folder, is_regular, open_regular, resolved

LARGEST_FILE = 100_000
"""Bytes; ours have fewer than 2,000, and a tile or a model given by mistake has millions."""
MOST_SAID = 5
"""Mistakes of a file that are told at once."""


class TrainConfig(Section):
    """A complete description of a training; `load_config` makes it from a file. Frozen; its sections are its fields.

    Example:
        >>> config = aerialseg.load_config("inria")
        >>> config.data.crop, config.schedule.epochs > 0
        (512, True)
    """

    model: ModelSection
    data: DataSection = DataSection()
    loss: LossSection = LossSection()
    distil: DistilSection = DistilSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    run: RunSection = RunSection()


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file, or one shipped with the program by name ("inria"), and apply `section.key=value` overrides.

    A value of an override is TOML, or else taken as text: `model.weights=none`. Raises ConfigError naming the file, the
    line and the key.

    Example:
        >>> config = aerialseg.load_config("small", ["schedule.epochs=20", "data.batch=4"])
        >>> config.schedule.epochs, config.data.batch
        (20, 4)
    """
    path = _find(source)
    text = _read(path)
    try:
        values, written = tomllib.loads(text), tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise ConfigError(f"{one_line(path)}: not valid TOML: {one_line(str(error) or 'nested too deeply')}") from error
    if isinstance(values.get("data"), dict):
        values["data"] = renamed(values["data"])
    overridden = [_apply(values, override.replace("data.wear=", "data.degrade=", 1)) for override in overrides]
    _drop_what_overrides_replace(values, overridden)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(path, text, error.errors(include_url=False), written, overridden)) from error


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with the program, by name."""
    package = resolved(Path(__file__)).parent.parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if is_folder(f)), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.toml"))}


def to_toml(config: TrainConfig, *, explained: bool = False) -> str:
    """Return the configuration as TOML that `load_config` reads back to an equal value.

    When it is `explained`, a comment before each section and key says what it means.
    """
    lines: list[str] = []
    for name, section in config.model_dump(exclude_none=True).items():
        kind = type(getattr(config, name)) if explained else None
        tables = {key: value for key, value in section.items() if isinstance(value, dict) and value}
        lines += [*_comment(None if kind is None else kind.__doc__), f"[{name}]", *_assignments(section, kind), ""]
        for key, table in tables.items():
            lines += [f"[{name}.{key}]", *_assignments(table), ""]
    return "\n".join(lines)


def shipped_text(name: str) -> str:
    """Return a shipped configuration as it is, with its comments; raises ConfigError when there is none of the name."""
    shipped = shipped_configs()
    if name not in shipped:
        raise ConfigError(f"{one_line(name)}: no such configuration is shipped; there are {', '.join(shipped)}")
    return _read(shipped[name])


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Return `section.key: old -> new` for each value that differs."""
    before, after = old.model_dump(), new.model_dump()
    return [
        f"{section}.{key}: {value!r} -> {after[section][key]!r}"
        for section, values in before.items()
        for key, value in values.items()
        if after[section][key] != value
    ]


def _find(source: str | Path) -> Path:
    path = Path(source)
    if is_regular(path):
        return path
    shipped = shipped_configs()
    if str(source) in shipped:
        return shipped[str(source)]
    raise ConfigError(f"{one_line(source)}: no such configuration file, nor one of the shipped: {', '.join(shipped)}")


def _read(path: Path) -> str:
    try:
        with open_regular(path) as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{one_line(path)}: cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{one_line(path)}: larger than {LARGEST_FILE:,} bytes; a configuration is a short TOML file")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{one_line(path)}: line {line}: not UTF-8 text; save the file as UTF-8") from error


def _apply(values: dict[str, Any], override: str) -> str:
    """Put one `section.key=value` into the nested `values` and return its dotted key."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {one_line(override)}: write it as section.key=value, such as optimizer.lr=1e-4")
    table = values
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {one_line(override)}: {key} is a value, not a section")
    table[keys[-1]] = _parse_value(text.strip())
    return dotted.strip()


def _drop_what_overrides_replace(values: dict[str, Any], overridden: list[str]) -> None:
    """Drop the file's way of naming the network, or its strengths of augmentation, when --set names it another way."""
    named = {key.removeprefix("model.") for key in overridden} & {"preset", "architecture", "encoder"}
    others = {"architecture", "encoder"} if "preset" in named else {"preset"} if named else set()
    for key in others - named:
        values["model"].pop(key, None)
    if "data.augment" in overridden:  # a run's own config.toml says all of what the level sets
        for key in STRENGTHS["medium"].keys() - {key.removeprefix("data.") for key in overridden}:
            values["data"].pop(key, None)


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _explain(path: Path, text: str, problems: Sequence[Any], written: dict[str, Any], overridden: Sequence[str]) -> str:
    """Return one line for the problems, as pydantic names them, of a file with the content `text`.

    What is wrong comes before what is missing: the misspelt key is often the missing one. `overridden` are the keys of
    overrides: they are to blame for what is not wrong in the file alone, whose values are `written`.
    """
    alone: list[Any] = []
    try:
        TrainConfig.model_validate(written)
    except ValidationError as error:
        alone = [problem["loc"] for problem in error.errors(include_url=False)]
    said: list[str] = []
    for problem in sorted(problems, key=lambda problem: problem["type"] == "missing"):
        keys = [str(part) for part in problem["loc"]]
        dotted = ".".join(keys[:3] if keys[:2] == ["model", "encoder_arguments"] else keys[:2])
        inside = () if problem["loc"] in alone else tuple(key for key in overridden if key.startswith(f"{dotted}."))
        if dotted in overridden:
            place = f"--set {one_line(dotted)}"
        elif inside:
            place = f"--set {one_line(inside[-1])}: {one_line(dotted)}"
        else:
            line = _line_of(text, dotted)
            where = f"line {line}: {one_line(dotted)}" if line else one_line(dotted or "the file")
            place = where if any(one_line(path) in other for other in said) else f"{one_line(path)}: {where}"
        said.append(f"{place}: {_complaint(problem)}")
    more = f" (and {len(said) - MOST_SAID} more)" if len(said) > MOST_SAID else ""
    return "; ".join(said[:MOST_SAID]) + more


def _complaint(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        kind: Any = TrainConfig
        for section in problem["loc"][:-1]:
            kind = TrainConfig.model_fields[section].annotation
        return f"unknown key; known here: {', '.join(sorted(kind.model_fields))}"
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


def _assignments(table: dict[str, Any], kind: type[Section] | None = None) -> list[str]:
    """Return a line for each plain value of a section or table.

    Of a `kind` that is given, what it says of a key comes before it, and what follows from another key is a comment.
    """
    bare = re.compile(r"[A-Za-z0-9_-]+")
    scalars = {key: value for key, value in table.items() if not isinstance(value, dict)}
    following = STRENGTHS[table["augment"]] if kind is DataSection else {}
    lines: list[str] = []
    for key, value in scalars.items():
        lines += _comment(None if kind is None else kind.model_fields[key].description)
        mark = "# " if following.get(key) == value else ""
        lines.append(f"{mark}{key if bare.fullmatch(key) else _value(key)} = {_value(value)}")
    return lines


def _comment(text: str | None) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text or "", 110)]


def _value(value: str | int | float | bool) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
