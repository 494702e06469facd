"""The Inria benchmark's submission: one flat zip of masks with the test scenes' names, written and checked.

https://project.inria.fr/aerialimagelabeling/contest/ wants 180 single-band TIFFs of 5000 x 5000 px, building 255 and
the rest 0; one bit a pixel (CCITT Group 4) keeps the zip small. A one-bit file reads as 0/1 in GDAL and as 0/255
elsewhere, so both count as right here. Equal masks give equal bytes.
"""

from __future__ import annotations

import errno
import lzma
import os
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from aerialseg.errors import BadDataError, NoInputError, ReadError, StorageError, first_line, one_line
from aerialseg.evaluation.pairs import is_measure
from aerialseg.files import is_folder, is_regular, require_space, staged, working_folder
from aerialseg.geo.digest import seen, what_changed
from aerialseg.geo.geobox import GeoBox
from aerialseg.geo.inspection import require_rows
from aerialseg.geo.masks import ResolvedRule, decide_rule, read_mask
from aerialseg.geo.opening import create_raster, open_raster, raster_errors, refuse_remote, writing_errors
from aerialseg.geo.raster import block_windows
from aerialseg.geo.scenes import find_scenes, natural_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rasterio.io import DatasetReader

    from aerialseg.progress import Progress

CITIES = ("bellingham", "bloomington", "innsbruck", "sfo", "tyrol-e")
NUMBERS = range(1, 37)
SIDE = 5000
Form = Literal["1-bit", "8-bit"]
DATE = (1980, 1, 1, 0, 0, 0)
"""The oldest a zip knows: equal masks give equal zips."""
LARGEST_MEMBER = 400_000_000
"""Bytes that a mask in someone else's zip may unpack to; 5000 x 5000 px of 8 bits take 25 million."""
PACKED_BYTES: Mapping[Form, float] = {"1-bit": 0.02, "8-bit": 0.05}
UNPACKED_BYTES: Mapping[Form, float] = {"1-bit": 0.02, "8-bit": 1.0}
"""Disk that a pixel of a mask takes in the zip, and outside it; towns take less than half of it in the zip."""
NAMED = 5
CHUNK = 1 << 20
DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError,
    ValueError,
)  # fmt: skip
"""What Python raises for zips that are broken, encrypted or packed in a way that it does not know."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The masks a submission holds: file name -> (height, width)."""

    sizes: Mapping[str, tuple[int, int]]

    @classmethod
    def of_benchmark(cls) -> Expected:
        """Return the 180 files of the five test cities."""
        return cls({f"{city}{number}.tif": (SIDE, SIDE) for city in CITIES for number in NUMBERS})

    @classmethod
    def of_folder(cls, root: Path) -> Expected:
        """Return a mask for every test scene below an Inria root, or a folder of scenes, with the scenes' own sizes."""
        places = (root / above / "test" / "images" for above in ("", "AerialImageDataset", "data", "raw"))
        folder = next((place for place in places if is_folder(place)), root)
        sizes = {}
        for scene in find_scenes([folder]):
            with open_raster(scene.image) as dataset:
                require_rows(dataset.height, dataset.width, one_line(scene.image))
                sizes[f"{scene.image.stem}.tif"] = dataset.height, dataset.width
        return cls(sizes)


@dataclass(frozen=True, slots=True)
class Submission:
    """What was written or found."""

    path: Path
    files: int
    form: str
    size: int
    """Bytes."""
    building: float
    """Share of all pixels."""
    warnings: tuple[str, ...] = ()


def write_submission(
    predictions: Sequence[str | Path], out: Path, expected: Expected, form: Form, progress: Progress
) -> Submission:
    """Write masks that `predict` made into the zip `out`, check it as a stranger's, and give it its name.

    What is nodata in a mask counts as background. Raises BadDataError naming what is missing or does not fit.
    """
    found, left_out = _find_masks(predictions, expected)
    warnings = [f"{len(left_out)} masks are of no test scene and are left out: {_listed(left_out)}"] if left_out else []
    looks = seen(found.values())
    rule = decide_rule(list(found.values()))
    require_space(out.parent, _disk_bytes(expected, form))
    progress.start("submit", 2 * len(found), "mask")
    with working_folder(out.parent) as folder, staged(out, apart=True) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, path in found.items():
                mask = folder / name
                unknown = _write_mask(path, (mask, out), rule, form, expected.sizes[name])
                if unknown:
                    warnings.append(f"{one_line(path)}: {unknown:,} pixels are nodata and became background")
                entry = zipfile.ZipInfo(name, DATE)
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_STORED if form == "1-bit" else zipfile.ZIP_DEFLATED
                archive.writestr(entry, mask.read_bytes())
                mask.unlink()
                progress.advance(1, note=name)
        if (changed := what_changed(looks, "packed")) is not None:
            raise changed
        checked = check_submission(temporary, expected, progress, called=out)
    progress.finish()
    return Submission(out, checked.files, form, checked.size, checked.building, tuple(warnings))


