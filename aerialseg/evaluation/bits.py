"""Masks as bits, 64 pixels to a word: growing and counting them costs a small part of what it does on bytes.

A mask of (rows, cols) becomes uint64 (rows, words); column c is bit c % 64 of word c // 64. Bits beyond the last column
are zero in what `pack` returns; they may be set in what `grow` returns, so a result is always cut by a packed mask.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
WORD = 64


def pack(mask: NDArray[np.bool_]) -> Bits:
    """Return a boolean mask (rows, cols) as bits (rows, words)."""
    rows, cols = mask.shape
    packed = np.zeros((rows, -(-cols // WORD) * (WORD // 8)), dtype=np.uint8)
    packed[:, : -(-cols // 8)] = np.packbits(mask, axis=1, bitorder="little")
    words: Bits = packed.view("<u8")
    return words


def count(bits: Bits) -> int:
    """Return how many bits are set."""
    return int(_set_bits()[np.ascontiguousarray(bits).view(np.uint16)].sum(dtype=np.int64))


def grow(bits: Bits, radius: int) -> Bits:
    """Return the pixels whose centre lies within `radius` pixels (Euclidean) of a set pixel's, those included.

    Nothing is known beyond the array: rows that matter there must be in it. A disk is a stack of horizontal runs, so
    it takes 2 x radius shifts along the rows and as many of whole rows.
    """
    across, reached = bits.copy(), 0
    grown = np.zeros_like(bits)
    for down in range(radius, -1, -1):  # from the disk's narrowest row to its widest
        while reached < math.isqrt(radius * radius - down * down):
            reached += 1
            across |= _shifted(bits, reached)
        if down == 0:
            grown |= across
        elif down < len(bits):
            grown[down:] |= across[:-down]
            grown[:-down] |= across[down:]
    return grown


def _shifted(bits: Bits, by: int) -> Bits:
    """Return the pixels `by` columns (1 to 63) to the right of a set one, and those to the left of one."""
    step, back = np.uint64(by), np.uint64(WORD - by)
    shifted = (bits << step) | (bits >> step)
    shifted[:, 1:] |= bits[:, :-1] >> back
    shifted[:, :-1] |= bits[:, 1:] << back
    return shifted


@cache
def _set_bits() -> NDArray[np.uint8]:
    """Return the number of set bits of every 16-bit value (numpy counts them itself from 2.0 on only)."""
    table = np.zeros(1 << 16, dtype=np.uint8)
    for bit in range(16):
        table[1 << bit : 2 << bit] = table[: 1 << bit] + 1
    return table
