"""`aerialseg predict` and the fault list: one run over many good scenes, one over many bad ones, and the single faults.

A process that loads torch takes seconds, so whole runs happen in this one; kills and signals have their own (slow).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from aerialseg.cli import main
from aerialseg.files import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Command = Callable[..., subprocess.CompletedProcess[str]]
    Run = Callable[..., tuple[int, str, str]]
    Write = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

FOOT = "EPSG:2277"
CUSTOM = "+proj=tmerc +lat_0=47.5 +lon_0=16.3 +k=0.9999 +x_0=1000 +y_0=-5000000 +ellps=bessel +units=m +no_defs"
LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
ODD_NAMES = ("with space", "ünïcode 日本", "hash#1", "100%25", "quo'te\"d", "new\nline", "-dash", "x" * 251)
SIZES = {"one pixel": (1, 1), "sliver": (31, 700), "ragged": (97, 61)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from aerialseg.models.build import Segmenter, build_network
    from aerialseg.models.package import ModelCard, save_model
    from aerialseg.models.presets import resolve

    torch.manual_seed(0)
    spec = resolve(architecture="linknet", encoder="tu-lcnet_035", bands=3, weights="none")
    card = ModelCard(
        preset=spec.preset, architecture=spec.architecture, encoder=spec.encoder, bands=3, mean=(100.0,) * 3,
        std=(50.0,) * 3, tile_size=64, encoder_arguments=dict(spec.encoder_arguments),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, Segmenter(build_network(spec), card.mean, card.std), card)
    return path


def in_process(*arguments: Any) -> tuple[int, str]:
    """Run the command line here, for torch is loaded already; returns (exit code, stderr)."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return code, err.getvalue()


def values(size: tuple[int, int] = (80, 70), bands: int = 3) -> np.ndarray:
    return np.random.default_rng(size[0]).integers(1, 256, (bands, *size), dtype=np.uint8)


class Good:
    """One run over scenes that are odd but good."""

    def __init__(self, root: Path, scene_file: Write, model: Path) -> None:
        self.scenes, self.out = root / "scenes", root / "out"
        self._write(scene_file)
        self.before = {path: path.read_bytes() for path in self.scenes.rglob("*") if path.is_file()}
        self.code, self.err = in_process(
            "predict", self.scenes, "-m", model, "-o", self.out, "--probability", "--allow-ungeoreferenced",
            "--device", "cpu", "--batch", "2",
        )  # fmt: skip
        self.report = json.loads((self.out / "report.json").read_text())

    def _write(self, write: Write) -> None:
        for name in ODD_NAMES:
            write(self.scenes / "names" / f"{name}.tif", values())
        for name, size in SIZES.items():
            write(self.scenes / "sizes" / f"{name}.tif", values(size))
        for name, crs in {"custom": CUSTOM, "local": CRS.from_wkt(LOCAL), "foot": FOOT}.items():
            write(self.scenes / "crs" / f"{name}.tif", values(), crs=crs)
        write(self.scenes / "crs" / "degrees.tif", values(), crs="EPSG:4326", transform=(3e-6, 0, 16, 0, -3e-6, 48))
        grids = {"rotated": (0.2, 0.2, 6e5, 0.2, -0.2, 3e6), "southup": (0.3, 0, 6e5, 0, 0.3, 3e6)}
        for name, grid in {**grids, "oblong": (0.3, 0, 6e5, 0, -0.7, 3e6)}.items():
            write(self.scenes / "grid" / f"{name}.tif", values(), transform=grid)
        write(self.scenes / "place" / "none.tif", values(), crs=None, transform=None)
        write(self.scenes / "place" / "gcps.tif", values(), crs=None, transform=None)
        with rasterio.open(self.scenes / "place" / "gcps.tif", "r+") as target:
            corners = ((0, 0), (0, 70), (80, 0), (80, 70))
            points = [GroundControlPoint(row, col, 16 + col / 1e5, 48 - row / 1e5) for row, col in corners]
            target.gcps = points, CRS.from_epsg(4326)
        write(self.scenes / "nodata" / "empty.tif", np.zeros((3, 70, 80), np.uint8), nodata=0)
        partly = values()
        partly[:, :30] = 0
        write(self.scenes / "nodata" / "partly.tif", partly, nodata=0)
        alpha = values(bands=4)
        alpha[3] = np.where(np.arange(70) < 20, 0, 255)
        write(self.scenes / "nodata" / "alpha.tif", alpha, photometric="RGB", alpha="YES")
        for folder in ("a", "b"):
            write(self.scenes / folder / "x.tif", values())
        write(self.scenes / "hostile.tif", values())
        (self.scenes / "hostile.tif.ovr").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'><SRSx/></VRTDataset>")

    def mask(self, name: str, folder: str = "") -> Any:
        return rasterio.open(self.out / folder / f"{name}.tif")

    def scene(self, name: str) -> Any:
        return rasterio.open(self.scenes / f"{name}.tif")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, scene_file: Write, model: Path) -> Good:
    return Good(tmp_path_factory.mktemp("good"), scene_file, model)


