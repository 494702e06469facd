"""`aerialseg sample`: draw aerial scenes with masks to try the other commands on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aerialseg.cli.options import PathsAsJson


def sample(
    out: Annotated[
        Path, typer.Argument(help="Folder to draw into; scenes go to OUT/train/images, masks to OUT/train/gt.")
    ],
    scenes: Annotated[int, typer.Option(help="How many scenes; two cities take turns.", min=1, max=72)] = 4,
    size: Annotated[int, typer.Option(help="Pixels along each side, at 0.3 m.", min=64, max=5000)] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other cities.", min=0)] = 0,
    overwrite: Annotated[
        bool,
        typer.Option("-f", "--overwrite", help="Replace files of others, and scenes drawn with another size or seed."),
    ] = False,
    as_json: PathsAsJson = False,
) -> None:
    """Draw made-up aerial scenes and their building masks.

    They are georeferenced and laid out like the Inria dataset.

    The pictures are made up but hold what makes real ones hard: shadows, trees over roofs, car parks, bare ground. The
    same options give the same bytes on every machine.

    \b
    Examples:
      aerialseg sample scenes --scenes 8
      aerialseg tile scenes -o tiles/sample --split inria
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.sample import write_sample

    with console_progress() as progress:
        paths = write_sample(out, scenes, size, seed, overwrite=overwrite, progress=progress)
    if as_json:
        print_json({"images": paths})
        return
    for path in paths:
        typer.echo(path)
