"""Each token mixer against its definition, written out densely in float64; limits, sizes, batches, precision."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from aerialseg.models import mixers
from aerialseg.models.mixers import (
    MIXERS,
    GlobalWindow,
    Latent,
    Linformer,
    MixerSize,
    Performer,
    Routing,
    Sinkhorn,
    make_mixer,
)

Array: TypeAlias = NDArray[Any]
SIDE, HEADS, HEAD, SMALL = 4, 2, 8, 3
SIZES = [(5, 5), (8, 8), (13, 10), (1, 7), (3, 18)]
CORES = [name for name in MIXERS if name not in ("identity", "conv", "pool", "fourier")]


def make_core(name: str) -> Any:
    torch.manual_seed(3)
    return {
        "full": lambda: mixers.full,
        "window": lambda: partial(mixers.window, side=SIDE),
        "grid": lambda: partial(mixers.grid, side=SIDE),
        "axial": lambda: mixers.axial,
        "global": lambda: GlobalWindow(HEADS, HEAD, 5, SIDE).double(),
        "latent": lambda: Latent(HEADS, HEAD, 5).double(),
        "pooled": lambda: partial(mixers.pooled, ratio=SMALL),
        "linformer": lambda: shaken(Linformer(SMALL).double()),
        "nystrom": lambda: partial(mixers.nystrom, side=SMALL),
        "linear": lambda: mixers.linear,
        "performer": lambda: Performer(HEAD, 20).double(),
        "routing": lambda: Routing(HEADS, HEAD, SMALL, 6).double(),
        "sinkhorn": lambda: Sinkhorn(HEADS, HEAD, SIDE).double(),
    }[name]()


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def draw(height: int, width: int, *, count: int = 2, spread: float = 1.5) -> list[torch.Tensor]:
    torch.manual_seed(height * 100 + width)
    return [spread * torch.randn(count, HEADS, height, width, HEAD, dtype=torch.float64) for _ in range(3)]


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def dense(q: Array, k: Array, v: Array, seen: Any = True) -> Array:
    """Softmax attention with a mask [queries, keys], True where a key is seen."""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return np.asarray(softmax(np.where(seen, scores, -np.inf)) @ v)


def together(row: Array, col: Array) -> Array:
    """The mask of pairs that share a row key and a column key."""
    return (row[:, None] == row) & (col[:, None] == col)


def averages(row: Array, col: Array) -> Array:
    """The matrix that takes the mean of the positions of each (row key, column key), in their order."""
    _, cell = np.unique(np.stack([row, col]), axis=1, return_inverse=True)
    hot = np.eye(cell.max() + 1)[cell.ravel()].T
    return np.asarray(hot / hot.sum(1, keepdims=True))


def oracle(name: str, core: Any, q: Array, k: Array, v: Array, shape: tuple[int, int]) -> Array:
    """What `core` should make of [N, heads, positions, channels], as whole matrices over all pairs of positions."""
    height, width = shape
    r, c = np.divmod(np.arange(height * width), width)
    match name:
        case "full":
            return dense(q, k, v)
        case "window":
            return dense(q, k, v, together(r // SIDE, c // SIDE))
        case "grid":
            return dense(q, k, v, together(r % -(-height // SIDE), c % -(-width // SIDE)))
        case "axial":
            return dense(q, k, dense(q, k, v, together(r, r)), together(c, c))
        case "pooled":
            means = averages(r // SMALL, c // SMALL)
            return dense(q, means @ k, means @ v)
        case "latent" | "global":
            points = core.points.detach().numpy()[:, 0]
            few_k, few_v = dense(points, k, k), dense(points, k, v)
            if name == "latent":
                return dense(q, few_k, few_v)
            seen = np.pad(together(r // SIDE, c // SIDE), ((0, 0), (0, len(points[0]))), constant_values=True)
            return dense(q, np.concatenate([k, few_k], 2), np.concatenate([v, few_v], 2), seen)
        case "linformer":
            few = []
            for picture, x in ((core.keys, k), (core.values, v)):
                read = F.interpolate(picture[None], shape, mode="bilinear", align_corners=False)[0]
                few.append(read.flatten(1).detach().numpy() * SMALL**2 / (height * width) @ x)
            return dense(q, *few)
        case "nystrom":
            means, scale = averages(r // -(-height // SMALL), c // -(-width // SMALL)), np.sqrt(HEAD)
            few_q, few_k = means @ q, (means @ k).swapaxes(-1, -2)
            inner = softmax(few_q @ few_k / scale)
            norms = inner.sum(-1).max(-1) * inner.sum(-2).max(-1)
            z, one = inner.swapaxes(-1, -2) / norms[..., None, None], np.eye(len(means))
            for _ in range(6):
                z = 0.25 * z @ (13 * one - inner @ z @ (15 * one - inner @ z @ (7 * one - inner @ z)))
            return np.asarray(softmax(q @ few_k / scale) @ z @ softmax(few_q @ k.swapaxes(-1, -2) / scale) @ v)
        case "linear":
            q, k = (np.where(x > 0, x + 1, np.exp(x)) for x in (q, k))
        case "performer":
            q, k = (x / HEAD**0.25 for x in (q, k))
            w = core.directions.numpy().T
            q, k = (x @ w - (x**2).sum(-1, keepdims=True) / 2 for x in (q, k))
            q = np.exp(q - q.max(-1, keepdims=True)) + 1e-6  # the floor is the paper's, so that no sum is zero
            k = np.exp(k - k.max((-2, -1), keepdims=True)) + 1e-6
        case "routing" | "sinkhorn":
            return learned(name, core, q, k, v, shape)
    weights = q @ k.swapaxes(-1, -2)
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v)


def learned(name: str, core: Any, q: Array, k: Array, v: Array, shape: tuple[int, int]) -> Array:
    out = np.empty_like(q)
    r, c = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    for sample, head in np.ndindex(q.shape[:2]):
        a, b, d = q[sample, head], k[sample, head], v[sample, head]
        if name == "routing":
            centroids = core.centroids.detach().numpy()[head]
            near = b @ centroids.T / np.outer(np.linalg.norm(b, axis=1), np.linalg.norm(centroids, axis=1))
            share, cluster = softmax(4 * near).max(1), near.argmax(1)
            rank = np.argsort(np.argsort(cluster, kind="stable"))
            out[sample, head] = dense(a, b, d * share[:, None], together(cluster, rank // 6))
            continue
        asks, offers = (x.detach().numpy()[head] for x in (core.asks, core.offers))
        tall, wide = min(SIDE, shape[0]), min(SIDE, shape[1])
        block, place = (r // tall) * (c.max() // wide + 1) + c // wide, (r % tall) * wide + c % wide
        means = averages(block, block) @ b
        order = np.exp(means @ asks @ (means @ offers).T / np.sqrt(HEAD))
        for _ in range(8):
            order /= order.sum(1, keepdims=True)
            order /= order.sum(0, keepdims=True)
        blocks = np.zeros((2, len(means), tall * wide, HEAD))
        blocks[:, block, place] = b, d
        beside = np.einsum("nm,xmtd->xntd", order, blocks)
        for i in range(len(a)):
            own = block == block[i]
            keys, values = (np.concatenate([x[own], y[block[i]]]) for x, y in ((b, beside[0]), (d, beside[1])))
            out[sample, head, i] = dense(a[i : i + 1], keys, values)[0]
    return out


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("name", CORES)
def test_a_core_is_its_dense_definition(name: str, shape: tuple[int, int]) -> None:
    core, qkv = make_core(name), draw(*shape)
    with torch.no_grad():
        found = core(*qkv)
    expected = oracle(name, core, *(x.flatten(2, 3).numpy() for x in qkv), shape)
    np.testing.assert_allclose(found.flatten(2, 3).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_the_plain_mixers_are_their_definitions() -> None:
    x = torch.randn(2, 8, 7, 5, dtype=torch.float64)
    plain = {name: make_mixer(name, MixerSize(8, 8)).double() for name in ("identity", "conv", "pool", "fourier")}
    found = {name: mixer(x).detach().numpy() for name, mixer in plain.items()}
    kernel, bias = (parameter.detach().numpy() for parameter in plain["conv"].parameters())
    padded, inside = (np.pad(y, ((0, 0), (0, 0), (3, 3), (3, 3))) for y in (x.numpy(), np.ones((1, 1, 7, 5))))
    views, counted = (np.lib.stride_tricks.sliding_window_view(y, (7, 7), (2, 3)) for y in (padded, inside))
    np.testing.assert_array_equal(found["identity"], x)
    np.testing.assert_allclose(found["conv"], np.einsum("nchwij,cij->nchw", views, kernel[:, 0]) + bias[:, None, None])
    mean = views[..., 2:5, 2:5].sum((-1, -2)) / counted[..., 2:5, 2:5].sum((-1, -2))
    np.testing.assert_allclose(found["pool"], mean - x.numpy(), atol=1e-12)
    np.testing.assert_allclose(found["fourier"], np.fft.fftn(x.numpy(), axes=(1, 2, 3), norm="ortho").real, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "core"),
    [
        ("window", partial(mixers.window, side=9)),
        ("grid", partial(mixers.grid, side=9)),
        ("pooled", partial(mixers.pooled, ratio=1)),
        ("linformer", Linformer(9).double()),
        ("nystrom", partial(mixers.nystrom, side=9, iterations=60)),
        ("routing", Routing(HEADS, HEAD, 1, 81).double()),
        ("sinkhorn", Sinkhorn(HEADS, HEAD, 9).double()),
    ],
)
def test_a_core_with_nothing_left_out_is_full_attention(name: str, core: Any) -> None:
    q, k, v = draw(9, 9)
    torch.testing.assert_close(core(q, k, v), mixers.full(q, k, v), rtol=1e-6, atol=1e-6)


def test_axial_attention_over_a_single_row_is_full_attention() -> None:
    q, k, v = draw(1, 12)
    torch.testing.assert_close(mixers.axial(q, k, v), mixers.full(q, k, v))


def test_many_random_features_come_near_the_softmax() -> None:
    q, k, v = draw(6, 6, spread=0.5)
    torch.manual_seed(0)
    few, many = (
        (Performer(HEAD, features).double()(q, k, v) - mixers.full(q, k, v)).abs().mean() for features in (16, 8192)
    )
    assert 3 * many < few


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_takes_any_size_and_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    mixer = make_mixer(name, MixerSize(16, 8, window=4, landmarks=3, ratio=2))
    for height, width in ((5, 5), (12, 9), (1, 1), (4, 17)):
        x = torch.randn(2, 16, height, width, requires_grad=True)
        mixed = mixer(x)
        assert mixed.shape == x.shape
        mixer.zero_grad()
        (mixed * torch.randn_like(mixed)).sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()
        for key, parameter in mixer.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            if height * width > 1 and (name != "sinkhorn" or height > 4):  # one position, or one block, has no order
                assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", MIXERS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    torch.manual_seed(0)
    mixer = make_mixer(name, MixerSize(16, 8, window=4, landmarks=3, ratio=2)).double()
    x = torch.randn(3, 16, 11, 6, dtype=torch.float64)
    x[1:] *= 50.0  # a normaliser taken over the batch would show
    torch.testing.assert_close(mixer(x)[:1], mixer(x[:1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CORES)
def test_a_core_in_half_precision_is_close_to_float64(name: str, kind: torch.dtype) -> None:
    """Of the same rounded queries, keys and values, so that clusters and orders are those of the reference."""
    core = make_core(name)
    qkv = [x.to(kind) for x in draw(13, 10)]
    expected = core(*(x.double() for x in qkv))
    if isinstance(core, torch.nn.Module):
        core.float()
    with torch.autocast("cpu", kind):
        found = core(*qkv)
    assert found.isfinite().all()
    error = (found.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (0.02 if kind == torch.bfloat16 else 0.003)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in MIXERS if name != "routing"])
def test_a_mixer_under_autocast_is_close_to_float32(name: str, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    mixer = make_mixer(name, MixerSize(16, 8, window=4, landmarks=3, ratio=2))
    x = 3 * torch.randn(2, 16, 20, 15)
    expected = mixer(x)
    with torch.autocast("cpu", kind):
        found = mixer(x)
    assert found.isfinite().all()
    error = (found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (0.05 if kind == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("core", [mixers.linear, Performer(16, 32), partial(mixers.nystrom, side=4)])
def test_65536_positions_in_float16_are_right(core: Any) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 256, 256, 16).half() for _ in range(3))
    v += 1  # a mean that sums over all positions must keep
    with torch.autocast("cpu", torch.float16):
        found = core(q, k, v).double()
    expected = core(q.double(), k.double(), v.double())
    assert ((found - expected).abs().max() / expected.abs().max()) < 1e-3


@pytest.mark.slow  # tracing each takes little, loading the tracer 5 s
@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_can_be_exported(name: str) -> None:
    mixer = make_mixer(name, MixerSize(16, 8, window=4, landmarks=3, ratio=2)).eval()
    x = torch.randn(1, 16, 18, 18)
    torch.testing.assert_close(torch.export.export(mixer, (x,)).module()(x), mixer(x), rtol=1e-4, atol=1e-5)
