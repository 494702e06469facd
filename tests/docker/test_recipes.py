"""The recipes beside the image say what the programs they call understand; they are not run here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

DOCKER = Path(__file__).resolve().parents[2] / "docker"


def starts_training(words: list[str]) -> None:
    """Assert that torchrun takes these words, restarts what is lost, and starts `aerialseg train`."""
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    assert (given.module, given.training_script, given.training_script_args[0]) == (True, "aerialseg", "train")
    assert given.max_restarts == 2 and given.nproc_per_node == "gpu"


def test_the_slurm_script_is_bash_and_starts_torchrun_on_each_machine() -> None:
    script = DOCKER / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    words = [word.strip('"') for word in line.split()]
    starts_training(words[words.index("torchrun") + 1 :])
    assert words[-1] == "--resume"


def test_the_compose_file_starts_torchrun_with_every_gpu() -> None:
    yaml = pytest.importorskip("yaml")
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["train"]
    entry = service["entrypoint"]
    assert entry[:3] == ["tini", "--", "torchrun"]
    starts_training(entry[3:])
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
