"""What a run of tiling remembers of every scene it finished, so that the next run can go on from there.

One small JSON file per scene, in a hidden folder of the set, written after the scene's last tile. It is only a claim:
it holds as long as the digest of everything the tiles depend on is the same and the files are there in their sizes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aerialseg.files import write_text
from aerialseg.geo.tiles.tileset import TileRecord, image_path, mask_path, tile_from_json, tile_to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from aerialseg.geo.tiles.cutting import CutTile

FOLDER = ".tiling"
REASONS = ("nodata", "unlabelled", "thinned", "gap")
"""Why planned tiles are left out."""


@dataclass(frozen=True, slots=True)
class SceneRecord:
    """A finished scene: its tiles, and exact counts over their cores."""

    scene: str
    digest: str
    tiles: tuple[TileRecord, ...]
    sizes: tuple[tuple[int, int], ...]
    """Bytes of each tile's image and mask."""
    left_out: dict[str, int]
    """Reason -> tiles."""
    classes: tuple[tuple[int, int, int], ...]
    """Each tile's pixels of background, building, unlabelled."""
    pixels: int
    """Valid pixels of the training tiles."""
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def holds(self, folder: Path) -> bool:
        """Return whether all tile files are there in their sizes."""
        return all(
            _size(path) == size
            for tile, sizes in zip(self.tiles, self.sizes, strict=True)
            for path, size in zip((image_path(folder, tile.name), mask_path(folder, tile.name)), sizes, strict=True)
        )


def summarise(scene: str, digest: str, cuts: Sequence[CutTile], gap: int) -> SceneRecord:
    """Return the record of a scene whose tiles were all cut."""
    kept = [(cut, cut.record) for cut in cuts if cut.record is not None]
    train = [cut for cut, record in kept if record.split == "train"]
    reasons = [cut.reason for cut in cuts] + ["gap"] * gap
    return SceneRecord(
        scene,
        digest,
        tiles=tuple(record for _, record in kept),
        sizes=tuple(cut.sizes for cut, _ in kept),
        left_out={reason: reasons.count(reason) for reason in REASONS},
        classes=tuple(cut.classes for cut, _ in kept),
        pixels=sum(cut.pixels for cut in train),
        sums=tuple(map(sum, zip(*(cut.sums for cut in train), strict=True))),
        squares=tuple(map(sum, zip(*(cut.squares for cut in train), strict=True))),
    )


def save_record(folder: Path, stem: str, record: SceneRecord) -> None:
    """Write a scene's record into the set `folder`."""
    body = {
        "scene": record.scene, "digest": record.digest, "tiles": [tile_to_json(tile) for tile in record.tiles],
        "sizes": record.sizes, "left_out": record.left_out, "classes": record.classes, "pixels": record.pixels,
        "sums": record.sums, "squares": record.squares,
    }  # fmt: skip
    write_text(_path(folder, stem), json.dumps(body) + "\n")


def load_record(folder: Path, stem: str) -> SceneRecord | None:
    """Return a scene's record, or None when there is none that can be read."""
    try:
        body: dict[str, Any] = json.loads(_path(folder, stem).read_text(encoding="utf-8"))
        return SceneRecord(
            body["scene"], body["digest"], tuple(tile_from_json(line) for line in body["tiles"]),
            tuple((image, mask) for image, mask in body["sizes"]), dict(body["left_out"]),
            tuple((b, h, u) for b, h, u in body["classes"]), int(body["pixels"]),
            tuple(body["sums"]), tuple(body["squares"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def drop_records(folder: Path, keep: Iterable[str]) -> None:
    """Remove the records of scenes that are no longer part of the set."""
    kept = {_path(folder, stem).name for stem in keep}
    for path in (folder / FOLDER).glob("*.json"):
        if path.name not in kept:
            path.unlink()


def _path(folder: Path, stem: str) -> Path:
    return folder / FOLDER / f"{stem}.json"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
