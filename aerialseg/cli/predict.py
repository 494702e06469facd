"""`aerialseg predict`: whole scenes in, georeferenced building masks out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from aerialseg.cli import options


def predict(
    scenes: Annotated[
        list[str], typer.Argument(help="Scenes: files, folders, quoted globs or an Inria root.", show_default=False)
    ],
    model: options.Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for masks and report.", show_default=False)],
    window: options.WindowSize = None,
    overlap: options.Overlap = None,
    blend: Annotated[
        Literal["hann", "linear", "crop"], typer.Option(help="How overlapping windows fade into each other.")
    ] = "hann",
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
        bool,
        typer.Option("--polygons", help="Write buildings.gpkg over all scenes too (with --probability); shape it by:"),
    ] = False,
    min_area_m2: Annotated[float, typer.Option("--min-area-m2", help="Leave smaller buildings out of them.")] = 0.0,
    crs: Annotated[
        str | None, typer.Option(help="Reproject them to this CRS, as EPSG:25832.", show_default="each scene's own")
    ] = None,
    simplify: Annotated[
        float, typer.Option(metavar="METRES", help="Let their outlines leave the pixels' edges by up to this.")
    ] = 0.0,
    regularise: Annotated[bool, typer.Option("--regularise", help="Straighten their walls and corners.")] = False,
    shard: options.ShardText = None,
    overwrite: Annotated[
        bool, typer.Option("-f", "--overwrite", help="Predict again what is done; replace files of other origin.")
    ] = False,
    bands: options.Bands = None,
    scale: options.Scale = None,
    nodata: options.Nodata = None,
    alpha: options.Alpha = "auto",
    allow_ungeoreferenced: options.Unplaced = False,
    max_pixels: options.ScenePixels = 1e10,
    fail_fast: options.FailFast = False,
    as_json: options.ReportAsJson = False,
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
    from functools import partial

    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.geo.inspection import Access
    from aerialseg.geo.polygons.polygonize import PolygonOptions
    from aerialseg.geo.scenes import find_scenes
    from aerialseg.prediction.checks import is_ours
    from aerialseg.prediction.multi_gpu import predict_on_all_gpus
    from aerialseg.prediction.options import ALL_GPUS, PredictOptions
    from aerialseg.prediction.run import predict_scenes

    chosen = PredictOptions(
        window=window, overlap=overlap, blend=blend, tta=tta, gsd_m=options.gsd_of(gsd),
        neighbours=neighbours == "auto", batch=options.batch_size(batch), precision=precision, device=device,
        compiled=compiled, probability=probability, disagreement=disagreement or agreement, polygons=polygons,
        shaping=PolygonOptions(min_area_m2, crs, simplify, regularise),
        rule=options.band_rule(bands, scale, nodata, alpha), access=Access(allow_ungeoreferenced, max_pixels),
        shard=options.shard_of(shard), overwrite=overwrite, fail_fast=fail_fast,
    )  # fmt: skip
    with console_progress() as progress:
        work = find_scenes(scenes, ours=partial(is_ours, out=out)), model, out, chosen, progress
        report = predict_on_all_gpus(*work) if device == ALL_GPUS else predict_scenes(*work)
    print_json(report.to_json()) if as_json else typer.echo(report.line())
    report.raise_failures()
