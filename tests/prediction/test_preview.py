"""Pictures of a run: what they show, that they are equal when their files are, and what is not overwritten."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from small_run import HEIGHT, ODD_NAMES, WIDTH, collect, write_run
from told import Told

from aerialseg.drawing import GAP, OUTLINE
from aerialseg.errors import BadDataError, NoInputError, OutputError, Stopped, UsageError
from aerialseg.geo.ownership import PREDICTION_TAG
from aerialseg.prediction import preview
from aerialseg.prediction.preview import SHEET, write_previews

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_run import Entry


def report(root: Path, entries: list[Entry], **more: Any) -> Path:
    scenes = {entry.name: {"image": str(entry.scene), "status": "done"} for entry in entries}
    value = {"aerialseg": "0", "command": "predict", "scenes": scenes, **more}
    (root / "out/report.json").write_text(json.dumps(value))
    return root / "out"


def previewed(out: Path, **options: Any) -> tuple[Path, ...]:
    return write_previews(out, out / "preview", **{"size": 1024, "overwrite": False, **options})


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_odd_names_have_pictures_and_the_sheet_shows_all(tmp_path: Path) -> None:
    out = report(tmp_path, write_run(tmp_path))
    paths = previewed(out)
    assert [str(path.relative_to(out / "preview")) for path in paths] == [*(f"{name}.png" for name in ODD_NAMES), SHEET]
    sheet = picture(paths[-1])
    assert sheet.shape[1] > 3 * 2 * WIDTH
    reds = (sheet == OUTLINE).all(axis=-1)
    assert reds.any(axis=0).sum() > 100


def test_equal_files_give_equal_pictures_wherever_they_lie(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        root = tmp_path / name
        paths = previewed(report(root, write_run(root, ["a", "b"])))
        found.append([path.read_bytes() for path in paths])
        assert [path.read_bytes() for path in previewed(root / "out")] == found[-1]
    assert found[0] == found[1]


def test_a_moved_folder_still_has_its_masks(tmp_path: Path) -> None:
    out = report(tmp_path, write_run(tmp_path, ["a"]))
    moved = out.rename(tmp_path / "elsewhere")
    assert previewed(moved)[0].is_file()


def test_scenes_that_moved_with_the_folder_are_found_by_their_stac_items(tmp_path: Path) -> None:
    entries = write_run(tmp_path / "before", ["plain", "hash#1 100%25"])
    out = report(tmp_path / "before", entries)
    collect(out, entries)
    listening = Told()
    expected = [path.read_bytes() for path in previewed(out)]
    (tmp_path / "before").rename(tmp_path / "after")
    found = previewed(tmp_path / "after/out", progress=listening)
    assert listening.lines == []
    assert [path.read_bytes() for path in found] == expected


def test_a_strangers_picture_stays_unless_it_may_go(tmp_path: Path) -> None:
    out = report(tmp_path, write_run(tmp_path, ["a", "b"]))
    mine = out / "preview" / "b.png"
    mine.parent.mkdir()
    Image.new("RGB", (3, 3)).save(mine)
    before = mine.read_bytes()
    with pytest.raises(OutputError, match=r"b\.png: exists"):
        previewed(out)
    assert mine.read_bytes() == before
    assert not (out / "preview/a.png").exists()
    previewed(out, overwrite=True)
    assert mine.read_bytes() != before


@pytest.mark.parametrize("name", ["a", SHEET.removesuffix(".png")])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_scene_is_never_overwritten_by_its_picture(tmp_path: Path, name: str, overwrite: bool) -> None:
    out = report(tmp_path, write_run(tmp_path, ["a", "b"]))
    scene = tmp_path / "pictures" / f"{name}.png"
    scene.parent.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(scene)
    before = scene.read_bytes()
    value = json.loads((out / "report.json").read_text())
    value["scenes"]["b"]["image"] = str(scene)
    (out / "report.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match="would overwrite the input"):
        write_previews(out, scene.parent, size=64, overwrite=overwrite)
    assert scene.read_bytes() == before
    assert list(scene.parent.iterdir()) == [scene]


def test_a_probability_of_another_run_is_not_shown(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b"])
    for number, path in enumerate((entries[0].mask, entries[0].probability, entries[1].mask, entries[1].probability)):
        with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as written:
            written.update_tags(**{PREDICTION_TAG: "old" if number == 3 else "new"})
    listening = Told()
    paths = previewed(report(tmp_path, entries), progress=listening)
    widths = [picture(path).shape[1] for path in paths[:2]]
    assert widths == [2 * (WIDTH + GAP) + GAP, WIDTH + 2 * GAP]
    assert len(listening.lines) == 1
    assert "probability/b.tif: made with another model or options than its mask, and left out" in listening.lines[0]


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, NoInputError, "give a folder that aerialseg predict wrote"),
        ("{", BadDataError, "not JSON"),
        ("[" * 100_000, BadDataError, "not JSON"),
        ("{}", BadDataError, "not a report"),
        ('{"command": "evaluate", "scenes": {}}', BadDataError, "not a report"),
        ('{"command": "predict", "scenes": {}}', NoInputError, "no mask"),
        ('{"command": "predict", "scenes": {"gone": {"image": "x"}}}', NoInputError, "no mask"),
        ('{"command": "predict", "scenes": {"../../a": {"image": "x"}}}', BadDataError, "cannot be a scene's name"),
        ('{"command": "predict", "scenes": {"/etc/a": {"image": "x"}}}', BadDataError, "cannot be a scene's name"),
        ('{"command": "predict", "scenes": {"a": 3}}', BadDataError, "cannot be a scene's name"),
    ],
)
def test_reports_that_are_none(tmp_path: Path, content: str | None, error: type[Exception], said: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(error, match=said):
        previewed(tmp_path)
    assert not (tmp_path / "preview").exists()


def test_a_scene_named_like_the_sheet_is_refused(tmp_path: Path) -> None:
    out = report(tmp_path, write_run(tmp_path, [SHEET.removesuffix(".png")]))
    with pytest.raises(UsageError, match="contact sheet"):
        previewed(out)


def test_a_stop_leaves_no_half_picture(tmp_path: Path) -> None:
    out = report(tmp_path, write_run(tmp_path, ["a"]))
    with pytest.raises(Stopped):
        previewed(out, progress=Told(1))
    assert [path.name for path in (out / "preview").iterdir()] == [".aerialseg-lock"]


def test_the_command_draws_beside_the_folder_or_elsewhere(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    out = report(tmp_path, write_run(tmp_path, ["a"]))
    code, stdout, stderr = run("preview", out)
    assert (code, stdout) == (0, f"{tmp_path / 'out-preview' / SHEET}\n"), stderr
    code, _, _ = run("preview", out, "-o", tmp_path / "pictures", "--size", "64")
    assert code == 0
    assert Image.open(io.BytesIO((tmp_path / "pictures/a.png").read_bytes())).width == 2 * (64 + GAP) + GAP
    assert run("preview", tmp_path)[0] == 66
    assert run("preview", out, "--size", "1")[0] == 2


def test_a_scene_that_changes_while_it_is_drawn_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = report(tmp_path, write_run(tmp_path, ["a"]))
    scene, real = Path(json.loads((out / "report.json").read_text())["scenes"]["a"]["image"]), preview.read_small

    def read(*arguments: Any) -> Any:
        small = real(*arguments)
        scene.touch()
        return small

    monkeypatch.setattr(preview, "read_small", read)
    with pytest.raises(BadDataError, match=f"{scene}: changed while it was drawn; run again"):
        previewed(out)
    assert not list((out / "preview").glob("*.png"))
