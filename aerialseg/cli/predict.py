"""`aerialseg predict`: whole scenes in, georeferenced building masks out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aerialseg.cli import options

if TYPE_CHECKING:
    from aerialseg.geo.scenes import Scene
    from aerialseg.progress import Progress


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
    min_area_m2: Annotated[
        float | None,
        typer.Option(
            "--min-area-m2",
            help="Leave smaller buildings out of them; 0 keeps all.",
            show_default="the larger of 4 and nine pixels, holes alike",
        ),
    ] = None,
    crs: Annotated[
        str | None, typer.Option(help="Reproject them to this CRS, as EPSG:25832.", show_default="each scene's own")
    ] = None,
    simplify: Annotated[
        float, typer.Option(metavar="METRES", help="Let their outlines leave the pixels' edges by up to this.")
    ] = 0.0,
    regularise: Annotated[bool, typer.Option("--regularise", help="Straighten their walls and corners.")] = False,
    date: options.Dates = None,
    area: options.Area = None,
    area_where: options.AreaWhere = None,
    area_margin: options.AreaMargin = None,
    area_keep: options.AreaKeep = None,
    split: Annotated[
        Literal["train", "val"] | None,
        typer.Option(help="Only the scenes that trained the model, or that validated it (-m RUN).", show_default="all"),
    ] = None,
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
    """Map buildings in whole scenes of any size.

    There is one mask per scene, on the scene's own grid.

    A mask is a cloud-optimised GeoTIFF: 0 background, 1 building, 255 nodata; QGIS shows its two classes by name. The
    same command again goes on where it was stopped: what was made from the same bytes and options is left as it is.

    \b
    Examples:
      aerialseg predict AerialImageDataset/test/images -m runs/unet -o out
      aerialseg predict AerialImageDataset -m runs/unet --split val -o out-val
      aerialseg predict scene.tif -m model.safetensors -o out --probability --overlap 0.5
      aerialseg predict 'scenes/*.jp2' -m model.safetensors -o out --bands 4,1,2 --scale 0:2047
    """
    from functools import partial

    from aerialseg.cli.console import console_progress, print_json, say_loading, say_next

    say_loading()
    from aerialseg.geo.dates import DateOptions
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
        shaping=PolygonOptions(min_area_m2, crs, simplify, regularise), dates=DateOptions.of(date or []),
        rule=options.band_rule(bands, scale, nodata, alpha), access=Access(allow_ungeoreferenced, max_pixels),
        shard=options.shard_of(shard), overwrite=overwrite, fail_fast=fail_fast,
        area=options.area_of(area, area_where, area_margin, area_keep),
    )  # fmt: skip
    found = find_scenes(scenes, ours=partial(is_ours, out=out))
    with console_progress() as progress:
        if split is not None:
            found = _of_split(found, split, model, progress)
        work = found, model, out, chosen, progress
        report = predict_on_all_gpus(*work) if device == ALL_GPUS else predict_scenes(*work)
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo(report.line())
        if report.of("done", "skipped") and shard is None:
            say_next("preview", out)
    report.raise_failures()


def _of_split(scenes: tuple[Scene, ...], split: str, model: Path, progress: Progress) -> tuple[Scene, ...]:
    """Return the scenes that stand wholly on one side of the split that a run was trained by."""
    from aerialseg.errors import NoInputError, UsageError, counted, one_line
    from aerialseg.geo.tiles.tileset import scenes_of_split
    from aerialseg.training.run_folder import read_run

    tiles = read_run(model).get("tiles", {}).get("folder")
    if tiles is None:
        raise UsageError(f"--split {split}: {one_line(model)} is no run whose run.json names its tiles; give -m RUN")
    whole, cut = scenes_of_split(Path(tiles), split)
    chosen = tuple(scene for scene in scenes if scene.name in whole)
    divided = sum(scene.name in cut for scene in scenes)
    if divided:
        progress.say(f"{counted(divided, 'scene')} left out: cut by the split of {one_line(tiles)}")
    if not chosen:
        raise NoInputError(
            f"--split {split}: none of {counted(len(scenes), 'scene')} is wholly that in {one_line(tiles)}"
        )
    return chosen
