"""Configuration: every shipped file loads, overrides count, what is written reads back, and mistakes are named."""

from __future__ import annotations

import ast
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aerialseg import config as package
from aerialseg.config import TrainConfig, differences, load_config, shipped_configs, to_toml
from aerialseg.config.sections import STRENGTHS
from aerialseg.errors import ConfigError
from aerialseg.models.presets import resolve

MINIMAL = '[model]\npreset = "unet-r18"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_configuration_is_short_complete_and_names_a_network(name: str) -> None:
    config = load_config(name)
    path = shipped_configs()[name]
    assert len(path.read_text().splitlines()) <= 30
    assert resolve(config.model.preset, config.model.architecture, config.model.encoder).encoder
    assert config.data.crop % 32 == 0
    for section in ("model", "data", "optimizer", "schedule", "run"):
        assert f"[{section}]" in path.read_text()


def test_the_default_configurations_are_shipped() -> None:
    assert {"inria", "inria-1gpu", "inria-8gpu", "segformer", "small"} <= set(shipped_configs())
    assert load_config("inria").model.preset == "unet-r34"


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_a_shipped_configuration_is_shown_as_it_is(name: str, run: Any) -> None:
    code, out, err = run("config", "show", name)
    assert (code, out, err) == (0, shipped_configs()[name].read_text(), "")
    code, out, _ = run("config", "show", name, "--json")
    assert code == 0 and TrainConfig.model_validate(json.loads(out)) == load_config(name)


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_a_configuration_to_start_from_has_every_key_and_says_what_it_means(
    name: str, run: Any, tmp_path: Path
) -> None:
    path = tmp_path / "mine" / "c.toml"
    code, out, err = run("config", "init", name, "-o", path)
    assert (code, out) == (0, f"{path}\n") and err == f"next: aerialseg train TILES -c {path} -o RUN\n"
    assert load_config(path) == load_config(name)
    text = path.read_text()
    lines = [line for line in text.splitlines() if line]
    assert lines[0] == shipped_configs()[name].read_text().splitlines()[0] and max(map(len, lines)) < 125
    begins = [line.startswith("[") or " = " in line for line in lines]
    tables = text.partition("[model.encoder_arguments]")[2].partition("\n\n")[0].splitlines()
    assert all(lines[k - 1].startswith("#") for k, at in enumerate(begins) if at and lines[k] not in tables)
    assert "# Crops per batch, of all GPUs together.\nbatch = " in text
    path.write_text(
        text.replace('augment = "medium"', 'augment = "light"').replace('augment = "strong"', 'augment = "light"')
    )
    assert load_config(path).data.augment == "light"
    assert name == "demo" or load_config(path).data.scale == STRENGTHS["light"]["scale"]


def test_a_configuration_to_start_from_overwrites_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("config", "init")[:2] == (0, "inria.toml\n")
    Path("inria.toml").write_text("mine")
    code, _, err = run("config", "init")
    assert (code, err) == (73, "error: inria.toml: exists; give another file with -o, or --overwrite\n")
    assert Path("inria.toml").read_text() == "mine"
    assert run("config", "init", "--overwrite")[0] == 0 and load_config("inria.toml") == load_config("inria")


@pytest.mark.parametrize("verb", ["show", "init"])
def test_a_name_that_is_not_shipped_is_told_with_those_that_are(verb: str, run: Any, tmp_path: Path) -> None:
    code, _, err = run("config", verb, "smal")
    assert code == 78
    assert err == f"error: smal: no such configuration is shipped; there are {', '.join(shipped_configs())}\n"


def test_the_help_of_train_names_every_shipped_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    from aerialseg.cli import main

    assert main(["train", "--help"]) == 0
    words = capsys.readouterr().out.replace(",", " ").replace(".", " ").split()
    assert set(shipped_configs()) <= set(words)


def test_options_that_came_later_change_no_shipped_training() -> None:
    for name in ("demo", "inria", "segformer", "small"):
        config = load_config(name)
        strengths = (config.data.flips, config.data.scale, config.data.colour, config.data.degrade)
        medium, strong = (True, 0.25, 0.2, 0.0), (True, 0.4, 0.35, 0.25)
        assert strengths == {"demo": (False, 0.0, 0.0, 0.0), "small": strong}.get(name, medium)
        loss, optimizer, schedule = config.loss, config.optimizer, config.schedule
        assert (loss.bce, loss.dice, loss.lovasz, loss.focal, loss.tversky, loss.boundary) == (1.0, 1.0, 0, 0, 0, 0)
        assert (optimizer.encoder_lr, optimizer.accumulate, optimizer.clip) == (1.0, 1, 1.0)
        assert (schedule.shape, schedule.freeze_steps, config.run.checkpoint_activations) == ("cosine", 0, False)


def test_a_level_of_augmentation_is_a_word_and_may_be_overridden(tmp_path: Path) -> None:
    strong = load_config("small", ("data.augment=strong", "data.colour=0.05")).data
    assert (strong.scale, strong.colour) == (0.4, 0.05) and strong.degrade > 0
    assert load_config(write(tmp_path, to_toml(load_config("small", ("data.augment=strong",))))).data.scale == 0.4
    with pytest.raises(ConfigError, match=r"--set data.augment: input should be 'light', 'medium' or 'strong'"):
        load_config("small", ("data.augment=mild",))


