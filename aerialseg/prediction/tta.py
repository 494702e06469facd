"""Test-time augmentation: the ways a square window can be mirrored and turned, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Symmetry = Literal["none", "flips", "d4"]
"""`flips`: as it is, upside down, left for right, and both; `d4`: these four, and the same after a quarter turn."""


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a square window."""

    turned: bool
    """Whether rows and columns change places, after mirroring."""
    axes: tuple[int, ...]
    """The axes that are mirrored: -2 rows, -1 columns."""

    def look(self, windows: Tensor) -> Tensor:
        """Return the windows [..., size, size] as seen this way."""
        mirrored = windows.flip(self.axes) if self.axes else windows
        return mirrored.transpose(-2, -1).contiguous() if self.turned else mirrored

    def undo(self, windows: Tensor) -> Tensor:
        """Return what `look` was given."""
        turned = windows.transpose(-2, -1) if self.turned else windows
        return turned.flip(self.axes) if self.axes else turned


def views_of(symmetry: Symmetry) -> tuple[View, ...]:
    """Return the views of a window, itself first: 1, 4 or 8."""
    mirrors = ((), (-2,), (-1,), (-2, -1)) if symmetry != "none" else ((),)
    turns = (False, True) if symmetry == "d4" else (False,)
    return tuple(View(turned, axes) for turned in turns for axes in mirrors)
