"""Fixtures: small rasters made at test time, the command line in and out of process, and hashes of whole folders."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rasters import rectangles, write_raster

import aerialseg.geo  # noqa: F401  (configures GDAL before rasterio is imported)

if TYPE_CHECKING:
    from collections.abc import Callable

POSIX = re.compile(
    r"^import (fcntl|resource)$|SIG(KILL|TERM|STOP|CONT)|mkfifo|import posix|umask|/dev/full", re.MULTILINE
)
"""What Windows has not: modules of tests that need it are left out there."""
if sys.platform == "win32":
    modules = Path(__file__).parent.rglob("test_*.py")
    collect_ignore = [str(path) for path in modules if POSIX.search(path.read_text(encoding="utf-8"))]


@pytest.fixture(autouse=True, scope="module")
def _one_torch_thread_for_what_a_module_shares() -> None:
    """Without it a test that runs alone compares a fixture trained with two threads with what it trains with one."""
    use_one_torch_thread()


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    use_one_torch_thread()


def use_one_torch_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m aerialseg ARGUMENTS` in a process of its own."""

    def call(*arguments: Any, env: dict[str, str] | None = None, timeout: float = 120, **options: Any) -> Any:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        command = [sys.executable, "-m", "aerialseg", *map(str, arguments)]
        return subprocess.run(
            command, env=environment, timeout=timeout, capture_output=True, text=True, check=False, **options
        )

    return call


@pytest.fixture(autouse=True)
def unknown_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the width of a terminal that pytest-xdist gives its workers: tables would be turned to fit into it."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line inside this process; returns (exit code, stdout, stderr)."""
    from aerialseg.cli import main

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def scene_file() -> Callable[..., Path]:
    """Write a test raster; the arguments are those of `write_raster`."""
    return write_raster


@pytest.fixture(scope="session")
def mask_file() -> Callable[..., Path]:
    """Write a mask of rectangles, 0 and 255, on the grid of `scene_file`'s default."""

    def write(path: Path, array: Any = None, *, size: tuple[int, int] = (128, 128), **profile: Any) -> Path:
        return write_raster(path, rectangles(*size) if array is None else array, **profile)

    return write


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a model with random weights: `tiny_model(path=None, bands=3, tile_size=64, **card)`."""

    def save(path: Path | None = None, *, bands: int = 3, tile_size: int = 64, **card: Any) -> Path:
        import torch

        from aerialseg.models.build import Segmenter, build_network
        from aerialseg.models.package import ModelCard, save_model
        from aerialseg.models.presets import resolve

        torch.manual_seed(0)
        spec = resolve(preset="unet-r18", bands=bands, weights="none")
        mean, std = (100.0,) * bands, (50.0,) * bands
        values = {
            "preset": spec.preset, "architecture": spec.architecture, "encoder": spec.encoder,
            "encoder_arguments": dict(spec.encoder_arguments), "bands": bands, "mean": mean, "std": std,
            "tile_size": tile_size, "overlap": 0.25, **card,
        }  # fmt: skip
        final = path or tmp_path_factory.mktemp("model") / "model.safetensors"
        save_model(final, Segmenter(build_network(spec), mean, std), ModelCard(**values))
        return final

    return save


@pytest.fixture(scope="session")
def tree_hashes() -> Callable[[Path], dict[str, str]]:
    """Return relative path -> SHA-256 for every file below a folder."""

    def hashes(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return hashes
