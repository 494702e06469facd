"""What the machine has to compute with: torch's view of it, the operating system's view, and one kernel as proof.

Facts only; what follows from them is decided in device.py. `System` is that module's view of `Machine`, so that every
rule can be tested without a card.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES with which a user or a scheduler takes every card away on purpose."""
SMI_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Card:
    """An NVIDIA card as the operating system shows it; None where it does not say."""

    name: str | None = None
    driver: str | None = None
    capability: str | None = None


class System(Protocol):
    """What device.py asks of a machine."""

    def cuda_devices(self) -> tuple[int, str]:
        """Return how many CUDA devices torch can use and, when none, why in its own words (may be empty)."""

    def capability(self, index: int) -> tuple[int, int]:
        """Return a CUDA device's compute capability."""

    def cuda_build(self) -> tuple[str | None, tuple[str, ...]]:
        """Return the CUDA version torch was built with (None: a CPU build) and the architectures it has kernels for."""

    def run_kernel(self, device: torch.device, precision: str) -> None:
        """Train one tiny step there; raises RuntimeError when it cannot or comes out wrong."""

    def mps(self) -> bool:
        """Return whether Apple's device is usable."""

    def card(self) -> Card | None:
        """Return the NVIDIA card the operating system shows, usable or not."""

    def cards_hidden(self) -> bool:
        """Return whether the environment takes all cards away on purpose."""

    def cpu_flags(self) -> frozenset[str]:
        """Return the processor's feature flags; empty where the system does not list them."""


class Machine:
    """The System this process runs on."""

    def cuda_devices(self) -> tuple[int, str]:
        """Ask torch, and keep the warning in which it says why there is none."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return count, " ".join(str(warning.message) for warning in said) if count == 0 else ""

    def capability(self, index: int) -> tuple[int, int]:
        """Ask torch."""
        return torch.cuda.get_device_capability(index)

    def cuda_build(self) -> tuple[str | None, tuple[str, ...]]:
        """Ask torch; a ROCm build answers with its HIP version."""
        return torch.version.cuda or torch.version.hip, tuple(torch.cuda.get_arch_list())

    def run_kernel(self, device: torch.device, precision: str) -> None:
        """Convolve, multiply and differentiate a constant whose result is known."""
        pixels = torch.ones(1, 1, 8, 8, device=device)
        weight = torch.ones(1, 1, 3, 3, device=device, requires_grad=True)
        with torch.autocast(device.type, TYPES[precision], enabled=precision != "fp32"):
            total = torch.nn.functional.conv2d(pixels, weight).flatten(1) @ torch.ones(36, 1, device=device)
        (gradient,) = torch.autograd.grad(total.float().sum(), weight)
        if abs(total.item() - 324) > 2 or abs(gradient.sum().item() - 324) > 2:
            raise RuntimeError(f"a {precision} kernel gave {total.item()} where 324 is right")

    def mps(self) -> bool:
        """Ask torch."""
        return torch.backends.mps.is_available()

    def card(self) -> Card | None:
        """Look at the driver's files, the PCI bus and nvidia-smi."""
        return find_card()

    def cards_hidden(self) -> bool:
        """Look at CUDA_VISIBLE_DEVICES."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "0") in HIDDEN

    def cpu_flags(self) -> frozenset[str]:
        """Read /proc/cpuinfo."""
        return read_cpu_flags(Path("/proc/cpuinfo"))


def find_card(root: Path = Path("/"), smi: str = "nvidia-smi") -> Card | None:
    """Return the first NVIDIA card that `smi` lists or `root`'s /proc, /dev and /sys show; None when there is none.

    A card without a driver is found on the PCI bus (vendor 0x10de, class display or 3D controller).
    """
    listed = _ask_smi(smi)
    if listed is not None:
        return listed
    version = root / "proc/driver/nvidia/version"
    if version.is_file():
        found = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)*)\b", version.read_text(errors="replace"))
        return Card(driver=found.group(1) if found else None)
    if (root / "dev/nvidia0").exists() or any(_is_nvidia(folder) for folder in root.glob("sys/bus/pci/devices/*")):
        return Card()
    return None


def read_cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Return the feature flags of the first processor that `cpuinfo` lists."""
    if not cpuinfo.is_file():
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as the system gives it."""
    found = (
        re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if (cpuinfo.is_file())
        else None
    )
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _ask_smi(smi: str) -> Card | None:
    command = [smi, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    fields = [part.strip() for part in answer.stdout.splitlines()[0].split(",")] if answer.stdout.strip() else []
    return Card(fields[0], fields[1], fields[2]) if answer.returncode == 0 and len(fields) == 3 else None


def _is_nvidia(folder: Path) -> bool:
    try:
        vendor, kind = (folder / "vendor").read_text().strip(), (folder / "class").read_text().strip()
    except OSError:
        return False
    return vendor == "0x10de" and kind.startswith(("0x0300", "0x0302"))
