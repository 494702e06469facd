"""The plain baseline: the textbook U-Net, trained as a first tutorial would, by nothing of aerialseg.

64 to 1024 channels (Ronneberger et al. 2015, with the padding and BatchNorm that most of today's versions have), Adam
with 1e-4, cross-entropy, float32, quarters of the tiles in random order, no augmentation; then the scene is cut into
windows side by side and each pixel takes the likelier class.

    python benchmarks/plain_unet.py IMAGES MASKS SCENE --out MASK --seconds 300 [--seed 0] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

SIDE = 256
BATCH = 4


class Twice(nn.Sequential):
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class PlainUNet(nn.Module):
    """Float pixels [N, 3, H, W] to logits [N, 2, H, W]; H and W are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.down = nn.ModuleList(Twice(i, o) for i, o in zip((3, *widths), widths, strict=False))
        upwards = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in upwards)
        self.up = nn.ModuleList(Twice(i, o) for i, o in upwards)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of background and building."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            pixels = block(pixels if level == 0 else functional.max_pool2d(pixels, 2))
            skips.append(pixels)
        for grow, block, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            pixels = block(torch.cat([skip, grow(pixels)], dim=1))
        logits: Tensor = self.head(pixels)
        return logits


def read_quarters(images: Path, masks: Path) -> tuple[Tensor, Tensor]:
    """Return every tile's SIDE px pieces: float [N, 3, SIDE, SIDE] from 0 to 1 and classes [N, SIDE, SIDE]."""
    pixels, classes = [], []
    for path in sorted(images.iterdir()):
        image = np.asarray(Image.open(path).convert("RGB"))
        mask = np.asarray(Image.open(masks / path.name)) > 127
        for row in range(0, image.shape[0] - SIDE + 1, SIDE):
            for col in range(0, image.shape[1] - SIDE + 1, SIDE):
                pixels.append(image[row : row + SIDE, col : col + SIDE])
                classes.append(mask[row : row + SIDE, col : col + SIDE])
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255.0, torch.from_numpy(np.stack(classes)).long()


def fit(network: nn.Module, pixels: Tensor, classes: Tensor, options: argparse.Namespace) -> int:
    """Train until the budget is spent, of processor time on a CPU and of wall time on a GPU; returns the steps."""
    optimizer, steps = torch.optim.Adam(network.parameters(), lr=1e-4), 0
    clock = time.process_time if options.device == "cpu" else time.monotonic
    end = clock() + options.seconds
    while True:
        order = torch.randperm(len(pixels))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            if clock() >= end:
                return steps
            chosen = order[first : first + BATCH]
            logits = network(pixels[chosen].to(options.device))
            optimizer.zero_grad()
            functional.cross_entropy(logits, classes[chosen].to(options.device)).backward()
            optimizer.step()
            if options.device != "cpu":
                torch.cuda.synchronize()
            steps += 1


@torch.inference_mode()
def write_mask(network: nn.Module, scene: Path, out: Path, device: str) -> None:
    """Write 0 or 1 for every pixel of the scene, on its grid."""
    with rasterio.open(scene) as source:
        image, profile = source.read((1, 2, 3)), source.profile
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (0, -height % SIDE), (0, -width % SIDE)), mode="reflect")
    mask = np.zeros(padded.shape[1:], np.uint8)
    for row in range(0, padded.shape[1], SIDE):
        for col in range(0, padded.shape[2], SIDE):
            window = torch.from_numpy(padded[None, :, row : row + SIDE, col : col + SIDE]).to(device) / 255.0
            mask[row : row + SIDE, col : col + SIDE] = network(window)[0].argmax(0).cpu().numpy()
    kept = {key: profile[key] for key in ("driver", "height", "width", "crs", "transform")}
    with rasterio.open(out, "w", count=1, dtype="uint8", **kept) as target:
        target.write(mask[:height, :width], 1)


def main() -> None:
    """Train, map, and print the number of steps as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name in ("images", "masks", "scene"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    network = PlainUNet().to(options.device)
    steps = fit(network.train(), *read_quarters(options.images, options.masks), options)
    write_mask(network.eval(), options.scene, options.out, options.device)
    print(json.dumps({"steps": steps, "parameters": sum(p.numel() for p in network.parameters())}))


if __name__ == "__main__":
    main()
