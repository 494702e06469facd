"""Options that several commands take: how each is called and explained, and what its text means.

Here they are declared once, by Annotated types for the commands' parameters; a default stands with the command.
"""

from __future__ import annotations

import math
import os
import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aerialseg.errors import UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aerialseg.geo.areas import AreaOptions, Keep
    from aerialseg.geo.inspection import BandRule
    from aerialseg.geo.masks import MaskRule
    from aerialseg.prediction.options import Shard

ReportAsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
ResultAsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PathsAsJson = Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first scene that fails.")]

# What is trained: train, find-lr, bench train.
TilesFolder = Annotated[Path, typer.Argument(help="A folder made by aerialseg tile.", show_default=False)]
Config = Annotated[str, typer.Option("-c", "--config", help="A TOML file, or the name of a shipped one.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, as data.batch=4; may be repeated."),
]

# What is true: evaluate, compare, calibrate.
Masks = Annotated[
    list[str],
    typer.Option(
        "--masks",
        help="True masks: a folder, a quoted glob, an Inria root, a file, or vector files; may be repeated.",
        show_default=False,
    ),
]
MaskPattern = Annotated[
    str | None, typer.Option(help="How a mask's name is made from the raster's, as '{stem}_label.tif' or '_sat:_mask'.")
]
BuildingValues = Annotated[
    str | None, typer.Option(help="Values of the true masks that mean building, as 1,6; others are background.")
]
BuildingColour = Annotated[
    str | None,
    typer.Option(
        "--building-colour",
        "--building-color",
        help="Which colour of masks in colours means building, as 0,0,255; others are background.",
        metavar="R,G,B",
        show_default=False,
    ),
]
IgnoreValues = Annotated[
    str | None, typer.Option(help="Values of the true masks that mean unlabelled ground; not counted.")
]
MaskThreshold = Annotated[
    int | None, typer.Option(help="For anti-aliased true masks: this value and above is building, as 128.")
]
Where = Annotated[
    str | None,
    typer.Option(help="Which polygons of true vector files are buildings, in SQLite's SQL, as \"kind = 'house'\"."),
]
Layer = Annotated[
    str | None, typer.Option(help="Which layer of true vector files, where there are several; or FILE|layername=NAME.")
]
LabelledArea = Annotated[
    Path | None, typer.Option(help="Polygons of the ground that was labelled; outside nothing is counted.")
]
AllowUngeoreferenced = Annotated[
    bool, typer.Option("--allow-ungeoreferenced", help="Compare pixel by pixel where there is no georeferencing.")
]
MaxPixels = Annotated[float, typer.Option(help="Refuse rasters with more pixels than this.", show_default="1e10")]

