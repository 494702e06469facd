"""The benchmark scripts run, keep their pages, and say plainly when they cannot measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


def script(name: str, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a benchmark as a person would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    return subprocess.run(command, env=environment, timeout=timeout, capture_output=True, text=True, check=False)


def test_a_rerun_replaces_its_own_rows_and_keeps_those_of_other_machines(tmp_path: Path) -> None:
    from record import merge

    first = [{"machine": "a", "preset": "x", "iou": 0.1}, {"machine": "b", "preset": "x", "iou": 0.2}]
    merge(tmp_path / "r.json", first, ("machine", "preset"))
    merged = merge(tmp_path / "r.json", [{"machine": "a", "preset": "x", "iou": 0.3}], ("machine", "preset"))
    assert [(row["machine"], row["iou"]) for row in merged] == [("a", 0.3), ("b", 0.2)]
    assert json.loads((tmp_path / "r.json").read_text()) == merged


def test_a_table_shows_what_is_missing_as_a_dash() -> None:
    from record import table

    assert table({"n": "{n}", "IoU": "{iou:.2f}"}, [{"n": 1, "iou": None}, {"n": 2, "iou": 0.5}]).splitlines()[2:] == [
        "| 1 | - |",
        "| 2 | 0.50 |",
    ]


def test_a_program_is_charged_for_its_own_processor_time_and_not_for_waiting(tmp_path: Path) -> None:
    from from_scratch import Budget

    busy = "import json, time\nwhile time.process_time() < 0.5: pass\nprint(json.dumps(7))"
    (tmp_path / "busy.py").write_text(busy)
    (tmp_path / "idle.py").write_text("import time\ntime.sleep(0.5)\nprint('[]')")
    budget = Budget("cpu", 1.0)
    with ThreadPoolExecutor(2) as pool:
        (printed, cost_s), (_, idle_s) = pool.map(budget.run, [tmp_path / "busy.py", tmp_path / "idle.py"])
    assert printed == 7
    assert 0.5 <= cost_s < 0.9
    assert idle_s < 0.3


def test_the_textbook_network_has_its_textbook_size(tmp_path: Path) -> None:
    import torch
    from plain_unet import PlainUNet

    with torch.device("meta"):
        network = PlainUNet()
        assert network(torch.zeros(2, 3, 64, 96)).shape == (2, 2, 64, 96)
    assert 31.0e6 < sum(parameter.numel() for parameter in network.parameters()) < 31.1e6


def test_seeds_of_a_row_are_shown_together(tmp_path: Path) -> None:
    from real_austin import SCORES, page

    rows = [
        {"machine": "m", "minutes": 5.0, "name": "net", "arithmetic": "bf16", "seed": seed, "steps": 100 + seed,
         "same_grid": "rasterio", "versions": {"torch": "2"}, "measured": "d", **dict.fromkeys(SCORES, iou)}
        for seed, iou in ((0, 0.25), (1, 0.75))
    ]  # fmt: skip
    rows[0]["mcc"] = None  # of a scene that was mapped all over
    assert "| net | bf16 | 5 | 100 to 101 | 0.250, 0.750 | **0.500** |" in page(rows)


def test_an_option_is_compared_with_the_same_seeds_of_its_own_base() -> None:
    from real_austin import SCORES, page

    found = {
        "linknet-r10, as it is": (0.25, 0.25),
        "linknet-r10, no ema": (0.125, 0.625),
        "unet-pvt2-b0, as it is": (0.9, 0.9),
    }
    rows = [
        {"machine": "m", "minutes": 2.0, "name": name, "arithmetic": "bf16", "seed": seed, "steps": 9,
         "trained_s": 90.0, "same_grid": "gdal", "versions": {}, "measured": "d",
         **dict.fromkeys((*SCORES, "best"), iou)}
        for name, each in found.items() for seed, iou in enumerate(each)
    ]  # fmt: skip
    (line,) = (line for line in page(rows).splitlines() if "no ema" in line)
    assert line.endswith("| +0.125 ± 0.250 | 0.375 | +0.125 ± 0.250 | 1.5 |")


def test_without_the_real_data_the_benchmark_is_skipped_with_a_line(tmp_path: Path) -> None:
    for name in ("real_austin.py", "real_kitsap.py"):
        done = script(name, "--data", tmp_path)
        assert done.returncode == 0
        assert done.stdout.startswith("skipped: ")
        assert str(tmp_path) in done.stdout


@pytest.mark.slow
def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    for options in ((), ("--device", "cpu")):
        done = script("gpu.py", *options, "--out", tmp_path, "--work", tmp_path / "work")
        assert done.returncode == 69
        assert done.stderr.startswith("error: no CUDA device is usable here")
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_at_toy_size(tmp_path: Path) -> None:
    parts = [word for part in ("prediction", "feeding", "memory") for word in ("--part", part)]
    options = ("--device", "cpu", "--smoke", "--out", tmp_path / "results", "--work", tmp_path / "work")
    done = script("gpu.py", *parts, *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert [row["part"] for row in rows] == ["feeding", "memory", "prediction"]
    assert all(row["network_windows_per_s"] > 0 for row in rows if row["part"] == "prediction")
    page = (tmp_path / "results" / "gpu.md").read_text()
    assert all(f"## {part}" in page for part in ("Prediction", "Feeding", "Memory"))


def test_predict_is_measured_against_its_floor_at_toy_size(tmp_path: Path) -> None:
    import numpy as np
    from peers.meter import squares

    sizes = "--size", 300, "--large", 0, "--network", 0, "--window", 64, "--times", 1
    done = script("predict.py", *sizes, "--no-peers", "--write", "--results", tmp_path, "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "predict.json").read_text())
    assert {row["contestant"] for row in rows} == {"floor", "aerialseg"}
    assert all(row["cog_wall_s"] > 0 and row["cog_user_s"] > 0 and row["extra_mb"] > 0 for row in rows)
    assert next(row["over_floor"] for row in rows if row["contestant"] == "floor") == 1
    page = (tmp_path / "predict.md").read_text()
    assert "300x300: wall over the floor's" in page
    assert "| aerialseg |" in page
    drawn = np.load(tmp_path / "work" / "aerialseg-free.npy")
    assert np.array_equal(drawn, squares(64, 300, 300))  # so the floor writes the very mask that the engine draws


def test_costs_of_networks_become_a_table_and_a_picture(tmp_path: Path) -> None:
    options = "--tables", "mixers", "--only", "identity", "--sizes", "64,32", "--batch", 1
    done = script("costs.py", *options, "--write", "--results", tmp_path / "results", "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "costs-mixers.png").stat().st_size > 1000
    lines = (tmp_path / "results" / "costs.md").read_text().splitlines()
    found = [line.split(" | ") for line in lines if line.startswith("| identity")]
    assert [cells[1] for cells in found] == ["32", "64"]
    assert all(float(cells[4]) > 0 for cells in found)


def test_answers_are_ratios_to_the_floor_and_to_the_best_peer() -> None:
    from predict import answers

    rows = [
        {"part": "free", "contestant": name, "size": 9, "over_floor": wall, "wall_s": wall, "extra_mb": 7.0,
         "cog_wall_s": wall, "cog_user_s": user, "cog_system_s": 1.0}
        for name, wall, user in (("floor", 1.0, 1.0), ("aerialseg", 1.5, 3.0), ("a", 6.0, 2.0), ("b", 3.0, 4.0))
    ]  # fmt: skip
    assert [answer["found"] for answer in answers(rows)] == [1.5, 1.5, 7.0, 0.5, 1.5, 4 / 3]


def test_a_peer_that_cannot_be_installed_is_left_out_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peers import environments

    monkeypatch.setattr(environments.shutil, "which", lambda *_, **__: "false")
    assert list(environments.environments(tmp_path)) == []
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(environments.NAMES)
    assert all(line.startswith("skipped: ") for line in told)


SMALL_PACKAGE = {
    "__init__.py": "",
    "cli/__init__.py": """
        def main(argv):
            from aerialseg.models.segmenter import Segmenter
            return Segmenter(0.5).forward(argv[0])
        """,
    "models/segmenter.py": """
        \"\"\"Two lines of head.\"\"\"
        from dataclasses import dataclass
        @dataclass(frozen=True)
        class Segmenter:
            threshold: float
            def forward(self, pixels):
                return _read(pixels, 1) and _read(pixels, 2)
        @dataclass
        class Part:
            unused: int
        def _read(path, times):
            with open(path) as file:
                return len(file.read()) - 3
        def _unused(a, b, c, d, e, f, *, g): ...
        """,
    "models/part.py": """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from aerialseg.geo.part import Piece
        class Part: ...
        def _once(piece: Piece) -> None: ...
        chosen = _once
        """,
    "geo/part.py": """
        class Piece:
            def part(self):
                import aerialseg.models.part
        def long():
            \"\"\"With a docstring.\"\"\"
        """
    + "    pass\n        " * 59,
}


def write_small_package(root: Path) -> Path:
    """Write a package with one circle, one class name used twice, and one private function that is used once."""
    for name, text in SMALL_PACKAGE.items():
        path = root / "aerialseg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    (root / "tests").mkdir()
    (root / "tests" / "test_part.py").write_text("")
    return root


def test_the_shape_of_a_small_package_is_counted_exactly(tmp_path: Path) -> None:
    from shape import measure_source

    figures, names = measure_source(write_small_package(tmp_path))
    assert names["import circles"] == ["aerialseg.geo.part <-> aerialseg.models.part"]
    assert names["class names used twice"] == ["Part: aerialseg.models.part, aerialseg.models.segmenter"]
    assert names["file names used twice"] == ["part: aerialseg/geo/part.py, aerialseg/models/part.py"]
    assert names["private functions used once"] == ["aerialseg.models.part._once"]
    assert names["functions over 60 lines, cli apart"] == ["aerialseg.geo.part.long: 61"]
    assert names["functions over 6 parameters, cli apart"] == ["aerialseg.models.segmenter._unused: 7"]
    assert names["modules without a test of their name"] == ["aerialseg.models.segmenter"]
    assert names["modules with one importer"] == [
        f"aerialseg.{m}" for m in ("geo.part", "models.part", "models.segmenter")
    ]
    expected = {
        "modules": 5, "lines": 3 + 14 + 7 + 64, "median module, lines": 7, "module heads, %": round(100 * 6 / 88, 1),
        "classes": 4, "functions": 7, "private functions": 3, "longest body, lines": 59, "import circles": 1,
    }  # fmt: skip
    assert {name: figures[name] for name in expected} == expected


def test_what_a_command_meets_is_counted_exactly(tmp_path: Path) -> None:
    from traced import in_fresh_process

    root = write_small_package(tmp_path)
    (root / "model").write_text("abc")
    met = in_fresh_process(root, [str(root / "model")], "Segmenter.forward", root / "model")
    assert met.modules == ["cli/__init__.py", "models/segmenter.py"]
    assert met.functions == len({"main", "class Segmenter", "class Part", "forward", "_read"})
    assert met.types == ["Segmenter"]
    assert met.path == ["cli/__init__.py:main", "models/segmenter.py:Segmenter.forward"]
    assert met.reads == 1
    with pytest.raises(RuntimeError, match="nothing called building_loss"):
        in_fresh_process(root, [str(root / "model")], "building_loss")


def test_a_shape_over_its_limits_is_named_and_ends_with_one(tmp_path: Path) -> None:
    options = "--root", write_small_package(tmp_path), "--no-trace"
    done = script("shape.py", *options, "--limits")
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [
            "over: import circles: 1 > 0",
            "  aerialseg.geo.part <-> aerialseg.models.part",
            "over: class names used twice: 1 > 0",
            "  Part: aerialseg.models.part, aerialseg.models.segmenter",
        ],
    )
    assert "| import circles | 1 | 0 |" in done.stdout.splitlines()
    done = script("shape.py", *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["modules"] == 5


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders of the same files, by two runs: only what a clock, a host or chance decides differs."""
    import sqlite3

    for side, seconds in (("base", 1.5), ("tree", 22.25)):
        folder = tmp_path / side
        (folder / "out").mkdir(parents=True)
        report = {"aerialseg": "0.1.0", "totals": {"done": 2, "seconds": seconds}, "scenes": {"a": {"valid": 9}}}
        (folder / "out" / "report.json").write_text(json.dumps(report))
        (folder / "metrics.csv").write_text(f"epoch,iou,seconds,images_per_s\n1,0.5,{seconds},{seconds}\n")
        start = {"time": f"2026-01-01T00:00:{seconds}", "command": [f"/{side}/__main__.py", "train"], "seed": 0}
        (folder / "run.json").write_text(json.dumps({"id": side, "tiles": {"folder": side}, "starts": [start]}))
        (folder / "tile.stdout").write_text(f"tiles: 3 scenes cut, 0.2 Mpx in {seconds} s, {seconds} Mpx/s\n")
        (folder / "mask.tif").write_bytes(b"II*\0mask")
        (folder / ".aerialseg-lock").touch()
        with sqlite3.connect(folder / "buildings.gpkg") as database:
            database.execute("CREATE TABLE buildings (fid INTEGER, area REAL)")
            database.executemany("INSERT INTO buildings VALUES (?, ?)", [(n, n / 2) for n in range(200)])
            database.execute("DELETE FROM buildings WHERE fid >= 100")
        database.close()
        if side == "tree":
            with sqlite3.connect(folder / "buildings.gpkg", isolation_level=None) as database:
                database.execute("VACUUM")
            database.close()
    return tmp_path / "base", tmp_path / "tree"


