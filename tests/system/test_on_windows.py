"""The half for Windows, tried with the errors that Windows raises."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from aerialseg import files, system
from aerialseg.errors import OutputError
from aerialseg.system import posix, windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Kernel:
    """LockFileEx and UnlockFileEx as documented, for handles that are file descriptors."""

    def __init__(self) -> None:
        self.held: list[tuple[int, int, bool]] = []
        """Handle, file and whether alone, of every lock; a handle has several where they overlap."""
        self.error, self.fails_with = 0, 0

    def LockFileEx(self, handle: Any, flags: int, _: int, low: int, high: int, place: Any) -> int:  # noqa: N802
        assert (low, high) == (1, 0)
        assert place._obj.offset_high >= 2**20, "a lock on the content would keep others from reading it"
        own, alone = handle.value, bool(flags & 2)
        file = os.fstat(own).st_ino
        self.held = [lock for lock in self.held if is_open(lock[0])]
        others = [lock for lock in self.held if lock[1] == file]
        taken = any(lock[0] != own and (alone or lock[2]) for lock in others) or (alone and others)
        self.error = self.fails_with or (windows.LOCK_VIOLATION if taken else 0)
        if self.error:
            return 0
        self.held.append((own, file, alone))
        return 1

    def UnlockFileEx(self, handle: Any, *place: Any) -> int:  # noqa: N802
        for lock in self.held:
            if lock[0] == handle.value:
                self.held.remove(lock)
                return 1
        return 0


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Let the program believe that it is on Windows."""
    kernel = Kernel()
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, **_: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: kernel.error, raising=False)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(get_osfhandle=lambda descriptor: descriptor))
    monkeypatch.setattr(windows, "PATIENCE_S", 0.3)
    for name in system.__all__:
        monkeypatch.setattr(system, name, getattr(windows, name))
    return kernel


def windows_error(code: int) -> PermissionError:
    error = PermissionError(errno.EACCES, "The process cannot access the file")
    error.winerror = code  # type: ignore[attr-defined]
    return error


