"""Scenes without a mask, and tiles without a label, are kept when asked for: a teacher can label them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio

from aerialseg.geo.tiles.tileset import load_tileset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def half_labelled(tmp_path: Path, scene_file: Any, mask_file: Any) -> tuple[Any, ...]:
    """Return the words of a tile command for three scenes, of which the last has no mask."""
    for number in (1, 2, 3):
        scene_file(tmp_path / "scenes" / f"town{number}.tif", seed=number)
    for number in (1, 2):
        mask_file(tmp_path / "masks" / f"town{number}.tif")
    return ("tile", tmp_path / "scenes", "--masks", tmp_path / "masks", "--size", 64, "--split", "val=town2")


@pytest.mark.parametrize("form", [(), ("--index-only",)])
def test_a_scene_without_a_mask_becomes_unlabelled_tiles_when_asked(
    run: Run, half_labelled: tuple[Any, ...], tmp_path: Path, form: tuple[str, ...]
) -> None:
    out = tmp_path / "set"
    code, _, err = run(*half_labelled, "-o", out, *form)
    assert code == 65 and "town3.tif: no mask found" in err
    code, _, err = run(*half_labelled, "-o", out, "--keep-unlabelled", *form)
    assert code == 0 and "1 scenes have no labels: only train --teacher learns from them" in err
    tiles = load_tileset(out)
    bare = [tile for tile in tiles.tiles if tile.valid == 0]
    assert [(tile.scene, tile.split, tile.building) for tile in bare] == [("town3", "train", 0.0)] * 4
    assert "nothing had changed" in run(*half_labelled, "-o", out, "--keep-unlabelled", *form)[2]
    if form:
        return
    for tile in bare:
        with rasterio.open(tiles.mask_path(tile)) as mask, rasterio.open(tiles.image_path(tile)) as image:
            assert (mask.read(1) == 255).all() and (image.dataset_mask() == 255).all()
            row, col, height, width = tile.window
            with rasterio.open(tmp_path / "scenes" / "town3.tif") as scene:
                window = rasterio.windows.Window(col, row, width, height)
                assert np.array_equal(image.read(), scene.read(window=window))


def test_validation_keeps_labelled_tiles_only_and_one_mask_is_needed(
    run: Run, half_labelled: tuple[Any, ...], tmp_path: Path
) -> None:
    words = (*half_labelled[:-1], "val=town3")
    assert run(*words, "-o", tmp_path / "set", "--keep-unlabelled")[0] == 0
    assert load_tileset(tmp_path / "set").of_split("val") == ()
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    code, _, err = run("tile", tmp_path / "scenes", "--keep-unlabelled", "-o", tmp_path / "none")
    assert code == 65 and "no mask found" in err


def test_training_ground_may_have_no_label_at_all(
    run: Run, half_labelled: tuple[Any, ...], tmp_path: Path, tiny_model: Any
) -> None:
    from small_tiles import settings

    (tmp_path / "masks" / "town1.tif").unlink()
    code, out, err = run(*half_labelled, "-o", tmp_path / "set", "--keep-unlabelled")
    assert code == 0 and "2 scenes have no labels" in err and "nan" not in out, err
    assert load_tileset(tmp_path / "set").building_fraction is None
    assert run("info", tmp_path / "set")[0] == 0
    words = ("train", tmp_path / "set", "-c", "demo", "--device", "cpu", *settings("schedule.epochs=1"))
    code, _, err = run(*words, "-o", tmp_path / "run")
    assert code == 65 and "no labelled training tile" in err and "--teacher" in err
    teacher = tiny_model(tmp_path / "teacher.safetensors", gsd_m=0.3)
    code, _, err = run(*words, "-o", tmp_path / "run", "--teacher", teacher)
    assert code == 0 and "from 8 tiles, 4 tiles to validate" in err, err
    assert run("info", tmp_path / "run")[0] == 0


def test_a_student_learns_from_such_a_set(
    run: Run, half_labelled: tuple[Any, ...], tmp_path: Path, tiny_model: Any
) -> None:
    from small_tiles import settings

    run(*half_labelled, "-o", tmp_path / "set", "--keep-unlabelled", "--index-only")
    teacher = tiny_model(tmp_path / "teacher.safetensors", gsd_m=0.3)
    words = ("train", tmp_path / "set", "-c", "demo", "--device", "cpu", *settings("schedule.epochs=1"))
    code, _, err = run(*words, "-o", tmp_path / "run", "--teacher", teacher)
    assert code == 0 and "from 8 tiles, 4 tiles to validate" in err
    code, _, err = run(*words, "-o", tmp_path / "alone")
    assert code == 0 and "from 4 tiles" in err