def test_a_level_named_by_an_override_takes_the_place_of_what_the_file_sets(tmp_path: Path) -> None:
    """A run's own config.toml names all four settings, so without this the level would be a word and nothing else."""
    path = tmp_path / "config.toml"
    path.write_text(to_toml(load_config("small", ["data.augment=light"])))
    data = load_config(path, ["data.augment=strong", "data.colour=0.5"]).data
    assert (data.scale, data.degrade, data.colour) == (
        STRENGTHS["strong"]["scale"],
        STRENGTHS["strong"]["degrade"],
        0.5,
    )
    path.write_text("data = 3\n[model]\npreset = 'unet-r18'\n")
    with pytest.raises(ConfigError, match="data"):
        load_config(path, ["data.augment=strong"])


def test_eight_gpus_train_what_one_trains_with_a_larger_batch() -> None:
    one, eight = load_config("inria-1gpu"), load_config("inria-8gpu")
    assert (one.model, one.loss) == (eight.model, eight.loss) and eight.data.batch % 8 == 0
    assert {line.split(":")[0] for line in differences(one, eight)} == {
        *("data.batch", "optimizer.lr", "schedule.epochs", "schedule.warmup_steps", "schedule.patience", "run.ema")
    }


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    with pytest.raises(Exception, match="frozen"):
        config.data.crop = 64


def test_overrides_are_toml_or_text(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    words = (
        "optimizer.lr=1e-4",
        "schedule.epochs = 3",
        "model.weights=none",
        'data.train_on="all"',
        "data.flips=false",
    )
    config = load_config(path, words)
    assert (config.optimizer.lr, config.schedule.epochs, config.model.weights) == (1e-4, 3, "none")
    assert (config.data.train_on, config.data.flips) == ("all", False)
    assert differences(load_config(path), config) == [
        "model.weights: 'imagenet' -> 'none'",
        "data.train_on: 'train' -> 'all'",
        "data.flips: True -> False",
        "optimizer.lr: 0.0003 -> 0.0001",
        "schedule.epochs: 50 -> 3",
    ]


def test_an_override_names_another_network_than_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    pair = load_config(path, ("model.architecture=unet", "model.encoder=tu-convnext_tiny")).model
    assert (pair.preset, pair.architecture, pair.encoder) == (None, "unet", "tu-convnext_tiny")
    back = load_config(
        write(tmp_path, to_toml(load_config(path)).replace("unet-r18", "unet-r50")), ("model.preset=unet-r34",)
    )
    assert back.model.preset == "unet-r34"
    arguments = load_config(path, ("model.encoder_arguments.img_size=512",)).model.encoder_arguments
    assert arguments == {"img_size": 512}


def test_half_a_network_or_two_are_refused(tmp_path: Path) -> None:
    for text in (
        '[model]\nencoder = "resnet18"\n',
        MINIMAL + 'encoder = "resnet18"\narchitecture = "unet"\n',
        "[model]\n",
    ):
        with pytest.raises(ConfigError, match="give preset"):
            load_config(write(tmp_path, text))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
SCALARS = TEXT | st.integers(-(2**60), 2**60) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    weights=TEXT,
    arguments=st.dictionaries(TEXT, SCALARS, max_size=3),
    lr=st.floats(1e-12, 1.0),
    seed=st.integers(0, 2**31 - 1),
    flips=st.booleans(),
)
def test_what_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, weights: str, arguments: dict, lr: float, seed: int, flips: bool
) -> None:
    config = TrainConfig.model_validate(
        {
            "model": {"preset": "unet-r18", "weights": weights, "encoder_arguments": arguments},
            "optimizer": {"lr": lr},
            "data": {"flips": flips},
            "run": {"seed": seed},
        }
    )
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_bytes(to_toml(config).encode())
    assert load_config(path) == config
    assert TrainConfig.model_validate(config.model_dump()) == config


def test_every_key_is_explained_where_it_is_declared() -> None:
    keys, explained = set(), set()
    module = ast.parse((Path(package.__file__).parent / "sections.py").read_text())
    for section in (node for node in module.body if isinstance(node, ast.ClassDef)):
        keys |= {(section.name, n.target.id) for n in section.body if isinstance(n, ast.AnnAssign)}
        explained |= {
            (section.name, key.target.id)
            for key, words in pairwise(section.body)
            if isinstance(key, ast.AnnAssign) and isinstance(words, ast.Expr)
        }
    assert len(keys) == sum(len(f.annotation.model_fields) for f in TrainConfig.model_fields.values())
    assert keys - explained == set()


def test_the_old_name_of_degrade_still_counts_wherever_it_stands(tmp_path: Path) -> None:
    """A config.toml, a checkpoint or a command line of before calls it `wear`."""
    path = tmp_path / "old.toml"
    path.write_text('[model]\npreset = "unet-r18"\n[data]\nwear = 0.5\n')
    assert load_config(path).data.degrade == 0.5
    assert load_config(path, ["data.degrade=0.75"]).data.degrade == 0.75
    assert load_config(path, ["data.wear=0.25"]).data.degrade == 0.25
    assert load_config(path, ["data.augment=light"]).data.degrade == STRENGTHS["light"]["degrade"]
    saved = load_config(path).model_dump()
    saved["data"]["wear"] = saved["data"].pop("degrade")
    assert TrainConfig.model_validate(saved) == load_config(path)
    path.write_text('[model]\npreset = "unet-r18"\n[data]\nwear = 0.5\ndegrade = 0.1\n')
    with pytest.raises(ConfigError, match="wear"):
        load_config(path)
