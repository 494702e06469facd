"""`aerialseg config`: the shipped configurations, to read and to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aerialseg.cli.options import ResultAsJson

config = typer.Typer(help="Print a shipped configuration, or begin one's own.")

Name = Annotated[str, typer.Argument(help="A shipped configuration.")]


@config.command()
def show(name: Name = "inria", as_json: ResultAsJson = False) -> None:
    """Print a shipped configuration.

    With --json all of its values are printed, those too that the file leaves to their defaults.

    \b
    Examples:
      aerialseg config show small
      aerialseg config show inria --json
    """
    from aerialseg.cli.console import print_json
    from aerialseg.config import load_config, shipped_text

    text = shipped_text(name)
    print_json(load_config(name).model_dump()) if as_json else typer.echo(text, nl=False)


@config.command()
def init(
    name: Name = "inria",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to write.", show_default="NAME.toml")
    ] = None,
    overwrite: Annotated[bool, typer.Option("-f", "--overwrite", help="Replace the file if it exists.")] = False,
    as_json: ResultAsJson = False,
) -> None:
    """Write a configuration to start from.

    It has every key, with the values of the shipped one and a comment on what it means.

    \b
    Examples:
      aerialseg config init small -o mine.toml
    """
    from aerialseg.cli.console import print_json, say_next
    from aerialseg.config import load_config, shipped_text, to_toml
    from aerialseg.errors import OutputError, one_line
    from aerialseg.files import exists, prepare_output_folder, write_text

    path = out or Path(f"{name}.toml")
    about = [line for line in shipped_text(name).partition("[")[0].splitlines() if line.startswith("#")]
    if exists(path) and not overwrite:
        raise OutputError(f"{one_line(path)}: exists; give another file with -o, or --overwrite")
    prepare_output_folder(path.parent)
    write_text(path, "\n".join([*about, "", to_toml(load_config(name), explained=True)]))
    print_json({"config": path}) if as_json else typer.echo(one_line(path))
    say_next("train", "TILES", "-c", path, "-o", "RUN")
