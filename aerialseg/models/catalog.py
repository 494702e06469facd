"""From a preset's name, or an architecture and an encoder, to a network that may be used.

Builds through segmentation_models_pytorch (smp) and timm. The table of presets is in presets.py. Knows nothing of what
pixels mean (segmenter.py), of files (weights.py, package.py) or of training. Importing this module does not import
torch; building a network does.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aerialseg.errors import ConfigError, first_line, one_line
from aerialseg.models.presets import PRESETS, SIZE_MULTIPLE, STEM_SKIP, EncoderArguments, Preset

if TYPE_CHECKING:
    from torch import nn

DEFAULT_PRESET = "unet-r34"

# What smp and timm decide themselves, or what would let a model file name a checkpoint or a repository to load.
RESERVED_ARGUMENTS = frozenset(
    {
        *("cache_dir", "checkpoint_path", "exportable", "feature_cfg", "features_only", "in_chans", "num_classes"),
        *("out_indices", "output_stride", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
        *("pretrained_model_args", "scriptable"),
    }
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that decides a network's tensors; `weights` is "imagenet", "none", or a file of encoder weights."""

    preset: str
    architecture: str
    encoder: str
    encoder_arguments: EncoderArguments
    bands: int
    weights: str | Path = "none"
    accept_licence: bool = False
    """Whether a licence that forbids commercial use was accepted: in the configuration, or by a card that names it."""


def resolve(
    preset: str | None = None,
    architecture: str | None = None,
    encoder: str | None = None,
    *,
    encoder_arguments: EncoderArguments | None = None,
    bands: int = 3,
    weights: str | Path = "none",
    accept_licence: bool = False,
) -> ModelSpec:
    """Return the spec of a preset, or of any smp architecture and encoder; nothing named: the default preset.

    `encoder_arguments` are added to the preset's own. Raises ConfigError for an unknown preset, for half a pair, for a
    preset together with a pair. `accept_licence` allows encoders whose licence forbids commercial use.
    """
    found = _find_preset(preset, architecture, encoder)
    arguments = {**found.encoder_arguments, **(encoder_arguments or {})}
    return ModelSpec(found.name, found.architecture, found.encoder, arguments, bands, weights, accept_licence)


def licence_of(spec: ModelSpec) -> str:
    """Return the licence of the spec's encoder and its pretrained weights; "" where none is recorded."""
    if spec.preset in PRESETS:
        return PRESETS[spec.preset].licence
    known = {preset.encoder: preset.licence for preset in PRESETS.values()}
    return known.get(spec.encoder, "")


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
        outline(spec)  # what cannot be built is said before anything is downloaded
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
        network = outline(spec, device).eval()
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


def count_network(network: nn.Module, bands: int, size: int) -> tuple[int, int]:
    """Return the trainable numbers of an outline, and its multiply-adds for one tile of `size` x `size`.

    Counted are convolutions, products of matrices and fused attention; not transforms, pooling, norms and activations.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    parameters = list(network.eval().parameters())
    with torch.device(parameters[0].device), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, bands, size, size))
    return sum(parameter.numel() for parameter in parameters), int(counter.get_total_flops()) // 2


def outline(spec: ModelSpec, device: str = "meta") -> nn.Module:
    """Build the network without pretrained weights; on torch's meta device it has shapes only: no memory, no time."""
    import torch

    from aerialseg.models.construction import construct

    _check_spec(spec)
    try:
        with torch.device(device):
            return construct(spec, pretrained=False)
    except ConfigError:
        if device == "cpu":
            raise
        return outline(spec, "cpu").to(device)  # some compute with numbers while they are built


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
    if re.fullmatch(r"mit_b\d", encoder) and not spec.accept_licence:
        raise ConfigError(
            f"encoder {encoder} is under NVIDIA's Source Code License, non-commercial; preset"
            f" segformer-pvt2-b{encoder[-1]} is nearly the same network under Apache-2.0; to accept that licence set"
            " model.accept_licence = true"
        )
    if encoder == "pyramid":
        _check_pyramid(spec)
        return
    # timm would take "hf-hub:owner/name" and "local-dir:path" for a name; only its own registry is allowed.
    universal = encoder.startswith("tu-")
    known = timm.is_model(encoder[3:].split(".")[0]) if universal else encoder in get_encoder_names()
    if not known or not re.fullmatch(r"[\w.-]+", encoder):
        raise ConfigError(
            f"encoder {one_line(encoder)!r} is unknown to smp; for one of timm's write tu-NAME, such as tu-pvt_v2_b1"
        )
    _check_arguments(spec, universal)


def _check_pyramid(spec: ModelSpec) -> None:
    from aerialseg.models.construction import JOINED
    from aerialseg.models.design import parse_design

    if spec.architecture not in JOINED:
        raise ConfigError(f"encoder pyramid goes with {', '.join(JOINED)}, not with {spec.architecture}")
    if spec.weights == "imagenet":
        raise ConfigError(
            'encoder pyramid has no pretrained weights: set model.weights = "none", or to a file of such an encoder'
        )
    parse_design(spec.encoder_arguments)


def _check_arguments(spec: ModelSpec, universal: bool) -> None:
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

    architecture = MODEL_ARCHITECTURES_MAPPING[spec.architecture]
    reserved = RESERVED_ARGUMENTS | set(inspect.signature(architecture.__init__).parameters)
    for name, value in spec.encoder_arguments.items():
        if name == STEM_SKIP:
            _check_stem_skip(spec, value)
        elif not universal:
            raise ConfigError(
                f"encoder argument {one_line(name)!r}: encoder {spec.encoder} takes none; only tu-NAME encoders do"
            )
        elif name in reserved:
            raise ConfigError(f"encoder argument {one_line(name)!r} is not for the encoder: remove it")


def _check_stem_skip(spec: ModelSpec, value: object) -> None:
    from aerialseg.models.construction import SKIPPING

    if not isinstance(value, bool):
        raise ConfigError(f"encoder argument {STEM_SKIP!r} is {one_line(repr(value))}, expected true or false")
    if value and spec.architecture not in SKIPPING:
        raise ConfigError(
            f"encoder argument {STEM_SKIP!r} goes with {', '.join(SKIPPING)}: the decoder of {spec.architecture} has no"
            " skip at stride 2; remove it"
        )
