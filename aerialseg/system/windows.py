"""The half of `aerialseg.system` for Windows.

What the system offers there (msvcrt, kernel32) is looked up when it is called, so that this half can be imported and
tried on any machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import SpawnContext

STOPS = (signal.SIGINT, getattr(signal, "SIGBREAK", signal.SIGTERM))
"""Ctrl-C, and Ctrl-Break or a window that is closed. Nothing sends SIGTERM there: to terminate a process ends it."""
SHARING_VIOLATION, LOCK_VIOLATION, IO_PENDING, USER_MAPPED_FILE, ACCESS_DENIED = 32, 33, 997, 1224, 5
LOCKLESS = (1, 50)
"""ERROR_INVALID_FUNCTION and ERROR_NOT_SUPPORTED, of shared folders without locks."""
FAIL_IMMEDIATELY, EXCLUSIVE = 1, 2
LOCKED_BYTE = 2**62
"""A lock keeps others from reading what it covers, so it covers one byte that no file has."""
PATIENCE_S, POLL_S = 2.0, 0.1
"""Virus scanners and indexers open a new file for a moment."""
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
REFUSED = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$')


class Overlapped(ctypes.Structure):
    """OVERLAPPED: where in a file a lock begins."""

    _fields_ = (
        ("internal", ctypes.c_void_p),
        ("internal_high", ctypes.c_void_p),
        ("offset", ctypes.c_uint32),
        ("offset_high", ctypes.c_uint32),
        ("event", ctypes.c_void_p),
    )


def try_lock(stream: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file, alone or with others that share it; return False when somebody holds it otherwise.

    The system drops the lock with the process. A lock that `stream` has already is given up for the new one. Raises
    OSError; ENOLCK when the disk knows no locks. https://learn.microsoft.com/windows/win32/api/fileapi/nf-fileapi-lockfileex
    """
    api: Any = ctypes
    kernel = api.WinDLL("kernel32", use_last_error=True)
    handle = ctypes.c_void_p(import_module("msvcrt").get_osfhandle(stream.fileno()))
    place = Overlapped(offset=LOCKED_BYTE & 0xFFFF_FFFF, offset_high=LOCKED_BYTE >> 32)
    kernel.UnlockFileEx(handle, 0, 1, 0, ctypes.byref(place))
    flags = FAIL_IMMEDIATELY | (0 if shared else EXCLUSIVE)
    if kernel.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(place)):
        return True
    code = api.get_last_error()
    if code in (LOCK_VIOLATION, IO_PENDING):
        return False
    raise OSError(errno.ENOLCK if code in LOCKLESS else errno.EIO, f"LockFileEx: error {code}")


def remove_locked(path: Path, stream: IO[Any]) -> None:
    """Remove the file that `stream` has open and locked, and close it: first, for an open file cannot be removed.

    Who opened it in between keeps it.
    """
    stream.close()
    with suppress(PermissionError):
        path.unlink(missing_ok=True)


def replace(source: Path, final: Path) -> None:
    """Rename a file of the same disk to `final`; what is in use is tried for PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            source.replace(final)
            return
        except PermissionError as error:
            if not is_in_use(error, final) or time.monotonic() >= deadline:
                raise
        time.sleep(POLL_S)


def is_in_use(error: OSError, path: Path) -> bool:
    """Whether `path` could not be replaced or removed because another program has it open."""
    code = getattr(error, "winerror", None)
    if code == ACCESS_DENIED:  # a rename says so, too, of a target that is open, and of one that may not be written
        return path.is_file() and os.access(path, os.W_OK)
    return code in (SHARING_VIOLATION, LOCK_VIOLATION, USER_MAPPED_FILE)


def reserved_name(path: Path) -> str | None:
    """Return the first part of a path that the system takes for a device, a stream, or another name; None without.

    https://learn.microsoft.com/windows/win32/fileio/naming-a-file
    """
    whole = PureWindowsPath(path)
    names = [name for name in whole.parts if name not in (whole.anchor, ".", "..")]
    return next((name for name in names if DEVICES.fullmatch(name) or REFUSED.search(name)), None)


def is_reader_gone(error: OSError) -> bool:
    """Whether standard output cannot be written because its reader has left: `| more`, ended with q."""
    return isinstance(error, BrokenPipeError) or error.errno == errno.EINVAL


def encode_output() -> None:
    """Let standard output and error hold every character: what their code page lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def fresh_processes(preload: list[str]) -> SpawnContext:
    """Return a context whose processes start from nothing; each loads the modules of `preload` itself."""
    import multiprocessing

    return multiprocessing.get_context("spawn")


def held_memory() -> int | None:
    """Return the bytes of memory this process holds."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int | None:
    """Return the most bytes it ever held: Windows begins no new peak."""
    import psutil

    return int(psutil.Process().memory_info().peak_wset)


def forget_peak() -> None:
    """Do nothing: Windows begins no new peak."""


def limit_memory(more: int) -> None:
    """Do nothing: Windows promises no memory that it lacks, so what asks for too much fails, and nobody is killed."""
