"""What Windows and POSIX do differently: locks, stops, replacing files, names, processes and their memory.

Both halves offer the same names, and the one of this machine stands here. Neither is told from the other anywhere else.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from aerialseg.system.windows import (
        STOPS,
        encode_output,
        forget_peak,
        fresh_processes,
        held_memory,
        is_in_use,
        is_reader_gone,
        limit_memory,
        peak_memory,
        remove_locked,
        replace,
        reserved_name,
        try_lock,
    )
else:
    from aerialseg.system.posix import (
        STOPS,
        encode_output,
        forget_peak,
        fresh_processes,
        held_memory,
        is_in_use,
        is_reader_gone,
        limit_memory,
        peak_memory,
        remove_locked,
        replace,
        reserved_name,
        try_lock,
    )

__all__ = [
    "STOPS",
    "encode_output",
    "forget_peak",
    "fresh_processes",
    "held_memory",
    "is_in_use",
    "is_reader_gone",
    "limit_memory",
    "peak_memory",
    "remove_locked",
    "replace",
    "reserved_name",
    "try_lock",
]
