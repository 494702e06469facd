"""A file with a digest of its own bytes: ours, edited, or a stranger's."""

from __future__ import annotations

from pathlib import Path

import pytest

from aerialseg.errors import OutputError
from aerialseg.geo.qgis import sealed
from aerialseg.geo.qgis.sealed import BLANK, origin_of, seal, write_sealed

CONTENT = f"<a><!-- {BLANK} --><b>1</b></a>".encode()


def test_any_changed_byte_breaks_the_seal(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    assert origin_of(path) == "absent"
    done = seal(CONTENT)
    assert len(done) == len(CONTENT)
    path.write_bytes(done)
    assert origin_of(path) == "ours"
    for index in range(len(done)):
        path.write_bytes(done[:index] + bytes([done[index] ^ 1]) + done[index + 1 :])
        assert origin_of(path) in ("edited", "foreign"), index
    path.write_bytes(done + b"\n")
    assert origin_of(path) == "edited"


def test_what_has_no_seal_is_foreign_unless_it_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(b"<a/>")
    assert origin_of(path) == "foreign"
    assert origin_of(path, lambda content: b"<a" in content) == "edited"
    assert origin_of(tmp_path) == "foreign"
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert origin_of(tmp_path / "nowhere") == "foreign"


def test_writing_replaces_ours_keeps_edits_and_refuses_strangers(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    assert write_sealed(path, CONTENT) is None
    stamp = path.stat().st_mtime_ns
    assert write_sealed(path, CONTENT) is None
    assert path.stat().st_mtime_ns == stamp
    assert write_sealed(path, CONTENT.replace(b"1", b"2")) is None
    assert b"<b>2</b>" in path.read_bytes()
    edited = path.read_bytes().replace(b"<b>2", b"<b>3")
    path.write_bytes(edited)
    assert "stays as it is" in (write_sealed(path, CONTENT) or "")
    assert path.read_bytes() == edited
    path.write_bytes(b"<mine/>")
    with pytest.raises(OutputError, match="not written by aerialseg"):
        write_sealed(path, CONTENT)
    assert path.read_bytes() == b"<mine/>"


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(seal(CONTENT))
    path = tmp_path / "x.xml"
    path.symlink_to(victim)
    write_sealed(path, CONTENT.replace(b"1", b"2"))
    assert not path.is_symlink()
    assert victim.read_bytes() == seal(CONTENT)


@pytest.mark.parametrize("content", [b"no place", CONTENT + BLANK.encode()])
def test_a_content_without_one_place_for_the_seal_is_a_mistake(content: bytes) -> None:
    with pytest.raises(ValueError, match="one place"):
        seal(content)


@pytest.mark.parametrize("before", [0, 7, sealed.ENDS - 3])
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_a_file_of_any_size_is_sealed_as_its_bytes_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, chunk: int
) -> None:
    """The digest near the beginning, or near the end of what begins otherwise; read in pieces or at once."""
    monkeypatch.setattr(sealed, "CHUNK", chunk)
    content, path = b"a" * before + sealed.BLANK.encode() + b"b" * 999, tmp_path / "file"
    path.write_bytes(content)
    sealed.seal_file(path)
    assert path.read_bytes() == sealed.seal(content)
    assert sealed.is_as_sealed(path)
    path.write_bytes(path.read_bytes()[:-1] + b"c")
    assert not sealed.is_as_sealed(path)
    path.write_bytes(b"nothing")
    assert not sealed.is_as_sealed(path)
    with pytest.raises(ValueError, match="one place"):
        sealed.seal_file(path)
