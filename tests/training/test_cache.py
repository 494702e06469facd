"""The cache holds what the files hold, byte for byte; what is stale, cut short or flipped is made anew, and said."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from small_tiles import draw, tiny_config, write_pair, write_splits, write_tileset
from told import Told

from aerialseg.config.sections import DataSection
from aerialseg.errors import BadDataError, ResourceError, Stopped
from aerialseg.geo.tiles.tileset import TileSet, load_tileset
from aerialseg.models.package import load_model
from aerialseg.training import cache as packing
from aerialseg.training import loop
from aerialseg.training.batches import open_readers
from aerialseg.training.cache import TAIL, TileCache, cache_path, open_tiles, read_square
from aerialseg.training.data import Crop, TileReader
from aerialseg.training.loop import train
from aerialseg.training.run_folder import TrainOptions

SECTION = DataSection(crop=64, batch=4)


def opened(folder: Path, section: DataSection = SECTION, progress: Told | None = None) -> tuple[Any, list[str]]:
    progress = progress or Told()
    with open_readers(2) as readers:
        return open_tiles(load_tileset(folder), section, readers, progress), progress.lines


def same(cache: TileCache, tiles: TileSet) -> bool:
    whole = Window(0, 0, tiles.size, tiles.size)
    pairs = [(cache.square(tile.name, 0, 0, tiles.size), read_square(tiles, tile, whole)) for tile in tiles.tiles]
    return all(
        np.array_equal(a, b) and a.dtype == b.dtype for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(17, 70), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_cached_and_uncached_readings_are_equal_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, size: int, bands: int, seed: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(seed)
    write_tileset(folder, train=3, val=1, size=max(size, 25), bands=bands, seed=seed)
    tiles = load_tileset(folder)
    for tile in tiles.tiles[1:]:  # 255 with and without data, and data missing where the mask has a label
        pixels, mask = draw(rng, tiles.size, bands)
        mask[rng.random(mask.shape) < rng.choice([0.0, 0.3])] = 255
        write_pair(folder, tile.name, pixels, mask)
        import rasterio

        with rasterio.open(tiles.mask_path(tile), "r+") as target:
            mask[rng.random(mask.shape) < 0.1] = 1
            target.write(mask, 1)
    cache, _ = opened(folder)
    section = DataSection(crop=32 + seed % 64, batch=1)
    plain, cached = TileReader(tiles, section, 32), TileReader(tiles, section, 32, cache)
    for tile in tiles.tiles:
        side = int(rng.integers(1, 2 * tiles.size - 1))
        row, col = rng.integers(0, max(0, tiles.size - side) + 1, 2).tolist()
        crop = Crop(tile, row, col, side, seed)
        for one, other in ((plain.crop(crop), cached.crop(crop)), (plain.whole(tile), cached.whole(tile))):
            for a, b in zip(one, other, strict=True):
                assert a.dtype == b.dtype and np.array_equal(a, b)


def test_cached_and_uncached_trainings_end_with_equal_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda run, records: None)
    folder = write_tileset(tmp_path / "set")
    models, options = [], TrainOptions(device="cpu")
    for place in ("off", "auto", str(tmp_path / "elsewhere")):
        lines = Told()
        train(
            folder, tiny_config(f"data.cache={place}"), tmp_path / f"run{len(models)}", options=options, progress=lines
        )
        assert (place == "off") != any("packing 8 tiles" in line for line in lines.lines)
        models.append(load_model(tmp_path / f"run{len(models)}")[0].state_dict())
    assert all(torch.equal(models[0][key], model[key]) for model in models[1:] for key in models[0])
    assert [path.name for path in (folder / "training-cache").glob("[!.]*")] == ["all.tiles"]
    assert len(list((tmp_path / "elsewhere" / "training-cache").glob("set-*.tiles"))) == 1


def test_a_cache_is_made_once_and_survives_another_split(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path)
    assert any("packing" in line for line in opened(folder)[1])
    assert opened(folder)[1] == []
    write_splits(folder, {f"city{k}_0_0": "val" if k < 3 else "train" for k in range(1, 8)})
    cache, said = opened(folder)
    assert said == [] and same(cache, load_tileset(folder))


def test_a_tile_that_was_edited_is_packed_anew(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path)
    opened(folder)
    pixels, mask = draw(np.random.default_rng(9), 96, 3)
    write_pair(folder, "city2_0_0", pixels, mask)
    cache, said = opened(folder)
    assert "holds other tiles" in said[0] and same(cache, load_tileset(folder))


@pytest.mark.parametrize("damage", ["cut", "emptied", "pixel", "label", "table", "tail", "longer", "text", "deep"])
def test_a_damaged_cache_is_made_anew_and_said(tmp_path: Path, damage: str) -> None:
    folder = write_tileset(tmp_path)
    opened(folder)
    path = cache_path(load_tileset(folder), "auto")
    content = bytearray(path.read_bytes())
    places = {"pixel": 96 * 96 * 4 * 3 + 5, "label": 96 * 96 * 4 - 7, "table": len(content) - 200, "tail": -3}
    if damage in places:
        content[places[damage]] ^= 64
    changed = {"cut": content[:-1], "emptied": b"", "longer": content + b"x" * 9, "text": b"<html>" * 50}
    deep = b"[" * 200_000
    changed["deep"] = content + deep + TAIL.pack(len(deep), hashlib.sha256(deep).digest())
    path.write_bytes(changed.get(damage, content))
    cache, said = opened(folder)
    assert len(said) == 1 and "is damaged: " in said[0] and "packing 8 tiles" in said[0]
    assert same(cache, load_tileset(folder)) and opened(folder)[1] == []


def test_a_place_that_cannot_be_written_is_said_and_the_tiles_are_read(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path / "set")
    (folder / "training-cache").write_text("a stranger's")
    cache, said = opened(folder)
    assert cache is None and len(said) == 1
    assert "no cache" in said[0] and "data.cache names another folder" in said[0] and "with -o" not in said[0]
    assert (folder / "training-cache").read_text() == "a stranger's"


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tileset(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
        cache, said = opened(folder)
    assert cache is None and "about 0.3 MB are needed, 0.1 MB are free" in said[0]

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aerialseg.training.cache._write_records", full)
    cache, said = opened(folder)
    assert cache is None and "no space on" in said[-1]
    assert [path.name for path in (folder / "training-cache").iterdir()] == [".aerialseg-lock"]


def test_a_stop_while_packing_leaves_nothing_and_a_killed_packing_is_swept(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path)
    with pytest.raises(Stopped):
        opened(folder, progress=Told(3))
    assert [path.name for path in (folder / "training-cache").iterdir()] == [".aerialseg-lock"]
    (folder / "training-cache" / ".aerialseg-0123.tiles").write_bytes(b"half")
    assert opened(folder)[0] is not None
    assert sorted(p.name for p in (folder / "training-cache").iterdir()) == [".aerialseg-lock", "all.tiles"]


def test_trainings_that_begin_together_pack_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found, writes = write_tileset(tmp_path), [], []
    original = packing.write_cache
    monkeypatch.setattr(packing, "write_cache", lambda *a, **k: (writes.append(1), original(*a, **k)))
    threads = [threading.Thread(target=lambda: found.append(opened(folder)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writes) == 1 and all(same(cache, load_tileset(folder)) for cache in found) and len(found) == 3


def test_a_mask_with_unknown_values_is_refused_with_the_values_found(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path)
    pixels, mask = draw(np.random.default_rng(9), 96, 3)
    mask[3, 4], mask[5, 6] = 7, 3
    write_pair(folder, "city2_0_0", pixels, mask)
    with pytest.raises(BadDataError, match=r"city2_0_0\.tif: holds 3, 7; .*--building-values"):
        opened(folder)
    tiles = load_tileset(folder)
    with pytest.raises(BadDataError, match="holds 3, 7"):
        TileReader(tiles, SECTION, 32).whole(tiles.tiles[1])


def test_a_disk_that_hangs_ends_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("aerialseg.training.cache._write_records", lambda *given: release.wait(20))
    with pytest.raises(ResourceError, match=r"not read within 0\.2 s"):
        opened(write_tileset(tmp_path), replace_timeout(0.2))
    release.set()


def replace_timeout(seconds: float) -> DataSection:
    return SECTION.model_copy(update={"timeout_s": seconds})


def test_a_tile_that_changes_while_it_is_packed_fails_and_nothing_vouches_for_it(tmp_path: Path) -> None:
    folder = write_tileset(tmp_path / "tiles")
    tiles = load_tileset(folder)
    victim = tiles.image_path(tiles.tiles[0])

    class Meanwhile(Told):
        def advance(self, amount: float = 1, note: str = "") -> None:
            super().advance(amount, note)
            os.utime(victim, ns=(1, int(self.calls)))

    with pytest.raises(BadDataError, match=rf"tile {tiles.tiles[0].name} changed while it was packed; run again"):
        opened(folder, progress=Meanwhile())
    assert not list(folder.rglob("*.tiles"))
    opened(folder)