# How scenes become masks: predict and plan; some for tile and calibrate too.
Model = Annotated[
    Path, typer.Option("-m", "--model", help="A model file, or the folder of a training run.", show_default=False)
]
WindowSize = Annotated[
    int | None,
    typer.Option(
        "--window", help="Height and width of the windows, in pixels.", show_default="the model's", metavar="PX"
    ),
]
Overlap = Annotated[
    float | None,
    typer.Option(help="Share of a window that its neighbour covers too, 0 to 0.75.", show_default="the model's: 0.25"),
]
Tta = Annotated[Literal["none", "flips", "d4"], typer.Option(help="Average over 4 mirrored windows, or 8 also turned.")]
Gsd = Annotated[
    str, typer.Option(help="Metres per pixel to run at; auto: the model's, where a scene differs by over 10 %; keep.")
]
Neighbours = Annotated[
    Literal["auto", "off"], typer.Option(help="auto: scenes that touch see into each other, so that no seam shows.")
]
Batch = Annotated[str, typer.Option(help="Windows that run together, or auto.")]
AllDevices = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, cuda:all or mps.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Translate the network first: pays on many scenes.")]
Probability = Annotated[bool, typer.Option("--probability", help="Write probability rasters too: 0 to 254 for 0 to 1.")]
Disagreement = Annotated[
    bool, typer.Option("--disagreement", help="Write where overlapping windows disagree: 0 to 254 for 0 to 1.")
]
Bands = Annotated[
    str | None, typer.Option(help="Bands to use, in the model's order, as 1,2,3.", show_default="the model's")
]
Scale = Annotated[str | None, typer.Option(help="Values that become 0 and 255, as 0:2047.", show_default="the model's")]
Nodata = Annotated[
    str | None,
    typer.Option(
        metavar="V[,V,V]",
        help="A colour that is no data, as 0 or 255,255,255; near it, too, in files compressed with loss.",
        show_default="what the file says",
    ),
]
Alpha = Annotated[
    str,
    typer.Option(metavar="BAND|auto|data", help="The band that marks valid pixels; data: none, whatever is tagged so."),
]
Unplaced = Annotated[
    bool, typer.Option("--allow-ungeoreferenced", help="Take scenes that have no place on the ground.")
]
ScenePixels = Annotated[
    float, typer.Option("--max-pixels", help="Refuse scenes with more pixels than this.", show_default="1e10")
]
ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="Predict the I-th of N parts; they may share a folder. auto/N, or auto: what an array of Slurm, Kubernetes"
        " or AWS Batch says.",
        metavar="I/N|auto/N|auto",
    ),
]


Area = Annotated[
    str | None,
    typer.Option(
        "--area",
        "--aoi",
        metavar="FILE|W,S,E,N",
        help="Only this ground: polygons of a file, or degrees. FILE|layername=NAME names a layer.",
        show_default="all",
    ),
]
AreaWhere = Annotated[
    str | None, typer.Option("--area-where", help="Which polygons of --area, in SQLite's SQL, as \"name = 'Graz'\".")
]
AreaMargin = Annotated[
    float | None,
    typer.Option("--area-margin", metavar="METRES", help="Look so far beyond --area.", show_default="50"),
]
AreaKeep = Annotated[
    Literal["touching", "inside", "clip"] | None,
    typer.Option(
        "--area-keep",
        help="Buildings at its border: all whole, those inside, or cut. inside: a point on their surface lies in it.",
        show_default="touching",
    ),
]


def area_of(
    text: str | None, where: str | None, margin_m: float | None = None, keep: Keep | None = None
) -> AreaOptions | None:
    """Return what --area and its companions ask for; raises UsageError for one of these without it."""
    from aerialseg.geo.areas import MARGIN_M, AreaOptions

    if text is not None:
        return AreaOptions(text, where, MARGIN_M if margin_m is None else margin_m, keep or "touching")
    if where is not None or margin_m is not None or keep is not None:
        raise UsageError("--area-where, --area-margin and --area-keep say more of --area: give it, too")
    return None


Dates = Annotated[
    list[str] | None,
    typer.Option(
        "--date",
        metavar="DAY|FIRST/LAST|FILE:COLUMN|tiff",
        help="When scenes were taken: a day, a range, polygons of days, or TIFF's own time.",
        show_default="what STAC items and headers say",
    ),
]


def _say_new_name(asked: bool) -> bool:
    if asked:
        typer.echo("warning: --agreement is called --disagreement now, and so is its folder", err=True)
    return asked


Agreement = Annotated[bool, typer.Option("--agreement", hidden=True, callback=_say_new_name)]
"""What `--disagreement` was called once."""


