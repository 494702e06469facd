"""`aerialseg doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folder: Annotated[Path, typer.Argument(help="Folder to work in: its disk is looked at.", exists=True)] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at this machine and say what is missing.

    Packages, extras, GDAL, devices, memory, the cache of pretrained weights and the disk are looked at.

    Imports what is needed, writes and reads a small raster, and runs a kernel on every device in every precision. Ends
    with exit code 69 and advice when something needed is missing, also when a GPU is there but cannot be used.

    \b
    Examples:
      aerialseg doctor
      aerialseg doctor /mnt/scratch --json
    """
    from aerialseg.cli.console import print_json, print_table
    from aerialseg.workflows.doctor import examine, require_all

    findings = examine(folder)
    if as_json:
        ok = all(finding.state != "missing" for finding in findings)
        print_json({"ok": ok, "findings": findings})
    else:
        rows = [[item.topic, item.name, item.found, item.state, item.advice] for item in findings]
        print_table("aerialseg doctor", ["", "what", "found", "state", "advice"], rows, prose=True)
    require_all(findings)
