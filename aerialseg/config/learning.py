"""`[loss]`, `[optimizer]`, `[schedule]` and `[run]`: how the network learns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from aerialseg.config.values import Count, Section, Share, Weight


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
