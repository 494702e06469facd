"""What is to be predicted, decided before a model loads: options, refusals, and which scenes are done already.

No torch here, so a typo costs no time and a run in which all is done never imports it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aerialseg.errors import BadDataError, UsageError, one_line
from aerialseg.files import refuse_foreign, sha256_of
from aerialseg.geo.qgis import write_mask_sidecars
from aerialseg.geo.raster import Access, BandRule, inspect_scene
from aerialseg.prediction.outputs import COUNTS, KEY, SceneFiles, read_tags, scene_key
from aerialseg.prediction.report import SceneResult

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aerialseg.geo.raster import Source
    from aerialseg.geo.scenes import Scene
    from aerialseg.models.package import ModelCard
    from aerialseg.progress import Progress

REPORT = "report.json"
GSD_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What the user chooses; None leaves it to the model card or to the machine."""

    overlap: float | None = None
    batch: int | None = None
    precision: str = "auto"
    device: str = "auto"
    probability: bool = False
    rule: BandRule = field(default_factory=BandRule)
    access: Access = field(default_factory=Access)
    overwrite: bool = False
    """Predict again what is done, and replace files that are not ours."""
    fail_fast: bool = False

    def __post_init__(self) -> None:
        if self.overlap is not None and not 0 <= self.overlap <= 0.75:
            raise UsageError(f"--overlap {self.overlap:g}: give a share of the window from 0 to 0.75")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"--batch {self.batch}: give 1 or more windows, or auto")


@dataclass(frozen=True, slots=True)
class Run:
    """What is fixed for a run."""

    model: Path
    model_hash: str
    card: ModelCard
    out: Path
    options: PredictOptions
    progress: Progress
    began: float = field(default_factory=time.monotonic)

    @property
    def overlap(self) -> float:
        """The share of a window that its neighbour covers too."""
        return self.card.overlap if self.options.overlap is None else self.options.overlap

    @property
    def rule(self) -> BandRule:
        """The card's bands and scale, unless the user gave others."""
        chosen = self.options.rule
        return BandRule(chosen.bands or self.card.band_indexes, chosen.scale or self.card.scale)

    @property
    def parameters(self) -> dict[str, Any]:
        """What, beside the scene, decides the pixels; device, batch and threads only move the last digits."""
        return {
            "model": self.model_hash,
            "overlap": self.overlap,
            "blend": "hann",
            "precision": self.options.precision,
            "bands": self.rule.bands,
            "scale": self.rule.scale,
        }


@dataclass(frozen=True, slots=True)
class Work:
    """A scene that passed every check."""

    scene: Scene
    files: SceneFiles
    source: Source
    stamp: tuple[int, int]
    """Size and time of the scene's file when it was checked."""
    warnings: tuple[str, ...]
    foreign: bool
    """Whether its outputs replace a stranger's raster, as the user asked for."""

    @property
    def pixels(self) -> int:
        """How many pixels the scene has."""
        return self.source.box.height * self.source.box.width

    @property
    def result(self) -> SceneResult:
        """What is known of the outcome before the scene is run."""
        box = self.source.box
        return SceneResult(
            self.scene.name, self.scene.image, "not started", box.height, box.width, warnings=self.warnings
        )


def check_scene(run: Run, scene: Scene, files: SceneFiles, *, foreign: bool) -> Work:
    """Check one scene against the model; raises what `inspect_scene` raises."""
    stamp = stamp_of(scene.image)
    source = inspect_scene(scene.image, run.rule, run.options.access, expected_bands=run.card.bands)
    return Work(scene, files, source, stamp, (*source.warnings, *_gsd_warning(source, run.card)), foreign)


def done_before(run: Run, work: Work) -> SceneResult | None:
    """Return the scene's result when its outputs were made from the same bytes and parameters, else None.

    Times are not looked at. Side files that went missing are written again.
    """
    tags = [read_tags(path) for path in work.files.rasters]
    if run.options.overwrite or not all(tags):
        return None
    key, scene_hash = scene_key(work.source, run.parameters)
    if any(tag[KEY] != key for tag in tags):
        return None
    write_mask_sidecars(work.files.mask)
    hashes = {kind: sha256_of(path) for kind, path in work.files.by_kind.items()}
    valid, building = (int(tags[-1][name]) for name in COUNTS)
    return replace(
        work.result,
        status="skipped",
        outputs=work.files.by_kind,
        valid_pixels=valid,
        building_pixels=building,
        hashes={"key": key, "scene": scene_hash, **hashes},
    )


def every_output(files: Mapping[str, SceneFiles], out: Path) -> list[Path]:
    """Return all files that may be written; raises UsageError when two scenes would share one."""
    owners: dict[Path, str] = {}
    for name, entry in files.items():
        for path in entry.all:
            if owners.setdefault(path, name) != name:
                raise UsageError(f"{one_line(owners[path])} and {one_line(name)}: both would write {one_line(path)}")
    return [*owners, out / REPORT]


def is_output_in(image: Path, out: Path) -> bool:
    """Return whether a scene is an output of an earlier run in the same place: `predict data -o data/out`, twice."""
    return image.resolve().is_relative_to(out.resolve()) and bool(read_tags(image))


def refuse_foreign_report(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError when a file of another origin stands where the report would go."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        value = None
    ours = isinstance(value, dict) and "aerialseg" in value and value.get("command") == "predict"
    refuse_foreign(path, ours=ours, overwrite=overwrite)


def refuse_foreign_rasters(files: SceneFiles, *, overwrite: bool) -> bool:
    """Raise OutputError for a raster in the way that is not ours; with `overwrite` return whether there is one."""
    foreign = [path for path in files.rasters if os.path.lexists(path) and not read_tags(path)]
    for path in foreign:
        refuse_foreign(path, ours=False, overwrite=overwrite)
    return bool(foreign)


def stamp_of(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change, which tell whether it was touched while it was read."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadDataError(f"{one_line(path)}: cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _gsd_warning(source: Source, card: ModelCard) -> tuple[str, ...]:
    found, trained = source.box.gsd_m, card.gsd_m
    if found is None or trained is None or abs(found / trained - 1) <= GSD_TOLERANCE:
        return ()
    name = one_line(source.path)
    return (f"{name}: its pixels are {found:.2f} m, the model learned from {trained:.2f} m; expect a worse mask",)
