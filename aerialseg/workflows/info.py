"""Says what a path is: a training run, a model file, a scene or a folder of them, a set of tiles; nothing is changed.

A `Summary` holds facts with a name, a value for programs and words for people, and what is wrong: what can be read of a
damaged thing is told all the same. Of rasters headers are read, and no pixels but a few blocks.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from aerialseg.errors import AerialsegError, BadDataError, ModelError, NoInputError, folded, one_line
from aerialseg.files import exists, is_folder, sha256_of
from aerialseg.geo.adjacency import find_groups
from aerialseg.geo.digest import side_files
from aerialseg.geo.inspection import inspect_scene
from aerialseg.geo.opening import open_raster, raster_errors
from aerialseg.geo.outputs import kind_of
from aerialseg.geo.scenes import SUFFIXES, Scene, find_scenes
from aerialseg.geo.tiles.tileset import INDEX, MANIFEST, load_tileset, read_tileset
from aerialseg.geo.validity import tagged_alpha
from aerialseg.models.package import FILE_NAME, KEY, find_model, read_card
from aerialseg.prediction.checks import REPORT
from aerialseg.training.history import CONFIG, LAST, PREVIOUS, RUN
from aerialseg.values import from_values, parse_json, read_json, to_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rasterio.io import DatasetReader

    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.inspection import Source
    from aerialseg.geo.tiles.tileset import TileRecord

NOT_LEARNED = re.compile(r"(mean|std|.*\.(running_mean|running_var|num_batches_tracked))")
"""Tensors of a model file that training does not change by gradients."""
MOST_SIBLINGS = 1000
"""In a folder with more scenes neighbours are not looked for: every header would have to be read."""
SAMPLES, SAMPLE_PX = 4, 128
"""A side: 16 windows of a scene tell which values it has."""
NAMED = 3
"""Neighbours that are called by name."""


def look_at(path: Path) -> Summary:
    """Return what is known of `path`.

    Raises NoInputError when nothing of ours and no scene is there, and what opening it raises when nothing can be said.
    """
    if not is_folder(path):
        if path.suffix.lower() in SUFFIXES:
            return describe_scene(path)
        if not exists(path):
            raise NoInputError(f"{one_line(path)}: no such file or folder; give a run, a model, tiles, or scenes")
        return describe_scenes(path) if path.suffix.lower() == ".vrt" else describe_model(path)
    if any(exists(path / name) for name in (LAST, PREVIOUS, CONFIG, RUN)):
        return describe_run(path)
    if exists(path / FILE_NAME):
        return describe_model(path)
    if exists(path / MANIFEST) or exists(path / INDEX):
        return describe_tiles(path)
    if exists(path / REPORT):
        return describe_predictions(path)
    try:
        return describe_scenes(path)
    except NoInputError as error:
        raise NoInputError(f"{one_line(path)}: holds no run, no model, no tiles and no scenes") from error


def describe_model(path: Path) -> Summary:
    """Say what a model file holds and what it was trained as; raises as `read_card` does."""
    from safetensors import safe_open

    card, file = read_card(path), find_model(path)
    made = dict(card.training)
    config = made.pop("config", {})
    with safe_open(file, "numpy") as content:  # no tensor is read
        digest = parse_json(content.metadata()[KEY])["digest"]
        shapes = [content.get_slice(name).get_shape() for name in content.keys() if not NOT_LEARNED.fullmatch(name)]  # noqa: SIM118
    words = {
        "gsd_m": "unknown" if card.gsd_m is None else f"{card.gsd_m:.4g} m",
        "band_indexes": "" if card.band_indexes else "all but alpha",
        "scale": "" if card.scale else "8-bit scenes as they are",
        "tile_size": f"{card.tile_size} px",
        "licence": card.licence or "not recorded",
    }
    known = {name: value for name, value in to_values(card).items() if name != "training"}
    facts = (
        Fact("file", str(file)),
        Fact("bytes", file.stat().st_size),
        Fact("sha256", sha256_of(file)),
        Fact("digest", digest),
        Fact("parameters", sum(map(math.prod, shapes))),
        *(Fact(name, value, words.get(name, "")) for name, value in known.items()),
        Fact("made_by", made),
        Fact("config", config),
    )
    return Summary("model", facts)


def describe_run(run: Path) -> Summary:
    """Say what a run trains, on what, how far it is, and what it was made with."""
    from aerialseg.config import load_config
    from aerialseg.training.run_folder import read_run

    problems: list[AerialsegError] = []
    known = read_run(run)
    starts = known.get("starts", [])
    config = _tried(lambda: load_config(run / CONFIG).model_dump(exclude_none=True), problems)
    card = _tried(lambda: read_card(run), problems) if exists(run / FILE_NAME) else None
    last = dict(starts[-1]) if starts else {}
    command = last.pop("command", [])
    made = last.pop("versions", card.training.get("versions", {}) if card else {})
    tiles = {**(card.training.get("tiles", {}) if card else {}), **known.get("tiles", {})}
    facts = (
        Fact("folder", str(run)),
        *_progress(run, problems),
        Fact("model", None if card is None else str(run / FILE_NAME), "" if card else "none saved yet"),
        *([] if card is None else [Fact("network", card.preset), Fact("scores", card.scores)]),
        *([] if card is None else [Fact(name, card.training.get(name)) for name in ("started_from", "teacher")]),
        Fact("tiles", tiles),
        Fact("starts", len(starts)),
        Fact("begun", starts[0].get("time") if starts else None),
        Fact("command", command, shlex.join(command) or "-"),
        Fact("last_start", last),
        Fact("versions", made),
        Fact("config", config or {}),
    )
    return Summary("run", facts, tuple(problems))


def _progress(run: Path, problems: list[AerialsegError]) -> list[Fact]:
    """Say how far the checkpoint is."""
    from aerialseg.training.state import load_checkpoint

    said: list[str] = []
    checkpoint = _tried(lambda: load_checkpoint(run, said.append), problems)
    problems += [ModelError(line) for line in said]
    if checkpoint is None:
        return [Fact("state", "no checkpoint", "no checkpoint to go on from")]
    state, epochs = checkpoint["standing"], checkpoint["config"]["schedule"]["epochs"]
    done = state["finished"]
    return [
        Fact("state", "finished" if done else "unfinished", "finished" if done else "goes on with train --resume"),
        Fact("epochs", state["epoch"], f"{state['epoch']} of {epochs}"),
        Fact("steps", state["taken"]),
        Fact("best_iou", state["best_iou"]),
        Fact("best_epoch", state["best_epoch"] or None),
        Fact("threshold", state["threshold"]),
    ]


def _tried(read: Callable[[], Any], problems: list[AerialsegError]) -> Any:
    """Return what `read` returns; None, with the reason among the problems, when it cannot."""
    try:
        return read()
    except AerialsegError as error:
        problems.append(error)
        return None


def describe_predictions(folder: Path) -> Summary:
    """Say what predict wrote into a folder, by its report; raises BadDataError when that cannot be read."""
    path = folder / REPORT
    try:
        known = from_values(dict[str, Any], read_json(path))
        totals, scenes = from_values(dict[str, Any], known["totals"]), from_values(dict[str, Any], known["scenes"])
        command = str(known["command"])
    except (OSError, ValueError, KeyError) as error:
        raise BadDataError(f"{one_line(path)}: cannot be read; is the folder predict's? Run predict again") from error
    failed = [name for name, scene in scenes.items() if scene.get("status") == "failed"]
    return Summary(
        "predictions",
        (
            Fact("folder", str(folder)),
            Fact("made_by", command, f"aerialseg {command}"),
            Fact("scenes", len(scenes)),
            *(Fact(name.replace(" ", "_"), totals.get(name)) for name in ("done", "skipped", "failed", "not started")),
            Fact("failed_scenes", failed),
            Fact("mpx", totals.get("mpx")),
            Fact("model", known.get("model", {})),
            Fact("settings", known.get("settings", {})),
            Fact("products", known.get("products", {})),
        ),
    )


def describe_scene(path: Path) -> Summary:
    """Say what a scene is and whether predict would take it as it is; raises what opening it raises."""
    from aerialseg.geo.geobox import GeoBox

    with open_raster(path) as dataset:
        facts = [Fact("file", str(path)), Fact("bytes", path.stat().st_size), *_pixels(dataset, path)]
        facts += _proposed_scale(dataset, path)
        box = GeoBox.of(dataset)
    ours = kind_of(path)
    if ours is not None:
        what = {
            "mask": "a mask that predict wrote: 0 background, 1 building",
            "measure": "a measure of predict's, 0 to 1",
        }
        return Summary(ours, (*facts, *_place(box), Fact("made_by", "predict", what[ours])))
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
    return Summary("scene", tuple(facts))


def describe_scenes(path: Path) -> Summary:
    """Say what the scenes of a folder or mosaic have in common; raises NoInputError without any."""
    scenes = find_scenes([path])
    sources, problems = _inspected(scenes)
    boxes = [source.box for source in sources]
    places = Counter("none" if box.crs is None else box.crs.to_string() for box in boxes)
    sizes = sorted({float(f"{box.gsd_m:.3g}") for box in boxes if box.gsd_m is not None})
    cities = Counter(scene.city for scene in scenes if scene.city is not None)
    return Summary(
        "scenes",
        (
            Fact("folder", str(path)),
            Fact("scenes", len(scenes)),
            Fact("with_masks", sum(scene.mask is not None for scene in scenes)),
            Fact("mpx", round(sum(box.height * box.width for box in boxes) / 1e6, 3)),
            Fact("gsd_m", sizes, f"{format_value(sizes)} m" if sizes else "unknown"),
            Fact("crs", dict(places)),
            Fact("bands", dict(Counter(f"{len(source.bands)} x {source.dtype}" for source in sources))),
            Fact("cities", dict(cities)),
            Fact("rasters", len(find_groups(sources)), f"{len(find_groups(sources))}, touching scenes being one"),
            Fact("refused_by_predict", len(problems)),
            Fact("refusals", [str(problem) for problem in problems[:10]]),
            Fact("warnings", folded(line for source in sources for line in source.warnings)[:10]),
        ),
    )


def describe_tiles(folder: Path) -> Summary:
    """Say what a set of tiles holds; raises what `load_tileset` raises when not even its manifest can be read."""
    planned = read_tileset(folder)
    try:
        tiles = load_tileset(folder)
    except BadDataError as error:
        if planned is None:
            raise
        facts = Fact("folder", str(folder)), Fact("tiles", len(planned.tiles)), Fact("size", planned.size)
        return Summary("tiles", facts, (error,))
    planned = planned or tiles
    cities = Counter(Scene(tile.scene, Path(tile.scene)).city or "" for tile in tiles.tiles)  # as the names say
    exact = planned.classes if planned.tiles == tiles.tiles else {}  # the split may have been edited since
    return Summary(
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
            *(
                Fact(split, _counted(tiles.of_split(split), tiles.gsd_m, exact.get(split)))
                for split in ("train", "val")
            ),
            Fact("cities", {city: cities[city] for city in sorted(cities) if city}),
            Fact("left_out", {**planned.left_out, "by hand": len(planned.tiles) - len(tiles.tiles)}),
            Fact("failed_scenes", planned.failed),
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


def _proposed_scale(dataset: DatasetReader, path: Path) -> list[Fact]:
    """Propose the values that become 0 and 255: the 1st and 99th percentile of valid pixels in a sample of windows."""
    if any("complex" in dtype for dtype in dataset.dtypes) or set(dataset.dtypes) == {"uint8"}:
        return []
    height, width = min(SAMPLE_PX, dataset.height), min(SAMPLE_PX, dataset.width)
    colours = [band for band, colour in enumerate(dataset.colorinterp, 1) if colour.name != "alpha"]
    values = []
    for down, across in np.ndindex(SAMPLES, SAMPLES):
        row, col = (round(place / (SAMPLES - 1) * room) for place, room in
                    ((down, dataset.height - height), (across, dataset.width - width)))  # fmt: skip
        with raster_errors(path, "a sample of its values"):
            read = dataset.read(colours, window=Window(col, row, width, height), masked=True).compressed()
        values.append(read[np.isfinite(read)])
    together = np.concatenate(values)
    if not together.size:
        return []
    low, high = np.percentile(together, [1, 99]).tolist()
    return [Fact("scale", [low, high], f"--scale {low:.6g}:{high:.6g} (1st and 99th percentile)")] if low < high else []


def _mask_kind(dataset: DatasetReader, path: Path) -> str:
    """Say what marks pixels as not valid."""
    from rasterio.enums import MaskFlags

    flags = dataset.mask_flag_enums[0]
    if MaskFlags.all_valid in flags:
        return "none: every pixel counts as valid"
    if MaskFlags.alpha in flags:
        return "alpha band"
    if MaskFlags.nodata in flags:
        return "nodata value" if tagged_alpha(dataset) is None else "nodata value and alpha band"
    return "a .msk file beside it" if exists(Path(f"{path}.msk")) else "a mask inside the file"


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
            named = format_value(names if len(names) <= NAMED else [*names[:NAMED], "..."])
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


def _counted(tiles: Sequence[TileRecord], gsd_m: float | None, exact: dict[str, int] | None) -> dict[str, Any]:
    """Return the counts of one split, over its tiles' cores.

    `exact` are the classes' pixels as they were counted; where the split was edited since, the tiles' shares tell.
    """
    areas = [tile.core[2] * tile.core[3] * tile.valid for tile in tiles]
    labelled, building = sum(areas), sum(area * tile.building for area, tile in zip(areas, tiles, strict=True))
    if exact is not None:
        building = exact.get("building", 0)
        labelled = exact.get("background", 0) + building
    area = {} if gsd_m is None else {"labelled_km2": round(labelled * gsd_m**2 / 1e6, 6)}
    return {
        "tiles": len(tiles),
        "scenes": len({tile.scene for tile in tiles}),
        "unlabelled_tiles": sum(tile.valid == 0 for tile in tiles),
        "labelled_mpx": round(labelled / 1e6, 3),
        **area,
        "building_fraction": building / labelled if labelled else None,
    }


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known of a file or folder."""

    name: str
    value: Any
    """Plain: text, numbers, truth values, lists and dicts of them, None."""
    words: str = ""
    """For people; the value itself when empty."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a thing is and all that is known of it."""

    kind: str
    """run, model, scene, scenes or tiles."""
    facts: tuple[Fact, ...]
    problems: tuple[AerialsegError, ...] = field(default=())
    """What is damaged or missing; the rest was still found."""

    def to_json(self) -> dict[str, Any]:
        """Return the values by name."""
        found = {fact.name: fact.value for fact in self.facts}
        return {"kind": self.kind, **found, "problems": [str(problem) for problem in self.problems]}

    def rows(self) -> list[list[str]]:
        """Return what people read, (name, words) a row; a nested value takes a row per part."""
        rows = []
        for fact in self.facts:
            nested = not fact.words and isinstance(fact.value, dict) and fact.value
            parts = fact.value.items() if nested else [("", fact.value)]
            for part, value in parts:
                name = f"{fact.name}: {part}" if part else fact.name
                rows.append([one_line(name.removesuffix("_m").replace("_", " ")), fact.words or format_value(value)])
        return rows + [["problem", str(problem)] for problem in self.problems]


def format_value(value: Any) -> str:
    """Return a plain value as people write it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return "-" if math.isnan(value) else f"{value:.6g}"
        case dict():
            return ", ".join(f"{key} {format_value(item)}" for key, item in value.items()) or "-"
        case list() | tuple():
            return ", ".join(map(format_value, value)) or "-"
    return one_line(str(value))
