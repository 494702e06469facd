"""Builds a network with segmentation_models_pytorch (smp), then mends what costs accuracy or speed silently.

What may be built is decided in catalog.py.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import segmentation_models_pytorch as smp
import torch
from torch import nn

from aerialseg.errors import ConfigError, first_line, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from aerialseg.models.catalog import ModelSpec


def construct(spec: ModelSpec, *, pretrained: bool) -> nn.Module:
    """Build the network of a checked `spec`, with the weights of smp's or timm's hub if `pretrained`.

    Raises ConfigError when it cannot be built; with `pretrained` the libraries' own errors pass through.
    """
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
    _centre_upsampling(network)
    encoder = network.get_submodule("encoder")
    if 0 in getattr(encoder, "out_channels", ()):
        encoder.register_forward_hook(_narrow_empty_skip)
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


def _narrow_empty_skip(encoder: nn.Module, inputs: Any, features: list[Tensor]) -> list[Tensor]:
    """Keep an empty half-resolution skip from widening what it is concatenated with.

    Most transformer encoders have no stride-2 features, so smp adds a float32 tensor of zero channels; under autocast,
    concatenating it turns the input of UNet's half-resolution block into float32.
    """
    kind = features[0].device.type
    if not torch.is_autocast_enabled(kind):
        return features
    narrow = torch.get_autocast_dtype(kind)
    return [item.to(narrow) if item.shape[1] == 0 else item for item in features]
