"""Which networks there are: a preset's name -> architecture, encoder, size rule, attention family and licence.

Builds them through segmentation_models_pytorch (smp) and timm. Knows nothing of what pixels mean (segmenter.py), of
files (weights.py, package.py) or of training. Importing this module does not import torch; building a network does.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from aerialseg.errors import ConfigError, first_line, one_line

if TYPE_CHECKING:
    from torch import nn

EncoderArguments: TypeAlias = Mapping[str, str | int | float | bool]

DEFAULT_PRESET = "unet-r34"
SIZE_MULTIPLE = 32
NO_ATTENTION = "none (convolution)"
POOLED_KEYS = "memory: pooled keys (spatial reduction)"

# What smp and timm decide themselves, or what would let a model file name a checkpoint or a repository to load.
RESERVED_ARGUMENTS = frozenset(
    {
        *("cache_dir", "checkpoint_path", "exportable", "feature_cfg", "features_only", "in_chans", "num_classes"),
        *("out_indices", "output_stride", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
        *("pretrained_model_args", "scriptable"),
    }
)


@dataclass(frozen=True, slots=True)
class Preset:
    """A network under a short name; `parameters` counts it at three bands (None: not counted yet)."""

    name: str
    architecture: str
    """As smp spells it, in lower case."""
    encoder: str
    """As smp spells it; `tu-NAME` is timm's NAME."""
    size_multiple: int = SIZE_MULTIPLE
    """Tile sizes must be multiples of this."""
    attention: str = "not catalogued"
    """Family in the survey of efficient transformers by Tay et al., arXiv:2009.06732."""
    licence: str = "not catalogued"
    parameters: int | None = None
    encoder_arguments: EncoderArguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that decides a network's tensors; `weights` is "imagenet", "none", or a file of encoder weights."""

    preset: str
    architecture: str
    encoder: str
    encoder_arguments: EncoderArguments
    bands: int
    weights: str | Path = "none"


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("unet-r18", "unet", "resnet18", 32, NO_ATTENTION, "MIT, weights BSD-3-Clause", 14_328_209),
        Preset("unet-r34", "unet", "resnet34", 32, NO_ATTENTION, "MIT, weights BSD-3-Clause", 24_436_369),
        Preset("unet-r50", "unet", "resnet50", 32, NO_ATTENTION, "MIT, weights BSD-3-Clause", 32_521_105),
        Preset("segformer-pvt2-b0", "segformer", "tu-pvt_v2_b0", 32, POOLED_KEYS, "Apache-2.0", 3_804_769),
        Preset("segformer-pvt2-b2", "segformer", "tu-pvt_v2_b2", 32, POOLED_KEYS, "Apache-2.0", 25_375_937),
    )
}


def resolve(
    preset: str | None = None,
    architecture: str | None = None,
    encoder: str | None = None,
    *,
    encoder_arguments: EncoderArguments | None = None,
    bands: int = 3,
    weights: str | Path = "none",
) -> ModelSpec:
    """Return the spec of a preset, or of any smp architecture and encoder; nothing named: the default preset.

    `encoder_arguments` are added to the preset's own. Raises ConfigError for an unknown preset, for half a pair, and
    for a preset together with a pair.
    """
    found = _find_preset(preset, architecture, encoder)
    arguments = {**found.encoder_arguments, **(encoder_arguments or {})}
    return ModelSpec(found.name, found.architecture, found.encoder, arguments, bands, weights)


def build_network(spec: ModelSpec) -> nn.Module:
    """Build the network of `spec`: float [N, bands, H, W] in, logits [N, 1, H, W] out.

    Raises ConfigError for what cannot be built or may not be used, NoInputError when weights cannot be had.
    """
    from aerialseg.models import weights
    from aerialseg.models.construction import construct

    _check_spec(spec)
    if spec.weights == "imagenet":
        if spec.encoder not in {preset.encoder for preset in PRESETS.values()}:  # theirs are in the table
            weights.check_licence(spec.encoder)
        _without_weights(spec, "meta")  # what cannot be built is said before anything is downloaded
        with weights.downloading(spec.encoder):
            return construct(spec, pretrained=True)
    network = construct(spec, pretrained=False)
    if spec.weights != "none":
        weights.load_encoder_weights(network.get_submodule("encoder"), Path(spec.weights), spec.bands)
    return network


