"""A network translated by torch.compile, and what is said when it cannot be; run with: make test-all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from known_networks import Counting, plain

from aerialseg.errors import DeviceError
from aerialseg.models.build import Segmenter, build_network
from aerialseg.models.device import compile_error
from aerialseg.models.presets import resolve
from aerialseg.prediction import network as forward
from aerialseg.prediction.network import EngineSettings, Forward

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("InvalidCxxCompiler: No working C++ compiler found in x: (None, 'g++')\n\nSet TORCH", "no C++ compiler"),
        ("CppCompileError: fatal error: Python.h: No such file", "Python's header files"),
        ("Cannot find a working triton installation", "no Triton"),
        ("something new", "torch's compiler failed"),
    ],
)
def test_what_is_missing_is_named_in_one_line(text: str, named: str) -> None:
    message = str(compile_error(RuntimeError(text), CPU))
    assert named in message and "run without --compile" in message and "\n" not in message


def test_a_compiler_that_fails_is_known_before_a_scene_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(forward, "translated", lambda network: Broken())
    with pytest.raises(DeviceError, match="no C\\+\\+ compiler"):
        Forward(plain(Counting()), EngineSettings(64, 0.25, 2, CPU, compile=True))


def test_a_translated_network_sees_batches_of_one_size_alone(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "translated", lambda network: network)
    network = Counting()
    for size in [(1, 1), (200, 150)]:
        stream(scene_file(tmp_path / f"{size[0]}.tif", size=size), plain(network), batch=8, compile=True)
    assert set(network.sizes) == {8}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("tta", ["none", "d4"])
def test_compiled_and_eager_probabilities_agree(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], tta: str
) -> None:
    torch.manual_seed(0)
    spec = resolve(architecture="linknet", encoder="tu-lcnet_035", bands=3, weights="none")
    segmenter = Segmenter(build_network(spec), [100.0] * 3, [50.0] * 3).eval()
    path = scene_file(tmp_path / "scene.tif", size=(200, 150))
    eager, compiled = (stream(path, segmenter, batch=4, tta=tta, compile=flag).astype(int) for flag in (False, True))
    assert eager.std() > 1
    assert np.abs(eager - compiled).max() <= 254 * 1e-2


@pytest.mark.slow
def test_a_machine_without_a_compiler_says_so(tmp_path: Path) -> None:
    code = (
        "import torch; from aerialseg.prediction.network import EngineSettings, Forward;"
        "from aerialseg.models.build import Segmenter;"
        "net = torch.nn.Conv2d(3, 1, 3, padding=1);"
        "Forward(Segmenter(net, [0.0] * 3, [1.0] * 3), EngineSettings(64, 0, 1, torch.device('cpu'), compile=True))"
    )
    environment = {**os.environ, "CXX": "/nowhere/g++", "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "DeviceError: --compile on cpu: there is no C++ compiler" in found.stderr
