"""One training on several processes: the same as on one, ended together, gone on with together.

Most tests fork processes that torchrun's environment is put on, which saves its imports; those marked slow start
torchrun itself.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from small_tiles import settings, write_tileset
from torch import nn

from aerialseg.cli import main
from aerialseg.errors import BadDataError, ConfigError, UsageError
from aerialseg.models.build import Segmenter
from aerialseg.training import cache, loop, start
from aerialseg.training.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = "[model]\npreset = 'unet-r18'\n"
"""A configuration for `settings` to fill."""


@dataclass(frozen=True)
class Ended:
    """How the processes of one training ended, by rank."""

    codes: list[int]
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ") or "Traceback" in line]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tileset(tmp_path_factory.mktemp("tiles"), val=3)


@pytest.fixture
def words(tiles: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return the command line of a training into `tmp_path / name`."""
    config = tmp_path / "tiny.toml"
    config.write_text(NOTHING)

    def build(name: str, *more: str, flags: tuple[str, ...] = ()) -> list[str]:
        given = settings("data.cache=off", *more)
        return [str(tiles), "-o", str(tmp_path / name), "-c", str(config), "--device", "cpu", *given, *flags]

    return build


@pytest.fixture
def train(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run `aerialseg train` on so many processes; `meanwhile` is called with their ids while they are under way."""

    def call(words: list[str], world: int = 2, meanwhile: Callable[[list[int]], None] = lambda _: None) -> Ended:
        capfd.readouterr()
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun keeps
        children = [fork(words, rank, world, store.port) for rank in range(world)]
        try:
            meanwhile(children)
            codes = [wait_for(child) for child in children]
        finally:
            for child in children:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
        return Ended(codes, *capfd.readouterr())

    return call


def fork(words: list[str], rank: int, world: int, port: int) -> int:
    child = os.fork()
    if child == 0:
        named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
        named |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
        named |= {"TORCHELASTIC_MAX_RESTARTS": 0}
        if world > 1:
            os.environ.update({name: str(value) for name, value in named.items()} | {"TORCHELASTIC_RUN_ID": "test"})
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        try:
            os._exit(main(["train", *words]))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def wait_for(child: int) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    raise AssertionError("a process did not end")


def normalise_by_group(module: nn.Module) -> nn.Module:
    """Put GroupNorm where BatchNorm was, whose result depends on the rest of the batch."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = nn.GroupNorm(1, child.num_features)
            setattr(module, name, nn.Sequential(norm, *(c for c in child.children() if not isinstance(c, nn.Identity))))
        else:
            normalise_by_group(child)
    return module


@pytest.fixture
def group_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    build = start.build_network
    monkeypatch.setattr(start, "build_network", lambda spec: normalise_by_group(build(spec)))


def state_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "last.ckpt", weights_only=True)["state"]


def furthest(one: Path, other: Path, part: str = "model") -> float:
    first, second = state_of(one)[part], state_of(other)[part]
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def rates_of(run: Path) -> torch.Tensor:
    """Return AdamW's running means of all gradients."""
    return torch.cat([kept["exp_avg"].flatten() for kept in state_of(run)["optimizer"]["state"].values()])


