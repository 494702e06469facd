"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aerialseg import files
from aerialseg.errors import BadDataError, OutputError, Stopped, StorageError, UsageError


def test_a_failure_while_writing_keeps_the_old_content_and_leaves_nothing_behind(tmp_path: Path) -> None:
    final = tmp_path / "a.txt"
    files.write_text(final, "old")
    with pytest.raises(RuntimeError), files.staged(final) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert final.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_writer_leaves_only_a_temporary_that_sweep_removes(tmp_path: Path) -> None:
    final = tmp_path / "a.txt"
    files.write_text(final, "old")
    script = (
        "import os, signal, sys; from pathlib import Path; from aerialseg import files\n"
        "with files.staged(Path(sys.argv[1])) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, final], check=False).returncode == -signal.SIGKILL
    assert final.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    assert files.sweep(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_sweep_spares_the_temporaries_of_a_run_in_a_folder_below(tmp_path: Path) -> None:
    inner, dead = tmp_path / "a" / "inner", tmp_path / "a" / f"{files.TEMPORARY}dead"
    inner.mkdir(parents=True)
    dead.touch()
    with files.locked(tmp_path), files.locked(inner), files.staged(inner / "x") as alive:
        assert files.sweep(tmp_path) == 1
        assert alive.exists()
    assert not dead.exists()


def test_a_working_folder_goes_at_the_end_and_one_of_a_killed_run_with_the_next_or_a_sweep(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from aerialseg import files\n"
        "with files.working_folder(Path(sys.argv[1])) as f:\n"
        "    (f / 'first').mkdir(); (f / 'first' / files.LOCK).touch(); (f / 'first' / 'x.tif').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )

    def killed() -> None:
        assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -signal.SIGKILL
        assert len(list(tmp_path.glob(f"{files.WORKING}*/first/x.tif"))) == 1

    killed()
    with files.working_folder(tmp_path) as alive:
        assert list(tmp_path.iterdir()) == [alive]
        (alive / "mine").touch()
        killed()
        assert files.sweep(tmp_path) == 1
        with files.working_folder(tmp_path):
            assert (alive / "mine").exists()
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from pathlib import Path
from aerialseg import files
with files.locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared") as alone:
    print(alone, flush=True)
    sys.stdin.read()
"""


SWEEPER = """
import sys
from pathlib import Path
from aerialseg import files
def sweep():
    print("sweeping", flush=True)
    sys.stdin.readline()
with files.locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared", on_exclusive=sweep):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_sharers_share_a_folder_and_nobody_joins_a_run_that_is_alone(tmp_path: Path) -> None:
    with hold(tmp_path, "shared") as first:
        assert first.stdout is not None and first.stdout.readline() == "True\n"
        with files.locked(tmp_path, shared=True) as alone:
            assert not alone
        with pytest.raises(OutputError, match="another aerialseg run"), files.locked(tmp_path):
            pass
        first.communicate("")
    with files.locked(tmp_path) as alone:
        assert alone


@pytest.mark.parametrize("how", ["shared", "alone"])
def test_a_sharer_waits_for_one_that_sweeps_and_gives_up_on_a_run_that_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(files, "SHARING_S", 60.0 if how == "shared" else 0.3)
    command = [sys.executable, "-c", SWEEPER, tmp_path, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None and first.stdout is not None
        assert first.stdout.readline() == "sweeping\n"
        waits = 0

        def waiting() -> None:
            nonlocal waits
            waits += 1
            if waits == 2:
                first.stdin.write("\n")
                first.stdin.flush()
                assert first.stdout.readline() == "held\n"

        if how == "shared":
            with files.locked(tmp_path, shared=True, waiting=waiting) as alone:
                assert not alone
        else:
            with pytest.raises(OutputError, match="another aerialseg run"):
                files.locked(tmp_path, shared=True, waiting=waiting).__enter__()
        assert waits >= 2
        first.stdin.close()


def test_a_sharer_that_waits_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped(signal.SIGTERM)

    command = [sys.executable, "-c", SWEEPER, tmp_path, "shared"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "sweeping\n"
        with pytest.raises(Stopped), files.locked(tmp_path, shared=True, waiting=stop):
            pass
        first.kill()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EWOULDBLOCK, "another aerialseg run is writing here"),
        (errno.ENOLCK, r"its disk knows no locks \(No locks available\).* local disk"),
        (errno.EOPNOTSUPP, "its disk knows no locks"),
        (errno.EIO, "lock: cannot be written: Input/output error"),
    ],
)
def test_only_a_held_lock_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: str
) -> None:
    def fail(stream: object, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OutputError, match=expected), files.locked(tmp_path):
        pass


def test_a_full_disk_is_told_without_temporary_names(tmp_path: Path) -> None:
    full, work = OSError(errno.ENOSPC, "full"), tmp_path / f"{files.WORKING}0"
    for place in (work / "first/probability", work, tmp_path):
        place.mkdir(parents=True, exist_ok=True)
        for name in ("x.tif", f"{files.TEMPORARY}x.tif"):
            said = str(files.output_error(place / name, full))
            assert said.startswith(str(tmp_path)) and ": no space" in said and files.TEMPORARY not in said
    assert str(files.output_error(tmp_path / "x.tif", full)).startswith(f"{tmp_path / 'x.tif'}: ")


def test_a_sweep_spares_what_it_is_told_to_keep(tmp_path: Path) -> None:
    kept, stale = tmp_path / f"{files.TEMPORARY}kept", tmp_path / f"{files.TEMPORARY}stale"
    kept.touch()
    stale.touch()
    assert files.sweep(tmp_path, {kept}) == 1
    assert kept.exists()


def test_a_link_at_the_final_name_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    target, link = tmp_path / "precious", tmp_path / "out.txt"
    target.write_text("mine")
    link.symlink_to(target)
    files.write_text(link, "new")
    assert target.read_text() == "mine"
    assert link.read_text() == "new"
    assert not link.is_symlink()


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    final = tmp_path / ("x" * 251 + ".tif")
    files.write_text(final, "content")
    assert final.read_text() == "content"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_the_umask_is_never_changed_for_other_threads_files_would_be_open_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to the whole process"))
    files.write_text(tmp_path / "a", "x")


def test_an_output_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="not UTF-8"):
        files.prepare_output_folder(tmp_path / os.fsdecode(b"o\xff"))
    assert not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_opened_is_our_error(tmp_path: Path) -> None:
    (tmp_path / files.LOCK).mkdir()
    with pytest.raises(OutputError, match="cannot be written"), files.locked(tmp_path):
        pass


