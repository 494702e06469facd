"""`aerialseg models`: the networks that have a name."""

from __future__ import annotations

from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="Print the presets as JSON.")] = False) -> None:
    """List the networks that train knows by name.

    GMACs are the billions of multiply-adds for a tile of 256 px. Any other architecture and encoder of
    segmentation_models_pytorch can be named in the configuration, and is tried on one tile before training starts.

    \b
    Examples:
      aerialseg models
      aerialseg models --json
      aerialseg train tiles/inria -c inria -o runs/b2 --set model.preset=segformer-pvt2-b2
    """
    from aerialseg.cli.console import print_json, print_table
    from aerialseg.models.presets import DEFAULT_PRESET, PRESETS
    from aerialseg.values import to_values

    if as_json:
        print_json([{**to_values(preset), "default": name == DEFAULT_PRESET} for name, preset in PRESETS.items()])
        return
    rows = []
    for preset in PRESETS.values():
        name = f"{preset.name} (default)" if preset.name == DEFAULT_PRESET else preset.name
        size = [f"{preset.parameters or 0:,}", f"{preset.gmacs or 0:.1f}", f"n x {preset.size_multiple}"]
        rows.append([name, *size, preset.licence, preset.attention, preset.encoder])
    columns = ["preset", "parameters", "GMACs", "tiles", "licence", "attention", "encoder"]
    print_table("Networks by name", columns, rows)
