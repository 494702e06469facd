"""FAULTS rows 23 and 24 for `import`: pickles that run code, damaged files, what is no file of weights at all."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NETWORK = ("--arch", "unet", "--encoder", "tu-test_efficientnet", "--tile-size", "64")
PIXELS = ("--white", "1", "--mean", "0.5", "--std", "0.25")


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "nested", "whole network"])
def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(
    run: Callable[..., Any], tmp_path: Path, form: str, tree_hashes: Callable[[Path], dict[str, str]]
) -> None:
    file, trap = tmp_path / "w.pth", Trap(tmp_path / "sprung")
    match form:
        case "pickle":
            file.write_bytes(pickle.dumps({"encoder.weight": trap}))
        case "torch":
            torch.save({"encoder.weight": trap}, file)
        case "nested":
            torch.save({"state_dict": {"encoder.weight": torch.ones(1)}, "callbacks": trap}, file)
        case _:
            torch.save(torch.nn.Linear(1, 1), file)
    before = tree_hashes(tmp_path)
    code, out, err = run("import", file, "-o", tmp_path / "m.safetensors", *NETWORK, *PIXELS)
    assert (code, out) == (78, "")
    assert err.startswith(f"error: {file}: cannot be read as tensors only") and err.count("\n") == 1
    assert not trap.path.exists() and tree_hashes(tmp_path) == before


def test_damaged_and_missing_files(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"encoder.weight": torch.rand(1000)}, whole)
    content = whole.read_bytes()
    cases = {
        "half.pth": content[: len(content) // 2],
        "empty.pth": b"",
        "text.pth": b"hello",
        "h.safetensors": b"x" * 9,
    }
    for name, given in cases.items():
        (tmp_path / name).write_bytes(given)
        code, _, err = run("import", tmp_path / name, "-o", tmp_path / "m.safetensors", *NETWORK, *PIXELS)
        assert (code, err.count("\n")) == (78, 1) and name in err, name
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    code, _, err = run("import", tmp_path / "list.pth", "-o", tmp_path / "m.safetensors", *NETWORK, *PIXELS)
    assert code == 78 and "holds list, expected named tensors" in err
    code, _, err = run("import", tmp_path / "none.pth", "-o", tmp_path / "m.safetensors", *NETWORK, *PIXELS)
    assert code == 66 and "no such file of weights" in err
    code, _, err = run("import", whole, "-o", tmp_path / "no" / "m.safetensors", *NETWORK, *PIXELS)
    assert code == 78 and not (tmp_path / "no").exists()