def test_a_full_disk_is_a_storage_error_that_names_the_folder(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match=f"no space on {tmp_path}"):
            files.write_bytes(tmp_path / "a", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alias", ["link", "hard", "case", "dots"])
def test_an_output_that_is_an_input_is_refused(tmp_path: Path, alias: str) -> None:
    scene = tmp_path / "Scene.tif"
    scene.write_text("pixels")
    other = {"link": tmp_path / "l.tif", "hard": tmp_path / "h.tif", "case": tmp_path / "scene.TIF"}.get(alias)
    if alias == "link":
        (tmp_path / "l.tif").symlink_to(scene)
    elif alias == "hard":
        (tmp_path / "h.tif").hardlink_to(scene)
    output = other or tmp_path / "sub" / ".." / "Scene.tif"
    with pytest.raises(UsageError, match="overwrite the input"):
        files.refuse_input_as_output([scene], [output])
    files.refuse_input_as_output([scene], [tmp_path / "other.tif"])


def test_a_file_where_the_folder_should_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="out"):
        files.prepare_output_folder(tmp_path / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_text(tmp_path / "out" / "report.json", "{}")


def test_a_folder_has_one_writer_and_a_dead_one_does_not_block(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from aerialseg import files\n"
        "with files.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another aerialseg run"), files.locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with files.locked(tmp_path):
        assert files.sweep(tmp_path) == 0


def test_space_is_required_before_work_begins(tmp_path: Path) -> None:
    files.require_space(tmp_path, 1)
    with pytest.raises(StorageError, match=r"about 1,000,000,000.0 GB are needed, .* are free; free some"):
        files.require_space(tmp_path, 10**18)


PATHS = ("a link in a circle", "a name over 255 bytes", "a pipe", "a device", "a folder", "nothing")


@pytest.fixture(params=PATHS)
def odd(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a path at which no regular file stands."""
    path = tmp_path / ("x" * 300 if request.param == PATHS[1] else "x")
    match request.param:
        case "a link in a circle":
            path.symlink_to(path.name)
        case "a pipe":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a folder":
            path.mkdir()
    return path


def test_looking_at_a_path_never_raises_and_opening_never_blocks(odd: Path) -> None:
    assert not files.is_regular(odd)
    assert files.is_folder(odd) == (odd.name == "x" and odd.is_dir())
    assert files.resolved(odd / "below").is_absolute()
    with pytest.raises(OSError):
        files.open_regular(odd)


def test_a_regular_file_is_opened_through_links_and_resolved_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    with files.open_regular(tmp_path / "b") as stream:
        assert stream.read() == b"content"
    assert files.is_regular(tmp_path / "b") and files.resolved(tmp_path / "b") == tmp_path.resolve() / "a"


def test_the_package_looks_at_paths_in_the_guarded_way_alone() -> None:
    """Path.is_file, is_dir and exists raise for a name over 255 bytes, resolve for a link in a circle."""
    package, below = Path(files.__file__).parent, ("files.py", "environment.py", "system/")
    calls = re.compile(r"\.(is_file|is_dir|exists|resolve)\(\)")
    for module in sorted(package.rglob("*.py")):
        if not str(module.relative_to(package)).startswith(below):
            assert not calls.search(module.read_text()), module


def test_a_temporary_that_lies_apart_outlives_the_sweep_of_another_run(tmp_path: Path) -> None:
    with files.staged(tmp_path / "model.bin", apart=True) as temporary:
        temporary.write_bytes(b"half")
        with files.locked(tmp_path):
            assert files.sweep(tmp_path) == 0
        temporary.write_bytes(b"whole")
    assert (tmp_path / "model.bin").read_bytes() == b"whole"
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", files.LOCK}
