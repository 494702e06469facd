"""Broken and hostile rasters: rows 1, 2, 12, 14, 19, 21 and 22 of the fault list, at the raster layer.

The commands' own fault tests run the same files through a subprocess; here every codec and every hole is tried.
"""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

import aerialseg.geo
from aerialseg.errors import AerialsegError, BadDataError, NoInputError, UsageError
from aerialseg.geo.inspection import Access, inspect_scene
from aerialseg.geo.opening import open_raster
from aerialseg.geo.raster import read_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANYWHERE = Access(allow_ungeoreferenced=True)
FORMATS = {
    "striped": {},
    "striped-lzw": {"compress": "lzw"},
    "tiled-deflate": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"},
    "tiled-zstd": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "zstd"},
    "tiled-jpeg": {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "jpeg", "photometric": "ycbcr"},
    "cog": {"driver": "COG"},
    "png": {"driver": "PNG"},
    "jpeg": {"driver": "JPEG"},
    "progressive-jpeg": {"driver": "JPEG", "progressive": True},
    "jpeg2000": {"driver": "JP2OpenJPEG"},
}


def read_all(path: Path) -> np.ndarray:
    source = inspect_scene(path, access=ANYWHERE)
    with open_raster(path) as dataset:
        return read_window(dataset, source, Window(0, 0, dataset.width, dataset.height))[0]


def one_line_about(path: Path, error: AerialsegError) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# --- row 1: truncated ---


@pytest.mark.parametrize("share", [0.999, 0.5, 0.02])
@pytest.mark.parametrize("format_", FORMATS)
def test_a_truncated_scene_fails_and_says_where(
    tmp_path: Path, scene_file: Callable[..., Path], format_: str, share: float
) -> None:
    path = scene_file(tmp_path / "scene.tif", size=(256, 256), **FORMATS[format_])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadDataError) as caught:
        read_all(path)
    text = one_line_about(path, caught.value)
    assert "copy it again" in text
    if FORMATS[format_].get("driver", "GTiff") in ("GTiff", "COG"):
        assert "block row" in text
        assert "TIFF" in text, "the codec's own message"
        assert "rows 0-255" in text
    else:
        assert any(word in text for word in ("libjpeg", "libpng", "Tile part"))


def test_a_tiff_that_lost_its_tags_is_damaged_though_its_pixels_are_whole(
    tmp_path: Path, scene_file: Callable[..., Path]
) -> None:
    """GDAL warns and goes on, and nodata or the CRS may be what was lost."""
    path = scene_file(tmp_path / "scene.tif", size=(256, 256), compress="deflate")
    with rasterio.open(path, "r+") as dataset:  # longer tags move to the end of the file
        dataset.update_tags(**{f"KEY{index}": "x" * 100 for index in range(20)})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(BadDataError, match=r"IO error.*GDALMetadata.*copy it again"):
        read_all(path)


