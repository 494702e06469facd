"""`aerialseg import`: weights of another program become a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def import_(
    weights: Annotated[
        Path, typer.Argument(help="A state dict that torch saved (.pt, .pth), or .safetensors.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The model file to write, .safetensors.", show_default=False)
    ],
    mean: Annotated[str, typer.Option(help="Mean of each band, as 0.485,0.456,0.406; or one for all.")],
    std: Annotated[str, typer.Option(help="Standard deviation of each band, likewise.")],
    white: Annotated[
        Literal["1", "255"],
        typer.Option(
            help="What a white pixel was when mean and std were taken: 1 if pixels were divided by 255 first."
        ),
    ],
    preset: Annotated[str | None, typer.Option(help="The network, by a name from aerialseg models.")] = None,
    arch: Annotated[str | None, typer.Option(help="Or the architecture as smp calls it: unet, segformer.")] = None,
    encoder: Annotated[str | None, typer.Option(help="With the encoder: resnet34, tu-pvt_v2_b0.")] = None,
    encoder_argument: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of a tu- encoder; may be repeated.")
    ] = None,
    bands: Annotated[int, typer.Option(help="Bands the network takes.")] = 3,
    gsd: Annotated[float | None, typer.Option(help="Metres per pixel of the scenes it was trained on.")] = None,
    threshold: Annotated[float, typer.Option(help="Probability from which a pixel is building.")] = 0.5,
    tile_size: Annotated[int, typer.Option(metavar="PX", help="The window that predict uses.")] = 512,
    overlap: Annotated[float, typer.Option(help="Share of a window that its neighbour covers too.")] = 0.25,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept a licence that forbids commercial use (mit_b*).")
    ] = False,
    overwrite: Annotated[bool, typer.Option("-f", "--overwrite", help="Replace the file when it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the model's card as JSON.")] = False,
) -> None:
    """Turn weights of another program into a model file.

    They are those of a segmentation_models_pytorch network with one output class.

    Tensors may lie under "state_dict", "model_state_dict" or "model", and their names begin with "module." or "model.".
    Every name and shape is checked; nothing in the file is run.

    \b
    Examples:
      aerialseg import best.pth -o town.safetensors --arch unet --encoder resnet34 --white 1 \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --gsd 0.3
      aerialseg import nir.safetensors -o nir.safetensors --preset segformer-pvt2-b0 --bands 4 --white 255 --mean 90 \\
        --std 40
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.cli.options import named_values, numbers
    from aerialseg.errors import one_line
    from aerialseg.models.importing import Normalisation, PredictDefaults, import_model
    from aerialseg.models.presets import resolve
    from aerialseg.values import to_values

    pixels = Normalisation(numbers("--mean", mean), numbers("--std", std), int(white))
    habits = PredictDefaults(gsd, threshold, tile_size, overlap)
    arguments = named_values("--encoder-argument", encoder_argument or [])
    spec = resolve(preset, arch, encoder, encoder_arguments=arguments, bands=bands, accept_licence=accept_licence)
    with console_progress() as progress:
        card, notes = import_model(weights, out, spec, pixels=pixels, habits=habits, overwrite=overwrite)
        for note in notes:
            progress.say(note)
    if as_json:
        print_json({"model": out, **to_values(card), "notes": notes})
    else:
        typer.echo(f"{one_line(out)}: {card.preset} for {card.bands} bands, tiles of {card.tile_size} px")