def _disk_bytes(expected: Expected, form: Form) -> int:
    """Return about how much disk the zip takes, and the largest mask before it is in there."""
    pixels = [height * width for height, width in expected.sizes.values()]
    return int(PACKED_BYTES[form] * sum(pixels) + UNPACKED_BYTES[form] * max(pixels, default=0))


def check_submission(path: Path, expected: Expected, progress: Progress, called: Path | None = None) -> Submission:
    """Check a zip: the names, flat, no side files; sizes, one band, 0 and 255 or one bit, not all of one value.

    Every fault is said, of the file `called` so when that is not its own name; raises BadDataError for the first.
    Nothing is unpacked but one mask at a time, of bounded size.
    """
    refuse_remote(path)
    name = one_line(called or path)
    if not is_regular(path):
        if os.path.lexists(path):
            raise BadDataError(f"{name}: is not a regular file; give the zip to check")
        raise NoInputError(f"{name}: no such file; give the zip to check")
    try:
        with zipfile.ZipFile(path) as archive:
            faults, forms, building = _check_archive(archive, one_line((called or path).name), expected, progress)
    except OSError as error:
        raise ReadError(f"{name}: cannot be read: {error.strerror or error}; check its disk") from error
    except DAMAGE as error:
        raise BadDataError(f"{name}: cannot be read as a zip: {first_line(error)}; make it again") from error
    for fault in faults[1:]:
        progress.say(f"error: {fault}")
    if faults:
        raise BadDataError(faults[0])
    pixels = sum(height * width for height, width in expected.sizes.values())
    return Submission(path, len(expected.sizes), " and ".join(sorted(forms)), path.stat().st_size, building / pixels)


def _check_archive(
    archive: zipfile.ZipFile, shown: str, expected: Expected, progress: Progress
) -> tuple[list[str], set[str], int]:
    """Return the faults, the forms of the masks (1-bit, 8-bit), and the number of building pixels."""
    counts = Counter(entry.filename for entry in archive.infolist())
    faults = _check_names(counts, shown, expected)
    forms, building = set(), 0
    with working_folder(Path(tempfile.gettempdir())) as folder:
        for entry in archive.infolist():
            if entry.filename not in expected.sizes or counts[entry.filename] > 1:
                continue
            try:
                form, count = _check_member(archive, entry, folder, expected.sizes[entry.filename])
                forms.add(form)
                building += count
            except BadDataError as error:
                faults.append(f"{shown}: {error}")
            progress.advance(1, note=entry.filename)
    return faults, forms, building


def _check_names(names: Counter[str], shown: str, expected: Expected) -> list[str]:
    faults = []
    deep = [name for name in names if "/" in name or "\\" in name]
    if deep:
        faults.append(f"{shown}: {_listed(deep)}: folders are not allowed; all masks lie at the top of the zip")
    extra = sorted(set(names) - set(expected.sizes) - set(deep), key=natural_key)
    if extra:
        faults.append(f"{shown}: {_listed(extra)}: not among the {len(expected.sizes)} expected files; take them out")
    missing = sorted(set(expected.sizes) - set(names), key=natural_key)
    if missing:
        faults.append(f"{shown}: {len(missing)} of {len(expected.sizes)} masks are missing: {_listed(missing)}")
    double = sorted(name for name, count in names.items() if count > 1)
    if double:
        faults.append(f"{shown}: {_listed(double)}: more than once in the zip")
    return faults


def _check_member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, size: tuple[int, int]
) -> tuple[str, int]:
    """Return the form and the building pixels of a mask; raises BadDataError."""
    name = PurePosixPath(entry.filename).name
    if entry.file_size > LARGEST_MEMBER:
        raise BadDataError(f"{name}: unpacks to {entry.file_size:,} bytes; a mask takes 25 million at most")
    mask = folder / name
    try:
        with mask.open("wb") as target:
            for chunk in _unpack(archive, entry, name):
                target.write(chunk)
        with open_raster(mask) as dataset:
            return _check_mask(dataset, name, size)
    except OSError as error:
        place = one_line(folder.parent)
        raise StorageError(
            f"{name}: cannot be unpacked in {place}: {error.strerror or error}; free space there, or name another"
            " folder with TMPDIR"
        ) from error
    except BadDataError as error:
        raise BadDataError(str(error).replace(str(mask), name)) from error
    finally:
        mask.unlink(missing_ok=True)


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    """Yield a member's bytes; raises BadDataError when they are damaged, and ReadError when the disk fails."""
    try:
        with archive.open(entry) as packed:
            while chunk := packed.read(CHUNK):
                yield chunk
    except (*DAMAGE, OSError) as error:  # places that cannot be are EINVAL, and damage in bzip2 has no number at all
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise ReadError(f"{name}: cannot be read: {error.strerror}; check the zip's disk") from error
        raise BadDataError(f"{name}: is damaged in the zip: {first_line(error)}; make it again") from error


