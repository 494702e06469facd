"""Decay groups, the learning rate's course, and the averaged weights with their BatchNorm statistics."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aerialseg.config import OptimizerSection
from aerialseg.training.optimizer import average_decay, build_optimizer, learning_rate, update_average


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))


def test_norms_and_biases_do_not_decay() -> None:
    decayed, spared = build_optimizer(network(), OptimizerSection(weight_decay=0.3)).param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 4] and decayed["weight_decay"] == 0.3
    assert [p.ndim for p in spared["params"]] == [1] * 4 and spared["weight_decay"] == 0.0


def test_frozen_weights_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    groups = build_optimizer(model, OptimizerSection()).param_groups
    assert sum(len(group["params"]) for group in groups) == 4


@given(st.integers(1, 2000), st.integers(0, 3000), st.floats(1e-6, 1.0))
def test_the_rate_rises_to_its_peak_and_falls_to_nearly_nothing(total: int, warmup: int, peak: float) -> None:
    rates = [learning_rate(step, total, peak, warmup) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)
    assert max(rates) == pytest.approx(peak, rel=1e-6)
    top = int(np.argmax(rates))
    assert top <= max(0, min(warmup, total // 10))
    assert all(a <= b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    if total >= 100:
        assert rates[-1] < 0.01 * peak


def test_the_rate_at_known_points() -> None:
    assert learning_rate(0, 1000, 1.0, 100) == 0.01
    assert learning_rate(99, 1000, 1.0, 100) == 1.0
    assert learning_rate(550, 1000, 1.0, 100) == pytest.approx(0.5)
    assert learning_rate(0, 1, 1.0, 100) == 1.0


def test_the_average_looks_back_over_a_ninth_of_a_young_run_and_never_beyond_its_decay() -> None:
    assert average_decay(0, 0.999) == 0.1
    assert average_decay(90, 0.999) == pytest.approx(0.91)
    assert average_decay(10**6, 0.999) == 0.999


def test_the_average_equals_a_float64_reference_and_counts_are_copied() -> None:
    torch.manual_seed(0)
    model = network()
    average = copy.deepcopy(model)
    expected = {k: v.double().clone() for k, v in model.state_dict().items()}
    for step in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            model(torch.randn(2, 3, 8, 8) + 3)  # moves BatchNorm's statistics
        decay = average_decay(step, 0.9)
        update_average(average, model, decay)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
            else:
                expected[name] = tensor.double()
    for name, tensor in average.state_dict().items():
        assert torch.allclose(tensor.double(), expected[name], atol=1e-6), name
    assert average.state_dict()["1.num_batches_tracked"] == 20
    assert not torch.allclose(average[1].running_mean, torch.zeros(4), atol=1e-2)


def test_constant_buffers_stay_exactly_as_they_are() -> None:
    model = nn.Module()
    model.register_buffer("mean", torch.tensor([101.3, 0.1, 1 / 3]))
    average = copy.deepcopy(model)
    for step in range(50):
        update_average(average, model, average_decay(step, 0.999))
    assert torch.equal(average.mean, model.mean)
    assert not math.isnan(float(average.mean.sum()))