@pytest.fixture
def open_in_qgis(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of files that nothing can replace or remove."""
    names: set[str] = set()
    rename, unlink = Path.replace, Path.unlink

    def replace(source: Path, final: Path) -> Path:
        if final.name in names:
            raise windows_error(32)
        return rename(source, final)

    def remove(path: Path, missing_ok: bool = False) -> None:
        if path.name in names:
            raise windows_error(32)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", remove)
    yield names
    names.clear()


def test_both_halves_offer_the_same() -> None:
    for half in (posix, windows):
        assert all(hasattr(half, name) for name in system.__all__)
    assert system.replace is posix.replace


@pytest.mark.parametrize("half", [posix, windows])
def test_sharers_share_and_one_that_is_alone_is_alone(half: Any, kernel: Kernel, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as first, (tmp_path / "lock").open("a") as second:
        assert half.try_lock(first)
        assert not half.try_lock(second)
        assert not half.try_lock(second, shared=True)
        assert half.try_lock(first, shared=True)  # what was held alone is shared now
        assert half.try_lock(second, shared=True)
        assert not half.try_lock(first)
        assert half.try_lock(first, shared=True)
    with (tmp_path / "lock").open("a") as third:
        assert half.try_lock(third)


def test_folders_are_locked_alike(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SHARING_S", 0.2)
    with files.locked(tmp_path, shared=True) as alone:
        assert alone
        with files.locked(tmp_path, shared=True) as alone:
            assert not alone
        with pytest.raises(OutputError, match="another aerialseg run is writing here"), files.locked(tmp_path):
            pass
    with files.locked(tmp_path) as alone:
        assert alone
    assert kernel.held


def test_a_disk_without_locks_is_told(kernel: Kernel, tmp_path: Path) -> None:
    kernel.fails_with = 50
    with pytest.raises(OutputError, match="its disk knows no locks"), files.locked(tmp_path):
        pass


def test_a_file_that_is_open_elsewhere_stays_whole_and_the_new_one_is_kept(
    open_in_qgis: set[str], tmp_path: Path
) -> None:
    final = tmp_path / "mask.tif"
    files.write_text(final, "old")
    open_in_qgis.add("mask.tif")
    with pytest.raises(OutputError) as raised:
        files.write_text(final, "new")
    assert str(raised.value) == (
        f"{final}: is open in another program, QGIS perhaps; close it and run again"
        " (what was to replace it is in .aerialseg-new-mask.tif)"
    )
    assert raised.value.exit_code == 73
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "mask.tif": "old", ".aerialseg-new-mask.tif": "new"
    }  # fmt: skip
    open_in_qgis.clear()
    files.sweep(tmp_path)
    files.write_text(final, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mask.tif": "new"}


def test_a_file_that_is_open_elsewhere_cannot_be_removed(open_in_qgis: set[str], tmp_path: Path) -> None:
    (tmp_path / "old.vrt").touch()
    open_in_qgis.add("old.vrt")
    with pytest.raises(OutputError, match=r"old\.vrt: is open in another program, QGIS perhaps; close it and run"):
        files.remove(tmp_path / "old.vrt")


def test_a_scanner_that_has_the_file_for_a_moment_is_waited_for(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, refused = Path.replace, [windows_error(32), windows_error(5)]

    def replace(source: Path, final: Path) -> Path:
        if refused:
            raise refused.pop()
        return rename(source, final)

    files.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(Path, "replace", replace)
    files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert not refused


def test_access_denied_is_another_program_only_where_the_file_could_be_written(tmp_path: Path) -> None:
    assert not windows.is_in_use(windows_error(5), tmp_path)
    assert not windows.is_in_use(OSError(errno.ENOSPC, "full"), tmp_path)
    (tmp_path / "a").touch()
    assert windows.is_in_use(windows_error(5), tmp_path / "a")


def test_a_mask_that_is_open_in_qgis_costs_its_scene_only_and_the_next_run_makes_it(
    open_in_qgis: set[str], run: Any, tmp_path: Path, scene_file: Callable[..., Path], tiny_model: Callable[..., Path]
) -> None:
    for seed, name in enumerate("ab"):
        scene_file(tmp_path / "in" / f"{name}.tif", size=(64, 64), seed=seed)
    command = ["predict", tmp_path / "in", "-m", tiny_model(), "-o", tmp_path / "out", "--device", "cpu"]
    open_in_qgis.add("a.tif")
    code, _, said = run(*command)
    assert code == 3, said
    assert f"{tmp_path / 'out' / 'a.tif'}: is open in another program, QGIS perhaps; close it and run again" in said
    assert (tmp_path / "out" / "b.tif").is_file()
    open_in_qgis.clear()
    assert run(*command)[0] == 0
    assert (tmp_path / "out" / "a.tif").is_file()
    assert not [path for path in (tmp_path / "out").rglob(".aerialseg-*") if path.name != files.LOCK]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("out/CON", "CON"), ("nul.tif", "nul.tif"), ("com1.x/y", "com1.x"), ("LPT³", "LPT³"), ("aux .tif", "aux .tif"),
        ("out./x", "out."), ("x ", "x "), ("ab:b.tif", "ab:b.tif"), ("what?.tif", "what?.tif"), ("conin$", "conin$"),
        ("C:/data/../x.tif", None), ("console.tif", None), ("com10", None), ("./.aerialseg-lock", None),
        ("ü.tif", None), ("//server/share/x.tif", None), ("nullable", None),
    ],
)  # fmt: skip
def test_names_that_windows_takes_for_something_else_are_known(path: str, expected: str | None) -> None:
    assert windows.reserved_name(Path(path)) == expected


def test_an_output_of_a_reserved_name_is_refused_before_anything_is_made(
    kernel: Kernel, run: Any, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"aux\.json: Windows has no files called aux\.json; give another name"):
        files.write_json(tmp_path / "aux.json", {})
    assert run("sample", tmp_path / "nul", "--scenes", 1, "--size", 64)[0] == 73
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_left_is_told_as_windows_tells_it() -> None:
    assert windows.is_reader_gone(OSError(errno.EINVAL, "Invalid argument"))
    assert windows.is_reader_gone(BrokenPipeError())
    assert not windows.is_reader_gone(OSError(errno.ENOSPC, "full"))


def test_what_the_code_page_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    windows.encode_output()
    print("Łódź ü", file=stream, flush=True)
    assert stream.buffer.getvalue() == b"\\u0141\xf3d\\u017a \xfc\n"  # type: ignore[attr-defined]


def test_a_file_that_is_removed_while_it_is_locked_is_closed_first(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    unlink = Path.unlink

    def remove(path: Path, missing_ok: bool = False) -> None:
        closed.append(stream.closed)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", remove)
    stream: IO[bytes] = (tmp_path / "x.part").open("ab")
    assert windows.try_lock(stream)
    windows.remove_locked(tmp_path / "x.part", stream)
    assert closed == [True]
    assert list(tmp_path.iterdir()) == []


def test_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    assert windows.held_memory() > 10_000_000
    told = types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(peak_wset=7))
    monkeypatch.setattr(psutil, "Process", lambda: told)
    assert windows.peak_memory() == 7
    windows.forget_peak()
    windows.limit_memory(1)
    assert windows.fresh_processes(["json"]).get_start_method() == "spawn"


def test_ctrl_break_stops_and_sigterm_is_nobody_s(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, run: Any, tmp_path: Path
) -> None:
    assert windows.STOPS[0] == signal.SIGINT
    monkeypatch.setattr(system, "STOPS", (signal.SIGINT, signal.SIGUSR1))  # stands for SIGBREAK
    asked: list[int] = []
    register = signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: (asked.append(number), register(number, handler))[1])
    run("sample", tmp_path / "drawn", "--scenes", 1, "--size", 64)
    assert set(asked) == {signal.SIGINT, signal.SIGUSR1}


AS_ON_WINDOWS = """
import importlib, os, pkgutil, signal, sys, types
import albumentations, buildingregulariser, geopandas, lightning, matplotlib.pyplot, psutil, pystac, rasterio.warp
import rich.console, segmentation_models_pytorch, sqlite3, tensorboard, tempfile, timm, torchvision, typer
import multiprocessing.connection, concurrent.futures, shutil, asyncio, torch.utils.tensorboard, uuid, jinja2
sys.path.insert(0, {tests!r})
from test_on_windows import Kernel
for name in ("fcntl", "resource", "pwd", "grp", "termios", "posix"):
    sys.modules[name] = None
for name in ("fork", "pread", "pwrite", "sched_getaffinity", "geteuid", "getuid", "mkfifo", "O_NOFOLLOW"):
    delattr(os, name)
for name in ("SIGPIPE", "SIGKILL", "SIGUSR1", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
import ctypes
kernel = Kernel()
ctypes.WinDLL, ctypes.get_last_error = (lambda name, **_: kernel), (lambda: kernel.error)
sys.modules["msvcrt"] = types.SimpleNamespace(get_osfhandle=lambda descriptor: descriptor)
for name in [name for name in sys.modules if name.startswith("aerialseg")]:
    del sys.modules[name]
sys.platform = "win32"
import aerialseg
for module in pkgutil.walk_packages(aerialseg.__path__, "aerialseg."):
    if module.name not in ("aerialseg.system.posix", "aerialseg.__main__"):
        importlib.import_module(module.name)
assert "aerialseg.system.posix" not in sys.modules and aerialseg.system.try_lock.__module__.endswith("windows")
from aerialseg.cli import main
print([main(line.split()) for line in sys.argv[1:]])
"""


LIGHT = ("sample drawn --scenes 4 --size 128", "tile drawn -o tiles --size 64 --split blocks=2")
HEAVY = (
    "train tiles -o run -c demo --device cpu --set schedule.epochs=1 --set schedule.steps_per_epoch=2"
    " --set schedule.warmup_steps=1 --set data.crop=64",
    "predict drawn/train/images -m run -o out --device cpu --polygons --probability",
    "evaluate out --masks drawn",
    "info out",
)


@pytest.mark.parametrize("lines", [LIGHT, pytest.param(LIGHT + HEAVY, marks=pytest.mark.slow)])
def test_the_package_works_without_what_windows_lacks(tmp_path: Path, lines: tuple[str, ...]) -> None:
    script = AS_ON_WINDOWS.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, *lines]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [str([0] * len(lines))], done.stderr
