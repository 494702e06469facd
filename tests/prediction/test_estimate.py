"""What a plan says is what a run then takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from told import Told

from aerialseg.errors import NoInputError, UsageError
from aerialseg.geo.areas import AreaOptions
from aerialseg.geo.scenes import find_scenes
from aerialseg.prediction.estimate import estimate
from aerialseg.prediction.options import PredictOptions, Shard
from aerialseg.prediction.run import predict_scenes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def model(small_model: Callable[..., Path]) -> Path:
    return small_model(gsd_m=0.3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, scene_file: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "scenes"
    scene_file(folder / "a.tif", size=(150, 110))
    east = (0.3, 0.0, 616000.0 + 110 * 0.3, 0.0, -0.3, 3347000.0)
    scene_file(folder / "b.tif", size=(150, 64), transform=east)
    scene_file(folder / "coarse.tif", size=(64, 64), transform=(0.6, 0.0, 7e5, 0.0, -0.6, 3e6))
    (folder / "broken.tif").write_text("no raster")
    return folder


@pytest.mark.parametrize("options", [{}, {"overlap": 0.5, "window": 96}, {"gsd_m": "keep"}, {"neighbours": False}])
def test_the_windows_are_those_that_predict_then_looks_at(
    tmp_path: Path, scenes: Path, model: Path, options: dict[str, Any]
) -> None:
    chosen = PredictOptions(**options, batch=2, device="cpu")
    found = estimate(find_scenes([scenes]), model, tmp_path / "not" / "there", chosen)
    report = predict_scenes(find_scenes([scenes]), model, tmp_path / "out", chosen)
    done = report.of("done")
    assert (found.scenes, found.windows) == (len(done), sum(scene.windows or 0 for scene in done))
    assert found.mpx == pytest.approx(sum(scene.mpx for scene in done))
    assert found.resampled == sum(scene.run_gsd_m is not None for scene in done)
    assert found.grouped == sum(scene.neighbours > 0 for scene in done)
    assert [line for line in found.failures if "broken.tif" in line]
    assert found.seconds == pytest.approx(found.windows * found.seconds_per_window)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.tif"))
    assert written > 0
    assert found.disk_bytes > 0.1 * found.mpx * 1e6
    assert not (tmp_path / "not").exists()


def test_an_area_is_counted_by_its_ground(tmp_path: Path, scene_file: Callable[..., Path], model: Path) -> None:
    scene_file(tmp_path / "scenes" / "a.tif", size=(640, 640))
    left, top = 616000.0, 3347000.0
    ring = [(left + 3, top - 3), (left + 33, top - 3), (left + 33, top - 33), (left + 3, top - 33), (left + 3, top - 3)]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::26914"}}
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    file = tmp_path / "area.geojson"
    file.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    chosen = PredictOptions(device="cpu", batch=2, area=AreaOptions(str(file), margin_m=3))
    found = estimate(find_scenes([tmp_path / "scenes"]), model, tmp_path, chosen)
    (done,) = predict_scenes(find_scenes([tmp_path / "scenes"]), model, tmp_path / "out", chosen).scenes
    assert found.windows == done.windows_run < (done.windows or 0)
    assert found.asked_km2 == pytest.approx(0.0009)
    assert found.run_km2 is not None and found.skipped_km2 is not None
    assert found.run_km2 + found.skipped_km2 == pytest.approx((640 * 0.3) ** 2 / 1e6)
    assert found.asked_km2 < found.run_km2 < found.skipped_km2
    assert found.rows()[1] == ["area", "0.0009 km2 asked, 0.00196 run, 0.0349 skipped"]


def test_more_work_takes_more_windows_and_more_disk(tmp_path: Path, scenes: Path, model: Path) -> None:
    plain = estimate(find_scenes([scenes]), model, tmp_path, PredictOptions(device="cpu"))
    dense = estimate(
        find_scenes([scenes]), model, tmp_path, PredictOptions(device="cpu", overlap=0.75, disagreement=True)
    )
    assert dense.windows > plain.windows
    assert dense.disk_bytes > plain.disk_bytes
    assert dense.memory_bytes > plain.memory_bytes
    shards = [
        estimate(find_scenes([scenes]), model, tmp_path, PredictOptions(device="cpu", shard=Shard(n, 2)))
        for n in (1, 2)
    ]
    assert sum(part.windows for part in shards) == plain.windows


def test_when_none_can_be_predicted_all_are_named(tmp_path: Path, model: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.tif").write_bytes(b"no raster")
    told = Told()
    with pytest.raises(NoInputError, match=r"no scene can be predicted; first: .*a.tif"):
        estimate(find_scenes([tmp_path]), model, tmp_path / "out", progress=told)
    assert [line.partition(": is ")[0] for line in told.lines] == [f"error: {tmp_path / name}.tif" for name in "ab"]


def test_what_predict_would_refuse_is_refused(tmp_path: Path, scenes: Path, model: Path) -> None:
    with pytest.raises(NoInputError, match=r"no scene can be predicted; first: .*broken.tif"):
        estimate(find_scenes([scenes / "broken.tif"]), model, tmp_path)
    with pytest.raises(UsageError, match="--window 100"):
        estimate(find_scenes([scenes]), model, tmp_path, PredictOptions(window=100))


def test_the_command_prints_a_table_or_json(
    scenes: Path, model: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    options = ("plan", scenes, "-m", model, "-o", tmp_path, "--device", "cpu")
    code, out, err = run(*options)
    assert code == 0
    assert "windows" in out and " MB at most, " in out
    assert "error: " in err and "broken.tif" in err
    more = ("--tta", "flips", "--polygons", "--neighbours", "off", "--allow-ungeoreferenced", "--max-pixels", "1e9")
    code, out, _ = run(*options, "--json", *more)
    assert code == 0
    assert json.loads(out)["scenes"] == 3


def test_the_name_that_disagreement_had_still_holds_and_says_the_new_one(
    scenes: Path, model: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for verb in ("plan", "predict"):
        out = tmp_path / verb
        code, _, err = run(verb, scenes / "a.tif", "-m", model, "-o", out, "--device", "cpu", "--agreement")
        assert code == 0
        assert err.count("--agreement is called --disagreement now") == 1
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"disagreement", "stac"}
    assert "disagreement" not in run("predict", scenes / "a.tif", "-m", model, "-o", out, "--device", "cpu")[2]
