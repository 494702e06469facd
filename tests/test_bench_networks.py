"""`bench mixers` and `bench presets`: counts against hand counts, what is left out, what is written, equal time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tiles import write_tileset
from told import Told
from torch import nn

from aerialseg.errors import ConfigError, Stopped, UsageError
from aerialseg.models.build import count_network
from aerialseg.models.presets import resolve
from aerialseg.progress import Silent
from aerialseg.workflows import bench_networks
from aerialseg.workflows import bench_train as trial
from aerialseg.workflows.bench_networks import (
    ALL_MIXERS,
    BenchOptions,
    Row,
    draw_costs,
    measure_costs,
    mixer_candidates,
    preset_candidates,
)
from aerialseg.workflows.network_cost import Cost, Trial, build, measure_apart, measure_here

ROW = {"name", "size", "parameters", "gmacs", "forward_s", "forward_bytes", "train_s", "train_bytes", "note"}
MACHINE = {"device", "name", "precision", "batch", "threads", "torch"}


def rows_of(names: tuple[str, ...], *sizes: int, **options: Any) -> list[Row]:
    given = BenchOptions(sizes, device="cpu", precision="fp32", **options)
    return list(measure_costs(mixer_candidates(names), given, Silent()))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Let every pass take a second per tile and a gigabyte, without running anything; returns what was asked for."""
    asked: list[Trial] = []

    def answer(trial: Trial, _: object) -> Cost:
        asked.append(trial)
        return Cost(0.3, 10**8, 1.0, 10**9)

    monkeypatch.setattr(bench_networks, "measure_apart", answer)
    return asked


def test_multiply_adds_of_a_convolution_are_those_counted_by_hand() -> None:
    with torch.device("meta"):
        network = nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False)
    assert count_network(network, 3, 64) == (8 * 3 * 25, 32 * 32 * 8 * 3 * 25)


def test_rows_of_conv_and_identity_differ_by_the_depthwise_convolutions(measured: list[Trial]) -> None:
    conv, identity = rows_of(("conv", "identity"), 64)
    stages = ((2, 32, 16), (2, 64, 8), (6, 160, 4), (2, 256, 2))  # blocks, channels, side of the map
    by_hand = sum(blocks * 49 * channels * side**2 for blocks, channels, side in stages)
    assert conv.gmacs - identity.gmacs == pytest.approx(by_hand / 1e9, abs=1e-12)
    assert conv.parameters - identity.parameters == sum(blocks * 50 * channels for blocks, channels, _ in stages)
    assert all(trial.encoder_only for trial in measured)


def test_sizes_are_measured_once_and_the_small_ones_first(measured: list[Trial]) -> None:
    assert [row.size for row in rows_of(("identity",), 96, 32, 64, 32)] == [32, 64, 96]
    assert [trial.size for trial in measured] == [32, 64, 96]


def test_what_would_take_too_long_is_left_out_and_says_so(measured: list[Trial]) -> None:
    """Two tiles take 2 s, and those of twice the side four times as many multiply-adds; more with full attention."""
    rows = rows_of(("identity", "full"), 64, 128, 256, limit_s=10.0)
    assert [row.train_s is None for row in rows] == [False, False, False, False, True, True]
    assert re.fullmatch(r"left out: about \d+ s a pass, the limit is 10 s", rows[5].note)
    assert rows[5].gmacs and rows[5].parameters  # what costs nothing to say is said


def test_what_would_not_fit_into_memory_is_left_out_and_says_so(
    measured: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_networks, "_free_memory", lambda _: 3 * 10**9)
    rows = rows_of(("identity",), 64, 96, 192)
    assert [row.note for row in rows] == ["", "", "left out: about 4 GB, 3 GB are free"]
    assert [trial.memory for trial in measured] == 2 * [3 * 10**9]


def test_a_size_that_fails_leaves_its_reason_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = ["out of memory", Cost(0.1, 1, 0.2, 2)]
    monkeypatch.setattr(bench_networks, "measure_apart", lambda *_: answers.pop(0))
    rows = rows_of(("identity", "conv"), 64)
    assert [(row.note, row.train_s) for row in rows] == [("out of memory", None), ("", 0.2)]


def test_a_preset_with_a_size_rule_is_measured_only_where_it_holds(measured: list[Trial]) -> None:
    contestants = preset_candidates(["unet-maxvit-tiny"])
    rows = list(measure_costs(contestants, BenchOptions((128, 256), device="cpu"), Silent()))
    assert [row.note for row in rows] == ["takes multiples of 256", ""]
    assert [trial.size for trial in measured] == [256]


def test_a_process_of_its_own_runs_out_of_memory_alone() -> None:
    (contestant,) = mixer_candidates(("identity",))
    trial = Trial(contestant.spec, 256, 64, "cpu", "fp32", 1.0, encoder_only=True, memory=300_000_000)
    assert measure_apart(trial, Silent()) in ("out of memory", "ended by the system, probably for its memory")


