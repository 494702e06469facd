"""The networks by name: what each is, what it costs, and what a choice of one decides (`ModelSpec`). No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from aerialseg.errors import ConfigError, one_line

EncoderArguments: TypeAlias = Mapping[str, str | int | float | bool]
SIZE_MULTIPLE = 32
STEM_SKIP = "stem_skip"
"""The encoder argument that is ours for every encoder: a small convolution gives the skip at stride 2."""
NO_ATTENTION = "none (convolution)"
POOLED_KEYS = "memory: pooled keys"
LINEAR = "kernels: linear attention"
FULL = "full attention"
COMBINATION = "combination: global + window"
OURS = "MIT, no weights"
SMP = "MIT, weights BSD-3-Clause"
APACHE = "Apache-2.0"
NVIDIA = "NVIDIA, non-commercial"
SWIN, DINO = "tu-swin_tiny_patch4_window7_224", "tu-vit_small_patch14_dinov2"
MAXVIT = "tu-maxvit_rmlp_tiny_rw_256"
ANY_SIZE: EncoderArguments = {"strict_img_size": False}
ANY_GRID: EncoderArguments = {"dynamic_img_size": True}
PATCH_16: EncoderArguments = {"dynamic_img_size": True, "patch_size": 16}
STEM: EncoderArguments = {STEM_SKIP: True}
WINDOWS: EncoderArguments = {"mixers": "conv,conv,window,full"}
GLOBAL: EncoderArguments = {"mixers": "global,global,global,full"}
LINEAR_ONLY: EncoderArguments = {"mixers": "linear"}
DEFAULT_PRESET = "unet-r34"


@dataclass(frozen=True, slots=True)
class Preset:
    """A network under a short name; `parameters` and `gmacs` are counted at three bands (None: not counted yet)."""

    name: str
    architecture: str
    """As smp spells it, in lower case."""
    encoder: str
    """As smp spells it; `tu-NAME` is timm's NAME; `pyramid` is ours."""
    size_multiple: int = SIZE_MULTIPLE
    """Tile sizes must be multiples of this."""
    attention: str = "not catalogued"
    """Family in the survey of efficient transformers by Tay et al., arXiv:2009.06732."""
    licence: str = "not catalogued"
    parameters: int | None = None
    gmacs: float | None = None
    """Multiply-adds of one 256 x 256 tile, in units of 1e9: those of convolutions and of products of matrices."""
    encoder_arguments: EncoderArguments = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("unet-r18", "unet", "resnet18", 32, NO_ATTENTION, SMP, 14_328_209, 5.40),
        Preset("unet-r34", "unet", "resnet34", 32, NO_ATTENTION, SMP, 24_436_369, 7.81),
        Preset("unet-r50", "unet", "resnet50", 32, NO_ATTENTION, SMP, 32_521_105, 10.63),
        Preset("unetplusplus-r34", "unetplusplus", "resnet34", 32, NO_ATTENTION, SMP, 26_078_609, 18.38),
        Preset("unet-efficientnet-b3", "unet", "tu-efficientnet_b3", 32, NO_ATTENTION, APACHE, 12_561_529, 3.74),
        Preset("unet-convnext-tiny", "unet", "tu-convnext_tiny", 32, NO_ATTENTION, APACHE, 31_928_753, 8.92),
        Preset("fpn-r34", "fpn", "resnet34", 32, NO_ATTENTION, SMP, 23_155_393, 6.86),
        Preset("deeplabv3plus-r50", "deeplabv3plus", "resnet50", 32, NO_ATTENTION, SMP, 26_677_585, 9.14),
        Preset("segformer-pvt2-b0", "segformer", "tu-pvt_v2_b0", 32, POOLED_KEYS, APACHE, 3_804_769, 1.89),
        Preset("segformer-pvt2-b1", "segformer", "tu-pvt_v2_b1", 32, POOLED_KEYS, APACHE, 14_022_081, 3.99),
        Preset("segformer-pvt2-b2", "segformer", "tu-pvt_v2_b2", 32, POOLED_KEYS, APACHE, 25_375_937, 6.52),
        Preset("segformer-pvt2-b3", "segformer", "tu-pvt_v2_b3", 32, POOLED_KEYS, APACHE, 45_251_777, 10.30),
        Preset("segformer-pvt2-b4", "segformer", "tu-pvt_v2_b4", 32, POOLED_KEYS, APACHE, 62_569_153, 14.52),
        Preset("segformer-pvt2-b5", "segformer", "tu-pvt_v2_b5", 32, POOLED_KEYS, APACHE, 81_969_089, 16.66),
        Preset("unet-pvt2-b2", "unet", "tu-pvt_v2_b2", 32, POOLED_KEYS, APACHE, 28_130_577, 8.08),
        Preset("unet-pvt2-b2-stem", "unet", "tu-pvt_v2_b2", 32, POOLED_KEYS, APACHE, 28_150_001, 8.40, STEM),
        Preset("upernet-swin-tiny", "upernet", SWIN, 32, "fixed patterns: windows", "MIT", 36_743_099, 20.63, ANY_SIZE),
        Preset("unet-maxvit-tiny", "unet", MAXVIT, 256, "fixed patterns: windows and grid", APACHE, 31_786_569, 9.74),
        Preset("unet-caformer-s18", "unet", "tu-caformer_s18", 32, "full, after convolution", APACHE, 26_517_633, 8.22),
        Preset("unet-poolformer-s12", "unet", "tu-poolformer_s12", 32, "none (pooling)", APACHE, 14_681_873, 5.13),
        Preset("unet-efficientvit-b1", "unet", "tu-efficientvit_b1", 32, LINEAR, APACHE, 6_800_305, 3.00),
        Preset("unet-edgenext-small", "unet", "tu-edgenext_small", 32, "between channels", "MIT", 7_667_993, 3.73),
        Preset("dpt-vit-small", "dpt", "tu-vit_small_patch16_224", 32, FULL, APACHE, 52_253_569, 36.17, ANY_GRID),
        Preset("dpt-dinov2-small", "dpt", DINO, 32, FULL, APACHE, 52_580_737, 36.17, PATCH_16),
        Preset("unet-pyramid-window", "unet", "pyramid", 32, "fixed patterns: windows", OURS, 6_266_401, 3.34, WINDOWS),
        Preset("segformer-pyramid-global", "segformer", "pyramid", 32, COMBINATION, OURS, 4_546_577, 2.52, GLOBAL),
        Preset("segformer-pyramid-linear", "segformer", "pyramid", 32, LINEAR, OURS, 4_528_145, 2.43, LINEAR_ONLY),
        Preset("segformer-mit-b0", "segformer", "mit_b0", 32, POOLED_KEYS, NVIDIA, 3_714_401, 1.75),
        Preset("segformer-mit-b1", "segformer", "mit_b1", 32, POOLED_KEYS, NVIDIA, 13_677_505, 3.42),
        Preset("segformer-mit-b2", "segformer", "mit_b2", 32, POOLED_KEYS, NVIDIA, 24_722_369, 5.53),
        Preset("segformer-mit-b3", "segformer", "mit_b3", 32, POOLED_KEYS, NVIDIA, 44_598_209, 9.31),
        Preset("segformer-mit-b4", "segformer", "mit_b4", 32, POOLED_KEYS, NVIDIA, 61_368_769, 12.98),
        Preset("segformer-mit-b5", "segformer", "mit_b5", 32, POOLED_KEYS, NVIDIA, 81_969_089, 16.66),
    )
}


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


