"""`aerialseg find-lr`: which learning rate suits a configuration and a set of tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aerialseg.cli.options import Assignments, Config, Device, TilesFolder


def find_lr(
    tiles: TilesFolder,
    config: Config = "inria",
    assignments: Assignments = None,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw loss by learning rate here.")] = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("-f", "--overwrite", help="Replace the picture if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print rates, losses and suggestion as JSON.")] = False,
) -> None:
    """Suggest a learning rate, from a hundred steps.

    They run at rates from 1e-6 to 1, up to where the loss blows up; the suggestion is for optimizer.lr.

    Nothing is kept but the picture. The suggestion is the rate at which the loss has come down half-way; it is a
    place to start from, good to a factor of three.

    \b
    Examples:
      aerialseg find-lr tiles/mine -c small --plot lr.png
      aerialseg find-lr tiles/mine -c small --set model.preset=upernet-swin-tiny --set data.batch=4
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.config import load_config

    chosen = load_config(config, assignments or [])

    from aerialseg.workflows.find_lr import claim_picture, draw_range_test, find_learning_rate

    if plot is not None:
        claim_picture(plot, tiles=tiles, overwrite=overwrite, config=Path(config))
    with console_progress() as progress:
        found = find_learning_rate(tiles, chosen, device, progress)
    if plot is not None:
        draw_range_test(plot, found, tiles=tiles, overwrite=overwrite)
    if as_json:
        print_json(found.to_json())
    else:
        end = "the loss blew up" if found.diverged else "the loss stayed calm"
        typer.echo(f"optimizer.lr = {found.suggestion:g}    # {end} at {found.rates[-1]:.2g}")
