"""pytorch-toolbelt's ImageSlicer and TileMerger, in the steps of its README; the merger is the one for processors."""

import numpy as np
import rasterio
import torch
from compete import compete
from pytorch_toolbelt.inference.tiles import ImageSlicer, TileMerger
from pytorch_toolbelt.utils.torch_utils import image_to_tensor, to_numpy
from torch.utils.data import DataLoader


def predict(scene, network, given):
    """Cut all tiles, then run and merge them with equal weights, its default."""
    with rasterio.open(scene) as dataset:
        image = np.moveaxis(dataset.read(), 0, -1)
    size, step = (given.window, given.window), (given.step, given.step)
    slicer = ImageSlicer(image.shape, tile_size=size, tile_step=step)
    tiles = [image_to_tensor(tile) for tile in slicer.split(image)]
    merger = TileMerger(slicer.target_shape, 1, slicer.weight)
    with torch.inference_mode():
        for batch, places in DataLoader(list(zip(tiles, slicer.crops, strict=True)), batch_size=given.batch):
            merger.integrate_batch(network(batch.float()), places)
    merged = np.moveaxis(to_numpy(merger.merge()), 0, -1)
    return (slicer.crop_to_orignal_size(merged)[..., 0] > 0).astype(np.uint8)


if __name__ == "__main__":
    compete(predict, "pytorch-toolbelt")
