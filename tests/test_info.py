"""`info`: what it says is what other readers say, nothing is changed, and damage shows in the exit code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from small_tiles import settings, write_splits, write_tileset

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]


def asked(run: Run, thing: Path, code: int = 0) -> dict[str, Any]:
    found, out, err = run("info", thing, "--json")
    assert found == code, err
    return json.loads(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a set of tiles and a finished run on it."""
    from aerialseg.cli import main

    folder = tmp_path_factory.mktemp("info")
    tiles = write_tileset(folder / "tiles")
    words = settings("schedule.epochs=1", "schedule.steps_per_epoch=2", "run.seed=7")
    assert main(["train", str(tiles), "-o", str(folder / "run"), "-c", "demo", "--device", "cpu", *words]) == 0
    return folder


def test_a_run_says_how_it_stands_and_what_it_takes_to_repeat_it(
    run: Run, small: Path, tree_hashes: Callable[[Path], dict[str, str]]
) -> None:
    before = tree_hashes(small)
    found = asked(run, small / "run")
    assert (found["kind"], found["state"], found["steps"], found["epochs"]) == ("run", "finished", 2, 1)
    assert found["config"]["run"]["seed"] == 7 and found["tiles"]["digest"] and found["tiles"]["val"] == 2
    assert found["started_from"] is None and found["teacher"] is None and found["command"]
    assert found["versions"]["torch"] and found["last_start"]["seed"] == 7 and found["problems"] == []
    code, out, err = run("info", small / "run")
    assert (code, err) == (0, "") and "1 of 1" in out and found["tiles"]["digest"] in out
    assert tree_hashes(small) == before


def test_a_damaged_run_tells_what_is_left(run: Run, small: Path, tmp_path: Path) -> None:
    for name in ("config.toml", "model.safetensors", "last.ckpt"):
        content = (small / "run" / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "run.json").write_bytes((small / "run" / "run.json").read_bytes())
    code, out, err = run("info", tmp_path)
    assert code == 78 and err.startswith("error: ") and err.count("\n") == 1
    found = asked(run, tmp_path, 78)
    assert len(found["problems"]) == 3 and found["starts"] == 1 and found["state"] == "no checkpoint"
    assert found["tiles"]["digest"] in out


def test_a_model_says_its_card_and_counts_what_was_learned(run: Run, tiny_model: Any, tmp_path: Path) -> None:
    from aerialseg.models.package import load_model

    file = tiny_model(tmp_path / "m.safetensors", gsd_m=0.3, licence="MIT")
    found = asked(run, file)
    segmenter, card = load_model(file)
    assert found["parameters"] == sum(parameter.numel() for parameter in segmenter.parameters())
    assert (found["kind"], found["preset"], found["gsd_m"], found["licence"]) == ("model", card.preset, 0.3, "MIT")
    assert found["mean"] == list(card.mean) and len(found["digest"]) == 64
    assert asked(run, file)["sha256"] == found["sha256"]
    (tmp_path / "half.safetensors").write_bytes(file.read_bytes()[:5000])
    assert run("info", tmp_path / "half.safetensors")[0] == 78
    (tmp_path / "m.pth").write_bytes(b"\x80\x04K\x01.")
    code, _, err = run("info", tmp_path / "m.pth")
    assert code == 78 and "is a pickle" in err


def test_a_scene_says_what_gdal_says_and_what_predict_would_do(run: Run, scene_file: Any, tmp_path: Path) -> None:
    path = scene_file(tmp_path / "town1.tif", nodata=0, size=(100, 140))
    beside = (0.3, 0.0, 616000.0 + 140 * 0.3, 0.0, -0.3, 3347000.0)
    scene_file(tmp_path / "town2.tif", size=(100, 140), transform=beside)
    (tmp_path / "town1.tfw").write_text("0.3\n0\n0\n-0.3\n616000.15\n3346999.85\n")
    found = asked(run, path)
    with rasterio.open(path) as dataset:
        assert found["size"] == [dataset.height, dataset.width] and found["bounds"] == list(dataset.bounds)
        assert found["crs"] == dataset.crs.to_string() and found["nodata"] == dataset.nodata
    assert found["gsd_m"] == pytest.approx(0.3, rel=1e-3) and found["mask"] == "nodata value"
    assert found["neighbours"] == ["town2.tif"] and found["side_files"] == ["town1.tfw"]
    assert found["predict"].startswith("takes it")
    (tmp_path / "town1.png").write_bytes(b"")
    assert asked(run, path)["neighbours"] is None and "both would be called town1" in run("info", path)[1]