def resolve(  # noqa: PLR0913  (the keys of [model])
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
    if architecture is None and encoder is None:
        name = preset or DEFAULT_PRESET
        if name not in PRESETS:
            raise ConfigError(
                f"model preset {one_line(name)!r} is unknown, expected one of {', '.join(PRESETS)};"
                " any other network is named by architecture and encoder"
            )
        found = PRESETS[name]
    elif preset is not None:
        raise ConfigError(
            f"model has both preset {one_line(preset)!r} and architecture or encoder; give one or the other"
        )
    elif architecture is None or encoder is None:
        raise ConfigError("model needs architecture and encoder together, for example 'unet' and 'tu-convnext_tiny'")
    else:
        found = Preset(f"{architecture.lower()}-{encoder}", architecture.lower(), encoder)
    arguments = {**found.encoder_arguments, **(encoder_arguments or {})}
    return ModelSpec(found.name, found.architecture, found.encoder, arguments, bands, weights, accept_licence)


def licence_of(spec: ModelSpec) -> str:
    """Return the licence of the spec's encoder and its pretrained weights; "" where none is recorded."""
    if spec.preset in PRESETS:
        return PRESETS[spec.preset].licence
    known = {preset.encoder: preset.licence for preset in PRESETS.values()}
    return known.get(spec.encoder, "")
