"""torchgeo's GridGeoSampler, as its documentation shows it; it has no stitching, so windows are averaged by hand."""

import numpy as np
import rasterio
import torch
from compete import compete
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import GridGeoSampler


def predict(scene, network, given):
    """Read windows by their coordinates, the lowest row first, and blend them by equal weights."""
    with rasterio.open(scene) as source:
        place, shape = source.transform, source.shape
    dataset = RasterDataset(paths=str(scene))
    sampler = GridGeoSampler(dataset, size=given.window, stride=given.step)
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for sample in DataLoader(dataset, batch_size=given.batch, sampler=sampler, collate_fn=stack_samples):
        with torch.inference_mode():
            probabilities = torch.sigmoid(network(sample["image"]))[:, 0].numpy()
        for (x, y, *_), probability in zip(sample["bounds"], probabilities, strict=True):
            col, row = (round(value) for value in ~place * (x.start, y.stop))
            above = max(0, -row)
            under = np.s_[row + above : row + given.window, col : col + given.window]
            seen = probability[above:, : total[under].shape[1]]
            total[under] += seen
            count[under] += 1
    return (total >= 0.5 * count).astype(np.uint8)


if __name__ == "__main__":
    compete(predict, "torchgeo")
