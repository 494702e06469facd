"""`[loss]`, `[optimizer]`, `[schedule]` and `[run]`: how the network learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aerialseg.config.values import Count, Section, Share, Weight


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
