"""What a stop leaves behind, and how soon it is heard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from known_networks import Counting, plain

from aerialseg.errors import ModelError, Stopped
from aerialseg.geo.scenes import find_scenes
from aerialseg.models.build import Segmenter
from aerialseg.prediction.network import automatic_batch
from aerialseg.prediction.options import PredictOptions
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")


class StopAt(Silent):
    """Asks for a stop once the network was called `count` times, each of which adds to `calls`."""

    def __init__(self, calls: list[int], count: int) -> None:
        self.calls, self.count = calls, count

    def advance(self, amount: float = 1, note: str = "") -> None:
        if len(self.calls) >= self.count:
            raise Stopped(15)


def test_a_nan_is_not_forgotten_when_the_run_is_stopped_behind_it(
    tmp_path: Path,
    scene_file: Callable[..., Path],
    small_model: Callable[..., Path],
    tree_hashes: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, scene = small_model(), scene_file(tmp_path / "scenes" / "tall.tif", size=(400, 90))
    options, calls, whole = PredictOptions(batch=1, device="cpu"), [], Segmenter.forward

    def rotten(self: Segmenter, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(len(pixels))
        logits = whole(self, pixels, valid)
        return logits.fill_(torch.nan) if len(calls) == 3 else logits

    def run(out: Path, progress: Any = Silent()) -> None:
        predict_scenes(find_scenes([scene.parent]), model, out, options, progress).raise_failures()

    run(tmp_path / "clean")
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "forward", rotten)
        with pytest.raises((ModelError, Stopped)):
            run(tmp_path / "out", StopAt(calls, 10))
    run(tmp_path / "out")
    clean, found = tree_hashes(tmp_path / "clean"), tree_hashes(tmp_path / "out")
    assert {name for name in clean if clean[name] != found.get(name)} <= {"report.json"}


@pytest.mark.parametrize(("tta", "views"), [("flips", 4), ("d4", 8)])
def test_a_stop_is_heard_between_two_views(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], tta: str, views: int
) -> None:
    for count in (1, 3, views + 2):
        network = Counting()
        with pytest.raises(Stopped):
            stream(scene_file(tmp_path / "s.tif", size=(200, 150)), plain(network), tta=tta,
                   progress=StopAt(network.sizes, count))  # fmt: skip
        assert len(network.sizes) == count


def test_a_stop_is_heard_between_the_parts_that_memory_cut_a_batch_into(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    network = Counting(fail_above=2)
    with pytest.raises(Stopped):
        stream(scene_file(tmp_path / "s.tif", size=(200, 150)), plain(network), batch=8,
               progress=StopAt(network.sizes, 4))  # fmt: skip
    assert network.sizes == [8, 4, 2, 2]


@pytest.mark.parametrize(
    ("size", "tta", "expected"),
    [(512, "none", 2), (512, "flips", 1), (512, "d4", 1), (256, "none", 8), (256, "flips", 2), (2048, "d4", 1)],
)
def test_a_processor_is_given_little_between_two_stops(size: int, tta: Any, expected: int) -> None:
    assert automatic_batch(CPU, size, tta) == expected


def test_a_card_is_given_much() -> None:
    assert automatic_batch(torch.device("cuda"), 512, "d4") == automatic_batch(torch.device("cuda"), 512, "none") == 32