@pytest.mark.slow  # the libraries take 5 s to load
def test_memory_of_the_libraries_is_not_the_networks() -> None:
    spec = resolve(None, "unet", "tu-test_efficientnet")
    found = measure_apart(Trial(spec, 64, 2, "cpu", "fp32", 1.0), Silent())
    assert isinstance(found, Cost) and found.forward_bytes is not None
    assert found.forward_bytes < 60_000_000  # 3 MB of weights; the libraries are 200 MB


def test_a_stop_ends_the_process_that_measures() -> None:
    (contestant,) = mixer_candidates(("full",))
    trial = Trial(contestant.spec, 512, 2, "cpu", "fp32", 60.0, encoder_only=True)
    with pytest.raises(Stopped):
        measure_apart(trial, Told(1))


def test_more_pixels_take_more_memory_and_learning_more_than_predicting(run: Any, tmp_path: Path) -> None:
    words = ("bench", "mixers", "--only", "identity", "--only", "window", "--sizes", "64,192", "--device", "cpu")
    words += ("--precision", "fp32", "-o", tmp_path / "out", "--json")
    code, out, err = run(*words)
    assert code == 0, err
    found = json.loads(out)
    assert found.keys() == {"made_by", "machine", "rows", "accuracy"}
    assert found["machine"].keys() == MACHINE and found["accuracy"] == []
    assert all(row.keys() == ROW and row["note"] == "" for row in found["rows"])
    assert [(row["name"], row["size"]) for row in found["rows"]] == [
        (name, size) for name in ("identity", "window") for size in (64, 192)
    ]
    for small, large in (found["rows"][:2], found["rows"][2:]):
        assert 0 < small["forward_s"] < large["train_s"]
        assert 0 < small["train_bytes"] < large["train_bytes"] > large["forward_bytes"] > 0
    assert json.loads((tmp_path / "out" / "costs.json").read_text()) == found
    assert (tmp_path / "out" / "costs.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_table_and_a_second_bench_in_the_same_folder(run: Any, tmp_path: Path, measured: list[Trial]) -> None:
    words = ("bench", "mixers", "--only", "identity", "--sizes", "64", "--device", "cpu", "-o", tmp_path)
    assert run(*words)[0] == 0
    code, out, _ = run(*words)
    assert code == 0
    assert "identity" in out and "2.88" in out and "1,000.0" in out
    (tmp_path / "costs.json").write_text("{}")
    code, _, err = run(*words)
    assert code == 73 and "costs.json: exists and was not written by aerialseg" in err
    assert run(*words, "--overwrite")[0] == 0


def test_a_bench_that_is_stopped_at_once_leaves_the_findings_of_the_one_before(
    run: Any, tmp_path: Path, measured: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> Any:
        raise Stopped(15)

    words = ("bench", "mixers", "--only", "identity", "--sizes", "64", "--device", "cpu", "-o", tmp_path)
    assert run(*words)[0] == 0
    before = (tmp_path / "costs.json").read_bytes()
    monkeypatch.setattr(bench_networks, "measure_costs", stopped)
    assert run(*words)[0] == 143 and (tmp_path / "costs.json").read_bytes() == before


def test_a_training_of_the_users_own_in_the_place_of_a_run_is_left_alone(
    run: Any, tmp_path: Path, measured: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "seconds_per_step", lambda *_: 1.0)
    tiles, config, own = write_tileset(tmp_path / "tiles"), tmp_path / "c.toml", tmp_path / "runs" / "identity"
    config.write_text(CONFIG)
    words = ("bench", "mixers", "--only", "identity", "--sizes", "64", "--device", "cpu", "-o", tmp_path)
    with_tiles = (*words, "--tiles", tiles, "--minutes", "0.02", "-c", config)
    assert run(*words)[0] == 0
    short = ("--set", "schedule.epochs=1", "--set", "schedule.steps_per_epoch=1", "--set", "model.weights=none")
    assert run("train", tiles, "-c", config, "-o", own, "--device", "cpu", *short)[0] == 0
    before = (own / "model.safetensors").read_bytes()
    code, _, err = run(*with_tiles)
    assert code == 73 and "holds a run already" in err and (own / "model.safetensors").read_bytes() == before
    own.rename(tmp_path / "mine")
    assert run(*with_tiles)[0] == 0
    assert run(*with_tiles)[0] == 0, "its own runs are made anew"


def test_a_picture_is_drawn_of_whatever_was_measured(tmp_path: Path) -> None:
    for number, rows in enumerate(([Row("a", 64, 9, None, note="x")], [Row("a", 64, 9, 1.0), Row("b", 96, 9, 2.0)])):
        draw_costs(tmp_path / f"{number}.png", rows, {"name": "z", "precision": "fp32", "batch": 2})
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("mixers", "--only", "nix"), 78, "names 'nix'"),
        (("mixers", "--sizes", "100"), 2, "--sizes has 100, expected multiples of 32"),
        (("mixers", "--sizes", "a"), 2, "--sizes a: give whole numbers"),
        (("mixers", "--batch", "0"), 2, "--batch is 0"),
        (("mixers", "--limit", "0"), 2, "--limit is 0"),
        (("mixers", "--minutes", "3"), 2, "give it too"),
        (("mixers", "--tiles", "nowhere"), 66, "nowhere: no such folder"),
        (("presets", "--only", "nix"), 78, "'nix' is unknown"),
        (("presets", "--only", "segformer-mit-b0"), 78, "--accept-licence"),
        ((), 2, "Missing command"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(run: Any, words: tuple[str, ...], code: int, said: str) -> None:
    found, out, err = run("bench", *words)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert said in err


def test_all_families_are_measured_unless_some_are_named() -> None:
    assert [contestant.name for contestant in mixer_candidates()] == [*ALL_MIXERS]
    names = {contestant.name for contestant in preset_candidates()}
    assert "unet-r34" in names and "segformer-mit-b0" not in names
    accepted = {contestant.name for contestant in preset_candidates(accept_licence=True)}
    assert accepted - names == {f"segformer-mit-b{number}" for number in range(6)}


def test_trainings_need_a_folder_validation_tiles_and_a_crop_that_fits(run: Any, tmp_path: Path) -> None:
    tiles = write_tileset(tmp_path / "tiles")
    code, _, err = run("bench", "mixers", "--tiles", tiles)
    assert code == 2 and "--tiles needs --out" in err
    code, _, err = run("bench", "mixers", "--tiles", tiles, "-o", tiles)
    assert code == 2 and "would overwrite the input" in err
    blind = write_tileset(tmp_path / "blind", val=0)
    code, _, err = run("bench", "mixers", "--tiles", blind, "-o", tmp_path / "out")
    assert code == 65 and "has no validation tiles" in err


CONFIG = """
[model]
preset = "unet-r18"
[data]
crop = 64
batch = 4
threads = 1
[schedule]
warmup_steps = 0
[run]
precision = "fp32"
"""


@pytest.mark.slow
def test_with_tiles_every_network_trains_for_equal_time(run: Any, tmp_path: Path, measured: list[Trial]) -> None:
    tiles, config = write_tileset(tmp_path / "tiles"), tmp_path / "c.toml"
    config.write_text(CONFIG)
    words = ("bench", "mixers", "--only", "identity", "--only", "full", "--sizes", "64", "--device", "cpu")
    words += ("--tiles", tiles, "--minutes", "0.01", "-c", config, "-o", tmp_path / "out")
    code, out, err = run(*words, "--json")
    assert code == 0, err
    cheap, dear = json.loads(out)["accuracy"]
    assert [cheap["name"], dear["name"]] == ["identity", "full"]
    assert all(0 <= item["iou"] <= 1 and item["steps"] >= 1 and item["note"] == "" for item in (cheap, dear))
    assert (tmp_path / "out" / "runs" / "full" / "model.safetensors").is_file()
    assert run(*words)[0] == 0  # and again, in place
    words = ("bench", "presets", "--only", "unet-maxvit-tiny", *words[6:], "-f")
    code, out, err = run(*words, "--json")
    assert code == 0, err
    (unfit,) = json.loads(out)["accuracy"]
    assert unfit["iou"] is None and "does not take tiles of 64x64" in unfit["note"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card_memory_is_that_of_tensors() -> None:
    (contestant,) = mixer_candidates(("window",))
    found = measure_here(Trial(contestant.spec, 256, 2, "cuda", "bf16", 5.0, encoder_only=True))
    assert isinstance(found, Cost) and found.forward_bytes is not None and found.train_bytes is not None
    weights = sum(4 * item.numel() for item in build(contestant.spec, encoder_only=True).parameters())
    assert weights < found.forward_bytes < found.train_bytes < 2**30


@pytest.mark.parametrize("mixer", ["window", "linear", "pooled"])
def test_the_guide_to_mixers_shows_what_the_command_counts(mixer: str, measured: list[Trial]) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "mixers.md").read_text()
    (shown,) = re.findall(rf"^\| `{mixer}` \|[^|]*\|[^|]*\| ([0-9.]+ / [0-9.]+) \|", guide, flags=re.M)
    small, large = rows_of((mixer,), 512, 2048, limit_s=1e9)
    assert f"{small.gmacs:.1f} / {large.gmacs:.0f}" == shown


def test_options_that_no_network_takes_are_refused() -> None:
    for given in ({"sizes": (0,)}, {"sizes": (8224,)}, {"sizes": (64,), "batch": 0}, {"sizes": (64,), "limit_s": 0.0}):
        with pytest.raises(UsageError):
            BenchOptions(**given)
    with pytest.raises(ConfigError):
        mixer_candidates(["window,window"])
