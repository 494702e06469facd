"""`bench train` tells a training that waits for its data from one that does not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from small_tiles import settings, write_tileset

from aerialseg.training.data import TileReader
from aerialseg.workflows.bench_train import FeedReport

CONFIG = '[model]\narchitecture = "linknet"\nencoder = "tu-test_efficientnet"\nweights = "none"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tileset(tmp_path_factory.mktemp("bench") / "set")
    (folder.parent / "c.toml").write_text(CONFIG)
    return folder


def measured(run: Any, folder: Path, *more: str) -> dict:
    options = ("-c", folder.parent / "c.toml", *settings(*more), "--device", "cpu", "--seconds", "0.05", "--json")
    code, out, err = run("bench", "train", folder, *options)
    assert code == 0, err
    found: dict = json.loads(out)
    return found


def test_it_says_where_the_time_goes_and_writes_nothing_but_the_cache(run: Any, folder: Path) -> None:
    found = measured(run, folder)
    assert found["cached"] and (found["crop"], found["batch"], found["threads"]) == (64, 4, 2)
    assert found["raw"] > found["augmented"] > 0 and found["ratio"] == pytest.approx(found["fed"] / found["fixed"])
    assert sum(found["spent"].values()) == pytest.approx(1.0) and min(found["spent"].values()) > 0
    assert found["spent"]["backward"] + found["spent"]["forward"] > 0.3
    assert sorted(path.name for path in folder.iterdir()) == [
        "images", "index.gpkg", "masks", "tileset.json", "training-cache",
    ]  # fmt: skip


def test_a_step_of_several_batches_has_the_crops_of_all(run: Any, folder: Path) -> None:
    assert measured(run, folder, "optimizer.accumulate=3")["batch"] == 12


def test_a_slow_feed_shows(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TileReader.crop

    def slow(self: TileReader, crop: Any) -> Any:
        time.sleep(0.15)
        return original(self, crop)

    monkeypatch.setattr(TileReader, "crop", slow)
    found = measured(run, folder)
    assert found["raw"] < 14 and found["ratio"] < 0.7 and found["spent"]["data"] > 0.3
    found.pop("ratio")
    text = FeedReport(**found).summary()
    assert "with data" in text and "of that" in text and "time of a step  data" in text
