"""Finding, naming, pairing and splitting scenes: what each form of input means."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from affine import Affine
from rasterio.crs import CRS

from aerialseg.errors import BadDataError, NoInputError, UsageError
from aerialseg.geo.geobox import GeoBox, check_same_grid
from aerialseg.geo.opening import open_raster
from aerialseg.geo.scenes import (
    Scene,
    case_note,
    find_scenes,
    natural_key,
    pair_masks,
    require_masks,
    split_scenes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CITIES = ("austin", "chicago", "kitsap", "tyrol-w", "vienna")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def inria(folder: Path, *, gt: bool = True, numbers: Iterable[int] = range(1, 13)) -> Path:
    names = [f"{city}{number}.tif" for city in CITIES for number in numbers]
    touch(folder / "train/images", *names)
    touch(folder / "test/images", "sfo1.tif", "bellingham2.tif")
    if gt:
        touch(folder / "train/gt", *names)
    return folder


def names(scenes: Iterable[Scene]) -> list[str]:
    return [scene.name for scene in scenes]


@pytest.mark.parametrize(
    ("name", "city", "number"),
    [
        ("austin3", "austin", 3),
        ("tyrol-w12", "tyrol-w", 12),
        ("train/images/vienna36", "vienna", 36),
        ("data1/austin7", "austin", 7),
        ("new_york04", "new_york", 4),
        ("aerial_sample_image", None, None),
        ("austin3_00294_332_293", None, None),
        ("20230102", None, None),
        ("OAM-386697-220243-19", None, None),
    ],
)
def test_city_and_number_come_from_the_stem_only(name: str, city: str | None, number: int | None) -> None:
    scene = Scene(name, Path(name))
    assert (scene.city, scene.number) == (city, number)


def test_numbers_are_ordered_as_numbers() -> None:
    ordered = ["a/x2", "austin1", "austin2", "austin10", "austin11", "tyrol-w1", "tyrol-w12"]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled, key=natural_key) == ordered


def test_a_folder_is_searched_for_rasters_and_nothing_else(tmp_path: Path) -> None:
    touch(
        tmp_path, "austin10.tif", "austin2.TIF", "b/c/x.png", "b/y.jp2", "notes.txt", "austin2.tif.aux.xml",
        "austin2.tfw", "austin2.tif.ovr", "austin2.tif.msk", "mosaic.vrt", ".hidden.tif", "._austin2.tif",
        ".aerialseg-abc.tif", ".cache/z.tif",
    )  # fmt: skip
    assert names(find_scenes([tmp_path])) == ["austin2", "austin10", "b/c/x", "b/y"]


def test_files_folders_and_globs_mix_and_each_file_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "one.tif", "in/a1.tif", "in/a2.tif", "deep/x/s.tif", "deep/y/t.tif")
    given = [tmp_path / "one.tif", tmp_path / "in", str(tmp_path / "in/a*.tif"), str(tmp_path / "deep/*/*.tif")]
    assert names(find_scenes(given)) == ["a1", "a2", "one", "x/s", "y/t"]
    assert names(find_scenes([str(tmp_path / "**/*.tif")])) == ["deep/x/s", "deep/y/t", "in/a1", "in/a2", "one"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].tif", "a1.tif")
    assert names(find_scenes([tmp_path / "a[1].tif"])) == ["a[1]"]


@pytest.mark.parametrize("above", ["", "AerialImageDataset", "data", "raw", "data/AerialImageDataset", "raw/data"])
@pytest.mark.parametrize("below", ["", "train"])
def test_inria_roots_are_understood_in_every_form(tmp_path: Path, above: str, below: str) -> None:
    root = inria(tmp_path / "data1" / above)
    scenes = find_scenes([root / "train" if below else tmp_path / "data1"])
    assert len(scenes) == 60
    assert names(scenes)[:3] == ["austin1", "austin2", "austin3"]
    assert names(scenes)[-1] == "vienna12"
    assert all(scene.mask == root / "train/gt" / scene.image.name for scene in scenes)


def test_an_inria_root_without_masks_still_gives_its_scenes(tmp_path: Path) -> None:
    scenes = find_scenes([inria(tmp_path, gt=False)])
    assert {scene.mask for scene in scenes} == {None}
    with pytest.raises(BadDataError, match=r"austin1\.tif.*and 55 more: no mask found"):
        require_masks(scenes)


def test_the_test_scenes_are_a_plain_folder(tmp_path: Path) -> None:
    assert names(find_scenes([inria(tmp_path) / "test/images"])) == ["bellingham2", "sfo1"]


def test_what_the_caller_knows_for_its_own_is_no_scene_and_takes_no_name(tmp_path: Path) -> None:
    """A second `predict png -o png` finds its masks beside the scenes, under the scenes' names."""
    touch(tmp_path, "s1.png", "s1.tif", "s2.png", "out/s3.tif")
    with pytest.raises(UsageError, match="both would be called s1"):
        find_scenes([tmp_path])
    asked: list[Path] = []

    def ours(path: Path) -> bool:
        asked.append(path)
        return path.suffix == ".tif"

    assert names(find_scenes([tmp_path, tmp_path / "s1.tif"], ours)) == ["s1", "s2"]
    assert sorted(asked) == sorted(set(asked)), "opening a file to look takes time"
    with pytest.raises(NoInputError, match=r"out: holds nothing but what aerialseg wrote"):
        find_scenes([tmp_path / "out"], ours)