def test_times_and_places_of_a_run_are_no_difference(sides: tuple[Path, Path]) -> None:
    from same_files import compare_folders

    assert all((sides[0] / name).read_bytes() != (sides[1] / name).read_bytes() for name in ("run.json", "tile.stdout"))
    assert (sides[0] / "buildings.gpkg").read_bytes() != (sides[1] / "buildings.gpkg").read_bytes()
    assert compare_folders(*sides) == {}


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("mask.tif", "mask", "Mask", "cannot be read"),
        ("out/report.json", '"valid": 9', '"valid": 8', "a report names the option"),
        ("out/report.json", '"valid"', '"pixels"', "a report names the option"),
        ("metrics.csv", "0.5", "0.6", "0.iou: '0.5' -> '0.6'"),
        ("run.json", '"seed": 0', '"seed": 1', "starts.0.seed: 0 -> 1"),
        ("tile.stdout", "3 scenes", "2 scenes", "2 scenes"),
    ],
)
def test_anything_else_is(sides: tuple[Path, Path], name: str, old: str, new: str, told: str) -> None:
    from same_files import compare_folders

    path = sides[1] / name
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    (found,) = compare_folders(*sides).items()
    assert found[0] == name
    assert told in found[1].lower()


def test_rows_of_a_table_and_files_that_are_missing_or_new_are_differences(sides: tuple[Path, Path]) -> None:
    import sqlite3

    from same_files import compare_folders

    with sqlite3.connect(sides[1] / "buildings.gpkg") as database:
        database.execute("UPDATE buildings SET area = 7 WHERE fid = 3")
    database.close()
    (sides[1] / "metrics.csv").rename(sides[1] / "scores.csv")
    found = compare_folders(*sides)
    assert set(found) == {"buildings.gpkg", "metrics.csv", "scores.csv"}
    assert (found["metrics.csv"], found["scores.csv"]) == ("missing", "new")


