"""Folders that version 0.1.0 wrote, as users have them: today's program takes them for its own, and for what they are.

The archive is made by `benchmarks/same_bytes.py --write-fixture`, never anew from today's program. A network's bytes
differ between processors, so nothing here compares them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import struct
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from told import Told

from aerialseg.errors import Stopped
from aerialseg.geo.scenes import find_scenes
from aerialseg.prediction.options import PredictOptions
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

ARCHIVE = Path(__file__).parent / "fixtures" / "written_by_0.1.0.tar.xz"
PREDICT = (
    "predict scenes -m run -o out --device cpu --precision fp32 --probability --disagreement --polygons --min-area-m2 4"
)
TILE = "tile scenes --masks masks -o tiles --size 100 --split val=town2 --json"
TRAIN = "train tiles -o run --resume --device cpu --json"
EVALUATE = "evaluate out --masks masks --report report.html --errors errors --json"
PREVIEW = "preview out -o pictures --size 64"
HEAD = struct.Struct("<17s32sII")
"""Of a resume file: magic, key, width, planes."""
RECORD = struct.Struct("<III")
"""Of a strip in it: first row, rows, checksum; layers x rows x width bytes follow."""


@pytest.fixture(autouse=True)
def _written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where version 0.1.0 stood, among its files."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def states(folder: Path, *but: str) -> dict[str, tuple[str, int]]:
    """Return relative path -> SHA-256 and time of change of the files below a folder, locks and `but` left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".aerialseg-lock", *but)]
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def part_of(folder: Path) -> Path:
    (path,) = folder.glob(".aerialseg-*.part")
    return path


def rows_in(part: bytes) -> int:
    """Return the rows of the whole strips in a part file."""
    _, _, width, layers = HEAD.unpack_from(part)
    end = rows = 0
    place = HEAD.size
    while place + RECORD.size <= len(part):
        _, rows, _ = RECORD.unpack_from(part, place)
        place += RECORD.size + layers * rows * width
        end += rows if place <= len(part) else 0
    return end


def predict_town1(out: Path, progress: Silent = Silent()) -> Any:
    """Do what was stopped in `stopped`, and return the scene's result."""
    options = PredictOptions(batch=1, device="cpu", precision="fp32", probability=True, disagreement=True)
    report = predict_scenes(find_scenes(["scenes/town1.tif"]), Path("run"), out, options, progress)
    return report.scenes[0]


def test_the_archive_holds_what_is_said_and_stays_small() -> None:
    assert ARCHIVE.stat().st_size < 300_000
    assert {path.name for path in Path().iterdir() if path.is_dir()} == {
        *("scenes", "masks", "tiles", "run", "out", "stopped", "errors", "pictures")
    }


def test_scenes_predicted_before_are_done_before(run: Run) -> None:
    told = json.loads(Path("out/report.json").read_text().replace("agreement", "disagreement"))
    before = {
        name.replace("agreement", "disagreement"): state for name, state in states(Path("out"), "report.json").items()
    }
    code, printed, err = run(*f"{PREDICT} --json".split())
    report = json.loads(printed)
    assert code == 0, err
    assert report["totals"]["skipped"] == 2, err
    assert report["products"]["buildings"]["done_before"]
    after = states(Path("out"), "report.json")
    scaled = {name for name in before if after[name] != before[name]}
    assert after.keys() == before.keys() and scaled <= {f"stac/items/town{number}.json" for number in (1, 2)}
    for name in scaled:  # which say their scale now
        assert json.loads(Path("out", name).read_text())["assets"]["probability"]["raster:scale"] == 1 / 254
    for name, entry in report["scenes"].items():
        for key in ("hashes", "seconds", "seam_index", "valid_pixels", "building_pixels"):
            assert entry[key] == told["scenes"][name][key], key


def test_its_rasters_projects_and_polygons_are_made_again_without_a_question(run: Run) -> None:
    with rasterio.open("scenes/town2.tif") as source:
        pixels, profile = source.read(), {**source.profile, "transform": source.transform @ Affine.translation(100, 0)}
    with rasterio.open("scenes/town3.tif", "w", **profile) as target:
        target.write(np.ascontiguousarray(pixels[:, ::-1]))
    before = states(Path("out"))
    code, printed, err = run(*f"{PREDICT} --json".split())
    after, scenes = states(Path("out")), json.loads(printed)["scenes"]
    assert code == 0, err
    assert "warning" not in err
    assert {name: entry["status"] for name, entry in scenes.items()} == dict.fromkeys(
        ("town1", "town2", "town3"), "done"
    )
    remade = {name for name in before if after[name][0] != before[name][0]}
    assert {"mosaic.vrt", "project.qgz", "buildings.gpkg", "probability/mosaic.vrt", "town2.tif"} <= remade
    assert {name for name in before if name.endswith((".qml", ".aux.xml"))}.isdisjoint(remade)
    assert "town3.tif" in Path("out/mosaic.vrt").read_text()


