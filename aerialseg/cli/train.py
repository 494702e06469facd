"""`aerialseg train`: fit a network to tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli.options import Device, ResultAsJson, TilesFolder

if TYPE_CHECKING:
    from aerialseg.training.report import TrainReport


def train(
    tiles: TilesFolder,
    out: Annotated[Path, typer.Option("-o", "--out", help="The run's folder.", show_default=False)],
    config: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--config",
            help="A TOML file, or the name of a shipped one: inria, inria-1gpu, inria-8gpu, segformer, small, demo.",
            show_default="inria; with --resume the run's own",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value, as optimizer.lr=1e-4; may be repeated."),
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option("--from", metavar="MODEL", help="Fine-tune this model file or run.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher", metavar="MODEL", help="Learn this model's probabilities too, also on unlabelled ground."
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="M", help="Fit the schedule to this time.")
    ] = None,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run stopped; begin one where there is none.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("-f", "--overwrite", help="Begin anew in a folder that holds a run.")
    ] = False,
    as_json: ResultAsJson = False,
) -> None:
    """Train a segmenter on tiles, by the split in index.gpkg.

    Writes RUN/model.safetensors (the best weights, with everything predict needs), last.ckpt (to resume from),
    config.toml and run.json (all it takes to repeat the run), metrics.csv, curves.png and TensorBoard events. Ctrl-C or
    SIGTERM saves after the current step; the same command with --resume goes on from there and ends with the same
    weights as if it had not stopped.

    With --minutes the pace of some steps is measured first, and epochs and steps are fixed so that warm-up and decay
    end in that time; config.toml has them, and a run that goes on keeps them.

    On several GPUs, of one machine or many, torchrun starts it; data.batch is then the batch of all GPUs together, and
    a run may go on with another number of them: the same training up to rounding, not bit for bit.

    \b
    Examples:
      aerialseg train tiles/inria -o runs/inria
      aerialseg train tiles/mine -c small -o runs/mine --set schedule.epochs=20 --set data.batch=4
      aerialseg train tiles/mine -c small -o runs/mine --minutes 90
      aerialseg train tiles/mine -c small -o runs/tuned --from runs/inria/model.safetensors
      aerialseg train tiles/mine -c small -o runs/pupil --teacher runs/inria --set distil.weight=2
      aerialseg train tiles/inria -o runs/inria --resume
      torchrun --nproc-per-node 8 -m aerialseg train tiles/inria -o runs/inria --resume
    """
    import sys

    from aerialseg.cli.console import console_progress, print_json, say_loading, say_next

    say_loading()
    from aerialseg.config import load_config
    from aerialseg.files import is_regular
    from aerialseg.training.ranks import join_ranks

    begun = out / "config.toml"
    named = config or (begun if resume and is_regular(begun) else "inria")
    with join_ranks() as ranks, console_progress(quiet=not ranks.first) as progress:
        with ranks.fail_together():
            chosen = load_config(named, assignments or [])

        from aerialseg.training.loop import train as train_network
        from aerialseg.training.run_folder import TrainOptions

        options = TrainOptions(device, resume, start_from, teacher, overwrite, tuple(sys.argv), Path(named), minutes)
        report = train_network(tiles, chosen, out, options=options, progress=progress, ranks=ranks)
    if not ranks.first:
        return
    if as_json:
        print_json(report)
    else:
        typer.echo(_sentence(report))
        say_next("predict", "SCENES", "-m", out, "-o", "out")


def _sentence(report: TrainReport) -> str:
    from aerialseg.errors import one_line

    score = "not validated" if report.best_iou != report.best_iou else f"validation IoU {report.best_iou:.4f}"
    done = "was complete already" if report.complete_before else f"{report.steps:,} steps in {report.seconds:,.0f} s"
    return (
        f"{one_line(report.model)}: {score} at threshold {report.threshold:.2f}, epoch {report.best_epoch} of"
        f" {report.epochs}; {done}"
    )
