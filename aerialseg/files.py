"""What the program promises about files: whole or absent, never over an input, never through a link.

Every output is written under a temporary name in its own folder, flushed to the disk and renamed. Temporary names
start with `TEMPORARY`, so that what a killed run left behind can be recognised and swept.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from aerialseg import system
from aerialseg.errors import (
    AerialsegError,
    BadDataError,
    InUseError,
    OutputError,
    ReadError,
    StorageError,
    UsageError,
    one_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from io import BufferedRandom

TEMPORARY = ".aerialseg-"
WORKING = f"{TEMPORARY}work-"
LOCK = f"{TEMPORARY}lock"
SHARING_S, POLL_S = 60.0, 0.1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ALMOST_FULL, MOST_TRIED = 1 << 20, 1 << 24
"""A disk with fewer bytes free is full, whatever a library says; and how many are written to see whether they can."""
LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What network disks answer that are mounted without locks."""


def is_regular(path: Path) -> bool:
    """Return whether `path` is a regular file or leads to one; False for all that cannot be looked at.

    Unlike Path.is_file, it never raises: not for a name of over 255 bytes, nor for a link in a circle.
    """
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder or leads to one; False, as in `is_regular`, where that cannot be told."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path) -> bool:
    """Return whether anything is at `path`, or where its link leads; False where that cannot be told."""
    return os.path.exists(path)  # noqa: PTH110


def resolved(path: Path) -> Path:
    """Return the absolute path without links; one that leads in a circle stays in it. Never raises OSError."""
    return Path(os.path.realpath(path))


def open_regular(path: Path, mode: str = "rb") -> BufferedRandom:
    """Open a regular file, or begin one; raises OSError for anything else: pipes would block, devices never end."""
    if exists(path) and not is_regular(path):
        code = errno.EISDIR if is_folder(path) else errno.EINVAL
        raise OSError(code, os.strerror(code) if is_folder(path) else "Not a regular file", str(path))
    return cast("BufferedRandom", path.open(mode))


DIGEST = "aerialseg-sha256:"
PLACEHOLDER = DIGEST + "0" * 64
"""Stands in a file's content where the digest of its own bytes is to be embedded (see `aerialseg.geo.ownership`)."""


