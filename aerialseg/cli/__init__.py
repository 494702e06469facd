"""The command line: Typer lives in this package and nowhere else; one file per command.

`main` is the one place where errors become exit codes.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's own) and return its exit code.

    A user's mistake ends in one line on stderr and the error's exit code; a traceback is shown with `--debug`, or when
    the program itself is at fault.
    """
    import click

    from aerialseg.cli.app import build_app
    from aerialseg.errors import AerialsegError

    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations calls home on import otherwise
    try:
        result = build_app()(args=arguments, prog_name="aerialseg", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except AerialsegError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
