"""Nothing but rasterio and numpy, as one writes it first: read all, add all up, write all."""

import numpy as np
import rasterio
import torch
from compete import compete


def predict(scene, network, given):
    """Keep scene, sums and weights whole in memory; blend by a half-pixel Hann window."""
    with rasterio.open(scene) as dataset:
        pixels = dataset.read()
    height, width = pixels.shape[1:]
    size, step = given.window, given.step
    beyond = [max(0, -(-(length - size) // step)) * step + size - length for length in (height, width)]
    pixels = np.pad(pixels, ((0, 0), (0, beyond[0]), (0, beyond[1])), mode="reflect")
    fading = np.sin(np.pi * (np.arange(size) + 0.5) / size).astype(np.float32) ** 2
    weight = np.outer(fading, fading)
    total, weights = np.zeros((2, *pixels.shape[1:]), np.float32)
    places = [
        (row, col)
        for row in range(0, pixels.shape[1] - size + 1, step)
        for col in range(0, pixels.shape[2] - size + 1, step)
    ]
    for start in range(0, len(places), given.batch):
        batch = places[start : start + given.batch]
        windows = np.stack([pixels[:, row : row + size, col : col + size] for row, col in batch])
        with torch.inference_mode():
            probabilities = torch.sigmoid(network(torch.from_numpy(windows)))[:, 0].numpy()
        for (row, col), probability in zip(batch, probabilities, strict=True):
            total[row : row + size, col : col + size] += probability * weight
            weights[row : row + size, col : col + size] += weight
    return (total / weights >= 0.5)[:height, :width].astype(np.uint8)


if __name__ == "__main__":
    compete(predict, "numpy")
