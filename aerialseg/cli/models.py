"""`aerialseg models`: the networks that have a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aerialseg.models.presets import Preset


def models(as_json: Annotated[bool, typer.Option("--json", help="Print the presets as JSON.")] = False) -> None:
    """List the networks that `train` knows by name; GMACs are the billions of multiply-adds for a tile of 256 px.

    Any other architecture and encoder of segmentation_models_pytorch can be named in the configuration, and is tried on
    one tile before training starts.

    \b
    Examples:
      aerialseg models
      aerialseg models --json
      aerialseg train tiles/inria -c inria -o runs/b2 --set model.preset=segformer-pvt2-b2
    """
    from dataclasses import asdict

    from aerialseg.cli.console import print_json, print_table
    from aerialseg.models.presets import DEFAULT_PRESET, PRESETS

    if as_json:
        print_json([{**asdict(preset), "default": name == DEFAULT_PRESET} for name, preset in PRESETS.items()])
        return
    columns = ["preset", "encoder", "parameters", "GMACs", "tiles", "attention", "licence"]
    print_table(
        "Networks by name", columns, [_row(preset, preset.name == DEFAULT_PRESET) for preset in PRESETS.values()]
    )


def _row(preset: Preset, default: bool) -> list[str]:
    name = f"{preset.name} (default)" if default else preset.name
    size = f"n x {preset.size_multiple}"
    parameters, cost = f"{preset.parameters or 0:,}", f"{preset.gmacs or 0:.1f}"
    return [name, preset.encoder, parameters, cost, size, preset.attention, preset.licence]
