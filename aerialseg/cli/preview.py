"""`aerialseg preview`: pictures of what predict found, to look through without a GIS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aerialseg.cli.options import PathsAsJson


def preview(
    predicted: Annotated[Path, typer.Argument(help="A folder that predict wrote.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The folder for pictures.", show_default="beside it, NAME-preview"),
    ] = None,
    size: Annotated[int, typer.Option(help="The longer side of a scene, in pixels.", min=64, max=8192)] = 1024,
    overwrite: Annotated[bool, typer.Option("-f", "--overwrite", help="Replace pictures of other origin.")] = False,
    as_json: PathsAsJson = False,
) -> None:
    """Draw what predict found, a picture of each scene.

    Each is a PNG of the scene with its mask's outline and probability; all are on one contact sheet, too, whose
    path is printed.

    \b
    Examples:
      aerialseg preview out
      aerialseg preview out -o pictures --size 2048
    """
    from aerialseg.cli.console import console_progress, print_json, say_loading

    say_loading()
    from aerialseg.files import resolved
    from aerialseg.prediction.preview import write_previews

    # Beside it, not in it: evaluate and polygonize take every raster in the folder for a mask.
    whole = resolved(predicted)
    target = out or whole.with_name(f"{whole.name}-preview")
    with console_progress() as progress:
        *pictures, sheet = write_previews(predicted, target, size=size, overwrite=overwrite, progress=progress)
    print_json({"sheet": sheet, "pictures": pictures}) if as_json else typer.echo(sheet)
