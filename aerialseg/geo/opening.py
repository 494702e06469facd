"""The one place that opens raster files, and what keeps a hostile or broken one from doing harm.

A file is opened by its local path alone, by drivers from an allow-list, without the overview files beside it; remote
paths, driver-prefixed strings and virtual formats are refused before GDAL sees them (see `aerialseg.geo` for the rest).
Errors of rasterio, of GDAL and of the operating system become one line that names the file. Calls into rasterio that
burn or warp arrays in memory set Python's warning filters while they run; these belong to the whole process, and
threads that open files meanwhile rely on them, so all such calls take turns.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, DatasetWriter

from aerialseg.errors import AerialsegError, BadDataError, NoInputError, ReadError, StorageError, UsageError, one_line
from aerialseg.files import (
    TEMPORARY,
    exists,
    is_folder,
    is_full,
    is_regular,
    lasting,
    no_space,
    open_regular,
    output_error,
)
from aerialseg.geo.digest import irregular_beside

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG")
"""What scenes and masks may be; a COG is a GTiff when read."""
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]+:")
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY)}[\w.-]+")
_STATEMENT = re.compile(r"sqlite3?_\w+\(.*\) failed: ", re.DOTALL)
_BLOCK = re.compile(r"band (\d+): IReadBlock failed at X offset (\d+), Y offset (\d+)")
_CONTENT = (
    (re.compile(rb"<VRT(Dataset|RasterBand)"), "is a GDAL virtual raster: gdal_translate it to a GeoTIFF"),
    (re.compile(rb"(?i)^\s*(<!doctype html|<html)"), "is a web page, not a raster: the download went wrong"),
    (re.compile(rb"^\s*<"), "is XML, not a raster"),
    (re.compile(rb"^version https://git-lfs"), "is a Git LFS pointer, not the raster itself: git lfs pull"),
    (re.compile(rb"^PK\x03\x04"), "is a zip archive: unpack it first"),
)
_lock = threading.Lock()


def _hush_libtiff() -> None:
    """Let the libtiff of rasterio's wheel print nothing: what it says of a full disk, rasterio raises too."""
    places = Path(rasterio.__file__).parent
    for library in (*places.parent.glob("rasterio.libs/*tiff*"), *places.glob(".dylibs/*tiff*")):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)


_hush_libtiff()


@contextmanager
def open_raster(path: Path, *, overviews: bool = False) -> Iterator[DatasetReader]:
    """Open a local raster for reading, guarded; use it in the thread and process that opened it.

    With `overviews`, those beside it are opened, too, by whatever driver fits: for temporary files of our own only.
    Raises UsageError for a remote or driver-prefixed path, NoInputError for a missing file, BadDataError for anything
    that is not a raster of an allowed format and ReadError when the disk fails.
    """
    name = checked_path(path)
    complaints = _Complaints()
    try:
        # The Env lasts for the opening only: datasets may be closed in any order, Envs may not.
        with rasterio.Env(), complaints.listening():
            dataset = _Reader(name, driver=list(DRIVERS), **({} if overviews else {"OVERVIEW_LEVEL": "NONE"}))
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise BadDataError(f"{one_line(path)}: {_what_it_is(path, error)}") from error
    with dataset:
        if complaints.damage:
            damage = one_line(complaints.damage[0])
            raise BadDataError(f"{one_line(path)}: {damage}; the file is damaged, copy it again")
        yield dataset


@contextmanager
def create_raster(path: Path, **profile: Any) -> Iterator[DatasetWriter]:
    """Create a raster at a temporary path; the caller verifies and renames it."""
    with rasterio.Env():
        dataset = _Writer(path, "w", **profile)
    with dataset:
        yield dataset


def checked_path(path: Path) -> str:
    """Return the absolute name under which GDAL may see `path`; raises what `open_raster` raises for the path itself.

    An absolute name cannot be taken for a driver's own syntax, whatever characters it holds.
    """
    refuse_remote(path)
    name = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow links and lose side files)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BadDataError(f"{one_line(path)}: the file name is not UTF-8; rename it") from error
    if not os.path.lexists(name):
        raise NoInputError(f"{one_line(path)}: no such file")
    if is_folder(path):
        raise BadDataError(f"{one_line(path)}: is a folder, not a raster")
    if not is_regular(path):
        reason = "is a link to nothing" if path.is_symlink() else "is not a regular file"
        raise BadDataError(f"{one_line(path)}: {reason}")
    refuse_irregular_beside(path)
    _refuse_hostile_mask(path)
    return name


def refuse_remote(path: Path | str) -> None:
    """Raise UsageError for what GDAL would take as an address or as a driver's syntax instead of a local file."""
    text = str(path)
    virtual = re.match(r"/+vsi", os.path.abspath(text)) or re.match(r"/+vsi", text)  # noqa: PTH100
    if virtual or (_PREFIX.match(text) and not os.path.lexists(text)):
        raise UsageError(f"{one_line(text)}: only local files are read; download it first and give its path")


def refuse_irregular_beside(path: Path) -> None:
    """Raise BadDataError when a pipe or a device stands where GDAL would look for a side file of `path`, and hang."""
    beside = irregular_beside(path)
    if beside is not None:
        raise BadDataError(
            f"{one_line(beside)}: is not a regular file, and would be read with {one_line(path.name)}; remove it"
        )


