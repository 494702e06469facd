"""Whose file: absent, ours, edited or foreign, by marks that were written before; what is written over what."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aerialseg.errors import OutputError
from aerialseg.geo import ownership
from aerialseg.geo.ownership import Kind, check_overwrite, embed_digest, mark_of, owner_of, write_owned

if TYPE_CHECKING:
    from collections.abc import Callable

BLANK = "aerialseg-sha256:" + "0" * 64
MADE_FROM = "0123456789abcdef" * 4
BUILDINGS = f"aerialseg-buildings:{MADE_FROM} {BLANK}"
CONTENT = f"<a><!-- {BLANK} --><b>1</b></a>".encode()
VRT = f"""<VRTDataset rasterXSize="1" rasterYSize="1"><Metadata><MDI key="AERIALSEG_SEAL">{BLANK}</MDI>
<MDI key="AERIALSEG_CONTENT">{{}}</MDI></Metadata><VRTRasterBand dataType="Byte" band="1"><Entry c1="{{}}"/>
</VRTRasterBand></VRTDataset>"""


def digested(content: bytes) -> bytes:
    """Return what a file with a digest of its own bytes holds, for a content with zeros in its place."""
    return content.replace(BLANK.encode(), b"aerialseg-sha256:" + hashlib.sha256(content).hexdigest().encode())


def tagged(name: str, value: str = "x") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        profile = {"driver": "GTiff", "width": 1, "height": 1, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", transform=Affine(0.3, 0, 0, 0, -0.3, 0), **profile) as dataset:
            dataset.write(np.zeros((1, 1, 1), np.uint8))
            dataset.update_tags(**{name: value})

    return write


def holding(content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()

    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def picture(software: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        remark = PngInfo()
        remark.add_text("Software", software)
        Image.new("RGB", (2, 2)).save(path, format="PNG", pnginfo=remark)

    return write


def geopackage(description: str, row: str = "a", written: str = "a") -> Callable[[Path], None]:
    """Write a table of one row, with the digest over the one that was written at first."""

    def write(path: Path) -> None:
        sql = "CREATE TABLE t (a TEXT)"
        digest = hashlib.sha256((repr(("t", sql, "table")) + repr((written,))).encode()).hexdigest()
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(sql)
            database.execute("INSERT INTO t VALUES (?)", (row,))
            database.execute("CREATE TABLE gpkg_contents (table_name TEXT, description TEXT)")
            text = description.replace(BLANK, f"aerialseg-sha256:{digest}")
            database.execute("INSERT INTO gpkg_contents VALUES ('t', ?)", (text,))

    return write


def archive(text: str, comment: str, *, late: bytes = b"") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as target:
            target.writestr("project.qgs", text)
            target.comment = comment.encode()
        path.write_bytes(digested(path.read_bytes()) + late)

    return write


def vrt(colour: int, *, drawn: int = 1, measured: bool = False) -> Callable[[Path], None]:
    """Write a mosaic in one colour that was drawn in another, and into which GDAL may have put statistics."""
    shown = repr((["1", "1"], [], [], [[], [], []], [[], []], [[("c1", str(drawn))]]))
    whole = digested(VRT.format(hashlib.sha256(shown.encode()).hexdigest(), drawn).encode())
    text = whole.decode().replace(f'c1="{drawn}"', f'c1="{colour}"')
    return holding(text.replace("<Entry", "<Metadata/><Entry") if measured else text)


PAGE = "<!doctype html>\n<!-- aerialseg {}: report -->\n<html>"
RUN = "# Written by aerialseg {}; a training goes on with --resume.\n[run]\n"
GEOJSON = f'{{"type": "FeatureCollection", "made_by": "{BUILDINGS}", "features": []}}'
STAC = f'{{"id": "a", "aerialseg:seal": "{BLANK}"}}'
PROJECT = "<properties><aerialseg><format/></aerialseg></properties>"
FILES: list[tuple[Kind, str, str, Callable[[Path], None]]] = [
    ("prediction", "a.tif", "ours", tagged("AERIALSEG_KEY")),
    ("prediction", "a.tif", "foreign", tagged("AERIALSEG_ERRORS")),
    ("prediction", "a.tif", "foreign", holding("no raster")),
    ("error map", "a.tif", "ours", tagged("AERIALSEG_ERRORS", "1")),
    ("error map", "a.tif", "foreign", tagged("AERIALSEG_KEY")),
    ("sample", "a.tif", "ours", tagged("AERIALSEG_SAMPLE", "austin1, 1000 px, seed 0, version 1")),
    ("sample", "a.tif", "foreign", tagged("OTHER")),
    ("tile", "a.tif", "ours", tagged("AERIALSEG_TILE", "a")),
    ("tile", "a.tif", "foreign", tagged("OTHER")),
    ("preview", "a.png", "ours", picture("aerialseg preview")),
    ("preview", "a.png", "foreign", picture("aerialseg")),
    ("page", "a.html", "ours", holding(PAGE.format("evaluate"))),
    ("page", "any name", "ours", holding(PAGE.format("evaluate"))),
    ("page", "a.html", "foreign", holding(PAGE.format("other"))),
    ("page", "a.html", "foreign", holding(" " * 200 + PAGE.format("evaluate"))),
    ("run", "config.toml", "ours", holding(RUN.format("train"))),
    ("run", "config.toml", "foreign", holding(RUN.format("other"))),
    ("run", "config.toml", "foreign", holding("\n" + RUN.format("train"))),
    ("bench run", "run.json", "ours", holding('{"starts": [{"command": ["aerialseg", "bench"]}]}')),
    ("bench run", "run.json", "foreign", holding('{"starts": [{"command": ["aerialseg", "train"]}]}')),
    ("bench run", "run.json", "foreign", holding('{"starts": []}')),
    ("predict report", "report.json", "ours", holding('{"aerialseg": "1", "command": "predict"}')),
    ("predict report", "report.json", "foreign", holding('{"command": "predict"}')),
    ("predict report", "report.json", "foreign", holding('{"aerialseg": "1", "command": "demo"}')),
    ("predict report", "report.json", "foreign", holding('["aerialseg"]')),
    ("predict report", "report.json", "foreign", holding("[" * 100_000)),
    ("demo report", "report.json", "ours", holding('{"aerialseg": "1", "command": "demo"}')),
    ("demo report", "report.json", "foreign", holding('{"aerialseg": "1", "command": "predict"}')),
    ("bench report", "costs.json", "ours", holding('{\n  "made_by": "aerialseg bench",\n')),
    ("bench report", "costs.json", "foreign", holding('{\n  "made_by": "another bench",\n')),
    ("error buildings", "errors.gpkg", "ours", geopackage("AERIALSEG_ERRORS")),
    ("error buildings", "errors.gpkg", "foreign", geopackage("another")),
    ("buildings", "b.gpkg", "ours", geopackage(BUILDINGS)),
    ("buildings", "b.gpkg", "edited", geopackage(BUILDINGS, row="b")),
    ("buildings", "b.gpkg", "edited", geopackage(BUILDINGS.split()[0])),
    ("buildings", "b.gpkg", "foreign", geopackage(f"another {BLANK}")),
    ("buildings", "b.gpkg", "foreign", holding("no database")),
    ("buildings", "b.geojson", "ours", holding(digested(GEOJSON.encode()))),
    ("buildings", "b.geojson", "edited", holding(digested(GEOJSON.encode()) + b" ")),
    ("buildings", "b.geojson", "foreign", holding(digested(GEOJSON.replace("buildings", "roofs").encode()))),
    ("buildings", "b.fgb", "ours", holding(digested(b"fgb" + BUILDINGS.encode() + b"x" * 99_999))),
    ("buildings", "b.parquet", "ours", holding(digested(b"x" * 99_999 + BUILDINGS.encode() + b"PAR1"))),
    ("collection", "a.json", "ours", holding(digested(STAC.encode()))),
    ("collection", "a.json", "edited", holding(digested(STAC.encode()).replace(b'"a"', b'"b"'))),
    ("collection", "a.json", "foreign", holding('{"id": "a"}')),
    ("collection", "project.qgz", "ours", archive(PROJECT, BLANK)),
    ("collection", "project.qgz", "edited", archive(PROJECT, BLANK, late=b"\n")),
    ("collection", "project.qgz", "edited", archive(PROJECT, "")),
    ("collection", "project.qgz", "foreign", archive("<properties/>", "")),
    ("collection", "mosaic.vrt", "ours", vrt(1)),
    ("collection", "mosaic.vrt", "ours", vrt(1, measured=True)),
    ("collection", "mosaic.vrt", "edited", vrt(2)),
    ("collection", "mosaic.vrt", "foreign", holding("<VRTDataset/>")),
]


@pytest.mark.parametrize(
    ("kind", "name", "owner", "write"), FILES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_kind_of_file_is_known_by_its_mark(
    tmp_path: Path, kind: Kind, name: str, owner: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    assert owner_of(path, kind) == "absent"
    assert mark_of(path, kind) is None
    write(path)
    assert owner_of(path, kind) == owner
    assert (mark_of(path, kind) is None) == (owner == "foreign")
    if owner != "foreign":
        check_overwrite(path, kind, overwrite=False)
    else:
        with pytest.raises(OutputError, match="not written by aerialseg"):
            check_overwrite(path, kind, overwrite=False)
    check_overwrite(path, kind, overwrite=True)


def test_the_files_above_are_all_kinds() -> None:
    for owner in ("ours", "foreign"):
        assert {kind for kind, _, found, _ in FILES if found == owner} == set(get_args(Kind)) == set(ownership.TABLE)


def test_what_a_mark_says(tmp_path: Path) -> None:
    tagged("AERIALSEG_KEY", "0f")(tmp_path / "a.tif")
    assert mark_of(tmp_path / "a.tif", "prediction") == "0f"
    geopackage(BUILDINGS)(tmp_path / "b.gpkg")
    holding(GEOJSON)(tmp_path / "b.geojson")
    assert [mark_of(tmp_path / f"b.{suffix}", "buildings") for suffix in ("gpkg", "geojson")] == [MADE_FROM] * 2


@pytest.mark.parametrize("kind", get_args(Kind))
def test_what_is_no_file_is_foreign(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for path in (tmp_path, tmp_path / "nowhere"):
        assert owner_of(path, kind) == "foreign"


def test_a_foreign_file_is_refused_unless_overwriting(tmp_path: Path) -> None:
    path, marked = tmp_path / "mask.tif", tmp_path / "report.json"
    check_overwrite(path, overwrite=False)
    path.write_text("theirs")
    with pytest.raises(OutputError, match="--overwrite"):
        check_overwrite(path, overwrite=False)
    with pytest.raises(OutputError, match=r"mask\.tif"):
        check_overwrite(path, "demo report", overwrite=False, marked=marked)
    marked.write_text(json.dumps({"aerialseg": "1", "command": "demo"}))
    check_overwrite(path, "demo report", overwrite=False, marked=marked)
    check_overwrite(path, overwrite=True)


def test_any_changed_byte_is_an_edit(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    assert owner_of(path, "collection") == "absent"
    done = embed_digest(CONTENT)
    assert len(done) == len(CONTENT)
    path.write_bytes(done)
    assert owner_of(path, "collection") == "ours"
    for index in range(len(done)):
        path.write_bytes(done[:index] + bytes([done[index] ^ 1]) + done[index + 1 :])
        assert owner_of(path, "collection") in ("edited", "foreign"), index
    path.write_bytes(done + b"\n")
    assert owner_of(path, "collection") == "edited"


def test_writing_replaces_ours_keeps_edits_and_refuses_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    assert write_owned(path, CONTENT) is None
    stamp = path.stat().st_mtime_ns
    assert write_owned(path, CONTENT) is None
    assert path.stat().st_mtime_ns == stamp
    assert write_owned(path, CONTENT.replace(b"1", b"2")) is None
    assert b"<b>2</b>" in path.read_bytes()
    edited = path.read_bytes().replace(b"<b>2", b"<b>3")
    path.write_bytes(edited)
    assert "stays as it is" in (write_owned(path, CONTENT) or "")
    assert path.read_bytes() == edited
    path.write_bytes(b"<mine/>")
    with pytest.raises(OutputError, match="not written by aerialseg"):
        write_owned(path, CONTENT)
    assert path.read_bytes() == b"<mine/>"


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(embed_digest(CONTENT))
    path = tmp_path / "x.xml"
    path.symlink_to(victim)
    write_owned(path, CONTENT.replace(b"1", b"2"))
    assert not path.is_symlink()
    assert victim.read_bytes() == embed_digest(CONTENT)


@pytest.mark.parametrize("content", [b"no place", CONTENT + BLANK.encode()])
def test_a_content_without_one_place_for_the_digest_is_a_mistake(content: bytes) -> None:
    with pytest.raises(ValueError, match="one place"):
        embed_digest(content)


@pytest.mark.parametrize("before", [0, 7, ownership.ENDS - 3])
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_a_file_of_any_size_has_the_digest_that_its_bytes_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, chunk: int
) -> None:
    """The digest near the beginning, or near the end of what begins otherwise; read in pieces or at once."""
    monkeypatch.setattr(ownership, "CHUNK", chunk)
    content, path = b"a" * before + BUILDINGS.encode() + b"b" * 999, tmp_path / "file"
    path.write_bytes(content)
    ownership.embed_digest_in(path)
    assert path.read_bytes() == embed_digest(content) == digested(content)
    assert owner_of(path, "buildings") == "ours"
    path.write_bytes(path.read_bytes()[:-1] + b"c")
    assert owner_of(path, "buildings") == "edited"
    path.write_bytes(b"nothing")
    assert owner_of(path, "buildings") == "foreign"
    with pytest.raises(ValueError, match="one place"):
        ownership.embed_digest_in(path)
