"""`aerialseg predict`: whole scenes in, georeferenced building masks out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aerialseg.geo.raster import BandRule


def predict(
    scenes: Annotated[
        list[str], typer.Argument(help="Scenes: files, folders, quoted globs or an Inria root.", show_default=False)
    ],
    model: Annotated[
        Path, typer.Option("-m", "--model", help="A model file, or the folder of a training run.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for masks and report.", show_default=False)],
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Share of a window that its neighbour covers too, 0 to 0.75.", show_default="the model's: 0.25"
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Windows that run together, or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    probability: Annotated[
        bool, typer.Option("--probability", help="Write probability rasters too: 0 to 254, 255 is nodata.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("-f", "--overwrite", help="Predict again what is done; replace files of other origin.")
    ] = False,
    bands: Annotated[
        str | None, typer.Option(help="Bands to use, in the model's order, as 1,2,3.", show_default="the model's")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Values that become 0 and 255, as 0:2047.", show_default="the model's")
    ] = None,
    allow_ungeoreferenced: Annotated[
        bool, typer.Option("--allow-ungeoreferenced", help="Take scenes that have no place on the ground.")
    ] = False,
    max_pixels: Annotated[
        float, typer.Option(help="Refuse scenes with more pixels than this.", show_default="1e10")
    ] = 1e10,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first scene that fails.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Map buildings in whole scenes of any size: one mask per scene, on the scene's own grid.

    A mask is a cloud-optimised GeoTIFF: 0 background, 1 building, 255 nodata; QGIS shows its two classes by name. The
    same command again goes on where it was stopped: what was made from the same bytes and options is left as it is.

    \b
    Examples:
      aerialseg predict AerialImageDataset/test/images -m runs/unet -o out
      aerialseg predict scene.tif -m model.safetensors -o out --probability --overlap 0.5
      aerialseg predict 'scenes/*.jp2' -m model.safetensors -o out --bands 4,1,2 --scale 0:2047
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.geo.raster import Access
    from aerialseg.geo.scenes import find_scenes
    from aerialseg.prediction.job import PredictOptions, predict_scenes

    access = Access(allow_ungeoreferenced, max_pixels)
    chosen = PredictOptions(
        overlap, _batch(batch), precision, device, probability, _rule(bands, scale), access, overwrite, fail_fast
    )
    with console_progress() as progress:
        report = predict_scenes(find_scenes(scenes), model, out, chosen, progress)
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo(report.line())
    report.raise_failures()


def _batch(given: str) -> int | None:
    if given == "auto":
        return None
    from aerialseg.errors import UsageError, one_line

    if not given.isdecimal():
        raise UsageError(f"--batch {one_line(given)}: give a number of windows, or auto")
    return int(given)


def _rule(bands: str | None, scale: str | None) -> BandRule:
    from aerialseg.errors import UsageError, one_line
    from aerialseg.geo.raster import BandRule

    try:
        chosen = None if bands is None else tuple(int(band) for band in bands.split(","))
    except ValueError as error:
        raise UsageError(f"--bands {one_line(bands or '')}: give band numbers, as 1,2,3") from error
    if scale is None:
        return BandRule(chosen)
    try:
        low, high = (float(value) for value in scale.split(":"))
    except ValueError as error:
        raise UsageError(f"--scale {one_line(scale)}: give two numbers, as 0:2047") from error
    return BandRule(chosen, (low, high))
