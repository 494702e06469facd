"""`aerialseg polygonize`: building masks in, one file of building polygons out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aerialseg.cli.options import Area, AreaKeep, AreaWhere, Dates, ReportAsJson, area_of


def polygonize(
    masks: Annotated[
        list[str], typer.Argument(help="Building masks: files, folders or quoted globs.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="The file to write: .gpkg, .fgb, .geojson or .parquet.", show_default=False),
    ],
    min_area_m2: Annotated[float, typer.Option("--min-area-m2", help="Leave out smaller buildings.")] = 0.0,
    crs: Annotated[
        str | None,
        typer.Option(help="Reproject all to this CRS, as EPSG:25832.", show_default="each mask's own; GeoJSON WGS 84"),
    ] = None,
    simplify: Annotated[
        float, typer.Option(metavar="METRES", help="Let outlines leave the pixels' edges by up to this.")
    ] = 0.0,
    regularise: Annotated[
        bool, typer.Option("--regularise", help="Straighten walls and corners (buildingregulariser).")
    ] = False,
    probability: Annotated[
        Path | None,
        typer.Option(help="Folder of probabilities, as predict --probability writes it.", show_default="none"),
    ] = None,
    date: Dates = None,
    area: Area = None,
    area_where: AreaWhere = None,
    area_keep: AreaKeep = None,
    overwrite: Annotated[
        bool, typer.Option("-f", "--overwrite", help="Write again what is done; replace a file of other origin.")
    ] = False,
    as_json: ReportAsJson = False,
) -> None:
    """Draw building polygons from masks.

    There is one file over all masks, and each building is whole across masks that touch.

    In a mask 1 is building, or 255 where that is not declared nodata. Polygons carry an id, their scene, area in square
    metres and mean probability. The same command on the same masks again does nothing.

    \b
    Examples:
      aerialseg polygonize out -o out/buildings.gpkg --probability out/probability
      aerialseg polygonize 'gt/austin*.tif' -o austin.geojson --min-area-m2 4
      aerialseg polygonize out -o buildings.parquet --crs EPSG:4326 --regularise
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.geo.dates import DateOptions
    from aerialseg.geo.polygons.polygonize import PolygonOptions, polygonize_masks

    ground = area_of(area, area_where, keep=area_keep)
    options = PolygonOptions(min_area_m2, crs, simplify, regularise, DateOptions.of(date or []), ground)
    with console_progress() as progress:
        report = polygonize_masks(masks, out, options, progress, probability=probability, overwrite=overwrite)
    print_json(report.to_json()) if as_json else typer.echo(report.line())
