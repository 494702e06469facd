"""One training on several processes, as torchrun starts them: which one this is, and what all of them must agree on.

Every process goes through the same list of batches and takes its share of each; what a step sums over its batch is
summed over all processes, with gradients (`all_reduce_sum`). So a configuration gives the same training on any number
of them, up to rounding. The first process alone writes files and speaks. An error or a stop on one process ends the
work on all of them, at the same step, and one says why. A process on its own is `Ranks()`, for which nothing here does
anything.
"""

from __future__ import annotations

import os
import signal
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from aerialseg import system
from aerialseg.errors import AerialsegError, ConfigError, EndedElsewhere, ResourceError, Stopped, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from torch import nn

    from aerialseg.progress import Progress

Value = TypeVar("Value")
ENDED = "ended"
"""Under this key a process that fails by itself leaves its exit code for those that only see it vanish."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1
    """How many there are."""
    local: int = 0
    """Counted on this machine, as its GPUs are."""
    local_world: int = 1
    restarts: int = 0
    """How often torchrun may start all of them again."""

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def local_batch(self, batch: int) -> slice:
        """Return this process's part of a batch; raises ConfigError when it cannot be cut into equal parts."""
        size, left = divmod(batch, self.world)
        if left:
            raise ConfigError(
                f"data.batch {batch}: {self.world} processes cannot share it evenly; say --set"
                f" data.batch={(size + 1) * self.world}"
            )
        return slice(self.rank * size, (self.rank + 1) * size)

    def check_restarts(self, resumes: bool) -> None:
        """Raise UsageError when torchrun may start a training again that does not go on from its checkpoint."""
        if self.restarts and not resumes:
            raise UsageError(
                "torchrun --max-restarts starts this same command again: say --resume, which begins a run where there"
                " is none, and no --overwrite"
            )

    def device(self, wanted: str) -> str:
        """Return the name of this process's device: each of a machine's processes has a GPU of its own."""
        if self.world == 1:
            return wanted
        if wanted not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--device {wanted}: under torchrun every process takes its own; say auto, cpu or cuda")
        gpu = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
        return f"cuda:{self.local}" if gpu else wanted

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Run a piece of work that may fail on any process: then it fails on all, and the first that failed says why.

        All processes have to come here, and none may wait for another inside, unless it is the first thing it does. A
        stop is raised on all of them.
        """
        problem: AerialsegError | None = None
        try:
            yield
        except AerialsegError as error:
            problem = error
        codes = self.all_gather_int(0 if problem is None else problem.exit_code)
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if problem is not None and failed == self.rank:
            raise problem
        if failed is not None:
            raise Stopped(codes[failed] - 128) if codes[failed] > 128 else EndedElsewhere(codes[failed])

    def in_step(
        self, batches: Generator[Value, None, None], still_waiting: Callable[[], None]
    ) -> Generator[Value, None, None]:
        """Yield `batches`, of which every process has as many; a stop or a failed read ends them on all at once."""
        with closing(batches):
            while True:
                with self.fail_together():
                    still_waiting()
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def all_gather_int(self, value: int) -> list[int]:
        """Return the number of every process, by rank."""
        if self.world == 1:
            return [value]
        values = torch.zeros(self.world, dtype=torch.int64)
        values[self.rank] = value
        torch.distributed.all_reduce(values)
        return [int(found) for found in values]

    def all_gather(self, value: Value) -> list[Value]:
        """Return the value of every process, by rank, whatever it is."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Value) -> Value:
        """Return the first process's value."""
        if self.world == 1:
            return value
        values: list[Any] = [value if self.first else None]
        torch.distributed.broadcast_object_list(values, src=0)
        found: Value = values[0]
        return found

    def check_alike(self, values: Mapping[str, str]) -> None:
        """Raise ConfigError when processes differ in what has to be the same: another machine's files may be older."""
        everyones = self.all_gather(dict(values))
        for rank, theirs in enumerate(everyones):
            for name, value in everyones[0].items():
                if theirs[name] != value:
                    raise ConfigError(
                        f"process {rank} has another {name} than process 0: {theirs[name]}, not {value}; give all"
                        " machines the same files and the same kind of device"
                    )

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        """Return the sums over all processes, with gradients that suit gradients which are averaged over them."""
        if self.world == 1:
            return sums
        total: Tensor = _AllReduceSum.apply(sums)
        return total

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes, without gradients."""
        return self.all_reduce_sum(values.detach()) / self.world

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give `module` the first process's buffers: BatchNorm's running statistics are each process's own."""
        if self.world > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def reseed(self, seed: int, step: int) -> None:
        """Give each process but the first random numbers of its own for `step`; the first one's are in the checkpoint.

        Otherwise the network would drop the same paths in every share of the batch.
        """
        if not self.first:
            torch.manual_seed(int(np.random.SeedSequence((seed, self.rank, step)).generate_state(1)[0]))

    def patient(self, progress: Progress) -> Progress:
        """Return `progress` for loops over `in_step`: what stops them comes with the next batch, on all processes."""
        return progress if self.world == 1 else _Patient(progress)


