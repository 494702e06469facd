"""What is to be predicted, decided before a network is built: refusals, keys, and which scenes are done already.

No torch here, so a typo costs no time and a run in which all is done never imports it. How scenes are run, and what is
noted of them, is `run`'s business.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aerialseg.errors import (
    AerialsegError,
    BadDataError,
    NoInputError,
    OutputError,
    Stopped,
    UsageError,
    counted,
    one_line,
)
from aerialseg.files import exists, output_error, resolved, sha256_of
from aerialseg.geo.digest import content_digest, seen, what_changed
from aerialseg.geo.geobox import gsd_differs
from aerialseg.geo.inspection import BandRule, inspect_scene
from aerialseg.geo.outputs import FORMER_FOLDERS, MASK, Output
from aerialseg.geo.ownership import check_overwrite, mark_of, owner_of, read_tags
from aerialseg.geo.polygons.formats import polygon_bytes
from aerialseg.geo.styles import write_mask_sidecars
from aerialseg.geo.vectors import datum_notes, places
from aerialseg.geo.writing import COG_BYTES, PLAIN_BYTES
from aerialseg.prediction.lattice import place_scenes
from aerialseg.prediction.outputs import COUNTS, SceneFiles, counts_in, done_key, state_of, with_side_files
from aerialseg.prediction.report import SceneResult
from aerialseg.prediction.stored import StoredRows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aerialseg.geo.areas import Area
    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.inspection import Source
    from aerialseg.geo.scenes import Scene
    from aerialseg.models.package import ModelCard
    from aerialseg.prediction.bands import Rows
    from aerialseg.prediction.lattice import ScenePlacement
    from aerialseg.prediction.options import PredictOptions, Shard
    from aerialseg.progress import Progress

MEASURE_BYTES = 1.2
"""Disk that a pixel of a probability takes, compressed and with overviews."""
FINISHERS = 4
"""Scenes whose files are finished side by side beside a GPU, which runs one in less time than its COG takes."""
REPORT = "report.json"
MOST_ENLARGED = 4
"""Times that a side of a scene's pixels may be larger than the model's: beyond that there is nothing to be seen."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is fixed for a run."""

    model: Path | None
    """The file; None for a model in memory."""
    model_hash: str
    card: ModelCard
    out: Path
    options: PredictOptions
    progress: Progress
    began: float = field(default_factory=time.monotonic)
    digests: dict[tuple[Path, tuple[int, int]], str] = field(default_factory=dict)
    """SHA-256 of the scenes looked at so far, by path and stamp; neighbours ask for the same one."""
    seen: dict[Path, str] = field(default_factory=dict)
    """What each scene looked like before its header was read."""
    area: Area | None = None
    """The ground that is asked for; None for all."""

    @property
    def window(self) -> int:
        """The windows' height and width in pixels."""
        return self.options.window or self.card.tile_size

    @property
    def overlap(self) -> float:
        """The share of a window that its neighbour covers too."""
        return self.card.overlap if self.options.overlap is None else self.options.overlap

    @property
    def gsd_m(self) -> float | None:
        """The GSD at which scenes that differ from it are run; None keeps theirs."""
        if isinstance(self.options.gsd_m, str):
            return self.card.gsd_m if self.options.gsd_m == "auto" else None
        return self.options.gsd_m

    @property
    def rule(self) -> BandRule:
        """The card's bands and scale, unless the user gave others."""
        chosen = self.options.rule
        return replace(chosen, bands=chosen.bands or self.card.band_indexes, scale=chosen.scale or self.card.scale)

    @property
    def parameters(self) -> dict[str, Any]:
        """What, beside the scene, decides the pixels; device, batch and threads only move the last digits."""
        return {
            "model": self.model_hash,
            "window": self.window,
            "overlap": self.overlap,
            "blend": self.options.blend,
            "tta": self.options.tta,
            "precision": self.options.precision,
            "bands": self.rule.bands,
            "scale": self.rule.scale,
            **self.rule.marks,
            **({} if self.area is None else {"area": self.area.digest}),
        }

    def changed(self, placement: ScenePlacement) -> BadDataError | None:
        """Return an error naming the file when the scene or a neighbour is no longer what was checked."""
        return what_changed({path: self.seen[path] for path in (placement.source.path, *placement.halo)}, "predicted")

    def digest(self, path: Path) -> str:
        """Return the SHA-256 over a scene and its side files."""
        known = path, stamp_of(path)
        if known not in self.digests:
            self.digests[known] = content_digest(path)
        return self.digests[known]

    def key(self, placement: ScenePlacement) -> str:
        """Return the done-key of a scene: over its bytes, its neighbours' and the parameters."""
        box, around = placement.source.box, [self.digest(path) for path in placement.halo]
        crs = None if box.crs is None else box.crs.to_wkt()
        place = [*box.transform[:6], crs, [list(point[:5]) for point in box.gcps]]
        described = {**self.parameters, **placement.describe(), "halo": around, "place": place}
        return done_key(self.digest(placement.source.path), described)


