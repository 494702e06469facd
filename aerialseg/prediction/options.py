"""What a user may choose when scenes are predicted; nonsense is refused here, before anything is opened."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from aerialseg.errors import UsageError, one_line
from aerialseg.geo.areas import AreaOptions
from aerialseg.geo.dates import NO_DATES, DateOptions
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.outputs import DISAGREEMENT, MASK, OUTPUTS, PROBABILITY, UNCUT, Output
from aerialseg.geo.polygons.polygonize import PolygonOptions
from aerialseg.geo.windows import Blend
from aerialseg.models.presets import PRESETS, SIZE_MULTIPLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.models.package import ModelCard

ALL_GPUS = "cuda:all"
WITHOUT_SPECKS = PolygonOptions(min_area_m2=None)
Symmetry = Literal["none", "flips", "d4"]
"""`flips`: as it is, upside down, left for right, and both; `d4`: these four, and the same after a quarter turn."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several processes that share scenes out, by bands: see `bands.share_out`."""

    number: int
    count: int
    origin: str = ""
    """Where the number was found, for a person: `Slurm task 3, from 0`."""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(f"--shard {self.number}/{self.count}: give a number from 1 to {self.count}, as 1/4")

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}" + (f" ({self.origin})" if self.origin else "")

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return every `count`-th item, beginning at `number`; each is in exactly one shard."""
        return items[self.number - 1 :: self.count]


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What the user chooses; None leaves it to the model card or to the machine. Raises UsageError for nonsense.

    Example:
        >>> [output.name for output in aerialseg.PredictOptions(tta="flips", probability=True).outputs]
        ['probability', 'mask']
    """

    window: int | None = None
    """Height and width of the windows in pixels."""
    overlap: float | None = None
    """Share of a window that its neighbour covers too, 0 to 0.75."""
    blend: Blend = "hann"
    tta: Symmetry = "none"
    """Which mirrored and turned windows are run too; their probabilities are averaged."""
    gsd_m: float | Literal["auto", "keep"] = "auto"
    """The GSD at which scenes are run: the model's where a scene differs by more than 10 %, their own, or this one."""
    neighbours: bool = True
    """Whether scenes that touch on one pixel grid see across their common edge."""
    batch: int | None = None
    """Windows that run together."""
    precision: str = "auto"
    """Or fp32, bf16, fp16."""
    device: str = "auto"
    """Or cpu, cuda, cuda:N, mps; for the command alone, cuda:all."""
    compiled: bool = False
    """Whether torch.compile translates the network first."""
    probability: bool = False
    """Write probability rasters too: 0 to 254 for 0 to 1, 255 nodata."""
    disagreement: bool = False
    """Likewise, where overlapping windows disagree."""
    polygons: bool = False
    """Draw building polygons of all scenes, too; their mean probability needs the probability rasters."""
    shaping: PolygonOptions = WITHOUT_SPECKS
    """What becomes of the polygons' outlines; unlike polygonize, predict leaves specks out."""
    dates: DateOptions = NO_DATES
    """What is known of when the scenes were taken: written with their polygons and their STAC items."""
    area: AreaOptions | None = None
    """The ground that is asked for: the rest is not run, and nodata in all rasters."""
    rule: BandRule = field(default_factory=BandRule)
    access: Access = field(default_factory=Access)
    shard: Shard | None = None
    overwrite: bool = False
    """Predict again what is done, and replace files that are not ours."""
    fail_fast: bool = False

    @property
    def uncut(self) -> bool:
        """Whether what lies around the area is kept, for polygons are traced before the cut."""
        return self.polygons and self.area is not None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Which rasters are written of each scene, in their order."""
        measures = {PROBABILITY: self.probability or self.polygons, DISAGREEMENT: self.disagreement}
        chosen = {**measures, UNCUT: self.uncut, MASK: True}
        return tuple(output for output in OUTPUTS if chosen[output])

    @property
    def planes(self) -> int:
        """How many planes the engine blends for them."""
        return 1 + max(output.plane for output in self.outputs)

    def __post_init__(self) -> None:
        if self.shaping != WITHOUT_SPECKS and not self.polygons:
            raise UsageError("--min-area-m2, --crs, --simplify and --regularise shape polygons: give --polygons, too")
        if self.area is not None and self.area.keep != "touching" and not self.polygons:
            raise UsageError(f"--area-keep {self.area.keep} chooses polygons: give --polygons, too")
        if self.window is not None and self.window < 1:
            raise UsageError(f"--window {self.window}: give 1 or more pixels")
        if self.overlap is not None and not 0 <= self.overlap <= 0.75:
            raise UsageError(f"--overlap {self.overlap:g}: give a share of the window from 0 to 0.75")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"--batch {self.batch}: give 1 or more windows, or auto")
        if not isinstance(self.gsd_m, str) and not 0 < self.gsd_m < math.inf:
            raise UsageError(f"--gsd {self.gsd_m:g}: give metres per pixel, auto, or keep")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device) and self.device != ALL_GPUS:
            raise UsageError(f"--device {one_line(self.device)}: give auto, cpu, cuda, cuda:N, cuda:all or mps")
        for flag, value, known in (("--blend", self.blend, Blend), ("--tta", self.tta, Symmetry)):
            if value not in get_args(known):
                raise UsageError(f"{flag} {one_line(value)}: give one of {', '.join(get_args(known))}")


def check_window(card: ModelCard, window: int) -> None:
    """Raise UsageError when the card's network cannot take windows of that size in pixels."""
    preset = PRESETS.get(card.preset)
    multiple = SIZE_MULTIPLE if preset is None else preset.size_multiple
    if window != card.tile_size and window % multiple:
        below = max(multiple, window // multiple * multiple)
        raise UsageError(f"--window {window}: {card.preset} takes multiples of {multiple}, for example {below}")