def test_all_processes_take_the_first_one_s_schedule_for_minutes(
    train: Any, words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(schedule: Any, *_: Any, **__: Any) -> Any:
        return schedule.model_copy(update={"epochs": 3 - int(os.environ["RANK"]), "steps_per_epoch": 2})

    monkeypatch.setattr(loop, "fit_schedule", fitted)
    ended = train(words("run", flags=("--minutes", "5")))
    assert ended.codes == [0, 0] and ended.err.count("so 3 epochs of 2 steps") == 1, ended.err
    assert state_of(tmp_path / "run")["config"]["schedule"]["epochs"] == 3


@pytest.mark.parametrize(("loss", "crops"), [("loss.dice=0", 2), ("optimizer.accumulate=2", 4)])
def test_two_processes_end_with_the_weights_of_one(
    train: Any, words: Any, group_norm: None, tmp_path: Path, loss: str, crops: int
) -> None:
    # AdamW makes more of rounding with every step; clipping would hide gradients of another length
    few = (loss, "schedule.steps_per_epoch=2", "optimizer.lr=3e-5", "optimizer.clip=0")
    assert train(words("one", *few), world=1).codes == [0]
    ended = train(words("two", *few))
    assert ended.codes == [0, 0] and ended.out.count("\n") == 1 and ended.err.count("epoch 2/2") == 1, ended.err
    assert f"2 processes, each with {crops} crops of every step" in ended.err
    assert furthest(tmp_path / "one", tmp_path / "two") < 1e-6
    assert furthest(tmp_path / "one", tmp_path / "two", "average") < 1e-6
    rates = rates_of(tmp_path / "one")
    assert (rates_of(tmp_path / "two") - rates).norm() < 1e-3 * rates.norm()
    one, two = (state_of(tmp_path / name)["standing"]["records"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6) and a["iou"] == pytest.approx(b["iou"], abs=1e-3)


def test_a_stop_of_one_process_stops_all_and_any_number_goes_on(
    train: Any, words: Any, group_norm: None, tmp_path: Path
) -> None:
    few = ("schedule.epochs=3", "schedule.steps_per_epoch=4", "optimizer.lr=1e-5", "schedule.patience=0")
    assert train(words("whole", *few)).codes == [0, 0]

    def stop(children: list[int]) -> None:
        wait_until((tmp_path / "stopped" / "metrics.csv").exists)
        os.kill(children[1], signal.SIGTERM)

    ended = train(words("stopped", *few), meanwhile=stop)
    assert ended.codes == [143, 143] and len(ended.errors) == 1 and "stopped by SIGTERM" in ended.errors[0], ended.err
    assert "saved after step" in ended.err and 0 < state_of(tmp_path / "stopped")["standing"]["taken"] < 12
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")
    assert train(words("stopped", *few, flags=("--resume",))).codes == [0, 0]
    assert furthest(tmp_path / "stopped", tmp_path / "whole") == 0
    assert train(words("alone", *few, flags=("--resume",)), world=1).codes == [0]
    assert furthest(tmp_path / "alone", tmp_path / "whole") < 1e-6


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_is_killed_ends_the_others(train: Any, words: Any, tmp_path: Path) -> None:
    def kill(children: list[int]) -> None:
        wait_until((tmp_path / "run" / "metrics.csv").exists)
        os.kill(children[1], signal.SIGKILL)

    ended = train(words("run", "schedule.epochs=200"), meanwhile=kill)
    assert ended.codes == [71, -signal.SIGKILL], ended.err
    assert len(ended.errors) == 1 and "another process of this training was lost" in ended.errors[0]


def test_a_tile_that_one_process_cannot_read_ends_both_with_its_error(
    train: Any, words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = cache._read_image

    def fail(path: Path, window: Any, made: Any) -> Any:
        if os.environ["RANK"] == "1" and (tmp_path / "run" / "metrics.csv").exists():
            raise BadDataError(f"{path}: damaged")
        return read(path, window, made)

    monkeypatch.setattr(cache, "_read_image", fail)
    ended = train(words("run", "schedule.epochs=50"))
    assert ended.codes == [65, 65] and len(ended.errors) == 1 and ended.errors[0].endswith(": damaged"), ended.err


def test_what_fails_on_one_process_outside_the_common_steps_is_said_by_it_alone(
    train: Any, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Segmenter.forward

    def fail(self: Segmenter, *given: Any) -> torch.Tensor:
        if os.environ["RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, *given)

    monkeypatch.setattr(Segmenter, "forward", fail)
    ended = train(words("run"))
    assert ended.codes == [71, 71] and len(ended.errors) == 1, ended.err
    assert "too little memory for 2 crops of 64 px" in ended.errors[0] and "data.batch=2" in ended.errors[0]


@pytest.mark.parametrize("where", ["_start", "load_tileset", "pick_device"])
def test_what_fails_before_the_first_step_on_one_process_ends_both(
    train: Any, words: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    work = getattr(loop, where)

    def fail(*given: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise BadDataError("only here")
        return work(*given)

    monkeypatch.setattr(loop, where, fail)
    ended = train(words("run"))
    assert ended.codes == [65, 65] and ended.errors == ["error: only here"], ended.err


def test_processes_that_see_other_tiles_do_not_train_together(
    train: Any, words: Any, tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loop.load_tileset
    monkeypatch.setattr(loop, "load_tileset", lambda folder: replace(load(folder), digest=os.environ["RANK"] * 64))
    ended = train(words("run"))
    assert ended.codes == [78, 78] and len(ended.errors) == 1, ended.err
    assert "process 1 has another set of tiles than process 0" in ended.errors[0]


def spoil_rank_1(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Make the logits infinite on the second process at these steps."""
    forward, count = Segmenter.forward, iter(range(10_000))

    def spoil(self: Segmenter, *given: Any) -> torch.Tensor:
        spoiled = self.training and os.environ["RANK"] == "1" and next(count) in steps
        return forward(self, *given) * (torch.inf if spoiled else 1.0)

    monkeypatch.setattr(Segmenter, "forward", spoil)


def test_a_step_that_is_not_finite_on_one_process_is_skipped_by_all(
    train: Any, words: Any, group_norm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aerialseg.training.job.pick_precision", lambda wanted, device: "fp16")
    spoil_rank_1(monkeypatch, range(1, 3))
    ended = train(words("run", "schedule.epochs=1", "schedule.steps_per_epoch=5"))
    said = re.search(r"(\d) steps skipped by loss scaling", ended.err)
    assert ended.codes == [0, 0] and said is not None, ended.err
    skipped, state = int(said[1]), state_of(tmp_path / "run")
    assert 2 <= skipped < 5 and state["standing"]["taken"] == 5  # float16 may well leave out another one by itself
    assert all(kept["step"] == 5 - skipped for kept in state["optimizer"]["state"].values())


def test_divergence_on_one_process_is_told_once_with_the_tiles_of_both(
    train: Any, words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_rank_1(monkeypatch, range(4, 5))
    ended = train(words("run"))
    assert ended.codes == [4, 4] and len(ended.errors) == 1 and "step 5 (epoch 2)" in ended.errors[0], ended.err
    assert state_of(tmp_path / "run")["standing"]["taken"] == 3


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("data.batch=3",), 78, "data.batch 3: 2 processes cannot share it evenly; say --set data.batch=4"),
        (("data.colour=7",), 78, "data.colour"),
        (("nothing",), 78, "section.key=value"),
    ],
)
def test_a_mistake_is_told_once(train: Any, words: Any, more: tuple[str, ...], code: int, said: str) -> None:
    ended = train(words("run", *more))
    assert ended.codes == [code, code] and len(ended.errors) == 1 and said in ended.errors[0], ended.err


def test_the_folder_of_a_finished_run_is_refused_once(train: Any, words: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_text("precious")
    ended = train(words("run"))
    assert ended.codes == [73, 73] and len(ended.errors) == 1, ended.err
    ended = train(words("run", flags=("--unknown",)))
    assert ended.codes == [2, 2] and len(ended.errors) == 1, ended.err


def test_shares_make_up_the_batch_and_uneven_ones_are_refused() -> None:
    parts = [Ranks(rank, 4).local_batch(12) for rank in range(4)]
    assert [k for part in parts for k in range(12)[part]] == list(range(12)) and len(
        {p.stop - p.start for p in parts}
    ) == 1
    with pytest.raises(ConfigError, match=r"say --set data\.batch=12"):
        Ranks(0, 4).local_batch(10)


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Ranks(5, 8, 1, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [second.device(wanted) for wanted in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert ALONE.device("cuda:3") == "cuda:3"
    with pytest.raises(UsageError, match="every process takes its own"):
        second.device("cuda:3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert second.device("auto") == "auto"


def test_a_training_that_torchrun_may_restart_has_to_resume() -> None:
    with pytest.raises(UsageError, match="say --resume"):
        Ranks(restarts=2).check_restarts(False)
    Ranks(restarts=2).check_restarts(True)
    ALONE.check_restarts(False)


def test_other_random_numbers_for_each_process_and_step() -> None:
    drawn = []
    for rank, step in ((1, 0), (1, 1), (2, 0)):
        Ranks(rank, 3).reseed(0, step)
        drawn.append(float(torch.rand(())))
    torch.manual_seed(4)
    Ranks(0, 3).reseed(0, 0)
    drawn.append(float(torch.rand(())))
    torch.manual_seed(4)
    assert len(set(drawn)) == 4 and float(torch.rand(())) == drawn[-1]


def launch(words: list[str], *flags: str) -> subprocess.Popen[str]:
    """Start torchrun with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *flags, "-m", "aerialseg"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "train", *words], env=environment, stderr=subprocess.PIPE, text=True)


def workers_of(launcher: int) -> list[int]:
    found = [int(child.pid) for child in psutil.Process(launcher).children(recursive=True)]
    return [child for child in found if "aerialseg" in psutil.Process(child).cmdline()]


def read_to(process: subprocess.Popen[str], wanted: str) -> str:
    """Read stderr to the first line with `wanted`, or to its end."""
    said = ""
    for line in process.stderr or ():
        said += line
        if wanted in line:
            break
    return said


LONG = ("schedule.epochs=4", "schedule.steps_per_epoch=10", "schedule.patience=0")


@pytest.fixture(scope="module")
def whole(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.toml").write_text(NOTHING)
    given = settings("data.cache=off", *LONG)
    words = [str(tiles), "-o", str(folder / "run"), "-c", str(folder / "tiny.toml"), "--device", "cpu", *given]
    process = launch(words)
    assert process.communicate(timeout=240) and process.returncode == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_restarts_after_a_lost_process_and_ends_with_the_same_weights(
    words: Any, whole: Path, tmp_path: Path
) -> None:
    process = launch(words("run", *LONG, flags=("--resume",)), "--max-restarts", "2")
    read_to(process, "epoch 1/4")
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    said = read_to(process, "the end")
    assert process.wait(60) == 0 and "going on after step" in said, said
    assert furthest(tmp_path / "run", whole) == 0 and furthest(tmp_path / "run", whole, "average") == 0
    assert [row["loss"] for row in state_of(tmp_path / "run")["standing"]["records"]] == [
        row["loss"] for row in state_of(whole)["standing"]["records"]
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_of_torchrun_stops_all_within_10_s_and_the_same_command_goes_on(
    words: Any, whole: Path, tmp_path: Path, sign: signal.Signals
) -> None:
    given = words("run", *LONG, flags=("--resume",))
    process = launch(given)
    read_to(process, "epoch 1/4")
    workers = workers_of(process.pid)
    began = time.monotonic()
    process.send_signal(sign)
    said = read_to(process, "error: stopped by")
    assert time.monotonic() - began < 10
    said += read_to(process, "the end")
    assert (
        not any(map(psutil.pid_exists, workers)) and said.count("error: stopped by") == 1 and "saved after step" in said
    )
    assert state_of(tmp_path / "run")["standing"]["taken"] < 40
    assert launch(given).wait(240) == 0
    assert furthest(tmp_path / "run", whole) == 0