@dataclass(frozen=True, slots=True)
class SceneJob:
    """A scene that passed every check."""

    scene: Scene
    files: SceneFiles
    placement: ScenePlacement
    rows: tuple[Rows, ...]
    """Those of its rows that this process predicts, by window row."""

    @property
    def extent(self) -> Rows:
        """The rows from the first to the last one."""
        return self.rows[0][0], self.rows[-1][1]

    @property
    def band_pixels(self) -> int:
        """How many pixels they have."""
        return (self.rows[-1][1] - self.rows[0][0]) * self.box.width

    def stored(self, run: Run) -> StoredRows:
        """Return where the scene's finished rows are kept."""
        return StoredRows(run.out, self.scene.name, self.box.height, self.box.width, run.options.planes)

    @property
    def box(self) -> GeoBox:
        """The scene's own grid, which its outputs share."""
        return self.placement.source.box

    @property
    def pixels(self) -> int:
        """How many pixels the scene has."""
        return self.box.height * self.box.width

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the scene before it is run."""
        own, run = self.box.gsd_m, self.placement.gsd_m
        if own is None or run is None:
            return self.placement.source.warnings
        name = one_line(self.placement.source.path)
        note = f"{name}: its pixels are {own:.3g} m; it is run at {run:.3g} m and brought back to its own grid"
        return *self.placement.source.warnings, note

    @property
    def result(self) -> SceneResult:
        """What is known of the outcome before the scene is run."""
        height, width = self.box.height, self.box.width
        return SceneResult(
            self.scene.name,
            self.scene.image,
            "not started",
            height,
            width,
            gsd_m=self.box.gsd_m,
            run_gsd_m=self.placement.gsd_m,
            neighbours=len(self.placement.halo),
            warnings=self.warnings,
        )


def check_scenes(run: Run, scenes: Sequence[Scene]) -> tuple[dict[Path, ScenePlacement], dict[Path, AerialsegError]]:
    """Return what the network will see of each scene, and why others cannot be used; both by path.

    Scenes that the area asked for does not meet are in neither, and counted in a line. Raises NoInputError when it
    meets none.
    """
    sources, failures = [], {}
    run.seen.update(seen(scene.image for scene in scenes))
    for scene in scenes:
        run.progress.advance(0)
        try:
            sources.append(inspect_scene(scene.image, run.rule, run.options.access, expected_bands=run.card.bands))
        except Stopped:
            raise
        except AerialsegError as error:
            failures[scene.image] = error
    fitting = []
    for source in sources:
        try:
            _check_resampling(run, source)
            fitting.append(source)
        except BadDataError as error:
            failures[source.path] = error
    placements = place_scenes(fitting, neighbours=run.options.neighbours, gsd_m=run.gsd_m, reach=2 * run.window)
    return (placements if run.area is None else _within_area(run, run.area, placements, failures)), failures


def _within_area(
    run: Run, area: Area, placements: Mapping[Path, ScenePlacement], failures: dict[Path, AerialsegError]
) -> dict[Path, ScenePlacement]:
    """Return the placements of the scenes that the area meets; one on which it has no place is a failure."""
    met: dict[Path, ScenePlacement] = {}
    some = False
    for path, placement in placements.items():
        try:
            ground = area.on(one_line(path), placement.source.box)
        except BadDataError as error:
            failures[path] = error
            continue
        some |= ground.met
        if ground.met or (run.options.polygons and ground.run):  # a building may reach over
            met[path] = replace(placement, ground=ground)
    outside = len(placements) - len(met) - len(failures.keys() & placements.keys())
    if placements and not some and not failures.keys() & placements.keys():
        where = places([area.layer], [placement.source.box for placement in placements.values()])
        raise NoInputError(f"--area {area.layer.name}: meets no scene: {where}")
    if outside:
        run.progress.say(f"{counted(outside, 'scene')} left out: outside --area {area.layer.name}")
    boxes = [placement.source.box for placement in met.values()]
    for line in (*area.layer.warnings, *datum_notes([area.layer], boxes)):
        run.progress.say(f"warning: {line}")
    return met


def note_views(run: Run) -> None:
    """Warn of views that the network was never trained on."""
    config = run.card.training.get("config")
    data = config.get("data") if isinstance(config, dict) else None
    if run.options.tta != "none" and isinstance(data, dict) and data.get("flips") is False:
        run.progress.say(
            f"warning: --tta {run.options.tta} shows the network turned and mirrored scenes, and it was trained without"
            " them (data.flips = false): masks may become worse"
        )


def _check_resampling(run: Run, source: Source) -> None:
    """Raise BadDataError for pixels far larger than the model's, or a grid to be run that is larger than allowed."""
    own, box = source.box.gsd_m, source.box
    if not gsd_differs(own, run.gsd_m) or own is None or run.gsd_m is None:
        return
    name, times = one_line(source.path), own / run.gsd_m
    if times > MOST_ENLARGED and run.options.gsd_m == "auto":
        raise BadDataError(
            f"{name}: its pixels are {own:.3g} m, the model's {run.gsd_m:.3g} m: too large to show what it has learned;"
            f" give sharper scenes, --gsd keep to run it as it is, or --gsd {own:.4g} or another number of metres"
        )
    height, width = round(box.height * times), round(box.width * times)
    if height * width > run.options.access.max_pixels:
        raise BadDataError(
            f"{name}: at {run.gsd_m:.3g} m a pixel it is {height}x{width}, {height * width:.3g} pixels, more than"
            f" --max-pixels {run.options.access.max_pixels:g}; raise it, give a coarser --gsd, or --gsd keep"
        )


