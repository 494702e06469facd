"""What is trained and how: TOML files to frozen, checked values.

pydantic lives here and nowhere else. The file says what is trained; the command line's flags say which files and where.
Nothing here knows what a preset is or whether a device can hold the batch: models/ and training/ check that.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from aerialseg.complaints import explain
from aerialseg.errors import ConfigError, one_line

LARGEST_FILE = 100_000
"""Bytes; ours have fewer than 2,000, and a tile or a model given by mistake has millions."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=100.0)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]


class Section(BaseModel):
    """What all sections have in common: frozen, no unknown keys, no quiet conversion of types, no nan."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which network, and what it starts from."""

    preset: str | None = None
    """A name from `aerialseg models`; or give architecture and encoder."""
    architecture: str | None = None
    """A segmentation_models_pytorch architecture: "Unet", "Segformer", ..."""
    encoder: str | None = None
    """An encoder of that library: "resnet34", "tu-pvt_v2_b0", ..."""
    encoder_arguments: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Passed to the encoder as they are; a list as text with commas."""
    weights: str = Field("imagenet", min_length=1)
    """ "imagenet", "none", or the path of a file with encoder weights."""
    accept_licence: bool = False
    """Allows encoders whose licence forbids commercial use; `aerialseg models` names them."""

    @field_validator("encoder_arguments", mode="before")
    @classmethod
    def _lists_as_text(cls, arguments: Any) -> Any:
        """Write `["conv", "window"]` as "conv,window": the model card keeps plain values only."""
        if not isinstance(arguments, dict):
            return arguments
        return {
            name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in arguments.items()
        }

    @model_validator(mode="after")
    def _names_one_network(self) -> ModelSection:
        pair = (self.architecture, self.encoder)
        if self.preset is not None and pair != (None, None):
            raise ValueError("give preset, or architecture and encoder, not both")
        if self.preset is None and None in pair:
            raise ValueError("give preset, or both architecture and encoder")
        return self


class DataSection(Section):
    """What the network sees of the tiles."""

    crop: int = Field(512, ge=32, le=8192)
    """Side of the training crops in pixels; also the window that predict uses by default."""
    batch: int = Field(8, ge=1, le=4096)
    """Crops per step."""
    train_on: Literal["train", "all"] = "train"
    """ "all" trains on the validation tiles too (a last refit): no validation, threshold from [run]."""
    flips: bool = True
    """The eight flips and quarter turns, each equally likely."""
    scale: float = Field(0.25, ge=0.0, le=0.75)
    """Zoom by a factor from 1 - scale to 1 + scale."""
    colour: Share = 0.2
    """Strength of brightness, contrast, hue and saturation changes."""
    threads: int = Field(0, ge=0, le=256)
    """Threads that read and augment crops; 0 takes what the machine has, up to 16."""
    timeout_s: float = Field(300.0, gt=0.0, le=86_400.0)
    """How long one batch may take to be read before the disk counts as lost."""


class LossSection(Section):
    """Weights of the loss's parts; both are computed in float32 over labelled pixels only."""

    bce: Weight = 1.0
    dice: Weight = 1.0

    @model_validator(mode="after")
    def _asks_for_something(self) -> LossSection:
        if self.bce + self.dice <= 0.0:
            raise ValueError("one of bce and dice must be above 0")
        return self


class OptimizerSection(Section):
    """AdamW; norms and biases are not decayed."""

    lr: float = Field(3e-4, gt=0.0, le=1.0)
    weight_decay: Share = 0.01
    clip: float = Field(1.0, ge=0.0, le=1e6)
    """Largest norm of all gradients together; 0 leaves them as they are."""


class ScheduleSection(Section):
    """How long: linear warm-up, then a cosine down to nothing, by step."""

    epochs: int = Field(50, ge=1, le=100_000)
    steps_per_epoch: Count = 0
    """0: as many as cover the training area about once."""
    warmup_steps: Count = 500
    """At most a tenth of all steps are used for it."""
    patience: Count = 10
    """Stop after so many epochs without a better validation IoU; 0 never stops early."""


class RunSection(Section):
    """Everything else a run depends on."""

    seed: int = Field(0, ge=0, le=2**31 - 1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    ema: float = Field(0.999, ge=0.0, lt=1.0)
    """Decay of the averaged weights that are validated and saved; it warms up, so it is safe in short runs; 0: none."""
    threshold: float = Field(0.5, gt=0.0, lt=1.0)
    """Used when there is no validation to choose it from."""


class TrainConfig(Section):
    """A complete description of a training; `load_config` makes it from a file."""

    model: ModelSection
    data: DataSection = DataSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    run: RunSection = RunSection()


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file, or one shipped with the program by name ("inria"), and apply `section.key=value` overrides.

    A value of an override is TOML, or else taken as text: `model.weights=none`. Raises ConfigError naming the file, the
    line and the key.
    """
    path = _find(source)
    text = _read(path)
    try:
        values, written = tomllib.loads(text), tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise ConfigError(f"{one_line(path)}: not valid TOML: {one_line(str(error) or 'nested too deeply')}") from error
    overridden = [_apply(values, override) for override in overrides]
    _let_overrides_name_the_network(values, overridden)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        alone = [problem["loc"] for problem in _problems(written)]
        raise ConfigError(explain(path, text, problems, overridden, alone, _known_keys())) from error


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with the program, by name."""
    here = Path(__file__).resolve().parent
    folder = next((f for f in (here / "configs", here.parent / "configs") if f.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.toml"))}


def to_toml(config: TrainConfig) -> str:
    """Return the configuration as TOML that `load_config` reads back to an equal value."""
    lines: list[str] = []
    for name, section in config.model_dump(exclude_none=True).items():
        tables = {key: value for key, value in section.items() if isinstance(value, dict) and value}
        lines += [f"[{name}]", *_assignments(section), ""]
        for key, table in tables.items():
            lines += [f"[{name}.{key}]", *_assignments(table), ""]
    return "\n".join(lines)


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
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(source) in shipped:
        return shipped[str(source)]
    raise ConfigError(f"{one_line(source)}: no such configuration file, nor one of the shipped: {', '.join(shipped)}")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
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


def _let_overrides_name_the_network(values: dict[str, Any], overridden: list[str]) -> None:
    """Drop the file's way of naming the network when --set names it the other way."""
    named = {key.removeprefix("model.") for key in overridden} & {"preset", "architecture", "encoder"}
    others = {"architecture", "encoder"} if "preset" in named else {"preset"} if named else set()
    for key in others - named:
        values["model"].pop(key, None)


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _problems(values: dict[str, Any]) -> list[Any]:
    """Return what pydantic says is wrong with the values."""
    try:
        TrainConfig.model_validate(values)
    except ValidationError as error:
        return list(error.errors(include_url=False))
    return []


def _known_keys() -> dict[str, list[str]]:
    """Return the keys of each section, and those of the file under ""."""
    known = {"": sorted(TrainConfig.model_fields)}
    for name, field in TrainConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            known[name] = sorted(field.annotation.model_fields)
    return known


def _assignments(table: dict[str, Any]) -> list[str]:
    scalars = {key: value for key, value in table.items() if not isinstance(value, dict)}
    return [f"{_key(key)} = {_value(value)}" for key, value in scalars.items()]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: str | int | float | bool) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
