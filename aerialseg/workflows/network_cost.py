"""What one network costs for one size of tile on one device: seconds and peak memory, forward and with backward.

`measure_apart` does it in a process of its own: on a processor peak memory is that of a process, and what runs out of
memory there ends only itself.
"""

from __future__ import annotations

import gc
import importlib
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from aerialseg import system
from aerialseg.errors import first_line
from aerialseg.models.build import build_network
from aerialseg.models.device import Machine, autocast, is_out_of_memory, wait_for
from aerialseg.models.presets import ModelSpec
from aerialseg.models.pyramid import PyramidEncoder, parse_design

if TYPE_CHECKING:
    if sys.platform == "win32":
        from multiprocessing.connection import PipeConnection as Connection
    else:
        from multiprocessing.connection import Connection

    from aerialseg.progress import Progress

REPEATS = 5
START_UP_S, POLL_S = 60.0, 0.2


@dataclass(frozen=True, slots=True)
class Trial:
    """One network at one size."""

    spec: ModelSpec
    size: int
    batch: int
    device: str
    precision: str
    limit_s: float
    """Passes are repeated, at most REPEATS times, until they took so long."""
    encoder_only: bool = False
    """Our own encoder without a decoder."""
    memory: int | None = None
    """Bytes that a process of its own may take; asking for more fails, and nobody else is killed."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds per tile, medians after one pass that does not count; bytes at the peak, weights included, of the batch.

    Bytes are None where the system does not say.
    """

    forward_s: float
    forward_bytes: int | None
    train_s: float
    """Forward and backward; the optimizer's step is not in it."""
    train_bytes: int | None
    """With gradients, without the optimizer's state."""


def build(spec: ModelSpec, *, encoder_only: bool) -> nn.Module:
    """Build the network, or our own encoder alone."""
    return PyramidEncoder(spec.bands, parse_design(spec.encoder_arguments)) if encoder_only else build_network(spec)


def measure_cost(trial: Trial) -> Cost:
    """Run the network on random pixels; raises RuntimeError or MemoryError when it cannot run or memory ends."""
    device = torch.device(trial.device)
    if device.type == "cuda":
        gc.collect()  # what the network before this one left
        torch.cuda.empty_cache()
    for module in _libraries(trial):
        importlib.import_module(module)
    Machine().run_kernel(device, trial.precision)  # what torch sets up at its first kernel is not the network's
    held = _memory(device)
    network = build(trial.spec, encoder_only=trial.encoder_only).to(device).to(memory_format=torch.channels_last)
    shape = (trial.batch, trial.spec.bands, trial.size, trial.size)
    pixels = torch.randn(shape, device=device).to(memory_format=torch.channels_last)

    def predict() -> None:
        with torch.inference_mode(), autocast(device, trial.precision):
            network(pixels)

    def learn() -> None:
        with autocast(device, trial.precision):
            maps = network(pixels)
        made: list[Tensor] = [maps] if isinstance(maps, Tensor) else maps[1:]  # an encoder's first map is its input
        torch.autograd.backward([item.float().mean() for item in made])
        network.zero_grad(set_to_none=True)

    network.eval()
    forward_s, forward_peak = _observe(predict, device, trial.limit_s)
    network.train()
    train_s, train_peak = _observe(learn, device, trial.limit_s)
    peaks = [None if held is None or peak is None else max(0, peak - held) for peak in (forward_peak, train_peak)]
    return Cost(forward_s / trial.batch, peaks[0], train_s / trial.batch, peaks[1])


def measure_here(trial: Trial) -> Cost | str:
    """Return the cost, or why there is none."""
    try:
        return measure_cost(trial)
    except (RuntimeError, ValueError, MemoryError) as error:
        return "out of memory" if is_out_of_memory(error) else first_line(error)


def measure_apart(trial: Trial, progress: Progress) -> Cost | str:
    """Return the cost as a fresh process finds it, or why there is none; Stopped from `progress` ends that process."""
    context = system.fresh_processes(_libraries(trial))  # loaded once, 8 s, where processes can start from there
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(trial, sender), daemon=True)
    process.start()
    sender.close()
    most_s = START_UP_S + 4 * trial.limit_s
    deadline = time.monotonic() + most_s
    try:
        while not receiver.poll(POLL_S):
            progress.advance(0)
            if time.monotonic() > deadline:
                return f"took more than {most_s:.0f} s"
        found: Cost | str = receiver.recv()
        return found
    except EOFError:
        return "ended by the system, probably for its memory"
    finally:
        process.kill()
        process.join()
        receiver.close()


def _libraries(trial: Trial) -> list[str]:
    """Return the modules that bring in all a network is made of; their memory is not the network's."""
    return [__name__] if trial.encoder_only else [__name__, "aerialseg.models.build"]


def _answer(trial: Trial, sender: Connection) -> None:
    """Measure in a process of its own; what asks for more memory than there is fails before others are killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits decides
    if trial.memory is not None:
        system.limit_memory(trial.memory)
    sender.send(measure_here(trial))


def _observe(run: Callable[[], None], device: torch.device, limit_s: float) -> tuple[float, int | None]:
    """Return the median seconds of a pass, and the most memory held during all of them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        system.forget_peak()
    times: list[float] = []
    run()
    wait_for(device)
    while len(times) < REPEATS and (not times or sum(times) < limit_s):
        began = time.perf_counter()
        run()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times), _memory(device, peak=True)


def _memory(device: torch.device, *, peak: bool = False) -> int | None:
    """Return the bytes that tensors take on a card, or that this process holds in memory; now, or at the peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    return system.peak_memory() if peak else system.held_memory()
