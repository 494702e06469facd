"""Builds a network with segmentation_models_pytorch (smp), then mends what costs accuracy or speed silently.

Our own encoder (pyramid.py) is joined to smp's decoders here, since smp finds encoders only in its own table; and so is
one that gets a stem beside it, for the decoder must know of it. What may be built is decided in catalog.py.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from aerialseg.errors import ConfigError, first_line, one_line
from aerialseg.models.design import parse_design
from aerialseg.models.presets import STEM_SKIP
from aerialseg.models.pyramid import PyramidEncoder, make_stem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from aerialseg.models.catalog import ModelSpec

JOINED = ("unet", "segformer", "fpn", "upernet")
"""Architectures that our own encoder can be joined to."""
SKIPPING = ("unet", "unetplusplus")
"""Architectures whose decoder has a skip at stride 2."""
STEM_CHANNELS = 32


class Joined(nn.Module):
    """An encoder, a decoder and a head, under the names that smp's networks give them.

    With a `stem` the features at stride 2 are its, in place of the zero channels that smp gives an encoder without any.
    It stands beside the encoder: weights for that, its rate and its freezing are not the stem's.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, segmentation_head: nn.Module, stem: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.segmentation_head = segmentation_head
        self.stem = stem

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, 1, H, W] for [N, bands, H, W]."""
        features = self.encoder(x)
        if self.stem is not None:
            features = [features[0], self.stem(x), *features[2:]]
        logits: Tensor = self.segmentation_head(self.decoder(features))
        return logits


def construct(spec: ModelSpec, *, pretrained: bool) -> nn.Module:
    """Build the network of a checked `spec`, with the weights of smp's or timm's hub if `pretrained`.

    Raises ConfigError when it cannot be built; with `pretrained` the libraries' own errors pass through.
    """
    if spec.encoder == "pyramid":
        encoder = PyramidEncoder(spec.bands, parse_design(spec.encoder_arguments))
        network: nn.Module = _join(spec.architecture, encoder, encoder.out_channels)
    elif spec.encoder_arguments.get(STEM_SKIP):
        network = _join_with_stem(spec, pretrained=pretrained)
    else:
        network = _construct_by_smp(spec, pretrained=pretrained)
    _centre_upsampling(network)
    if spec.architecture == "dpt":
        _drop_classifier(network.get_submodule("encoder.model"))
    network.get_submodule("encoder").register_forward_hook(_narrow_features)
    return network


def _join(architecture: str, encoder: nn.Module, channels: list[int], stem: nn.Module | None = None) -> Joined:
    """Put a decoder, as smp sets it up by default, behind an encoder whose six maps have these `channels`."""
    last, factor = 256, 4
    match architecture:
        case "unet" | "unetplusplus":
            widths = (256, 128, 64, 32, 16)
            make = UnetDecoder if architecture == "unet" else UnetPlusPlusDecoder
            decoder, last, factor = make(channels, widths), widths[-1], 1
        case "segformer":
            decoder = SegformerDecoder(channels)
        case "fpn":
            decoder, last = FPNDecoder(channels), 128
        case _:
            decoder = UPerNetDecoder(channels)
    head = SegmentationHead(last, 1, kernel_size=3 if factor == 1 else 1, upsampling=factor)
    initialize_decoder(decoder)
    initialize_head(head)
    return Joined(encoder, decoder, head, stem)


def _join_with_stem(spec: ModelSpec, *, pretrained: bool) -> Joined:
    with _complaints_of_smp(spec, pretrained=pretrained):
        weights = _weights_by_smp(spec, pretrained=pretrained)
        encoder: nn.Module = get_encoder(spec.encoder, spec.bands, 5, weights, **_arguments_for_smp(spec))
    channels: Any = encoder.out_channels
    if len(channels) != 6 or channels[1] != 0:
        raise ConfigError(
            f"encoder argument {STEM_SKIP!r}: encoder {spec.encoder} has features at stride 2 of its own; remove it"
        )
    stem = make_stem(spec.bands, STEM_CHANNELS)
    return _join(spec.architecture, encoder, [channels[0], STEM_CHANNELS, *channels[2:]], stem)


def _construct_by_smp(spec: ModelSpec, *, pretrained: bool) -> nn.Module:
    with _complaints_of_smp(spec, pretrained=pretrained):
        network: nn.Module = smp.create_model(
            spec.architecture,
            encoder_name=spec.encoder,
            encoder_weights=_weights_by_smp(spec, pretrained=pretrained),
            in_channels=spec.bands,
            classes=1,
            **_arguments_for_smp(spec),
        )
    return network


def _weights_by_smp(spec: ModelSpec, *, pretrained: bool) -> Any:
    return (True if spec.encoder.startswith("tu-") else "imagenet") if pretrained else None


def _arguments_for_smp(spec: ModelSpec) -> dict[str, Any]:
    return {name: value for name, value in spec.encoder_arguments.items() if name != STEM_SKIP}


@contextmanager
def _complaints_of_smp(spec: ModelSpec, *, pretrained: bool) -> Iterator[None]:
    """Turn whatever a network of another project raises into ConfigError; with `pretrained` its errors pass through."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except Exception as error:
        if pretrained:
            raise
        given = f" with {dict(spec.encoder_arguments)}" if spec.encoder_arguments else ""
        raise ConfigError(
            f"encoder {spec.encoder} under {spec.architecture}{one_line(given)} cannot be built: {first_line(error)};"
            " choose another encoder or remove the arguments"
        ) from error


def _centre_upsampling(network: nn.Module) -> None:
    """Keep pixel centres in place where smp upsamples logits.

    smp's heads upsample with align_corners=True, which puts the logits at a tile's left edge (factor - 1) / 2 pixels
    too far left and those at its right edge as much too far right: 1.5 pixels for SegFormer's factor of 4, and the
    windows of a scene then disagree where they overlap.
    """
    for module in network.modules():
        if isinstance(module, nn.Upsample) and module.align_corners:
            module.align_corners = False


def _drop_classifier(backbone: nn.Module) -> None:
    """Remove what DPT leaves of timm's classifier; parameters without gradients stop data-parallel training."""
    for name in ("norm", "fc_norm", "head"):
        if hasattr(backbone, name):
            setattr(backbone, name, nn.Identity())


def _narrow_features(encoder: nn.Module, inputs: Any, features: Any) -> Any:
    """Under autocast, hand the decoder features of the narrow type.

    Most transformer encoders have no stride-2 features, so smp adds a float32 tensor of zero channels, and their
    residual streams are float32 too; what UNet concatenates with either becomes float32, at twice the memory and time.
    """
    kind = inputs[0].device.type
    if not isinstance(features, list) or kind == "meta" or not torch.is_autocast_enabled(kind):
        return features
    narrow = torch.get_autocast_dtype(kind)
    return [features[0], *(item.to(narrow) for item in features[1:])]
