"""MONAI's SlidingWindowInferer on the whole scene as one tensor, as its documentation shows it."""

import numpy as np
import rasterio
import torch
from compete import compete
from monai.inferers import SlidingWindowInferer


def predict(scene, network, given):
    """Blend by equal weights, its default; the other choice, a Gaussian, costs it more."""
    with rasterio.open(scene) as dataset:
        pixels = torch.from_numpy(dataset.read().astype(np.float32))[None]
    size = (given.window, given.window)
    inferer = SlidingWindowInferer(roi_size=size, sw_batch_size=given.batch, overlap=1 - given.step / given.window)
    with torch.inference_mode():
        logits = inferer(pixels, network)
    return (logits[0, 0] > 0).numpy()


if __name__ == "__main__":
    compete(predict, "monai")
