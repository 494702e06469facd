"""What training must survive (FAULTS 10, 14-17, 19, 23, 24, 26-30): the real fault, its exit code, one line, the files.

One test starts the installed command, which takes 15 s of imports; the others call it in this process, or in a fork.
"""

from __future__ import annotations

import ast
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_tiles import NETWORK, settings, write_tileset

import aerialseg.training
from aerialseg.cli import main
from aerialseg.geo.tiles.tileset import image_path, load_tileset
from aerialseg.training import cache, loop

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND = [sys.executable, "-m", "aerialseg", "train"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tileset(tmp_path_factory.mktemp("tiles"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text('[model]\narchitecture = "linknet"\nencoder = "tu-test_efficientnet"\nweights = "none"\n')
    return path


def arguments(tiles: Path, run: Path, config: Path, *more: str) -> list[str]:
    return [str(tiles), "-o", str(run), "-c", str(config), "--device", "cpu", *settings("data.cache=off"), *more]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def test_a_real_sigterm_saves_and_the_resumed_run_ends_with_the_same_weights(
    run: Any, tiles: Path, config: Path, tmp_path: Path
) -> None:
    drops = ("--set", "model.encoder=tu-test_convnext", "--set", "model.encoder_arguments.drop_path_rate=0.5")
    longer = ("--set", "schedule.steps_per_epoch=20", *drops)
    assert run("train", *arguments(tiles, tmp_path / "whole", config, *longer))[0] == 0
    stopped = tmp_path / "stopped"
    command = [*COMMAND, *arguments(tiles, stopped, config, *longer)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(stopped / "metrics.csv", process)
    time.sleep(0.15)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    if process.returncode != 0:  # a very slow test machine may deliver the signal after the last step
        assert (process.returncode, out) == (143, "")
        assert "error: stopped by SIGTERM; saved after step" in err and "run the same command again" not in err
        standing = torch.load(stopped / "last.ckpt", weights_only=True)["state"]["standing"]
        assert 0 < standing["taken"] < 40
    code, out, err = run("train", *arguments(tiles, stopped, config, *longer, "--resume"))
    assert code == 0 and "epoch" in out
    assert weights(stopped) == weights(tmp_path / "whole")
    assert not [path for path in stopped.iterdir() if path.name.startswith(".aerialseg-") and path.suffix != ""]


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(
    run: Any, tiles: Path, config: Path, tmp_path: Path
) -> None:
    longer = ("--set", "schedule.epochs=3", "--set", "schedule.steps_per_epoch=12")
    killed = tmp_path / "killed"
    assert run("train", *arguments(tiles, tmp_path / "whole", config, *longer))[0] == 0
    child = os.fork()
    if child == 0:
        main(["train", *arguments(tiles, killed, config, *longer)])
        os._exit(0)
    deadline = time.monotonic() + 60
    while not (killed / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, 0)
    (killed / ".aerialseg-0000.ckpt").write_bytes(b"half a checkpoint")  # what a kill inside a write leaves
    assert run("train", *arguments(tiles, killed, config, *longer, "--resume"))[0] == 0
    assert weights(killed) == weights(tmp_path / "whole")
    assert not list(killed.glob(".aerialseg-*.ckpt"))


def test_a_read_that_hangs_ends_with_71(
    run: Any, tiles: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, release = cache._read_image, threading.Event()

    def hang(path: Path, window: Any, made: Any) -> Any:
        if "city3" in path.name:
            release.wait(60)
        return read(path, window, made)

    monkeypatch.setattr(cache, "_read_image", hang)
    began = time.monotonic()
    code, _, err = run("train", *arguments(tiles, tmp_path / "run", config, "--set", "data.timeout_s=1"))
    release.set()
    assert code == 71 and "error: city3_0_0: not read within 1 s" in err and time.monotonic() - began < 20


def stop_in_a_fork(words: list[str], ready: Callable[[], bool]) -> tuple[int, float, str]:
    """Train in a fork, send it SIGTERM once `ready`; return its exit code, the seconds it took to end, and stderr."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os._exit(main(["train", *words]))
    os.close(writing)
    deadline = time.monotonic() + 60
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    began = time.monotonic()
    os.kill(child, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - began
    with os.fdopen(reading) as stream:
        return code, seconds, stream.read()


def test_a_stop_during_a_read_that_hangs_saves_within_10_s(
    run: Any, tiles: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, hanging, folder = cache._read_image, tmp_path / "hanging", tmp_path / "run"

    def hang(path: Path, window: Any, made: Any) -> Any:
        if (folder / "metrics.csv").exists():
            hanging.touch()
            time.sleep(60)
        return read(path, window, made)

    words = arguments(tiles, folder, config, "--set", "schedule.epochs=4")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_read_image", hang)
        code, seconds, err = stop_in_a_fork(words, hanging.exists)
    assert code == 143 and seconds < 10
    assert "error: stopped by SIGTERM; saved after step" in err and "the same command with --resume" in err
    assert "run the same command again" not in err
    assert run("train", *words, "--resume")[0] == 0
    assert run("train", *arguments(tiles, tmp_path / "whole", config, "--set", "schedule.epochs=4"))[0] == 0
    assert weights(folder) == weights(tmp_path / "whole")


def test_a_stop_while_the_model_loads_ends_at_once(
    tiles: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        (tmp_path / "loading").touch()
        time.sleep(60)

    monkeypatch.setattr(loop, "_start", load)
    code, seconds, err = stop_in_a_fork(arguments(tiles, tmp_path / "run", config), (tmp_path / "loading").exists)
    assert code == 143 and seconds < 2 and "error: stopped by SIGTERM" in err
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_reader_that_hangs_for_ever_cannot_keep_the_process() -> None:
    script = (
        "import sys, threading\n"
        "from aerialseg.training.batches import Readers\n"
        "Readers(2).submit(threading.Event().wait)\n"
        "sys.exit(71)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, timeout=60)
    assert result.returncode == 71


def test_training_starts_no_processes_that_could_be_lost_or_need_shared_memory() -> None:
    for module in Path(aerialseg.training.__file__).parent.glob("*.py"):
        if module.stem == "start":  # asks git for the revision, once
            continue
        names = {
            name
            for node in ast.walk(ast.parse(module.read_text()))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not [
            n for n in names if "multiprocessing" in n or "DataLoader" in n or "ProcessPool" in n or "subprocess" in n
        ]


def test_a_second_run_in_the_folder_is_refused(
    run: Any, tiles: Path, config: Path, tmp_path: Path, tree_hashes: Any
) -> None:
    folder = tmp_path / "run"
    assert run("train", *arguments(tiles, folder, config))[0] == 0
    before = tree_hashes(folder)
    code, out, err = run("train", *arguments(tiles, folder, config))
    assert (code, out) == (73, "") and err.count("\n") == 1
    assert f"error: {folder}: holds a run already; go on with --resume" in err
    assert tree_hashes(folder) == before
    code, out, _ = run("train", *arguments(tiles, folder, config, "--resume"))
    assert code == 0 and "was complete already" in out and tree_hashes(folder) == before
    code, _, err = run("train", *arguments(tiles, folder, config, "--resume", "--set", "optimizer.lr=0.5"))
    assert code == 78 and "optimizer.lr: 0.0003 -> 0.5" in err and tree_hashes(folder) == before
    assert run("train", *arguments(tiles, folder, config, "--overwrite", "--set", "run.seed=3"))[0] == 0
    assert tree_hashes(folder)["model.safetensors"] != before["model.safetensors"]


def test_a_running_runs_folder_is_locked(run: Any, tiles: Path, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / ".aerialseg-lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run("train", *arguments(tiles, folder, config))
    assert code == 73 and "another aerialseg run is writing here" in err


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.toml", "last.ckpt", "metrics.csv", "events.out.tfevents.17.mine"]
)
def test_files_of_others_in_the_folder_are_never_replaced(
    run: Any, tiles: Path, config: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("precious")
    code, _, err = run("train", *arguments(tiles, folder, config))
    assert code == 73 and str(folder / name) in err and (folder / name).read_text() == "precious"
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == [name]


def test_a_file_where_the_folder_should_be_is_73(run: Any, tiles: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    code, _, err = run("train", *arguments(tiles, tmp_path / "run", config))
    assert code == 73 and str(tmp_path / "run") in err


def test_outputs_that_are_inputs_are_refused(
    run: Any, tiles: Path, config: Path, tmp_path: Path, tree_hashes: Any
) -> None:
    before = tree_hashes(tiles)
    code, _, err = run("train", *arguments(tiles, tiles, config))
    assert code == 2 and "would overwrite the input" in err
    folder = tmp_path / "run"
    assert run("train", *arguments(tiles, folder, config))[0] == 0
    kept = weights(folder)
    (tmp_path / "link").symlink_to(folder)
    code, _, err = run("train", *arguments(tiles, folder, config, "--from", str(tmp_path / "link"), "--overwrite"))
    assert code == 2 and "would overwrite the input" in err and weights(folder) == kept
    assert {k: v for k, v in tree_hashes(tiles).items() if "lock" not in k} == before


def test_a_configuration_or_weights_in_the_place_of_an_output_are_refused(
    run: Any, tiles: Path, config: Path, tmp_path: Path, tree_hashes: Any
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config.rename(folder / "config.toml")
    words = arguments(tiles, folder, folder / "config.toml", "--overwrite")
    before = tree_hashes(folder)
    code, _, err = run("train", *words)
    assert code == 2 and f"{folder}/config.toml: this output would overwrite the input" in err
    (folder / "config.toml").rename(config)
    assert run("train", *arguments(tiles, folder, config))[0] == 0
    assert run("train", *words, "--set", "schedule.epochs=1")[0] == 0, "a run's own is written anew"
    before = tree_hashes(folder)
    code, _, err = run("train", *words, "--set", f"model.weights={folder}/model.safetensors")
    assert code == 2 and "model.safetensors: this output would overwrite the input" in err
    assert tree_hashes(folder) == before


def test_no_tiles_and_unfinished_tiles(run: Any, tiles: Path, config: Path, tmp_path: Path) -> None:
    code, _, err = run("train", *arguments(tmp_path / "nowhere", tmp_path / "run", config))
    assert code == 66 and "no such folder" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run("train", *arguments(tmp_path / "empty", tmp_path / "run", config))
    assert code == 65 and "no finished set of tiles" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_damaged_tile_is_named(run: Any, config: Path, tmp_path: Path, kept: float) -> None:
    folder = write_tileset(tmp_path / "tiles", size=256)
    victim = image_path(folder, load_tileset(folder).of_split("train")[2].name)
    victim.write_bytes(victim.read_bytes()[: int(victim.stat().st_size * kept)])
    code, _, err = run("train", *arguments(folder, tmp_path / "run", config, "--set", "schedule.steps_per_epoch=12"))
    assert code == 65 and str(victim) in err and err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_tiles_that_changed_stop_a_resume(run: Any, config: Path, tmp_path: Path) -> None:
    from small_tiles import write_splits

    folder = write_tileset(tmp_path / "tiles")
    assert run("train", *arguments(folder, tmp_path / "run", config))[0] == 0
    splits = {tile.name: tile.split for tile in load_tileset(folder).tiles}
    write_splits(folder, {**splits, "city1_0_0": "val"})
    code, _, err = run("train", *arguments(folder, tmp_path / "run", config, "--resume"))
    assert code == 65 and "have changed since" in err


def test_both_checkpoints_damaged_is_78(run: Any, tiles: Path, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("train", *arguments(tiles, folder, config))[0] == 0
    for name in ("last.ckpt", "previous.ckpt"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 3])
    code, _, err = run("train", *arguments(tiles, folder, config, "--resume"))
    assert code == 78 and "last.ckpt: damaged" in err and "no older one" in err


def test_a_model_of_another_program_cannot_be_fine_tuned(run: Any, tiles: Path, config: Path, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    words = arguments(tiles, tmp_path / "run", config, "--from", str(tmp_path / "foreign.pt"))
    code, _, err = run("train", *words)
    assert code == 78 and "foreign.pt" in err and not (tmp_path / "run" / "config.toml").exists()


def test_numbers_that_overflow_end_with_4_naming_step_and_tiles(
    run: Any, tiles: Path, config: Path, tmp_path: Path
) -> None:
    from aerialseg.models.build import Segmenter, build_network
    from aerialseg.models.package import ModelCard, save_model
    from aerialseg.models.presets import resolve

    spec = resolve(None, NETWORK["architecture"], NETWORK["encoder"], bands=3)
    values = {"mean": (90.0,) * 3, "std": (1e-6,) * 3}
    names = {"preset": spec.preset, "architecture": spec.architecture, "encoder": spec.encoder}
    card = ModelCard(**names, bands=3, tile_size=64, **values)
    network = build_network(spec)
    with torch.no_grad():
        next(network.parameters()).mul_(1e36)  # of pixels around 1e8: infinite from the first layer on
    save_model(tmp_path / "m.safetensors", Segmenter(network, **values), card)
    code, _, err = run("train", *arguments(tiles, tmp_path / "run", config, "--from", str(tmp_path / "m.safetensors")))
    assert code == 4
    assert "step 1 (epoch 1): loss is nan" in err and "city" in err and "the last good model is kept" in err
    assert not (tmp_path / "run" / "last.ckpt").exists() and not (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_ends_with_74_and_what_was_complete_stays(
    run: Any, tiles: Path, config: Path, tmp_path: Path
) -> None:
    folder, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limits[1]))  # the model fits, the checkpoint does not
    try:
        code, _, err = run("train", *arguments(tiles, folder, config))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 74 and f"error: {folder / 'last.ckpt'}: no space on {folder}" in err
    assert (folder / "model.safetensors").is_file() and not (folder / "last.ckpt").exists()
    assert not list(folder.glob(".aerialseg-*.ckpt"))


def test_a_cuda_device_that_is_not_there_is_69(run: Any, tiles: Path, config: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    words = [str(tiles), "-o", str(tmp_path / "run"), "-c", str(config), *settings(), "--device", "cuda"]
    code, _, err = run("train", *words)
    assert code == 69 and err.startswith("error: ") and not (tmp_path / "run" / "config.toml").exists()


def test_names_with_spaces_and_signs_work(run: Any, tiles: Path, config: Path, tmp_path: Path) -> None:
    odd = tmp_path / "tiles #1 100% 'é'\n"
    shutil.copytree(tiles, odd)
    folder = tmp_path / '-run "ü" #'
    code, out, _ = run("train", *arguments(odd, folder, config))
    assert code == 0 and (folder / "model.safetensors").is_file() and out.count("\n") == 1


def test_the_result_as_json_goes_to_stdout_alone(run: Any, tiles: Path, config: Path, tmp_path: Path) -> None:
    import json

    code, out, err = run("train", *arguments(tiles, tmp_path / "run", config, "--json"))
    values = json.loads(out)
    assert code == 0 and values["steps"] == 6 and 0 <= values["best_iou"] <= 1 and "epoch 2/2" in err
    assert values["model"] == str(tmp_path / "run" / "model.safetensors")
