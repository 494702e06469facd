"""`aerialseg info`: what a run, a model file, a scene or a set of tiles is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    thing: Annotated[
        Path, typer.Argument(help="A run, a model file, a scene, a folder of scenes, or tiles.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Say what a run, model, scene, tiles or masks are.

    How far the run is, what the model needs, what predict would make of the scene or made of it.

    Nothing is changed. Of a damaged thing all that can be read is told, and the exit code says what is wrong.

    \b
    Examples:
      aerialseg info runs/inria
      aerialseg info model.safetensors --json
      aerialseg info AerialImageDataset/train/images/austin1.tif
      aerialseg info tiles/inria
    """
    from aerialseg.cli.console import print_json, print_table
    from aerialseg.errors import one_line
    from aerialseg.geo.opening import refuse_remote
    from aerialseg.workflows.info import look_at

    refuse_remote(thing)
    summary = look_at(thing)
    if as_json:
        print_json(summary.to_json())
    else:
        print_table(f"{summary.kind} {one_line(thing)}", ["what", "found"], summary.rows())
    if summary.problems:
        raise summary.problems[0]
