"""Looks at everything the program needs on this machine and says what is missing and what to do about it.

Each look is a fact that was tried, not assumed: packages are imported, a raster is written and read, a kernel runs on
every device in every precision. Nothing here changes the machine; the one file written is removed again.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aerialseg.environment import PROJ, TAKEN_OUT
from aerialseg.errors import AerialsegError, DeviceError, first_line, one_line
from aerialseg.files import available_memory, free_space, is_folder, is_regular, resolved, usable_processors

if TYPE_CHECKING:
    from aerialseg.models.device import Machine

State = Literal["ok", "warning", "missing"]

MODULES = {"pillow": "PIL", "segmentation-models-pytorch": "segmentation_models_pytorch"}
"""Packages whose module is not named like them."""
BINARY = (
    "torch",
    "torchvision",
    "rasterio",
    "pyogrio",
    "shapely",
    "safetensors",
    "segmentation-models-pytorch",
    "timm",
)
"""Packages whose parts come from several builds, so that a version alone proves nothing."""
RASTER_DRIVERS = {"GTiff": True, "COG": True, "PNG": True, "JPEG": True, "JP2OpenJPEG": False}
VECTOR_DRIVERS = {"GPKG": True, "GeoJSON": False, "FlatGeobuf": False}
"""Driver -> whether the program cannot do without it."""
LOW_MEMORY, LOW_SHM, LOW_DISK = 4 * 2**30, 512 * 2**20, 5 * 2**30
SHOWN = 8
"""Names of a list that are shown."""
REINSTALL = "install aerialseg again in an environment of its own"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `advice` says what to do unless `state` is ok."""

    topic: str
    name: str
    found: str
    state: State = "ok"
    advice: str = ""


def examine(folder: Path, *, system: Machine | None = None) -> tuple[Finding, ...]:
    """Look at packages, GDAL, devices, memory, and the disk under `folder`; never raises for what it finds."""
    looks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("packages", _packages),
        ("extras", _extras),
        ("gdal", _gdal),
        ("devices", lambda: _devices(system)),
        ("memory", _memory),
        ("weights", _weights),
        ("disk", lambda: _disk(folder)),
    )
    findings: list[Finding] = []
    for topic, look in looks:
        try:
            findings += look()
        except Exception as error:  # a broken package raises anything on import, and the other looks still count
            findings.append(Finding(topic, topic, first_line(error), "missing", REINSTALL))
    return tuple(findings)


def require_all(findings: tuple[Finding, ...]) -> None:
    """Raise DeviceError naming everything that is missing."""
    missing = [finding for finding in findings if finding.state == "missing"]
    if missing:
        listed = "; ".join(f"{finding.name}: {finding.found}: {finding.advice}" for finding in missing)
        raise DeviceError(f"this machine lacks {len(missing)} of {len(findings)} things looked at: {listed}")


def _packages() -> Iterator[Finding]:
    yield Finding("packages", "python", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("packages", "aerialseg", importlib.metadata.version("aerialseg"))
    required = importlib.metadata.requires("aerialseg") or []
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]
    for name in (*names, "torchvision"):
        yield _package(name)


