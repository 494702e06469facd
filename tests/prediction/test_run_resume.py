"""A run that was stopped inside a scene, cut into shards, or asked for more, ends with the bytes of a plain one."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from told import Told

from aerialseg.errors import OutputError, Stopped, UsageError
from aerialseg.files import locked
from aerialseg.geo.inspection import Access
from aerialseg.geo.polygons.polygonize import PolygonOptions
from aerialseg.geo.scenes import find_scenes
from aerialseg.prediction.options import PredictOptions, Shard
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aerialseg.prediction.report import PredictReport

    Hashes = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def model(small_model: Callable[..., Path]) -> Path:
    return small_model()


@pytest.fixture
def tall(tmp_path: Path, scene_file: Callable[..., Path]) -> Path:
    pixels = np.random.default_rng(3).integers(1, 256, (3, 400, 90)).astype(np.uint8)
    pixels[:, 100:130, :40] = 0
    scene_file(tmp_path / "scenes" / "tall.tif", pixels, nodata=0)
    return tmp_path / "scenes"


def run(scenes: Path, model: Path, out: Path, progress: Any = Silent(), **options: Any) -> PredictReport:
    chosen = PredictOptions(**{"batch": 1, "device": "cpu", **options})
    return predict_scenes(find_scenes([scenes]), model, out, chosen, progress)


def products(hashes: dict[str, str]) -> dict[str, str]:
    """Without what holds times, and the lock."""
    return {name: value for name, value in hashes.items() if name != "report.json" and not name.startswith(".")}


@pytest.mark.parametrize(
    "options", [{}, {"overlap": 0.75}, {"gsd_m": 0.2}, {"disagreement": True, "probability": True}]
)
def test_a_run_stopped_inside_a_scene_goes_on_there(
    tmp_path: Path, tall: Path, model: Path, tree_hashes: Hashes, options: dict[str, Any]
) -> None:
    run(tall, model, tmp_path / "straight", **options)
    resumed = []
    for batches in (3, 9, 14):
        out = tmp_path / f"stopped-{batches}"
        with pytest.raises(Stopped):
            run(tall, model, out, Told(batches + 1, idle=False), **options)
        resumed.append(run(tall, model, out, **options).scenes[0].resumed_rows)
        assert [p.name for p in out.glob(".aerialseg-*")] == [".aerialseg-lock"]
        assert products(tree_hashes(out)) == products(tree_hashes(tmp_path / "straight"))
    assert resumed[0] < resumed[-1] < 400, "a stop loses a few windows, not the scene"


def test_overwriting_that_was_stopped_goes_on_inside_the_scene_too(
    tmp_path: Path, tall: Path, model: Path, tree_hashes: Hashes
) -> None:
    out = tmp_path / "out"
    run(tall, model, out)
    before = products(tree_hashes(out))
    with pytest.raises(Stopped):
        run(tall, model, out, Told(10, idle=False), overwrite=True)
    (scene,) = run(tall, model, out, overwrite=True).scenes
    assert (scene.status, scene.resumed_rows > 0) == ("done", True)
    assert products(tree_hashes(out)) == before
    assert run(tall, model, out, overwrite=True).scenes[0].resumed_rows == 0, "what is finished is redone"


def test_another_number_of_threads_begins_anew(tmp_path: Path, tall: Path, model: Path) -> None:
    with pytest.raises(Stopped):
        run(tall, model, tmp_path / "out", Told(10, idle=False))
    torch.set_num_threads(2)
    try:
        assert run(tall, model, tmp_path / "out").scenes[0].resumed_rows == 0, "its last digits may differ"
    finally:
        torch.set_num_threads(1)


def test_what_was_begun_with_other_options_or_pixels_is_not_gone_on_with(
    tmp_path: Path, tall: Path, model: Path
) -> None:
    out = tmp_path / "out"
    for change in ({"overlap": 0.5}, {"tta": "flips"}, {"blend": "crop"}, {"window": 96}):
        with pytest.raises(Stopped):
            run(tall, model, out, Told(10, idle=False))
        assert run(tall, model, out, **change).scenes[0].resumed_rows == 0
        shutil.rmtree(out)
    with pytest.raises(Stopped):
        run(tall, model, out, Told(10, idle=False))
    with rasterio.open(tall / "tall.tif", "r+") as scene:
        scene.write(np.full((1, 1), 7, np.uint8), 1, window=rasterio.windows.Window(0, 0, 1, 1))
    assert run(tall, model, out).scenes[0].resumed_rows == 0


def cut(source: Path, folder: Path, row: int, col: int) -> None:
    """Write the four pieces of a raster as files of their own, on its grid."""
    folder.mkdir()
    with rasterio.open(source) as scene:
        for top, bottom in ((0, row), (row, scene.height)):
            for left, right in ((0, col), (col, scene.width)):
                window = rasterio.windows.Window(left, top, right - left, bottom - top)
                profile = {**scene.profile, "height": window.height, "width": window.width}
                with rasterio.open(
                    folder / f"piece{top}_{left}.tif", "w", **profile | {"transform": scene.window_transform(window)}
                ) as piece:
                    piece.write(scene.read(window=window))


def test_a_raster_cut_in_four_is_predicted_as_the_whole(
    tmp_path: Path, scene_file: Callable[..., Path], model: Path
) -> None:
    whole = scene_file(tmp_path / "whole" / "w.tif", size=(170, 210), seed=5)
    cut(whole, tmp_path / "pieces", 75, 131)
    run(whole.parent, model, tmp_path / "one", probability=True)
    report = run(tmp_path / "pieces", model, tmp_path / "four", probability=True)
    assert [scene.neighbours for scene in report.scenes] == [3] * 4
    with rasterio.open(tmp_path / "one" / "probability" / "w.tif") as dataset:
        expected = dataset.read(1)
    for path in (tmp_path / "four" / "probability").glob("*.tif"):
        top, left = map(int, path.stem.removeprefix("piece").split("_"))
        with rasterio.open(path) as dataset:
            found = dataset.read(1)
        np.testing.assert_array_equal(found, expected[top : top + found.shape[0], left : left + found.shape[1]])
    alone = run(tmp_path / "pieces", model, tmp_path / "off", neighbours=False)
    assert [scene.neighbours for scene in alone.scenes] == [0] * 4


def test_a_changed_neighbour_is_other_work(tmp_path: Path, scene_file: Callable[..., Path], model: Path) -> None:
    whole = scene_file(tmp_path / "whole" / "w.tif", size=(170, 210), seed=5)
    pieces, out = tmp_path / "pieces", tmp_path / "out"
    cut(whole, pieces, 75, 131)
    run(pieces, model, out)
    assert [scene.status for scene in run(pieces, model, out).scenes] == ["skipped"] * 4
    with rasterio.open(pieces / "piece0_0.tif", "r+") as scene:
        scene.write(255 - scene.read())
    assert [scene.status for scene in run(pieces, model, out).scenes] == ["done"] * 4


def test_a_neighbour_that_is_damaged_inside_fails_alone(
    tmp_path: Path, scene_file: Callable[..., Path], model: Path
) -> None:
    whole = scene_file(tmp_path / "whole" / "w.tif", size=(170, 210), seed=5)
    cut(whole, tmp_path / "pieces", 75, 131)
    damaged = tmp_path / "pieces" / "piece0_0.tif"
    with rasterio.open(damaged) as scene:
        pixels, profile = scene.read(), {**scene.profile, "compress": "deflate"}
    with rasterio.open(damaged, "w", **profile) as scene:
        scene.write(pixels)
    content = bytearray(damaged.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"x" * 2000
    damaged.write_bytes(content)
    report = run(tmp_path / "pieces", model, tmp_path / "out")
    assert [scene.status for scene in report.scenes] == ["failed", "done", "done", "done"]
    assert "piece0_0.tif" in str(report.scenes[0].failure)


def test_shards_side_by_side_make_what_one_run_makes(
    tmp_path: Path, scene_file: Callable[..., Path], model: Path, tree_hashes: Hashes
) -> None:
    scenes = tmp_path / "scenes"
    for number in range(5):
        scene_file(scenes / f"s{number}.tif", size=(64, 70), seed=number)
    run(scenes, model, tmp_path / "one", polygons=True)
    out = tmp_path / "shards"
    out.mkdir()
    with locked(out, shared=True):  # another shard is at work
        counts = [len(run(scenes, model, out, probability=True, shard=Shard(n, 2)).of("done")) for n in (1, 2)]
        with pytest.raises(OutputError, match="another aerialseg run"):
            run(scenes, model, out)
    assert counts == [3, 2]
    assert json.loads((out / "report-2-of-2.json").read_text())["totals"]["done"] == 2
    assert not (out / "project.qgz").exists()
    assert len(run(scenes, model, out, polygons=True).of("skipped")) == 5
    left = {name: value for name, value in products(tree_hashes(out)).items() if not name.startswith("report-")}
    assert left == products(tree_hashes(tmp_path / "one"))


def test_shards_divide_every_list() -> None:
    for count in (1, 2, 3, 7):
        items = list(range(11))
        shares = [Shard(number, count).of(items) for number in range(1, count + 1)]
        assert sorted(item for share in shares for item in share) == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"gsd_m": 0.0}, {"gsd_m": float("nan")}, {"blend": "x"}, {"tta": "d5"}, {"device": "gpu"}],
    ids=str,
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        PredictOptions(**options)


@pytest.mark.parametrize(("number", "count"), [(0, 2), (3, 2), (1, 0)])
def test_a_shard_that_is_none_is_refused(number: int, count: int) -> None:
    with pytest.raises(UsageError, match="--shard"):
        Shard(number, count)


def test_a_window_the_network_cannot_take_is_refused_before_it_loads(tmp_path: Path, tall: Path, model: Path) -> None:
    with pytest.raises(UsageError, match=r"--window 100: .* takes multiples of 32, for example 96"):
        run(tall, model, tmp_path / "out", window=100)


def test_products_are_left_alone_when_nothing_changed(
    tmp_path: Path, tall: Path, model: Path, tree_hashes: Hashes
) -> None:
    out = tmp_path / "out"
    report = run(tall, model, out, polygons=True)
    assert report.products["buildings"]["kept"] > 0
    assert {"mosaic.vrt", "project.qgz", "collection.json"} <= {
        path.rsplit("/", 1)[-1] for path in report.products["collection"]
    }
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.suffix != ".json"}
    assert run(tall, model, out, polygons=True).products["buildings"]["done_before"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_polygons_are_shaped_as_asked_for(tmp_path: Path, tall: Path, model: Path) -> None:
    out = tmp_path / "out"
    every = run(tall, model, out, polygons=True, shaping=PolygonOptions()).products["buildings"]["kept"]
    areas = pyogrio.read_dataframe(out / "buildings.gpkg")["area_m2"]
    shaped = run(tall, model, out, polygons=True, shaping=PolygonOptions(1.0, "EPSG:4326", 0.3))
    assert [scene.status for scene in shaped.scenes] == ["skipped"]
    kept = shaped.products["buildings"]["kept"]
    assert kept == (areas >= 1.0).sum() < every == len(areas)
    assert shaped.products["buildings"]["removed"] == every - kept
    assert pyogrio.read_info(out / "buildings.gpkg", layer="buildings")["crs"] == "EPSG:4326"
    with pytest.raises(UsageError, match="give --polygons, too"):
        PredictOptions(shaping=PolygonOptions(1.0))


def test_a_stranger_s_polygons_are_refused_before_the_work(tmp_path: Path, tall: Path, model: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "buildings.gpkg").write_text("mine")
    with pytest.raises(OutputError, match=r"buildings.gpkg: exists and was not written by aerialseg"):
        run(tall, model, tmp_path / "out", polygons=True)
    assert not list((tmp_path / "out").glob("*.tif"))
    assert (tmp_path / "out" / "buildings.gpkg").read_text() == "mine"


def test_scenes_without_a_place_are_predicted_and_not_drawn(
    tmp_path: Path, scene_file: Callable[..., Path], model: Path
) -> None:
    scene_file(tmp_path / "scenes" / "a.tif", size=(64, 64))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        scene_file(tmp_path / "scenes" / "b.tif", size=(64, 64), crs=None, transform=None)
    report = run(tmp_path / "scenes", model, tmp_path / "out", polygons=True, access=Access(True))
    assert [scene.status for scene in report.scenes] == ["done", "done"]
    drawn = pyogrio.read_dataframe(tmp_path / "out" / "buildings.gpkg")
    assert set(drawn["scene"]) == {"a"}
    lone = run(tmp_path / "scenes" / "b.tif", model, tmp_path / "lone", polygons=True, access=Access(True))
    assert [scene.status for scene in lone.scenes] == ["done"]
