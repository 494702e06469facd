"""The options by which evaluate, compare and calibrate are told what is true, and what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli.values import whole_numbers

if TYPE_CHECKING:
    from aerialseg.geo.labels import MaskRule

Masks = Annotated[
    list[str],
    typer.Option(
        "--masks",
        help="True masks: a folder, a quoted glob, an Inria root, a file, or vector files; may be repeated.",
        show_default=False,
    ),
]
MaskPattern = Annotated[
    str | None, typer.Option(help="How a mask's name is made from the raster's, as '{stem}_label.tif'.")
]
BuildingValues = Annotated[
    str | None, typer.Option(help="Values of the true masks that mean building, as 1,6; others are background.")
]
IgnoreValues = Annotated[
    str | None, typer.Option(help="Values of the true masks that mean unlabelled ground; not counted.")
]
MaskThreshold = Annotated[
    int | None, typer.Option(help="For anti-aliased true masks: this value and above is building, as 128.")
]
Where = Annotated[
    str | None, typer.Option(help="Which polygons of true vector files are buildings, as \"kind = 'house'\".")
]
LabelledArea = Annotated[
    Path | None, typer.Option(help="Polygons of the ground that was labelled; outside nothing is counted.")
]
AllowUngeoreferenced = Annotated[
    bool, typer.Option("--allow-ungeoreferenced", help="Compare pixel by pixel where there is no georeferencing.")
]
MaxPixels = Annotated[float, typer.Option(help="Refuse rasters with more pixels than this.", show_default="1e10")]


def mask_rule(building_values: str | None, ignore_values: str | None, mask_threshold: int | None) -> MaskRule:
    """Return what the values of true masks mean; raises UsageError for what is no number, or contradicts itself."""
    from aerialseg.geo.labels import MaskRule

    building = whole_numbers("--building-values", building_values)
    ignored = whole_numbers("--ignore-values", ignore_values)
    return MaskRule(building, ignored or (), mask_threshold)
