"""`aerialseg predict`: whole scenes in, georeferenced building masks out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from aerialseg.cli.options import Agreement, Disagreement


def predict(
    scenes: Annotated[
        list[str], typer.Argument(help="Scenes: files, folders, quoted globs or an Inria root.", show_default=False)
    ],
    model: Annotated[
        Path, typer.Option("-m", "--model", help="A model file, or the folder of a training run.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for masks and report.", show_default=False)],
    window: Annotated[
        int | None,
        typer.Option(help="Height and width of the windows, in pixels.", show_default="the model's", metavar="PX"),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            help="Share of a window that its neighbour covers too, 0 to 0.75.", show_default="the model's: 0.25"
        ),
    ] = None,
    blend: Annotated[
        Literal["hann", "linear", "crop"], typer.Option(help="How overlapping windows fade into each other.")
    ] = "hann",
    tta: Annotated[
        Literal["none", "flips", "d4"], typer.Option(help="Average over 4 mirrored windows, or 8 also turned.")
    ] = "none",
    gsd: Annotated[
        str,
        typer.Option(help="Metres per pixel to run at; auto: the model's, where a scene differs by over 10 %; keep."),
    ] = "auto",
    neighbours: Annotated[
        Literal["auto", "off"],
        typer.Option(help="auto: scenes that touch see into each other, so that no seam shows."),
    ] = "auto",
    batch: Annotated[str, typer.Option(help="Windows that run together, or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, cuda:all or mps.")] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Translate the network first: pays on many scenes.")
    ] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Write probability rasters too: 0 to 254 for 0 to 1.")
    ] = False,
    disagreement: Disagreement = False,
    agreement: Agreement = False,
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
    shard: Annotated[
        str | None,
        typer.Option(help="Predict the I-th of N parts of the scenes; parts may share a folder.", metavar="I/N"),
    ] = None,
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
    from functools import partial

    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.cli.options import band_rule, batch_size, gsd_of, shard_of
    from aerialseg.geo.inspection import Access
    from aerialseg.geo.polygons.polygonize import PolygonOptions
    from aerialseg.geo.scenes import find_scenes
    from aerialseg.prediction.checks import is_ours
    from aerialseg.prediction.multi_gpu import predict_on_all_gpus
    from aerialseg.prediction.options import ALL_GPUS, PredictOptions
    from aerialseg.prediction.run import predict_scenes

    access = Access(allow_ungeoreferenced, max_pixels)
    chosen = PredictOptions(
        window=window, overlap=overlap, blend=blend, tta=tta, gsd_m=gsd_of(gsd),
        neighbours=neighbours == "auto", batch=batch_size(batch), precision=precision, device=device,
        compiled=compiled, probability=probability, disagreement=disagreement or agreement, polygons=polygons,
        shaping=PolygonOptions(min_area_m2, crs, simplify, regularise),
        rule=band_rule(bands, scale), access=access, shard=shard_of(shard), overwrite=overwrite, fail_fast=fail_fast,
    )  # fmt: skip
    with console_progress() as progress:
        work = find_scenes(scenes, ours=partial(is_ours, out=out)), model, out, chosen, progress
        report = predict_on_all_gpus(*work) if device == ALL_GPUS else predict_scenes(*work)
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo(report.line())
    report.raise_failures()
