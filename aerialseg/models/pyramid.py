"""Our own encoder: a convolutional pyramid in which each stage's token mixer is chosen by name.

MetaFormer blocks (Yu et al., arXiv:2111.11418): position by a depthwise convolution (Chu et al., arXiv:2102.10882),
GroupNorm, mixer, GroupNorm, two-layer perceptron; LayerScale (Touvron et al., arXiv:2103.17239) and stochastic depth
(Huang et al., arXiv:1603.09382). The stem is convolutional (Xiao et al., arXiv:2106.14881) and its half-resolution
features are a real skip, which most transformer encoders lack and roof edges need. `PyramidDesign` is what the encoder
arguments may say: four mixers, four depths and a few numbers, checked by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aerialseg.errors import ConfigError, one_line
from aerialseg.models.mixers import MIXERS, MixerSize, make_mixer

if TYPE_CHECKING:
    from collections.abc import Mapping

GROWTH = (1, 2, 5, 8)
"""Channels of the stages at strides 4, 8, 16 and 32, in widths; as in SegFormer's and PVT's small encoders."""
EXPANSION = 4
LAYER_SCALE = 0.1
"""Where LayerScale starts; 1e-6, as for networks of 40 blocks and 300 epochs, would keep short runs convolutional."""
POOLING = (8, 4, 2, 1)
"""Positions per pooled key along each axis, by stage, as in PVT."""
LIMITS: dict[str, tuple[float, float]] = {
    "width": (8, 512),
    "window": (2, 64),
    "tokens": (1, 1024),
    "drop_path": (0.0, 0.9),
}


class PyramidEncoder(nn.Module):
    """Float [N, bands, H, W] to six maps: the input and features at strides 2, 4, 8, 16 and 32, sizes rounded up."""

    output_stride = 32

    def __init__(self, bands: int, design: PyramidDesign) -> None:
        super().__init__()
        widths = [factor * design.width for factor in GROWTH]
        half = max(16, design.width // 2)
        self.checkpointed = False
        self.out_channels = [bands, half, *widths]
        """As smp's decoders ask for it."""
        self.stem = make_stem(bands, half)
        rates = iter(torch.linspace(0, design.drop_path, sum(design.depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for index, (name, depth) in enumerate(zip(design.mixers, design.depths, strict=True)):
            before, channels = self.out_channels[index + 1], widths[index]
            landmarks = math.isqrt(design.tokens)
            size = MixerSize(channels, math.gcd(design.width, 32), design.window, landmarks, POOLING[index])
            blocks = [Block(name, size, next(rates)) for _ in range(depth)]
            self.stages.append(nn.Sequential(_norm(before), _halve(before, channels), *blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the six maps, finest first."""
        features = [x, self.stem(x)]
        for stage in self.stages:
            again = self.checkpointed and torch.is_grad_enabled()
            features.append(checkpoint(stage, features[-1], use_reentrant=False) if again else stage(features[-1]))
        return features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute what lies inside the stages again in the backward pass instead of keeping it; named as in timm."""
        self.checkpointed = enable


class Block(nn.Module):
    """Position, mixer and perceptron, each added to what comes in."""

    def __init__(self, mixer: str, size: MixerSize, drop: float) -> None:
        super().__init__()
        channels = size.channels
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.mixer = nn.Sequential(_norm(channels), make_mixer(mixer, size), Scale(channels, drop))
        self.perceptron = nn.Sequential(
            _norm(channels),
            nn.Conv2d(channels, EXPANSION * channels, 1),
            nn.GELU(),
            nn.Conv2d(EXPANSION * channels, channels, 1),
            Scale(channels, drop),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix [N, C, H, W]."""
        x = x + self.position(x)
        x = x + self.mixer(x)
        mixed: Tensor = x + self.perceptron(x)
        return mixed


class Scale(nn.Module):
    """LayerScale, and in training, for each sample alone, nothing at all with probability `drop`."""

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.full((channels,), LAYER_SCALE))  # one dimension: not decayed
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """Scale [N, C, H, W]; the result is of the input's type, or a float32 factor would widen all that follows."""
        scaled = x * self.factors.to(x.dtype)[:, None, None]
        if not self.training or self.drop == 0.0:
            return scaled
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop
        return scaled * (kept / (1.0 - self.drop)).to(x.dtype)


def make_stem(bands: int, channels: int) -> nn.Sequential:
    """Return the convolutions that make features at stride 2 of pixels; under autocast they are of the narrow type."""
    return nn.Sequential(
        _halve(bands, channels), _norm(channels), nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


def _norm(channels: int) -> nn.GroupNorm:
    """Return a norm over all positions and channels of a sample, the same in training and prediction."""
    return nn.GroupNorm(1, channels)


def _halve(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=2, padding=1)


@dataclass(frozen=True, slots=True)
class PyramidDesign:
    """What `encoder_arguments` say; each stage's value stands at strides 4, 8, 16 and 32 in turn."""

    mixers: tuple[str, ...] = ("conv", "conv", "window", "full")
    depths: tuple[int, ...] = (2, 2, 6, 2)
    width: int = 32
    """Channels of the first stage; a multiple of 8."""
    window: int = 8
    """Side of windows, of a grid's groups, of blocks, in positions of the stage."""
    tokens: int = 64
    """Landmarks, latent points or features where a mixer has them; a square. Routing has its root as many clusters."""
    drop_path: float = 0.1
    """Probability at which the last block is left out of a training step; it grows from 0 with depth."""


def parse_design(  # noqa: C901  (a check for each argument)
    arguments: Mapping[str, str | int | float | bool],
) -> PyramidDesign:
    """Read `encoder_arguments`; a list is written as text with commas, one value stands for all four stages.

    Raises ConfigError naming the key, what was found and what is expected.
    """
    known = [field.name for field in fields(PyramidDesign)]
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        match name:
            case "mixers":
                values[name] = _four(name, value)
                for mixer in values[name]:
                    if mixer not in MIXERS:
                        raise _refused(name, f"names {mixer!r}", f"one, or four with commas, of {', '.join(MIXERS)}")
            case "depths":
                texts = _four(name, value)
                if not all(text.isascii() and text.isdigit() and 1 <= int(text) <= 64 for text in texts):
                    raise _refused(name, f"is {value!r}", "four numbers of blocks from 1 to 64, such as '2,2,6,2'")
                values[name] = tuple(map(int, texts))
            case _ if name in LIMITS:
                low, high = LIMITS[name]
                whole = isinstance(value, int) and not isinstance(value, bool)
                number = isinstance(value, int | float) and (whole or name == "drop_path")
                if not number or not low <= float(value) <= high:
                    raise _refused(name, f"is {value!r}", f"a number from {low} to {high}")
                values[name] = value
            case _:
                raise _refused(name, "is unknown to encoder pyramid", f"one of {', '.join(known)}")
    design = PyramidDesign(**values)
    if design.width % 8:
        raise _refused("width", f"is {design.width}", "a multiple of 8")
    if math.isqrt(design.tokens) ** 2 != design.tokens:
        raise _refused("tokens", f"is {design.tokens}", "a square, such as 16, 49 or 64")
    return design


def _four(name: str, value: object) -> tuple[str, ...]:
    items = [item.strip() for item in str(value).split(",")]
    if len(items) not in (1, 4):
        raise _refused(name, f"has {len(items)} values", "one for all stages, or four: at strides 4, 8, 16 and 32")
    return tuple(items * (4 // len(items)))


def _refused(name: str, found: str, expected: str) -> ConfigError:
    return ConfigError(f"encoder argument {one_line(name)!r} {one_line(found)}, expected {expected}")
