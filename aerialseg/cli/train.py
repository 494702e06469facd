"""Placeholder."""

from __future__ import annotations


def train() -> None:
    """Not built yet."""