def finishers(device: str) -> int:
    """Return how many scenes' files are finished side by side on a device of this type."""
    return FINISHERS if device == "cuda" else 1


def disk_bytes(options: PredictOptions, pixels: Sequence[int], device: str) -> int:
    """Return about how much disk scenes of so many pixels take at most, while a device of this type predicts them.

    That is their outputs and, of the largest scene, the strips of those in the works and their plain copies.
    """
    finished = (COG_BYTES + MEASURE_BYTES * (len(options.outputs) - 1)) * sum(pixels)
    polygons = polygon_bytes(".gpkg", sum(pixels)) if options.polygons else 0
    finishing = min(finishers(device), max(1, len(pixels) - 1))
    return int(
        finished + polygons + (options.planes + finishing * (options.planes + PLAIN_BYTES)) * max(pixels, default=0)
    )


def done_before(run: Run, job: SceneJob) -> SceneResult | None:
    """Return the scene's result when its outputs were made from the same bytes and parameters, else None.

    Times are not looked at. Side files that went missing are written again, and what an earlier version kept in another
    folder comes into its own. An output that someone changed since stays, and is said; where the scene is to be
    predicted anew it is in the way. Raises OutputError and StorageError.
    """
    there = [_find_output(run.out, output, path) for output, path in job.files.items()]
    states = {path: state_of(path) for path in there}
    edited = [path for path in there if states[path] == "edited"]
    keys = {mark_of(path, "prediction") for path in there}
    done = None not in keys and "damaged" not in states.values() and keys == {run.key(job.placement)}
    tags = read_tags(job.files[MASK]) if done else None
    if tags is None:
        refuse_edited(edited, overwrite=run.options.overwrite)
        return None
    for former, path in zip(there, job.files.values(), strict=True):
        if former != path:
            try:
                former.replace(path)
            except OSError as error:
                raise output_error(path, error) from error
    write_mask_sidecars(job.files[MASK])
    hashes = {output.name: sha256_of(path) for output, path in job.files.items()}
    valid, building = counts_in(job.files[MASK]) if edited else (int(tags[name]) for name in COUNTS)
    known = {"key": keys.pop() or "", "scene": run.digest(job.scene.image)}
    stays = "was changed since aerialseg wrote it and stays as it is; --overwrite has it anew"
    result = replace(job.result, warnings=(*job.warnings, *(f"{one_line(path)}: {stays}" for path in edited)))
    return result.finished("skipped", job.files, (valid, building), known | hashes)