def test_neighbours_are_named_up_to_three_and_dots_stand_for_more(run: Run, scene_file: Any, tmp_path: Path) -> None:
    said = []
    for number in range(1, 6):
        place = (0.3, 0.0, 616000.0 + number * 64 * 0.3, 0.0, -0.3, 3347000.0)
        path = scene_file(tmp_path / f"town{number}.tif", size=(64, 64), transform=place)
        row = next(line for line in run("info", path)[1].splitlines() if line.startswith("│ neighbours"))
        said.append(row.split("│")[2].strip())
    assert said[1] == "one raster with 1 more: town1.tif"
    assert said[3] == "one raster with 3 more: town1.tif, town2.tif, town3.tif"
    assert said[4] == "one raster with 4 more: town1.tif, town2.tif, town3.tif, ..."


def test_degrees_are_told_in_metres_too(run: Run, scene_file: Any, tmp_path: Path) -> None:
    path = scene_file(tmp_path / "a.tif", crs="EPSG:4326", transform=(1e-6, 0, 0.0, 0, -1e-6, 0.0))
    found = asked(run, path)
    assert found["gsd_m"] == pytest.approx(0.111, rel=0.01)
    assert "1e-06 x -1e-06 degree" in run("info", path)[1]


def test_a_scene_that_predict_refuses_is_told_and_one_that_cannot_be_opened_is_65(
    run: Run, scene_file: Any, tmp_path: Path
) -> None:
    deep = scene_file(tmp_path / "deep.tif", dtype="uint16", bands=4)
    assert "refuses it" in asked(run, deep)["predict"] and "--scale" in asked(run, deep)["predict"]
    nowhere = scene_file(tmp_path / "nowhere.tif", crs=None)
    assert asked(run, nowhere)["gsd_m"] is None and "--allow-ungeoreferenced" in asked(run, nowhere)["predict"]
    (tmp_path / "text.tif").write_text("hello")
    assert run("info", tmp_path / "text.tif")[0] == 65
    assert run("info", tmp_path / "none.tif")[0] == 66
    found = asked(run, tmp_path)
    assert (found["kind"], found["scenes"], found["refused_by_predict"]) == ("scenes", 3, 3)


def test_a_set_of_tiles_is_counted_as_the_split_stands_now(run: Run, small: Path, tmp_path: Path) -> None:
    found = asked(run, small / "tiles")
    assert (found["kind"], found["train"]["tiles"], found["val"]["tiles"]) == ("tiles", 6, 2)
    assert found["train"]["labelled_mpx"] == pytest.approx(5.75 * 96 * 96 / 1e6, abs=1e-3)
    assert 0 < found["train"]["building_fraction"] < 1 and found["cities"] == {"city": 8}
    folder = write_tileset(tmp_path / "edited")
    write_splits(folder, {"city1_0_0": "val", "city2_0_0": "train", "city3_0_0": ""})
    edited = asked(run, folder)
    assert (edited["train"]["tiles"], edited["val"]["tiles"], edited["left_out"]["by hand"]) == (1, 1, 6)
    (folder / "images" / "city1_0_0.tif").unlink()
    assert len(asked(run, folder, 65)["problems"]) == 1
    (folder / "tileset.json").write_text("{")
    assert run("info", folder)[0] == 65


def test_the_fractions_of_a_set_are_those_that_were_counted(
    run: Run, scene_file: Any, mask_file: Any, tmp_path: Path
) -> None:
    """The scene is no multiple of the tile, so tiles overlap and windows hold more than their cores."""
    scene, mask = scene_file(tmp_path / "a.tif", size=(100, 150)), mask_file(tmp_path / "m.tif", size=(100, 150))
    assert run("tile", scene, "--masks", mask, "--size", 64, "--split", 0, "-o", tmp_path / "set")[0] == 0
    found = asked(run, tmp_path / "set")["train"]
    with rasterio.open(mask) as dataset:
        assert found["building_fraction"] == pytest.approx((dataset.read(1) > 0).mean(), abs=1e-9)
    assert found["labelled_mpx"] == 0.015 and found["labelled_km2"] == pytest.approx(0.015 * 0.09, abs=1e-6)


def test_what_is_nothing_of_ours_is_66_or_2(run: Run, tmp_path: Path) -> None:
    code, _, err = run("info", tmp_path)
    assert code == 66 and "holds no run, no model, no tiles and no scenes" in err
    code, _, err = run("info", tmp_path / "none")
    assert code == 66 and "none: no such file or folder" in err
    assert run("info", "/vsicurl/http://x/y.tif")[0] == 2


def test_what_predict_wrote_is_known(run: Run, scene_file: Any, tiny_model: Any, tmp_path: Path) -> None:
    scene_file(tmp_path / "scenes/a.tif", size=(80, 96))
    model, out = tiny_model(tmp_path / "model.safetensors"), tmp_path / "out"
    code, _, err = run("predict", tmp_path / "scenes", "-m", model, "-o", out, "--device", "cpu", "--probability")
    assert code == 0, err
    code, text, _ = run("info", out)
    assert (code, "aerialseg predict" in text, "buildings" not in text) == (0, True, True)
    known = json.loads(run("info", out, "--json")[1])
    assert (known["kind"], known["done"], known["failed"]) == ("predictions", 1, 0)
    assert json.loads(run("info", out / "a.tif", "--json")[1])["kind"] == "mask"
    assert json.loads(run("info", out / "probability/a.tif", "--json")[1])["kind"] == "measure"
    (out / "report.json").write_text("{")
    code, _, err = run("info", out)
    assert code == 65
    assert "report.json: cannot be read" in err


def test_only_scenes_of_one_split_are_predicted(
    run: Run, scene_file: Any, mask_file: Any, tiny_model: Any, tmp_path: Path
) -> None:
    for name in ("a1", "a2", "b1"):
        scene_file(tmp_path / f"im/{name}.tif", size=(80, 96))
        mask_file(tmp_path / f"gt/{name}.tif", size=(80, 96))
    words = ("--masks", tmp_path / "gt", "--split", "val=a2", "-o", tmp_path / "tiles")
    code, _, err = run("tile", tmp_path / "im", *words)
    assert code == 0, err
    tiny_model(tmp_path / "run/model.safetensors")
    predict = ("predict", tmp_path / "im", "-m", tmp_path / "run", "--split", "val", "--device", "cpu")
    code, _, err = run(*predict, "-o", tmp_path / "none")
    assert code == 2 and "is no run whose run.json names its tiles; give -m RUN" in err
    (tmp_path / "run/run.json").write_text(json.dumps({"tiles": {"folder": str(tmp_path / "tiles")}, "starts": []}))
    code, _, err = run(*predict, "-o", tmp_path / "out")
    assert code == 0, err
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tif"))] == ["a2.tif"]
    (tmp_path / "im/a2.tif").unlink()
    code, _, err = run(*predict, "-o", tmp_path / "none")
    assert code == 66 and "--split val: none of 2 scenes is wholly that in" in err


def test_what_predict_would_warn_of_is_told_before(run: Run, tmp_path: Path, scene_file: Any) -> None:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (3, 128, 128), dtype=np.uint8)
        pixels[:, 60 + number :] = 255
        scene_file(tmp_path / f"a{number}.tif", pixels)
    (warning,) = asked(run, tmp_path)["warnings"]
    assert "--nodata 255,255,255 makes it no data (and 2 more like it)" in warning


def test_a_scale_is_proposed_for_scenes_that_are_not_8_bit(run: Run, tmp_path: Path, scene_file: Any) -> None:
    values = np.random.default_rng(0).normal(900, 50, (3, 120, 120)).clip(1, 3000).astype(np.uint16)
    path = scene_file(tmp_path / "deep.tif", values)
    known = json.loads(run("info", path, "--json")[1])
    assert known["scale"] == pytest.approx(np.percentile(values, [1, 99]), rel=0.01)
    assert f"--scale {known['scale'][0]:.6g}:" in run("info", path)[1]
    assert "use --scale LO:HI (aerialseg info proposes one)" in json.loads(run("info", path, "--json")[1])["predict"]
    assert "scale" not in json.loads(run("info", scene_file(tmp_path / "plain.tif"), "--json")[1])


def test_views_that_a_model_was_not_trained_on_are_warned_about(
    run: Run, scene_file: Any, tiny_model: Any, tmp_path: Path
) -> None:
    scene_file(tmp_path / "im/a.tif", size=(80, 96))
    for flips in (True, False):
        model = tiny_model(tmp_path / f"{flips}.safetensors", training={"config": {"data": {"flips": flips}}})
        words = (
            "predict",
            tmp_path / "im",
            "-m",
            model,
            "-o",
            tmp_path / f"{flips}",
            "--device",
            "cpu",
            "--tta",
            "flips",
        )
        code, _, err = run(*words)
        assert code == 0, err
        assert ("trained without them (data.flips = false)" in err) == (not flips)
        assert f"next: aerialseg preview {tmp_path / str(flips)}\n" in err


def test_where_nothing_could_be_predicted_no_next_command_is_named(
    run: Run, scene_file: Any, tiny_model: Any, tmp_path: Path
) -> None:
    scene_file(tmp_path / "im/a.tif", size=(80, 96), transform=(10, 0, 6e5, 0, -10, 3e6))
    code, _, err = run(
        "predict", tmp_path / "im", "-m", tiny_model(gsd_m=0.3), "-o", tmp_path / "out", "--device", "cpu"
    )
    assert code == 65 and "its pixels are 10 m" in err
    assert "next:" not in err