def test_a_difference_that_is_meant_is_asked_for(sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import same_files

    for side, name, byte in ((sides[0], "agreement", 254), (sides[1], "disagreement", 0)):
        (side / name).mkdir()
        (side / name / "a.tif").write_bytes(bytes([byte]))
    inverted = same_files.Expected(
        r"disagreement/\1.tif", lambda old, new: old.read_bytes()[0] == 254 - new.read_bytes()[0], "inverted"
    )
    assert len(same_files.compare_folders(*sides)) == 2
    monkeypatch.setitem(same_files.EXPECTED, r"agreement/(.*)\.tif", inverted)
    assert same_files.compare_folders(*sides) == {}
    (sides[1] / "disagreement" / "a.tif").write_bytes(bytes([3]))
    assert same_files.compare_folders(*sides) == {"agreement/a.tif": "disagreement/a.tif is not as expected: inverted"}


def test_a_checkpoint_and_a_training_cache_are_compared_without_times(tmp_path: Path) -> None:
    import struct

    import torch
    from same_files import compare_files

    def write(side: str, seconds: float, weight: float, crc: int) -> Path:
        folder = tmp_path / side
        folder.mkdir(exist_ok=True)
        state = {
            "model": {"w": torch.tensor([weight, 0.0])},
            "standing": {"records": [{"seconds": seconds, "iou": 0.5}]},
        }
        torch.save({"format": 1, "digest": str(seconds), "state": state}, folder / "last.ckpt")
        table = json.dumps({"tiles": [["a", f"7:{seconds}", crc]]}).encode()
        (folder / "all.tiles").write_bytes(b"pixels" + table + struct.pack("<Q32s", len(table), bytes(32)))
        return folder

    base, later, other = write("base", 1.0, 0.25, 5), write("later", 2.0, 0.25, 5), write("other", 1.0, 0.5, 6)
    for name, told in (("last.ckpt", "model.w: "), ("all.tiles", "1.tiles.0.1: 5 -> 6")):
        assert compare_files(base / name, later / name) is None
        assert (compare_files(base / name, other / name) or "").startswith(told)


def test_a_renamed_key_is_meant_and_a_changed_weight_is_not(sides: tuple[Path, Path]) -> None:
    from same_files import compare_folders

    for side, key in zip(sides, ("wear", "degrade"), strict=True):
        card = json.dumps({"digest": key, "training": {"config": {"data": {"crop": 64, key: 0.5}}}})
        header = json.dumps({"__metadata__": {"card": card}, "weight": {"data_offsets": [0, 2]}}).encode()
        (side / "run").mkdir()
        (side / "run" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\1\2")
        (side / "run" / "config.toml").write_text(f"[data]\ncrop = 64\n{key} = 0.5\n")
    assert compare_folders(*sides) == {}
    model, config = sides[1] / "run" / "model.safetensors", sides[1] / "run" / "config.toml"
    model.write_bytes(model.read_bytes()[:-1] + b"\3")
    config.write_text(config.read_text().replace("0.5", "0.4"))
    assert set(compare_folders(*sides)) == {"run/model.safetensors", "run/config.toml"}
