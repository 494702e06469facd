"""Weights of another program become a model file: a state dict of segmentation_models_pytorch, or a .safetensors file.

What such a file does not say (network, normalisation, ground sample distance) is asked for; what it does say is checked
tensor by tensor. Nothing in it is run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aerialseg.counts import GSD_RANGE
from aerialseg.errors import ModelError, NoInputError, OutputError, UsageError, first_line, one_line
from aerialseg.files import exists, is_folder, is_regular, refuse_input_as_output, require_space, sha256_of
from aerialseg.models.package import MAX_OVERLAP, MAX_TILE_SIZE, ModelCard, save_model
from aerialseg.models.presets import NVIDIA

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from aerialseg.models.presets import ModelSpec

PREFIX = re.compile(r"((?:\w+\.)*?)encoder\.")
"""What wrappers (DataParallel, Lightning, torch.compile) put before the names of smp's own tensors."""
UNUSED_BY_DPT = ("encoder.model.norm.", "encoder.model.fc_norm.", "encoder.model.head.")
"""What begins the names of tensors that have no influence, and that our networks do without."""
COUNTER = "num_batches_tracked"
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What the pixels went through before they reached the network: value / (255 / largest), - mean, / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    """One value per band, or one for all of them, in the units of `largest`; `mean` likewise."""
    largest: int
    """1 when white was 1.0 while mean and std were taken, 255 when it was 255."""

    def __post_init__(self) -> None:
        if self.largest == 1 and max(map(abs, self.mean), default=0) > 1:
            raise UsageError(f"--mean {_listed(self.mean)} is not on a scale where white is 1; give --white 255")
        if self.largest == 255 and 0 < max(self.mean, default=0) <= 1:
            raise UsageError(f"--mean {_listed(self.mean)} is not on a scale where white is 255; give --white 1")
        if not all(value > 0 for value in self.std):
            raise UsageError(f"--std {_listed(self.std)}: give values above 0")

    def in_grey_levels(self, bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std per band in units of 0..255; raises UsageError for another number of bands."""
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) not in (1, bands):
                raise UsageError(f"{option} {_listed(values)}: {len(values)} values for {bands} bands; give one each")
        unit = 255 / self.largest
        mean, std = (tuple(unit * value for value in values) for values in (self.mean, self.std))
        return mean * (bands // len(mean)), std * (bands // len(std))


@dataclass(frozen=True, slots=True)
class PredictDefaults:
    """How predict is to use the model, unless its command says otherwise."""

    gsd_m: float | None = None
    threshold: float = 0.5
    tile_size: int = 512
    overlap: float = 0.25

    def __post_init__(self) -> None:
        checks = (
            ("--gsd", self.gsd_m, self.gsd_m is None or GSD_RANGE[0] <= self.gsd_m < 1000, "metres per pixel, above 0"),
            ("--threshold", self.threshold, 0 < self.threshold < 1, "a probability between 0 and 1"),
            ("--tile-size", self.tile_size, 1 <= self.tile_size <= MAX_TILE_SIZE, f"pixels, 1 to {MAX_TILE_SIZE}"),
            ("--overlap", self.overlap, 0 <= self.overlap <= MAX_OVERLAP, f"a share from 0 to {MAX_OVERLAP}"),
        )
        for option, value, holds, wanted in checks:
            if not holds:
                raise UsageError(f"{option} {value:g}: give {wanted}")


def import_model(
    weights: Path,
    out: Path,
    spec: ModelSpec,
    *,
    pixels: Normalisation,
    habits: PredictDefaults,
    overwrite: bool = False,
) -> tuple[ModelCard, tuple[str, ...]]:
    """Write the network of `spec` with the tensors of `weights` as a model file; return its card, and notes on it.

    Raises ConfigError for a network that cannot be built or does not take tiles of that size, NoInputError without
    weights, ModelError when tensors are missing, left over, of another shape or not finite, OutputError when `out`
    exists.
    """
    from aerialseg.models.build import Segmenter, build_network, check_network, tensor_bytes
    from aerialseg.models.presets import licence_of
    from aerialseg.models.weights import read_tensors

    mean, std = pixels.in_grey_levels(spec.bands)
    if not is_regular(weights):
        raise NoInputError(f"{one_line(weights)}: no such file of weights")
    refuse_input_as_output([weights], [out])
    if out.suffix != ".safetensors" or is_folder(out):
        raise UsageError(f"-o {one_line(out)}: give the model file to write, as model.safetensors")
    if exists(out) and not overwrite:
        raise OutputError(f"{one_line(out)}: exists; give another file with -o, or --overwrite")
    check_network(spec, habits.tile_size)
    network = build_network(spec)
    require_space(out.parent, tensor_bytes(network))
    notes = _fill(network, read_tensors(weights), weights, spec)
    card = ModelCard(
        preset=spec.preset,
        architecture=spec.architecture,
        encoder=spec.encoder,
        encoder_arguments=dict(spec.encoder_arguments),
        bands=spec.bands,
        mean=mean,
        std=std,
        gsd_m=habits.gsd_m,
        tile_size=habits.tile_size,
        overlap=habits.overlap,
        threshold=habits.threshold,
        training={"imported_from": sha256_of(weights)},
        licence=NVIDIA if licence_of(spec) == NVIDIA else "",
    )
    save_model(out, Segmenter(network.eval(), mean, std), card)
    return card, notes


def _fill(network: nn.Module, given: Mapping[str, Tensor], path: Path, spec: ModelSpec) -> tuple[str, ...]:
    """Put the tensors into the network and return notes for the user; raises ModelError unless they fit exactly."""
    from torch import nn

    if {"mean", "std"} < given.keys() and any(name.startswith("network.encoder.") for name in given):
        raise ModelError(f"{one_line(path)}: is a model file of aerialseg already; predict and train --from take it")
    prefix = min((match[1] for match in map(PREFIX.match, given) if match), key=len, default="")
    inside = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
    outside = sorted(given.keys() - {prefix + name for name in inside})
    wanted = network.state_dict()
    _check(inside, wanted, path, spec)
    try:
        network.load_state_dict(inside, strict=False)
    except (RuntimeError, NotImplementedError) as error:  # quantised, sparse: tensors of a kind that cannot be copied
        raise ModelError(f"{one_line(path)}: its tensors cannot be used: {first_line(error)}") from error
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise ModelError(f"{one_line(path)}: tensor {name} holds values that are not finite")
    notes = [f"{one_line(path)}: left out what is beside the network: {_some(outside)}"] if outside else []
    if any(isinstance(module, nn.Upsample) for module in network.modules()):
        notes.append(
            "smp stretches this network's logits to the corners (align_corners); here pixel centres stay in place, so"
            " probabilities differ a little from smp's, most at the edges of a tile"
        )
    return tuple(notes)


def _check(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, spec: ModelSpec) -> None:
    """Raise ModelError naming more classes than one, missing and unexpected tensors, or the first of another shape."""
    made = f"expected {spec.architecture} with {spec.encoder} for {spec.bands} bands"
    missing = [name for name in wanted if name not in given and not name.endswith(COUNTER)]
    without = UNUSED_BY_DPT if spec.architecture == "dpt" else ()
    unexpected = [name for name in given if name not in wanted and not name.startswith(without)]
    if missing or unexpected:
        lists = [f"{len(names)} tensors {label} ({_some(names)})" for label, names in
                 (("missing", missing), ("unexpected", unexpected)) if names]  # fmt: skip
        raise ModelError(f"{one_line(path)}: {', '.join(lists)}, {made}; name the network it was saved from")
    for name, target in wanted.items():
        found, shape = tuple(given[name].shape) if name in given else tuple(target.shape), tuple(target.shape)
        if found == shape:
            continue
        if name.startswith("segmentation_head.") and found[1:] == shape[1:]:
            raise ModelError(
                f"{one_line(path)}: has {found[0]} output classes ({name} is {found}), expected 1: building; aerialseg"
                " knows buildings and background only"
            )
        raise ModelError(f"{one_line(path)}: tensor {name} is {found}, expected {shape}: {made}")


def _some(names: Sequence[str]) -> str:
    return ", ".join([*map(one_line, names[:SHOWN]), *(["..."] if len(names) > SHOWN else [])])


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
