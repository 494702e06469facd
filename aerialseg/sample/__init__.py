"""Draws aerial scenes with their building masks: what the demo, the tests and the benchmarks run on."""

from __future__ import annotations

from aerialseg.sample.scenes import draw_scene, scene_box, write_sample

__all__ = ["draw_scene", "scene_box", "write_sample"]