def test_all_odd_scenes_are_predicted_and_no_input_is_touched(good: Good) -> None:
    failed = {name: scene["error"] for name, scene in good.report["scenes"].items() if scene["status"] != "done"}
    assert failed == {}
    assert good.code == 0
    assert {path: path.read_bytes() for path in good.scenes.rglob("*") if path.is_file()} == good.before


def test_rows_5_and_6_every_mask_has_its_scene_s_size_crs_and_six_numbers(good: Good) -> None:
    for name in good.report["scenes"]:
        for folder in ("", "probability"):
            with good.scene(name) as scene, good.mask(name, folder) as mask:
                assert mask.shape == scene.shape, name
                assert mask.transform == scene.transform, name
                assert mask.crs == scene.crs, name
                assert scene.crs is None or mask.crs.to_wkt() == scene.crs.to_wkt(), name
                assert (mask.count, mask.dtypes[0], mask.nodata) == (1, "uint8", 255)


def test_row_4_ground_control_points_are_carried_over(good: Good) -> None:
    with good.scene("place/gcps") as scene, good.mask("place/gcps") as mask:
        assert [(p.row, p.col, p.x, p.y) for p in mask.gcps[0]] == [(p.row, p.col, p.x, p.y) for p in scene.gcps[0]]
        assert mask.gcps[1] == scene.gcps[1]


def test_row_9_masked_pixels_are_nodata_in_mask_and_probability(good: Good) -> None:
    expected = {"nodata/partly": np.s_[:30], "nodata/alpha": np.s_[:, :20]}
    for name, invalid in expected.items():
        for folder in ("", "probability"):
            with good.mask(name, folder) as mask:
                nodata = mask.read(1) == 255
                assert nodata[invalid].all()
                assert nodata.sum() == nodata[invalid].size


def test_row_8_alpha_is_dropped_with_a_line(good: Good) -> None:
    assert "alpha.tif: band 4 is alpha" in good.err


def test_row_10_an_empty_scene_gives_an_empty_mask_and_a_warning(good: Good) -> None:
    assert "empty.tif: has no valid pixel; its mask is all nodata" in good.err
    with good.mask("nodata/empty") as mask:
        assert (mask.read(1) == 255).all()


def test_row_18_outputs_mirror_the_folders(good: Good) -> None:
    assert {"a/x", "b/x"} <= set(good.report["scenes"])


def test_row_19_side_files_stand_beside_odd_names_where_they_fit(good: Good) -> None:
    for name in ODD_NAMES:
        assert (good.out / "names" / f"{name}.qml").exists()
        auxiliary = f"{name}.tif.aux.xml"  # 263 bytes for the longest: no file system takes it
        assert os.path.exists(good.out / "names" / auxiliary) == (len(auxiliary.encode()) <= 255)  # noqa: PTH110
    assert all("\\n" in line for line in good.err.splitlines() if "new" in line)


def test_row_22_a_hostile_overview_is_ignored_with_a_warning(good: Good) -> None:
    assert "hostile.tif.ovr: is not a TIFF and is ignored" in good.err


