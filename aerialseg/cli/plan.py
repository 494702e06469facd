"""`aerialseg plan`: what predicting would take, before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aerialseg.cli import options


def plan(
    scenes: Annotated[list[str], typer.Argument(help="Scenes, as predict takes them.", show_default=False)],
    model: options.Model,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Where predict would write; its disk is looked at.")
    ] = Path(),
    window: options.WindowSize = None,
    overlap: options.Overlap = None,
    tta: options.Tta = "none",
    gsd: options.Gsd = "auto",
    neighbours: options.Neighbours = "auto",
    batch: options.Batch = "auto",
    precision: options.Precision = "auto",
    device: options.AllDevices = "auto",
    compiled: options.Compiled = False,
    probability: options.Probability = False,
    disagreement: options.Disagreement = False,
    agreement: options.Agreement = False,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Write buildings.gpkg over all scenes too (with --probability).")
    ] = False,
    bands: options.Bands = None,
    scale: options.Scale = None,
    nodata: options.Nodata = None,
    alpha: options.Alpha = "auto",
    allow_ungeoreferenced: options.Unplaced = False,
    max_pixels: options.ScenePixels = 1e10,
    area: options.Area = None,
    area_where: options.AreaWhere = None,
    area_margin: options.AreaMargin = None,
    shard: options.ShardText = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimate as JSON.")] = False,
) -> None:
    """Say what predicting would take, before it starts.

    Windows are counted as predict would lay them; memory is the most it would need at once, disk what masks and
    measures would fill, and time comes from a short probe of the network on this machine.

    Nothing is written. Scenes that predict would refuse are named here, with the reason.

    \b
    Examples:
      aerialseg plan AerialImageDataset/test/images -m runs/unet -o out --tta d4
      aerialseg plan 'new/*.jp2' -m runs/town --polygons --json
    """
    from functools import partial

    from aerialseg.cli.console import console_progress, print_json, print_table
    from aerialseg.geo.inspection import Access
    from aerialseg.geo.scenes import find_scenes
    from aerialseg.prediction.checks import is_ours
    from aerialseg.prediction.estimate import estimate
    from aerialseg.prediction.options import PredictOptions

    chosen = PredictOptions(
        window=window, overlap=overlap, tta=tta, gsd_m=options.gsd_of(gsd), neighbours=neighbours == "auto",
        batch=options.batch_size(batch), precision=precision, device=device, compiled=compiled, probability=probability,
        disagreement=disagreement or agreement, polygons=polygons, rule=options.band_rule(bands, scale, nodata, alpha),
        access=Access(allow_ungeoreferenced, max_pixels), shard=options.shard_of(shard),
        area=options.area_of(area, area_where, area_margin),
    )  # fmt: skip
    with console_progress() as progress:
        found = estimate(find_scenes(scenes, ours=partial(is_ours, out=out)), model, out, chosen, progress)
        for line in found.failures:
            progress.say(f"error: {line}")
    print_json(found.to_json()) if as_json else print_table("What predict would take", ["", ""], found.rows())
