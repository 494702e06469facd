"""A second run: nothing when nothing changed, only what changed otherwise, and never over what people did."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from told import Told

from aerialseg.errors import BadDataError, OutputError, Stopped, StorageError, UsageError
from aerialseg.geo.scenes import Scene
from aerialseg.geo.tiles import cut
from aerialseg.geo.tiles.build import EDITS, tile_scenes
from aerialseg.geo.tiles.plan import TilingOptions
from aerialseg.geo.tiles.tileset import INDEX, MANIFEST, load_tileset

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[..., Path]

OPTIONS = TilingOptions(size=64, split="val=austin2", threads=2)


@pytest.fixture
def scenes(tmp_path: Path, scene_file: Write, mask_file: Write) -> list[Scene]:
    return [
        Scene(
            f"austin{i}",
            scene_file(tmp_path / "in" / f"austin{i}.tif", size=(100, 150), seed=i),
            mask_file(tmp_path / "gt" / f"austin{i}.tif", size=(100, 150)),
        )
        for i in (1, 2, 3)
    ]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file's time of change and bytes, but for the report, which holds times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "report.json")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: content for name, (_, content) in state(folder).items()}


def edit(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / INDEX)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{name}"')
    connection.execute(statement)
    connection.commit()
    connection.close()


def splits(folder: Path) -> dict[str, str]:
    return {tile.name: tile.split for tile in load_tileset(folder).tiles}


def test_a_rerun_with_nothing_changed_writes_nothing(tmp_path: Path, scenes: list[Scene]) -> None:
    first = tile_scenes(scenes, tmp_path / "set", OPTIONS)
    before, report = state(tmp_path / "set"), (tmp_path / "set" / "report.json").read_bytes()
    began = time.monotonic()
    again = tile_scenes(scenes, tmp_path / "set", OPTIONS)
    assert time.monotonic() - began < 1
    assert state(tmp_path / "set") == before and (tmp_path / "set" / "report.json").read_bytes() == report
    assert (first.cut, again.cut, again.tiles) == (3, 0, first.tiles)


def test_threads_and_folder_leave_no_trace_in_the_bytes(tmp_path: Path, scenes: list[Scene]) -> None:
    tile_scenes(scenes, tmp_path / "a", replace(OPTIONS, threads=1))
    tile_scenes(scenes, tmp_path / "b", replace(OPTIONS, threads=4))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("pieces", [1, 2, 4, 6])
def test_a_stopped_run_goes_on_and_ends_like_an_uninterrupted_one(
    tmp_path: Path, scenes: list[Scene], pieces: int
) -> None:
    tile_scenes(scenes, tmp_path / "whole", OPTIONS)
    with pytest.raises(Stopped):
        tile_scenes(scenes, tmp_path / "set", OPTIONS, Told(pieces, "cutting"))
    with pytest.raises(BadDataError, match="no finished set"):
        load_tileset(tmp_path / "set")
    assert not list((tmp_path / "set").rglob(".aerialseg-[!l]*"))
    report = tile_scenes(scenes, tmp_path / "set", OPTIONS)
    assert report.cut == 3 - (pieces - 1) // 2, "two rows of tiles a scene; finished scenes are kept"
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"size": 48}, {"overlap": 0.5}, {"gsd_m": 0.6}, {"keep_empty": 0.1}])
def test_changed_options_make_all_tiles_anew_and_drop_the_old(
    tmp_path: Path, scenes: list[Scene], change: dict[str, Any]
) -> None:
    tile_scenes(scenes, tmp_path / "set", OPTIONS)
    report = tile_scenes(scenes, tmp_path / "set", replace(OPTIONS, **change))
    assert report.cut == 3
    tile_scenes(scenes, tmp_path / "fresh", replace(OPTIONS, **change))
    assert contents(tmp_path / "set") == contents(tmp_path / "fresh")


def test_only_the_scene_that_changed_is_cut_again(
    tmp_path: Path, scenes: list[Scene], scene_file: Write, mask_file: Write
) -> None:
    out = tmp_path / "set"
    tile_scenes(scenes, out, OPTIONS)
    before = state(out)
    scene_file(scenes[1].image, size=(100, 150), seed=77)
    assert tile_scenes(scenes, out, OPTIONS).cut == 1
    after = state(out)
    assert {name for name in after if name.endswith(".tif") and after[name] != before[name]} == {
        name for name in before if name.endswith(".tif") and "austin2_" in name
    }
    labels = np.zeros((100, 150), np.uint8)
    mask_file(scenes[2].mask, labels)
    assert tile_scenes(scenes, out, OPTIONS).cut == 1
    side = scenes[0].image.with_name("austin1.tif.aux.xml")
    side.write_text("<PAMDataset/>")
    assert tile_scenes(scenes, out, OPTIONS).cut == 0, "it says nothing"
    side.write_text('<PAMDataset><Metadata><MDI key="AREA_OR_POINT">Area</MDI></Metadata></PAMDataset>')
    assert tile_scenes(scenes, out, OPTIONS).cut == 1, "side files count"


def test_scenes_may_come_and_go(tmp_path: Path, scenes: list[Scene]) -> None:
    out = tmp_path / "set"
    tile_scenes(scenes[:2], out, OPTIONS)
    assert tile_scenes(scenes, out, OPTIONS).cut == 1
    assert tile_scenes(scenes[1:], out, OPTIONS).cut == 0
    tile_scenes(scenes[1:], tmp_path / "fresh", OPTIONS)
    assert contents(out) == contents(tmp_path / "fresh")


def test_missing_and_cut_off_tiles_are_made_again(tmp_path: Path, scenes: list[Scene]) -> None:
    out = tmp_path / "set"
    tile_scenes(scenes, out, OPTIONS)
    before = contents(out)
    image, mask = out / "images" / "austin1_00000_00064.tif", out / "masks" / "austin3_00036_00000.tif"
    image.unlink()
    mask.write_bytes(mask.read_bytes()[:200])
    assert tile_scenes(scenes, out, OPTIONS).cut == 2
    (out / INDEX).unlink()
    (out / MANIFEST).write_text("{}")
    assert tile_scenes(scenes, out, OPTIONS).cut == 0
    assert contents(out) == before


def lose(key: str) -> Callable[[str], str]:
    """Return what takes a key out of a record."""
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != key})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "[" * 200_000,
        lambda text: text[:100],
        lambda text: text.replace('"pixels": ', '"pixels": "many", "was": '),
        lambda text: text.replace('"sizes": [[', '"sizes": [[0, 0], ['),
        lambda text: text.replace('"gap": ', '"hole": '),
        lambda text: text.replace('"name": "austin1_', '"name": "../austin1_'),
        lose("classes"),
    ],
    ids=["deep", "cut", "type", "lengths", "reason", "place", "key"],
)
def test_a_damaged_record_is_as_if_absent(damage: Callable[[str], str], tmp_path: Path, scenes: list[Scene]) -> None:
    tile_scenes(scenes, tmp_path / "set", OPTIONS)
    before = contents(tmp_path / "set")
    record = tmp_path / "set" / cut.FOLDER / "austin1.json"
    record.write_text(damage(record.read_text()))
    assert contents(tmp_path / "set") != before
    assert tile_scenes(scenes, tmp_path / "set", OPTIONS).cut == 1
    assert contents(tmp_path / "set") == before


@pytest.mark.parametrize("text", ["[" * 200_000, "{", '{"austin1_00000_00000": 5}', "[]"])
def test_edits_put_aside_that_cannot_be_read_are_as_if_absent(text: str, tmp_path: Path, scenes: list[Scene]) -> None:
    tile_scenes(scenes, tmp_path / "set", OPTIONS)
    before = contents(tmp_path / "set")
    (tmp_path / "set" / MANIFEST).unlink()
    (tmp_path / "set" / cut.FOLDER / EDITS).write_text(text)
    tile_scenes(scenes, tmp_path / "set", OPTIONS)
    assert contents(tmp_path / "set") == before


def test_edits_of_the_split_survive_reruns_and_new_scenes(tmp_path: Path, scenes: list[Scene]) -> None:
    out = tmp_path / "set"
    tile_scenes(scenes[:2], out, OPTIONS)
    edit(out, "UPDATE tiles SET split = 'val' WHERE name = 'austin1_00000_00000'")
    edit(out, "UPDATE tiles SET split = '' WHERE name = 'austin1_00000_00064'")
    edit(out, "DELETE FROM tiles WHERE name = 'austin2_00000_00000'")
    edited, before = splits(out), state(out)
    report = tile_scenes(scenes[:2], out, OPTIONS)
    assert state(out) == before and report.tiles == {"train": 4, "val": 6}
    with pytest.raises(Stopped):
        tile_scenes(scenes, out, OPTIONS, Told(1, "cutting"))
    with pytest.raises(BadDataError, match="no finished set"):
        load_tileset(out)
    tile_scenes(scenes, out, OPTIONS)
    after = splits(out)
    assert edited.items() <= after.items() and len(after) == len(edited) + 6
    assert after["austin1_00000_00000"] == "val" and "austin2_00000_00000" not in after
    tile_scenes(scenes, out, replace(OPTIONS, overwrite=True))
    assert splits(out)["austin1_00000_00000"] == "train" and len(splits(out)) == 18


def test_files_of_others_are_left_alone(tmp_path: Path, scenes: list[Scene]) -> None:
    out = tmp_path / "set"
    tile_scenes(scenes, out, OPTIONS)
    theirs = [out / "images" / "notes.txt", out / "images" / "mine.tif", out / "README.md"]
    for path in theirs:
        shutil.copy(scenes[0].image, path)
    copied = shutil.copy(out / "images" / "austin1_00000_00000.tif", out / "images" / "a copy.tif")
    tile_scenes(scenes, out, replace(OPTIONS, size=48))
    assert all(path.read_bytes() == scenes[0].image.read_bytes() for path in theirs) and Path(copied).exists()
    assert not (out / "images" / "austin1_00000_00064.tif").exists()


@pytest.mark.parametrize("name", ["images/x.tif", "masks/x.png", "index.gpkg", "tileset.json", "report.json"])
def test_a_folder_with_files_of_others_is_not_taken_over(tmp_path: Path, scenes: list[Scene], name: str) -> None:
    out = tmp_path / "set"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("precious")
    with pytest.raises(OutputError, match="give another folder with -o"):
        tile_scenes(scenes, out, OPTIONS)
    assert [path.read_text() for path in out.rglob("*") if path.is_file()] == ["precious"]
    tile_scenes(scenes, out, replace(OPTIONS, overwrite=True))
    assert len(load_tileset(out).tiles) == 18


def test_an_input_is_never_overwritten(tmp_path: Path, scenes: list[Scene]) -> None:
    inside = tmp_path / "set" / "images" / "austin1_00000_00000.tif"
    inside.parent.mkdir(parents=True)
    shutil.copy(scenes[0].image, inside)
    given = [replace(scenes[0], image=inside), *scenes[1:]]
    for options in (OPTIONS, replace(OPTIONS, overwrite=True)):
        moved = [replace(given[0], name="austin1"), *given[1:]]
        with pytest.raises(UsageError, match="would overwrite the input"):
            tile_scenes(moved, tmp_path / "set", options)
    assert inside.read_bytes() == scenes[0].image.read_bytes()


def test_a_failing_scene_is_named_and_the_others_go_on(tmp_path: Path, scenes: list[Scene]) -> None:
    whole = scenes[2].image.read_bytes()
    scenes[2].image.write_bytes(whole[: len(whole) // 2])
    report = tile_scenes(scenes, tmp_path / "set", OPTIONS)
    assert list(report.failures) == ["austin3"] and "austin3.tif: " in str(report.failures["austin3"])
    assert {tile.scene for tile in load_tileset(tmp_path / "set").tiles} == {"austin1", "austin2"}
    assert not list((tmp_path / "set" / "images").glob("austin3*")), "what was cut of it is removed"
    with pytest.raises(BadDataError, match=r"austin3\.tif"):
        tile_scenes(scenes, tmp_path / "set", replace(OPTIONS, fail_fast=True))
    scenes[2].image.write_bytes(whole)
    assert tile_scenes(scenes, tmp_path / "set", OPTIONS).cut == 1
    tile_scenes(scenes, tmp_path / "fresh", OPTIONS)
    assert contents(tmp_path / "set") == contents(tmp_path / "fresh")


def test_when_nothing_can_be_written_the_run_stops(
    tmp_path: Path, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: object, **options: object) -> None:
        raise StorageError(f"{path}: no space")

    monkeypatch.setattr(cut, "write_geotiff", full)
    with pytest.raises(StorageError, match="no space"):
        tile_scenes(scenes, tmp_path / "set", OPTIONS)
    assert not (tmp_path / "set" / MANIFEST).exists()
