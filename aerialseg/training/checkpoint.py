"""`last.ckpt`: all a run needs to go on as if it had never stopped; and `previous.ckpt`, in case that one is damaged.

Plain tensors, numbers and text in dicts and lists, so torch.load(weights_only=True) reads it and nothing in it can run.
The format is private to a run in progress; what others use is the model file (models/package.py).
"""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any

import torch

from aerialseg.errors import ModelError, first_line, one_line
from aerialseg.files import staged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
FORMAT = 1
PLAIN = (type(None), bool, int, float, str)

State = dict[str, Any]


def save_checkpoint(run: Path, state: State) -> None:
    """Write `state` as the run's last checkpoint and keep the one before; at every moment one of the two is whole."""
    last = run / LAST
    content = {"format": FORMAT, "digest": digest_of(state), "state": state}
    with staged(last) as temporary:
        _write(temporary, content)
        if last.exists():
            last.replace(run / PREVIOUS)


def load_checkpoint(run: Path, say: Callable[[str], None]) -> State | None:
    """Return the newest checkpoint that is whole, None when there is none at all.

    Tells `say` when the last one is damaged and the previous one is used; raises ModelError when both are.
    """
    found = [path for path in (run / LAST, run / PREVIOUS) if path.exists()]
    problems: list[str] = []
    for path in found:
        try:
            state = _read(path)
        except ModelError as error:
            problems.append(str(error))
            continue
        if problems:
            say(f"{problems[0]}; going on from {path.name} instead")
        return state
    if problems:
        raise ModelError(f"{problems[0]}, and there is no older one to go on from; start again with --overwrite")
    return None


def digest_of(state: Any) -> str:
    """Return the SHA-256 of a nest of dicts, lists, tensors, numbers and text; dicts count in their own order."""
    digest = hashlib.sha256()
    _feed(digest.update, state)
    return digest.hexdigest()


def _write(path: Path, content: State) -> None:
    """Save through a Python file: torch's writer hides the reason of a full disk behind a RuntimeError of its own."""
    try:
        with path.open("wb") as stream:
            torch.save(content, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _feed(update: Callable[[Any], None], value: Any) -> None:
    match value:
        case torch.Tensor():
            update(f"{value.dtype}{tuple(value.shape)}".encode())
            update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        case dict():
            update(f"dict{len(value)}".encode())
            for key, item in value.items():
                _feed(update, key)
                _feed(update, item)
        case list() | tuple():
            update(f"list{len(value)}".encode())
            for item in value:
                _feed(update, item)
        case _ if type(value) in PLAIN:  # a subclass would be pickled as an object
            update(f"{type(value).__name__}:{value!r};".encode())
        case _:
            raise TypeError(f"a checkpoint holds plain values only, not {type(value)}")


def _read(path: Path) -> State:
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # about a stranger's pickle
            content = torch.load(path, map_location="cpu", weights_only=True)
        state: State = content["state"]
        whole = content["format"] == FORMAT and content["digest"] == digest_of(state)
    except Exception as error:  # damaged bytes surface as nearly any type
        raise ModelError(f"{one_line(path)}: damaged: {first_line(error)[:120]}") from error
    if not whole:
        raise ModelError(f"{one_line(path)}: damaged: its content does not match its digest")
    return state
