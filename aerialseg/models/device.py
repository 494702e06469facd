"""Where networks run and in which number format, decided once and passed down.

`auto` never falls back to the CPU silently: an NVIDIA card that is there but unusable is an error that names its
driver, its compute capability and what torch needs.
"""

from __future__ import annotations

import contextlib
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from aerialseg.errors import DeviceError, UsageError, first_line, one_line
from aerialseg.models.machine import TYPES, Card, Machine, System, cpu_name

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The oldest Linux driver by CUDA's major version (NVIDIA's CUDA compatibility guide)."""
CPU_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
BF16_CAPABILITY = (8, 0)
CPU_INSTEAD = "or say --device cpu"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")

COMPILER_NEEDS = {
    "No working C++ compiler": "there is no C++ compiler; torch looks for g++ or $CXX",
    "Python.h": "Python's header files are missing (Debian: python3-dev)",
    "riton": "there is no Triton, which compiles for GPUs",
    "Failed to find C compiler": "there is no C compiler; Triton looks for gcc or $CC",
}
"""What torch says when it cannot compile, and what that means."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device as doctor shows it; `precisions` maps a format to "ok" or to why a kernel in it failed."""

    device: str
    name: str
    capability: str | None
    memory_bytes: int | None
    precisions: dict[str, str]
    automatic_precision: str


def pick_device(wanted: str = "auto", *, system: System | None = None) -> torch.device:
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


def every_gpu(*, system: System | None = None) -> tuple[str, ...]:
    """Return the names of all CUDA devices, each proved by running a kernel; raises DeviceError when there is none."""
    system = system or Machine()
    pick_device("cuda", system=system)
    names = tuple(f"cuda:{index}" for index in range(system.cuda_devices()[0]))
    for name in names:
        pick_device(name, system=system)
    return names


def pick_precision(wanted: str, device: torch.device, *, system: System | None = None) -> str:
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


def describe_devices(*, system: System | None = None) -> tuple[DeviceReport, ...]:
    """Return every device torch can use, the CPU last, with one kernel run on it in each precision."""
    system = system or Machine()
    names = [f"cuda:{index}" for index in range(system.cuda_devices()[0])] + (["mps"] if system.mps() else [])
    return tuple(_describe(torch.device(name), system) for name in (*names, "cpu"))


def unusable_card(*, system: System | None = None) -> str | None:
    """Say why the NVIDIA card of this machine cannot be used; None when it can, or there is none."""
    system = system or Machine()
    count, reason = system.cuda_devices()
    card = None if count or system.cards_hidden() else system.card()
    return None if card is None else _why_unusable(card, reason, system)


def _working_cuda(index: int, count: int, system: System) -> torch.device:
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


def _why_unusable(card: Card | None, reason: str, system: System) -> str:
    """Name what is there, what torch needs and what to do, in one line."""
    if card is None:
        return f"no CUDA device: no NVIDIA card or driver is visible here; {_needs(system)}; say --device cpu"
    seen = f"an NVIDIA card is here ({card.name or 'name unknown'}, driver {card.driver or 'not visible'}"
    seen += f", compute capability {card.capability or 'unknown'})"
    if system.cards_hidden():
        return f"{seen} but CUDA_VISIBLE_DEVICES hides it; unset that, {CPU_INSTEAD}"
    said = f" (torch says: {one_line(reason)[:200]})" if reason else ""
    return f"{seen} but torch cannot use it{said}; {_needs(system)}; {_advice(card, system)}, {CPU_INSTEAD}"


def _needs(system: System) -> str:
    version, architectures = system.cuda_build()
    if version is None:
        return f"torch {torch.__version__} is a build without CUDA"
    oldest = _oldest_driver(version)
    driver = f"driver {oldest} or newer" if oldest else "a driver made for it"
    kernels = f" and a card among {' '.join(architectures)}" if architectures else ""
    return f"torch {torch.__version__} for CUDA {version} needs {driver}{kernels}"


def _advice(card: Card, system: System) -> str:
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


def _describe(device: torch.device, system: System) -> DeviceReport:
    precisions: dict[str, str] = {}
    for precision in TYPES:
        try:
            system.run_kernel(device, precision)
            precisions[precision] = "ok"
        except (RuntimeError, TypeError) as error:
            precisions[precision] = first_line(error)
    name, capability, memory = cpu_name(), None, None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
        capability = ".".join(map(str, system.capability(device.index)))
    elif device.type == "mps":
        name = "Apple GPU"
    automatic = pick_precision("auto", device, system=system)
    return DeviceReport(str(device), name, capability, memory, precisions, automatic)
