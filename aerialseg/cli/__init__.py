"""The command line: one file a command, and `main`, the one place where errors become exit codes.

Typer lives in this package and nowhere else. What a command does is loaded when it is called: `aerialseg --help`
imports no torch and no GDAL.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aerialseg import __version__, system

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from aerialseg.errors import AerialsegError

PANELS = {
    "Prepare": ("tile", "sample"),
    "Train": ("train", "find_lr", "config", "models", "import_", "bench"),
    "Map": ("plan", "predict", "polygonize"),
    "Judge": ("evaluate", "compare", "calibrate", "submit"),
    "Look": ("info", "preview", "doctor", "demo"),
}
"""What help shows together -> commands."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's own) and return its exit code.

    A user's mistake ends in one line on stderr and the error's exit code; a traceback comes before it with `--debug`,
    and alone when the program itself is at fault.
    """
    handlers = {number: signal.signal(number, _stop) for number in system.STOPS}
    system.encode_output()
    from aerialseg.cli.console import drop_unwritable
    from aerialseg.errors import AerialsegError

    debug, arguments = _without_debug(list(sys.argv[1:] if argv is None else argv))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads cost tenfold on processors that are shared
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations calls home on import otherwise
    try:
        return _run(arguments)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except AerialsegError as error:
        with suppress(OSError):
            if debug:
                traceback.print_exc()
            if _speaks_for(error):
                print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    finally:
        drop_unwritable(sys.stderr)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _without_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Return whether `--debug` was given, before the command or after it, and the other arguments."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    others = [argument for argument in arguments[:end] if argument != "--debug"]
    return len(others) < end, others + arguments[end:]


def _run(arguments: list[str]) -> int:
    """Run one command, and turn what Typer says of its arguments into our own error."""
    import typer

    from aerialseg.cli.console import guarded_stdout
    from aerialseg.errors import UsageError, one_line

    unusable: type[Exception] = typer.BadParameter.__bases__[0]  # Typer's or click's UsageError, by version
    with guarded_stdout():
        _refuse_empty(arguments)
        try:
            code = build_app()(args=arguments, prog_name="aerialseg", standalone_mode=False)
        except unusable as error:
            if not arguments:  # the message is the whole help page then
                error.show()  # type: ignore[attr-defined]
                return UsageError.exit_code
            context = getattr(error, "ctx", None)
            message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
            command = "aerialseg" if context is None else context.command_path
            raise UsageError(f"{one_line(message)}; see {command} --help") from error
    return code if isinstance(code, int) else 0


def _speaks_for(error: AerialsegError) -> bool:
    """Whether this process says what is wrong: of those that torchrun starts, one speaks (training/ranks.py)."""
    from aerialseg.errors import EndedElsewhere, UsageError

    elsewhere = isinstance(error, EndedElsewhere)
    return not elsewhere and (_is_first() or not isinstance(error, UsageError))


def _is_first() -> bool:
    """Whether this is the only process, or the first of those that torchrun started with the same command line."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def _refuse_empty(arguments: list[str]) -> None:
    """Raise UsageError for an empty argument, which would stand for the current folder: `-o "$UNSET"`."""
    from aerialseg.errors import UsageError, one_line

    for before, argument in pairwise(["aerialseg", *arguments]):
        name, equals, value = argument.partition("=")
        if not argument or (argument.startswith("--") and equals and not value):
            place = name or f"{before} ''"
            raise UsageError(f"{one_line(place)}: the value is empty; is it a variable of the shell that is not set?")


def _stop(signum: int, frame: FrameType | None) -> None:
    """Leave at once, for nothing is under way: what runs long replaces this by a stop at a safe point (console.py).

    An exception would be lost wherever an import or a callback catches all of them, and the run would go on to its end.
    """
    name = signal.Signals(signum).name
    if _is_first():
        os.write(2, f"error: stopped by {name}; run the same command again to go on from here\n".encode())
    os._exit(128 + signum)


def _shown(name: str) -> str:
    """Return how a command is called: import is a word of Python's own."""
    return name.rstrip("_").replace("_", "-")


class _Panels(typer.core.TyperGroup):
    """The commands, in groups where help lists them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List each group of commands under its name."""
        for panel, names in PANELS.items():
            shown = [(_shown(name), self.commands[_shown(name)].get_short_help_str(80)) for name in names]
            with formatter.section(panel):
                formatter.write_dl(shown, col_max=12)


class _Command(typer.core.TyperCommand):
    """A command that refuses a second model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as usual; of an option that is given twice, the last would win in silence."""
        if any("-m" in parameter.opts for parameter in self.params):
            given = [
                parameter for parameter in self.make_parser(ctx).parse_args(args=[*args])[2] if "-m" in parameter.opts
            ]
            if len(given) > 1:
                ctx.fail("-m is given twice, and one model maps the scenes: give one")
        return super().parse_args(ctx, args)


def build_app() -> typer.core.TyperGroup:
    """Return the command line as a click group."""
    app = typer.Typer(
        name="aerialseg",
        cls=_Panels,
        help="Cut aerial scenes into tiles, train a building segmenter, and map whole scenes.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for name in chain.from_iterable(PANELS.values()):
        command = getattr(__import__(f"aerialseg.cli.{name}", fromlist=[name]), name)
        if isinstance(command, typer.Typer):  # a group of commands
            app.add_typer(command, name=name)
        else:
            app.command(_shown(name), cls=_Command)(command)
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
