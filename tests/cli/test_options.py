"""Options that several commands take mean the same in each of them."""

from __future__ import annotations

import pytest

from aerialseg.cli.options import band_rule, batch_size, whole_numbers
from aerialseg.errors import UsageError
from aerialseg.geo.inspection import BandRule


def test_bands_and_scale_become_a_rule() -> None:
    assert band_rule(None, None) == BandRule()
    assert band_rule("4,1,2", "0:2047") == BandRule((4, 1, 2), (0.0, 2047.0))
    assert band_rule("1", "-0.5:1e4") == BandRule((1,), (-0.5, 1e4))


@pytest.mark.parametrize("text", ["", "1,,2", "1,2,", "a", "1.5", "1;2"])
def test_bands_that_are_no_numbers_are_named(text: str) -> None:
    with pytest.raises(UsageError, match=f"--bands {text}: give whole numbers"):
        band_rule(text, None)


@pytest.mark.parametrize("text", ["", "5", "1:2:3", "a:b", ":", "1:"])
def test_a_scale_that_is_no_pair_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=f"--scale {text}: give two numbers"):
        band_rule(None, text)


def test_whole_numbers_may_be_absent_or_negative() -> None:
    assert whole_numbers("--ignore-values", None) is None
    assert whole_numbers("--ignore-values", "-1, 255") == (-1, 255)


def test_a_batch_is_a_number_or_auto() -> None:
    assert batch_size("auto") is None and batch_size("8") == 8
    for text in ("-1", "1.5", "many", ""):
        with pytest.raises(UsageError, match=f"--batch {text}: give a number of windows"):
            batch_size(text)
