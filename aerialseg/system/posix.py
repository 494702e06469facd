"""The half of `aerialseg.system` for Linux and macOS."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    raise ImportError("this is the other half")

import errno
import fcntl
import re
import resource
import signal
from pathlib import Path
from typing import IO, Any

STOPS = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask for a clean stop."""
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def try_lock(stream: IO[Any], *, shared: bool = False) -> bool:
    """Lock an open file, alone or with others that share it; return False when somebody holds it otherwise.

    The kernel drops the lock with the last process that has the file open. A lock that `stream` has already is given
    up for the new one. Raises OSError; ENOLCK, ENOSYS or EOPNOTSUPP when the disk knows no locks.
    """
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return False
        raise
    return True


def remove_locked(path: Path, stream: IO[Any]) -> None:
    """Remove the file that `stream` has open and locked, and close it."""
    path.unlink(missing_ok=True)
    stream.close()


def replace(source: Path, final: Path) -> None:
    """Rename a file of the same disk to `final`, whatever stands there and whoever reads it."""
    source.replace(final)


def is_in_use(error: OSError, path: Path) -> bool:
    """Whether `path` could not be replaced or removed because another program has it open: that hinders nobody here."""
    return False


def reserved_name(path: Path) -> str | None:
    """Return the first part of a path that the system takes for something else: there is none."""
    return None


def is_reader_gone(error: OSError) -> bool:
    """Whether standard output cannot be written because its reader has left: `| head`."""
    return isinstance(error, BrokenPipeError)


def encode_output() -> None:
    """Let standard output and error hold every character: they do."""


def fresh_processes(preload: list[str]) -> Any:
    """Return a context whose processes start from one that has loaded the modules of `preload` and nothing else."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    return context


def held_memory() -> int | None:
    """Return the bytes of memory this process holds; None where the system does not say (macOS)."""
    return _status("VmRSS")


def peak_memory() -> int | None:
    """Return the most bytes it held since `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Begin a new peak."""
    if FORGET.exists():
        FORGET.write_text("5")  # proc(5)


def limit_memory(more: int) -> None:
    """Let this process ask for at most so many bytes more; what asks for more fails, before others are killed."""
    held = _status("VmData")
    if held is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (held + more, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _status(name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text() if STATUS.is_file() else "", re.MULTILINE)
    return None if found is None else int(found.group(1)) * 1024
