"""Scenes as pictures: what each pixel shows, cells against whole arrays, and files that are known as ours."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from rasterio.windows import Window
from small_run import HEIGHT, WIDTH, labels_of, write_entry
from told import Told

from aerialseg import drawing
from aerialseg.drawing import CAPTION, FOUND, GAP, GROUND, INVENTED, MISSED, OUTLINE, UNKNOWN
from aerialseg.errors import Stopped
from aerialseg.geo.ownership import owner_of
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aerialseg.prediction.exports import Entry
    from aerialseg.progress import Progress


def framed(entry: Entry, size: int = 1024, progress: Progress | None = None) -> np.ndarray:
    small = drawing.read_small(entry.scene, entry.mask, entry.probability, size, progress or Silent())
    return drawing.frame(small, "a")


def test_a_picture_shows_scene_outline_and_probability(tmp_path: Path) -> None:
    drawn = framed(write_entry(tmp_path, "a", 0))
    assert drawn.shape == (HEIGHT + CAPTION + GAP, 2 * (WIDTH + GAP) + GAP, 3)
    scene = drawn[CAPTION : CAPTION + HEIGHT, GAP : GAP + WIDTH]
    labels = labels_of(0)
    edge = (scene == OUTLINE).all(axis=-1)
    inner = np.zeros(labels.shape, bool)
    inner[31:59, 11:49] = True  # the building but for its outermost pixels
    ring = np.zeros(labels.shape, bool)
    ring[30:60, 10:50] = ring[29, 10:50] = ring[60, 10:50] = ring[30:60, 9] = ring[30:60, 50] = True
    assert np.array_equal(edge, ring & ~inner)
    assert (scene[inner] == 220).all()
    assert (scene[80:, 60:] == 40).all()
    assert (scene[labels == 255] == (40 + 2 * 255) // 3).all(), "ground without data is pale"
    likely = drawn[CAPTION : CAPTION + HEIGHT, 2 * GAP + WIDTH : 2 * GAP + 2 * WIDTH]
    assert (likely[inner] == OUTLINE).all()
    assert np.ptp(likely[80, 80].astype(int)) < 20, "next to grey where the probability is 20 of 254"


def test_a_large_scene_is_made_small(tmp_path: Path) -> None:
    drawn = framed(write_entry(tmp_path, "a", 0, probability=False), size=64)
    assert drawn.shape == (round(HEIGHT * 64 / WIDTH) + CAPTION + GAP, 64 + 2 * GAP, 3)


@pytest.mark.parametrize("fault", ["gone", "broken", "another size"])
def test_a_scene_that_cannot_be_drawn_is_grey_and_said(
    tmp_path: Path, scene_file: Callable[..., Path], fault: str
) -> None:
    entry, listening = write_entry(tmp_path, "a", 0), Told()
    match fault:
        case "gone":
            entry.scene.unlink()
        case "broken":
            entry.scene.write_bytes(b"II*\0")
        case _:
            scene_file(entry.scene, size=(50, 50))
    drawn = framed(entry, progress=listening)
    assert (drawn[CAPTION + 80, GAP + 80] == 150).all()
    assert "a.tif" in listening.lines[0]
    assert "drawn grey" in listening.lines[0]


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_stop_is_no_scene_that_cannot_be_drawn(tmp_path: Path, calls: int) -> None:
    with pytest.raises(Stopped):
        framed(write_entry(tmp_path, "a", 0), progress=Told(calls + 1))


def test_deep_and_grey_scenes_are_stretched(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    entry = write_entry(tmp_path, "a", 0)
    ramp = np.linspace(300, 900, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH).astype(np.uint16)
    scene_file(entry.scene, ramp)
    drawn = framed(entry)[CAPTION : CAPTION + HEIGHT, GAP : GAP + WIDTH]
    assert drawn[-1, -1].min() > 250
    assert drawn[11, 0].max() < 60


def blocks(layers: np.ndarray, cell: int) -> np.ndarray:
    """Sums over cells, those at the far edges of what is left."""
    rows, cols = (range(0, length, cell) for length in layers.shape[1:])
    return np.array(
        [[[layer[r : r + cell, c : c + cell].sum() for c in cols] for r in rows] for layer in layers.astype(float)]
    )


@pytest.mark.parametrize("cell", [1, 3, 7, 50])
@pytest.mark.parametrize("heights", [[40], [1, 2, 3, 34], [13, 13, 14]])
def test_errors_are_summed_over_cells_however_the_strips_are_cut(cell: int, heights: list[int]) -> None:
    fates = np.random.default_rng(0).random((4, 40, 31)) < 0.4
    firsts = np.cumsum([0, *heights])[:-1]
    strips = [(int(row), fates[:, row : row + height]) for row, height in zip(firsts, heights, strict=True)]
    found = drawing.sum_errors(strips, cell, (40, 31))
    assert np.array_equal([*found.kinds, found.known], blocks(fates, cell))
    assert np.array_equal(found.pixels, blocks(np.ones((1, 40, 31)), cell)[0])


@pytest.mark.parametrize("cell", [1, 4])
@pytest.mark.parametrize("at_once", [100, 2**20])
def test_brightness_is_the_mean_over_cells_and_bands(
    tmp_path: Path, scene_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, cell: int, at_once: int
) -> None:
    monkeypatch.setattr(drawing, "PIXELS_AT_ONCE", at_once)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 60, 50), dtype=np.uint8)
    scene = scene_file(tmp_path / "s.tif", pixels)
    found = drawing.read_brightness(scene, Window(7, 11, 30, 41), cell, None)
    inside = pixels[:, 11:52, 7:37].astype(float).mean(axis=0, keepdims=True)
    assert np.allclose(found, (blocks(inside, cell) / blocks(np.ones_like(inside), cell))[0], rtol=1e-5)


def test_a_scene_that_cannot_be_shown_has_no_brightness(tmp_path: Path) -> None:
    (tmp_path / "s.tif").write_bytes(b"II*\0")
    assert drawing.read_brightness(tmp_path / "s.tif", Window(0, 0, 9, 9), 1, None) is None


def test_the_colours_say_what_became_of_each_pixel() -> None:
    fates = np.zeros((4, 1, 5), bool)
    fates[[0, 1, 2], 0, [0, 1, 2]] = True
    fates[3, 0, :4] = True
    pixel = drawing.draw_errors(drawing.sum_errors([(0, fates)], 1, (1, 5)), None)
    assert pixel.tolist() == [[list(colour) for colour in (FOUND, MISSED, INVENTED, GROUND, UNKNOWN)]]


def test_a_wrong_pixel_weighs_more_than_a_right_one_in_a_small_picture() -> None:
    fates = np.zeros((4, 2, 4), bool)
    fates[3] = fates[0, 0, 0] = fates[1, 0, 2] = True
    right, wrong = drawing.draw_errors(drawing.sum_errors([(0, fates)], 2, (2, 4)), None)[0].astype(float)
    assert np.allclose(right, np.array(GROUND) * 0.75 + np.array(FOUND) * 0.25, atol=0.51)
    assert np.allclose(wrong, np.array(GROUND) * 0.5 + np.array(MISSED) * 0.5, atol=0.51)


@pytest.mark.parametrize(("rectangle", "marked"), [((2, 3, 6, 9), True), ((0, 0, 10, 12), False)])
def test_the_close_up_is_marked_unless_it_is_the_whole(rectangle: tuple[int, int, int, int], marked: bool) -> None:
    picture = np.zeros((10, 12, 3), np.uint8)
    drawing.mark_rectangle(picture, *rectangle)
    expected = np.zeros((10, 12), bool)
    expected[2:6, 3:9], expected[3:5, 4:8] = marked, False
    assert np.array_equal((picture == 255).all(axis=2), expected)


def test_flat_panels_have_one_colour_a_kind() -> None:
    known, hidden = [1, 1, 0, 0], [1, 0]
    truth, prediction, valid = (
        np.array([bits], bool) for bits in (known + hidden, [1, 0, 1, 0, *hidden[::-1]], [1, 1, 1, 1, 0, 0])
    )
    errors = drawing.flat_errors(np.full((1, 6, 3), 100, np.uint8), truth, prediction, valid)
    grey = [42] * 3
    assert errors.tolist() == [[list(drawing.FLAT_FOUND), list(MISSED), list(INVENTED), grey, grey, grey]]
    roof, ground = list(drawing.FLAT_BUILDING), list(drawing.FLAT_GROUND)
    assert drawing.flat_mask(truth).tolist() == [[roof, roof, ground, ground, roof, ground]]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("gap", [0, 5])
def test_pictures_stand_beside_each_other(count: int, gap: int) -> None:
    pictures = [np.full((4, 7, 3), index, np.uint8) for index in range(count)]
    found = drawing.beside(pictures, gap)
    assert found.shape == (4, 7 * count + gap * (count - 1), 3)
    assert all((found[:, index * (7 + gap) :][:, :7] == index).all() for index in range(count))
    assert (found == 255).all(axis=(0, 2)).sum() == gap * (count - 1)


def test_a_sheet_shows_the_end_of_names_that_are_too_long() -> None:
    picture = np.zeros((20, 40, 3), np.uint8)
    sheets = [drawing.sheet([(name, picture)] * 3) for name in ("end", "a very long name before the end")]
    assert sheets[0].shape == (2 * (20 + CAPTION) + GAP, 2 * (40 + GAP) + GAP, 3)
    assert (sheets[1][:CAPTION, GAP + 40 : 2 * GAP + 40] == 255).all(), "a name stays above its picture"
    one, two, other = (drawing.sheet([(f"{start}{'w' * 30}{end}", picture)]) for start, end in ("a1", "b1", "a2"))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_palettes_are_as_small_as_asked() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(drawing.encode_png(noise, 16))).convert("RGB"))
    assert shown.shape == noise.shape
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) <= 16
    assert drawing.encode_png(noise, 16) == drawing.encode_png(noise, 16)


def test_our_pictures_are_known_and_exact(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    drawing.save_png(tmp_path / "ours.png", noise)
    assert np.array_equal(Image.open(tmp_path / "ours.png"), noise)
    assert owner_of(tmp_path / "ours.png", "preview") == "ours"
    Image.fromarray(noise).save(tmp_path / "other.png")
    assert owner_of(tmp_path / "other.png", "preview") == "foreign"
    assert owner_of(tmp_path / "none.png", "preview") == "absent"