@pytest.mark.parametrize("format_", ["tiled-deflate", "png", "striped-lzw"])
def test_flipped_bytes_are_an_error_or_change_pixels_but_never_crash(
    tmp_path: Path, scene_file: Callable[..., Path], format_: str
) -> None:
    path = scene_file(tmp_path / "scene.tif", size=(128, 128), **FORMATS[format_])
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(content)
        damaged[random.integers(len(content) // 20, len(content))] ^= 0x55
        path.write_bytes(bytes(damaged))
        try:
            assert read_all(path).shape == (3, 128, 128)
        except AerialsegError as error:
            one_line_about(path, error)


# --- row 2: not rasters ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"austin, 3, 0.3 m\n", "is not a GeoTIFF, JPEG 2000, PNG or JPEG"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (b"ncols 2\nnrows 2\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n3 4\n", "is not a GeoTIFF"),
        (b"P5 2 2 255\n1234", "is not a GeoTIFF"),
        (b"II*\0" + bytes(200), "is not a GeoTIFF|damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "is not a GeoTIFF|damaged"),
        (b"<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>", "is a GDAL virtual raster"),
    ],
)
def test_files_that_are_no_rasters_are_told_apart(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "scene.tif"
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=words) as caught:
        inspect_scene(path)
    one_line_about(path, caught.value)


def test_special_files_are_refused_without_opening_them(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.tif"
    os.mkfifo(pipe)
    with pytest.raises(BadDataError, match="not a regular file"):
        inspect_scene(pipe)
    with pytest.raises(NoInputError):
        inspect_scene(tmp_path / "no.tif")


# --- row 19: names ---


@pytest.mark.parametrize(
    "name",
    ["two words.tif", "größe 图像.tif", "a#b%20c?d&e.tif", "it's \"quoted\".tif", "new\nline.tif", "-dash.tif",
     "x!y.tif", "a:b.tif", "GTIFF_DIR:1:x.tif", "[1]*.tif", f"{'n' * 251}.tif", "tab\t.tif"],
)  # fmt: skip
def test_any_utf8_name_is_read(
    tmp_path: Path, scene_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.move(scene_file(tmp_path / "plain.tif"), tmp_path / name)
    expected = read_all(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(read_all(Path(name)), expected)
    Path(name).write_bytes(b"")
    with pytest.raises(BadDataError) as caught:
        inspect_scene(Path(name))
    assert str(caught.value).isprintable()


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tif")
    shutil.move(scene_file(tmp_path / "plain.tif"), name)
    with pytest.raises(BadDataError, match="not UTF-8") as caught:
        inspect_scene(Path(name))
    assert str(caught.value).isprintable()


# --- rows 21 and 22: what must not be reached ---


@contextmanager
def counting_server() -> Iterator[tuple[str, list[int]]]:
    """Listen on this machine and count connections; yields the address and the list that grows."""
    hits: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            hits.append(1)
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}", hits
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def vrt(source: str, size: int, bands: int = 3) -> str:
    band = (
        '<VRTRasterBand dataType="Byte" band="{}"><SimpleSource><SourceFilename relativeToVRT="0">{}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    inside = "".join(band.format(index + 1, source) for index in range(bands))
    return f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}">{inside}</VRTDataset>'


def raw_vrt(source: Path, size: int) -> str:
    return (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><VRTRasterBand dataType="Byte" band="1"'
        f' subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        "</VRTRasterBand></VRTDataset>"
    )


def wms(address: str) -> str:
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>http://{address}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>'
        "<DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>128</UpperLeftY><LowerRightX>128</LowerRightX><LowerRightY>0"
        "</LowerRightY><TileLevel>0</TileLevel><TileCountX>1</TileCountX><TileCountY>1</TileCountY></DataWindow>"
        "<Projection>EPSG:26914</Projection><BlockSizeX>128</BlockSizeX><BlockSizeY>128</BlockSizeY><BandsCount>1"
        "</BandsCount></GDAL_WMS>"
    )


def overview_elsewhere(target: str) -> str:
    return f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{target}</MDI></Metadata></PAMDataset>'


MASK_FLAGS = '<PAMDataset><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata></PAMDataset>'


@pytest.fixture
def hostile(tmp_path: Path, scene_file: Callable[..., Path]) -> Iterator[tuple[Path, str, list[int], Path]]:
    """Yield a folder, a server's address, its hits, and a file whose bytes must not be read."""
    secret = scene_file(tmp_path / "elsewhere/secret.tif", np.full((3, 128, 128), 77, np.uint8), seed=9)
    folder = tmp_path / "scenes"
    folder.mkdir()
    with counting_server() as (address, hits):
        yield folder, address, hits, secret


def test_virtual_rasters_under_another_name_are_refused(hostile: tuple[Path, str, list[int], Path]) -> None:
    folder, address, hits, secret = hostile
    contents = {
        "remote.tif": vrt(f"/vsicurl/http://{address}/x.tif", 128),
        "local.tif": vrt(str(secret), 128),
        "raw.tif": raw_vrt(secret, 128),
        "wms.tif": wms(address),
        "late.tif": f"{' ' * 300}{vrt(str(secret), 128)}",
        "mosaic.vrt": vrt(str(secret), 128),
    }
    for name, content in contents.items():
        path = folder / name
        path.write_text(content)
        with pytest.raises(BadDataError):
            inspect_scene(path)
    assert not hits


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG"])
def test_files_beside_a_scene_cannot_bring_in_others(
    hostile: tuple[Path, str, list[int], Path], scene_file: Callable[..., Path], driver: str
) -> None:
    folder, address, hits, secret = hostile
    path = scene_file(folder / "scene.tif", np.full((3, 128, 128), 200, np.uint8), driver=driver)
    expected = read_all(path)
    side = f"{path.name}.aux.xml"
    original = (folder / side).read_text() if (folder / side).exists() else None
    attacks = [
        {".ovr": vrt(f"/vsicurl/http://{address}/x.tif", 64)},
        {".ovr": vrt(str(secret), 64)},
        {".ovr": wms(address)},
        {".aux.xml": overview_elsewhere(f"/vsicurl/http://{address}/x.tif")},
        {".aux.xml": overview_elsewhere(str(secret))},
    ]
    for attack in attacks:
        for suffix, content in attack.items():
            Path(f"{path}{suffix}").write_text(content)
        source = inspect_scene(path, access=ANYWHERE)
        assert ".ovr" not in attack or any("is ignored" in line for line in source.warnings)
        with open_raster(path) as dataset:
            assert np.array_equal(read_window(dataset, source, Window(0, 0, 128, 128))[0], expected)
            assert dataset.overviews(1) == []
            assert (dataset.read(1, out_shape=(32, 32)) > 190).all()
            assert (dataset.dataset_mask() == 255).all()
        for suffix in attack:
            Path(f"{path}{suffix}").unlink()
        if original is not None:
            (folder / side).write_text(original)
    assert not hits


@pytest.mark.parametrize("driver", ["GTiff", "PNG"])
def test_a_mask_file_that_is_no_tiff_is_refused(
    hostile: tuple[Path, str, list[int], Path], scene_file: Callable[..., Path], driver: str
) -> None:
    folder, address, hits, secret = hostile
    path = scene_file(folder / "scene.tif", driver=driver)
    for content in (wms(address), vrt(str(secret), 128, 1), "", "text"):
        Path(f"{path}.msk").write_text(content)
        Path(f"{path}.msk.aux.xml").write_text(MASK_FLAGS)
        with pytest.raises(BadDataError, match=r"scene\.tif\.msk: is not a TIFF mask"):
            inspect_scene(path)
    assert not hits


def test_the_holes_are_real_and_the_oracle_sees_them(hostile: tuple[Path, str, list[int], Path]) -> None:
    """Without the guards the same files do make requests; otherwise the tests above would prove nothing."""
    folder, address, hits, _ = hostile
    path = folder / "remote.tif"
    path.write_text(vrt(f"/vsicurl/http://{address}/x.tif", 128))
    script = "import rasterio, sys\ntry: rasterio.open(sys.argv[1]).read()\nexcept Exception: pass"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("GDAL_", "CPL_"))}
    subprocess.run([sys.executable, "-c", script, path], env={**clean, "GDAL_HTTP_TIMEOUT": "2"}, check=True)
    assert hits


