"""Where networks run and in which number format, decided once and passed down; and what the machine has to run them.

`auto` never falls back to the CPU silently: an NVIDIA card that is there but unusable is an error that names its
driver, its compute capability and what torch needs. `Machine` gathers facts only (torch's view, the operating system's,
and one kernel as proof); what follows from them is decided by functions that take one, so that every rule is tested
without a card.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from aerialseg.errors import DeviceError, UsageError, first_line, one_line
from aerialseg.files import exists, is_regular

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The oldest Linux driver by CUDA's major version (NVIDIA's CUDA compatibility guide)."""
CPU_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
BF16_CAPABILITY = (8, 0)
CPU_INSTEAD = "or say --device cpu"
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "_STATUS_ALLOC_FAILED",
    "create a primitive",
)
COMPILER_NEEDS = {
    "No working C++ compiler": "there is no C++ compiler; torch looks for g++ or $CXX",
    "Python.h": "Python's header files are missing (Debian: python3-dev)",
    "riton": "there is no Triton, which compiles for GPUs",
    "Failed to find C compiler": "there is no C compiler; Triton looks for gcc or $CC",
}
"""What torch says when it cannot compile, and what that means."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES with which a user or a scheduler takes every card away on purpose."""
SMI_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device as doctor shows it; `precisions` maps a format to "ok" or to why a kernel in it failed."""

    device: str
    name: str
    capability: str | None
    memory_bytes: int | None
    precisions: dict[str, str]
    automatic_precision: str


def pick_device(wanted: str = "auto", *, system: Machine | None = None) -> torch.device:
    """Return the device of that name, proved by running a kernel: auto, cpu, cuda, cuda:N or mps.

    Raises UsageError for another name and DeviceError when the device is not there or does not work; `auto` raises too
    when an NVIDIA card is there and cannot be used, unless CUDA_VISIBLE_DEVICES hides it on purpose.
    """
    system = system or Machine()
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", wanted):
        raise UsageError(f"--device is {one_line(wanted)!r}, expected auto, cpu, cuda, cuda:N or mps")
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted == "mps":
        if not system.mps():
            raise DeviceError(f"--device mps: torch {torch.__version__} finds no Apple GPU; say --device cpu")
        return torch.device("mps")
    count, reason = system.cuda_devices()
    if count:
        return _working_cuda(int(wanted.partition(":")[2] or 0), count, system)
    card = system.card()
    if wanted == "auto" and (card is None or system.cards_hidden()):
        return torch.device("mps" if system.mps() else "cpu")
    raise DeviceError(f"--device {wanted}: {_why_unusable(card, reason, system)}")


def every_gpu(*, system: Machine | None = None) -> tuple[str, ...]:
    """Return the names of all CUDA devices, each proved by running a kernel; raises DeviceError when there is none."""
    system = system or Machine()
    pick_device("cuda", system=system)
    names = tuple(f"cuda:{index}" for index in range(system.cuda_devices()[0]))
    for name in names:
        pick_device(name, system=system)
    return names


def pick_precision(wanted: str, device: torch.device, *, system: Machine | None = None) -> str:
    """Return fp32, bf16 or fp16 for `device`; auto takes the fastest that is sound there.

    auto: bf16 on CUDA from compute capability 8.0 and on processors with bf16 instructions, fp16 on older cards, fp32
    elsewhere. Raises UsageError for another name and DeviceError for a format the device has no fast kernels for.
    """
    system = system or Machine()
    if wanted not in ("auto", *TYPES):
        raise UsageError(f"--precision is {one_line(wanted)!r}, expected auto, fp32, bf16 or fp16")
    if device.type == "cuda" and torch.version.hip is None:
        capability = system.capability(device.index or 0)
        if wanted == "bf16" and capability < BF16_CAPABILITY:
            found = ".".join(map(str, capability))
            raise DeviceError(
                f"{device}: bf16 needs compute capability 8.0, the card has {found}; say --precision fp16"
            )
        return wanted if wanted != "auto" else "bf16" if capability >= BF16_CAPABILITY else "fp16"
    if device.type == "cuda":
        return "bf16" if wanted == "auto" else wanted
    if device.type == "cpu" and wanted == "fp16":
        raise DeviceError("cpu: fp16 is slow and overflows on a processor; say --precision auto, bf16 or fp32")
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cpu" and CPU_BF16 & system.cpu_flags() else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which the forward pass runs, and nothing else does."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, TYPES[precision])


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device, or the machine, refused memory: then a smaller batch may work."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


def translated(network: nn.Module) -> nn.Module:
    """Return the network for torch.compile to translate at its first batch, which raises what `compile_error` reads.

    Each shape of batch is translated by itself, so batches should be equal.
    """
    return torch.compile(network, dynamic=False)  # type: ignore[return-value]


def compile_error(error: BaseException, device: torch.device) -> DeviceError:
    """Return the error for a network that torch could not translate for `device`, naming what is missing."""
    text = str(error)
    missing = next((what for sign, what in COMPILER_NEEDS.items() if sign in text), "torch's compiler failed")
    reason = one_line(text.partition("\n")[0])[:200]
    return DeviceError(f"--compile on {device}: {missing} ({reason}); run without --compile, or install what it needs")


def wait_for(device: torch.device) -> None:
    """Return when all that was handed to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe_devices(*, system: Machine | None = None) -> tuple[DeviceReport, ...]:
    """Return every device torch can use, the CPU last, with one kernel run on it in each precision."""
    system = system or Machine()
    names = [f"cuda:{index}" for index in range(system.cuda_devices()[0])] + (["mps"] if system.mps() else [])
    reports = []
    for device in map(torch.device, (*names, "cpu")):
        precisions = dict.fromkeys(TYPES, "ok")
        for precision in TYPES:
            try:
                system.run_kernel(device, precision)
            except (RuntimeError, TypeError) as error:
                precisions[precision] = first_line(error)
        name, capability, memory = "Apple GPU" if device.type == "mps" else cpu_name(), None, None
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            name, memory = properties.name, properties.total_memory
            capability = ".".join(map(str, system.capability(device.index)))
        automatic = pick_precision("auto", device, system=system)
        reports.append(DeviceReport(str(device), name, capability, memory, precisions, automatic))
    return tuple(reports)


