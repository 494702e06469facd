"""`aerialseg models`: the networks that have a name."""

from __future__ import annotations

from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="Print the presets as JSON.")] = False) -> None:
    """List the networks that `train` knows by name.

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
    from aerialseg.models.catalog import DEFAULT_PRESET, PRESETS

    if as_json:
        print_json([{**asdict(preset), "default": name == DEFAULT_PRESET} for name, preset in PRESETS.items()])
        return
    columns = ["preset", "architecture", "encoder", "parameters", "tile size", "attention", "licence"]
    rows = [
        [
            f"{preset.name} (default)" if preset.name == DEFAULT_PRESET else preset.name,
            *(
                preset.architecture,
                preset.encoder,
                f"{preset.parameters or 0:,}",
                f"multiple of {preset.size_multiple}",
            ),
            *(preset.attention, preset.licence),
        ]
        for preset in PRESETS.values()
    ]
    print_table("Networks by name", columns, rows)
