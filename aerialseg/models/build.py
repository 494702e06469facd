"""From a spec to a network that may be used, and the `Segmenter` around it: uint8 in, logits out.

Builds with segmentation_models_pytorch (smp) and timm, then mends what costs accuracy or speed silently. Our own
encoder is joined to smp's decoders here, since smp finds encoders only in its own table; and so is one that gets a stem
beside it, for the decoder must know of it. Normalisation lives inside the Segmenter, so that training, prediction and
export agree. Knows nothing of files or of training.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING, encoders
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from aerialseg.errors import ConfigError, first_line, one_line
from aerialseg.models import weights
from aerialseg.models.presets import PRESETS, SIZE_MULTIPLE, STEM_SKIP, ModelSpec
from aerialseg.models.pyramid import PyramidEncoder, make_stem, parse_design

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

# What smp and timm decide themselves, or what would let a model file name a checkpoint or a repository to load.
RESERVED_ARGUMENTS = frozenset(
    {
        *("cache_dir", "checkpoint_path", "exportable", "feature_cfg", "features_only", "in_chans", "num_classes"),
        *("out_indices", "output_stride", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
        *("pretrained_model_args", "scriptable"),
    }
)
JOINED = ("unet", "segformer", "fpn", "upernet")
"""Architectures that our own encoder can be joined to."""
SKIPPING = ("unet", "unetplusplus")
"""Architectures whose decoder has a skip at stride 2."""
STEM_CHANNELS = 32
SPARE = 4
"""Times as many parameters as a network keeps are registered at most while it is built: some parts are made anew."""


def build_network(spec: ModelSpec) -> nn.Module:
    """Build the network of `spec`: float [N, bands, H, W] in, logits [N, 1, H, W] out.

    Raises ConfigError for what cannot be built or may not be used, NoInputError when weights cannot be had.
    """
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


def check_batch_of_one(spec: ModelSpec, crop: int) -> None:
    """Raise ConfigError when the network cannot learn from one crop at a time: BatchNorm has no spread over one value.

    So it is where a map is pooled to a single pixel, as in DeepLabV3 and PSPNet. One pass on torch's meta device tells.
    """
    network = outline(spec).train()
    try:
        with torch.device("meta"), torch.no_grad():
            network(torch.zeros(1, spec.bands, crop, crop))
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise ConfigError(
                f"data.batch 1: {one_line(spec.architecture)} normalises over maps of one pixel, for which a batch of"
                " one crop has nothing to average; take data.batch 2 or more, perhaps with a smaller data.crop"
            ) from error
    except Exception:  # a network that cannot run on this device is judged by its first step
        return


def input_statistics(spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std (units of 0..255) that the pretrained encoder expects; None: use those of the tile set.

    None without pretrained weights, and for other than three bands, where the first convolution is adapted anyway.
    """
    if spec.weights != "imagenet" or spec.bands != 3:
        return None
    with weights.downloading(spec.encoder):
        settings = encoders.get_preprocessing_params(spec.encoder)
    unit = 1.0 if settings["input_range"][1] > 1 else 255.0
    return tuple(unit * value for value in settings["mean"]), tuple(unit * value for value in settings["std"])


def count_network(network: nn.Module, bands: int, size: int) -> tuple[int, int]:
    """Return the trainable numbers of an outline, and its multiply-adds for one tile of `size` x `size`.

    Counted are convolutions, products of matrices and fused attention; not transforms, pooling, norms and activations.
    """
    from torch.utils.flop_counter import FlopCounterMode

    parameters = list(network.eval().parameters())
    with torch.device(parameters[0].device), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, bands, size, size))
    return sum(parameter.numel() for parameter in parameters), int(counter.get_total_flops()) // 2


def tensor_bytes(module: nn.Module) -> int:
    """Return how many bytes a module's tensors take, in memory and in a file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def outline(spec: ModelSpec, device: str = "meta") -> nn.Module:
    """Build the network without pretrained weights; on torch's meta device it has shapes only: no memory, no time."""
    _check_spec(spec)
    try:
        with torch.device(device):
            return construct(spec, pretrained=False)
    except ConfigError:
        if device == "cpu":
            raise
        return outline(spec, "cpu").to(device)  # some compute with numbers while they are built


@contextmanager
def no_larger_than(tensors: Collection[Tensor]) -> Iterator[None]:
    """Stop a network from being built, on whatever device, that has far more numbers, or parameters, than `tensors`.

    So a file cannot ask for more memory or time than it brings. Raises ConfigError; of all networks that are built
    meanwhile, the parameters count together.
    """
    count, numbers = 0, 0
    most = (SPARE * (len(tensors) + 100), SPARE * (sum(tensor.numel() for tensor in tensors) + 100_000))

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, numbers
        count, numbers = count + 1, numbers + (0 if parameter is None else parameter.numel())
        if count > most[0] or numbers > most[1]:
            raise ConfigError("the network that its card names is far larger than its tensors")

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()


