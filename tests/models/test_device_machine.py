"""What the operating system shows of a card: every trace on its own, in a tree made for the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from aerialseg.models.device import Gpu, Machine, cpu_name, find_card, read_cpu_flags

if TYPE_CHECKING:
    from pathlib import Path

CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  gcc 12.2.0"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build  (dvs@builder)  Wed Feb 26"
CPUINFO = (
    "processor\t: 0\nmodel name\t: Made Up 9000\nflags\t\t: fpu avx512_bf16 amx_bf16\n\nprocessor\t: 1\nflags\t: fpu\n"
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def smi(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_an_empty_machine_has_no_card(tmp_path: Path) -> None:
    assert find_card(tmp_path, "no-such-program") is None


@pytest.mark.parametrize(("text", "driver"), [(CLOSED, "535.104.05"), (OPEN, "570.124.06"), ("odd", None)])
def test_the_driver_names_itself(tmp_path: Path, text: str, driver: str | None) -> None:
    write(tmp_path / "proc/driver/nvidia/version", text)
    assert find_card(tmp_path, "no-such-program") == Gpu(driver=driver)


def test_a_device_file_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "dev/nvidia0", "")
    assert find_card(tmp_path, "no-such-program") == Gpu()


@pytest.mark.parametrize(
    ("vendor", "kind", "seen"),
    [
        ("0x10de", "0x030000", True),
        ("0x10de", "0x030200", True),
        ("0x10de", "0x040300", False),
        ("0x1002", "0x030000", False),
    ],
)
def test_a_card_without_a_driver_is_on_the_bus(tmp_path: Path, vendor: str, kind: str, seen: bool) -> None:
    """0x0403 is the sound device of a card that was passed through elsewhere; 0x1002 is AMD."""
    write(tmp_path / "sys/bus/pci/devices/0000:01:00.0/vendor", vendor + "\n")
    write(tmp_path / "sys/bus/pci/devices/0000:01:00.0/class", kind + "\n")
    assert find_card(tmp_path, "no-such-program") == (Gpu() if seen else None)


def test_nvidia_smi_knows_most(tmp_path: Path) -> None:
    program = smi(tmp_path, "echo 'Tesla V100-SXM2-16GB, 470.82.01, 7.0'; echo 'Tesla V100-SXM2-16GB, 470.82.01, 7.0'")
    assert find_card(tmp_path, program) == Gpu("Tesla V100-SXM2-16GB", "470.82.01", "7.0")


@pytest.mark.parametrize("script", ["echo 'Failed, driver, version'; exit 9", "exit 0", "echo garbage", "sleep 9"])
def test_a_failing_nvidia_smi_leaves_the_other_traces(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aerialseg.models.device.SMI_TIMEOUT_S", 0.5)
    write(tmp_path / "proc/driver/nvidia/version", CLOSED)
    assert find_card(tmp_path, smi(tmp_path, script)) == Gpu(driver="535.104.05")


def test_flags_and_name_of_the_processor(tmp_path: Path) -> None:
    write(tmp_path / "cpuinfo", CPUINFO)
    assert read_cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx512_bf16", "amx_bf16"}
    assert cpu_name(tmp_path / "cpuinfo") == "Made Up 9000"
    assert read_cpu_flags(tmp_path / "none") == frozenset()
    assert cpu_name(tmp_path / "none")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_kernel_runs_here(precision: str) -> None:
    Machine().run_kernel(torch.device("cpu"), precision)


def test_a_kernel_that_computes_nonsense_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda pixels, weight: (pixels[:, :, 2:, 2:] * weight.sum()) * 0)
    with pytest.raises(RuntimeError, match="where 324 is right"):
        Machine().run_kernel(torch.device("cpu"), "fp32")


@pytest.mark.parametrize(
    ("value", "hidden"), [("", True), ("-1", True), ("0", False), ("GPU-1234", False), (None, False)]
)
def test_cards_can_be_hidden_on_purpose(value: str | None, hidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert Machine().cards_hidden() is hidden
