"""FAULTS 23, 24, 26-29 and 34 through the installed command, in a process of its own, each with the real fault.

They take some ten seconds each, most of it imports, and are marked slow; test_train_faults.py has the same and more
cases inside one process, tests/training/test_ranks.py has row 35.
"""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_tiles import NETWORK, settings, write_tileset

from aerialseg.models.build import Segmenter, build_network
from aerialseg.models.package import ModelCard, load_model, save_model
from aerialseg.models.presets import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

GIGABYTE = 10**9


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tileset(tmp_path_factory.mktemp("tiles"))


@pytest.fixture
def train(cli: Any, tiles: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `aerialseg train` into `tmp_path / run` with overrides and `flags`."""
    (tmp_path / "tiny.toml").write_text("[model]\npreset = 'unet-r18'\n")

    def call(*more: str, flags: tuple[str, ...] = (), run: str = "run", device: str = "cpu", **options: Any) -> Any:
        words = [tiles, "-o", tmp_path / run, "-c", tmp_path / "tiny.toml", "--device", device, *settings(*more)]
        return cli("train", *words, *flags, **options)

    return call


def assert_ended(done: subprocess.CompletedProcess[str], code: int, *said: str) -> None:
    """One line says what is wrong, and nothing else was said as an error."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ") or "Traceback" in line]
    assert (done.returncode, done.stdout, len(lines)) == (code, "", 1), done.stderr
    assert all(text in lines[0] for text in said), lines[0]


def save(path: Path, *, architecture: str = NETWORK["architecture"], weight: float | None = None) -> Path:
    """Save a model of random weights, or of one weight in all places."""
    spec = resolve(None, NETWORK["architecture"], NETWORK["encoder"], bands=3)
    values = {"mean": (90.0,) * 3, "std": (40.0,) * 3}
    names = {"preset": "mine", "architecture": architecture, "encoder": spec.encoder}
    model = Segmenter(build_network(spec), **values)
    if weight is not None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(weight)
    save_model(path, model, ModelCard(**names, bands=3, tile_size=64, **values))
    return path


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_row_23_a_pickle_is_refused_and_not_run(train: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    done = train(flags=("--from", str(tmp_path / "model.safetensors")))
    assert_ended(done, 78, "model.safetensors")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "run" / "config.toml").exists()


def test_row_23_weights_of_another_architecture_are_refused(train: Any, tmp_path: Path) -> None:
    done = train(flags=("--from", str(save(tmp_path / "m.safetensors", architecture="unet"))))
    assert_ended(done, 78, "m.safetensors")
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickle"])
def test_row_24_a_damaged_checkpoint_gives_way_to_the_one_before(train: Any, tmp_path: Path, damage: str) -> None:
    assert train().returncode == 0
    whole, last = load_model(tmp_path / "run")[0].state_dict(), tmp_path / "run" / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "pickle":
        content = bytearray(pickle.dumps(Payload(tmp_path / "executed")))
    elif damage == "flipped":
        state = torch.load(last, weights_only=True)["state"]
        largest = bytes(max(state["model"].values(), key=torch.numel).untyped_storage())
        content[content.index(largest) + len(largest) // 2] ^= 1
    last.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    done = train(flags=("--resume",))
    assert done.returncode == 0 and f"{last}: damaged" in done.stderr, done.stderr
    assert "going on from previous.ckpt instead" in done.stderr and not (tmp_path / "executed").exists()
    again = load_model(tmp_path / "run")[0].state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_row_26_numbers_that_are_not_finite_end_with_4_and_the_model_stays(train: Any, tmp_path: Path) -> None:
    assert train().returncode == 0
    kept = (tmp_path / "run" / "model.safetensors").read_bytes()
    wild = str(save(tmp_path / "m.safetensors", weight=1e38))  # infinite from the first sum on
    done = train(flags=("--from", wild, "--overwrite"))
    assert_ended(done, 4, "step 1 (epoch 1): loss is nan", "on tiles city", "lower optimizer.lr")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == kept
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_row_27_memory_that_does_not_suffice_ends_with_71_and_advice(train: Any, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (40 * GIGABYTE, 40 * GIGABYTE))

    large = ("data.batch=2048", "data.crop=2048", "data.cache=off")  # 26 GB, four times
    done = train(*large, preexec_fn=limit)
    assert_ended(done, 71, "too little memory for 2048 crops of 2048 px", "--set data.batch=1024")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a working CUDA device")
def test_row_27_a_card_that_is_not_there_is_69(train: Any, tmp_path: Path) -> None:
    assert_ended(train(device="cuda"), 69, "cuda")
    assert not (tmp_path / "run" / "config.toml").exists()


HANGING = """
import os, sys, time
from pathlib import Path
from aerialseg.training import cache

def hang(path, window, made, read=cache._read_image):
    if Path(sys.argv[1], "metrics.csv").exists():
        time.sleep(3600)
    return read(path, window, made)

cache._read_image = hang
from aerialseg.cli import main
code = main(sys.argv[2:])
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
sys.exit(99 if children else code)
"""


def test_row_28_a_reader_that_hangs_ends_with_71_in_time_and_can_be_resumed(
    train: Any, tiles: Path, tmp_path: Path
) -> None:
    more = ("data.cache=off", "data.timeout_s=2", "schedule.epochs=3")
    assert train(*more, run="whole").returncode == 0
    words = [tiles, "-o", tmp_path / "run", "-c", tmp_path / "tiny.toml", "--device", "cpu", *settings(*more)]
    command = [sys.executable, "-c", HANGING, tmp_path / "run", "train", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=120)
    assert_ended(done, 71, "not read within 2 s", "--resume")
    assert (tmp_path / "run" / "last.ckpt").exists()
    assert train(*more, flags=("--resume",)).returncode == 0
    one, other = (load_model(tmp_path / run)[0].state_dict() for run in ("whole", "run"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("options", ["size=64k", "ro"])
def test_row_29_shared_memory_is_not_needed(tiles: Path, tmp_path: Path, options: str) -> None:
    mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mount]).returncode:
        pytest.skip("needs the right to mount (root)")
    (tmp_path / "tiny.toml").write_text("[model]\npreset = 'unet-r18'\n")
    words = ["-m", "aerialseg", "train", tiles, "-o", tmp_path / "run", "-c", tmp_path / "tiny.toml"]
    words += ["--device", "cpu", *settings("data.threads=4")]
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and (tmp_path / "run" / "model.safetensors").exists(), done.stderr


def test_row_34_the_same_seed_gives_the_same_weights_whatever_the_threads(train: Any, tmp_path: Path) -> None:
    runs = {"one": "data.threads=1", "same": "data.threads=1", "more": "data.threads=5", "other": "run.seed=7"}
    for run, override in runs.items():
        assert train(override, run=run).returncode == 0
    files = {run: (tmp_path / run / "model.safetensors").read_bytes() for run in runs}
    assert files["one"] == files["same"]
    one, more, other = (load_model(tmp_path / run)[0].state_dict() for run in ("one", "more", "other"))
    assert all(torch.equal(tensor, more[name]) for name, tensor in one.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in one.items())