def test_what_this_program_writes_is_not_mistaken_for_scenes_and_masks_mixed(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.tif", "masks/a.tif")
    assert find_scenes([tmp_path]) == (Scene("a", tmp_path / "images/a.tif", tmp_path / "masks/a.tif"),)


def test_masks_beside_images_are_no_scenes_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "one/images/a.tif", "one/gt/a.tif", "two/images/b.tif", "two/labels/b.tif", "labels/c.tif")
    assert names(find_scenes([tmp_path])) == ["labels/c", "one/images/a", "two/images/b"]


@pytest.mark.parametrize("given", ["missing.tif", "nothing/*.tif", "empty"])
def test_nothing_found_names_what_was_given(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match=given.split("/")[0]):
        find_scenes([str(tmp_path / given)])


@pytest.mark.parametrize(
    "pair",
    [("a/x.tif", "b/x.tif"), ("X.TIF", "x.tif"), ("x.tif", "x.png"), ("caf\u00e9.tif", "cafe\u0301.tif")],
)
def test_scenes_that_would_share_an_output_are_named(tmp_path: Path, pair: tuple[str, str]) -> None:
    touch(tmp_path, *pair)
    with pytest.raises(UsageError) as caught:
        find_scenes([tmp_path / name for name in pair])
    assert all(str(tmp_path / name) in str(caught.value) for name in pair)


def test_relative_paths_keep_scenes_of_a_folder_apart(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.tif", "b/x.tif")
    assert names(find_scenes([tmp_path])) == ["a/x", "b/x"]


def test_linked_scenes_and_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "real/a1.tif", "real/a2.tif")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/there").symlink_to(tmp_path / "real")
    assert names(find_scenes([tmp_path / "in"])) == ["there/a1", "there/a2"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tif")).write_bytes(b"")
    with pytest.raises(BadDataError, match=r"caf.*not UTF-8") as caught:
        find_scenes([tmp_path])
    str(caught.value).encode()


@pytest.mark.parametrize(
    "text", ["GTIFF_DIR:1:x.tif", "/vsicurl/http://h/x.tif", "http://h/x.tif", "vrt://x.tif", "s3://b/x"]
)
def test_remote_inputs_are_a_usage_error(text: str) -> None:
    for given in (text, Path(text)):
        with pytest.raises(UsageError, match="download it first"):
            find_scenes([given])


# --- masks ---


def test_masks_pair_by_relative_stem_whatever_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "s/a/x1.tif", "s/b/x1.tif", "s/x2.tif", "m/a/x1.png", "m/b/x1.tif", "m/x2.tif", "m/unused.tif")
    paired = pair_masks(find_scenes([tmp_path / "s"]), [tmp_path / "m"])
    assert {scene.name: scene.mask for scene in paired} == {
        "a/x1": tmp_path / "m/a/x1.png", "b/x1": tmp_path / "m/b/x1.tif", "x2": tmp_path / "m/x2.tif",
    }  # fmt: skip


