"""`aerialseg polygonize` among broken, foreign and hostile files, full disks and signals; rows as in the fault list."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.warp

from aerialseg.errors import AerialsegError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]

FORMATS = (".gpkg", ".fgb", ".geojson", ".parquet")


def noise(size: int = 60, density: float = 0.4) -> np.ndarray:
    return (np.random.default_rng(0).random((size, size)) < density).astype(np.uint8)


def buildings_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("SELECT count(*) FROM buildings").fetchone()[0])


def test_the_installed_command_writes_counts_and_does_nothing_twice(
    tmp_path: Path, mask_file: Write, cli: Callable[..., Any], tree_hashes: Callable[[Path], dict[str, str]]
) -> None:
    mask_file(tmp_path / "masks/a.tif")
    target = tmp_path / "new/folder/b.gpkg"
    done = cli("polygonize", tmp_path / "masks", "-o", target, "--min-area-m2", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["kept"], report["removed"], report["done_before"]) == (4, 0, False)
    before = tree_hashes(tmp_path)
    done = cli("polygonize", tmp_path / "masks", "-o", target, "--min-area-m2", "1")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert tree_hashes(tmp_path) == before


def test_options_reach_the_file(tmp_path: Path, mask_file: Write, run: Run) -> None:
    mask_file(tmp_path / "a.tif")
    code, out, _ = run("polygonize", tmp_path / "a.tif", "-o", tmp_path / "b.gpkg", "--min-area-m2", "1e4")
    assert (code, buildings_in(tmp_path / "b.gpkg")) == (0, 0)
    assert "0 buildings, 4 smaller than 1e+04 m2 left out (--min-area-m2 0 keeps them)" in out
    options = ("--crs", "EPSG:3857", "--simplify", "0.2", "--regularise", "-f")
    code, _, err = run("polygonize", tmp_path / "a.tif", "-o", tmp_path / "b.gpkg", *options)
    assert code == 0, err
    with closing(sqlite3.connect(tmp_path / "b.gpkg")) as database:
        assert database.execute("SELECT srs_id FROM gpkg_geometry_columns").fetchone() == (3857,)


# --- rows 1, 2, 4, 21: what cannot be polygonised ---


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mask_that_breaks_half_way_leaves_the_older_file(
    tmp_path: Path, scene_file: Write, run: Run, suffix: str
) -> None:
    path, target = scene_file(tmp_path / "m.tif", noise(300), compress="deflate"), tmp_path / f"b{suffix}"
    assert run("polygonize", path, "-o", target)[0] == 0
    older = target.read_bytes()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10])
    code, _, err = run("polygonize", path, "-o", target)
    assert code == 65
    assert err.startswith(f"error: {path}: ")
    assert target.read_bytes() == older
    assert {entry.name for entry in tmp_path.iterdir()} <= {"m.tif", target.name, ".aerialseg-lock"}


@pytest.mark.parametrize(
    ("profile", "values", "words"),
    [
        ({"crs": None}, (0, 1), "has no CRS and transform"),
        ({}, (0, 1, 255), "write masks of 0, 1 and nodata"),
        ({}, (0, 1, 2), "write masks of 0, 1 and nodata"),
    ],
)
def test_masks_that_say_nothing_are_refused(
    tmp_path: Path, scene_file: Write, run: Run, profile: dict[str, Any], values: tuple[int, ...], words: str
) -> None:
    array = np.resize(np.array(values, np.uint8), (16, 16))
    path = scene_file(tmp_path / "m.tif", array, **profile)
    code, _, err = run("polygonize", path, "-o", tmp_path / "b.gpkg")
    assert code == 65
    assert str(path) in err
    assert words in err
    assert "--building-values" not in err, "an option this command does not have"
    assert not (tmp_path / "b.gpkg").exists()


def test_nothing_there_and_remote_paths(tmp_path: Path, scene_file: Write, run: Run) -> None:
    (tmp_path / "empty").mkdir()
    target = tmp_path / "b.gpkg"
    assert run("polygonize", tmp_path / "empty", "-o", target)[0] == 66
    assert run("polygonize", tmp_path / "no.tif", "-o", target)[0] == 66
    path = scene_file(tmp_path / "m.tif", noise())
    assert run("polygonize", path, "-o", target, "--probability", tmp_path / "empty")[0] == 66
    for remote in ("http://127.0.0.1:9/m.tif", "/vsicurl/http://127.0.0.1:9/m.tif", f"GTIFF_DIR:1:{path}"):
        assert run("polygonize", remote, "-o", target)[0] == 2
    assert not target.exists()


def test_a_header_that_claims_too_much_is_refused_at_once(tmp_path: Path, run: Run) -> None:
    path, place = tmp_path / "m.tif", {"crs": "EPSG:26914", "transform": rasterio.Affine(0.3, 0, 6e5, 0, -0.3, 3e6)}
    profile = {"driver": "GTiff", "height": 300_000, "width": 300_000, "count": 1, "dtype": "uint8", "sparse_ok": True}
    with rasterio.open(path, "w", tiled=True, BIGTIFF="YES", blockxsize=4096, blockysize=4096, **profile, **place):
        pass
    code, _, err = run("polygonize", path, "-o", tmp_path / "b.gpkg")
    assert code == 65
    assert "300000x300000 is 9e+10 pixels" in err


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, scene_file: Write, cli: Callable[..., Any]) -> None:
    path = scene_file(tmp_path / "m.tif", noise())
    done = cli("polygonize", path, "-o", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.gpkg"))
    assert done.returncode == 65, done.stderr
    assert "not UTF-8" in done.stderr


# --- rows 17, 19, 20, 38: where the file goes ---


def test_a_target_that_is_a_mask_or_a_strangers_is_refused(tmp_path: Path, scene_file: Write, run: Run) -> None:
    path, target = scene_file(tmp_path / "m.tif", noise()), tmp_path / "b.gpkg"
    whole = path.read_bytes()
    (tmp_path / "link.gpkg").symlink_to(path)
    code, _, err = run("polygonize", path, "-o", tmp_path / "link.gpkg", "--overwrite")
    assert (code, path.read_bytes()) == (2, whole)
    assert "would overwrite the input" in err
    target.write_text("mine")
    assert run("polygonize", path, "-o", target)[0] == 73
    assert target.read_text() == "mine"
    assert run("polygonize", path, "-o", target, "-f")[0] == 0
    assert run("polygonize", path, "-o", tmp_path / "b.shp")[0] == 2
    (tmp_path / "file").write_text("a file where a folder should be")
    assert run("polygonize", path, "-o", tmp_path / "file" / "b.gpkg")[0] == 73


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_link_at_the_target_is_replaced_not_followed(
    tmp_path: Path, scene_file: Write, run: Run, suffix: str
) -> None:
    path, elsewhere = scene_file(tmp_path / "m.tif", noise()), tmp_path / f"elsewhere{suffix}"
    elsewhere.write_text("mine")
    (tmp_path / f"b{suffix}").symlink_to(elsewhere)
    assert run("polygonize", path, "-o", tmp_path / f"b{suffix}", "-f")[0] == 0
    assert elsewhere.read_text() == "mine"
    assert not (tmp_path / f"b{suffix}").is_symlink()


NAMES = ("two words", "größe 图像", "a#b%20c?d&e", 'it\'s "quoted"', "new\nline", "n" * 240)


@pytest.mark.parametrize(
    ("name", "suffix"), [(name, ".gpkg") for name in NAMES] + [(NAMES[2], suffix) for suffix in FORMATS[1:]]
)
def test_any_name_works(tmp_path: Path, scene_file: Write, run: Run, name: str, suffix: str) -> None:
    scene_file(tmp_path / "plain.tif", noise(20)).rename(tmp_path / f"{name}.tif")
    target = tmp_path / f"{name}{suffix}"
    code, _, err = run("polygonize", tmp_path / f"{name}.tif", "-o", target)
    assert code == 0, err
    assert "nothing to do" in run("polygonize", tmp_path / f"{name}.tif", "-o", target)[1]
    if suffix == ".gpkg":
        with closing(sqlite3.connect(target)) as database:
            assert database.execute("SELECT DISTINCT scene FROM buildings").fetchall() == [(name,)]


# --- row 14: a full disk ---


@pytest.fixture(params=["a limit on files", "a small disk"])
def cramped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing larger than 60 kB fits."""
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "a limit on files":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_ends_with_74_and_leaves_nothing(
    tmp_path: Path, scene_file: Write, cramped: Path, run: Run, suffix: str
) -> None:
    path, target = tmp_path / "m.tif", cramped / f"b{suffix}"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before[1], before[1]))
    scene_file(path, noise(400))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    code, _, err = run("polygonize", path, "-o", target)
    assert code == 74, err
    assert err.splitlines()[-1].startswith(f"error: {cramped}")  # behind a line on the way between datums
    assert {entry.name for entry in cramped.iterdir()} <= {".aerialseg-lock"}


