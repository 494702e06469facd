"""Placeholder."""

from __future__ import annotations


def tile() -> None:
    """Not built yet."""
