"""Masks in colours: which pixels are building, what is said of masks without the colour, and of lossy ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from aerialseg.errors import BadDataError, UsageError
from aerialseg.geo.masks import MaskRule, decide_rule, read_mask
from aerialseg.geo.opening import open_raster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]
    Write = Callable[..., Path]

BLUE, WHITE, RED = (0, 0, 255), (255, 255, 255), (255, 0, 0)
RULE = MaskRule(building_colour=BLUE)


def painted(*colours: tuple[int, ...], size: int = 64) -> np.ndarray:
    """Return (3, size, size) with a vertical stripe of each colour."""
    stripes = np.array(colours, dtype=np.uint8)[np.arange(size) * len(colours) // size]
    return np.ascontiguousarray(np.broadcast_to(stripes.T[:, np.newaxis, :], (3, size, size)))


def read(path: Path, rule: MaskRule = RULE) -> tuple[np.ndarray, np.ndarray]:
    with open_raster(path) as mask:
        return read_mask(mask, decide_rule([path], rule), Window(0, 0, mask.width, mask.height))


def test_one_colour_is_building_and_every_other_is_background(tmp_path: Path, scene_file: Write) -> None:
    path = scene_file(tmp_path / "m.tif", painted(WHITE, BLUE, RED, (0, 0, 254)), photometric="rgb")
    building, valid = read(path)
    assert (building == (np.arange(64) // 16 == 1)).all()
    assert valid.all()


@pytest.mark.parametrize("profile", [{"nodata": 0}, {"nodata": 255}, {"nodata": None}])
def test_declared_nodata_is_unlabelled_but_where_it_is_the_colour(
    tmp_path: Path, scene_file: Write, profile: dict[str, Any]
) -> None:
    path = scene_file(tmp_path / "m.tif", painted((0, 0, 0), BLUE, WHITE, RED), photometric="rgb", **profile)
    building, valid = read(path)
    assert (building == (np.arange(64) // 16 == 1)).all()
    nothing = {0: 0, 255: 2}.get(profile["nodata"])
    assert (valid == (np.arange(64) // 16 != (-1 if nothing is None else nothing))).all()
    everything = scene_file(tmp_path / "w.tif", painted((0, 0, 0), WHITE), photometric="rgb", **profile)
    assert read(everything, MaskRule(building_colour=WHITE))[0].sum() == 64 * 32


def test_alpha_hides_a_colour(tmp_path: Path, scene_file: Write) -> None:
    alpha = np.where(np.arange(64) < 24, 0, 255).astype(np.uint8) * np.ones((1, 64, 1), np.uint8)
    pixels = np.concatenate([painted(WHITE, BLUE, RED, RED), alpha])
    building, valid = read(scene_file(tmp_path / "m.tif", pixels, photometric="rgb", alpha="yes"))
    assert (valid == (np.arange(64) >= 24)).all()
    assert (building == ((np.arange(64) >= 24) & (np.arange(64) < 32))).all()


def test_a_palette_says_the_colours(tmp_path: Path, mask_file: Write) -> None:
    values = np.repeat(np.arange(4, dtype=np.uint8), 16)[np.newaxis] * np.ones((64, 1), np.uint8)
    path = mask_file(tmp_path / "m.tif", values, photometric="palette")
    with rasterio.open(path, "r+") as mask:
        mask.write_colormap(1, {0: (*WHITE, 255), 1: (*RED, 255), 2: (*BLUE, 255), 3: (*BLUE, 255)})
    building, valid = read(path)
    assert (building == (np.arange(64) >= 32)).all() and valid.all()


def test_masks_without_the_colour_are_told_of_with_the_colours_they_hold(tmp_path: Path, scene_file: Write) -> None:
    good = scene_file(tmp_path / "a.tif", painted(WHITE, BLUE))
    bare = [scene_file(tmp_path / f"{name}.tif", painted(WHITE, WHITE, RED)) for name in "bc"]
    (line,) = decide_rule([good, *bare], RULE).warnings
    said = f"{bare[0]}: no pixel has the colour 0,0,255; it holds 255,255,255, 255,0,0"
    assert line == f"{said} (and 1 more without it)"
    with pytest.raises(BadDataError) as caught:
        decide_rule(bare, RULE)
    assert str(caught.value) == f"{said}, and so it is with 1 other mask; --building-colour names another one"
    many = scene_file(tmp_path / "many.tif", painted(*((value, value, 0) for value in range(8))))
    with pytest.raises(BadDataError, match=r"it holds 0,0,0, .* and 3 more;"):
        decide_rule([many], RULE)
    with pytest.raises(BadDataError, match="more than 256 colours, as an image does"):
        decide_rule([scene_file(tmp_path / "image.tif")], RULE)
    assert not decide_rule([good], RULE).warnings


@pytest.mark.parametrize("profile", [{"driver": "JPEG", "quality": 75}, {"compress": "jpeg", "photometric": "ycbcr"}])
def test_lossy_masks_are_told_of_and_read_with_some_slack(
    tmp_path: Path, scene_file: Write, profile: dict[str, Any]
) -> None:
    path = scene_file(tmp_path / "m.jpg", painted(WHITE, BLUE), **profile)
    (line,) = decide_rule([path], RULE).warnings
    assert line.startswith(f"{path}: is compressed with loss, which blurs its colours: what is within 8 of 0,0,255")
    wrong = read(path)[0] != (np.arange(64) >= 32)
    assert not wrong[:, :24].any() and not wrong[:, 40:].any()


def test_a_mask_without_colours_and_contradictions_are_refused(tmp_path: Path, mask_file: Write, run: Run) -> None:
    with pytest.raises(BadDataError, match=r"m\.tif: has 1 band and no colours .*--building-values"):
        decide_rule([mask_file(tmp_path / "m.tif")], RULE)
    for other in ({"building_values": (1,)}, {"ignore_values": (1,)}, {"threshold": 3}):
        with pytest.raises(UsageError, match="give one kind"):
            MaskRule(building_colour=BLUE, **other)
    for text in ("0,0", "blue", "0,0,-1", "0,0,0,0"):
        code, _, err = run("evaluate", tmp_path, "--masks", tmp_path, "--building-colour", text)
        assert code == 2 and f"--building-colour {text}" in err


def test_an_image_given_as_a_mask_is_told_of_the_option(tmp_path: Path, scene_file: Write) -> None:
    path = scene_file(tmp_path / "m.tif", painted(WHITE, BLUE))
    with pytest.raises(
        BadDataError, match=r"--building-colour R,G,B names .*; it holds (255,255,255, 0,0,255|0,0,255, 2)"
    ):
        decide_rule([path])


@pytest.mark.parametrize("index_only", [(), ("--index-only",)])
@pytest.mark.parametrize("option", ["--building-colour", "--building-color"])
def test_commands_take_masks_in_colours(
    tmp_path: Path, scene_file: Write, mask_file: Write, run: Run, index_only: tuple[str, ...], option: str
) -> None:
    scene_file(tmp_path / "im/a.tif", size=(64, 64))
    scene_file(tmp_path / "gt/a.tif", painted(WHITE, BLUE))
    given = ("--masks", tmp_path / "gt", option, "0,0,255")
    code, out, err = run("tile", tmp_path / "im", *given, "--split", "0", *index_only, "-o", tmp_path / "t")
    assert code == 0 and "50.0%" in out, err
    if index_only:
        from aerialseg.geo.tiles.cut import plan_again, read_tiles
        from aerialseg.geo.tiles.tileset import load_tileset

        (job,) = plan_again(load_tileset(tmp_path / "t"))
        ((_, arrays),) = read_tiles(job, job.tiles)
        assert (arrays[2] == (np.arange(64) >= 32)).all()
    mask_file(tmp_path / "out/a.tif", (np.arange(64) >= 32).astype(np.uint8)[np.newaxis] * np.ones((64, 1), np.uint8))
    for command in (("evaluate", tmp_path / "out"), ("compare", tmp_path / "out", tmp_path / "out")):
        code, out, err = run(*command, *given)
        assert code == 0 and "1.0000" in out, err