def refuse_edited(edited: Sequence[Path], *, overwrite: bool) -> None:
    """Raise OutputError naming the first of the outputs that someone changed, unless they may be replaced."""
    if edited and not overwrite:
        raise OutputError(
            f"{one_line(edited[0])}: was changed since aerialseg wrote it, and would be replaced; give another folder"
            " with -o, or --overwrite"
        )


def _find_output(out: Path, output: Output, path: Path) -> Path:
    """Return the path, or that which an earlier version gave the same raster when only that one is there."""
    if output.folder not in FORMER_FOLDERS or exists(path):
        return path
    former = out / FORMER_FOLDERS[output.folder] / path.relative_to(out / output.folder)
    return former if exists(former) else path


def every_output(files: Mapping[str, SceneFiles], out: Path) -> list[Path]:
    """Return all files that may be written; raises UsageError when two scenes would share one."""
    owners: dict[Path, str] = {}
    for name, entry in files.items():
        for path in with_side_files(entry):
            if owners.setdefault(path, name) != name:
                raise UsageError(f"{one_line(owners[path])} and {one_line(name)}: both would write {one_line(path)}")
    return [*owners, out / REPORT]


def report_name(shard: Shard | None) -> str:
    """Return what the report of a run, or of a shard of it, is called."""
    return REPORT if shard is None else f"report-{shard.number}-of-{shard.count}.json"


def is_output_in(image: Path, out: Path) -> bool:
    """Return whether a scene is an output of an earlier run in the same place: `predict data -o data/out`, twice."""
    return resolved(image).is_relative_to(resolved(out)) and mark_of(image, "prediction") is not None


def is_ours(image: Path, out: Path) -> bool:
    """Return whether a picture is no scene but what an earlier run wrote: an output in `out`, or a preview anywhere."""
    return is_output_in(image, out) or (image.suffix.lower() == ".png" and owner_of(image, "preview") == "ours")


def check_rasters(files: SceneFiles, *, overwrite: bool) -> bool:
    """Raise OutputError for a foreign raster in the way; with `overwrite` return whether there is one."""
    for path in files.values():
        check_overwrite(path, "prediction", overwrite=overwrite)
    return any(owner_of(path, "prediction") == "foreign" for path in files.values())


def stamp_of(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change, which tell whether it was touched while it was read."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadDataError(f"{one_line(path)}: cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns
