"""`aerialseg tile`: scenes and their labels become tiles to train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli.options import Alpha, BuildingColour, FailFast, Nodata, ReportAsJson, Unplaced

if TYPE_CHECKING:
    from aerialseg.geo.tiles.build import TilingReport

FEW_TILES = 300
"""So many or fewer are trained on with the configuration that is made for them."""


def tile(
    scenes: Annotated[list[str], typer.Argument(help="Scenes: files, folders, quoted globs, or an Inria root.")],
    masks: Annotated[
        list[str] | None,
        typer.Option(
            "--masks",
            help="Masks (files, folder, quoted glob) or polygons (.gpkg .geojson .fgb .shp .parquet ...); may be "
            "repeated. Not needed for an Inria root.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The set's folder.", show_default="tiles/NAME, after the scenes' folder"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Side of a tile in pixels.", show_default="1024, or the longest side of the scenes"),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Share of a tile that its neighbour sees too.")] = 0.0,
    split: Annotated[
        str,
        typer.Option(
            help="Which scenes validate: auto, inria (numbers 1-5 of each city), val=austin1-5,tyrol-w1, a share such "
            "as 0.2, or 0 for none. blocks=N cuts the scenes into blocks of N x N tiles, with a tile of gap."
        ),
    ] = "auto",
    val_area: Annotated[
        Path | None, typer.Option(help="Polygons: the tiles in them validate, with a tile of gap.")
    ] = None,
    bands: Annotated[str | None, typer.Option(help="Bands to take, as 1,2,3.", show_default="all but alpha")] = None,
    scale: Annotated[
        str | None, typer.Option(help="Values that become 0 and 255, as 0:2047, for scenes that are not 8-bit.")
    ] = None,
    nodata: Nodata = None,
    alpha: Alpha = "auto",
    gsd: Annotated[float | None, typer.Option(help="Resample all scenes to this many metres per pixel.")] = None,
    labelled_area: Annotated[
        Path | None, typer.Option(help="Polygons: ground outside them is unlabelled and ignored.")
    ] = None,
    keep_empty: Annotated[
        float, typer.Option(help="Share of the training tiles without a building to keep; validation keeps all.")
    ] = 1.0,
    keep_unlabelled: Annotated[
        bool,
        typer.Option(
            "--keep-unlabelled", help="Take scenes without a mask and keep tiles without a label, for train --teacher."
        ),
    ] = False,
    mask_pattern: Annotated[
        str | None,
        typer.Option(help="How a mask's name is made from the scene's, as '{stem}_label.tif' or '_sat:_mask'."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Which polygons are buildings, in SQLite's SQL, as \"kind = 'house'\".")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Which layer of vector files, where there are several; or FILE|layername=NAME.")
    ] = None,
    building_values: Annotated[
        str | None, typer.Option(help="Values of the masks that mean building, as 1,6; others are background.")
    ] = None,
    building_colour: BuildingColour = None,
    ignore_values: Annotated[
        str | None, typer.Option(help="Values of the masks that mean unlabelled ground, as 255.")
    ] = None,
    mask_threshold: Annotated[
        int | None, typer.Option(help="For anti-aliased masks: this value and above is building, as 128.")
    ] = None,
    allow_ungeoreferenced: Unplaced = False,
    max_pixels: Annotated[float, typer.Option(help="Refuse scenes with more pixels.", show_default="1e10")] = 1e10,
    threads: Annotated[int | None, typer.Option(help="Threads.", show_default="processors + 2, 16 at most")] = None,
    index_only: Annotated[
        bool,
        typer.Option("--index-only", help="Write no pixels: training reads them from the scenes, which have to stay."),
    ] = False,
    fail_fast: FailFast = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "-f", "--overwrite", help="Make all tiles anew, forget edits in index.gpkg, use a foreign folder."
        ),
    ] = False,
    as_json: ReportAsJson = False,
) -> None:
    """Cut scenes and their labels into tiles for training.

    Writes images/, masks/ (0 background, 1 building, 255 unlabelled), index.gpkg and tileset.json. The split is kept in
    index.gpkg: open it in QGIS, edit the column `split`, and training obeys. The same command again goes on where it
    was stopped, and does nothing when nothing has changed.

    \b
    Examples:
      aerialseg tile AerialImageDataset -o tiles/inria
      aerialseg tile scenes/ --masks masks/ --mask-pattern '{stem}_label.tif' --size 512 -o tiles/town
      aerialseg tile mosaic.tif --masks buildings.gpkg --split blocks=4 --labelled-area surveyed.gpkg -o tiles/mosaic
      aerialseg tile nir/ --masks masks/ --bands 4,1,2 --scale 0:2047 --gsd 0.5 -o tiles/nir
    """
    from aerialseg.cli.console import console_progress, print_json, say_next
    from aerialseg.cli.options import band_rule, mask_rule
    from aerialseg.errors import BadDataError, SomeScenesFailed, one_line
    from aerialseg.geo.inspection import Access, find_faults
    from aerialseg.geo.labels import find_labels
    from aerialseg.geo.scenes import case_note, find_scenes
    from aerialseg.geo.tiles.build import tile_scenes
    from aerialseg.geo.tiles.plan import TilingOptions

    pixels = band_rule(bands, scale, nodata, alpha)
    rule = mask_rule(building_values, ignore_values, mask_threshold, building_colour)
    given, access = find_scenes(scenes), Access(allow_ungeoreferenced, max_pixels)
    try:
        found, vectors = find_labels(given, masks or (), mask_pattern, layer=layer, partly=keep_unlabelled)
    except BadDataError:  # what else is wrong with the scenes is known as soon, and may be all that is wrong
        faults = find_faults([scene.image for scene in given], pixels, access)
        if len(faults) == len(given) == 1:
            raise faults[0] from None
        with console_progress() as progress:
            for fault in faults:
                progress.say(f"error: {fault}")
        raise
    options = TilingOptions(
        size, overlap, split, val_area, pixels, gsd, rule, vectors, where,
        labelled_area, keep_empty, access, threads, overwrite, fail_fast,
        index_only, keep_unlabelled,
    )  # fmt: skip
    with console_progress() as progress:
        if (note := case_note(found, mask_pattern)) is not None:
            progress.say(note)
        report = tile_scenes(found, out or _default_folder(scenes[0]), options, progress)
        progress.say(report.summary())
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
        config = ("-c", "small") if report.tiles["train"] <= FEW_TILES else ()
        say_next("train", report.folder, *config, "-o", Path("runs", report.folder.name))
    if report.failures:
        raise SomeScenesFailed(
            f"{len(report.failures)} of {len(found)} scenes failed; {one_line(report.folder)} holds the others"
        )


def _default_folder(scene: str) -> Path:
    """Return tiles/NAME, NAME being the folder that is given, or that holds the file that is given."""
    from aerialseg.files import is_folder, resolved

    path = resolved(Path(scene))
    return Path("tiles") / (path.name if is_folder(path) else path.parent.name)


def _print(report: TilingReport) -> None:
    from math import isnan

    from aerialseg.cli.console import print_table
    from aerialseg.errors import one_line

    shares = {split: "-" if isnan(share) else f"{share:.1%}" for split, share in report.building.items()}
    rows = [[split, str(report.scenes[split]), str(tiles), shares[split]] for split, tiles in report.tiles.items()]
    rows += [[f"left out: {reason}", "", str(count), ""] for reason, count in report.left_out.items() if count]
    print_table(one_line(report.folder), ["split", "scenes", "tiles", "building"], rows)
