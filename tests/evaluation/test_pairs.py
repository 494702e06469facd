"""Which prediction meets which mask: folders, files, an Inria root, and what must not be taken for a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import rasterio

from aerialseg.errors import BadDataError, NoInputError, UsageError
from aerialseg.evaluation.pairs import check_pairs, pair_predictions, pair_scenes
from aerialseg.geo.inspection import Access
from aerialseg.geo.ownership import PREDICTION_TAG
from aerialseg.geo.scenes import find_scenes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]


def names(folder: Path, pairs: object) -> list[tuple[str, str, str]]:
    """Name, prediction and truth of each pair, relative to a folder."""
    return [
        (pair.name, pair.prediction.relative_to(folder).as_posix(), pair.truth.relative_to(folder).as_posix())
        for pair in pairs  # type: ignore[attr-defined]
    ]


def test_pairs_by_relative_stem_in_natural_order(tmp_path: Path, mask_file: Write) -> None:
    for name in ("a/austin10", "a/austin2", "tyrol-w1"):
        mask_file(tmp_path / f"out/{name}.tif")
        mask_file(tmp_path / f"gt/{name}.png", driver="PNG")
    mask_file(tmp_path / "gt/a/austin3.tif")
    pairing = pair_predictions([tmp_path / "out"], [tmp_path / "gt"])
    assert names(tmp_path, pairing.pairs) == [
        ("a/austin2", "out/a/austin2.tif", "gt/a/austin2.png"),
        ("a/austin10", "out/a/austin10.tif", "gt/a/austin10.png"),
        ("tyrol-w1", "out/tyrol-w1.tif", "gt/tyrol-w1.png"),
    ]
    assert [pair.city for pair in pairing.pairs] == ["austin", "austin", "tyrol-w"]
    assert pairing.unused == ("a/austin3",)


def test_probabilities_beside_the_predictions_are_left_alone(tmp_path: Path, mask_file: Write) -> None:
    for place in (
        "out/x",
        "out/probability/x",
        "out/sub/probability/y",
        "out/disagreement/x",
        "out/agreement/x",
        "gt/x",
    ):
        mask_file(tmp_path / f"{place}.tif")
    pairing = pair_predictions([tmp_path / "out"], [tmp_path / "gt"])
    assert names(tmp_path, pairing.pairs) == [("x", "out/x.tif", "gt/x.tif")]
    with pytest.raises(NoInputError, match="no predicted masks here"):
        pair_predictions([tmp_path / "out" / "sub"], [tmp_path / "gt"])


def test_a_probability_of_another_run_is_not_taken_and_said(tmp_path: Path, mask_file: Write) -> None:
    for name, keys in {"same": "aa", "other": "ab", "strange": "-a", "bare": "a-", "plain": "--"}.items():
        for place, key in zip((f"out/{name}", f"out/probability/{name}"), keys, strict=True):
            path = mask_file(tmp_path / f"{place}.tif")
            with rasterio.open(path, "r+") as written:
                written.update_tags(**({} if key == "-" else {PREDICTION_TAG: key}))
        mask_file(tmp_path / f"gt/{name}.tif")
    pairs = pair_predictions([tmp_path / "out"], [tmp_path / "gt"]).pairs
    assert {pair.name for pair in pairs if pair.probability is not None} == {"same", "strange", "plain"}
    warnings, faults = check_pairs(pairs, Access())
    assert faults == []
    assert len(warnings) == 1
    assert "probability/bare.tif and 1 more: made with another model or options" in warnings[0]
    (tmp_path / "out/probability/same.tif").write_text("damaged")
    again = pair_predictions([tmp_path / "out"], [tmp_path / "gt"]).pairs
    assert "same" in {pair.name for pair in again if pair.probability is not None}, "what is damaged is told as such"


def test_an_inria_root_stands_for_its_true_masks(tmp_path: Path, mask_file: Write, scene_file: Write) -> None:
    for name in ("austin1", "austin2"):
        scene_file(tmp_path / f"AerialImageDataset/train/images/{name}.tif")
        mask_file(tmp_path / f"AerialImageDataset/train/gt/{name}.tif")
    mask_file(tmp_path / "out/austin2.tif")
    for root in (tmp_path, tmp_path / "AerialImageDataset"):
        pairing = pair_predictions([tmp_path / "out"], [root])
        assert names(tmp_path, pairing.pairs) == [
            ("austin2", "out/austin2.tif", "AerialImageDataset/train/gt/austin2.tif")
        ]
        assert pairing.unused == ("austin1",)


def test_a_pattern_or_one_file_on_each_side_pairs_other_names(tmp_path: Path, mask_file: Write) -> None:
    prediction, truth = mask_file(tmp_path / "out/x.tif"), mask_file(tmp_path / "gt/x_label.tif")
    assert names(tmp_path, pair_predictions([prediction.parent], [truth.parent], "{stem}_label.tif").pairs)
    other = mask_file(tmp_path / "other.tif")
    assert names(tmp_path, pair_predictions([prediction], [other]).pairs) == [("x", "out/x.tif", "other.tif")]


def test_a_prediction_without_a_mask_is_named(tmp_path: Path, mask_file: Write) -> None:
    for place in ("out/a", "out/b", "out/c", "gt/b", "gt/d"):
        mask_file(tmp_path / f"{place}.tif")
    with pytest.raises(BadDataError, match=r"out/a\.tif.*out/c\.tif.*no mask found"):
        pair_predictions([tmp_path / "out"], [tmp_path / "gt"])


def test_a_mask_is_not_judged_by_itself(tmp_path: Path, mask_file: Write) -> None:
    path = mask_file(tmp_path / "gt/x.tif")
    with pytest.raises(UsageError, match="cannot be judged by itself"):
        pair_predictions([path], [path.parent])


def test_scenes_find_what_predict_wrote_for_them(tmp_path: Path, mask_file: Write, scene_file: Write) -> None:
    for name in ("austin1", "austin2"):
        scene_file(tmp_path / f"train/images/{name}.tif")
        mask_file(tmp_path / f"train/gt/{name}.tif")
    scenes = find_scenes([tmp_path])
    mask_file(tmp_path / "out/austin1.tif")
    assert names(tmp_path, pair_scenes(scenes[:1], tmp_path / "out")) == [
        ("austin1", "out/austin1.tif", "train/gt/austin1.tif")
    ]
    with pytest.raises(NoInputError, match=r"out/austin2\.tif: no such file; predict"):
        pair_scenes(scenes, tmp_path / "out")
    with pytest.raises(NoInputError, match="no mask"):
        pair_scenes(find_scenes([tmp_path / "train/images"]), tmp_path / "out")
