"""`aerialseg bench`: what networks cost on this machine, and whether training waits for its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli.options import Assignments, Config, Device, Precision, ResultAsJson, TilesFolder, whole_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.workflows.bench_networks import BenchOptions, Budget, Candidate, Findings

bench = typer.Typer(help="Measure what networks cost on this machine, and the feed.")

Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="NAME", help="Measure this one; may be repeated.", show_default="all"),
]
Sizes = Annotated[str, typer.Option(metavar="PX,PX", help="Sides of the tiles.")]
Batch = Annotated[int, typer.Option(metavar="N", help="Tiles per pass; memory is that of all of them.")]
Limit = Annotated[
    float, typer.Option(metavar="S", help="Leave out sizes at which a pass would probably take longer, in seconds.")
]
Tiles = Annotated[
    Path | None,
    typer.Option(help="Also train each network on these tiles, all for equal time.", show_default=False),
]
Minutes = Annotated[
    float | None,
    typer.Option(metavar="M", help="With --tiles: how long each one's steps take together.", show_default="5"),
]
Training = Annotated[
    str | None,
    typer.Option("-c", "--config", help="With --tiles: how they train; its network is replaced.", show_default="small"),
]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Folder for costs.json, costs.png and runs/NAME.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("-f", "--overwrite", help="Replace files of other origin in --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]
SIZES = "256,512,1024,2048"


@bench.command()
def mixers(
    only: Only = None,
    sizes: Sizes = SIZES,
    batch: Batch = 2,
    device: Device = "auto",
    precision: Precision = "auto",
    limit: Limit = 60.0,
    tiles: Tiles = None,
    minutes: Minutes = None,
    config: Training = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure the token mixers of our own encoder.

    Costs are of the encoder alone at its default width and depths, on random pixels, from random weights. Trainings put
    UNet's decoder on top. On a processor every measurement is a process of its own.

    \b
    Examples:
      aerialseg bench mixers --sizes 256,512
      aerialseg bench mixers --only window --only conv,conv,window,full -o bench/mixers
      aerialseg bench mixers --tiles tiles/inria --minutes 5 -o bench/mixers
    """
    from aerialseg.workflows.bench_networks import BenchOptions, mixer_candidates

    chosen = BenchOptions(whole_numbers("--sizes", sizes) or (), batch, device, precision, limit)
    budget = _budget(tiles, minutes, config)
    _bench(mixer_candidates(only or ()), chosen, budget, out=out, overwrite=overwrite, as_json=as_json)


@bench.command()
def presets(
    only: Only = None,
    sizes: Sizes = SIZES,
    batch: Batch = 2,
    device: Device = "auto",
    precision: Precision = "auto",
    limit: Limit = 60.0,
    tiles: Tiles = None,
    minutes: Minutes = None,
    config: Training = None,
    out: Out = None,
    overwrite: Overwrite = False,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Measure those under a non-commercial licence too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the networks that have a name.

    Everything runs on random pixels from random weights. On a processor every measurement is a process of its own.

    \b
    Examples:
      aerialseg bench presets --only unet-r18 --only segformer-pvt2-b0 --sizes 256,512
      aerialseg bench presets --device cuda --batch 8 -o bench/presets
      aerialseg bench presets --only unet-pvt2-b2 --only unet-pvt2-b2-stem --tiles tiles/inria -o bench/stem
    """
    from aerialseg.workflows.bench_networks import BenchOptions, preset_candidates

    candidates = preset_candidates(only or (), accept_licence=accept_licence)
    chosen = BenchOptions(whole_numbers("--sizes", sizes) or (), batch, device, precision, limit)
    _bench(candidates, chosen, _budget(tiles, minutes, config), out=out, overwrite=overwrite, as_json=as_json)


@bench.command()
def train(
    tiles: TilesFolder,
    config: Config = "inria",
    assignments: Assignments = None,
    device: Device = "auto",
    seconds: Annotated[float, typer.Option(help="About how long each rate is measured.", min=0.01)] = 20.0,
    as_json: ResultAsJson = False,
) -> None:
    """Measure whether training waits for its data.

    Crops are read alone, steps taken on one batch alone and with data, and the time of a step is told by its phases.

    \b
    Examples:
      aerialseg bench train tiles/inria
      aerialseg bench train tiles/town -c small --set data.threads=4 --seconds 60 --json
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.config import load_config

    chosen = load_config(config, assignments or [])

    from aerialseg.workflows.bench_train import bench_train

    with console_progress() as progress:
        report = bench_train(tiles, chosen, device=device, seconds=seconds, progress=progress)
    print_json(report.to_json()) if as_json else typer.echo(report.summary())


def _budget(tiles: Path | None, minutes: float | None, config: str | None) -> Budget | None:
    """Return how long the networks train on `tiles`; None without any. Raises UsageError for options that need them."""
    from aerialseg.config import load_config
    from aerialseg.errors import UsageError
    from aerialseg.workflows.bench_networks import Budget

    if tiles is None and (minutes is not None or config is not None):
        raise UsageError("--minutes and --config are about training on --tiles; give it too")
    return None if tiles is None else Budget(tiles, 5.0 if minutes is None else minutes, load_config(config or "small"))


def _bench(
    candidates: Sequence[Candidate],
    chosen: BenchOptions,
    budget: Budget | None,
    *,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Do what both commands do."""
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.workflows.bench_networks import bench_networks

    with console_progress() as progress:
        found = bench_networks(candidates, chosen, progress, budget=budget, out=out, overwrite=overwrite)
    print_json(found.to_json()) if as_json else _print(found)


def _print(found: Findings) -> None:
    from aerialseg.cli.console import print_table

    def time_and_memory(seconds: float | None, taken: int | None) -> list[str]:
        return ["" if seconds is None else f"{1e3 * seconds:,.1f}", "" if taken is None else f"{taken / 1e6:,.0f}"]

    machine = "{name}, {device}, {precision}, {batch} tiles per pass".format(**found.machine)
    columns = ["", "M params", "px", "GMACs", "ms", "MB", "ms, backward too", "MB", "note"]
    rows = []
    for row in found.rows:
        size = [f"{row.parameters / 1e6:.2f}", str(row.size), "" if row.gmacs is None else f"{row.gmacs:,.2f}"]
        forward = time_and_memory(row.forward_s, row.forward_bytes)
        rows.append([row.name, *size, *forward, *time_and_memory(row.train_s, row.train_bytes), row.note])
    print_table(f"Cost per tile: {machine}", columns, rows)
    if found.accuracy:
        rows = [
            [item.name, "" if item.iou is None else f"{item.iou:.3f}", f"{item.steps:,}", item.note]
            for item in found.accuracy
        ]
        print_table("After training for equal time", ["", "validation IoU", "steps", "note"], rows)