def unusable_card(*, system: Machine | None = None) -> str | None:
    """Say why the NVIDIA card of this machine cannot be used; None when it can, or there is none."""
    system = system or Machine()
    count, reason = system.cuda_devices()
    card = None if count or system.cards_hidden() else system.card()
    return None if card is None else _why_unusable(card, reason, system)


def _working_cuda(index: int, count: int, system: Machine) -> torch.device:
    if index >= count:
        last = f"cuda:{count - 1}"
        raise DeviceError(f"--device cuda:{index}: torch finds {count} CUDA device(s), the last one is {last}")
    device = torch.device("cuda", index)
    try:
        system.run_kernel(device, "fp32")
    except RuntimeError as error:
        capability = ".".join(map(str, system.capability(index)))
        reason, needs = first_line(error), _needs(system)
        raise DeviceError(
            f"{device}: a kernel does not run on this card of compute capability {capability}:"
            f" {reason}; {needs}; install a torch that has its kernels, free the card,"
            f" {CPU_INSTEAD}"
        ) from error
    return device


def _why_unusable(card: Gpu | None, reason: str, system: Machine) -> str:
    """Name what is there, what torch needs and what to do, in one line."""
    if card is None:
        return f"no CUDA device: no NVIDIA card or driver is visible here; {_needs(system)}; say --device cpu"
    seen = f"an NVIDIA card is here ({card.name or 'name unknown'}, driver {card.driver or 'not visible'}"
    seen += f", compute capability {card.capability or 'unknown'})"
    if system.cards_hidden():
        return f"{seen} but CUDA_VISIBLE_DEVICES hides it; unset that, {CPU_INSTEAD}"
    said = f" (torch says: {one_line(reason)[:200]})" if reason else ""
    return f"{seen} but torch cannot use it{said}; {_needs(system)}; {_advice(card, system)}, {CPU_INSTEAD}"


def _needs(system: Machine) -> str:
    version, architectures = system.cuda_build()
    if version is None:
        return f"torch {torch.__version__} is a build without CUDA"
    oldest = _oldest_driver(version)
    driver = f"driver {oldest} or newer" if oldest else "a driver made for it"
    kernels = f" and a card among {' '.join(architectures)}" if architectures else ""
    return f"torch {torch.__version__} for CUDA {version} needs {driver}{kernels}"


def _advice(card: Gpu, system: Machine) -> str:
    version, _ = system.cuda_build()
    if version is None:
        return "install torch with CUDA"
    if card.driver is None:
        return "install NVIDIA's driver, or give the card to the container (docker run --gpus all)"
    oldest, found = _oldest_driver(version), card.driver.partition(".")[0]
    if oldest and found.isdigit() and int(found) < oldest:
        older = [major for major, driver in OLDEST_DRIVER.items() if driver <= int(found)]
        return "update the driver" + (f", or install a torch for CUDA {max(older)}" if older else "")
    return "give the card to the container (docker run --gpus all), check nvidia-smi"


def _oldest_driver(version: str) -> int | None:
    return OLDEST_DRIVER.get(int(version.partition(".")[0]))


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA card as the operating system shows it; None where it does not say."""

    name: str | None = None
    driver: str | None = None
    capability: str | None = None


class Machine:
    """What the rules for devices ask of a machine: this one."""

    def cuda_devices(self) -> tuple[int, str]:
        """Return how many CUDA devices torch can use and, when none, why in its own words (may be empty)."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return count, " ".join(str(warning.message) for warning in said) if count == 0 else ""

    def capability(self, index: int) -> tuple[int, int]:
        """Return a CUDA device's compute capability."""
        return torch.cuda.get_device_capability(index)

    def cuda_build(self) -> tuple[str | None, tuple[str, ...]]:
        """Return the CUDA, or HIP, version torch was built with (None: a build for the CPU) and the kernels' GPUs."""
        return torch.version.cuda or torch.version.hip, tuple(torch.cuda.get_arch_list())

    def run_kernel(self, device: torch.device, precision: str) -> None:
        """Convolve, multiply and differentiate a constant; raises RuntimeError when it cannot or comes out wrong."""
        pixels = torch.ones(1, 1, 8, 8, device=device)
        weight = torch.ones(1, 1, 3, 3, device=device, requires_grad=True)
        with torch.autocast(device.type, TYPES[precision], enabled=precision != "fp32"):
            total = torch.nn.functional.conv2d(pixels, weight).flatten(1) @ torch.ones(36, 1, device=device)
        (gradient,) = torch.autograd.grad(total.float().sum(), weight)
        if abs(total.item() - 324) > 2 or abs(gradient.sum().item() - 324) > 2:
            raise RuntimeError(f"a {precision} kernel gave {total.item()} where 324 is right")

    def mps(self) -> bool:
        """Return whether Apple's device is usable."""
        return torch.backends.mps.is_available()

    def card(self) -> Gpu | None:
        """Return the NVIDIA card the operating system shows, usable or not."""
        return find_card()

    def cards_hidden(self) -> bool:
        """Return whether CUDA_VISIBLE_DEVICES takes all cards away on purpose."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "0") in HIDDEN

    def cpu_flags(self) -> frozenset[str]:
        """Return the processor's feature flags; empty where the system does not list them."""
        return read_cpu_flags(Path("/proc/cpuinfo"))


def find_card(root: Path = Path("/"), smi: str = "nvidia-smi") -> Gpu | None:
    """Return the first NVIDIA card that `smi` lists or `root`'s /proc, /dev and /sys show; None when there is none.

    A card without a driver is found on the PCI bus (vendor 0x10de, class display or 3D controller).
    """
    command = [smi, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
        fields = [part.strip() for part in answer.stdout.partition("\n")[0].split(",")]
        if answer.returncode == 0 and len(fields) == 3:
            return Gpu(*fields)
    version = root / "proc/driver/nvidia/version"
    if is_regular(version):
        found = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)*)\b", version.read_text(errors="replace"))
        return Gpu(driver=found.group(1) if found else None)
    if exists(root / "dev/nvidia0") or any(_is_nvidia(folder) for folder in root.glob("sys/bus/pci/devices/*")):
        return Gpu()
    return None


def read_cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Return the feature flags of the first processor that `cpuinfo` lists."""
    text = cpuinfo.read_text(errors="replace") if is_regular(cpuinfo) else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name as the system gives it."""
    text = cpuinfo.read_text(errors="replace") if is_regular(cpuinfo) else ""
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _is_nvidia(folder: Path) -> bool:
    try:
        vendor, kind = (folder / "vendor").read_text().strip(), (folder / "class").read_text().strip()
    except OSError:
        return False
    return vendor == "0x10de" and kind.startswith(("0x0300", "0x0302"))
