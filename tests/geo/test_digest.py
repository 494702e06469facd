"""The digest of a file's content changes with whatever GDAL reads, and with nothing else."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
import rasterio
import rasterio.shutil

from aerialseg.geo.digest import content_digest
from aerialseg.geo.opening import open_raster

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.RasterioDeprecationWarning"),  # nothing else leaves .aux.xml
]
DRIVERS = {
    "tif": "GTiff", "tiff": "GTiff", "TIF": "GTiff", "jp2": "JP2OpenJPEG", "j2k": "JP2OpenJPEG", "png": "PNG",
    "jpg": "JPEG", "jpeg": "JPEG",
}  # fmt: skip
WORLD = "0.5\n0\n0\n-0.5\n1000.25\n1999.75\n"
TAB = """!table
!version 300
!charset WindowsLatin1

Definition Table
  File "a"
  Type "RASTER"
  (1000,2000) (0,0) Label "1",
  (1004,2000) (8,0) Label "2",
  (1000,1996) (0,8) Label "3"
  CoordSys Earth Projection 8, 104, "m", 9, 0, 0.9996, 500000, 0
  Units "m"
"""
ARCGIS = """<metadata><refSysInfo><RefSystem><refSysID><identCode code="32633"/></refSysID></RefSystem></refSysInfo>
</metadata>"""
PAM = """<PAMDataset><SRS>EPSG:32633</SRS><GeoTransform>500, 1, 0, 700, 0, -1</GeoTransform></PAMDataset>"""


def placed(path: Path) -> tuple[object, ...]:
    with open_raster(path) as dataset:
        return dataset.transform, dataset.crs


def beside(ext: str) -> dict[str, str]:
    """Return names and contents of everything that could place a raster called a.EXT."""
    worlds = (f"{ext[0]}{ext[-1]}w", f"{ext}w", "wld", "jgw", "jpgw", "jpw", "j2w", "jkw", "tfw", "TFw")
    names = {f"a.{form}": WORLD for world in worlds for form in (world, world.lower(), world.upper())}
    return {**names, "a.tab": TAB, "a.TAB": TAB, "a.xml": ARCGIS, f"a.{ext}.aux.xml": PAM}


@pytest.mark.parametrize("ext", DRIVERS)
def test_every_side_file_that_gdal_takes_a_place_from_counts(
    tmp_path: Path, scene_file: Callable[..., Path], ext: str
) -> None:
    plain = scene_file(tmp_path / "plain.tif", size=(8, 8), bands=1, crs=None, transform=None)
    path = tmp_path / "in" / f"a.{ext}"
    path.parent.mkdir()
    rasterio.shutil.copy(plain, path, driver=DRIVERS[ext])
    path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)
    unplaced, digest = placed(path), content_digest(path)
    found = set()
    for name, content in beside(ext).items():
        side = path.with_name(name)
        side.write_text(content)
        if placed(path) != unplaced:
            found.add(side.suffix)
            assert content_digest(path) != digest, name
            moved = content_digest(path)
            side.write_text(content.replace("1000", "1001").replace("500", "501").replace("32633", "32632"))
            assert content_digest(path) not in (digest, moved), name
        side.unlink()
    assert len(found) >= 4


@pytest.mark.parametrize("name", ["a.aux", "a.tif.aux"])
def test_an_imagine_file_beside_a_scene_counts(tmp_path: Path, scene_file: Callable[..., Path], name: str) -> None:
    path = scene_file(tmp_path / "a.tif", size=(8, 8), bands=1, crs=None, transform=None)
    unplaced, digest = placed(path), content_digest(path)
    scene_file(tmp_path / "h.img", size=(8, 8), bands=1, driver="HFA", AUX=True, DEPENDENT_FILE="a.tif")
    shutil.move(tmp_path / "h.img", tmp_path / name)
    assert placed(path) != unplaced
    assert content_digest(path) != digest


def test_looking_at_a_scene_leaves_its_digest_alone(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = scene_file(tmp_path / "a.tif", size=(16, 16))
    digest = content_digest(path)
    with rasterio.open(path) as dataset:
        for band in dataset.indexes:
            dataset.statistics(band)
    aux = tmp_path / "a.tif.aux.xml"
    assert "STATISTICS_MEAN" in aux.read_text()
    assert content_digest(path) == digest
    histogram = "<Histograms><HistItem><HistMin>0</HistMin><HistCounts>1|2</HistCounts></HistItem></Histograms>"
    aux.write_text(aux.read_text().replace("</PAMRasterBand>", f"{histogram}</PAMRasterBand>"))
    assert content_digest(path) == digest


def test_of_an_aux_xml_counts_what_it_says(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    path = scene_file(tmp_path / "a.png", size=(16, 16), driver="PNG")
    aux = tmp_path / "a.png.aux.xml"
    digest = content_digest(path)
    assert "<GeoTransform>" in aux.read_text()
    with rasterio.open(path) as dataset:
        dataset.statistics(1)
    assert "STATISTICS_MEAN" in aux.read_text()
    assert content_digest(path) == digest
    aux.write_text(re.sub(r">\s+<", ">\n\n<", aux.read_text()).replace(" band=", "\n  band="))
    assert content_digest(path) == digest
    text = aux.read_text()
    aux.write_text(re.sub(r"(<GeoTransform>\s*)6", r"\g<1>7", text))
    assert aux.read_text() != text
    assert content_digest(path) != digest
    aux.write_text(text.replace("</PAMDataset>", '<Metadata><MDI key="NOTE">x</MDI></Metadata></PAMDataset>'))
    assert content_digest(path) != digest


@pytest.mark.parametrize(
    "content",
    [
        "<PAMDataset>",
        "no XML",
        '<!DOCTYPE x [<!ENTITY a "b">]><PAMDataset>{}</PAMDataset>',
        "<a>" * 5000 + "{}" + "</a>" * 5000,
        '<?xml version="1.0" encoding="none-such"?><PAMDataset/>',
    ],
)
def test_an_aux_xml_that_is_not_read_counts_by_its_bytes(
    tmp_path: Path, scene_file: Callable[..., Path], content: str
) -> None:
    path = scene_file(tmp_path / "a.tif", size=(8, 8))
    aux, seen = tmp_path / "a.tif.aux.xml", {content_digest(path)}
    for text in (content, content + "\n"):
        aux.write_text(text)
        seen.add(content_digest(path))
    assert len(seen) == 3
