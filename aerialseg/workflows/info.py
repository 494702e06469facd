"""Says what a path is: a training run, a model file, a scene or a folder of them, a set of tiles; nothing is changed.

What can be read of a damaged thing is told all the same, beside what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.errors import AerialsegError, ModelError, NoInputError, one_line
from aerialseg.files import sha256_of
from aerialseg.geo.scenes import SUFFIXES
from aerialseg.geo.tiles.tileset import INDEX, MANIFEST
from aerialseg.models.package import FILE_NAME, KEY, find_model, read_card
from aerialseg.workflows.facts import Account, Fact
from aerialseg.workflows.info_ground import describe_scene, describe_scenes, describe_tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from aerialseg.models.package import ModelCard

NOT_LEARNED = re.compile(r"(mean|std|.*\.(running_mean|running_var|num_batches_tracked))")
"""Tensors of a model file that training does not change by gradients."""


def look_at(path: Path) -> Account:
    """Return what is known of `path`.

    Raises NoInputError when nothing of ours and no scene is there, and what opening it raises when nothing can be said.
    """
    if not path.is_dir():
        if path.suffix.lower() in SUFFIXES:
            return describe_scene(path)
        if not path.exists():
            raise NoInputError(f"{one_line(path)}: no such file or folder; give a run, a model, tiles, or scenes")
        return describe_scenes(path) if path.suffix.lower() == ".vrt" else describe_model(path)
    from aerialseg.training.run_folder import CONFIG, RUN
    from aerialseg.training.state import LAST, PREVIOUS

    if any((path / name).exists() for name in (LAST, PREVIOUS, CONFIG, RUN)):
        return describe_run(path)
    if (path / FILE_NAME).exists():
        return describe_model(path)
    if (path / MANIFEST).exists() or (path / INDEX).exists():
        return describe_tiles(path)
    try:
        return describe_scenes(path)
    except NoInputError as error:
        raise NoInputError(f"{one_line(path)}: holds no run, no model, no tiles and no scenes") from error


def describe_model(path: Path) -> Account:
    """Say what a model file holds and what it was trained as; raises as `read_card` does."""
    card, file = read_card(path), find_model(path)
    made = dict(card.training)
    config = made.pop("config", {})
    return Account(
        "model",
        (
            Fact("file", str(file)),
            Fact("bytes", file.stat().st_size),
            Fact("sha256", sha256_of(file)),
            *_tensors(file),
            *_card_facts(card),
            Fact("made_by", made),
            Fact("config", config),
        ),
    )


def describe_run(run: Path) -> Account:
    """Say what a run trains, on what, how far it is, and what it was made with."""
    from aerialseg.config import load_config
    from aerialseg.training.run_folder import CONFIG, read_run

    problems: list[AerialsegError] = []
    known = read_run(run)
    starts = known.get("starts", [])
    config = _tried(lambda: load_config(run / CONFIG).model_dump(exclude_none=True), problems)
    card = _tried(lambda: read_card(run), problems) if (run / FILE_NAME).exists() else None
    last = dict(starts[-1]) if starts else {}
    command = last.pop("command", [])
    made = last.pop("versions", card.training.get("versions", {}) if card else {})
    tiles = {**(card.training.get("tiles", {}) if card else {}), **known.get("tiles", {})}
    facts = (
        Fact("folder", str(run)),
        *_progress(run, problems),
        Fact("model", None if card is None else str(run / FILE_NAME), "" if card else "none saved yet"),
        *([] if card is None else [Fact("network", card.preset), Fact("scores", card.scores)]),
        *([] if card is None else [Fact(name, card.training.get(name)) for name in ("started_from", "teacher")]),
        Fact("tiles", tiles),
        Fact("starts", len(starts)),
        Fact("begun", starts[0].get("time") if starts else None),
        Fact("command", command, shlex.join(command) or "-"),
        Fact("last_start", last),
        Fact("versions", made),
        Fact("config", config or {}),
    )
    return Account("run", facts, tuple(problems))


def _progress(run: Path, problems: list[AerialsegError]) -> list[Fact]:
    """Say how far the checkpoint is."""
    from aerialseg.training.state import load_checkpoint

    said: list[str] = []
    state = _tried(lambda: load_checkpoint(run, said.append), problems)
    problems += [ModelError(line) for line in said]
    if state is None:
        return [Fact("state", "no checkpoint", "no checkpoint to go on from")]
    standing, epochs = state["standing"], state["config"]["schedule"]["epochs"]
    done = standing["finished"]
    return [
        Fact("state", "finished" if done else "unfinished", "finished" if done else "goes on with train --resume"),
        Fact("epochs", standing["epoch"], f"{standing['epoch']} of {epochs}"),
        Fact("steps", standing["taken"]),
        Fact("best_iou", standing["best_iou"]),
        Fact("best_epoch", standing["best_epoch"] or None),
        Fact("threshold", standing["threshold"]),
    ]


def _card_facts(card: ModelCard) -> list[Fact]:
    words = {
        "gsd_m": "unknown" if card.gsd_m is None else f"{card.gsd_m:.4g} m",
        "band_indexes": "" if card.band_indexes else "all but alpha",
        "scale": "" if card.scale else "8-bit scenes as they are",
        "tile_size": f"{card.tile_size} px",
        "licence": card.licence or "not recorded",
    }
    values = json.loads(json.dumps(dataclasses.asdict(card)))
    return [Fact(name, value, words.get(name, "")) for name, value in values.items() if name != "training"]


def _tensors(file: Path) -> list[Fact]:
    """Count the numbers that were learned, and return the digest that the file carries; no tensor is read."""
    from safetensors import safe_open

    with safe_open(file, "numpy") as content:
        digest = json.loads(content.metadata()[KEY])["digest"]
        shapes = [content.get_slice(name).get_shape() for name in content.keys() if not NOT_LEARNED.fullmatch(name)]  # noqa: SIM118
    return [Fact("digest", digest), Fact("parameters", sum(map(math.prod, shapes)))]


def _tried(read: Callable[[], Any], problems: list[AerialsegError]) -> Any:
    """Return what `read` returns; None, with the reason among the problems, when it cannot."""
    try:
        return read()
    except AerialsegError as error:
        problems.append(error)
        return None
