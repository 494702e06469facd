"""Mosaics that are written here: what they hold, what is left out, and that GDAL's programs read the parts' pixels."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from small_run import HEIGHT, WIDTH, grid_of, labels_of, write_entry, write_run

from aerialseg.errors import BadDataError, OutputError
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.vrt import MosaicPart, compose_mosaics, mosaic_sources
from aerialseg.prediction.exports import write_mosaics

if TYPE_CHECKING:
    from aerialseg.prediction.exports import Entry

CUSTOM = "+proj=tmerc +lat_0=47.5 +lon_0=16.3 +k=0.9999 +x_0=1000 +y_0=-5000000 +ellps=bessel +units=m +no_defs"


def parts_of(entries: list[Entry]) -> list[MosaicPart]:
    return [MosaicPart.of(entry.mask) for entry in entries]


def mosaics_of(root: Path, entries: list[Entry]) -> tuple[list[str], list[str]]:
    """Return the names of the mosaics that stand there after writing, and what was said."""
    said: list[str] = []
    written = write_mosaics(root / "out", parts_of(entries), "mask", said.append)
    assert {mosaic.path for mosaic in written} == set((root / "out").glob("mosaic*.vrt"))
    return [mosaic.path.name for mosaic in written], said


def test_a_mosaic_names_every_raster_at_its_place(tmp_path: Path) -> None:
    entries = write_run(tmp_path)
    assert mosaics_of(tmp_path, entries[::-1]) == (["mosaic.vrt"], [])
    root = ElementTree.parse(tmp_path / "out/mosaic.vrt").getroot()
    assert (root.get("rasterXSize"), root.get("rasterYSize")) == (str(3 * WIDTH), str(3 * HEIGHT))
    band = root.find("VRTRasterBand")
    assert [item.text for item in band.iter("Category")] == ["background", "building"]
    assert [tuple(entry.attrib.values()) for entry in band.iter("Entry")] == [("0",) * 4, ("230", "57", "70", "255")]
    assert band.findtext("NoDataValue") == "255"
    for index, (entry, source) in enumerate(zip(entries, [*band.iter("ComplexSource")][::-1], strict=True)):
        name = source.find("SourceFilename")
        assert name.get("relativeToVRT") == "1"
        assert (tmp_path / "out" / name.text) == entry.mask
        place = source.find("DstRect")
        assert (place.get("xOff"), place.get("yOff")) == (str(index % 3 * WIDTH), str(index // 3 * HEIGHT))


def test_a_mosaic_of_ours_is_one_that_we_understand(tmp_path: Path) -> None:
    entries = write_run(tmp_path)
    mosaics_of(tmp_path, entries)
    assert list(mosaic_sources(tmp_path / "out/mosaic.vrt")) == [entry.mask for entry in entries]


def test_one_mosaic_for_each_crs_and_stale_ones_go(tmp_path: Path) -> None:
    first = [write_entry(tmp_path, f"a{i}", i) for i in range(2)]
    assert mosaics_of(tmp_path, first)[0] == ["mosaic.vrt"]
    other = write_entry(tmp_path, "b", 0, crs="EPSG:26915")
    custom = write_entry(tmp_path, "c", 0, crs=CUSTOM)
    names, said = mosaics_of(tmp_path, [*first, other, custom])
    assert names[:2] == ["mosaic-EPSG-26914.vrt", "mosaic-EPSG-26915.vrt"]
    assert names[2].startswith("mosaic-CRS-")
    assert said == []
    assert mosaics_of(tmp_path, first)[0] == ["mosaic.vrt"]


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    entries = [write_entry(tmp_path, f"a{i}", i) for i in range(2)]
    coarse = write_entry(tmp_path, "coarse", 2, transform=grid_of(2, 0.5))
    turned = write_entry(tmp_path, "turned", 3, transform=(0.2, 0.1, 616000, 0.1, -0.2, 3347000))
    upside = write_entry(tmp_path, "upside", 4, transform=(0.3, 0, 616000, 0, 0.3, 3346000))
    bare = write_entry(tmp_path, "bare", 5, crs=None)
    names, said = mosaics_of(tmp_path, [*entries, coarse, turned, upside, bare])
    assert names == ["mosaic.vrt"]
    assert list(mosaic_sources(tmp_path / "out/mosaic.vrt")) == [entry.mask for entry in entries]
    assert [line.split(":")[0].rsplit("/", 1)[-1] for line in said] == [
        "turned.tif",
        "bare.tif",
        "coarse.tif and 1 more",
    ]
    assert "rotated" in said[0]
    assert "width is 0.5, most are 0.3" in said[2]


@pytest.mark.parametrize("bad", ["\x01", "\x1b", "\ufffe"])
def test_a_name_that_xml_cannot_hold_is_left_out_and_said(tmp_path: Path, bad: str) -> None:
    entries = [write_entry(tmp_path, name, index) for index, name in enumerate(("a", f"b{bad}", "c"))]
    names, said = mosaics_of(tmp_path, entries)
    assert names == ["mosaic.vrt"]
    assert list(mosaic_sources(tmp_path / "out/mosaic.vrt")) == [entries[0].mask, entries[2].mask]
    assert len(said) == 1
    assert "a mosaic cannot hold this name" in said[0]
    assert mosaics_of(tmp_path, entries[1:2])[0] == []


def test_scenes_off_the_grid_are_moved_to_it_and_far_apart_ones_are_not_joined(tmp_path: Path) -> None:
    near = [
        write_entry(tmp_path, "a", 0),
        write_entry(tmp_path, "b", 1, transform=(0.3, 0, 616036.1, 0, -0.3, 3347000)),
    ]
    _, said = mosaics_of(tmp_path, near)
    assert len(said) == 1
    assert "0.33 px off" in said[0]
    ends = [(1e-5, 0, x, 0, -1e-5, 0) for x in (-179, 179)]
    far = [write_entry(tmp_path, f"c{i}", 0, transform=end, crs="EPSG:4326") for i, end in enumerate(ends)]
    names, said = mosaics_of(tmp_path, far)
    assert names == ["mosaic.vrt"]  # 35.8 million columns are not too many
    huge = write_entry(tmp_path, "d", 0, transform=(1e-7, 0, -179, 0, -1e-7, 0), crs="EPSG:4326")
    end = write_entry(tmp_path, "e", 0, transform=(1e-7, 0, 179, 0, -1e-7, 0), crs="EPSG:4326")
    assert mosaics_of(tmp_path, [huge, end])[0] == []


def test_equal_parts_give_equal_bytes_and_an_edited_mosaic_stays(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b"])
    mosaics_of(tmp_path, entries)
    path = tmp_path / "out/mosaic.vrt"
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert mosaics_of(tmp_path, entries)[1] == []
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, stamp)
    path.write_bytes(before.replace(b"230", b"231"))
    _, said = mosaics_of(tmp_path, entries)
    assert "stays as it is" in said[0]
    assert b"231" in path.read_bytes()
    path.write_text("<VRTDataset/>")
    with pytest.raises(OutputError, match="not written by aerialseg"):
        mosaics_of(tmp_path, entries)


def test_no_raster_gives_no_mosaic(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert mosaics_of(tmp_path, []) == ([], [])


@pytest.mark.gdal
@pytest.mark.parametrize("upright", [True, False])
def test_gdal_reads_the_pixels_of_the_parts(tmp_path: Path, upright: bool) -> None:
    if shutil.which("gdal_translate") is None:
        pytest.skip("needs Debian's gdal-bin")
    names = ("plain", "ünïcode 日本", "hash#1 100%25", "quo'te\"d", "-dash", "sub dir/x", "amp&<lt>")
    step = -0.3 if upright else 0.3
    entries = [
        write_entry(tmp_path, name, i, transform=(0.3, 0, 616000 + i % 3 * 36, 0, step, 3347000 + i // 3 * 100 * step))
        for i, name in enumerate(names)
    ]
    mosaics_of(tmp_path, entries[::-1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GDAL_", "OSR_"))}
    flat = tmp_path / "flat.tif"
    command = ["gdal_translate", "-q", "mosaic.vrt", flat]
    subprocess.run(command, check=True, cwd=tmp_path / "out", env=environment)
    expected = np.full((3 * HEIGHT, 3 * WIDTH), 255, np.uint8)
    for index in range(len(names)):
        row, col = index // 3 * HEIGHT, index % 3 * WIDTH
        expected[row : row + HEIGHT, col : col + WIDTH] = labels_of(index)
    with rasterio.open(flat) as joined:
        assert np.array_equal(joined.read(1), expected)
        assert joined.crs == "EPSG:26914"
        assert joined.transform[:6] == pytest.approx((0.3, 0, 616000, 0, step, 3347000))


@pytest.mark.gdal
def test_a_mosaic_into_which_gdal_wrote_statistics_is_still_ours(tmp_path: Path) -> None:
    entries = write_run(tmp_path, ["a", "b", "amp&<lt>"])
    mosaics_of(tmp_path, entries[:2])
    path = tmp_path / "out/mosaic.vrt"
    before = path.read_bytes()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GDAL_", "OSR_"))}
    subprocess.run(["gdalinfo", "-stats", path], check=True, env=environment, stdout=subprocess.DEVNULL)
    measured = path.read_bytes()
    assert b"STATISTICS_MEAN" in measured + b"".join(p.read_bytes() for p in path.parent.glob("*.vrt.aux.xml"))
    assert mosaics_of(tmp_path, entries[:2]) == (["mosaic.vrt"], [])
    assert path.read_bytes() == before
    path.write_bytes(measured.replace(b'c1="230"', b'c1="231"'))
    _, said = mosaics_of(tmp_path, entries)
    assert "stays as it is" in said[0]


@pytest.mark.gdal
def test_where_a_raster_has_no_data_the_one_below_shows(tmp_path: Path) -> None:
    below = write_entry(tmp_path, "a", 0)
    above = write_entry(tmp_path, "b", 3, transform=(0.3, 0.0, 616000 + 30 * 0.3, 0.0, -0.3, 3347000.0))
    mosaics_of(tmp_path, [below, above])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GDAL_", "OSR_"))}
    flat = tmp_path / "flat.tif"
    subprocess.run(["gdal_translate", "-q", tmp_path / "out/mosaic.vrt", flat], check=True, env=environment)
    with rasterio.open(flat) as joined:
        found = joined.read(1)
    upper, lower = (np.full((HEIGHT, WIDTH + 30), 255, np.uint8) for _ in range(2))
    upper[:, 30:], lower[:, :-30] = labels_of(3), labels_of(0)
    assert np.array_equal(found, np.where(upper == 255, lower, upper))
    assert (found[:10, 30:50] == 0).all(), "the corner where the upper one has no data"


def test_a_raster_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0")
    with pytest.raises(BadDataError, match=r"broken\.tif"):
        MosaicPart.of(broken)


def test_map_tiles_whose_pixels_grow_towards_the_equator_are_one_mosaic(tmp_path: Path) -> None:
    """A web map's tiles in degrees: from row to row their height differs by 6e-6, 0.0015 px over a tile."""
    across, said = 360 / 2**19, list[str]()
    parts = []
    for y in range(220243, 220247):
        north, south = (np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * (y + k) / 2**19)))) for k in (0, 1))
        for x in (386697, 386698):
            grid = Affine(across / 256, 0, x * across - 180, 0, (south - north) / 256, north)
            box = GeoBox(256, 256, grid, CRS.from_epsg(4326))
            parts.append(MosaicPart(tmp_path / f"{x}-{y}.tif", box, (256, 256), 1.0))
    (mosaic,) = compose_mosaics(tmp_path, parts, "mask", said.append)
    assert len(mosaic.parts) == 8 and said == []


def test_what_has_other_pixels_is_said_in_one_line_with_the_number_that_differs(tmp_path: Path) -> None:
    said = list[str]()
    parts = []
    for index, size in enumerate((0.3, 0.3, 0.3, 0.3003, 0.3003)):
        grid = Affine(size, 0, 600000 + 30 * index, 0, -0.3, 3e6)
        box = GeoBox(100, 100, grid, CRS.from_epsg(26914))
        parts.append(MosaicPart(tmp_path / f"{index}.tif", box, (64, 64), 1.0))
    (mosaic,) = compose_mosaics(tmp_path, parts, "mask", said.append)
    assert len(mosaic.parts) == 3 and len(said) == 1
    assert "3.tif and 1 more: its pixels' width is 0.3003, most are 0.3" in said[0]
