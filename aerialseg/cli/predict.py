"""Placeholder."""

from __future__ import annotations


def predict() -> None:
    """Not built yet."""