def _check_mask(dataset: DatasetReader, name: str, size: tuple[int, int]) -> tuple[str, int]:
    found = (dataset.height, dataset.width)
    if dataset.driver != "GTiff":
        raise BadDataError(f"{name}: is {dataset.driver}, expected a TIFF")
    if found != size:
        raise BadDataError(f"{name}: is {found[0]}x{found[1]} px, expected {size[0]}x{size[1]}")
    if dataset.count != 1 or dataset.dtypes[0] != "uint8":
        raise BadDataError(f"{name}: has {dataset.count} bands of {dataset.dtypes[0]}, expected one of 8 bits or 1 bit")
    one_bit = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1"
    high, counts = (1 if one_bit else 255), np.zeros(256, dtype=np.int64)
    for window in block_windows(dataset):
        with raster_errors(Path(name)):
            counts += np.bincount(dataset.read(1, window=window).ravel(), minlength=256)
    strangers = [str(value) for value in np.flatnonzero(counts) if value not in (0, high)]
    if strangers:
        expected = "0 and 1 in a file of one bit" if one_bit else "0 and 255"
        raise BadDataError(f"{name}: holds the values {_listed(strangers)}, expected {expected}")
    if np.count_nonzero(counts) == 1:
        value = "building" if counts[high] else "background"
        raise BadDataError(f"{name}: is all {value}; was the right mask taken?")
    return "1-bit" if one_bit else "8-bit", int(counts[high])


def _find_masks(predictions: Sequence[str | Path], expected: Expected) -> tuple[dict[str, Path], list[str]]:
    """Return the masks by the name they get, in natural order, and those of no test scene."""
    found: dict[str, Path] = {}
    left_out = []
    for scene in find_scenes(predictions):
        name = f"{scene.image.stem}.tif"
        if is_measure(scene.name):
            continue
        if name not in expected.sizes:
            left_out.append(scene.name)
        elif name in found:
            raise BadDataError(f"{one_line(found[name])} and {one_line(scene.image)}: both would be {name}; keep one")
        else:
            found[name] = scene.image
    missing = sorted(set(expected.sizes) - set(found), key=natural_key)
    if missing:
        raise BadDataError(
            f"{one_line(predictions[0])}: {len(missing)} of {len(expected.sizes)} masks are missing:"
            f" {_listed(missing)}; predict the test scenes first (--test-root takes their names from a folder)"
        )
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0]))), left_out


def _write_mask(path: Path, target: tuple[Path, Path], rule: ResolvedRule, form: Form, size: tuple[int, int]) -> int:
    """Write a mask in the form of the benchmark and return how many pixels had no data.

    `target` is the file, and the zip it is for, by which errors of writing are called; those of reading name the mask.
    """
    unknown, (temporary, final) = 0, target
    with open_raster(path) as mask, ExitStack() as files:
        if (mask.height, mask.width) != size:
            raise BadDataError(f"{one_line(path)}: is {mask.height}x{mask.width} px, expected {size[0]}x{size[1]}")
        with writing_errors(final):
            written = files.enter_context(create_raster(temporary, **_profile(GeoBox.of(mask), form)))
        for window in _rows(mask):
            building, valid = read_mask(mask, rule, window)
            unknown += valid.size - int(np.count_nonzero(valid))
            with writing_errors(final):
                written.write(building.astype(np.uint8) * np.uint8(1 if form == "1-bit" else 255), 1, window=window)
        with writing_errors(final):
            files.close()
    return unknown


def _rows(mask: DatasetReader) -> Iterator[Any]:
    """Yield full-width windows of 512 rows: a strip of a compressed file is written once, as a whole."""
    from rasterio.windows import Window

    for row in range(0, mask.height, 512):
        yield Window(0, row, mask.width, min(512, mask.height - row))


def _profile(box: GeoBox, form: Form) -> dict[str, Any]:
    place = {"crs": box.crs, "transform": box.transform} if box.georeferenced else {}
    packing = {"compress": "CCITTFAX4", "nbits": 1, "blockysize": 512} if form == "1-bit" else {"blockysize": 512}
    return {
        "driver": "GTiff",
        "height": box.height,
        "width": box.width,
        "count": 1,
        "dtype": "uint8",
        **packing,
        **place,
    }


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(one_line, names[:NAMED])) + more
