"""FAULTS row 25: a wrong configuration ends with 78 and one line that names file, line and key, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from aerialseg.config import load_config
from aerialseg.errors import ConfigError

GOOD = '[model]\npreset = "unet-r18"\n\n[optimizer]\nlr = 1e-4\n'

CASES = {
    "misspelt beside missing": ("[data]\ncropp = 64\n", "line 2: data.cropp: unknown key; known here: augment, batch"),
    "unknown key": (GOOD + "learning_rate = 1e-4\n", "line 6: optimizer.learning_rate: unknown key; known here: accum"),
    "unknown section": (GOOD + "\n[optimiser]\nlr = 1\n", "line 7: optimiser: unknown key; known here: data"),
    "missing model": ("[data]\ncrop = 512\n", "model: missing"),
    "text for a number": (GOOD.replace("1e-4", '"1e-4"'), "line 5: optimizer.lr: input should be a valid number"),
    "number for a truth": (GOOD + "[data]\nflips = 1\n", "line 7: data.flips: input should be a valid boolean"),
    "truth for a number": (GOOD + "[data]\nbatch = true\n", "line 7: data.batch"),
    "fraction for a count": (GOOD + "[data]\nbatch = 1.5\n", "line 7: data.batch"),
    "negative rate": (GOOD.replace("1e-4", "-1e-4"), "line 5: optimizer.lr: input should be greater than 0"),
    "nan": (GOOD.replace("1e-4", "nan"), "line 5: optimizer.lr: input should be a finite number"),
    "infinity": (GOOD.replace("1e-4", "inf"), "line 5: optimizer.lr"),
    "crop of zero": (GOOD + "[data]\ncrop = 0\n", "line 7: data.crop: input should be greater than or equal to 32"),
    "huge number": (GOOD + f"[data]\ncrop = {'9' * 50}\n", "line 7: data.crop"),
    "number of 5000 digits": (GOOD + f"[data]\ncrop = {'9' * 5000}\n", "not valid TOML"),
    "unknown choice": (GOOD + '[run]\nprecision = "fp8"\n', "line 7: run.precision: input should be 'auto'"),
    "date": (GOOD + "[run]\nseed = 2026-01-01\n", "line 7: run.seed"),
    "table for a number": (GOOD + "[run.seed]\na = 1\n", "line 6: run.seed"),
    "list for a table": ("model = [1]\n", "line 1: model"),
    "no loss at all": (GOOD + "[loss]\nbce = 0\ndice = 0\n", "line 6: loss: one of bce, dice, lovasz"),
    "two networks": (GOOD.replace("\n\n", '\nencoder = "resnet34"\n\n'), "line 1: model: give preset, or architecture"),
    "broken TOML": ("[model\npreset = 3", "not valid TOML: "),
    "key twice": (GOOD + "lr = 2e-4\n", "not valid TOML: "),
    "yaml": ("model:\n  preset: unet-r18\n", "not valid TOML: "),
    "nested too deeply": ("a = " + "[" * 20_000 + "]" * 20_000, "not valid TOML"),
    "nothing": ("", "model: missing"),
    "several at once": (GOOD + "a = 1\nb = 2\n", "line 6: optimizer.a: unknown key; known here: "),
    "each with its line": (GOOD + "a = 1\nb = 2\n", "; line 7: optimizer.b: unknown key; known here: "),
    "very many": (GOOD + "".join(f"a{n} = 1\n" for n in range(7)), "(and 2 more)"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES.keys())
def test_a_wrong_file_is_named_with_line_and_key(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "my config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and expected in message
    assert len(message.splitlines()) == 1 and len(message) < 600


@pytest.mark.parametrize(
    ("override", "expected"),
    {
        "optimizer.lr": "write it as section.key=value",
        "lr=1": "write it as section.key=value",
        "=1": "write it as section.key=value",
        "optimizer..lr=1": "write it as section.key=value",
        "optimizer.lr=fast": "--set optimizer.lr: input should be a valid number, found 'fast'",
        "optimizer.learning_rate=1": "--set optimizer.learning_rate: unknown key",
        "model.preset.name=1": "preset is a value, not a section",
        "data.crop=1\ncrop=2": "--set data.crop",
        "foo.bar=1": "--set foo.bar: foo: unknown key; known here: data, ",
        "loss.bce=0": "--set loss.bce: loss: one of bce, dice, lovasz, focal, tversky and boundary must be above 0",
    }.items(),
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, expected: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(GOOD + "[loss]\ndice = 0.0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert expected in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_an_override_is_not_blamed_for_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(GOOD + "[loss]\nbce = 0.0\ndice = 0.0\n")
    with pytest.raises(ConfigError, match=r"c\.toml: line 6: loss: one of bce, dice"):
        load_config(path, ["data.crop=64", "loss.dice=0"])
    path.write_text(GOOD.replace("1e-4", '"slow"'))
    with pytest.raises(ConfigError, match=r"^--set optimizer.lr: .*, found 'fast'"):
        load_config(path, ["optimizer.lr=fast"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"a = 1\n" * 2_000_000, "larger than 100,000 bytes"), (GOOD.encode() + b"# \xff\n", "line 6: not UTF-8 text")],
)
def test_bytes_that_are_no_configuration_are_refused_at_once(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=expected):
        load_config(path)
    assert time.monotonic() - began < 1.0


def test_missing_files_and_folders_name_the_shipped_ones(tmp_path: Path) -> None:
    for source in (tmp_path / "none.toml", tmp_path, "inira"):
        with pytest.raises(ConfigError, match=r"no such configuration file.*inria, .*segformer, small"):
            load_config(source)


def test_a_windows_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_config(path).optimizer.lr == 1e-4


def test_the_command_ends_with_78_before_anything_is_written(run, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(GOOD + "learning_rate = 1\n")
    code, out, err = run("train", tmp_path / "tiles", "-c", path, "-o", tmp_path / "run")
    assert (code, out) == (78, "")
    known = "accumulate, clip, encoder_lr, lr, weight_decay"
    assert err == f"error: {path}: line 6: optimizer.learning_rate: unknown key; known here: {known}\n"
    assert not (tmp_path / "run").exists()
