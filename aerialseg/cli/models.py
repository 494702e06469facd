"""Placeholder."""

from __future__ import annotations


def models() -> None:
    """Not built yet."""
