"""last.ckpt: reads back exactly, plain values only, every kind of damage is noticed, and the one before is used."""

from __future__ import annotations

import pickle
import resource
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aerialseg.errors import ModelError, StorageError
from aerialseg.training.history import EpochRecord
from aerialseg.training.state import (
    LAST,
    PREVIOUS,
    TrainState,
    digest_of,
    load_checkpoint,
    load_state_dict,
    save_checkpoint,
)
from aerialseg.values import from_values


def state(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "half": torch.randn(5).bfloat16(),
        "counters": {"epoch": seed, "best": float("nan"), "name": "é", "nothing": None, "bands": (1, 2)},
    }


def no_word(line: str) -> None:
    raise AssertionError(line)


def test_what_is_saved_comes_back_exactly_with_its_layout(tmp_path: Path) -> None:
    saved = state()
    save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(tmp_path, no_word)
    assert loaded is not None and digest_of(loaded) == digest_of(saved)
    assert loaded["model"]["0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert loaded["counters"]["bands"] == (1, 2) and loaded["half"].dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST]


def test_it_is_read_as_tensors_and_plain_values_only(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state())
    assert torch.load(tmp_path / LAST, weights_only=True)["state"]["counters"]["epoch"] == 0


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, no_word) is None


def test_the_digest_sees_every_kind_of_change() -> None:
    base = digest_of(state())
    changed = [state(), state(), state(), state(), state()]
    changed[0]["model"]["0.weight"][0, 0, 0, 0] += 1e-6
    changed[1]["counters"]["epoch"] = 1
    changed[2]["optimizer"]["param_groups"][0]["lr"] = 0.5
    changed[3]["half"] = changed[3]["half"].float()
    changed[4]["counters"]["bands"] = (12,)
    assert digest_of(state()) == base
    assert len({base, *map(digest_of, changed)}) == 6


def test_objects_are_a_mistake_of_the_programmer(tmp_path: Path) -> None:
    for value in (tmp_path, torch.__version__, np.float64(0.5)):
        with pytest.raises(TypeError, match="plain values"):
            save_checkpoint(tmp_path, {"value": value})
    assert not (tmp_path / LAST).exists()


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.find(state(1)["model"]["0.weight"].permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    assert place > 0, "the weights stand in the file as they are"
    content[place + 5] ^= 1
    path.write_bytes(bytes(content))


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state": print, "format": 1, "digest": ""}, protocol=2))


def damage_foreign(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


DAMAGES = [damage_cut, damage_flip, damage_empty, damage_pickle, damage_foreign]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_gives_way_to_the_one_before_and_says_so(tmp_path: Path, damage: Any) -> None:
    save_checkpoint(tmp_path, state(0))
    save_checkpoint(tmp_path, state(1))
    damage(tmp_path / LAST)
    said: list[str] = []
    loaded = load_checkpoint(tmp_path, said.append)
    assert loaded is not None and loaded["counters"]["epoch"] == 0
    assert len(said) == 1 and str(tmp_path / LAST) in said[0] and "going on from previous.ckpt" in said[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_both_damaged_it_is_an_error_naming_the_file(tmp_path: Path, damage: Any) -> None:
    for seed in (1, 1):
        save_checkpoint(tmp_path, state(seed))
    for name in (LAST, PREVIOUS):
        damage(tmp_path / name)
    with pytest.raises(ModelError, match=r"last\.ckpt: damaged.*no older one"):
        load_checkpoint(tmp_path, no_word)


def test_a_lost_last_one_gives_way_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(0))
    save_checkpoint(tmp_path, state(1))
    (tmp_path / LAST).unlink()
    loaded = load_checkpoint(tmp_path, lambda line: None)
    assert loaded is not None and loaded["counters"]["epoch"] == 0


def test_a_full_disk_says_so_and_keeps_both_old_ones(tmp_path: Path, tree_hashes: Any) -> None:
    save_checkpoint(tmp_path, state(0))
    save_checkpoint(tmp_path, state(1))
    before, limits = tree_hashes(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match="no space on"):
            save_checkpoint(tmp_path, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree_hashes(tmp_path) == before


def test_the_counters_come_back_to_the_last_bit() -> None:
    records = [EpochRecord(1, 7, 0.1 + 0.2, 1 / 3, iou=0.7), EpochRecord(2, 14, 1e-300, 2 / 3)]
    state = TrainState(epoch=2, taken=14, loss=0.1 * 3, best_iou=0.7, best_epoch=1, records=records)
    assert repr(from_values(TrainState, asdict(state))) == repr(state)


@pytest.mark.parametrize(
    "changes", [{"epoch": "2"}, {"loss": None}, {"records": [{"epoch": 1}]}, {"records": [3]}, {"finished": 1}]
)
def test_counters_of_another_version_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    job: Any = SimpleNamespace(run=tmp_path)
    with pytest.raises(ModelError, match=rf"last\.ckpt: .*another version.*{next(iter(changes))}.*--overwrite"):
        load_state_dict(job, {"standing": {**asdict(TrainState()), **changes}})
