"""The shard of an array's task, by the variables that each scheduler sets."""

from __future__ import annotations

import pytest

from aerialseg.errors import UsageError
from aerialseg.prediction.scheduler import find_shard


def slurm(task: int, *tasks: int, step: int = 1) -> dict[str, str]:
    """Return what Slurm sets in a task of `--array=tasks`."""
    told = {"ID": task, "MIN": min(tasks), "MAX": max(tasks), "COUNT": len(tasks), "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


AWS = {"AWS_BATCH_JOB_ARRAY_INDEX": "3", "AWS_BATCH_JOB_ARRAY_SIZE": "8"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "3"}


@pytest.mark.parametrize(
    ("text", "environment", "line"),
    [
        ("4/8", {}, "shard 4 of 8"),
        ("4/8", slurm(0, 0, 1), "shard 4 of 8"),
        ("auto/8", slurm(3, *range(8)), "shard 4 of 8 (Slurm task 3, from 0)"),
        ("auto/8", slurm(3, *range(1, 9)), "shard 3 of 8 (Slurm task 3, from 1)"),
        ("auto/8", slurm(7, 3, 7), "shard 8 of 8 (Slurm task 7, from 0)"),
        ("auto/8", slurm(3, 3, 8), "shard 3 of 8 (Slurm task 3, from 1)"),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "3"}, "shard 4 of 8 (Slurm task 3, from 0)"),
        ("auto", slurm(3, *range(8)), "shard 4 of 8 (Slurm task 3, from 0)"),
        ("auto", slurm(3, *range(1, 9)), "shard 3 of 8 (Slurm task 3, from 1)"),
        ("auto", {**slurm(7, 3, 7), "AERIALSEG_SHARDS": "8"}, "shard 8 of 8 (Slurm task 7, from 0)"),
        ("auto/8", KUBERNETES, "shard 4 of 8 (Kubernetes index 3, from 0)"),
        ("auto", {**KUBERNETES, "AERIALSEG_SHARDS": "5"}, "shard 4 of 5 (Kubernetes index 3, from 0)"),
        ("auto", AWS, "shard 4 of 8 (AWS Batch index 3, from 0)"),
        ("auto/6", {**AWS, "AERIALSEG_SHARDS": "5"}, "shard 4 of 6 (AWS Batch index 3, from 0)"),
    ],
)
def test_a_task_is_the_shard_that_its_scheduler_says(text: str, environment: dict[str, str], line: str) -> None:
    assert str(find_shard(text, environment)) == line


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("auto/8", {}, "no task of an array .* write --shard 1/8"),
        ("auto", slurm(7, 3, 7), "Slurm task 7, of how many is not certain; write --shard auto/8"),
        ("auto", slurm(2, 0, 2, 4, step=2), "not certain"),
        ("auto", slurm(2, 2, 3), "not certain"),
        ("auto", KUBERNETES, "Kubernetes index 3, of how many is not certain; .* or set AERIALSEG_SHARDS=8"),
        ("auto/3", KUBERNETES, "Kubernetes index 3 is none of 3 tasks that count from 0; write --shard I/3"),
        ("auto/8", slurm(9, 9), "none of 8 tasks"),
        ("auto/8", {"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX is 'x', no number"),
        ("auto", {"AERIALSEG_SHARDS": "many", **KUBERNETES}, "'many' is no number of shards"),
        ("auto/", KUBERNETES, "'' is no number of shards"),
        ("auto/0", KUBERNETES, "'0' is no number of shards"),
        ("x/4", {}, "give the part and how many there are"),
        ("4", {}, "give the part and how many there are"),
        ("5/4", {}, "a number from 1 to 4"),
    ],
)
def test_what_is_not_certain_is_refused_with_what_to_write(text: str, environment: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_shard(text, environment)