def test_masks_in_a_flat_folder_pair_by_stem_when_it_is_unique(tmp_path: Path) -> None:
    touch(tmp_path, "s/a/x1.tif", "s/b/x2.tif", "m/x1.tif", "m/x2.tif")
    paired = pair_masks(find_scenes([tmp_path / "s"]), [tmp_path / "m"])
    assert [scene.mask for scene in paired] == [tmp_path / "m/x1.tif", tmp_path / "m/x2.tif"]
    touch(tmp_path, "s/c/x1.tif")
    with pytest.raises(BadDataError, match="no mask found"):
        pair_masks(find_scenes([tmp_path / "s"]), [tmp_path / "m"])


def test_a_pattern_finds_masks_beside_the_scenes(tmp_path: Path) -> None:
    touch(tmp_path, "x1.tif", "x1_label.tif", "b/x2.tif", "b/x2_label.tif", "b/x2_label.png")
    with pytest.raises(UsageError, match="x2_label"):
        find_scenes([tmp_path])
    (tmp_path / "b/x2_label.png").unlink()
    paired = pair_masks(find_scenes([tmp_path]), [tmp_path], "{stem}_label.tif")
    assert [(scene.name, scene.mask) for scene in paired] == [
        ("b/x2", tmp_path / "b/x2_label.tif"), ("x1", tmp_path / "x1_label.tif"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="stem"):
        pair_masks(find_scenes([tmp_path]), [tmp_path], "label.tif")


@pytest.mark.parametrize(
    ("pattern", "mask"),
    [
        ("_sat:_mask", "1_sat_mask.png"),
        ("_sat:_mask.png", "1_sat_mask.png"),
        ("_sat.jpg:_mask.png", "1_sat_mask.png"),
        ("_sat:", "1_sat.png"),
        ("1_sat_sat:mask", "mask.png"),
    ],
)
def test_a_pattern_replaces_the_last_place_of_a_part(tmp_path: Path, pattern: str, mask: str) -> None:
    touch(tmp_path, "im/1_sat_sat.jpg", f"gt/{mask}", "gt/other.png")
    (paired,) = pair_masks(find_scenes([tmp_path / "im"]), [tmp_path / "gt"], pattern)
    assert paired.mask == tmp_path / "gt" / mask


def test_a_pattern_pairs_pictures_and_masks_of_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a/7_sat.jpg", "a/7_mask.png", "b/8_sat.jpg", "b/8_mask.png")
    paired = pair_masks(find_scenes([tmp_path]), [tmp_path], "_sat:_mask")
    assert {scene.name: scene.mask for scene in paired} == {
        "a/7_sat": tmp_path / "a/7_mask.png", "b/8_sat": tmp_path / "b/8_mask.png",
    }  # fmt: skip
    for pattern in (":x", "_sat:_mask.tif", "sut:_mask"):
        with pytest.raises((UsageError, BadDataError), match=r"OLD:NEW|no mask found"):
            pair_masks(find_scenes([tmp_path]), [tmp_path], pattern)


@pytest.mark.parametrize(("pattern", "ending"), [(None, ""), ("{stem}_l", "_L"), ("{stem}_l.tif", "_L")])
def test_names_that_differ_in_case_pair_with_a_note(tmp_path: Path, pattern: str | None, ending: str) -> None:
    same = ending.lower()
    touch(tmp_path, "im/x/a1.tif", "im/a2.tif", "im/A3.tif", f"gt/X/A1{ending}.TIF", f"gt/A2{ending}.tif")
    touch(tmp_path, f"gt/A3{same}.tif", f"gt/a3{same}.tif")
    scenes = find_scenes([tmp_path / "im"])
    paired = pair_masks(scenes, [tmp_path / "gt"], pattern)
    found = [scene.mask and scene.mask.name for scene in paired]
    assert found == [f"A2{ending}.tif", f"A3{same}.tif", f"A1{ending}.TIF"]
    assert (case_note(paired, pattern) or "").startswith("2 masks by names that differ in case only, such as ")
    touch(tmp_path, "im/Ab.tif", f"gt/ab{ending}.tif", f"gt/aB{ending}.tif")
    with pytest.raises(BadDataError, match=r"Ab\.tif: no mask found"):  # nobody can say which of the two is meant
        pair_masks(find_scenes([tmp_path / "im"]), [tmp_path / "gt"], pattern)


def test_missing_masks_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "s/a1.tif", "s/a2.tif", "m/a1.tif")
    with pytest.raises(BadDataError, match=r"s/a2\.tif: no mask found.*--mask-pattern"):
        pair_masks(find_scenes([tmp_path / "s"]), [tmp_path / "m"])


