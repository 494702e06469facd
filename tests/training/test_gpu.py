"""Training on a CUDA device; run with: pytest -m gpu."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_tiles import tiny_config, write_tileset
from told import Told

from aerialseg.errors import ResourceError, Stopped
from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.package import load_model
from aerialseg.training.batches import BatchLayout, open_readers, stream_batches
from aerialseg.training.data import TileReader
from aerialseg.training.loop import train
from aerialseg.training.run_folder import TrainOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = TrainOptions(device="cuda")


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_every_precision_learns(tiles_folder: Path, tmp_path: Path, precision: str) -> None:
    config = tiny_config("optimizer.lr=0.01", "schedule.steps_per_epoch=15", f"run.precision={precision}")
    report = train(tiles_folder, config, tmp_path, options=GPU)
    assert report.best_iou > 0.8 and report.device.startswith("cuda")
    segmenter, card = load_model(tmp_path)
    assert next(segmenter.parameters()).device.type == "cpu" and card.training["precision"] == report.precision


def test_a_stopped_run_goes_on(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config("run.precision=fp16")
    with pytest.raises(Stopped):
        train(tiles_folder, config, tmp_path, options=GPU, progress=Told(4))
    assert train(tiles_folder, config, tmp_path, options=replace(GPU, resume=True)).steps == 6


def test_batches_are_pinned_and_arrive_unchanged(tiles_folder: Path) -> None:
    tiles = load_tileset(tiles_folder)
    reader = TileReader(tiles, tiny_config().data, 32)
    groups = [[tile] for tile in tiles.tiles] * 8
    expected = {tile.name: reader.whole(tile)[0] for tile in tiles.tiles}
    layout = BatchLayout(1, 3, 96, 96, pinned=True)
    with open_readers(3) as readers:
        for batch in stream_batches(groups, reader.whole, layout=layout, readers=readers, timeout_s=9):
            assert batch.pixels.is_pinned()
            moved = batch.to(torch.device("cuda"))
            assert (moved.pixels[0].permute(1, 2, 0).cpu().numpy() == expected[batch.names[0]]).all()


def test_too_large_a_batch_becomes_advice(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path / "tiles", train=1, val=0, size=64)
    huge = tiny_config("data.batch=64", "data.crop=1024", "data.threads=8", "schedule.steps_per_epoch=1")
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(ResourceError, match=r"--set data\.batch="):
            train(folder, huge, tmp_path / "run", options=GPU)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