def test_a_failed_write_leaves_no_file_open(tmp_path: Path, scene_file: Write) -> None:
    """Windows removes no open file, and a disk with one is not unmounted; pyarrow 26 leaves its own open."""
    from aerialseg.geo.polygons.polygonize import MaskLayer, write_buildings

    path, before = scene_file(tmp_path / "m.tif", noise(400)), resource.getrlimit(resource.RLIMIT_FSIZE)
    for suffix in FORMATS:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        with pytest.raises(AerialsegError) as caught:
            write_buildings([MaskLayer("m", path)], tmp_path / "out" / f"b{suffix}")
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
        assert not [name for name in opened if name.startswith(str(tmp_path / "out"))], caught.value


# --- rows 15, 16, 30: killed, stopped, or beside another run ---


def test_a_killed_run_is_swept_and_done_again(tmp_path: Path, scene_file: Write, run: Run) -> None:
    path, target = scene_file(tmp_path / "m.tif", noise()), tmp_path / "b.gpkg"
    mine = tmp_path / ".aerialseg-0123456789ab.part"
    mine.write_text("rows of a scene that predict will go on with")
    for stale in (".aerialseg-0123456789ab.gpkg", ".aerialseg-0123456789ab.gpkg-journal", ".aerialseg-01_temp.fgb"):
        (tmp_path / stale).write_text("half")
    assert run("polygonize", path, "-o", target)[0] == 0
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"m.tif", "b.gpkg", mine.name, ".aerialseg-lock"}


