"""What a user may choose when scenes are predicted; nonsense is refused here, before anything is opened."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from aerialseg.errors import UsageError, one_line
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.outputs import DISAGREEMENT, MASK, OUTPUTS, PROBABILITY, Output
from aerialseg.geo.polygons.polygonize import PolygonOptions
from aerialseg.geo.windows import Blend

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL_GPUS = "cuda:all"
Symmetry = Literal["none", "flips", "d4"]
"""`flips`: as it is, upside down, left for right, and both; `d4`: these four, and the same after a quarter turn."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the scenes that one of several processes predicts: every `count`-th one, beginning at `number`."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(f"--shard {self.number}/{self.count}: give a number from 1 to {self.count}, as 1/4")

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return this shard's share; every item is in exactly one shard."""
        return items[self.number - 1 :: self.count]


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What the user chooses; None leaves it to the model card or to the machine."""

    window: int | None = None
    """Height and width of the windows in pixels."""
    overlap: float | None = None
    blend: Blend = "hann"
    tta: Symmetry = "none"
    gsd_m: float | Literal["auto", "keep"] = "auto"
    """The GSD at which scenes are run: the model's where a scene differs by more than 10 %, their own, or this one."""
    neighbours: bool = True
    """Whether scenes that touch on one pixel grid see across their common edge."""
    batch: int | None = None
    precision: str = "auto"
    device: str = "auto"
    compiled: bool = False
    """Whether torch.compile translates the network first."""
    probability: bool = False
    disagreement: bool = False
    polygons: bool = False
    """Draw building polygons of all scenes, too; their mean probability needs the probability rasters."""
    shaping: PolygonOptions = field(default_factory=PolygonOptions)
    """What becomes of the polygons' outlines."""
    rule: BandRule = field(default_factory=BandRule)
    access: Access = field(default_factory=Access)
    shard: Shard | None = None
    overwrite: bool = False
    """Predict again what is done, and replace files that are not ours."""
    fail_fast: bool = False

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Which rasters are written of each scene, in their order."""
        chosen = {PROBABILITY: self.probability or self.polygons, DISAGREEMENT: self.disagreement, MASK: True}
        return tuple(output for output in OUTPUTS if chosen[output])

    @property
    def planes(self) -> int:
        """How many planes the engine blends for them."""
        return 1 + max(output.plane for output in self.outputs)

    def __post_init__(self) -> None:
        if self.shaping != PolygonOptions() and not self.polygons:
            raise UsageError("--min-area-m2, --crs, --simplify and --regularise shape polygons: give --polygons, too")
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
