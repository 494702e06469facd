"""Finished rows on their way out: brought back to the scene's own grid, quantised on the device, handed to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from aerialseg.counts import NODATA, QUANTA
from aerialseg.errors import ModelError, one_line
from aerialseg.prediction.forward import mark
from aerialseg.prediction.lattice import CHUNK_ROWS, Regrid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from aerialseg.prediction.batches import Validity
    from aerialseg.prediction.canvas import Canvas
    from aerialseg.prediction.lattice import Schedule


@dataclass(frozen=True, slots=True)
class Strip:
    """Finished rows of a scene, the first one at `row`; the buffer is the engine's and is filled again later."""

    row: int
    buffer: Tensor
    """uint8 [planes, rows, width]"""
    valid: NDArray[np.bool_] | None
    arrival: Arrival | None
    """None where nothing is under way: on a processor."""

    def quanta(self) -> NDArray[np.uint8]:
        """Return round(254 x probability), [rows, width], 255 where the scene has no data; waits for the device.

        Raises ModelError when the network gave NaN, which would read as a number here.
        """
        return self._plane(0)

    def agreement(self) -> NDArray[np.uint8] | None:
        """Return round(254 x disagreement), [rows, width], 255 where the scene has no data; None when not asked for.

        Disagreement is twice the weighted standard deviation of the probabilities that windows gave a pixel: 0 where
        they agree or one window speaks alone, 1 where half of them say 0 and half 1.
        """
        return self._plane(1) if len(self.buffer) > 1 else None

    def _plane(self, index: int) -> NDArray[np.uint8]:
        if self.arrival is not None:
            self.arrival.wait()
        plane: NDArray[np.uint8] = self.buffer[index].numpy()
        if self.valid is not None:
            plane[~self.valid] = NODATA
        return plane


@dataclass(frozen=True, slots=True)
class Arrival:
    """A strip's way from a CUDA device to the host, which is known to be sound once it has come."""

    event: torch.cuda.Event
    total: Tensor
    """What the strip's probabilities add up to: a number on the host, there after `event`."""
    scene: str

    def wait(self) -> None:
        """Wait until the strip is there; raises ModelError when it holds a NaN."""
        self.event.synchronize()
        _refuse_nan(self.total, self.scene)


class StripMaker:
    """Turns finished rows of the grid that is run into strips of the scene's own; a class because it is all state."""

    def __init__(self, canvas: Canvas, schedule: Schedule, planes: int, device: torch.device, hosts: int) -> None:
        self._schedule, self._name = schedule, one_line(canvas.source.path)
        cols = Regrid.cols_of(canvas)
        self._back = (
            None if schedule.rows is None or cols is None else _Back(schedule.rows, cols, schedule.lattice.left, device)
        )
        rows = schedule.lattice.size if self._back is None else CHUNK_ROWS
        size, pinned = planes * rows * canvas.source.box.width, device.type == "cuda"
        self._quanta = None if device.type == "cpu" else torch.empty(size, dtype=torch.uint8, device=device)
        self._hosts = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(hosts)]
        self._totals = torch.empty(hosts, pin_memory=pinned)
        self._turn = 0

    def strips(self, index: int, rows: Tensor, validity: Validity) -> Iterator[Strip]:
        """Yield the strips that leave after window row `index`, given its finished `rows` [planes, rows, columns]."""
        begin, _ = self._schedule.lattice.finished(index)
        if self._back is not None:
            self._back.put(begin, rows)
        for start, stop in self._schedule.strips(index):
            planes = rows if self._back is None else self._back.between(start, stop)
            yield self._strip(start, planes, validity.get())

    def _strip(self, row: int, planes: Tensor, valid: NDArray[np.bool_] | None) -> Strip:
        planes.mul_(QUANTA).round_()
        # Buffers are flat, so that what is used of them is contiguous: another copy to the host is never asynchronous.
        turn = self._turn % len(self._hosts)
        host, total = self._hosts[turn][: planes.numel()].view(planes.shape), self._totals[turn]
        self._turn += 1
        on_cuda = planes.device.type == "cuda"
        total.copy_(planes[0].sum(), non_blocking=on_cuda)
        if not on_cuda:
            _refuse_nan(total, self._name)
        if self._quanta is None:
            np.copyto(host.numpy(), planes.numpy(), casting="unsafe")  # six times as fast as torch's copy
            return Strip(row, host, valid, None)
        quanta = self._quanta[: planes.numel()].view(planes.shape)
        host.copy_(quanta.copy_(planes), non_blocking=on_cuda)
        return Strip(row, host, valid, Arrival(mark(planes.device), total, self._name) if on_cuda else None)


def _refuse_nan(total: Tensor, scene: str) -> None:
    """Raise ModelError when a strip holds NaN: half precision overflows to it, and quantised it would read as 0.

    Strip by strip, before one is kept: a run that goes on behind it would never look at it again.
    """
    if not torch.isfinite(total):
        raise ModelError(f"{scene}: the model gave NaN; use --precision fp32")


class _Back:
    """Interpolates between the pixel centres of the grid that was run; keeps the last row of what came before."""

    def __init__(self, rows: Regrid, cols: Regrid, left: int, device: torch.device) -> None:
        self._rows = rows
        self._lower, self._upper = (torch.from_numpy(side - left).to(device) for side in (cols.lower, cols.upper))
        self._share = torch.from_numpy(cols.share).to(device)
        self._row_share = torch.from_numpy(rows.share).to(device)
        self._planes = self._last = torch.empty(0, device=device)
        self._first = 0

    def put(self, first: int, planes: Tensor) -> None:
        """Take finished rows of the model's grid, the first one at `first`, if any."""
        if not planes.shape[1]:
            return
        if self._last.numel():
            planes, first = torch.cat([self._last, planes], dim=1), first - 1
        self._planes, self._first, self._last = planes, first, planes[:, -1:].clone()

    def between(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of the scene, float32 [planes, rows, width], a new array."""
        lower, upper = (
            torch.from_numpy(side[start:stop] - self._first).to(self._planes.device)
            for side in (self._rows.lower, self._rows.upper)
        )
        above, below = self._planes.index_select(1, lower), self._planes.index_select(1, upper)
        rows = above.lerp_(below, self._row_share[start:stop, None])
        return rows.index_select(2, self._lower).lerp_(rows.index_select(2, self._upper), self._share)