def test_the_allow_list_holds_when_rasterio_was_used_before(hostile: tuple[Path, str, list[int], Path]) -> None:
    """A notebook may have opened files first; drivers are registered only once and the skip then comes too late."""
    folder, _, _, secret = hostile
    path = folder / "local.tif"
    path.write_text(vrt(str(secret), 128))
    script = """
import os, sys
os.environ.pop("GDAL_SKIP")
import rasterio
rasterio.open(sys.argv[1]).close()
from pathlib import Path
from aerialseg.errors import BadDataError
from aerialseg.geo.inspection import inspect_scene
with rasterio.Env() as env:
    print("VRT" in env.drivers())
try:
    inspect_scene(Path(sys.argv[2]))
except BadDataError:
    print("refused")
"""
    command = [sys.executable, "-c", script, secret, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "refused"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", "VRT OGR_VRT"), ("PDF VRT", "PDF VRT OGR_VRT"), ("PDF,ESRI Shapefile", "PDF,ESRI Shapefile,VRT,OGR_VRT")],
)
def test_the_users_own_skipped_drivers_are_kept_and_none_is_named_twice(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    monkeypatch.setenv("GDAL_SKIP", given)
    for _ in range(2):  # the second time stands for a child process that inherits the variable
        importlib.reload(aerialseg.geo)
        assert os.environ["GDAL_SKIP"].startswith(expected)
        assert os.environ["GDAL_SKIP"].count("WCS") == 1


def test_remote_and_driver_paths_touch_nothing(
    hostile: tuple[Path, str, list[int], Path], monkeypatch: pytest.MonkeyPatch, tree_hashes: Callable[..., Any]
) -> None:
    folder, address, hits, secret = hostile
    monkeypatch.chdir(secret.parent)
    before = tree_hashes(secret.parent)
    for text in (
        "GTIFF_DIR:1:secret.tif", "gtiff_dir:1:secret.tif", "GTIFF_RAW:secret.tif", "vrt://secret.tif",
        f"/vsicurl/http://{address}/x.tif", f"//vsicurl/http://{address}/x.tif", f"/tmp/../vsicurl/http://{address}/x",
        f"http://{address}/x.tif", f"http:/{address}/x.tif", "s3://bucket/x.tif", "zip://secret.zip!x.tif",
        "/vsimem/x.tif", "JPEG_SUBFILE:Q50,0,100:secret.tif", f"WMS:http://{address}/wms",
    ):  # fmt: skip
        for path in (Path(text), folder / text if not text.startswith("/") else Path(text)):
            with pytest.raises((UsageError, NoInputError)) as caught:
                inspect_scene(path)
            assert path != Path(text) or isinstance(caught.value, UsageError)
    assert not hits
    assert tree_hashes(secret.parent) == before


# --- row 14: disk full ---

WRITING = """
import sys
from pathlib import Path
import numpy as np
from affine import Affine
from rasterio.crs import CRS
from aerialseg.errors import AerialsegError
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.writing import BandMeaning, write_cog, write_geotiff

what, folder = sys.argv[1], Path(sys.argv[2])
noise = np.random.default_rng(0).integers(0, 255, (1536, 1536), dtype=np.uint8)
box = GeoBox(1536, 1536, Affine(0.3, 0, 6e5, 0, -0.3, 3e6), CRS.from_epsg(26914))
limit = int(sys.argv[3])

def limited():
    if limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def strips():
    for row in range(0, 1536, 256):
        yield noise[row : row + 256]

limited()
try:
    if what == "tile":
        write_geotiff(folder / "out.tif", noise, box)
    else:
        write_cog(folder / "out.tif", box, strips, BandMeaning(255))
except AerialsegError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def write_in_subprocess(what: str, folder: Path, limit: int = 0) -> subprocess.CompletedProcess[str]:
    (folder / "out.tif").write_text("an older result")
    return subprocess.run(
        [sys.executable, "-c", WRITING, what, folder, str(limit)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("what", "limit"), [("tile", 2_000_000), ("cog", 2_000_000), ("cog", 2_600_000)])
def test_a_file_that_cannot_grow_is_never_given_its_name(tmp_path: Path, what: str, limit: int) -> None:
    done = write_in_subprocess(what, tmp_path, limit)  # a plain copy takes 2.4 MB, the finished file over 3 MB
    assert done.returncode == 74, done.stderr
    assert "a quota or a limit on files is reached" in done.stdout or "writing failed" in done.stdout
    assert (tmp_path / "out.tif").read_text() == "an older result"
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


@pytest.fixture(params=["2m", "4m"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_says_how_much_is_needed(small_disk: Path) -> None:
    done = write_in_subprocess("cog", small_disk)
    assert done.returncode == 74, done.stderr
    assert f"no space on {small_disk}: about" in done.stdout
    assert " are needed, " in done.stdout
    assert (small_disk / "out.tif").read_text() == "an older result"
    assert [path.name for path in small_disk.iterdir()] == ["out.tif"]


# --- row 12: memory ---


def test_reading_a_window_of_a_large_scene_costs_the_window(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    profile = {"driver": "GTiff", "height": 40_000, "width": 40_000, "count": 3, "dtype": "uint8", "sparse_ok": True}
    place = {"crs": "EPSG:26914", "transform": rasterio.Affine(0.3, 0, 6e5, 0, -0.3, 3e6)}
    with rasterio.open(path, "w", tiled=True, blockxsize=512, blockysize=512, nodata=0, **profile, **place):
        pass
    source = inspect_scene(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_raster(path) as dataset:
        for place_ in range(0, 39_000, 3_000):
            read_window(dataset, source, Window(place_, place_, 512, 512))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 160_000, f"{grown} kB: the block cache is 64 MB"
