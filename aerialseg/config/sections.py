"""The sections of a configuration, each with its keys, their ranges and defaults.

`[model]` and `[data]`: which network is trained, and what it sees of the tiles. `[loss]`, `[distil]`, `[optimizer]`,
`[schedule]` and `[run]`: how it learns. Files and overrides are read by `aerialseg.config`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=100.0)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]
STRENGTHS: dict[str, dict[str, bool | float]] = {
    "light": {"flips": True, "scale": 0.1, "colour": 0.1, "degrade": 0.0},
    "medium": {"flips": True, "scale": 0.25, "colour": 0.2, "degrade": 0.0},
    "strong": {"flips": True, "scale": 0.4, "colour": 0.35, "degrade": 0.25},
}
"""What each level of `data.augment` sets."""


class Section(BaseModel):
    """What all sections have in common: frozen, no unknown keys, no quiet conversion of types, no nan."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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
    degrade: Share = 0.0
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
        """Take what the level of augmentation says for what is not given, and the old name of a key for its new one."""
        if not isinstance(values, dict):
            return values
        values, level = renamed(values), values.get("augment", "medium")
        return {**STRENGTHS[level], **values} if isinstance(level, str) and level in STRENGTHS else values


def renamed(data: dict[str, Any]) -> dict[str, Any]:
    """Return the values of [data] with `degrade` for `wear`, as files written before 0.2 call it."""
    return {"degrade" if key == "wear" and "degrade" not in data else key: value for key, value in data.items()}


class LossSection(Section):
    """Weights of the loss's parts; all are computed in float32 over labelled pixels only."""

    bce: Weight = 1.0
    """Binary cross-entropy."""
    dice: Weight = 1.0
    """Overlap, whatever share of the ground is built on."""
    lovasz: Weight = 0.0
    """Lovasz hinge: a bound on 1 - IoU itself; better late in a training, or by --from, than at its beginning."""
    focal: Weight = 0.0
    """Cross-entropy in which pixels that are right already count less."""
    focal_gamma: float = Field(2.0, ge=0.0, le=10.0)
    """How much less; 0 is plain cross-entropy."""
    tversky: Weight = 0.0
    """Dice in which missed and invented buildings need not count alike."""
    tversky_misses: Share = 0.7
    """What missed ones count; invented ones count the rest. Above one half for few or small buildings."""
    boundary: Weight = 0.0
    """Cross-entropy over the pixels near a building's edge alone, where most mistakes are."""
    boundary_px: int = Field(3, ge=1, le=64)
    """How near."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> LossSection:
        if self.bce + self.dice + self.lovasz + self.focal + self.tversky + self.boundary <= 0.0:
            raise ValueError("one of bce, dice, lovasz, focal, tversky and boundary must be above 0")
        return self


class DistilSection(Section):
    """How much counts what a teacher says (`train --teacher MODEL`), on all valid pixels, labelled or not."""

    weight: Weight = 1.0
    """Beside the loss on labelled pixels."""
    temperature: float = Field(1.0, gt=0.0, le=100.0)
    """Above 1 the student also learns how sure its teacher is where both are sure."""


class OptimizerSection(Section):
    """AdamW; norms and biases are not decayed."""

    lr: float = Field(3e-4, gt=0.0, le=1.0)
    """At its highest; `aerialseg find-lr` looks for one."""
    encoder_lr: float = Field(1.0, gt=0.0, le=10.0)
    """The encoder's learning rate, times lr: below 1 a pretrained encoder keeps more of what it knows."""
    weight_decay: Share = 0.01
    """What a step takes off each weight, times the learning rate: 0.05 is usual for transformers."""
    clip: float = Field(1.0, ge=0.0, le=1e6)
    """Largest norm of all gradients together; 0 leaves them as they are."""
    accumulate: int = Field(1, ge=1, le=1024)
    """Batches per step: as a batch so many times as large, in the memory of one."""


class ScheduleSection(Section):
    """How long, and the learning rate's course on the way, by step."""

    epochs: int = Field(50, ge=1, le=100_000)
    """Rounds of `steps_per_epoch` steps; after each the network is validated, and a checkpoint kept."""
    steps_per_epoch: Count = 0
    """0: as many as cover the training area about once."""
    shape: Literal["cosine", "one-cycle", "polynomial"] = "cosine"
    """How the rate falls to nothing after the warm-up; "one-cycle" rises for 30 % of the run instead of warming up."""
    warmup_steps: Count = 500
    """At most a tenth of all steps are used for it."""
    freeze_steps: Count = 0
    """So many steps at first leave the encoder as it is, so that a raw decoder does not spoil a pretrained one."""
    patience: Count = 10
    """Stop after so many epochs without a better validation IoU; 0 never stops early."""


class RunSection(Section):
    """Everything else a run depends on."""

    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Decides the random weights, the crops and what is changed in them; the same seed draws the same."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the network's arithmetic; "auto" is bf16 where the device has it, fp16 on older cards, and else fp32."""
    ema: float = Field(0.999, ge=0.0, lt=1.0)
    """Decay of the averaged weights that are validated and saved; it warms up, so it is safe in short runs; 0: none."""
    checkpoint_activations: bool = False
    """Compute the encoder's activations twice instead of keeping them: less memory, more time."""
    threshold: float = Field(0.5, gt=0.0, lt=1.0)
    """Used when there is no validation to choose it from."""
    loggers: list[Literal["mlflow", "wandb"]] = Field(default_factory=list, max_length=2)
    """Beside metrics.csv and TensorBoard, which are always written; both stay offline, in the run's folder."""
