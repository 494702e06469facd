"""A user's mosaic and the fault list, rows 21 and 22: what is more than that ends the command and touches nothing.

One kind of each is tried here with the installed command; all of them, faster, in tests/geo/test_mosaic.py.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    Command = Callable[..., subprocess.CompletedProcess[str]]

SIDE = 128


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """Count requests on a local port."""
    server, requests = socket.create_server(("127.0.0.1", 0)), []

    def answer() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(1)
                requests.append(connection.recv(1000))

    threading.Thread(target=answer, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}", requests
    server.close()


def mosaic_of(*names: str, more: str = "", attributes: str = "") -> str:
    bands = []
    for band in (1, 2, 3):
        sources = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>{band}</SourceBand>'
            f'<SrcRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/>'
            f'<DstRect xOff="{SIDE * index}" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/></SimpleSource>'
            for index, name in enumerate(names)
        )
        bands.append(f'<VRTRasterBand dataType="Byte" band="{band}"{attributes}>{sources}{more}</VRTRasterBand>')
    return f'<VRTDataset rasterXSize="{SIDE * len(names)}" rasterYSize="{SIDE}">{"".join(bands)}</VRTDataset>'


@pytest.fixture
def data(tmp_path: Path, scene_file: Callable[..., Path], mask_file: Callable[..., Path]) -> Path:
    """Two scenes that touch, with masks, and a file beside their folder that nobody may read."""
    for index, name in enumerate(("west", "east")):
        grid = (0.3, 0.0, 616000 + SIDE * 0.3 * index, 0.0, -0.3, 3347000.0)
        scene_file(tmp_path / f"data/scenes/{name}.tif", seed=index, transform=grid)
        mask_file(tmp_path / f"data/masks/{name}.tif", transform=grid)
    scene_file(tmp_path / "secret.tif", seed=7)
    return tmp_path / "data"


HOSTILE = {
    "outside": (mosaic_of("west.tif", "../../secret.tif"), "outside its own folder"),
    "link": (mosaic_of("west.tif", "link.tif"), "outside its own folder"),
    "request": (mosaic_of("west.tif", "/vsicurl/http://{}/x.tif"), "only local files are read"),
    "entity": ('<!DOCTYPE a [<!ENTITY x SYSTEM "http://{}/x">]>' + mosaic_of("west.tif"), "document type or entities"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_more_than_a_mosaic_is_65_and_nothing_is_asked_or_read(
    data: Path, cli: Command, tree_hashes: Callable[[Path], dict[str, str]], case: str
) -> None:
    text, said = HOSTILE[case]
    path = data / "scenes/mosaic.vrt"
    (data / "scenes/link.tif").symlink_to(data / "../secret.tif")
    (data / "scenes/inner.vrt").write_text(mosaic_of("east.tif"))
    with listening() as (address, requests):
        path.write_text(text.replace("{}", address))
        before = tree_hashes(data.parent)
        (data.parent / "secret.tif").chmod(0)  # a read would fail otherwise than expected, but for root
        result = cli("tile", path, "--masks", data / "masks", "-o", data.parent / "tiles", "--size", 64)
        (data.parent / "secret.tif").chmod(0o644)
        assert requests == []
    assert result.returncode == 65, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"error: {path}: ")
    assert said in line
    assert tree_hashes(data.parent) == before


def test_a_plain_mosaic_is_tiled_like_its_scenes(data: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    path = data / "scenes/mosaic.vrt"
    path.write_text(mosaic_of("west.tif", "east.tif"))
    found = []
    for name, given in (("mosaic", [path]), ("files", [data / "scenes/west.tif", data / "scenes/east.tif"])):
        out = data.parent / name
        code, _, stderr = run("tile", *given, "--masks", data / "masks", "-o", out, "--size", 64)
        assert code == 0, stderr
        tiles = sorted(tile.relative_to(out) for tile in out.rglob("*.tif"))
        found.append({tile: (out / tile).read_bytes() for tile in tiles})
    assert len(found[0]) > 8
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_plain_mosaic_is_predicted_as_its_scenes(
    data: Path, tiny_model: Callable[..., Path], run: Callable[..., tuple[int, str, str]]
) -> None:
    import rasterio

    path = data / "scenes/mosaic.vrt"
    path.write_text(mosaic_of("west.tif", "east.tif"))
    out, model = data.parent / "out", tiny_model()
    code, _, stderr = run("predict", path, data / "scenes", "-m", model, "-o", out, "--device", "cpu")
    assert code == 0, stderr
    masks = {file.name for file in out.glob("*.tif")}
    assert masks == {"west.tif", "east.tif"}
    for name in masks:
        with rasterio.open(out / name) as mask, rasterio.open(data / "scenes" / name) as scene:
            assert (mask.transform, mask.shape) == (scene.transform, scene.shape)
            assert set(np.unique(mask.read(1))) <= {0, 1}


def test_a_remote_mosaic_is_a_usage_error(data: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    for given in ("/vsicurl/http://127.0.0.1:9/m.vrt", "vrt://m.vrt", "http://127.0.0.1:9/m.vrt"):
        code, _, stderr = run("tile", given, "--masks", data / "masks", "-o", data.parent / "tiles")
        assert code == 2
        assert "only local files are read" in stderr