def _package(name: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding("packages", name, "not installed", "missing", REINSTALL)
    if name in BINARY:
        try:
            importlib.import_module(MODULES.get(name, name))
        except Exception as error:
            advice = "torch and torchvision must come from one index" if name == "torchvision" else REINSTALL
            return Finding("packages", name, f"{version} does not import: {first_line(error)}", "missing", advice)
    return Finding("packages", name, version)


def _extras() -> Iterator[Finding]:
    """Which extras are installed; none of them is missed, for whoever wants one asks for it."""
    wanted: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("aerialseg") or []:
        extra = re.search(r"extra == ['\"](\w+)", line)
        if extra and extra[1] != "dev":
            wanted.setdefault(extra[1], []).append(re.split(r"[^\w.-]", line, maxsplit=1)[0])
    for name, packages in wanted.items():
        here = [f"{package} {version}" for package in packages if (version := _version(package))]
        whole = len(here) == len(packages)
        found = f"installed: {', '.join(here)}" if whole else f"not installed: pip install 'aerialseg[{name}]'"
        yield Finding("extras", name, found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gdal() -> Iterator[Finding]:
    for name, value in TAKEN_OUT.items():
        found = f"{one_line(value)}: another installation's, taken out before GDAL and PROJ could read it"
        advice = f"unset {name} here to be rid of this line" + (", or keep it for its grids" if name in PROJ else "")
        yield Finding("gdal", name, found, "warning", advice)
    import pyogrio
    import rasterio
    from pyproj import Transformer
    from rasterio.crs import CRS

    vector_gdal = ".".join(map(str, pyogrio.__gdal_version__))
    yield Finding("gdal", "GDAL", f"{rasterio.__gdal_version__} in rasterio, {vector_gdal} in pyogrio")
    with rasterio.Env() as environment:
        raster_drivers = environment.drivers()
    for wanted, present in ((RASTER_DRIVERS, raster_drivers), (VECTOR_DRIVERS, pyogrio.list_drivers())):
        for name, needed in wanted.items():
            state: State = "ok" if name in present else "missing" if needed else "warning"
            advice = "" if state == "ok" else "install rasterio and pyogrio from their PyPI wheels"
            yield Finding("gdal", name, "present" if name in present else "absent", state, advice)
    wkt = CRS.from_epsg(26914).to_wkt()
    easting, _ = Transformer.from_crs("EPSG:4326", wkt, always_xy=True).transform(-99.0, 30.0)
    advice = "unset PROJ_LIB, PROJ_DATA and GDAL_DATA: they point at another program's files"
    right = abs(easting - 500_000) < 0.01
    yield Finding("gdal", "PROJ", f"EPSG:26914 puts its meridian at {easting:,.2f}", *_judged(right, "missing", advice))


def _devices(system: Machine | None) -> Iterator[Finding]:
    from aerialseg.models.device import Machine, describe_devices, unusable_card

    system = system or Machine()
    version, architectures = system.cuda_build()
    yield Finding("devices", "torch build", f"CUDA {version}, {' '.join(architectures)}" if version else "without CUDA")
    if system.cards_hidden():
        yield Finding("devices", "CUDA_VISIBLE_DEVICES", "hides every card", "warning", "unset it to use one")
    why = unusable_card(system=system)
    if why:
        yield Finding("devices", "NVIDIA card", "unusable", "missing", why)
    for report in describe_devices(system=system):
        works = [name for name, result in report.precisions.items() if result == "ok"]
        failed = "; ".join(f"{name}: {result}" for name, result in report.precisions.items() if result != "ok")
        memory = f", {report.memory_bytes / 2**30:.0f} GiB" if report.memory_bytes else ""
        capability = f", compute capability {report.capability}" if report.capability else ""
        found = f"{report.name}{capability}{memory}: runs {' '.join(works) or 'nothing'}, auto is"
        state: State = "ok" if not failed else "warning" if works else "missing"
        yield Finding("devices", report.device, f"{found} {report.automatic_precision}", state, failed)


def _memory() -> Iterator[Finding]:
    yield Finding("memory", "processors", f"{usable_processors()} usable of {os.cpu_count()}")
    available, advice = available_memory(), "close other programs, or predict with --batch 1"
    yield Finding("memory", "memory", f"{_size(available)} free", *_judged(available >= LOW_MEMORY, "warning", advice))
    shared = Path("/dev/shm")
    if is_folder(shared):
        total = shutil.disk_usage(shared).total
        advice = "training on several GPUs needs more: docker run --shm-size 1g"
        yield Finding("memory", "/dev/shm", _size(total), *_judged(total >= LOW_SHM, "warning", advice))


def _weights() -> Iterator[Finding]:
    """Where pretrained weights are kept, and which are there: what a machine without a network can train from."""
    import torch
    from huggingface_hub import constants

    hub, old = Path(constants.HF_HUB_CACHE), Path(torch.hub.get_dir()) / "checkpoints"
    kept = {path.name.removeprefix("models--").replace("--", "/"): path for path in sorted(hub.glob("models--*"))}
    if constants.HF_HUB_OFFLINE:
        yield Finding("weights", "HF_HUB_OFFLINE", "set: nothing is downloaded, what is here is used")
    yield Finding("weights", f"hub cache {one_line(hub)}", _listed(kept))
    if files := {path.name: path for path in sorted(old.glob("*.pt*"))}:
        yield Finding("weights", f"torch hub {one_line(old)}", _listed(files))


def _listed(kept: dict[str, Path]) -> str:
    """Return names and sizes of files or folders, of many only the first, and all together."""
    sizes = {name: sum(map(_bytes, (path, *path.rglob("*")))) for name, path in kept.items()}
    shown = [f"{one_line(name)} {size / 2**20:,.0f} MiB" for name, size in [*sizes.items()][:SHOWN]]
    shown += [f"and {len(sizes) - SHOWN} more"] if len(sizes) > SHOWN else []
    return (
        f"{_size(sum(sizes.values()))}: {', '.join(shown)}" if shown else "empty: weights are downloaded once, to here"
    )


def _bytes(path: Path) -> int:
    """Return the size of a file; links count nothing, for what they lead to is counted where it is."""
    return path.stat().st_size if is_regular(path) and not path.is_symlink() else 0


def _disk(folder: Path) -> Iterator[Finding]:
    free = free_space(folder)
    name = one_line(resolved(folder))
    yield Finding(
        "disk", name, f"{_size(free)} free", *_judged(free >= LOW_DISK, "warning", "free some, or work elsewhere")
    )
    try:
        _write_and_read(folder)
    except (AerialsegError, OSError) as error:
        reason = first_line(error) if isinstance(error, AerialsegError) else error.strerror or str(error)
        yield Finding("disk", f"writing in {name}", reason, "missing", "work in a folder that can be written")
    else:
        yield Finding("disk", f"writing in {name}", "a GeoTIFF was written and read back")


def _write_and_read(folder: Path) -> None:
    """Write a small georeferenced raster with the codec of the tiles; `write_geotiff` compares what it reads back."""
    import numpy as np
    from affine import Affine
    from rasterio.crs import CRS

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.writing import write_geotiff

    box = GeoBox(16, 16, Affine(0.3, 0, 616_000, 0, -0.3, 3_347_000), CRS.from_epsg(26914))
    with tempfile.TemporaryDirectory(prefix=".aerialseg-", dir=folder) as temporary:
        write_geotiff(Path(temporary) / "doctor.tif", np.arange(256, dtype=np.uint8).reshape(16, 16), box)


def _judged(good: bool, otherwise: State, advice: str) -> tuple[State, str]:
    return ("ok", "") if good else (otherwise, advice)


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
