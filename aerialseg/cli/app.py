"""The list of commands, each loaded when it is called for: `aerialseg --help` imports no torch and no GDAL."""

from __future__ import annotations

from typing import Annotated

import typer

from aerialseg import __version__

COMMANDS = (
    "tile",
    "train",
    "find_lr",
    "import_",
    "info",
    "plan",
    "predict",
    "evaluate",
    "compare",
    "calibrate",
    "submit",
    "polygonize",
    "preview",
    "models",
    "bench",
    "doctor",
    "sample",
    "demo",
)


def build_app() -> typer.core.TyperGroup:
    """Return the command line as a click group."""
    app = typer.Typer(
        name="aerialseg",
        help="Cut aerial scenes into tiles, train a building segmenter, and map whole scenes.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for name in COMMANDS:
        command = getattr(__import__(f"aerialseg.cli.{name}", fromlist=[name]), name)
        if isinstance(command, typer.Typer):  # a group of commands
            app.add_typer(command, name=name)
        else:
            app.command(name.rstrip("_").replace("_", "-"))(command)  # import is a word of Python's own
    group = typer.main.get_command(app)
    if not isinstance(group, typer.core.TyperGroup):
        raise TypeError("the application must be a group of commands")
    _spare_the_conversion_of_flags(group)
    return group


def _spare_the_conversion_of_flags(group: typer.core.TyperGroup) -> None:
    """Say that the program's own flags are off unless given: Typer 0.29 loads pydantic, 0.25 s, to find that out."""
    for parameter in group.get_params(typer.Context(group)):
        if parameter.default is None and getattr(parameter, "is_flag", False):
            parameter.default = False


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aerialseg {__version__}")
        raise typer.Exit


def _common(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may follow the command.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Cut aerial scenes into tiles, train a building segmenter, and map whole scenes."""
