"""What `aerialseg info` says of scenes and of sets of tiles; headers are read, and no pixels but a few blocks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.errors import AerialsegError, BadDataError
from aerialseg.geo.adjacency import find_groups
from aerialseg.geo.digest import side_files
from aerialseg.geo.inspection import inspect_scene
from aerialseg.geo.opening import open_raster
from aerialseg.geo.scenes import Scene, find_scenes
from aerialseg.geo.tiles.tileset import load_tileset, read_manifest
from aerialseg.workflows.facts import Account, Fact, spelt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rasterio.io import DatasetReader

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.inspection import Source
    from aerialseg.geo.tiles.tileset import TileRecord, TileSet

MOST_SIBLINGS = 1000
"""In a folder with more scenes neighbours are not looked for: every header would have to be read."""
NAMED = 3
"""Neighbours that are called by name."""


def describe_scene(path: Path) -> Account:
    """Say what a scene is and whether predict would take it as it is; raises what opening it raises."""
    from aerialseg.geo.geobox import GeoBox

    with open_raster(path) as dataset:
        facts = [Fact("file", str(path)), Fact("bytes", path.stat().st_size), *_pixels(dataset, path)]
        box = GeoBox.of(dataset)
    try:
        source = inspect_scene(path)
        verdict = f"takes it as it is, with a model of {len(source.bands)} bands"
    except AerialsegError as error:
        source, verdict = None, f"refuses it: {error}"
    facts += [
        *_place(box),
        Fact("side_files", sorted(file.name for file in side_files(path))),
        *([] if source is None else [_neighbours(path)]),
        Fact("warnings", [] if source is None else list(source.warnings)),
        Fact("predict", verdict),
    ]
    return Account("scene", tuple(facts))


def describe_scenes(path: Path) -> Account:
    """Say what the scenes of a folder or mosaic have in common; raises NoInputError without any."""
    scenes = find_scenes([path])
    sources, problems = _inspected(scenes)
    boxes = [source.box for source in sources]
    places = Counter("none" if box.crs is None else box.crs.to_string() for box in boxes)
    sizes = sorted({float(f"{box.gsd_m:.3g}") for box in boxes if box.gsd_m is not None})
    cities = Counter(scene.city for scene in scenes if scene.city is not None)
    return Account(
        "scenes",
        (
            Fact("folder", str(path)),
            Fact("scenes", len(scenes)),
            Fact("with_masks", sum(scene.mask is not None for scene in scenes)),
            Fact("mpx", round(sum(box.height * box.width for box in boxes) / 1e6, 3)),
            Fact("gsd_m", sizes, f"{spelt(sizes)} m" if sizes else "unknown"),
            Fact("crs", dict(places)),
            Fact("bands", dict(Counter(f"{len(source.bands)} x {source.dtype}" for source in sources))),
            Fact("cities", dict(cities)),
            Fact("rasters", len(find_groups(sources)), f"{len(find_groups(sources))}, touching scenes being one"),
            Fact("refused_by_predict", len(problems)),
            Fact("refusals", [str(problem) for problem in problems[:10]]),
        ),
    )


def describe_tiles(folder: Path) -> Account:
    """Say what a set of tiles holds; raises what `load_tileset` raises when not even its manifest can be read."""
    try:
        tiles = load_tileset(folder)
    except BadDataError as error:
        body = read_manifest(folder)
        if body is None:
            raise
        facts = Fact("folder", str(folder)), Fact("tiles", len(body["tiles"])), Fact("size", body["size"])
        return Account("tiles", facts, (error,))
    body = read_manifest(folder) or {}
    edited = {line["name"]: line["split"] for line in body["tiles"]} != {tile.name: tile.split for tile in tiles.tiles}
    exact = {} if edited else body.get("classes", {})
    return Account(
        "tiles",
        (
            Fact("folder", str(folder)),
            Fact("digest", tiles.digest),
            Fact("size", tiles.size, f"{tiles.size} px"),
            Fact("overlap", tiles.overlap),
            Fact("gsd_m", tiles.gsd_m, "unknown" if tiles.gsd_m is None else f"{tiles.gsd_m:.4g} m"),
            Fact("bands", tiles.bands, "" if tiles.bands else f"all but alpha: {len(tiles.mean)}"),
            Fact("scale", tiles.scale, "" if tiles.scale else "8-bit scenes as they are"),
            Fact("mean", tiles.mean),
            Fact("std", tiles.std),
            *(Fact(split, _side(tiles.of_split(split), tiles.gsd_m, exact.get(split))) for split in ("train", "val")),
            Fact("cities", _cities(tiles)),
            Fact("left_out", {**body.get("left_out", {}), "by hand": len(body.get("tiles", ())) - len(tiles.tiles)}),
            Fact("failed_scenes", body.get("failed", {})),
        ),
    )


def _pixels(dataset: DatasetReader, path: Path) -> list[Fact]:
    height, width = dataset.height, dataset.width
    rows, cols = dataset.block_shapes[0]
    colours = [colour.name for colour in dataset.colorinterp]
    return [
        Fact("format", dataset.driver),
        Fact("size", [height, width], f"{height:,} x {width:,} px, {height * width / 1e6:,.1f} Mpx"),
        Fact("bands", colours, f"{len(colours)}: {', '.join(colours)}"),
        Fact("type", sorted(set(map(str, dataset.dtypes)))),
        Fact("blocks", [rows, cols], f"{rows} x {cols} px, {dataset.profile.get('compress', 'not compressed')}"),
        Fact("nodata", dataset.nodata),
        Fact("mask", _mask_kind(dataset, path)),
    ]


def _mask_kind(dataset: DatasetReader, path: Path) -> str:
    """Say what marks pixels as not valid."""
    from rasterio.enums import MaskFlags

    flags = dataset.mask_flag_enums[0]
    if MaskFlags.all_valid in flags:
        return "none: every pixel is valid"
    if MaskFlags.alpha in flags:
        return "alpha band"
    if MaskFlags.nodata in flags:
        return "nodata value"
    return "a .msk file beside it" if Path(f"{path}.msk").exists() else "a mask inside the file"


def _place(box: GeoBox) -> list[Fact]:
    """Say where the pixels are and how large, in metres and in the CRS's own unit."""
    t = box.transform
    if box.crs is None or not box.georeferenced:
        return [Fact("crs", None if box.crs is None else box.crs.to_string()), Fact("gsd_m", None, "unknown")]
    unit = box.crs.units_factor[0]
    pixel = f"{t.a:.6g} x {t.e:.6g} {unit}" + (", rotated" if t.b or t.d else "")
    gsd = "unknown" if box.gsd_m is None else f"{box.gsd_m:.4g} m"
    return [
        Fact("crs", box.crs.to_string()),
        Fact("gsd_m", box.gsd_m, f"{gsd} (pixel {pixel})"),
        Fact("transform", list(t)[:6], ", ".join(f"{value:.10g}" for value in list(t)[:6])),
        Fact("bounds", list(box.bounds), ", ".join(f"{value:.10g}" for value in box.bounds)),
    ]


