"""Values and JSON: what goes out comes back, types are kept or refused by name, and no text ends in a traceback."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerialseg.values import from_values, parse_json, read_json, to_values

DEEP = "[" * 200_000


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    window: tuple[int, int]
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    folder: Path
    size: int
    parts: tuple[Part, ...] = ()
    flags: dict[str, str | int | float | bool] = field(default_factory=dict)
    more: Any = None
    ready: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected 1 or more")


numbers = st.integers(-(2**70), 2**70)
flags = st.dictionaries(
    st.text(), st.text() | numbers | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
)


@given(
    st.builds(
        Whole,
        st.text(st.characters(categories=["L"]), min_size=1).map(Path),
        st.integers(1, 2**70),
        st.lists(
            st.builds(
                Part,
                st.text(),
                st.tuples(numbers, numbers),
                st.none() | st.floats(allow_nan=False, allow_infinity=False),
            )
        ).map(tuple),
        flags,
        st.none() | st.lists(flags),
        st.booleans(),
    )
)
def test_what_goes_out_comes_back_with_its_types(whole: Whole) -> None:
    back = from_values(Whole, json.loads(json.dumps(to_values(whole))))
    assert back == whole
    assert {key: type(value) for key, value in back.flags.items()} == {k: type(v) for k, v in whole.flags.items()}


@given(st.floats(allow_nan=False))
def test_a_number_comes_back_to_its_last_bit(number: float) -> None:
    assert from_values(float, number).hex() == number.hex()


def test_what_is_not_finite_goes_out_as_none() -> None:
    values = to_values(Whole(Path("a"), 1, more=[math.nan, math.inf, (1, 2)]))
    assert values["more"] == [None, None, [1, 2]] and values["folder"] == "a"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": "64"}, "size is '64', expected int"),
        ({"size": True}, "size is 'True', expected int"),
        ({"size": 6.5}, "size is '6.5', expected int"),
        ({"size": 0}, "size is 0, expected 1 or more"),
        ({"folder": 5}, "folder is '5', expected str"),
        ({"ready": 1}, "ready is '1', expected bool"),
        ({"parts": {}}, "parts: Input should be"),
        ({"parts": [{"name": "a", "window": [1]}]}, r"parts\.0\.window\.1 is missing"),
        ({"parts": [{"name": "a", "window": [1, "b"]}]}, r"parts\.0\.window\.1 is 'b', expected int"),
        ({"parts": [{"name": "a", "window": [1, 2], "share": "b\n"}]}, r"parts\.0\.share is .* expected float"),
        ({"flags": {"a\n": []}}, r"flags\.a\\n\."),
    ],
)
def test_a_wrong_type_is_refused_in_a_line_that_names_the_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}") as caught:
        from_values(Whole, {"folder": "a", "size": 1, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, 5, [], "x", {}, {"folder": "a"}, {"size": 1, "folder": None}])
def test_anything_else_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_values(Whole, data)


def test_a_field_of_another_version_is_left_out() -> None:
    assert from_values(Whole, {"folder": "a", "size": 1, "colour": "red"}) == Whole(Path("a"), 1)


def test_a_nest_that_python_made_is_not_followed_to_its_end() -> None:
    nest: list[Any] = []
    for _ in range(200_000):
        nest = [nest]
    with pytest.raises(ValueError, match="nested too deeply"):
        from_values(Whole, {"folder": "a", "size": 1, "more": nest})


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 200_000, b"\xff\xfe\x00", "", "{", "9" * 5000, b'{"a": "\xe9"}'])
def test_text_that_is_no_json_is_a_value_error(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "x.json")


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[1, 2]")
    assert read_json(path, most=6) == [1, 2]
    with pytest.raises(ValueError, match="is larger than 5 bytes"):
        read_json(path, most=5)


def test_what_is_no_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