class Bad:
    """One run over a good scene and many bad ones."""

    def __init__(self, root: Path, scene_file: Write, model: Path) -> None:
        self.scenes, self.out = root / "scenes", root / "out"
        self._write(scene_file)
        self.code, self.err = in_process("predict", self.scenes, "-m", model, "-o", self.out, "--device", "cpu")
        self.report = json.loads((self.out / "report.json").read_text())

    def _write(self, write: Write) -> None:
        whole = write(self.scenes / "good.tif", values((300, 200)), compress="deflate").read_bytes()
        for percent in (99.9, 50, 2):
            (self.scenes / f"cut{percent}.tif").write_bytes(whole[: int(len(whole) * percent / 100)])
        (self.scenes / "empty.tif").write_bytes(b"")
        (self.scenes / "text.tif").write_text("not a raster\n")
        (self.scenes / "page.tif").write_text("<!DOCTYPE html><html>404</html>")
        (self.scenes / "virtual.tif").write_text('<VRTDataset rasterXSize="9" rasterYSize="9"></VRTDataset>')
        write(self.scenes / "nowhere.tif", values(), crs=None, transform=None)
        write(self.scenes / "deep.tif", values(bands=4).astype(np.uint16), photometric="MINISBLACK")
        write(self.scenes / "float.tif", values().astype(np.float32))
        write(self.scenes / "grey.tif", values(bands=1))
        write(self.scenes / "nir.tif", values(bands=4), photometric="RGB", alpha="YES")
        write(self.scenes / "cmyk.tif", values(bands=4), photometric="CMYK")
        with rasterio.open(write(self.scenes / "bgr.tif", values()), "r+") as target:
            target.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red")]
        with rasterio.open(write(self.scenes / "palette.tif", values(bands=1)), "r+") as target:
            target.write_colormap(1, {1: (1, 2, 3)})
        huge = write(self.scenes / "huge.tif", values((64, 64), bands=1), transform=None, crs=None)
        huge.write_bytes(claiming(65535))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, scene_file: Write, model: Path) -> Bad:
    return Bad(tmp_path_factory.mktemp("bad"), scene_file, model)


BAD = {
    "cut99.9": "block row",
    "cut50": "cannot be opened|block row",
    "cut2": "cannot be opened|block row",
    "empty": "is empty",
    "text": "is not a GeoTIFF",
    "page": "is a web page",
    "virtual": "is a GDAL virtual raster",
    "nowhere": "--allow-ungeoreferenced",
    "deep": "scene has 4 bands uint16, model wants 3 x uint8: use --bands and --scale LO:HI",
    "float": "float32, model wants 3 x uint8",
    "grey": "scene has 1 band uint8, model wants 3 x uint8",
    "nir": "band 4 looks like data",
    "cmyk": "CMYK|cyan|not red, green, blue",
    "bgr": "use --bands 3,2,1",
    "palette": "palette indexes",
    "huge": "scene has 1 band",
}


@pytest.mark.parametrize("name", BAD)
def test_rows_1_2_4_8_12_22_39_bad_scenes_fail_alone_with_a_reason(bad: Bad, name: str) -> None:
    scene = bad.report["scenes"][name]
    assert scene["status"] == "failed"
    assert scene["error"]["exit_code"] == 65
    message = scene["error"]["message"]
    assert message.startswith(str(bad.scenes / f"{name}.tif"))
    assert any(words in message for words in BAD[name].split("|")), message
    assert f"error: {message}\n" in bad.err
    assert not (bad.out / f"{name}.tif").exists()


def test_bad_scenes_do_not_stop_the_good_one(bad: Bad) -> None:
    assert bad.report["scenes"]["good"]["status"] == "done"
    assert (bad.out / "good.tif").exists()
    assert bad.code == 3
    assert [path.name for path in bad.out.iterdir() if path.name.startswith(".aerialseg-")] == [".aerialseg-lock"]


def claiming(size: int) -> bytes:
    """A TIFF of a few hundred bytes that claims `size` x `size` pixels of one band, in strips of one row."""
    tags = [(256, 4, size), (257, 4, size), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1)]
    tags += [(278, 4, 1), (279, 4, 0)]
    entries = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in tags
    )
    header = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little") + entries + bytes(4)
    return header.ljust(401, b"\0")


