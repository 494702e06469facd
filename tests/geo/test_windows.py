"""The lattice covers, the weights sum to one, the strips partition: on any raster, size and overlap."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aerialseg.geo.windows import Axis, Blend, blend_weights, reflected

AXES = st.builds(
    Axis.overlapping,
    length=st.integers(1, 700),
    size=st.integers(1, 130),
    overlap=st.floats(0, 0.75),
)
BLENDS: tuple[Blend, ...] = ("hann", "linear", "crop")


@given(AXES)
@example(Axis(length=1, size=512, step=384))
@example(Axis(length=5000, size=512, step=384))
def test_windows_cover_the_raster_and_none_is_needless(axis: Axis) -> None:
    starts = list(axis.starts)
    assert len(starts) == axis.count
    assert starts[0] == 0
    assert all(following - start == axis.step <= axis.size for start, following in pairwise(starts))
    assert starts[-1] + axis.size >= axis.length
    assert axis.count == 1 or starts[-2] + axis.size < axis.length


@given(AXES, st.sampled_from(BLENDS))
@example(Axis(length=20000, size=512, step=384), "hann")
@example(Axis(length=97, size=64, step=16), "crop")
def test_weights_sum_to_one_over_every_pixel(axis: Axis, kind: Blend) -> None:
    weights = blend_weights(axis, kind)
    total = np.zeros(axis.starts[-1] + axis.size)
    for start, row in zip(axis.starts, weights, strict=True):
        total[start : start + axis.size] += row
    assert weights.dtype == np.float32
    assert np.abs(total - 1).max() <= 1e-6


@given(AXES, st.sampled_from(BLENDS), st.data())
def test_some_windows_have_the_weights_they_have_among_all(axis: Axis, kind: Blend, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, axis.count - 1))
    some = range(first, data.draw(st.integers(first + 1, axis.count)))
    np.testing.assert_array_equal(blend_weights(axis, kind, some), blend_weights(axis, kind)[some.start : some.stop])


@given(AXES, st.data())
def test_touching_windows_are_those_that_hold_a_pixel(axis: Axis, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, axis.length - 1))
    stop = data.draw(st.integers(start + 1, axis.length))
    found = [index for index, first in enumerate(axis.starts) if first < stop and first + axis.size > start]
    assert list(axis.touching(start, stop)) == found


@given(AXES)
def test_hann_is_nowhere_zero(axis: Axis) -> None:
    assert blend_weights(axis, "hann").min() > 0


@given(AXES)
def test_crop_gives_each_pixel_to_one_window(axis: Axis) -> None:
    assert set(np.unique(blend_weights(axis, "crop"))) <= {0, 1}


@pytest.mark.parametrize("kind", BLENDS)
def test_windows_alone_on_their_axis_count_fully(kind: Blend) -> None:
    assert (blend_weights(Axis(length=40, size=64, step=48), kind) == 1).all()


@pytest.mark.parametrize("kind", BLENDS)
def test_weights_do_not_depend_on_how_far_the_raster_goes_on(kind: Blend) -> None:
    short, long = (blend_weights(Axis(length, size=64, step=48), kind) for length in (400, 4000))
    np.testing.assert_array_equal(short[:-1], long[: len(short) - 1])


@given(AXES)
def test_strips_partition_the_raster_and_are_final(axis: Axis) -> None:
    strips = [axis.finished(index) for index in range(axis.count)]
    assert strips[0][0] == 0
    assert strips[-1][1] == axis.length
    assert all(stop == following for (_, stop), (following, _) in pairwise(strips))
    for index, (start, stop) in enumerate(strips):
        assert 0 < stop - start <= axis.size
        assert all(later >= stop for later in axis.starts[index + 1 :])
        assert axis.starts[index] <= start and stop <= axis.starts[index] + axis.size


@given(st.integers(1, 40), st.integers(0, 100), st.integers(1, 100))
def test_padding_is_numpys_reflection(length: int, start: int, extra: int) -> None:
    padded = np.pad(np.arange(length), (0, start + extra), mode="reflect")
    np.testing.assert_array_equal(reflected(start, start + extra, length), padded[start : start + extra])


def test_the_documented_lattice_of_an_inria_scene() -> None:
    assert list(Axis.overlapping(5000, 512, 0.25).starts) == list(range(0, 4609, 384))
    assert list(Axis.overlapping(500, 512, 0.25).starts) == [0]
    assert list(Axis.overlapping(513, 512, 0.0).starts) == [0, 512]


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_a_nonsense_overlap_is_a_programmers_mistake(overlap: float) -> None:
    with pytest.raises(ValueError, match="overlap"):
        Axis.overlapping(100, 64, overlap)
