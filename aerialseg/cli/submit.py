"""`aerialseg submit`: masks of the Inria test scenes as the zip the benchmark takes, or a check of such a zip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli.options import ResultAsJson

if TYPE_CHECKING:
    from aerialseg.evaluation.submission import Submission


def submit(
    predictions: Annotated[
        list[str], typer.Argument(help="Predicted masks, files or folders; with --check the zip.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The zip to write: submission.zip.", show_default=False)
    ] = None,
    test_root: Annotated[
        Path | None,
        typer.Option(help="Take names and sizes from the scenes here.", show_default="Inria's 180 test scenes"),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check a zip that exists, and write nothing.")] = False,
    eight_bit: Annotated[
        bool, typer.Option("--eight-bit", help="Write 0/255 in 8 bits a pixel, not 1 bit (CCITT Group 4).")
    ] = False,
    overwrite: Annotated[bool, typer.Option("-f", "--overwrite", help="Replace the zip if it exists.")] = False,
    as_json: ResultAsJson = False,
) -> None:
    """Write the Inria benchmark's submission.

    That is 180 masks in one flat zip, checked for all that is refused there.

    \b
    Examples:
      aerialseg submit out-test --out submission.zip
      aerialseg submit submission.zip --check
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.evaluation.submission import Expected, check_submission, write_submission

    _check_options(predictions, out, check=check, writing=eight_bit or overwrite)
    expected = Expected.of_benchmark() if test_root is None else Expected.of_folder(test_root)
    with console_progress() as progress:
        if out is None:
            progress.start("check", len(expected.sizes), "mask")
            done = check_submission(Path(predictions[0]), expected, progress)
        else:
            test = [] if test_root is None else [str(test_root)]
            _refuse(out, [*predictions, *test], overwrite=overwrite)
            done = write_submission(predictions, out, expected, "8-bit" if eight_bit else "1-bit", progress)
            for warning in done.warnings:
                progress.say(f"warning: {warning}")
    shown = {"path": done.path, "files": done.files, "form": done.form, "bytes": done.size,
             "building_fraction": done.building, "warnings": done.warnings}  # fmt: skip
    print_json(shown) if as_json else typer.echo(_line(done, "checked" if check else "written and checked"))


def _check_options(predictions: list[str], out: Path | None, *, check: bool, writing: bool) -> None:
    from aerialseg.errors import UsageError

    if check and (out is not None or writing):
        raise UsageError("--check writes nothing; leave out --out, --eight-bit and --overwrite")
    if check and len(predictions) != 1:
        raise UsageError("--check takes one zip")
    if not check and out is None:
        raise UsageError("give the zip to write with --out submission.zip, or --check to check one")


def _refuse(out: Path, read: list[str], *, overwrite: bool) -> None:
    from aerialseg.files import prepare_output_folder, refuse_input_as_output
    from aerialseg.geo.ownership import check_overwrite
    from aerialseg.geo.scenes import find_scenes

    refuse_input_as_output([scene.image for given in read for scene in find_scenes([given])], [out])
    prepare_output_folder(out.parent)
    check_overwrite(out, overwrite=overwrite)


def _line(done: Submission, what: str) -> str:
    from aerialseg.errors import one_line

    size = f"{done.form}, {done.size / 1e6:,.1f} MB"
    return f"{one_line(done.path)}: {done.files} masks {what}, {size}, {done.building:.2%} building"