def refused(run: Run, *arguments: Any) -> tuple[int, str]:
    """Run a command that must end before torch loads; return the code and the one line on stderr."""
    loaded = "aerialseg.prediction.engine" in sys.modules
    code, out, err = run("predict", *arguments)
    assert loaded or "aerialseg.prediction.engine" not in sys.modules
    assert out == "" or out.startswith("0 of ")
    assert err.count("error: ") == 1
    return code, err


@pytest.fixture
def scene(tmp_path: Path, scene_file: Write) -> Path:
    return scene_file(tmp_path / "scenes" / "austin1.tif", values())


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".aerialseg-lock"
    }


def test_row_1_a_single_truncated_scene_ends_with_65(tmp_path: Path, scene: Path, run: Run, model: Path) -> None:
    scene.write_bytes(scene.read_bytes()[:5])
    code, err = refused(run, scene, "-m", model, "-o", tmp_path / "out")
    assert code == 65
    assert str(scene) in err


@pytest.mark.parametrize(("given", "expected"), [("missing.tif", 66), ("folder.tif", 65), ("none", 66)])
def test_row_2_nothing_usable(tmp_path: Path, run: Run, model: Path, given: str, expected: int) -> None:
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "none").mkdir()
    code, err = refused(run, tmp_path / given, "-m", model, "-o", tmp_path / "out")
    assert code == expected
    assert given in err


def test_a_process_of_its_own_ends_alike(tmp_path: Path, scene: Path, cli: Command, model: Path) -> None:
    scene.write_text("<html>")
    result = cli("predict", scene, "-m", model, "-o", tmp_path / "out", "--json")
    assert result.returncode == 65
    assert result.stderr == f"error: {scene}: is a web page, not a raster: the download went wrong\n"
    assert json.loads(result.stdout)["scenes"]["austin1"]["error"]["exit_code"] == 65


def test_row_12_max_pixels_names_the_flag(tmp_path: Path, scene: Path, run: Run, model: Path) -> None:
    code, err = refused(run, scene, "-m", model, "-o", tmp_path / "out", "--max-pixels", 5000)
    assert code == 65
    assert "80x70 is 5.6e+03 pixels, more than --max-pixels 5000" in err


def test_an_input_that_cannot_be_read_fails_alone(tmp_path: Path, scene: Path, scene_file: Write, model: Path) -> None:
    """/proc/self/mem opens as a file and gives "Input/output error": here a scene, and a side file of one."""
    scene_file(scene.with_name("austin2.tif"), values())
    scene_file(scene.with_name("austin3.tif"), values())
    scene.with_name("austin2.tif-wal").symlink_to("/proc/self/mem")
    scene.with_name("austin4.tif").symlink_to("/proc/self/mem")
    out = tmp_path / "out"
    for statuses in (["done", "failed", "done", "failed"], ["skipped", "failed", "skipped", "failed"]):
        code, err = in_process("predict", scene.parent, "-m", model, "-o", out, "--device", "cpu")
        report = json.loads((out / "report.json").read_text())["scenes"]
        assert [entry["status"] for entry in report.values()] == statuses
        assert code == 3
        assert [report[name]["error"]["exit_code"] for name in ("austin2", "austin4")] == [74, 74]
        for name in ("austin2.tif-wal", "austin4.tif"):
            assert f"error: {scene.parent}/{name}: cannot be read: Input/output error" in err
    code, err = in_process("predict", scene.with_name("austin2.tif"), "-m", model, "-o", tmp_path / "alone")
    assert code == 74
    assert not list((tmp_path / "alone").glob("*.tif"))


