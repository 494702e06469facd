"""The model file: equal models are equal bytes, what comes back is what went in, and NumPy's reader agrees."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from aerialseg.errors import Diverged, NoInputError
from aerialseg.models.build import Segmenter
from aerialseg.models.package import ModelCard, find_model, load_model, read_card, save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_what_comes_back_predicts_the_same(segmenter: Segmenter, model_file: Path) -> None:
    loaded, _ = load_model(model_file)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    segmenter.eval()
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(pixels), segmenter(pixels))


def test_equal_models_are_equal_files(segmenter: Segmenter, card: Callable[..., ModelCard], tmp_path: Path) -> None:
    """Also when the weights lie in memory in another order, and when the card's dicts were filled in another order."""
    save_model(tmp_path / "a", segmenter, card(scores={"iou": 0.5, "f1": 0.6}))
    other = copy.deepcopy(segmenter).to(memory_format=torch.channels_last)
    save_model(tmp_path / "b", other, card(scores={"f1": 0.6, "iou": 0.5}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_card_is_another_file(segmenter: Segmenter, card: Callable[..., ModelCard], tmp_path: Path) -> None:
    save_model(tmp_path / "a", segmenter, card())
    save_model(tmp_path / "b", segmenter, card(threshold=0.4))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_safetensors_reads_the_file_and_finds_one_key(segmenter: Segmenter, model_file: Path) -> None:
    with safe_open(model_file, "numpy") as content:
        assert list(content.metadata()) == ["aerialseg"]
        assert json.loads(content.metadata()["aerialseg"])["encoder"] == "tu-test_efficientnet"
        state = segmenter.state_dict()
        assert set(content.keys()) == set(state)
        for name, tensor in state.items():
            assert (content.get_tensor(name) == tensor.numpy()).all()


def test_a_run_folder_stands_for_its_model(model_file: Path) -> None:
    assert find_model(model_file.parent) == model_file
    assert read_card(model_file.parent) == read_card(model_file) == load_model(model_file.parent)[1]


def test_reading_a_card_imports_no_torch(model_file: Path) -> None:
    code = "import sys; from pathlib import Path; from aerialseg.models.package import read_card"
    code += f"; print(read_card(Path({str(model_file)!r})).encoder, 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["tu-test_efficientnet", "False"]


@pytest.mark.parametrize("name", ["none.safetensors", "empty-run"])
def test_no_model_there_is_said_with_the_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty-run").mkdir()
    with pytest.raises(NoInputError, match=f"{name}.*no such model"):
        load_model(tmp_path / name)


def test_weights_that_are_not_finite_are_not_saved(
    segmenter: Segmenter, card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    broken = copy.deepcopy(segmenter)
    with torch.no_grad():
        next(broken.network.parameters())[1, 0, 0, 0] = float("nan")
    path = tmp_path / "model.safetensors"
    save_model(path, segmenter, card())
    before = path.read_bytes()
    with pytest.raises(Diverged, match="not saved"):
        save_model(path, broken, card())
    assert path.read_bytes() == before


def test_a_card_of_another_normalisation_is_a_mistake(
    segmenter: Segmenter, card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="differ from the segmenter"):
        save_model(tmp_path / "m", segmenter, card(mean=(1.0, 2.0, 3.0)))


scalars = st.one_of(st.text(max_size=8), st.integers(-9, 9), st.floats(-1, 1), st.booleans())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.fixed_dictionaries(
        {
            "band_indexes": st.none() | st.tuples(*[st.integers(1, 9)] * 3),
            "scale": st.none() | st.tuples(st.floats(0, 10), st.floats(11, 1e4)),
            "gsd_m": st.none() | st.floats(0.01, 10),
            "encoder_arguments": st.dictionaries(st.text(min_size=1, max_size=8), scalars, max_size=3),
            "threshold": st.floats(0.01, 0.99),
            "training": st.dictionaries(st.text(max_size=8), scalars | st.lists(scalars, max_size=2), max_size=3),
            "licence": st.text(max_size=20),
        }
    )
)
def test_every_card_comes_back_as_it_was(
    changes: dict[str, Any], card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    bare = Segmenter(torch.nn.Conv2d(3, 1, 1), (90.0, 95.5, 100.1), (40.0, 41.0, 42.0))
    given_card = card(**changes)
    save_model(tmp_path / "m", bare, given_card)
    assert read_card(tmp_path / "m") == given_card


def test_a_score_that_is_not_a_number_is_kept_as_none(card: Callable[..., ModelCard], tmp_path: Path) -> None:
    bare = Segmenter(torch.nn.Conv2d(3, 1, 1), (90.0, 95.5, 100.1), (40.0, 41.0, 42.0))
    save_model(tmp_path / "m", bare, card(scores={"precision": float("nan"), "iou": 0.5}))
    assert read_card(tmp_path / "m").scores == {"precision": None, "iou": 0.5}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"bands": 4}, "mean has 3 values for 4 bands"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"mean": (float("inf"), 0.0, 0.0)}, "mean"),
        ({"band_indexes": (1, 2)}, "band_indexes"),
        ({"classes": ("background", "road")}, "classes"),
        ({"overlap": 1.0}, "overlap"),
        ({"threshold": 0.0}, "threshold"),
        ({"temperature": 0.0}, "temperature"),
        ({"tile_size": 0}, "tile_size"),
        ({"encoder_arguments": {"x": [1]}}, "encoder_arguments"),
    ],
)
def test_a_card_must_make_sense(changes: dict[str, Any], found: str, card: Callable[..., ModelCard]) -> None:
    with pytest.raises(ValueError, match=found):
        card(**changes)