ALONE = Ranks()


class _Patient:
    """A Progress that keeps a stop to itself; whoever asks the real one hears of it again."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.say, self.finish = progress.say, progress.finish

    def start(self, label: str, total: float, unit: str) -> None:
        with suppress(Stopped):
            self._progress.start(label, total, unit)

    def advance(self, amount: float = 1, note: str = "") -> None:
        with suppress(Stopped):
            self._progress.advance(amount, note)


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Yield what torchrun's environment says this process is, connected to the others; alone without torchrun.

    An error that only this process has is made known to the others, which end quietly with the same exit code. When
    another one vanishes without a word, the first says so: ResourceError.
    """
    found = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS")
    ranks = Ranks(*(int(found[name]) for name in names if found))
    if ranks.world == 1:
        yield ranks
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    nvidia = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    store, *_ = next(rendezvous("env://"))
    if ranks.world == ranks.local_world:  # here torchrun may keep its store over a restart, with addresses of the dead
        store = PrefixStore(f"attempt {found.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if nvidia else "gloo", store=store, rank=ranks.rank, world_size=ranks.world
        )
        yield ranks
    except Exception as error:
        for number in system.STOPS:  # torchrun sends them to whoever is not gone yet
            signal.signal(number, signal.SIG_IGN)
        parting = _parting(ranks, store, error)
        if parting is error:
            raise
        raise parting from error
    torch.distributed.destroy_process_group()


def _parting(ranks: Ranks, store: Any, error: Exception) -> Exception:
    """Return what this process ends with; leave word for the others if it is the cause."""
    from torch.distributed import DistError

    if isinstance(error, Stopped | EndedElsewhere):
        return error if ranks.first else EndedElsewhere(error.exit_code)
    if not isinstance(error, DistError) and "gloo" not in str(error):
        with suppress(RuntimeError):
            store.set(ENDED, str(error.exit_code if isinstance(error, AerialsegError) else 1))
        return error
    with suppress(RuntimeError):  # torchrun keeps the store, on the first machine
        if store.check([ENDED]):
            return EndedElsewhere(int(store.get(ENDED)))
    lost = ResourceError(
        "another process of this training was lost; torchrun --max-restarts 2 starts all of them again, and with"
        " --resume they go on from the last checkpoint"
    )
    return lost if ranks.first else EndedElsewhere(lost.exit_code)


class _AllReduceSum(torch.autograd.Function):
    """Adds up forward; backward, every process takes the gradient of its own summand, times their number.

    DistributedDataParallel averages gradients over the processes, so the factor makes that average the gradient of
    the loss of the whole batch, however unevenly its labelled pixels lie on the processes.
    """

    @staticmethod
    def forward(context: Any, sums: Tensor) -> Tensor:
        total = sums.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.distributed.get_world_size()
