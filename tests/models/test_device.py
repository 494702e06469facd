"""The rules of devices and precisions, on machines made up for the purpose; none of these tests needs a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch

from aerialseg.errors import DeviceError, UsageError
from aerialseg.models.device import (
    Gpu,
    autocast,
    describe_devices,
    is_out_of_memory,
    pick_device,
    pick_precision,
    unusable_card,
)

V100 = Gpu("Tesla V100-SXM2-16GB", "470.82.01", "7.0")
H200 = Gpu("NVIDIA H200", "580.65.06", "9.0")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@dataclass
class MadeUp:
    """A machine with whatever the test says; the default has no accelerator."""

    devices: int = 0
    reason: str = ""
    compute: tuple[int, int] = (9, 0)
    build: str | None = "13.0"
    broken: str = ""
    apple: bool = False
    seen: Gpu | None = None
    hidden: bool = False
    flags: frozenset[str] = frozenset()

    def cuda_devices(self) -> tuple[int, str]:
        return self.devices, self.reason

    def capability(self, index: int) -> tuple[int, int]:
        return self.compute

    def cuda_build(self) -> tuple[str | None, tuple[str, ...]]:
        return self.build, ("sm_75", "sm_90") if self.build else ()

    def run_kernel(self, device: torch.device, precision: str) -> None:
        if self.broken:
            raise RuntimeError(f"{self.broken}\nCUDA kernel errors might be reported elsewhere")

    def mps(self) -> bool:
        return self.apple

    def card(self) -> Gpu | None:
        return self.seen

    def cards_hidden(self) -> bool:
        return self.hidden

    def cpu_flags(self) -> frozenset[str]:
        return self.flags


@pytest.mark.parametrize(
    ("wanted", "system", "device"),
    [
        ("auto", MadeUp(), "cpu"),
        ("auto", MadeUp(apple=True), "mps"),
        ("auto", MadeUp(devices=2, seen=H200), "cuda:0"),
        ("cuda", MadeUp(devices=1), "cuda:0"),
        ("cuda:1", MadeUp(devices=2), "cuda:1"),
        ("mps", MadeUp(apple=True), "mps"),
        ("cpu", MadeUp(devices=1, seen=H200), "cpu"),
        ("cpu", MadeUp(seen=V100), "cpu"),
        ("auto", MadeUp(seen=H200, hidden=True), "cpu"),
    ],
)
def test_the_device_asked_for_or_the_best_one_is_used(wanted: str, system: MadeUp, device: str) -> None:
    assert str(pick_device(wanted, system=system)) == device


@pytest.mark.parametrize(
    ("wanted", "system", "said"),
    [
        ("cuda", MadeUp(), ["no CUDA device", "CUDA 13.0 needs driver 580", "--device cpu"]),
        ("cuda:0", MadeUp(build=None), ["no CUDA device", "a build without CUDA"]),
        ("cuda:2", MadeUp(devices=2), ["cuda:2", "2 CUDA device", "cuda:1"]),
        ("mps", MadeUp(), ["no Apple GPU", "--device cpu"]),
        ("cuda", MadeUp(seen=H200, hidden=True), ["NVIDIA H200", "CUDA_VISIBLE_DEVICES hides it"]),
        (
            "auto",
            MadeUp(seen=V100, reason="The NVIDIA driver on your system is too old (found version 11040)."),
            [
                "V100",
                "driver 470.82.01",
                "compute capability 7.0",
                "too old",
                "driver 580",
                "sm_75 sm_90",
                "torch for CUDA 11",
            ],
        ),
        ("auto", MadeUp(seen=H200, build=None), ["H200", "a build without CUDA", "install torch with CUDA"]),
        ("auto", MadeUp(seen=Gpu()), ["driver not visible", "install NVIDIA's driver", "--gpus all", "--device cpu"]),
        ("auto", MadeUp(seen=Gpu("?", "[N/A]", "[N/A]")), ["driver [N/A]", "check nvidia-smi"]),
        ("auto", MadeUp(seen=Gpu(None, "535.1", None), build="14.1"), ["535.1", "a driver made for it"]),
        ("auto", MadeUp(seen=H200), ["H200", "580.65.06", "check nvidia-smi"]),
        (
            "auto",
            MadeUp(devices=1, seen=V100, compute=(7, 0), broken="CUDA error: no kernel image is available"),
            ["cuda:0", "compute capability 7.0", "no kernel image", "sm_75 sm_90", "--device cpu"],
        ),
    ],
)
def test_a_device_that_cannot_be_used_is_never_replaced_silently(wanted: str, system: MadeUp, said: list[str]) -> None:
    with pytest.raises(DeviceError) as caught:
        pick_device(wanted, system=system)
    message = str(caught.value)
    assert [piece for piece in said if piece not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "CPU", "", "cuda:0\n", "xpu"])
def test_other_names_are_a_usage_error(wanted: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda, cuda:N or mps"):
        pick_device(wanted, system=MadeUp(devices=1))


@pytest.mark.parametrize(
    ("wanted", "device", "system", "precision"),
    [
        ("auto", CUDA, MadeUp(compute=(9, 0)), "bf16"),
        ("auto", CUDA, MadeUp(compute=(8, 0)), "bf16"),
        ("auto", CUDA, MadeUp(compute=(7, 5)), "fp16"),
        ("fp16", CUDA, MadeUp(compute=(9, 0)), "fp16"),
        ("fp32", CUDA, MadeUp(compute=(7, 0)), "fp32"),
        ("auto", CPU, MadeUp(), "fp32"),
        ("auto", CPU, MadeUp(flags=frozenset({"avx512_bf16"})), "bf16"),
        ("auto", CPU, MadeUp(flags=frozenset({"amx_bf16"})), "bf16"),
        ("bf16", CPU, MadeUp(), "bf16"),
        ("auto", torch.device("mps"), MadeUp(apple=True), "fp32"),
    ],
)
def test_precision_follows_the_device(wanted: str, device: torch.device, system: MadeUp, precision: str) -> None:
    assert pick_precision(wanted, device, system=system) == precision


@pytest.mark.parametrize(
    ("wanted", "device", "kind", "said"),
    [
        ("bf16", CUDA, DeviceError, "compute capability 8.0, the card has 7.5"),
        ("fp16", CPU, DeviceError, "fp16"),
        ("half", CPU, UsageError, "expected auto, fp32, bf16 or fp16"),
    ],
)
def test_a_precision_the_device_is_bad_at_is_refused(
    wanted: str, device: torch.device, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        pick_precision(wanted, device, system=MadeUp(compute=(7, 5)))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_wraps_what_is_inside_only(precision: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(2, 2)
    with autocast(CPU, precision):
        assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_a_refusal_of_memory_counts_as_one(error: BaseException, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


def test_the_processor_s_own_refusal_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


def test_devices_are_described_by_what_ran_on_them() -> None:
    (cpu,) = describe_devices(system=MadeUp(broken="no such instruction"))
    assert (cpu.device, cpu.automatic_precision) == ("cpu", "fp32")
    assert cpu.precisions == dict.fromkeys(("fp32", "bf16", "fp16"), "no such instruction")


def test_only_a_card_that_is_there_and_not_hidden_counts_as_unusable() -> None:
    assert unusable_card(system=MadeUp()) is None
    assert unusable_card(system=MadeUp(devices=1, seen=H200)) is None
    assert unusable_card(system=MadeUp(seen=H200, hidden=True)) is None
    assert "470.82.01" in (unusable_card(system=MadeUp(seen=V100)) or "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_card_of_this_machine_works() -> None:
    device = pick_device("cuda")
    assert pick_precision("auto", device) in ("bf16", "fp16")
    reports = {report.device: report for report in describe_devices()}
    assert reports[str(device)].precisions["fp32"] == "ok"