@contextmanager
def staged(final: Path, *, apart: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `final`; on success flush it and rename it to `final`, on failure remove it.

    The temporary name keeps the suffix (drivers look at it) and is short, so that a `final` of 255 bytes works. A
    symbolic link at `final` is replaced, never followed. For who does not hold the place in `final`'s folder, the file
    lies `apart`, in a working folder: another run's sweep would remove it. Raises StorageError when the disk is full
    and OutputError for any other refusal of the operating system.
    """
    _refuse_reserved(final)
    with _output_errors(final), ExitStack() as folders:
        folder = folders.enter_context(working_folder(final.parent)) if apart else final.parent
        with temporary_file(folder, final.suffix[-16:]) as temporary:
            yield temporary
            commit(temporary, final)


@contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the path of an empty file in `folder`, removed at the end with what GDAL may have put beside it."""
    with _output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = reserve(folder, suffix)
    try:
        yield path
    finally:
        for left in (path, Path(f"{path}.aux.xml")):
            with suppress(PermissionError):  # open on Windows: a later sweep finds it
                left.unlink(missing_ok=True)


@contextmanager
def working_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder in `parent`, removed at the end with all that is in it.

    Those that killed runs left in `parent` are removed first. It is locked while it is used: so a sweep can tell.
    """
    with _output_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for other in parent.glob(f"{WORKING}*/"):
            _sweep_folder(other)
        folder = parent / f"{WORKING}{secrets.token_hex(6)}"
        folder.mkdir()
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def commit(temporary: Path, final: Path) -> None:
    """Flush `temporary` to the disk and rename it to `final` on the same disk.

    Raises InUseError when another program keeps `final` from being replaced, as on Windows: it is as it was, and the
    new file stays beside it until the next sweep.
    """
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    try:
        system.replace(temporary, final)
    except OSError as error:
        if not system.is_in_use(error, final):
            raise
        kept = final.with_name(f"{TEMPORARY}new-{final.name}")
        temporary.replace(kept)
        raise InUseError(f"{_in_use(final)} (what was to replace it is in {one_line(kept.name)})") from error


def remove(path: Path) -> None:
    """Remove a file that may be gone already; raises OutputError when the operating system refuses."""
    with _output_errors(path):
        path.unlink(missing_ok=True)


def reserve(folder: Path, suffix: str) -> Path:
    """Create an empty file in `folder` under a name that nobody has and `sweep` knows, and return its path.

    Unlike `tempfile.mkstemp` with the permissions of the umask, which a process with threads cannot look up safely.
    """
    path = folder / f"{TEMPORARY}{secrets.token_hex(6)}{suffix}"
    path.touch(exist_ok=False)
    return path


def write_bytes(final: Path, content: bytes, *, apart: bool = False) -> None:
    """Write `content` to `final` as a whole, or not at all; `apart` as in `staged`."""
    with staged(final, apart=apart) as temporary:
        temporary.write_bytes(content)


def write_text(final: Path, text: str, *, apart: bool = False) -> None:
    """Write UTF-8 `text` to `final` as a whole, or not at all; `apart` as in `staged`."""
    write_bytes(final, text.encode(), apart=apart)


def write_json(final: Path, value: Any) -> None:
    """Write `value` as indented JSON to `final`; NaN is refused, for JSON has none."""
    write_text(final, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file's bytes as hex; raises ReadError when it cannot be read."""
    try:
        with open_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ReadError(f"{one_line(path)}: cannot be read: {error.strerror}; check its disk and run again") from error


def prepare_output_folder(folder: Path) -> None:
    """Create `folder` and prove that files can be written in it; raises OutputError otherwise.

    Raises BadDataError for a name that is not UTF-8: neither GDAL nor a report in JSON can hold it.
    """
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError as error:
        raise BadDataError(f"{one_line(folder)}: the folder's name is not UTF-8; give another one with -o") from error
    _refuse_reserved(folder)
    with _output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        reserve(folder, "").unlink(missing_ok=True)  # another run may sweep here


def refuse_input_as_output(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Raise UsageError when an output is an input: by name, by link, or with only the case differing."""
    known = {identity: path for path in inputs for identity in _identities(path)}
    for output in outputs:
        for identity in _identities(output):
            if identity in known:
                raise UsageError(
                    f"{one_line(output)}: this output would overwrite the input {one_line(known[identity])};"
                    " give another folder with -o"
                )


@contextmanager
def locked(
    folder: Path,
    *,
    shared: bool = False,
    on_exclusive: Callable[[], object] = lambda: None,
    waiting: Callable[[], object] | None = None,
) -> Iterator[bool]:
    """Hold a writer's place in `folder`, with others that share it or alone; yield whether nobody else was there.

    If so, `on_exclusive` was called before anybody else could come. Raises OutputError when a living process holds the
    place otherwise: after SHARING_S for a shared lock, since another run may be alone while it sweeps a slow disk;
    at once for an exclusive one, unless `waiting` is given: then not before it is free. `waiting` is called ten times a
    second in every wait. The kernel drops the lock with its process, so a killed run never leaves one behind.
    """
    with _output_errors(folder / LOCK):
        stream = open_regular(folder / LOCK, "ab")
    with stream:
        alone = _lock(stream)
        if alone:
            on_exclusive()
        held, deadline = alone and not shared, time.monotonic() + SHARING_S
        while shared and not (held := _lock(stream, shared=True)) and time.monotonic() < deadline:
            if waiting is not None:
                waiting()
            time.sleep(POLL_S)
        while waiting is not None and not shared and not held:
            waiting()
            time.sleep(POLL_S)
            held = _lock(stream)
        if not held:
            raise OutputError(
                f"{one_line(folder)}: another aerialseg run is writing here; wait for it, or give another -o"
            )
        yield alone


def _lock(stream: IO[bytes], *, shared: bool = False) -> bool:
    """Try to lock an open file; return False when somebody holds it otherwise."""
    try:
        return system.try_lock(stream, shared=shared)
    except OSError as error:
        if error.errno in LOCKLESS:
            raise OutputError(
                f"{one_line(Path(stream.name).parent)}: its disk knows no locks ({error.strerror}), so a second run"
                " would go unnoticed; write to a local disk with -o and copy the result, or mount it with locks"
            ) from error
        raise output_error(Path(stream.name), error) from error


def sweep(folder: Path, keep: Collection[Path] = ()) -> int:
    """Remove the temporaries that killed runs left below `folder`, and return how many; call it with the lock held.

    A folder further down with a lock of its own is another run's, which may be alive, and is left alone; a working
    folder goes as a whole when nobody holds its lock.
    """
    working = {path for path in folder.rglob(f"{WORKING}*") if is_folder(path)}
    swept = sum(map(_sweep_folder, working))
    found = [path for path in folder.rglob(f"{TEMPORARY}*") if not is_folder(path) and working.isdisjoint(path.parents)]
    others = [path.parent for path in found if path.name == LOCK and path.parent != folder]
    stale = [path for path in found if path.name != LOCK and not any(map(path.is_relative_to, others))]
    stale = [path for path in stale if path not in keep]
    for path in stale:
        with suppress(PermissionError):  # open on Windows
            path.unlink(missing_ok=True)
    return len(stale) + swept


def _sweep_folder(folder: Path) -> bool:
    """Remove a working folder whose run is gone; return whether it was. One without a lock was never in use."""
    if not is_regular(folder / LOCK) or folder.is_symlink():
        return False
    try:
        with locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
    except OutputError:
        return False
    shutil.rmtree(folder, ignore_errors=True)  # on Windows the lock file stays as long as it is open
    return True


def require_space(folder: Path, needed: float) -> None:
    """Raise StorageError when the disk of `folder`, which need not be there yet, has fewer than `needed` bytes free."""
    free = free_space(folder)
    if free < needed:
        raise StorageError(
            f"{one_line(lasting(folder))}: {_room(free, needed)}; free some, or give a folder on another disk"
        )


def free_space(folder: Path) -> int:
    """Return how many bytes are free on the disk of a folder, which need not be there yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if is_folder(place))
    return shutil.disk_usage(there).free


def no_space(final: Path, needed: float = 0) -> StorageError:
    """Return the error for a disk that was full before `final`, of about `needed` bytes if that is known, was whole."""
    shown, folder = (one_line(lasting(path)) for path in (final, final.parent))
    free = free_space(final.parent)
    room = _room(free, needed)
    if free >= max(needed, ALMOST_FULL):
        room += ", so a quota or a limit on files is reached"
    where = "no space" if shown == folder else f"no space on {folder}"
    return StorageError(f"{shown}: {where}: {room}; free some and run again")


def is_full(folder: Path, needed: float = 0) -> bool:
    """Return whether a folder takes no more, after a library could not write there and did not say why.

    A quota and a limit on files leave the disk free: what would be written is tried, up to a few megabytes.
    """
    if not is_folder(folder):
        return False
    if free_space(folder) < max(needed, ALMOST_FULL):
        return True
    try:
        with temporary_file(folder, "") as trial:
            trial.write_bytes(bytes(min(max(int(needed), ALMOST_FULL), MOST_TRIED)))
    except StorageError:
        return True
    except OSError as error:
        return error.errno in FULL
    return False


def size_line(size: float) -> str:
    """Return a number of bytes as people read it, never as none at all."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 0.1):,.1f} MB"


def _room(free: int, needed: float) -> str:
    left = f"{size_line(free) if free else 'none'} {'are' if free else 'is'} free"
    return f"about {size_line(needed)} are needed, {left}" if needed else left


def usable_processors() -> int:
    """Return how many processors this process may use; all of them where the system does not say which (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that can still be used: the kernel's estimate, or what a container's limit leaves."""
    meminfo = root / "proc/meminfo"
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text() if is_regular(meminfo) else "", re.MULTILINE)
    if found is None:
        import psutil  # Windows, macOS

        return int(psutil.virtual_memory().available)
    available = int(found.group(1)) * 1024
    limit, used = (root / f"sys/fs/cgroup/memory.{name}" for name in ("max", "current"))
    if is_regular(limit) and is_regular(used) and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def lasting(path: Path) -> Path:
    """Return the path as a user knows it: without what is below a temporary name, and without that name."""
    temporary = [part for part in (path, *path.parents) if part.name.startswith(TEMPORARY)]
    return temporary[-1].parent if temporary else path


def output_error(final: Path, error: OSError) -> AerialsegError:
    """Return our error for the operating system's refusal to write `final`."""
    if error.errno in FULL:
        return no_space(final)
    if system.is_in_use(error, final):
        return InUseError(_in_use(final))
    reason = error.strerror or str(error)
    return OutputError(f"{one_line(final)}: cannot be written: {reason}; give another folder with -o")


def _in_use(final: Path) -> str:
    return f"{one_line(final)}: is open in another program, QGIS perhaps; close it and run again"


def _refuse_reserved(final: Path) -> None:
    """Raise OutputError for a path that Windows would take for another one, or for a device."""
    name = system.reserved_name(final)
    if name is not None:
        raise OutputError(f"{one_line(final)}: Windows has no files called {one_line(name)}; give another name")


@contextmanager
def _output_errors(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(final, error) from error


def _identities(path: Path) -> set[object]:
    """Return what `path` is known by: its resolved name without regard to case and, if it exists, its inode."""
    identities: set[object] = {str(resolved(path)).casefold()}
    if exists(path):
        status = path.stat()
        identities.add((status.st_dev, status.st_ino))
    return identities
