"""A step's gradients: small batches that count as a large one, a frozen encoder, activations computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tiles import tiny_config
from told import Told

from aerialseg.errors import ConfigError, Stopped
from aerialseg.geo.tiles.tileset import TileSet
from aerialseg.training import loop
from aerialseg.training.batches import open_readers
from aerialseg.training.job import TrainJob, build_job
from aerialseg.training.loop import Step, train, train_step
from aerialseg.training.run_folder import TrainOptions
from aerialseg.training.start import start_fresh
from aerialseg.training.state import TrainState

CPU = TrainOptions(device="cpu")
GROUP_NORM = (
    *("model.architecture=unet", "model.encoder=pyramid", "model.encoder_arguments.width=8", "data.crop=32"),
    *(
        "model.encoder_arguments.depths=1",
        "model.encoder_arguments.drop_path=0.0",
        "model.encoder_arguments.mixers=conv",
    ),
)
"""An encoder without BatchNorm; smp's decoder has some, which the tests put out of training."""


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda run, records: None)


@pytest.fixture
def make_job(tiles: TileSet, tmp_path: Path) -> Iterator[Callable[..., TrainJob]]:
    """Build the parts of a training from overrides of the tiny configuration."""
    with open_readers(1) as readers:

        def build(*overrides: str) -> TrainJob:
            start = start_fresh(tiles, tiny_config("run.seed=3", "data.cache=off", *overrides))
            return build_job(tmp_path / "run", start, device=torch.device("cpu"), readers=readers)

        yield build


def gather(job: TrainJob) -> tuple[Step, dict[str, torch.Tensor]]:
    """Return a first step and its gradients, by name, as the optimizer got them."""
    for module in job.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    found: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        found.update((name, x.grad.clone()) for name, x in job.model.named_parameters() if x.grad is not None)

    job.optimizer.optimizer.register_step_pre_hook(keep)
    with closing(job.training_batches(0, 0)) as batches:
        return train_step(job, TrainState(), batches), found


def encoder_state(job: TrainJob) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in job.model.network.encoder.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_accumulated_batches_are_one_batch_so_many_times_as_large(make_job: Callable[..., TrainJob]) -> None:
    """One of the tiles is labelled in part, so the small batches hold unequal numbers of labels."""
    settings = (*GROUP_NORM, "loss.dice=0", "optimizer.clip=0", "schedule.steps_per_epoch=2", "data.crop=96")
    large = make_job(*settings, "data.batch=6")
    small = make_job(*settings, "data.batch=2", "optimizer.accumulate=3")
    (whole, expected), (parts, found) = gather(large), gather(small)
    assert whole.names == parts.names and len(set(whole.names)) > 3
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6) and parts.norm == pytest.approx(whole.norm, rel=1e-5)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
    alone = make_job(*settings, "data.batch=2")
    assert gather(alone)[0].loss != pytest.approx(whole.loss, rel=1e-3)


def test_schedule_average_and_counters_count_the_optimizers_steps(tiles_folder: Path, tmp_path: Path) -> None:
    short = tiny_config("schedule.epochs=2", "optimizer.accumulate=3", "data.batch=2", "run.ema=0.9")
    report = train(tiles_folder, short, tmp_path / "a", options=CPU)
    state = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)["state"]
    assert report.steps == 6 and state["standing"]["taken"] == 6
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {6}
    last = [record["lr"] for record in state["standing"]["records"]]
    plain = tiny_config("schedule.epochs=2", "data.batch=2", "run.ema=0.9")
    train(tiles_folder, plain, tmp_path / "b", options=CPU)
    other = torch.load(tmp_path / "b" / "last.ckpt", weights_only=True)["state"]
    assert last == [record["lr"] for record in other["standing"]["records"]]


def test_by_itself_a_step_of_several_batches_covers_as_much_ground(make_job: Callable[..., TrainJob]) -> None:
    one = make_job("schedule.steps_per_epoch=0", "data.batch=2", "data.crop=32")
    four = make_job("schedule.steps_per_epoch=0", "data.batch=2", "data.crop=32", "optimizer.accumulate=4")
    assert four.steps_per_epoch == -(-one.steps_per_epoch // 4) and four.total_steps == 2 * four.steps_per_epoch
    with closing(four.training_batches(1, four.steps_per_epoch - 1)) as batches:
        assert len(list(batches)) == 4


def test_a_stopped_run_goes_on_to_the_same_weights(tiles_folder: Path, tmp_path: Path) -> None:
    """Stopped while the encoder is frozen, in the middle of an epoch."""
    chosen = tiny_config(
        *("data.cache=off", "data.batch=2", "optimizer.accumulate=2", "schedule.freeze_steps=3"),
        *("model.encoder=tu-test_convnext", "schedule.steps_per_epoch=4", "schedule.epochs=1"),
    )
    train(tiles_folder, chosen, tmp_path / "whole", options=CPU)
    with pytest.raises(Stopped):
        train(tiles_folder, chosen, tmp_path / "halves", options=CPU, progress=Told(2))
    assert train(tiles_folder, chosen, tmp_path / "halves", options=replace(CPU, resume=True)).steps == 4
    first, second = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "halves"))
    assert first == second


