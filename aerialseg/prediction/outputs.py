"""The files of one scene: where they go, whether they are ours and up to date, and how they come into being.

A mask is finished in two steps. Strips go to temporary GeoTIFFs while the network runs; then, in a thread of its own,
those are copied to cloud-optimised files, verified, and given their names, the mask last: where it stands, all of the
scene's outputs do. What was made from what travels in the file's own metadata, under KEY.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from aerialseg import __version__
from aerialseg.counts import QUANTA
from aerialseg.errors import AerialsegError, UsageError, one_line
from aerialseg.files import reserve, sha256_of
from aerialseg.geo.contents import content_digest
from aerialseg.geo.qgis import write_mask_sidecars
from aerialseg.geo.raster import GeoBox, StripWriter, finish_cog, open_raster

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from numpy.typing import NDArray

    from aerialseg.geo.raster import Source
    from aerialseg.geo.scenes import Scene
    from aerialseg.prediction.engine import Strip

NODATA = 255
KEY = "AERIALSEG_KEY"
COUNTS = ("AERIALSEG_VALID_PIXELS", "AERIALSEG_BUILDING_PIXELS")
ENGINE = 1
"""Part of every key: raise it when the same inputs and parameters come to give other pixels."""


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """Where a scene's outputs go."""

    mask: Path
    probability: Path | None

    @classmethod
    def of(cls, scene: Scene, out: Path, *, probability: bool) -> SceneFiles:
        """Return the paths below `out` that mirror the scene's name; raises UsageError for a name that leaves it."""
        name = PurePosixPath(scene.name)
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise UsageError(f"{one_line(scene.name)}: a scene's name must be a relative path without ..")
        file = name.with_name(f"{name.name}.tif")
        return cls(out / file, out / "probability" / file if probability else None)

    @property
    def by_kind(self) -> dict[str, Path]:
        """The files that carry pixels, the mask last."""
        return ({} if self.probability is None else {"probability": self.probability}) | {"mask": self.mask}

    @property
    def rasters(self) -> tuple[Path, ...]:
        """The files that carry pixels, the mask last."""
        return tuple(self.by_kind.values())

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that may be written for the scene."""
        return *self.rasters, self.mask.with_name(f"{self.mask.name}.aux.xml"), self.mask.with_suffix(".qml")


@dataclass(frozen=True, slots=True)
class Temporaries:
    """A scene's rasters while they are being written."""

    mask: Path
    probability: Path | None

    @classmethod
    def in_folder(cls, out: Path, *, probability: bool) -> Temporaries:
        """Reserve names in `out` that `aerialseg.files.sweep` knows."""
        return cls(reserve(out, ".tif"), reserve(out, ".tif") if probability else None)

    def remove(self) -> None:
        """Remove what is there."""
        for path in (self.mask, self.probability):
            if path is not None:
                path.unlink(missing_ok=True)


def scene_key(source: Source, parameters: Mapping[str, Any]) -> tuple[str, str]:
    """Return the done-key, over the parameters and the scene with its side files, and the digest of the latter."""
    scene = content_digest(source.path)
    described = {"engine": ENGINE, "scene": scene, **parameters}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(), scene


def read_tags(path: Path) -> dict[str, str]:
    """Return the metadata of a raster that this program wrote; empty for a stranger's file, or none."""
    try:
        with open_raster(path) as dataset:
            tags: dict[str, str] = dataset.tags()
    except AerialsegError:
        return {}
    return tags if KEY in tags else {}


def write_strips(
    temporaries: Temporaries, box: GeoBox, threshold: float, tally: NDArray[np.int64]
) -> Generator[None, Strip | None]:
    """Turn the strips it is sent into a mask and, where wanted, a probability raster; runs in the writer's thread.

    The mask is a function of the quantised probability: building where q >= round(254 x threshold). `tally` counts
    valid and building pixels.
    """
    limit = round(QUANTA * threshold)
    with ExitStack() as files:
        mask = files.enter_context(StripWriter(temporaries.mask, box, "uint8", NODATA))
        probability = (
            None
            if temporaries.probability is None
            else files.enter_context(StripWriter(temporaries.probability, box, "uint8", NODATA))
        )
        while (strip := (yield)) is not None:
            quanta = strip.quanta()
            building = quanta >= limit
            labels = building.view(np.uint8)
            if strip.valid is not None:
                labels[~strip.valid] = NODATA
            counts = (
                quanta.size if strip.valid is None else np.count_nonzero(strip.valid),
                np.count_nonzero(labels == 1),
            )
            tally += np.array(counts)
            mask.write(strip.row, labels)
            if probability is not None:
                probability.write(strip.row, quanta)


def finish(
    temporaries: Temporaries, files: SceneFiles, tags: Mapping[str, str], *, replace_sides: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Give the scene's finished rasters their names, with overviews and side files.

    Returns their SHA-256 by kind, and warnings. Side files that exist stay, unless `replace_sides`: they may hold a
    user's changes, or belong to a stranger's raster that is being replaced.
    """
    pairs = {"probability": (temporaries.probability, files.probability), "mask": (temporaries.mask, files.mask)}
    hashes = {}
    for kind, (temporary, final) in pairs.items():
        if temporary is not None and final is not None:
            finish_cog(temporary, final, tags=tags, resampling="mode" if kind == "mask" else "average")
            hashes[kind] = sha256_of(final)
    write_mask_sidecars(files.mask, replace=replace_sides)
    with open_raster(temporaries.mask) as alone, open_raster(files.mask) as beside_others:
        moved = GeoBox.of(alone) != GeoBox.of(beside_others)
    temporaries.remove()
    name = one_line(files.mask)
    return hashes, (f"{name}: a side file beside it moves it off its scene; remove {name}.*",) if moved else ()


def output_tags(key: str, model_hash: str, threshold: float, valid: int, building: int) -> dict[str, str]:
    """Return what every output says about itself."""
    return {
        KEY: key,
        "AERIALSEG_VERSION": __version__,
        "AERIALSEG_MODEL_SHA256": model_hash,
        "AERIALSEG_THRESHOLD": repr(threshold),
        **dict(zip(COUNTS, map(str, (valid, building)), strict=True)),
    }
