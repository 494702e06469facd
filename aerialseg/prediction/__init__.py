"""Whole scenes through a model: `engine` streams one scene, `job` runs many, resumes, and reports."""

from __future__ import annotations
