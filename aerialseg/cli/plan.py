"""`aerialseg plan`: what predicting would take, before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from aerialseg.cli.options import Agreement, Disagreement


def plan(
    scenes: Annotated[list[str], typer.Argument(help="Scenes, as predict takes them.", show_default=False)],
    model: Annotated[
        Path, typer.Option("-m", "--model", help="A model file, or the folder of a training run.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Where predict would write; its disk is looked at.")
    ] = Path(),
    window: Annotated[
        int | None, typer.Option(help="As for predict.", show_default="the model's", metavar="PX")
    ] = None,
    overlap: Annotated[float | None, typer.Option(help="As for predict.", show_default="the model's")] = None,
    tta: Annotated[Literal["none", "flips", "d4"], typer.Option(help="As for predict.")] = "none",
    gsd: Annotated[str, typer.Option(help="As for predict.")] = "auto",
    neighbours: Annotated[Literal["auto", "off"], typer.Option(help="As for predict.")] = "auto",
    batch: Annotated[str, typer.Option(help="As for predict.")] = "auto",
    precision: Annotated[str, typer.Option(help="As for predict.")] = "auto",
    device: Annotated[str, typer.Option(help="As for predict.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="As for predict.")] = False,
    probability: Annotated[bool, typer.Option("--probability", help="As for predict.")] = False,
    disagreement: Disagreement = False,
    agreement: Agreement = False,
    polygons: Annotated[bool, typer.Option("--polygons", help="As for predict.")] = False,
    bands: Annotated[str | None, typer.Option(help="As for predict.", show_default="the model's")] = None,
    scale: Annotated[str | None, typer.Option(help="As for predict.", show_default="the model's")] = None,
    allow_ungeoreferenced: Annotated[bool, typer.Option("--allow-ungeoreferenced", help="As for predict.")] = False,
    max_pixels: Annotated[float, typer.Option(help="As for predict.", show_default="1e10")] = 1e10,
    shard: Annotated[str | None, typer.Option(help="As for predict.", metavar="I/N")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimate as JSON.")] = False,
) -> None:
    """Say what predict would take: windows, memory, disk, and time from a short probe of the network.

    Nothing is written. Scenes that predict would refuse are named here, with the reason.

    \b
    Examples:
      aerialseg plan AerialImageDataset/test/images -m runs/unet -o out --tta d4
      aerialseg plan 'new/*.jp2' -m runs/town --polygons --json
    """
    from functools import partial

    from aerialseg.cli.console import console_progress, print_json, print_table
    from aerialseg.cli.options import band_rule, batch_size, gsd_of, shard_of
    from aerialseg.geo.inspection import Access
    from aerialseg.geo.scenes import find_scenes
    from aerialseg.prediction.checks import is_ours
    from aerialseg.prediction.estimate import estimate
    from aerialseg.prediction.options import PredictOptions

    options = PredictOptions(
        window=window, overlap=overlap, tta=tta, gsd_m=gsd_of(gsd), neighbours=neighbours == "auto",
        batch=batch_size(batch), precision=precision, device=device, compiled=compiled, probability=probability,
        disagreement=disagreement or agreement, polygons=polygons, rule=band_rule(bands, scale),
        access=Access(allow_ungeoreferenced, max_pixels), shard=shard_of(shard),
    )  # fmt: skip
    with console_progress() as progress:
        found = estimate(find_scenes(scenes, ours=partial(is_ours, out=out)), model, out, options, progress)
        for line in found.failures:
            progress.say(f"error: {line}")
    if as_json:
        print_json(found.to_json())
    else:
        print_table("What predict would take", ["", ""], found.rows())