def _check_spec(spec: ModelSpec) -> None:
    """Refuse names and arguments that smp or timm would ignore, fetch from elsewhere, or fail on obscurely."""
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
        if spec.architecture not in JOINED:
            raise ConfigError(f"encoder pyramid goes with {', '.join(JOINED)}, not with {spec.architecture}")
        if spec.weights == "imagenet":
            raise ConfigError(
                'encoder pyramid has no pretrained weights: set model.weights = "none", or to a file of such an encoder'
            )
        parse_design(spec.encoder_arguments)
        return
    # timm would take "hf-hub:owner/name" and "local-dir:path" for a name; only its own registry is allowed.
    universal = encoder.startswith("tu-")
    known = timm.is_model(encoder[3:].split(".")[0]) if universal else encoder in encoders.get_encoder_names()
    if not known or not re.fullmatch(r"[\w.-]+", encoder):
        raise ConfigError(
            f"encoder {one_line(encoder)!r} is unknown to smp; for one of timm's write tu-NAME, such as tu-pvt_v2_b1"
        )
    _check_arguments(spec, universal)


def _check_arguments(spec: ModelSpec, universal: bool) -> None:
    architecture = MODEL_ARCHITECTURES_MAPPING[spec.architecture]
    reserved = RESERVED_ARGUMENTS | set(inspect.signature(architecture.__init__).parameters)
    for name, value in spec.encoder_arguments.items():
        if name == STEM_SKIP:
            if not isinstance(value, bool):
                raise ConfigError(f"encoder argument {name!r} is {one_line(repr(value))}, expected true or false")
            if value and spec.architecture not in SKIPPING:
                raise ConfigError(
                    f"encoder argument {name!r} goes with {', '.join(SKIPPING)}: the decoder of {spec.architecture} has"
                    " no skip at stride 2; remove it"
                )
        elif not universal:
            raise ConfigError(
                f"encoder argument {one_line(name)!r}: encoder {spec.encoder} takes none; only tu-NAME encoders do"
            )
        elif name in reserved:
            raise ConfigError(f"encoder argument {one_line(name)!r} is not for the encoder: remove it")


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
    else:
        network = _construct_by_smp(spec, pretrained=pretrained)
    for module in network.modules():
        # smp's heads upsample with align_corners=True, which puts the logits at a tile's left edge (factor - 1) / 2
        # pixels too far left and those at its right edge as much too far right: 1.5 pixels for SegFormer's factor of 4,
        # and the windows of a scene then disagree where they overlap.
        if isinstance(module, nn.Upsample) and module.align_corners:
            module.align_corners = False
    if spec.architecture == "dpt":  # what is left of timm's classifier: without gradients it stops data parallelism
        backbone = network.get_submodule("encoder.model")
        for name in ("norm", "fc_norm", "head"):
            if hasattr(backbone, name):
                setattr(backbone, name, nn.Identity())
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


def _construct_by_smp(spec: ModelSpec, *, pretrained: bool) -> nn.Module:
    """Build a network of smp's, with a stem beside its encoder where the spec asks for one.

    Whatever a network of another project raises becomes ConfigError; with `pretrained` its errors pass through.
    """
    given = (True if spec.encoder.startswith("tu-") else "imagenet") if pretrained else None
    arguments = {name: value for name, value in spec.encoder_arguments.items() if name != STEM_SKIP}
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            if not spec.encoder_arguments.get(STEM_SKIP):
                network: nn.Module = smp.create_model(
                    spec.architecture,
                    encoder_name=spec.encoder,
                    encoder_weights=given,
                    in_channels=spec.bands,
                    classes=1,
                    **arguments,
                )
                return network
            encoder = encoders.get_encoder(spec.encoder, spec.bands, 5, given, **arguments)
    except Exception as error:
        if pretrained:
            raise
        words = f" with {dict(spec.encoder_arguments)}" if spec.encoder_arguments else ""
        raise ConfigError(
            f"encoder {spec.encoder} under {spec.architecture}{one_line(words)} cannot be built: {first_line(error)};"
            " choose another encoder or remove the arguments"
        ) from error
    channels = encoder.out_channels
    if len(channels) != 6 or channels[1] != 0:
        raise ConfigError(
            f"encoder argument {STEM_SKIP!r}: encoder {spec.encoder} has features at stride 2 of its own; remove it"
        )
    stem = make_stem(spec.bands, STEM_CHANNELS)
    return _join(spec.architecture, encoder, [channels[0], STEM_CHANNELS, *channels[2:]], stem)


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


class Segmenter(nn.Module):
    """Standardises pixels by its buffers `mean` and `std` (units of 0..255, one per band) and runs `network`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(f"{len(mean)} means for {len(std)} standard deviations; expected one of each per band")
        if not all(value > 0 for value in std):
            raise ValueError(f"standard deviations must be above zero, got {list(std)}")
        self.network = network
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))

    @property
    def bands(self) -> int:
        """How many bands a pixel has."""
        return self.mean.numel()

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return float32 logits [N, 1, H, W] of building for uint8 `pixels` [N, C, H, W].

        Where `valid`, bool [N, H, W], is False the network sees the mean of every band, whatever the pixels hold.
        """
        if pixels.dtype != torch.uint8:
            raise TypeError(f"pixels must be uint8, got {pixels.dtype}")
        standardised = (pixels.float() - self.mean[:, None, None]) / self.std[:, None, None]
        if valid is not None:
            standardised = standardised.masked_fill(~valid[:, None], 0.0)
        logits: Tensor = self.network(standardised)
        return logits.float()
