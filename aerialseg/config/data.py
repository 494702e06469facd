"""`[model]` and `[data]`: which network is trained, and what it sees of the tiles."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from aerialseg.config.values import Section, Share

STRENGTHS: dict[str, dict[str, bool | float]] = {
    "light": {"flips": True, "scale": 0.1, "colour": 0.1, "wear": 0.0},
    "medium": {"flips": True, "scale": 0.25, "colour": 0.2, "wear": 0.0},
    "strong": {"flips": True, "scale": 0.4, "colour": 0.35, "wear": 0.25},
}
"""What each level of `data.augment` sets."""


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
    """Crops per batch, of all GPUs together."""
    train_on: Literal["train", "all"] = "train"
    """ "all" trains on the validation tiles too (a last refit): no validation, threshold from [run]."""
    sampling: Literal["area", "balanced"] = "area"
    """ "balanced" draws half of the crops by the buildings' area in a tile instead: for sets with much empty ground."""
    augment: Literal["light", "medium", "strong"] = "medium"
    """Sets the next four together; each may also be given on its own."""
    flips: bool = True
    """The eight flips and quarter turns, each equally likely."""
    scale: float = Field(0.25, ge=0.0, le=0.75)
    """Zoom by a factor from 1 - scale to 1 + scale."""
    colour: Share = 0.2
    """Strength of brightness, contrast, hue and saturation changes."""
    wear: Share = 0.0
    """How often each of blur, noise and a change of gamma strikes, as of a worse camera, haze or a low sun."""
    cache: str = Field("auto", min_length=1)
    """Where tiles are kept as bytes that need no decoding: "auto" is a folder in that of the tiles, "off" nowhere."""
    threads: int = Field(0, ge=0, le=256)
    """Threads that read and augment crops; 0 takes what the machine has, up to 16."""
    timeout_s: float = Field(300.0, gt=0.0, le=86_400.0)
    """How long one batch may take to be read before the disk counts as lost."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_strengths(cls, values: Any) -> Any:
        """Take what the level of augmentation says for what is not given."""
        level = values.get("augment", "medium") if isinstance(values, dict) else None
        return {**STRENGTHS[level], **values} if isinstance(level, str) and level in STRENGTHS else values