def test_a_frozen_encoder_keeps_weights_and_statistics_until_its_steps_are_over(
    make_job: Callable[..., TrainJob],
) -> None:
    job = make_job("schedule.freeze_steps=2", "optimizer.weight_decay=0.5")
    standing, before = TrainState(), encoder_state(job)
    decoder = [p.detach().clone() for p in job.model.network.decoder.parameters()]
    job.model.train()
    with closing(job.training_batches(0, 0)) as batches:
        for _ in range(2):
            train_step(job, standing, batches)
            assert same(before, encoder_state(job)) and not job.model.network.encoder.training
        moved = [
            not torch.equal(old, new) for old, new in zip(decoder, job.model.network.decoder.parameters(), strict=True)
        ]
        assert all(moved)
        assert same(before, {k.removeprefix("network.encoder."): v for k, v in job.average.state_dict().items()
                             if k.startswith("network.encoder.")})  # fmt: skip
        job.model.train()  # as the next epoch begins, whose steps are counted from 0 again
        standing.step = 0
        train_step(job, standing, batches)
    after = encoder_state(job)
    assert job.model.network.encoder.training
    for kind in ("weight", "running_mean"):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.endswith(kind))


def test_frozen_weights_do_not_count_in_the_clipping(make_job: Callable[..., TrainJob]) -> None:
    (free, _), (frozen, gradients) = gather(make_job()), gather(make_job("schedule.freeze_steps=1"))
    assert not [name for name in gradients if name.startswith("network.encoder.")]
    assert frozen.norm < 0.999 * free.norm


def test_the_encoders_rate_moves_the_encoder_by_its_factor(make_job: Callable[..., TrainJob]) -> None:
    moves = []
    for factor in (1.0, 0.1):
        job = make_job(f"optimizer.encoder_lr={factor}", "optimizer.weight_decay=0", "schedule.warmup_steps=0")
        before = {name: x.detach().clone() for name, x in job.model.named_parameters()}
        with closing(job.training_batches(0, 0)) as batches:
            train_step(job, TrainState(), batches)
        moves.append({name: (x.detach() - before[name]).norm().item() for name, x in job.model.named_parameters()})
    for name, whole in moves[0].items():
        expected = 0.1 if ".encoder." in name else 1.0
        assert moves[1][name] == pytest.approx(expected * whole, rel=1e-2, abs=1e-7), name


def kept_bytes(call: Callable[[], Any]) -> int:
    """Return how many bytes a forward and backward pass keep for the gradients, each memory once."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(seen.values())


@pytest.mark.parametrize(
    "network",
    [
        ("model.encoder=tu-test_convnext", "model.encoder_arguments.drop_path_rate=0.5"),
        ("model.architecture=unet", "model.encoder=pyramid", "model.encoder_arguments.drop_path=0.5"),
    ],
    ids=["timm", "ours"],
)
def test_activations_computed_twice_give_the_same_gradients_from_less_memory(
    make_job: Callable[..., TrainJob], network: tuple[str, ...]
) -> None:
    """Paths are dropped at random: the second computation has to drop the same ones."""
    found, kept = [], []
    for wanted in ("false", "true"):
        job = make_job(*network, f"run.checkpoint_activations={wanted}")
        torch.manual_seed(1)
        found.append(gather(job)[1])
        kept.append(kept_bytes(lambda job=job: job.forward(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))))
    assert same(*found) and kept[1] < 0.8 * kept[0]


@pytest.mark.parametrize(
    ("encoder", "why"), [("tu-test_efficientnet", "has BatchNorm"), ("mit_b0", "has no way to do that")]
)
def test_an_encoder_that_cannot_compute_twice_is_refused(
    tiles_folder: Path, tmp_path: Path, encoder: str, why: str
) -> None:
    chosen = tiny_config(
        "run.checkpoint_activations=true", "model.architecture=unet", f"model.encoder={encoder}",
        "model.accept_licence=true", "data.cache=off",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=f"run.checkpoint_activations: .*{why}") as caught:
        train(tiles_folder, chosen, tmp_path / "run", options=CPU)
    assert caught.value.exit_code == 78 and not (tmp_path / "run" / "config.toml").exists()