@contextmanager
def raster_errors(path: Path, place: str = "") -> Iterator[None]:
    """Turn what rasterio, GDAL and the system raise while `path` is read into our errors.

    `place` says what was being read, for a message in which GDAL does not.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        raise BadDataError(f"{one_line(path)}: {_reason(error, place)}") from error
    except FileNotFoundError as error:
        raise NoInputError(f"{one_line(path)}: no such file") from error
    except PermissionError as error:
        raise NoInputError(f"{one_line(path)}: may not be read; check its permissions") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):
            raise NoInputError(f"{one_line(path)}: {error.strerror}; give another path") from error
        reason = error.strerror or error
        raise ReadError(f"{one_line(path)}: cannot be read: {reason}; check its disk and run again") from error


@contextmanager
def writing_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn what rasterio, GDAL and the system raise while `path` is written into StorageError or OutputError.

    `needed` is about how many bytes were to be written. A file of ours that does not open again is a writing error too.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError, BadDataError) as error:
        raise write_error(path, _causes(error)[-1], needed) from error
    except OSError as error:
        raise output_error(path, error) from error


def write_error(path: Path, reason: str, needed: int = 0) -> StorageError:
    """Return the error for a file that could not be written; GDAL hides that a disk is full, so look at it."""
    if is_full(path.parent, needed):
        return no_space(path, needed)
    reason = _STATEMENT.sub("SQLite: ", _TEMPORARY.sub(path.name, reason))
    return StorageError(f"{one_line(lasting(path))}: writing failed: {one_line(reason)}; check the disk and run again")


def is_tiff(path: Path) -> bool:
    """Return whether a file starts like a TIFF; False when it cannot be read."""
    try:
        with open_regular(path) as stream:
            return stream.read(4) in TIFF_MAGIC
    except OSError:
        return False


def _refuse_hostile_mask(path: Path) -> None:
    """Refuse a mask file that is no TIFF: GDAL opens it with any driver, so it could name another file."""
    for suffix in (".msk", ".MSK"):
        mask = Path(f"{path}{suffix}")
        if exists(mask) and not is_tiff(mask):
            raise BadDataError(f"{one_line(mask)}: is not a TIFF mask; remove it or make it again")


def _what_it_is(path: Path, error: Exception) -> str:
    """Say what a file holds that no driver could open: from its first bytes, else in GDAL's words.

    Raises ReadError when the disk fails.
    """
    try:
        with open_regular(path) as stream:
            head = stream.read(1024)
    except OSError as refusal:
        if refusal.errno == errno.EIO:
            raise ReadError(
                f"{one_line(path)}: cannot be read: {refusal.strerror}; check its disk and run again"
            ) from refusal
        return f"may not be read: {refusal.strerror}"
    if not head:
        return "is empty (0 bytes)"
    for pattern, meaning in _CONTENT:
        if pattern.search(head):
            return meaning
    codec = _causes(error)[-1]
    if "not recognized as being in a supported file format" in codec:
        return "is not a GeoTIFF, JPEG 2000, PNG or JPEG"
    return f"cannot be opened: {one_line(codec)}; the file is damaged, copy it again"


def _reason(error: BaseException, place: str) -> str:
    """Say in one line what GDAL could not do: the block where it names one, and the codec's own words."""
    causes = _causes(error)
    codec = one_line(causes[-1])
    block = next(filter(None, map(_BLOCK.search, causes)), None)
    if block is not None:
        where = f"block row {block[3]}, column {block[2]} of band {block[1]}"
        within = f" ({place})" if place else ""
        return f"{where} cannot be read{within}: {codec}; the file is damaged, copy it again"
    return f"{place or 'it'} cannot be read: {codec}; the file is damaged, copy it again"


def _causes(error: BaseException) -> list[str]:
    """Return the messages of an error and its causes, outermost first; GDAL's first complaint is the last."""
    messages: list[str] = []
    link: BaseException | None = error
    while link is not None and not isinstance(link, AerialsegError):  # what was being handled already is no cause
        text = str(getattr(link, "errmsg", "") or link).strip()
        if text and not text.startswith("Read failed. See previous"):
            messages.append(text)
        link = link.__cause__ or link.__context__
    return messages or [type(error).__name__]


class _Reader(DatasetReader):  # type: ignore[misc]
    """A dataset that knows whether it has a geotransform, and says so without a warning.

    Under OVERVIEW_LEVEL GDAL before 3.12 leaves uninitialised memory where a missing geotransform should be identity.
    rasterio asks for GCPs and RPCs, before it warns, exactly when GDAL reported that there is no geotransform.
    """

    _unplaced = False

    def _has_gcps_or_rpcs(self) -> bool:
        self._unplaced = True
        return True

    def read_transform(self) -> list[float]:
        """Return the geotransform in GDAL's order; the identity when the file has none."""
        found: list[float] = super().read_transform()
        return [0.0, 1.0, 0.0, 0.0, 0.0, 1.0] if self._unplaced else found


class _Writer(DatasetWriter):  # type: ignore[misc]
    """A dataset to be written, without rasterio's warning when it has no place on the ground yet."""

    def _has_gcps_or_rpcs(self) -> bool:
        return True


class _Complaints(logging.Handler):
    """What GDAL only warns about while a file is opened, although the file is damaged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.damage: list[str] = []
        """Tags that could not be read: nodata or the CRS may be among them."""
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message that speaks of damage; files that other threads open are logged here too."""
        text = record.getMessage()
        if record.thread == self._thread and "IO error during reading" in text:
            self.damage.append(text.rpartition(": ")[2])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive rasterio's log while a file is opened."""
        logger = logging.getLogger("rasterio._env")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hold the warning filters, with rasterio's complaint about arrays without a place on the ground switched off."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
