"""What a user can say about how scenes are cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from aerialseg.errors import UsageError
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.masks import MaskRule


@dataclass(frozen=True, slots=True)
class TilingOptions:
    """How scenes are cut into tiles; the defaults are the command line's."""

    size: int = 1024
    overlap: float = 0.0
    split: str = "auto"
    """"auto", "inria", "val=austin1-5,...", "blocks=N", a share of the scenes such as "0.2", or "0": all train."""
    val_area: Path | None = None
    """A vector file: the tiles in it validate; takes the place of `split`."""
    bands: BandRule = field(default_factory=BandRule)
    gsd_m: float | None = None
    """Metres per pixel to resample all scenes to."""
    masks: MaskRule = field(default_factory=MaskRule)
    vectors: tuple[Path, ...] = ()
    """Vector files with the buildings of all scenes; they take the place of the scenes' masks."""
    where: str | None = None
    """An SQL condition on the attributes of `vectors`."""
    labelled_area: Path | None = None
    """A vector file: ground outside it is unlabelled."""
    keep_empty: float = 1.0
    """The share of the training tiles without any building that is kept."""
    access: Access = field(default_factory=Access)
    threads: int | None = None
    """None means two more than there are processors, 16 at most."""
    overwrite: bool = False
    """Make everything anew, over strangers' files too, and forget what was edited in the index."""
    fail_fast: bool = False
    index_only: bool = False
    """Write no pixels: training reads them from the scenes."""
    keep_unlabelled: bool = False
    """Take scenes without a mask too, and keep training tiles without a label: for `train --teacher`."""

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 16384:
            raise UsageError(f"--size {self.size}: give the side of a tile in pixels, 16 to 16384")
        if not 0 <= self.overlap <= 0.9:
            raise UsageError(f"--overlap {self.overlap:g}: give the share that neighbours have in common, 0 to 0.9")
        if not 0 <= self.keep_empty <= 1:
            raise UsageError(f"--keep-empty {self.keep_empty:g}: give a share from 0 to 1")
        if self.gsd_m is not None and not 0 < self.gsd_m < 1000:
            raise UsageError(f"--gsd {self.gsd_m:g}: give metres per pixel, above 0")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: give at least 1")
        if self.val_area is not None and self.split != "auto":
            raise UsageError(f"--val-area and --split {self.split} contradict each other; give one of them")
        if self.where is not None and not self.vectors:
            raise UsageError("--where chooses features of vector labels, but --masks names no vector file")