def band_rule(bands: str | None, scale: str | None, nodata: str | None = None, alpha: str = "auto") -> BandRule:
    """Return what --bands 1,2,3, --scale LO:HI, --nodata V,V,V and --alpha ask for; raises UsageError if nothing."""
    from aerialseg.geo.inspection import BandRule

    chosen = whole_numbers("--bands", bands)
    colour = () if nodata is None else numbers("--nodata", nodata)
    words: dict[str, Literal["auto", "data"]] = {"auto": "auto", "data": "data"}
    if alpha not in words and not alpha.isdecimal():
        raise UsageError(f"--alpha {one_line(alpha)}: give the number of a band, auto, or data")
    marks = words.get(alpha) or int(alpha)
    if scale is None:
        return BandRule(chosen, None, colour, marks)
    try:
        low, high = map(float, scale.split(":"))
    except ValueError as error:
        raise UsageError(f"--scale {one_line(scale)}: give two numbers LO:HI, as 0:2047") from error
    return BandRule(chosen, (low, high), colour, marks)


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Return numbers with commas between; None stays None. Raises UsageError naming the option."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {one_line(text)}: give whole numbers with commas between, as 1,2,3") from error


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Return numbers with commas between; raises UsageError naming the option."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {one_line(text)}: give numbers with commas between, as 0.5,0.4,0.3") from error
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{option} {one_line(text)}: give finite numbers")
    return values


def named_values(option: str, assignments: Sequence[str]) -> dict[str, str | int | float | bool]:
    """Return what KEY=VALUE says, values being TOML's or else text; raises UsageError naming the option."""
    found: dict[str, str | int | float | bool] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not (name and equals):
            raise UsageError(f"{option} {one_line(assignment)}: write it as KEY=VALUE")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        found[name] = value if isinstance(value, str | int | float | bool) else text
    return found


def batch_size(text: str) -> int | None:
    """Return the number of windows that run together; None for auto. Raises UsageError for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--batch {one_line(text)}: give a number of windows, or auto")
    return int(text)


def gsd_of(text: str) -> float | Literal["auto", "keep"]:
    """Return what `--gsd` asks for: metres per pixel, or a word. Raises UsageError for anything else."""
    words: dict[str, Literal["auto", "keep"]] = {"auto": "auto", "keep": "keep"}
    if text in words:
        return words[text]
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--gsd {one_line(text)}: give metres per pixel, auto, or keep") from error


def shard_of(text: str | None) -> Shard | None:
    """Return what `--shard` asks for, in this environment; None stays None. Raises UsageError for what is no shard."""
    from aerialseg.prediction.scheduler import find_shard

    return None if text is None else find_shard(text, os.environ)


def mask_rule(
    building_values: str | None, ignore_values: str | None, mask_threshold: int | None, building_colour: str | None
) -> MaskRule:
    """Return what the values of true masks mean; raises UsageError for what is no number, or contradicts itself."""
    from aerialseg.geo.masks import MaskRule

    building = whole_numbers("--building-values", building_values)
    ignored = whole_numbers("--ignore-values", ignore_values)
    colour = whole_numbers("--building-colour", building_colour)
    if colour is None:
        return MaskRule(building, ignored or (), mask_threshold)
    if len(colour) != 3 or min(colour) < 0:
        raise UsageError(f"--building-colour {one_line(str(building_colour))}: give red, green and blue, as 0,0,255")
    return MaskRule(building, ignored or (), mask_threshold, (colour[0], colour[1], colour[2]))


def command_line(context: typer.Context) -> str:
    """Return the command with what was given and differs from the defaults, on one line.

    Arguments that begin with a dash come last, behind "--", which keeps them from being taken for options.
    """
    arguments: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value in (None, False, parameter.default) or parameter.name == "as_json":
            continue
        values = value if isinstance(value, list | tuple) else [value]
        option = max(parameter.opts, key=len)
        if parameter.param_type_name == "argument":
            arguments += map(str, values)
        else:
            options += [option] if value is True else [word for each in values for word in (option, str(each))]
    dashed = any(word.startswith("-") for word in arguments)
    words = [*options, "--", *arguments] if dashed else [*arguments, *options]
    return " ".join(map(_quoted, ["aerialseg", context.info_name or "", *words]))


def _quoted(word: str) -> str:
    """Quote a word for a shell; one with control characters as bash, zsh and ksh write them."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{one_line(escaped)}'"