def test_a_scene_stopped_inside_is_gone_on_with_or_begun_again_whole() -> None:
    held = rows_in(part_of(Path("stopped")).read_bytes())
    result = predict_town1(Path("stopped"))
    assert (result.status, result.valid_pixels) == ("done", 300 * 160 - 20 * 40)
    assert result.resumed_rows in (0, held)  # its key holds torch's version and the number of threads
    assert not list(Path("stopped").glob(".aerialseg-*.part"))


def test_strips_of_a_stopped_scene_are_read_wherever_the_key_fits() -> None:
    with pytest.raises(Stopped):
        predict_town1(Path("now"), Told(13, idle=False))
    today, before = part_of(Path("now")).read_bytes(), part_of(Path("stopped"))
    content, key = bytearray(before.read_bytes()), slice(17, 49)
    assert HEAD.unpack_from(today)[::2] == HEAD.unpack_from(content)[::2]
    content[key] = today[key]
    before.write_bytes(content)
    held = rows_in(bytes(content))
    assert 0 < held < 300
    first, rows, _ = RECORD.unpack_from(content, HEAD.size)
    strip = np.frombuffer(content, np.uint8, rows * 160, HEAD.size + RECORD.size).reshape(rows, 160)
    result = predict_town1(Path("stopped"))
    assert result.resumed_rows == held
    with rasterio.open("stopped/probability/town1.tif") as probability:
        assert np.array_equal(probability.read(1)[first : first + rows], strip)


def test_tiles_cut_before_are_left_as_they_are(run: Run) -> None:
    before = states(Path("tiles"))
    code, printed, err = run(*TILE.split())
    assert code == 0, err
    assert json.loads(printed)["scenes_cut"] == 0
    assert states(Path("tiles")) == before


def test_a_stopped_training_goes_on_from_its_checkpoint(run: Run) -> None:
    first, cache = Path("run/metrics.csv").read_text().splitlines(), Path("tiles/training-cache/all.tiles")
    code, printed, err = run(*TRAIN.split())
    report = json.loads(printed)
    assert code == 0, err
    assert "going on after step 191 of 200" in err
    assert (report["steps"], report["epochs"], report["complete_before"]) == (200, 2, False)
    lines = Path("run/metrics.csv").read_text().splitlines()
    assert lines[: len(first)] == first
    rows = list(csv.DictReader(lines))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["iou"]) > 0.9
    assert os.stat(cache).st_mtime == 1_700_000_000, "what was packed before was packed again"  # noqa: PTH116


def test_its_model_and_folders_are_described_as_before(run: Run) -> None:
    code, printed, err = run("info", "out", "--json")  # told apart from a folder of scenes since
    assert code == 0 and (json.loads(printed)["kind"], json.loads(printed)["scenes"]) == ("predictions", 2), err
    for name in ("run", "tiles"):
        code, printed, err = run("info", name, "--json")
        assert code == 0, err
        told, told_before = json.loads(printed), json.loads(Path(f"info-{name}.json").read_text())
        for key in ("config", "refusals"):  # the words in them may change
            told.pop(key, None)
            told_before.pop(key, None)
        assert told == told_before


def test_scores_are_the_same_and_page_and_errors_are_replaced(run: Run) -> None:
    files = {name: Path(name).stat().st_mtime_ns for name in ("report.html", "errors/errors.gpkg", "errors/town1.tif")}
    code, printed, err = run(*EVALUATE.split())
    assert code == 0, err
    assert json.loads(printed) == json.loads(Path("scores.json").read_text())
    assert all(Path(name).stat().st_mtime_ns > old for name, old in files.items())


def test_pictures_are_drawn_over_those_of_before(run: Run) -> None:
    old = Path("pictures/town1.png").stat().st_mtime_ns
    code, _, err = run(*PREVIEW.split())
    assert code == 0, err
    assert Path("pictures/town1.png").stat().st_mtime_ns > old