def test_what_others_write_in_the_folder_meanwhile_stays(tmp_path: Path, scene_file: Write) -> None:
    """predict finishes rasters in a thread, and other shards write there too."""
    from aerialseg.geo.polygons.polygonize import MaskLayer, write_buildings
    from aerialseg.progress import Silent

    theirs = tmp_path / ".aerialseg-feedfeedfeed.tif"

    class Meanwhile(Silent):
        def advance(self, amount: float = 1, note: str = "") -> None:
            theirs.write_text("half a mask")

    path = scene_file(tmp_path / "m.tif", noise())
    for suffix in FORMATS:
        write_buildings([MaskLayer("m", path)], tmp_path / f"b{suffix}", progress=Meanwhile())
    assert {entry.name for entry in tmp_path.iterdir()} == {"m.tif", theirs.name, *(f"b{suffix}" for suffix in FORMATS)}


STOPPED = """
import os, signal, sys
from pathlib import Path
from aerialseg.cli import main
from aerialseg.geo.polygons import polygonize, shape

calls = 0
def counted(*arguments):
    global calls
    calls += 1
    if calls == 2:
        os.kill(os.getpid(), int(sys.argv[1]))
    return shape.footprints(*arguments)
polygonize.footprints = counted
sys.exit(main(["polygonize", sys.argv[2], "-o", sys.argv[3]]))
"""


@pytest.mark.parametrize(
    ("number", "code", "suffix"),
    [(signal.SIGTERM, 143, ".gpkg"), (signal.SIGINT, 130, ".geojson"), (signal.SIGKILL, -9, ".gpkg")],
)
def test_a_stop_leaves_the_older_file_and_the_next_run_is_whole(
    tmp_path: Path, scene_file: Write, run: Run, number: int, code: int, suffix: str
) -> None:
    first, target = scene_file(tmp_path / "m.tif", noise()), tmp_path / f"b{suffix}"
    assert run("polygonize", first, "-o", target)[0] == 0
    older = target.read_bytes()
    second = scene_file(tmp_path / "n.tif", noise(density=0.3))
    command = [sys.executable, "-c", STOPPED, str(int(number)), str(second), str(target)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert time.monotonic() - began < 10
    assert target.read_bytes() == older
    if number != signal.SIGKILL:
        assert {entry.name for entry in tmp_path.iterdir()} == {"m.tif", "n.tif", target.name, ".aerialseg-lock"}
    assert run("polygonize", second, "-o", target)[0] == 0
    assert run("polygonize", second, "-o", tmp_path / f"c{suffix}")[0] == 0
    assert target.read_bytes() == (tmp_path / f"c{suffix}").read_bytes()
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"m.tif", "n.tif", target.name, f"c{suffix}", ".aerialseg-lock"}


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path, scene_file: Write, run: Run) -> None:
    from aerialseg.files import locked

    path = scene_file(tmp_path / "m.tif", noise())
    with locked(tmp_path):
        code, _, err = run("polygonize", path, "-o", tmp_path / "b.gpkg")
    assert code == 73
    assert "another aerialseg run" in err


