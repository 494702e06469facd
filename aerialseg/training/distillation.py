"""Learning from a larger model as well: its probabilities are targets, also where nobody has labelled.

The teacher is a finished model file, which stays as it is. Hinton et al., arXiv:1503.02531, for one class: at
temperature T both logits are divided by T, and the loss is multiplied by T^2, which keeps the size of its gradients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from aerialseg.errors import BadDataError, ConfigError, ModelError, one_line
from aerialseg.files import sha256_of
from aerialseg.geo.geobox import gsd_differs
from aerialseg.models.build import check_network
from aerialseg.models.package import find_model, load_model, spec_of
from aerialseg.training.start import Teacher

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from aerialseg.config import TrainConfig
    from aerialseg.config.sections import DistilSection
    from aerialseg.geo.tiles.tileset import TileSet
    from aerialseg.training.losses import AllReduce
    from aerialseg.training.start import Start


def with_teacher(start: Start, path: Path | None, *, resumed: bool) -> Start:
    """Return the start with its teacher, whose SHA-256 the card of the model to come names; as it is without one.

    Raises ConfigError and ModelError when a resumed run had another teacher, or none, and what `load_teacher` raises.
    """
    known, digest = start.card.training.get("teacher"), None if path is None else sha256_of(find_model(path))
    if resumed and known != digest:
        if path is None:
            raise ConfigError("this run learns from a teacher: go on with the same --teacher MODEL")
        found = "begun without a teacher" if known is None else f"begun with another teacher (SHA-256 {known[:12]})"
        raise ModelError(f"{one_line(path)}: the run was {found}; go on with that, or start anew with --overwrite")
    if path is None:
        return start
    card = replace(start.card, training={**start.card.training, "teacher": digest})
    return replace(start, card=card, teacher=load_teacher(path, start.tiles, start.config))


def load_teacher(path: Path, tiles: TileSet, config: TrainConfig) -> Teacher:
    """Read the teacher, on the CPU, and check that it knows tiles like these.

    Raises ModelError when it takes other bands or another value range, or is damaged, BadDataError when the tiles'
    pixels are of another size on the ground, ConfigError when it does not take the crops.
    """
    segmenter, card = load_model(path)
    name = one_line(find_model(path))
    for label, taken, held in (
        ("bands", _bands_of(card.band_indexes, card.bands), _bands_of(tiles.bands, len(tiles.mean))),
        ("value range", card.scale, tiles.scale),
    ):
        if taken != held:
            raise ModelError(
                f"{name}: the teacher takes {label} {taken}, the tiles hold {held}; cut tiles like its own"
            )
    if gsd_differs(tiles.gsd_m, card.gsd_m):
        raise BadDataError(
            f"{one_line(tiles.folder)}: its pixels are {tiles.gsd_m:.3g} m, the teacher {name} was trained at"
            f" {card.gsd_m:.3g} m; cut tiles with --gsd {card.gsd_m:.3g}"
        )
    try:
        check_network(spec_of(card), config.data.crop)
    except ConfigError as error:
        raise ConfigError(f"{name}: data.crop {config.data.crop}: {error}") from error
    return Teacher(segmenter.requires_grad_(False).eval(), card.temperature)


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor,
    section: DistilSection,
    all_reduce: AllReduce = lambda sums: sums,
) -> Tensor:
    """Return the cross-entropy of `logits` to the teacher's probabilities as a float32 scalar, weighted.

    `logits` and `teacher_logits`, these over the teacher's own temperature, are [N, 1, H, W]; the mean is over `valid`
    pixels, bool [N, H, W], labelled or not. `all_reduce` is as in `building_loss`.
    """
    softness = section.temperature
    scores = torch.where(valid, logits[:, 0].float(), 0.0) / softness
    targets = torch.where(valid, teacher_logits[:, 0].float() / softness, 0.0).sigmoid()
    each = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    total, count = all_reduce(torch.stack([torch.where(valid, each, 0.0).sum(), valid.sum().float()]))
    loss: Tensor = section.weight * softness**2 * total / count.clamp(min=1)
    return loss


def _bands_of(indexes: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    return indexes or tuple(range(1, count + 1))