@pytest.mark.parametrize("place", ["a file in the way", "a file on the way", "read-only"])
def test_row_17_unwritable_outputs(tmp_path: Path, scene: Path, run: Run, model: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    out = {"a file in the way": tmp_path / "file", "a file on the way": tmp_path / "file" / "out"}.get(
        place, Path("/proc/aerialseg")
    )
    before = hashes(tmp_path)
    code, err = refused(run, scene, "-m", model, "-o", out)
    assert code == 73
    assert str(out) in err
    assert hashes(tmp_path) == before


def test_row_18_two_files_of_one_name(tmp_path: Path, scene: Path, scene_file: Write, run: Run, model: Path) -> None:
    other = scene_file(tmp_path / "other" / "AUSTIN1.TIF", values())
    code, err = refused(run, scene, other, "-m", model, "-o", tmp_path / "out")
    assert code == 2
    assert str(scene) in err
    assert str(other) in err


def test_row_19_a_name_that_is_not_utf8(tmp_path: Path, scene: Path, run: Run, model: Path) -> None:
    scene.rename(Path(os.fsdecode(os.fsencode(scene.parent) + b"/\xff.tif")))
    code, err = refused(run, scene.parent, "-m", model, "-o", tmp_path / "out")
    assert code == 65
    assert "\\udcff.tif: the file name is not UTF-8" in err


def test_row_19_a_control_character_costs_the_mosaic_one_raster(tmp_path: Path, scene_file: Write, model: Path) -> None:
    for name in ("a", "b\x01"):
        scene_file(tmp_path / "scenes" / f"{name}.tif", values((64, 64)))
    out = tmp_path / "out"
    code, err = in_process("predict", tmp_path / "scenes", "-m", model, "-o", out, "--polygons", "--device", "cpu")
    assert code == 0, err
    assert err.count("a mosaic cannot hold this name; the raster is left out") == 2, "mask and probability"
    assert "\x01" not in err
    assert "b\x01" not in (out / "mosaic.vrt").read_text()
    assert {path.name for path in out.glob("*.[tgqv]*")} >= {"a.tif", "b\x01.tif", "buildings.gpkg", "project.qgz"}


def test_a_probability_of_an_older_model_is_not_shown_with_a_new_mask(
    tmp_path: Path, scene: Path, model: Path, tiny_model: Callable[..., Path]
) -> None:
    out, pictures = tmp_path / "out", tmp_path / "pictures"
    assert in_process("predict", scene, "-m", model, "-o", out, "--probability", "--device", "cpu")[0] == 0
    code, err = in_process("preview", out, "-o", pictures)
    assert (code, "left out" in err) == (0, False)
    assert in_process("predict", scene, "-m", tiny_model(), "-o", out, "--device", "cpu")[0] == 0
    code, err = in_process("preview", out, "-o", pictures)
    assert (code, "left out" in err) == (0, True)
    buildings = tmp_path / "buildings.geojson"
    code, err = in_process("polygonize", out, "-o", buildings, "--probability", out / "probability")
    assert (code, "left out" in err) == (0, True), err
    probabilities = [part["properties"]["probability"] for part in json.loads(buildings.read_text())["features"]]
    assert set(probabilities) <= {None}


def test_row_20_links_at_final_names_are_replaced_and_never_followed(tmp_path: Path, scene: Path, model: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")
    (out / "stac").mkdir(parents=True)
    links = [out / name for name in ("austin1.tif", "austin1.tif.aux.xml", "austin1.qml", "report.json", "project.qgz")]
    for link in links:
        link.symlink_to(victim)
    options = "-m", model, "-o", out, "--device", "cpu"
    code, err = in_process("predict", scene, *options)
    assert code == 73
    assert "was not written by aerialseg" in err
    code, err = in_process("predict", scene, *options, "--overwrite")
    assert code == 0, err
    assert victim.read_text() == "mine"
    assert not any(link.is_symlink() for link in links)
    elsewhere = tmp_path / "elsewhere"  # a folder that is a link is where the user wants it
    out.rename(elsewhere)
    out.symlink_to(elsewhere)
    code, err = in_process("predict", scene, *options)
    assert code == 0, err
    assert json.loads((out / "report.json").read_text())["scenes"]["austin1"]["status"] == "skipped"


@pytest.mark.parametrize(
    "path",
    ["GTIFF_DIR:1:{}", "/vsicurl/http://127.0.0.1:9/x.tif", "http://127.0.0.1:9/x.tif", "vrt://{}", "s3://b/x.tif"],
)
def test_row_21_remote_and_driver_paths(tmp_path: Path, scene: Path, run: Run, model: Path, path: str) -> None:
    before = hashes(tmp_path)
    code, err = refused(run, path.format(scene), "-m", model, "-o", tmp_path / "out")
    assert code == 2
    assert "only local files" in err
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("how", ["same folder", "link", "case", "hard link", "model"])
def test_row_38_an_output_that_is_an_input(tmp_path: Path, scene: Path, run: Run, model: Path, how: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    source = scene
    if how == "same folder":
        out = scene.parent
    elif how == "link":
        (out / "austin1.tif").symlink_to(scene)
    elif how == "hard link":
        (out / "austin1.tif").hardlink_to(scene)
    elif how == "model":
        model = Path(shutil.copy(model, out / "austin1.tif"))
    else:
        out, source = scene.parent, scene.rename(scene.with_name("Austin1.TIF"))
    before = hashes(tmp_path)
    for extra in ((), ("--overwrite",)):
        code, err = refused(run, source, "-m", model, "-o", out, *extra)
        assert code == 2
        assert "would overwrite the input" in err
    assert hashes(tmp_path) == before


def test_row_38_a_stranger_s_file(tmp_path: Path, scene: Path, scene_file: Write, run: Run, model: Path) -> None:
    scene_file(tmp_path / "out" / "austin1.tif", values())
    before = hashes(tmp_path)
    code, err = refused(run, scene, "-m", model, "-o", tmp_path / "out")
    assert code == 73
    assert "austin1.tif: exists and was not written by aerialseg" in err
    assert hashes(tmp_path) == before


STRANGERS = ("project.qgz", "mosaic.vrt", "mosaic-EPSG-32614.vrt", "probability/mosaic.vrt", "stac/model.json")


def test_row_38_a_stranger_s_file_over_all_scenes(
    tmp_path: Path, scene: Path, scene_file: Write, run: Run, model: Path
) -> None:
    scene_file(scene.with_name("austin2.tif"), values(), crs="EPSG:32614")
    out, before = tmp_path / "out", hashes(tmp_path)
    for path in (out / name for name in STRANGERS):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        code, err = refused(run, scene.parent, "-m", model, "-o", out, "--probability")
        assert code == 73
        assert f"{path}: exists and was not written by aerialseg" in err
        assert path.read_text() == "mine"
        (out / "report.json").unlink(missing_ok=True)
        path.rename(path.with_name(f"{path.name}.kept"))
    assert {file: digest for file, digest in hashes(tmp_path).items() if not file.endswith(".kept")} == before
    for path in (out / name for name in STRANGERS):
        path.with_name(f"{path.name}.kept").rename(path)
    code, err = in_process("predict", scene.parent, "-m", model, "-o", out, "--probability", "-f")
    assert code == 0, err
    untouched = [name for name in STRANGERS if (out / name).read_text(errors="replace") == "mine"]
    assert untouched == ["mosaic.vrt", "probability/mosaic.vrt"], "two CRS have mosaics of other names"


@pytest.mark.parametrize("extra", [(), ("--overwrite",)], ids=["plain", "overwrite"])
def test_row_38_a_mosaic_of_the_scenes_is_an_input(
    tmp_path: Path, scene: Path, run: Run, model: Path, extra: tuple[str, ...]
) -> None:
    size = 'xOff="0" yOff="0" xSize="70" ySize="80"'
    source = f"<SrcRect {size}/><DstRect {size}/>"
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">scenes/austin1.tif</SourceFilename><SourceBand>{band}</SourceBand>{source}'
        "</SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    mosaic = tmp_path / "mosaic.vrt"
    mosaic.write_text(f'<VRTDataset rasterXSize="70" rasterYSize="80">{bands}</VRTDataset>')
    before = hashes(tmp_path)
    code, err = refused(run, mosaic, "-m", model, "-o", tmp_path, *extra)
    assert code == 2
    assert "would overwrite the input" in err
    assert hashes(tmp_path) == before


def test_row_30_two_runs_in_one_folder(tmp_path: Path, scene: Path, run: Run, model: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        code, err = refused(run, scene, "-m", model, "-o", tmp_path / "out")
    assert code == 73
    assert "another aerialseg run" in err


@pytest.mark.slow
def test_row_30_one_scene_claimed_twice(tmp_path: Path, scene_file: Write, model: Path) -> None:
    """Two processes share the folder and both take every scene."""
    work = Killable(tmp_path, scene_file, model)
    both = [subprocess.Popen([*work.command(work.out), "--shard", "1/1"], stderr=subprocess.PIPE) for _ in range(2)]
    ended = [(process.communicate(timeout=200)[1], process.returncode) for process in both]
    assert [code for _, code in ended] == [0, 0], ended
    for out in (work.out, tmp_path / "alone"):
        code, err = in_process(*work.command(out)[3:])
        assert code == 0, err
    twice, once = hashes(work.out), hashes(tmp_path / "alone")
    reports = {"report.json", "report-1-of-1.json"}
    assert {k: v for k, v in twice.items() if k not in reports} == {k: v for k, v in once.items() if k not in reports}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--overlap", "0.9"), "from 0 to 0.75"),
        (("--batch", "many"), "--batch many"),
        (("--batch", "0"), "--batch 0"),
        (("--bands", "a,b"), "--bands a,b"),
        (("--bands", "0,1,2"), "count from 1"),
        (("--scale", "7"), "--scale 7"),
        (("--scale", "9:1"), "LO below HI"),
        (("--device", "abacus"), "abacus"),
        (("--precision", "fp8"), "fp8"),
    ],
)
def test_nonsense_options_end_with_2(
    tmp_path: Path, scene: Path, run: Run, model: Path, options: tuple[str, str], words: str
) -> None:
    code, _, err = run("predict", scene, "-m", model, "-o", tmp_path / "out", *options)
    assert code == 2
    assert words in err


def test_row_27_cuda_without_a_card(tmp_path: Path, scene: Path, run: Run, model: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    code, _, err = run("predict", scene, "-m", model, "-o", tmp_path / "out", "--device", "cuda")
    assert code == 69
    assert "cuda" in err
    assert not (tmp_path / "out" / "austin1.tif").exists()


def test_row_27_a_card_that_cannot_be_used_is_not_replaced_by_the_processor(
    tmp_path: Path, scene: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card that works")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'NVIDIA Made-up, 470.57.02, 7.0'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code, err = in_process("predict", scene, "-m", model, "-o", tmp_path / "out")
    assert code == 69
    assert "--device cpu" in err
    assert not list((tmp_path / "out").glob("*.tif"))


LIMITED = """
import resource, sys
import aerialseg.prediction.engine, torch
from aerialseg.cli import main
torch.set_num_threads(1)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("window", "expected"), [(512, 0), (2048, 71)])
def test_row_27_out_of_memory_halves_the_batch_then_is_71(
    tmp_path: Path, scene_file: Write, model: Path, window: int, expected: int
) -> None:
    scene = scene_file(tmp_path / "scenes" / "a.tif", values((600, 600)))
    words = ["predict", scene, "-m", model, "-o", tmp_path / "out", "--device", "cpu", "--precision", "fp32"]
    command = [sys.executable, "-c", LIMITED, *map(str, [*words, "--window", window, "--batch", 8])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == expected, result.stderr
    assert "out of memory: going on with 4 windows in a batch" in result.stderr
    assert (tmp_path / "out" / "a.tif").exists() == (expected == 0)
    if expected:
        assert f"error: out of memory on cpu with one {window} px window" in result.stderr


@pytest.fixture(params=["a limit on files", "a small disk"])
def cramped(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene_file: Write
) -> Iterator[Path]:
    """An output folder in which scene a1 fits and a2 does not, though the estimate says it does."""
    scene_file(tmp_path / "scenes" / "a1.tif", values((64, 64)))
    scene_file(tmp_path / "scenes" / "a2.tif", values((500, 500)))
    monkeypatch.setattr("aerialseg.prediction.run.require_space", lambda folder, needed: None)
    out = tmp_path / "small" / "out"
    out.parent.mkdir()
    if request.param == "a limit on files":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, before[1]))
        yield out
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(out.parent)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    yield out
    subprocess.run(["umount", str(out.parent)], check=True)


def test_row_14_a_full_disk(tmp_path: Path, cramped: Path, model: Path) -> None:
    scenes, options = tmp_path / "scenes", ("-m", model, "-o", cramped, "--probability", "--device", "cpu")
    code, err = in_process("predict", scenes / "a1.tif", *options)
    assert code == 0, err
    kept = {path: path.read_bytes() for path in cramped.rglob("*.tif")}
    code, err = in_process("predict", scenes, *options)
    assert code == 74
    assert f"error: {cramped}" in err
    left = [name for name in hashes(cramped) if "a2" in name or ".aerialseg-" in name]
    assert set(left) <= {"probability/a2.tif"}  # whole, for it has its final name; the mask comes last
    assert {path: path.read_bytes() for path in kept} == kept
    statuses = json.loads((cramped / "report.json").read_text())["scenes"]
    assert {name: scene["status"] for name, scene in statuses.items()} == {"a1": "skipped", "a2": "failed"}


class Killable:
    """A run over a small scene and one that takes seconds, started and then sent signals."""

    def __init__(self, root: Path, scene_file: Write, model: Path) -> None:
        self.out, self.scenes, self.model = root / "out", root / "scenes", model
        scene_file(self.scenes / "a1.tif", values((64, 64)))
        scene_file(self.scenes / "a2.tif", values((700, 700)))

    def command(self, out: Path) -> list[str]:
        options = ["--device", "cpu", "--batch", "1", "--precision", "fp32"]
        base = [sys.executable, "-m", "aerialseg", "predict", str(self.scenes), "-m", str(self.model)]
        return [*base, "-o", str(out), *options]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(self.out), env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
        )

    def kept_bytes(self) -> int:
        """How much of the scene that is being predicted is on the disk."""
        return sum(path.stat().st_size for path in self.out.glob(".aerialseg-*.part"))

    def wait_until_busy(self, process: subprocess.Popen[str]) -> None:
        """Wait until the first scene is done and strips of the second one have been written."""
        deadline, before = time.monotonic() + 100, max(self.kept_bytes(), 5000)  # the first one has 4,096 pixels
        while not (self.out / "a1.qml").exists() or self.kept_bytes() <= before:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.slow
def test_rows_15_and_16_stopped_and_killed_runs_go_on_where_they_were(
    tmp_path: Path, scene_file: Write, model: Path
) -> None:
    work = Killable(tmp_path, scene_file, model)
    process = work.start()
    work.wait_until_busy(process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert time.monotonic() - began < 10
    assert "SIGTERM" in err
    assert not list(work.out.glob(".aerialseg-*.tif"))
    finished = (work.out / "a1.tif").read_bytes()

    process = work.start()
    work.wait_until_busy(process)
    process.kill()
    process.communicate(timeout=60)
    assert work.kept_bytes()
    assert not (work.out / "a2.tif").exists()

    code, err = in_process(*work.command(work.out)[3:])
    assert code == 0, err
    scenes = json.loads((work.out / "report.json").read_text())["scenes"]
    assert {name: scene["status"] for name, scene in scenes.items()} == {"a1": "skipped", "a2": "done"}
    assert scenes["a2"]["resumed_rows"] > 0
    assert [path.name for path in work.out.glob(".aerialseg-*")] == [".aerialseg-lock"]
    assert (work.out / "a1.tif").read_bytes() == finished

    code, err = in_process(*work.command(tmp_path / "undisturbed")[3:])
    assert code == 0, err
    resumed, straight = hashes(work.out), hashes(tmp_path / "undisturbed")
    del resumed["report.json"], straight["report.json"]  # it holds times
    assert resumed == straight


def test_a_second_run_in_place_passes_over_what_the_first_one_wrote(
    tmp_path: Path, scene_file: Write, model: Path
) -> None:
    folder, options = tmp_path / "d", ("-m", model, "--device", "cpu", "--allow-ungeoreferenced")
    scene_file(folder / "a.png", values((64, 64)), driver="PNG", crs=None, transform=None)
    for _ in range(2):  # a.tif now stands beside a.png, and would be called the same
        code, err = in_process("predict", folder, *options, "-o", folder)
        assert code == 0, err
    code, err = in_process("preview", folder)
    assert code == 0, err
    (tmp_path / "d-preview").rename(folder / "preview")
    code, err = in_process("predict", folder, *options, "-o", folder)
    assert code == 0, err
    assert list(json.loads((folder / "report.json").read_text())["scenes"]) == ["a"]


def test_help_is_quick_and_shows_examples(cli: Command) -> None:
    began = time.monotonic()
    result = cli("predict", "--help")
    assert time.monotonic() - began < 5
    assert "Examples:" in result.stdout
    assert "--allow-ungeoreferenced" in result.stdout
