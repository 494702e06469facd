"""Builds a network with segmentation_models_pytorch (smp), then mends what costs accuracy or speed silently.

Our own encoder (pyramid.py) is joined to smp's decoders here, since smp finds encoders only in its own table. What may
be built is decided in catalog.py.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import nn

from aerialseg.errors import ConfigError, first_line, one_line
from aerialseg.models.pyramid import PyramidEncoder, parse_design

if TYPE_CHECKING:
    from torch import Tensor

    from aerialseg.models.catalog import ModelSpec

JOINED = ("unet", "segformer", "fpn", "upernet")
"""Architectures that our own encoder can be joined to."""


class Joined(nn.Module):
    """Our encoder, a decoder and a head, under the names that smp's networks give them."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, segmentation_head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.segmentation_head = segmentation_head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, 1, H, W] for [N, bands, H, W]."""
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(x)))
        return logits


def construct(spec: ModelSpec, *, pretrained: bool) -> nn.Module:
    """Build the network of a checked `spec`, with the weights of smp's or timm's hub if `pretrained`.

    Raises ConfigError when it cannot be built; with `pretrained` the libraries' own errors pass through.
    """
    network = _join(spec) if spec.encoder == "pyramid" else _construct_by_smp(spec, pretrained=pretrained)
    _centre_upsampling(network)
    if spec.architecture == "dpt":
        _drop_classifier(network.get_submodule("encoder.model"))
    network.get_submodule("encoder").register_forward_hook(_narrow_features)
    return network


def _join(spec: ModelSpec) -> nn.Module:
    """Put the decoder of `spec.architecture`, as smp sets it up by default, behind our encoder."""
    encoder = PyramidEncoder(spec.bands, parse_design(spec.encoder_arguments))
    match spec.architecture:
        case "unet":
            widths = (256, 128, 64, 32, 16)
            decoder, last, factor = UnetDecoder(encoder.out_channels, widths), widths[-1], 1
        case "segformer":
            decoder, last, factor = SegformerDecoder(encoder.out_channels), 256, 4
        case "fpn":
            decoder, last, factor = FPNDecoder(encoder.out_channels), 128, 4
        case _:
            decoder, last, factor = UPerNetDecoder(encoder.out_channels), 256, 4
    head = SegmentationHead(last, 1, kernel_size=3 if factor == 1 else 1, upsampling=factor)
    initialize_decoder(decoder)
    initialize_head(head)
    return Joined(encoder, decoder, head)


def _construct_by_smp(spec: ModelSpec, *, pretrained: bool) -> nn.Module:
    chosen = (True if spec.encoder.startswith("tu-") else "imagenet") if pretrained else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            network: nn.Module = smp.create_model(
                spec.architecture,
                encoder_name=spec.encoder,
                encoder_weights=chosen,
                in_channels=spec.bands,
                classes=1,
                **spec.encoder_arguments,
            )
    except Exception as error:  # a network of another project may raise anything
        if pretrained:
            raise
        given = f" with {dict(spec.encoder_arguments)}" if spec.encoder_arguments else ""
        raise ConfigError(
            f"encoder {spec.encoder} under {spec.architecture}{one_line(given)} cannot be built: {first_line(error)};"
            " choose another encoder or remove the arguments"
        ) from error
    return network


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