def _neighbours(path: Path) -> Fact:
    """Name the scenes of the same folder that predict would run with this one as one raster."""
    folder = path.absolute().parent
    try:
        siblings = [scene for scene in find_scenes([folder]) if scene.image.parent == folder]
    except AerialsegError as error:  # two files of one name, for example: predict would refuse the folder as a whole
        return Fact("neighbours", None, f"not looked for: {error}")
    if len(siblings) > MOST_SIBLINGS:
        return Fact("neighbours", None, f"not looked for among {len(siblings):,} scenes")
    for group in find_groups(_inspected(siblings)[0]):
        paths = [member.source.path for member in group.members]
        if path.absolute() in paths and len(paths) > 1:
            names = [other.name for other in paths if other != path.absolute()]
            named = spelt(names if len(names) <= NAMED else [*names[:NAMED], "..."])
            return Fact("neighbours", names, f"one raster with {len(names)} more: {named}"[:200])
    return Fact("neighbours", [])


def _inspected(scenes: Sequence[Scene]) -> tuple[list[Source], list[AerialsegError]]:
    sources, problems = [], []
    for scene in scenes:
        try:
            sources.append(inspect_scene(scene.image))
        except AerialsegError as error:
            problems.append(error)
    return sources, problems


def _side(tiles: Sequence[TileRecord], gsd_m: float | None, exact: dict[str, int] | None) -> dict[str, Any]:
    """Return the counts of one side of the split, over its tiles' cores.

    `exact` are the classes' pixels as they were counted; where the split was edited since, the tiles' shares tell.
    """
    areas = [tile.core[2] * tile.core[3] * tile.valid for tile in tiles]
    labelled, building = sum(areas), sum(area * tile.building for area, tile in zip(areas, tiles, strict=True))
    if exact is not None:
        labelled, building = exact["background"] + exact["building"], exact["building"]
    area = {} if gsd_m is None else {"labelled_km2": round(labelled * gsd_m**2 / 1e6, 6)}
    return {
        "tiles": len(tiles),
        "scenes": len({tile.scene for tile in tiles}),
        "unlabelled_tiles": sum(tile.valid == 0 for tile in tiles),
        "labelled_mpx": round(labelled / 1e6, 3),
        **area,
        "building_fraction": building / labelled if labelled else None,
    }


def _cities(tiles: TileSet) -> dict[str, int]:
    """Return city -> tiles, of scenes whose names say one."""
    named = (Scene(tile.scene, Path(tile.scene)).city for tile in tiles.tiles)
    return dict(sorted(Counter(city for city in named if city is not None).items()))
