"""Which shard a task of an array is, by what Slurm, Kubernetes and AWS Batch tell their tasks in the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.errors import UsageError, one_line
from aerialseg.prediction.options import Shard

if TYPE_CHECKING:
    from collections.abc import Mapping

SHARDS = "AERIALSEG_SHARDS"
"""How many shards there are, for `--shard auto`."""
SLURM = "SLURM_ARRAY_TASK_"
FROM_ZERO = (
    ("Kubernetes index", "JOB_COMPLETION_INDEX", None),
    ("AWS Batch index", "AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
)
"""What a number is called, its variable, and that of how many there are, of those that always count from 0."""


def find_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Return the shard that `I/N`, `auto/N` or `auto` stands for; raises UsageError saying what to write instead.

    A Slurm array counts from 1 when it reaches N, and else from 0: tasks of it that run again later tell no more.
    """
    number, _, count = text.partition("/")
    if number != "auto":
        if not (number.isdecimal() and count.isdecimal()):
            raise UsageError(
                f"--shard {one_line(text)}: give the part and how many there are, as 1/4, or auto/4 in an array"
            )
        return Shard(int(number), int(count))
    if not count and text == "auto":
        count = environment.get(SHARDS, "")
    if (count or text != "auto") and not (count.isdecimal() and int(count)):
        raise UsageError(f"--shard {one_line(text)}: {one_line(count)!r} is no number of shards; write --shard auto/8")
    if f"{SLURM}ID" in environment:
        return _of_slurm(text, int(count or 0), environment)
    for called, variable, size in FROM_ZERO:
        if variable in environment:
            index = _number(environment, variable)
            shards = int(count or environment.get(size or "", "0"))
            return _shard(text, f"{called} {index}", index, 0, shards)
    raise UsageError(
        f"--shard {one_line(text)}: this is no task of an array of Slurm, Kubernetes or AWS Batch; write --shard 1/8"
    )


def _of_slurm(text: str, count: int, environment: Mapping[str, str]) -> Shard:
    index = _number(environment, f"{SLURM}ID")
    names = (f"{SLURM}MIN", f"{SLURM}MAX", f"{SLURM}COUNT", f"{SLURM}STEP")
    lowest, highest, tasks, step = (
        _number(environment, name, default) for name, default in zip(names, (index, index, 0, 1), strict=True)
    )
    if not count and step == 1 and lowest in (0, 1) and tasks == highest - lowest + 1:
        count, first = tasks, lowest
    else:
        first = int(highest == count)
    return _shard(text, f"Slurm task {index}", index, first, count)


def _shard(text: str, task: str, index: int, first: int, count: int) -> Shard:
    if not count:
        raise UsageError(
            f"--shard {one_line(text)}: {task}, of how many is not certain; write --shard auto/8, or set {SHARDS}=8"
        )
    if not 0 <= index - first < count:
        raise UsageError(
            f"--shard {one_line(text)}: {task} is none of {count} tasks that count from {first};"
            f" write --shard I/{count} with I from 1 to {count}"
        )
    return Shard(index - first + 1, count, f"{task}, from {first}")


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, "" if default is None else str(default))
    if not value.isdecimal():
        raise UsageError(f"--shard auto: {name} is {one_line(value)!r}, no number; write --shard 1/8")
    return int(value)
