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

from aerialseg.config.sections import OptimizerSection, ScheduleSection
from aerialseg.training.optimizer import (
    average_decay,
    build_optimizer,
    learning_rate,
    set_learning_rate,
    update_average,
)

SHAPES = ("cosine", "one-cycle", "polynomial")


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


def test_the_encoder_has_its_own_rate_and_the_same_decay() -> None:
    model = nn.ModuleDict({"encoder": network(), "decoder": network()})
    optimizer = build_optimizer(model, OptimizerSection(encoder_lr=0.1, weight_decay=0.3))
    set_learning_rate(optimizer, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert len(found) == 12
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(0.05 if name.startswith("encoder") else 0.5)
        assert decay == (0.3 if model.get_parameter(name).ndim >= 2 else 0.0)
    assert optimizer.param_groups[0]["lr"] == 0.5, "the rate that is written down"


def test_with_one_rate_the_groups_and_their_order_are_those_without_an_encoder() -> None:
    model = nn.ModuleDict({"encoder": network(), "decoder": network()})
    groups = build_optimizer(model, OptimizerSection()).param_groups
    parameters = list(model.parameters())
    assert [list(map(id, group["params"])) for group in groups] == [
        [id(p) for p in parameters if p.ndim >= 2],
        [id(p) for p in parameters if p.ndim < 2],
    ]


@given(st.integers(1, 2000), st.integers(0, 3000), st.floats(1e-6, 1.0), st.sampled_from(SHAPES))
def test_the_rate_rises_to_its_peak_and_falls_to_nearly_nothing(
    total: int, warmup: int, peak: float, shape: str
) -> None:
    schedule = ScheduleSection(warmup_steps=warmup, shape=shape)
    rates = [learning_rate(step, total, peak, schedule) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-9) for rate in rates)
    assert max(rates) == pytest.approx(peak, rel=1e-6)
    top = int(np.argmax(rates))
    assert top <= (0.3 * total if shape == "one-cycle" else max(0, min(warmup, total // 10)))
    assert all(a <= b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    if total >= 100:
        assert rates[-1] < 0.02 * peak
        steepest = max(abs(a - b) for a, b in pairwise(rates))
        assert steepest <= peak * max(0.06, 1.1 / max(1, min(warmup, total // 10))), "no jumps"


def test_the_rate_at_known_points() -> None:
    cosine = ScheduleSection(warmup_steps=100)
    assert learning_rate(0, 1000, 1.0, cosine) == 0.01
    assert learning_rate(99, 1000, 1.0, cosine) == 1.0
    assert learning_rate(550, 1000, 1.0, cosine) == pytest.approx(0.5)
    assert learning_rate(0, 1, 1.0, cosine) == 1.0
    polynomial = ScheduleSection(warmup_steps=0, shape="polynomial")
    assert learning_rate(500, 1000, 1.0, polynomial) == pytest.approx(0.5**0.9)
    cycle = ScheduleSection(shape="one-cycle")
    assert learning_rate(0, 1000, 1.0, cycle) == pytest.approx(0.04, abs=1e-3)
    assert learning_rate(149, 1000, 1.0, cycle) == pytest.approx(0.52)
    assert learning_rate(299, 1000, 1.0, cycle) == 1.0
    assert learning_rate(650, 1000, 1.0, cycle) == pytest.approx(0.5)


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