def test_scenes_cannot_be_their_own_masks(tmp_path: Path) -> None:
    folder = touch(tmp_path, "a.tif", "b.tif")
    with pytest.raises(UsageError, match=r"a\.tif: is given as a scene and as a mask"):
        pair_masks(find_scenes([folder]), [folder])


def test_an_inria_root_as_masks_means_its_gt(tmp_path: Path) -> None:
    root = inria(tmp_path, numbers=(1, 2))
    paired = pair_masks(find_scenes([root / "train/images"]), [root])
    assert all(scene.mask == root / "train/gt" / scene.image.name for scene in paired)


def test_a_single_mask_pairs_with_a_single_scene_or_by_ground(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    west = scene_file(tmp_path / "west.tif", transform=(1, 0, 6e5, 0, -1, 3e6))
    east = scene_file(tmp_path / "east.tif", transform=(1, 0, 6e5 + 128, 0, -1, 3e6))
    far = scene_file(tmp_path / "far.tif", transform=(1, 0, 7e5, 0, -1, 3e6))
    mask = scene_file(tmp_path / "labels.tif", bands=1, size=(128, 256), transform=(1, 0, 6e5, 0, -1, 3e6))
    assert pair_masks(find_scenes([west]), [mask]) == (Scene("west", west, mask),)
    assert names(pair_masks(find_scenes([east, west]), [mask])) == ["east", "west"]
    with pytest.raises(BadDataError, match=r"far\.tif: no mask"):
        pair_masks(find_scenes([east, west, far]), [mask])


# --- grids ---


def box(path: Path) -> GeoBox:
    with open_raster(path) as dataset:
        return GeoBox.of(dataset)


AUSTIN = (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)


@pytest.mark.parametrize(
    ("mask", "outcome"),
    [
        ({}, None),
        ({"transform": (0.3, 0, 616000.00001, 0, -0.3, 3347000)}, None),
        ({"transform": (0.3, 0, 616000.15, 0, -0.3, 3347000)}, "0.50 px off"),
        ({"transform": (0.3, 0, 616000.3, 0, -0.3, 3346999.7)}, r"offset \+1.00 rows, \+1.00 columns"),
        ({"transform": (0.3005, 0, 616000, 0, -0.3005, 3347000)}, "0.30 px off"),
        ({"transform": (0.6, 0, 616000, 0, -0.6, 3347000)}, "pixel 0.6"),
        ({"size": (127, 128)}, "127x128.*128x128|128x128.*127x128"),
        ({"crs": "EPSG:26915"}, "another CRS.*EPSG:26915"),
        ({"crs": "EPSG:26915", "transform": AUSTIN, "size": (64, 64)}, "another CRS"),
    ],
)
def test_grids_must_agree_to_half_a_pixel(
    tmp_path: Path, scene_file: Callable[..., Path], mask: dict, outcome: str | None
) -> None:
    scene = box(scene_file(tmp_path / "scene.tif"))
    other = box(scene_file(tmp_path / "mask.tif", **mask))
    labels = (tmp_path / "scene.tif", tmp_path / "mask.tif")
    if outcome is None:
        assert check_same_grid(scene, other, labels) is None
    elif "px off" in outcome:
        assert outcome in (check_same_grid(scene, other, labels) or "")
    else:
        with pytest.raises(BadDataError, match=outcome):
            check_same_grid(scene, other, labels)


DEGENERATE = [
    Affine(0, 0, 6e5, 0, 0, 3e6),
    Affine(1, 1, 6e5, 1, 1, 3e6),
    Affine(math.nan, 0, 6e5, 0, -1, 3e6),
    Affine(1, 0, math.inf, 0, -1, 3e6),
]


@pytest.mark.parametrize("transform", DEGENERATE)
def test_a_grid_without_area_or_place_agrees_with_nothing(transform: Affine) -> None:
    good, bad = (GeoBox(64, 64, t, CRS.from_epsg(26914)) for t in (Affine(1, 0, 6e5, 0, -1, 3e6), transform))
    for pair in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(BadDataError, match="no place or no area"):
            check_same_grid(*pair, ("a.tif", "b.tif"))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pictures_without_georeferencing_need_only_the_same_size(
    tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    placed = box(scene_file(tmp_path / "a.tif"))
    bare = box(scene_file(tmp_path / "b.png", driver="PNG", crs=None, transform=None))
    small = box(scene_file(tmp_path / "c.png", driver="PNG", crs=None, transform=None, size=(64, 128)))
    assert check_same_grid(bare, bare, ("b", "b")) is None
    assert "b.png: has no georeferencing" in (check_same_grid(placed, bare, ("a.tif", "b.png")) or "")
    with pytest.raises(BadDataError, match=r"64x128"):
        check_same_grid(placed, small, ("a.tif", "c.png"))


# --- split ---


def scenes_of(*given: str) -> list[Scene]:
    return [Scene(name, Path(name)) for name in given]


def validating(scenes: Iterable[Scene], spec: str) -> list[str]:
    sides = split_scenes(list(scenes), spec)
    assert set(sides) == {scene.name for scene in scenes}
    return [name for name, side in sides.items() if side == "val"]


def test_inria_validates_on_one_to_five_of_every_city(tmp_path: Path) -> None:
    scenes = find_scenes([inria(tmp_path / "data1", numbers=range(1, 37))])
    for spec in ("inria", "auto"):
        chosen = validating(scenes, spec)
        assert len(chosen) == 25
        assert len(scenes) - len(chosen) == 155
        assert chosen == [f"{city}{number}" for city in CITIES for number in range(1, 6)]


def test_names_ranges_cities_and_patterns_choose_validation_scenes() -> None:
    scenes = scenes_of("austin1", "austin5", "austin6", "tyrol-w1", "tyrol-w2", "austin4_00133_264", "x/vienna2")
    assert validating(scenes, "val=austin1-5") == ["austin1", "austin5"]
    assert validating(scenes, "val=austin1-5,tyrol-w1") == ["austin1", "austin5", "tyrol-w1"]
    assert validating(scenes, "val=tyrol-w") == ["tyrol-w1", "tyrol-w2"]
    assert validating(scenes, "val=austin4_*, vienna2") == ["austin4_00133_264", "x/vienna2"]
    with pytest.raises(UsageError, match="no scene matches chicago1"):
        split_scenes(scenes, "val=austin1,chicago1")


def test_a_share_is_taken_evenly_from_the_cities_and_always_the_same() -> None:
    scenes = scenes_of(*(f"{city}{number}" for city in CITIES for number in range(1, 21)))
    chosen = validating(scenes, "0.1")
    assert set(chosen) == set(validating(scenes[::-1], "0.1"))
    assert [sum(name.startswith(city) for name in chosen) for city in CITIES] == [2] * 5
    assert len(validating(scenes_of("a", "b"), "0.01")) == 1
    assert len(validating(scenes_of("a", "b"), "0.99")) == 1


def test_auto_takes_a_share_where_inrias_rule_would_leave_a_side_empty() -> None:
    assert len(validating(scenes_of("austin1", "austin2", "vienna1", "vienna2"), "auto")) == 1
    assert len(validating(scenes_of(*"abcdefghij"), "auto")) == 2


def test_auto_takes_a_share_of_the_ground_not_of_the_number_of_scenes() -> None:
    scenes = scenes_of(*"abcdefghij")
    for large in "abcdefghij":
        sizes = {scene.name: 100 if scene.name == large else 10 for scene in scenes}
        sides = split_scenes(scenes, "auto", sizes)
        share = sum(sizes[name] for name, side in sides.items() if side == "val") / sum(sizes.values())
        assert 0.15 < share < 0.25
    equal = dict.fromkeys("abcdefghij", 7)
    assert split_scenes(scenes, "auto", equal) == split_scenes(scenes, "auto")
    assert set(split_scenes(scenes_of("a", "b"), "auto", {"a": 1000, "b": 1}).values()) == {"train", "val"}


@pytest.mark.parametrize("spec", ["0", "1", "1.5", "nan", "half", "", "inria", "val=austin1,austin2", "blocks=4"])
def test_splits_that_cannot_be_made_are_usage_errors(spec: str) -> None:
    with pytest.raises(UsageError, match="--split"):
        split_scenes(scenes_of("austin1", "austin2"), spec)


def test_one_scene_cannot_be_split_by_scenes() -> None:
    with pytest.raises(UsageError, match="blocks=N"):
        split_scenes(scenes_of("only"), "auto")
