"""The benchmark's zip: its bytes against other readers, what a check must refuse, and the 180 names."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from aerialseg.errors import BadDataError, NoInputError
from aerialseg.evaluation import submission
from aerialseg.evaluation.submission import Expected, check_submission, write_submission
from aerialseg.geo import inspection
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]

NAMES = ("sfo2", "sfo10", "tyrol-e1")


@pytest.fixture
def scenes(tmp_path: Path, scene_file: Write, mask_file: Write) -> Path:
    """Three test scenes of odd size, masks of them as predict writes them, and their probabilities."""
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        mask = np.kron(rng.random((7, 9)) < 0.4, np.ones((90, 90))).astype(np.uint8)[:600, :701]
        mask[:5, :5] = 255
        scene_file(tmp_path / f"root/AerialImageDataset/test/images/{name}.tif", size=(600, 701))
        mask_file(tmp_path / f"out/{name}.tif", mask, nodata=255, compress="DEFLATE")
        mask_file(tmp_path / f"out/probability/{name}.tif", mask, nodata=255)
    return tmp_path


def read(folder: Path, name: str) -> np.ndarray:
    with rasterio.open(folder / f"out/{name}.tif") as mask:
        return mask.read(1)


@pytest.mark.parametrize("form", ["1-bit", "8-bit"])
def test_the_zip_holds_the_masks_flat_in_order_and_the_same_every_time(scenes: Path, run: Run, form: str) -> None:
    options = ["--eight-bit"] if form == "8-bit" else []
    hashes = set()
    for name in ("a.zip", "b.zip"):
        out = scenes / name
        code, text, err = run(
            "submit", scenes / "out", "--out", out, "--test-root", scenes / "root", *options, "--json"
        )
        assert code == 0, err
        hashes.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(hashes) == 1
    assert json.loads(text)["form"] == form
    assert "25 pixels are nodata and became background" in err
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [f"{name}.tif" for name in NAMES]
        for name in NAMES:
            content = archive.read(f"{name}.tif")
            assert len(content) < 600 * 701 / (8 if form == "1-bit" else 1) + 2000
            picture = np.array(Image.open(io.BytesIO(content)).convert("L"))
            assert np.array_equal(picture, np.where(read(scenes, name) == 1, 255, 0))
    code, text, _ = run("submit", out, "--check", "--test-root", scenes / "root")
    assert code == 0
    assert f"3 masks checked, {form}" in text


def test_the_benchmark_wants_180_files() -> None:
    sizes = Expected.of_benchmark().sizes
    assert len(sizes) == 180
    assert {"bellingham1.tif", "bloomington36.tif", "innsbruck17.tif", "sfo9.tif", "tyrol-e36.tif"} <= set(sizes)
    assert set(sizes.values()) == {(5000, 5000)}


def test_missing_and_extra_masks_are_named(scenes: Path, mask_file: Write, run: Run) -> None:
    mask_file(scenes / "out/austin1.tif", nodata=255)
    out = scenes / "x.zip"
    code, _, err = run("submit", scenes / "out", "--out", out, "--test-root", scenes / "root")
    assert code == 0
    assert "1 masks are of no test scene and are left out: austin1" in err
    (scenes / "out/sfo10.tif").unlink()
    code, _, err = run("submit", scenes / "out", "--out", scenes / "y.zip", "--test-root", scenes / "root")
    assert code == 65
    assert "1 of 3 masks are missing: sfo10.tif" in err
    assert not (scenes / "y.zip").exists()
    code, _, err = run("submit", scenes / "out", "--out", scenes / "y.zip")
    assert code == 65
    assert "178 of 180 masks are missing: bellingham1.tif" in err


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tiff(array: np.ndarray, **profile: Any) -> bytes:
    with rasterio.MemoryFile() as memory:
        stack = array if array.ndim == 3 else array[np.newaxis]
        shape = {"count": len(stack), "height": stack.shape[1], "width": stack.shape[2], "dtype": array.dtype}
        place = {"crs": "EPSG:26914", "transform": rasterio.transform.from_origin(500, 900, 1, 1)}
        with memory.open(**{"driver": "GTiff", **place, **shape, **profile}) as target:
            target.write(stack)
        return memory.read()


GOOD = np.kron(np.eye(2), np.ones((10, 15))).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"b.tif": None}, "1 of 2 masks are missing: b.tif"),
        ({"c.tif": tiff(GOOD * 255)}, "c.tif: not among the 2 expected"),
        ({"a.tif.aux.xml": b"<x/>"}, "a.tif.aux.xml: not among"),
        ({"masks/b.tif": tiff(GOOD * 255)}, "masks/b.tif: folders are not allowed"),
        ({"b.tif": tiff(GOOD)}, "b.tif: holds the values 1, expected 0 and 255"),
        ({"b.tif": tiff(GOOD * 255 + (GOOD == 0) * np.uint8(7))}, "b.tif: holds the values"),
        ({"b.tif": tiff(GOOD[:, :20] * 255)}, "b.tif: is 20x20 px, expected 20x30"),
        ({"b.tif": tiff(np.stack([GOOD * 255] * 3))}, "b.tif: has 3 bands of uint8"),
        ({"b.tif": tiff(GOOD.astype(np.uint16) * 255)}, "b.tif: has 1 bands of uint16"),
        ({"b.tif": tiff(GOOD * 0)}, "b.tif: is all background"),
        ({"b.tif": b"II*\0nonsense"}, "b.tif: cannot be opened"),
        ({"b.tif": tiff(GOOD * 255, driver="PNG")}, "b.tif: is PNG, expected a TIFF"),
    ],
)
def test_a_check_names_what_is_wrong(tmp_path: Path, change: dict[str, bytes | None], expected: str) -> None:
    members = {"a.tif": tiff(GOOD * 255), "b.tif": tiff(GOOD, nbits=1, compress="CCITTFAX4")}
    wanted = Expected({"a.tif": (20, 30), "b.tif": (20, 30)})
    assert check_submission(pack(tmp_path / "good.zip", members), wanted, Silent()).form == "1-bit and 8-bit"
    changed = {name: content for name, content in (members | change).items() if content is not None}
    with pytest.raises(BadDataError, match=r"bad\.zip") as caught:
        check_submission(pack(tmp_path / "bad.zip", changed), wanted, Silent())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_zip_a_bomb_and_a_path_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "LARGEST_MEMBER", 10**6)
    wanted = Expected({"a.tif": (20, 30)})
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(BadDataError, match="cannot be read as a zip"):
        check_submission(tmp_path / "x.zip", wanted, Silent())
    with pytest.raises(NoInputError):
        check_submission(tmp_path / "missing.zip", wanted, Silent())
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.tif", bytes(5_000_000))
    with pytest.raises(BadDataError, match="unpacks to 5,000,000 bytes"):
        check_submission(tmp_path / "bomb.zip", wanted, Silent())
    outside = pack(tmp_path / "out.zip", {"../a.tif": tiff(GOOD * 255)})
    with pytest.raises(BadDataError, match="folders are not allowed"):
        check_submission(outside, wanted, Silent())
    assert {path.suffix for path in tmp_path.rglob("*")} == {".zip"}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_members_that_are_damaged_in_any_packing_are_bad_data(tmp_path: Path, method: int, damage: str) -> None:
    mask = tiff(np.random.default_rng(0).integers(0, 2, (200, 300)).astype(np.uint8) * 255)
    path, wanted = tmp_path / "x.zip", Expected({"a.tif": (200, 300)})
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.tif", mask)
        entry = archive.infolist()[0]
    content = bytearray(path.read_bytes())
    start = 30 + len(entry.filename)
    middle = slice(start + 15, start + entry.compress_size // 2)
    content[middle] = bytes(len(content[middle])) if damage == "cut" else bytes(~byte & 255 for byte in content[middle])
    path.write_bytes(content)
    with pytest.raises(BadDataError, match=r"a\.tif: is damaged in the zip: .*; make it again|cannot be read as a zip"):
        check_submission(path, wanted, Silent())


def test_a_name_that_is_not_in_its_encoding_is_bad_data(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {"ä.tif": tiff(GOOD * 255)})
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xfe"))
    with pytest.raises(BadDataError, match="cannot be read as a zip"):
        check_submission(path, Expected({"a.tif": (20, 30)}), Silent())


def test_a_zip_that_cannot_be_read_to_its_end_is_no_zip(tmp_path: Path) -> None:
    good = pack(tmp_path / "good.zip", {f"{n}.tif": tiff(GOOD * 255) for n in range(3)}).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):  # names and directories
        content = bytearray(good)
        for place in rng.integers(good.index(b"PK\x01\x02"), len(good), 3):
            content[place] = rng.integers(256)
        (tmp_path / "bad.zip").write_bytes(content)
        with suppress(BadDataError):
            check_submission(tmp_path / "bad.zip", Expected({f"{n}.tif": (20, 30) for n in range(3)}), Silent())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.timeout(60)
def test_a_zip_of_sixty_thousand_members_is_checked_in_linear_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(60_000):
            archive.writestr(f"{number // 2}.tif", b"")
    began = time.process_time()
    with pytest.raises(BadDataError, match="not among the 1 expected files"):
        check_submission(tmp_path / "x.zip", Expected({"a.tif": (20, 30)}), Silent())
    assert time.process_time() - began < 20


def test_rows_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    tmp_path: Path, scene_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene_file(tmp_path / "wide.tif", size=(1, 5000))
    monkeypatch.setattr(inspection, "available_memory", lambda: 50_000)
    with pytest.raises(BadDataError, match=r"wide\.tif: is 5,000 px wide: .* gdal_translate -srcwin"):
        Expected.of_folder(tmp_path)


def test_nothing_is_replaced_and_options_that_do_nothing_are_refused(scenes: Path, run: Run) -> None:
    out = scenes / "mine.zip"
    out.write_bytes(b"precious")
    root = ("--test-root", scenes / "root")
    assert run("submit", scenes / "out", "--out", out, *root)[0] == 73
    assert out.read_bytes() == b"precious"
    assert run("submit", scenes / "out", "--out", out, *root, "-f")[0] == 0
    assert run("submit", scenes / "out", *root)[0] == 2
    assert run("submit", out, "--check", *root, "--eight-bit")[0] == 2
    assert run("submit", scenes / "out/sfo2.tif", "--out", scenes / "out/sfo2.tif", *root, "-f")[0] == 2
    assert not list(scenes.rglob(".aerialseg-*"))


def test_a_prediction_of_another_size_is_refused(scenes: Path, mask_file: Write) -> None:
    mask_file(scenes / "out/sfo2.tif", size=(600, 700), nodata=255)
    expected = Expected.of_folder(scenes / "root")
    with pytest.raises(BadDataError, match=r"sfo2\.tif: is 600x700 px, expected 600x701"):
        write_submission([scenes / "out"], scenes / "x.zip", expected, "1-bit", Silent())


def test_a_mask_that_changes_while_it_is_packed_is_named_and_there_is_no_zip(
    scenes: Path, run: Run, mask_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = submission._write_mask

    def write(path: Path, *arguments: Any) -> Any:
        result = real(path, *arguments)
        if path.name == "sfo2.tif":
            mask_file(path, size=(600, 701))
        return result

    monkeypatch.setattr(submission, "_write_mask", write)
    code, _, err = run("submit", scenes / "out", "--out", scenes / "a.zip", "--test-root", scenes / "root")
    assert code == 65 and err.splitlines()[-1].endswith("out/sfo2.tif: changed while it was packed; run again")
    assert not (scenes / "a.zip").exists()