def check_network(spec: ModelSpec, tile_size: int) -> None:
    """Prove by one forward pass that the network takes tiles of that size; raises ConfigError naming both.

    The pass computes shapes only (torch's meta device, 0.1 s); a network that cannot run so runs once for real.
    """
    import torch

    expected = (1, 1, tile_size, tile_size)
    reason = ""
    for device in ("meta", "cpu"):
        network = _without_weights(spec, device).eval()
        try:
            with torch.device(device), torch.inference_mode():
                found = tuple(network(torch.zeros(1, spec.bands, tile_size, tile_size)).shape)
        except Exception as error:  # a network of another project may raise anything
            reason = first_line(error)
            continue
        if found == expected:
            return
        reason = f"output is {found}, expected {expected}"
    raise ConfigError(
        f"encoder {one_line(spec.encoder)} under {one_line(spec.architecture)} does not take tiles of"
        f" {tile_size}x{tile_size}: {reason}; use a multiple of {SIZE_MULTIPLE}, the encoder's own size,"
        " or an encoder argument such as strict_img_size = false or dynamic_img_size = true"
    )


def input_statistics(spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std (units of 0..255) that the pretrained encoder expects; None: use those of the tile set.

    None without pretrained weights, and for other than three bands, where the first convolution is adapted anyway.
    """
    from aerialseg.models import weights

    if spec.weights != "imagenet" or spec.bands != 3:
        return None
    from segmentation_models_pytorch.encoders import get_preprocessing_params

    with weights.downloading(spec.encoder):
        settings = get_preprocessing_params(spec.encoder)
    unit = 1.0 if settings["input_range"][1] > 1 else 255.0
    return tuple(unit * value for value in settings["mean"]), tuple(unit * value for value in settings["std"])


def count_parameters(spec: ModelSpec) -> int:
    """Count the network's trainable numbers."""
    return sum(parameter.numel() for parameter in _without_weights(spec, "meta").parameters())


def _without_weights(spec: ModelSpec, device: str) -> nn.Module:
    """Build the network on `device`; on the CPU where it cannot be built on "meta", which takes no memory or time."""
    import torch

    from aerialseg.models.construction import construct

    _check_spec(spec)
    try:
        with torch.device(device):
            return construct(spec, pretrained=False)
    except ConfigError:
        if device == "cpu":
            raise
        return _without_weights(spec, "cpu")


def _find_preset(preset: str | None, architecture: str | None, encoder: str | None) -> Preset:
    if architecture is None and encoder is None:
        name = preset or DEFAULT_PRESET
        if name not in PRESETS:
            raise ConfigError(
                f"model preset {one_line(name)!r} is unknown, expected one of {', '.join(PRESETS)};"
                " any other network is named by architecture and encoder"
            )
        return PRESETS[name]
    if preset is not None:
        raise ConfigError(
            f"model has both preset {one_line(preset)!r} and architecture or encoder; give one or the other"
        )
    if architecture is None or encoder is None:
        raise ConfigError("model needs architecture and encoder together, for example 'unet' and 'tu-convnext_tiny'")
    return Preset(f"{architecture.lower()}-{encoder}", architecture.lower(), encoder)


def _check_spec(spec: ModelSpec) -> None:
    """Refuse names and arguments that smp or timm would ignore, fetch from elsewhere, or fail on obscurely."""
    import timm
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING
    from segmentation_models_pytorch.encoders import get_encoder_names

    encoder = spec.encoder
    if spec.bands < 1:
        raise ConfigError(f"a network needs at least 1 band, got {spec.bands}")
    if spec.architecture not in MODEL_ARCHITECTURES_MAPPING:
        raise ConfigError(
            f"architecture {one_line(spec.architecture)!r} is unknown, expected one of"
            f" {', '.join(MODEL_ARCHITECTURES_MAPPING)}"
        )
    if re.fullmatch(r"mit_b\d", encoder):
        twin = "segformer-pvt2-b2" if encoder >= "mit_b2" else "segformer-pvt2-b0"
        raise ConfigError(
            f"encoder {encoder} carries NVIDIA's non-commercial licence and is refused; preset {twin} is nearly the"
            " same network under Apache-2.0"
        )
    # timm would take "hf-hub:owner/name" and "local-dir:path" for a name; only its own registry is allowed.
    universal = encoder.startswith("tu-")
    known = timm.is_model(encoder[3:].split(".")[0]) if universal else encoder in get_encoder_names()
    if not known or not re.fullmatch(r"[\w.-]+", encoder):
        raise ConfigError(
            f"encoder {one_line(encoder)!r} is unknown to smp; for one of timm's write tu-NAME, such as tu-pvt_v2_b1"
        )
    _check_arguments(spec, universal)


def _check_arguments(spec: ModelSpec, universal: bool) -> None:
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

    architecture = MODEL_ARCHITECTURES_MAPPING[spec.architecture]
    reserved = RESERVED_ARGUMENTS | set(inspect.signature(architecture.__init__).parameters)
    for name in spec.encoder_arguments:
        if not universal:
            raise ConfigError(
                f"encoder argument {one_line(name)!r}: encoder {spec.encoder} takes none; only tu-NAME encoders do"
            )
        if name in reserved:
            raise ConfigError(f"encoder argument {one_line(name)!r} is not for the encoder: remove it")
