"""A user's plain mosaic is read as its scenes; everything that is more than that is refused unread."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aerialseg.errors import BadDataError, NoInputError, UsageError
from aerialseg.geo import vrt as mosaic
from aerialseg.geo.scenes import find_scenes
from aerialseg.geo.vrt import mosaic_sources

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = "<VRTDataset rasterXSize='240' rasterYSize='100'>"
FILES = ("west.tif", "east.tif")


def source(
    name: str, col: int, *, band: int | str = 1, tag: str = "SimpleSource", relative: int = 1, more: str = ""
) -> str:
    return (
        f'<{tag}><SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>{band}</SourceBand>'
        '<SourceProperties RasterXSize="120" RasterYSize="100" DataType="Byte" BlockXSize="120" BlockYSize="22"/>'
        '<SrcRect xOff="0" yOff="0" xSize="120" ySize="100"/>'
        f'<DstRect xOff="{col}" yOff="0" xSize="120" ySize="100"/>{more}</{tag}>'
    )


def band(number: int, *sources: str, more: str = "", attributes: str = "") -> str:
    inside = "".join(sources) or "".join(source(name, 120 * i, band=number) for i, name in enumerate(FILES))
    return f'<VRTRasterBand dataType="Byte" band="{number}"{attributes}>{more}{inside}</VRTRasterBand>'


def dataset(*parts: str, root: str = ROOT) -> str:
    return f"{root}{''.join(parts)}</VRTDataset>"


def plain(more: str = "", root: str = ROOT) -> str:
    placed = "<SRS>whatever</SRS><GeoTransform>1,2,3,4,5,6</GeoTransform>"
    return dataset(placed, band(1), band(2), band(3), more, root=root)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "scenes"
    (inside / "sub").mkdir(parents=True)
    for name in (*FILES, "sub/south.tif", "../secret.tif"):
        (inside / name).write_bytes(b"")
    return inside


def sources_of(folder: Path, text: str | bytes) -> list[str]:
    path = folder / "mosaic.vrt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [str(file.relative_to(folder)) for file in mosaic_sources(path)]


def complex_source(more: str) -> str:
    return source("west.tif", 0, tag="ComplexSource", more=more)


MASKS = source("west.tif", 0, band="mask,1") + source("east.tif", 120, band="mask,1")
ALPHA = "".join(
    source(name, 120 * i, tag="ComplexSource", more="<ScaleOffset>255</ScaleOffset><ScaleRatio>0</ScaleRatio>")
    for i, name in enumerate(FILES)
)
TURNED = band(2, source("east.tif", 120, band=2), source("west.tif", 0, band=2))
NODATA = band(1, complex_source("<NODATA>0</NODATA>"), source("east.tif", 120), more="<NoDataValue>0</NoDataValue>")
PLAIN = {
    "three bands": plain(),
    "utf-8 with a mark": "\ufeff" + plain(),
    "a declaration that lies": '<?xml version="1.0" encoding="UTF-16"?>' + plain(),
    "overviews": plain("<OverviewList resampling='average'>2 4</OverviewList>"),
    "metadata": plain("<Metadata><MDI key='AREA_OR_POINT'>Area</MDI></Metadata>"),
    "sources in another order": dataset(band(1), TURNED),
    "nodata": dataset(NODATA),
    "colours": dataset(band(1, more="<ColorInterp>Red</ColorInterp><Description>red</Description>")),
    "a mask band": plain(f"<MaskBand><VRTRasterBand dataType='Byte'>{MASKS}</VRTRasterBand></MaskBand>"),
    "an added alpha band": plain(band(4, ALPHA, more="<ColorInterp>Alpha</ColorInterp>")),
    "a way that comes back": dataset(band(1, source("sub/../west.tif", 0), source("./east.tif", 120))),
}


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_a_plain_mosaic_is_its_sources(folder: Path, text: str) -> None:
    assert sources_of(folder, text) == ["west.tif", "east.tif"]


def test_absolute_names_in_the_folder_are_the_same_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = band(
        1, source(str(folder / "west.tif"), 0, relative=0), source(str(folder / "sub/south.tif"), 9, relative=0)
    )
    assert sources_of(folder, dataset(absolute)) == ["west.tif", "sub/south.tif"]
    monkeypatch.chdir(folder)
    near = band(1, source("west.tif", 0, relative=0))
    assert sources_of(folder, dataset(near)) == ["west.tif"]
    monkeypatch.chdir(folder / "sub")
    with pytest.raises(BadDataError, match=r"outside|no raster"):
        sources_of(folder, dataset(near))


HOSTILE_NAMES = {
    "../secret.tif": "outside its own folder",
    "sub/../../secret.tif": "outside its own folder",
    "/etc/passwd": "outside its own folder",
    "/vsicurl/http://127.0.0.1:9/x.tif": "only local files",
    "/vsizip/x.zip/x.tif": "only local files",
    "http://127.0.0.1:9/x.tif": "only local files",
    "s3://bucket/x.tif": "only local files",
    "GTIFF_DIR:1:west.tif": "only local files",
    "vrt://west.tif": "only local files",
    "inner.vrt": "no plain raster",
    "INNER.VRT": "no plain raster",
    "gone.tif": "no raster in its folder",
    "sub": "no raster in its folder",
    "link.tif": "outside its own folder",
    "linked/secret.tif": "outside its own folder",
    "hidden.tif": "no raster in its folder",
    "pipe.tif": "no raster in its folder",
}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_sources_stay_in_the_folder_and_on_this_machine(folder: Path, name: str) -> None:
    for inner in ("inner.vrt", "INNER.VRT"):
        (folder / inner).write_text(plain())
    (folder / "link.tif").symlink_to(folder / "../secret.tif")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "hidden.tif").symlink_to(folder / "inner.vrt")
    os.mkfifo(folder / "pipe.tif")
    for relative in (0, 1):
        placed = source(
            name if relative or name.startswith("/") or ":" in name else str(folder / name), 0, relative=relative
        )
        with pytest.raises(BadDataError, match=HOSTILE_NAMES[name]) as caught:
            sources_of(folder, dataset(band(1, placed)))
        assert str(caught.value).startswith(f"{folder / 'mosaic.vrt'}: ")
        assert "\n" not in str(caught.value)


WARPED = "<VRTDataset rasterXSize='2' rasterYSize='2' subClass='VRTWarpedDataset'>"
WEST = source("west.tif", 0)
LAUGHS = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
OPTIONS = '<OpenOptions><OOI key="X">1</OOI></OpenOptions>'
OVERVIEW = "<Overview><SourceFilename>x</SourceFilename></Overview>"
BARE = "<SimpleSource><SourceFilename>west.tif</SourceFilename></SimpleSource>"
MORE = {
    "warped": (plain(root=WARPED), "VRTWarpedDataset"),
    "derived": (dataset(band(1, attributes=' subClass="VRTDerivedRasterBand"')), "VRTDerivedRasterBand"),
    "raw": (dataset(band(1, attributes=' subClass="VRTRawRasterBand"')), "VRTRawRasterBand"),
    "pixel function": (dataset(band(1, more="<PixelFunctionType>mul</PixelFunctionType>")), "PixelFunctionType"),
    "python": (dataset(band(1, more="<PixelFunctionCode>x</PixelFunctionCode>")), "PixelFunctionCode"),
    "lookup": (dataset(band(1, complex_source("<LUT>0:1</LUT>"))), "LUT"),
    "scaled": (dataset(band(1, complex_source("<ScaleRatio>2</ScaleRatio>"))), "ScaleRatio"),
    "constant but no alpha": (dataset(band(1, complex_source("<ScaleRatio>0</ScaleRatio>"))), "ScaleRatio"),
    "filtered": (dataset(band(1, source("west.tif", 0, tag="KernelFilteredSource"))), "KernelFilteredSource"),
    "options": (dataset(band(1, source("west.tif", 0, more=OPTIONS))), "OpenOptions"),
    "overview file": (dataset(band(1, more=OVERVIEW)), "Overview"),
    "groups": (dataset("<Group name='/'/>"), "Group"),
    "points": (plain("<GCPList/>"), "GCPList"),
    "shrunk": (
        dataset(
            band(1, WEST.replace('<DstRect xOff="0" yOff="0" xSize="120"', '<DstRect xOff="0" yOff="0" xSize="60"'))
        ),
        "resamples west.tif: 100x120 becomes 100x60",
    ),
    "a part": (
        dataset(band(1, WEST.replace('xSize="120"', 'xSize="20"'))),
        "only a part of west.tif: 100x20 of 100x120",
    ),
    "another part": (dataset(band(1, WEST.replace('<SrcRect xOff="0"', '<SrcRect xOff="5"'))), "only a part"),
    "no place": (dataset(band(1, BARE)), "SrcRect"),
    "not a number": (plain().replace('xSize="120"', 'xSize="nan"'), "four numbers"),
    "other files per band": (dataset(band(1, WEST), band(2, source("east.tif", 0, band=2))), "different files"),
    "other places per band": (dataset(band(1, WEST), band(2, source("west.tif", 5, band=2))), "files or places"),
    "other bands": (dataset(band(1, source("west.tif", 0, band=3))), "band 1 is band 3 of west.tif.*--bands"),
    "twice": (dataset(band(1, WEST, source("west.tif", 120))), "twice"),
    "no source": (dataset("<VRTRasterBand dataType='Byte' band='1'/>"), "names no raster"),
    "no band": (dataset(), "names no raster"),
    "an OGR VRT": ("<OGRVRTDataSource/>", "no GDAL virtual raster: it begins with <OGRVRTDataSource>"),
    "entities": (LAUGHS + plain(), "entities"),
    "a late document type": (plain() + LAUGHS, "entities"),
    "no XML": ("not XML", "not a GDAL virtual raster"),
    "cut off": (plain()[:-9], "not a GDAL virtual raster"),
    "empty": ("", "not a GDAL virtual raster"),
    "deep": ("<a>" * 1000, "too many elements"),
    "bytes": (b"\xff\xfe<\0V\0", "not UTF-8"),
}


@pytest.mark.parametrize("case", MORE)
def test_more_than_a_plain_mosaic_is_refused_naming_what(folder: Path, case: str) -> None:
    text, said = MORE[case]
    with pytest.raises(BadDataError, match=said) as caught:
        sources_of(folder, text)
    assert str(caught.value).startswith(f"{folder / 'mosaic.vrt'}: ")
    assert "\n" not in str(caught.value)


def test_endless_files_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic, "MAX_BYTES", 1000)
    with pytest.raises(BadDataError, match="larger"):
        sources_of(folder, plain())
    monkeypatch.setattr(mosaic, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(mosaic, "MAX_ELEMENTS", 20)
    with pytest.raises(BadDataError, match="too many elements"):
        sources_of(folder, plain())


def test_a_mosaic_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoInputError):
        mosaic_sources(tmp_path / "none.vrt")
    with pytest.raises(BadDataError, match="not a regular file"):
        mosaic_sources(tmp_path)
    with pytest.raises(UsageError):
        mosaic_sources(Path("/vsicurl/http://127.0.0.1:9/x.vrt"))


# --- in find_scenes ---


def test_a_mosaic_stands_for_its_scenes_where_it_is_named(folder: Path) -> None:
    sources_of(folder, plain())
    assert [scene.name for scene in find_scenes([folder / "mosaic.vrt"])] == ["east", "west"]
    assert [scene.name for scene in find_scenes([str(folder / "*.vrt")])] == ["east", "west"]
    assert [scene.name for scene in find_scenes([folder])] == ["east", "sub/south", "west"]


def test_a_file_given_twice_is_one_scene(folder: Path, tmp_path: Path) -> None:
    sources_of(folder, plain())
    (tmp_path / "link.vrt").symlink_to(folder / "mosaic.vrt")
    (tmp_path / "door").symlink_to(folder)
    given = [folder / "mosaic.vrt", folder, folder / "west.tif", tmp_path / "link.vrt", tmp_path / "door/mosaic.vrt"]
    assert [scene.name for scene in find_scenes(given)] == ["east", "sub/south", "west"]


# --- what GDAL's own programs write ---


def gdal(*command: object, check: bool = True) -> None:
    """Run one of GDAL's programs without what this process tells its own GDAL."""
    if shutil.which("gdalbuildvrt") is None:
        pytest.skip("needs Debian's gdal-bin")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GDAL_", "OSR_"))}
    subprocess.run([*map(str, command)], check=check, env=environment, stderr=subprocess.DEVNULL)


