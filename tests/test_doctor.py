"""Doctor tries what it reports; what is missing ends with 69 and says what to do; models lists what there is."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import constants

from aerialseg.errors import DeviceError
from aerialseg.files import available_memory
from aerialseg.models.device import Gpu, Machine
from aerialseg.models.presets import DEFAULT_PRESET, PRESETS
from aerialseg.workflows import doctor
from aerialseg.workflows.doctor import Finding, examine, require_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(tmp_path_factory.mktemp("disk"))}


def named(findings: tuple[Finding, ...], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def test_a_machine_that_passes_these_tests_lacks_nothing(findings: dict[str, Finding]) -> None:
    assert [finding for finding in findings.values() if finding.state == "missing"] == []
    require_all(tuple(findings.values()))


def test_every_required_package_is_looked_at(findings: dict[str, Finding]) -> None:
    assert {"torch", "torchvision", "rasterio", "segmentation-models-pytorch", "typer"} <= set(findings)
    assert findings["torch"].found == importlib.metadata.version("torch")
    assert "pytest" not in findings


def test_a_kernel_ran_on_the_processor_in_every_precision(findings: dict[str, Finding]) -> None:
    assert "runs fp32 bf16" in findings["cpu"].found


def test_the_look_leaves_nothing_behind(tmp_path: Path) -> None:
    list(doctor._disk(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_there_is_missing() -> None:
    assert doctor._package("no-such-package-at-all").state == "missing"


def test_every_extra_is_installed_or_how_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "sqlalchemy":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.2" if name in ("mlflow-skinny", "alembic", "pyarrow") else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {finding.name: (finding.found, finding.state) for finding in doctor._extras()}
    assert set(found) == {"parquet", "mlflow", "wandb"}
    assert found["parquet"] == ("installed: pyarrow 1.2", "ok")
    assert found["mlflow"] == ("not installed: pip install 'aerialseg[mlflow]'", "ok")


def test_the_cache_of_weights_is_shown_with_what_is_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub, old = tmp_path / "hub", tmp_path / "torch"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(old))
    findings = tuple(doctor._weights())
    assert named(findings, f"hub cache {hub}").found.startswith("empty: ")
    assert "what is here is used" in named(findings, "HF_HUB_OFFLINE").found and len(findings) == 2
    for number in range(10):
        model = hub / f"models--timm--resnet{number}.a1_in1k"
        (model / "blobs").mkdir(parents=True)
        (model / "blobs" / "f00").write_bytes(bytes(3 * 2**20))
        (model / "snapshots").mkdir()
        (model / "snapshots" / "model.safetensors").symlink_to(model / "blobs" / "f00")
    (old / "checkpoints").mkdir(parents=True)
    (old / "checkpoints" / "resnet34-1.pth").write_bytes(bytes(2 * 2**20))
    findings = tuple(doctor._weights())
    found = named(findings, f"hub cache {hub}").found
    assert found.startswith("0.0 GiB: timm/resnet0.a1_in1k 3 MiB, timm/resnet1.a1_in1k 3 MiB, ") and found.endswith(
        ", and 2 more"
    )
    assert named(findings, f"torch hub {old / 'checkpoints'}").found == "0.0 GiB: resnet34-1.pth 2 MiB"


def test_a_package_that_does_not_import_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist\nand a long story")

    monkeypatch.setattr(importlib, "import_module", fail)
    found = doctor._package("torchvision")
    assert (found.state, found.advice) == ("missing", "torch and torchvision must come from one index")
    assert "nms does not exist" in found.found and "story" not in found.found


def test_a_look_that_fails_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_gdal", lambda: (_ for _ in ()).throw(ImportError("libgdal.so is gone")))
    monkeypatch.setattr(doctor, "_packages", lambda: iter(()))
    found = examine(tmp_path)
    assert named(found, "gdal").state == "missing"
    assert named(found, "cpu").state == "ok"
    with pytest.raises(DeviceError, match=r"lacks 1 of .*libgdal\.so is gone.*install aerialseg again"):
        require_all(found)


def test_an_absent_driver_is_missing_only_if_the_program_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyogrio

    monkeypatch.setattr(pyogrio, "list_drivers", lambda: {"FlatGeobuf": "rw"})
    found = tuple(doctor._gdal())
    assert named(found, "GPKG").state == "missing"
    assert named(found, "FlatGeobuf").state == "ok"
    assert named(found, "GTiff").state == "ok"


def test_a_projection_database_of_another_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyproj

    class Off:
        @staticmethod
        def transform(*point: float) -> tuple[float, float]:
            return 500_100.0, 0.0

    monkeypatch.setattr(pyproj.Transformer, "from_crs", lambda *names, **options: Off())
    assert named(tuple(doctor._gdal()), "PROJ").state == "missing"


def test_a_card_that_cannot_be_used_is_missing() -> None:
    class WithCard(Machine):
        def cuda_devices(self) -> tuple[int, str]:
            return 0, "driver too old"

        def card(self) -> Gpu:
            return Gpu("Tesla V100", "470.82.01", "7.0")

        def cards_hidden(self) -> bool:
            return False

    found = named(tuple(doctor._devices(WithCard())), "NVIDIA card")
    assert found.state == "missing"
    assert "470.82.01" in found.advice and "driver too old" in found.advice


def test_hidden_cards_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert named(tuple(doctor._devices(None)), "CUDA_VISIBLE_DEVICES").state == "warning"


def test_a_precision_without_kernels_is_a_warning_and_a_dead_device_is_missing() -> None:
    class Failing(Machine):
        def __init__(self, precisions: tuple[str, ...]) -> None:
            self.precisions = precisions

        def run_kernel(self, device: Any, precision: str) -> None:
            if precision in self.precisions:
                raise RuntimeError("not implemented for 'Half'")

    assert named(tuple(doctor._devices(Failing(("fp16",)))), "cpu").state == "warning"
    assert named(tuple(doctor._devices(Failing(("fp32", "bf16", "fp16")))), "cpu").state == "missing"


def test_a_container_s_limit_bounds_the_memory(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n")
    assert available_memory(tmp_path) == 32_000_000 * 1024
    write(tmp_path / "sys/fs/cgroup/memory.current", "1000000000\n")
    write(tmp_path / "sys/fs/cgroup/memory.max", "max\n")
    assert available_memory(tmp_path) == 32_000_000 * 1024
    write(tmp_path / "sys/fs/cgroup/memory.max", "3000000000\n")
    assert available_memory(tmp_path) == 2_000_000_000
    assert (available_memory(tmp_path / "elsewhere") or 0) > 1_000_000  # asks psutil


def test_the_processors_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert named(tuple(doctor._memory()), "processors").found == "3 usable of 7"
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS has none
    assert named(tuple(doctor._memory()), "processors").found == "7 usable of 7"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_folder_that_cannot_be_written_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise OSError("Read-only file system")

    monkeypatch.setattr(doctor, "_write_and_read", refuse)
    found = tuple(doctor._disk(tmp_path))
    assert found[-1].state == "missing" and "Read-only" in found[-1].found


def test_the_command_prints_json_and_a_table(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_packages", lambda: iter(()))
    code, out, err = run("doctor", tmp_path, "--json")
    assert (code, json.loads(out)["ok"], err) == (0, True, "")
    code, out, _ = run("doctor", tmp_path)
    assert code == 0 and "GTiff" in out and "bf16" in out
    monkeypatch.setattr(doctor, "_memory", lambda: iter([Finding("memory", "memory", "0 GiB", "missing", "buy some")]))
    code, out, err = run("doctor", tmp_path, "--json")
    assert (code, json.loads(out)["ok"]) == (69, False)
    assert err.startswith("error: this machine lacks 1 of") and "memory: 0 GiB: buy some" in err


def test_models_lists_every_preset_with_what_the_issue_asks(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("models", "--json")
    table = {row["name"]: row for row in json.loads(out)}
    assert (code, list(table)) == (0, list(PRESETS))
    assert [name for name, row in table.items() if row["default"]] == [DEFAULT_PRESET] == ["unet-r34"]
    for row in table.values():
        assert {"parameters", "size_multiple", "attention", "licence"} <= set(row)
    code, out, _ = run("models")
    assert code == 0
    assert [name for name in PRESETS if name not in out] == []
    assert "24,436,369" in out and "pooled keys" in out and "Apache-2.0" in out