def test_row_41_a_mask_that_changes_while_it_is_traced_leaves_the_older_file(
    tmp_path: Path, mask_file: Write, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aerialseg.geo.polygons import polygonize

    mask_file(tmp_path / "masks/a.tif")
    command = ("polygonize", tmp_path / "masks", "-o", tmp_path / "b.gpkg")
    assert run(*command)[0] == 0
    before = (tmp_path / "b.gpkg").read_bytes()
    mask_file(tmp_path / "masks/b.tif", 255 * noise(64))
    real = polygonize.decide_rule

    def decide(*arguments: Any) -> Any:
        mask_file(tmp_path / "masks/b.tif", 255 * noise(64, 0.2))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(polygonize, "decide_rule", decide)
        code, _, err = run(*command)
    assert code == 65
    assert err.splitlines()[-1] == f"error: {tmp_path / 'masks/b.tif'}: changed while it was traced; run again"
    assert (tmp_path / "b.gpkg").read_bytes() == before
    assert run(*command)[0] == 0


@pytest.mark.parametrize("crs", [(), ("--crs", "EPSG:4326")])
def test_buildings_of_masks_that_overlap_off_one_grid_are_said(
    tmp_path: Path, mask_file: Write, run: Run, crs: tuple[str, ...]
) -> None:
    """Three buildings, two of them in both masks; the same masks on one grid, or side by side, need no word."""
    ground = np.zeros((300, 600), np.uint8)
    ground[100:150, 100:180] = ground[100:150, 250:300] = ground[200:260, 320:350] = 1
    mask_file(tmp_path / "m/a.tif", ground[:, :400])
    for shift, first, lines in ((200.4, 200, 1), (200, 200, 0), (400, 400, 0), (400.4, 400, 0)):
        mask_file(
            tmp_path / "m/b.tif",
            ground[:, first:],
            transform=(0.3, 0.0, 616000.0 + 0.3 * shift, 0.0, -0.3, 3347000.0 - 0.3 * (shift % 1)),
        )
        code, _, err = run("polygonize", tmp_path / "m", "-o", tmp_path / "b.gpkg", *crs)
        said = [line for line in err.splitlines() if "lie on others" in line]
        assert code == 0 and len(said) == lines, err
        if lines:
            names = f"{tmp_path / 'm/a.tif'} and {tmp_path / 'm/b.tif'} overlap"
            assert "2 buildings lie on others and are there twice" in said[0] and names in said[0]


@pytest.mark.parametrize(("first", "said"), [(390, "1 building lies on others and is there twice"), (399, None)])
def test_halves_of_a_building_that_share_a_sliver_are_not_said_to_be_one_twice(
    tmp_path: Path, mask_file: Write, run: Run, first: int, said: str | None
) -> None:
    ground = np.zeros((300, 600), np.uint8)
    ground[200:260, 380:430] = 1
    mask_file(tmp_path / "m/a.tif", ground[:, :400])
    place = (0.3, 0.0, 616000.0 + 0.3 * (first + 0.4), 0.0, -0.3, 3347000.0)
    mask_file(tmp_path / "m/b.tif", ground[:, first:], transform=place)
    code, _, err = run("polygonize", tmp_path / "m", "-o", tmp_path / "b.gpkg")
    assert code == 0 and (said in err if said else "on others" not in err), err


def test_buildings_of_masks_of_two_zones_that_overlap_are_said_where_they_share_a_table(
    tmp_path: Path, mask_file: Write, run: Run
) -> None:
    """The same ground once more in the next zone; a mask of that zone that only touches it, turned, needs no word."""
    ground = np.zeros((200, 200), np.uint8)
    ground[60:120, 60:120] = 1
    own, other = "EPSG:26914", "EPSG:26915"
    mask_file(tmp_path / "m/a.tif", ground, crs=own)
    corner = rasterio.warp.transform_bounds(own, other, 616000, 3346940, 616060, 3347000)
    for east, lines in ((0, 1), (66, 0)):
        place = (0.3, 0.0, corner[0] + east, 0.0, -0.3, corner[3])
        mask_file(tmp_path / "m/b.tif", ground, crs=other, transform=place)
        code, _, err = run("polygonize", tmp_path / "m", "-o", tmp_path / "b.geojson", "-f")
        said = [line for line in err.splitlines() if "there twice" in line]
        assert code == 0 and len(said) == lines, err
        if lines:
            names = f"{tmp_path / 'm/a.tif'} and {tmp_path / 'm/b.tif'} overlap and share no pixel grid"
            assert "1 building lies on others and is there twice" in said[0] and names in said[0]