WRITERS = {
    "plain": ("gdalbuildvrt", "-q", "{vrt}", "{west}", "{east}"),
    "nodata": ("gdalbuildvrt", "-q", "-srcnodata", "0", "-hidenodata", "{vrt}", "{west}", "{east}"),
    "alpha": ("gdalbuildvrt", "-q", "-addalpha", "{vrt}", "{west}", "{east}"),
    "loose": ("gdalbuildvrt", "-q", "-allow_projection_difference", "-r", "cubic", "{vrt}", "{west}", "{east}"),
    "translate": ("gdal_translate", "-q", "-of", "VRT", "{west}", "{vrt}"),
}


@pytest.mark.gdal
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mask", [False, True])
def test_what_gdal_writes_is_understood(
    tmp_path: Path, scene_file: Callable[..., Path], writer: str, mask: bool
) -> None:
    places = {"west": 616000, "east": 616036}
    files = {
        name: scene_file(tmp_path / f"{name}.tif", size=(100, 120), transform=(0.3, 0, x, 0, -0.3, 3347000))
        for name, x in places.items()
    }
    if mask:
        for name, file in files.items():
            masked = file.with_name(f"m{name}.tif")
            command = [
                "gdal_translate",
                "-q",
                "-b",
                "1",
                "-b",
                "2",
                "-mask",
                "3",
                "--config",
                "GDAL_TIFF_INTERNAL_MASK",
                "YES",
            ]
            subprocess.run([*command, file, masked], check=True)
            masked.replace(file)
    vrt = tmp_path / "mosaic.vrt"
    names = {"vrt": vrt, **files}
    gdal(*(part.format(**names) for part in WRITERS[writer]))
    expected = [tmp_path / "west.tif"] if writer == "translate" else [tmp_path / "west.tif", tmp_path / "east.tif"]
    assert list(mosaic_sources(vrt)) == expected
    gdal("gdaladdo", "-q", "--config", "VRT_VIRTUAL_OVERVIEWS", "YES", vrt, "2")
    assert list(mosaic_sources(vrt)) == expected


@pytest.mark.gdal
@pytest.mark.parametrize(
    "options",
    ["-separate", "-b 3 -b 2 -b 1", "-tr 0.6 0.6", "-te 616003 3346980 616030 3346990"],
)
def test_what_gdal_writes_beyond_that_is_refused(tmp_path: Path, scene_file: Callable[..., Path], options: str) -> None:
    scene = scene_file(tmp_path / "a.tif", size=(100, 120), transform=(0.3, 0, 616000, 0, -0.3, 3347000))
    other = scene_file(tmp_path / "b.tif", size=(100, 120), transform=(0.3, 0, 616036, 0, -0.3, 3347000))
    gdal("gdalbuildvrt", "-q", *options.split(), tmp_path / "m.vrt", scene, other)
    with pytest.raises(BadDataError):
        mosaic_sources(tmp_path / "m.vrt")
