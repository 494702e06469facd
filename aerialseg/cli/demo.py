"""`aerialseg demo`: the whole job on drawn scenes, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aerialseg.cli.options import Device, ReportAsJson

if TYPE_CHECKING:
    from aerialseg.workflows.demo import DemoReport


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for everything.")] = Path("demo"),
    minutes: Annotated[
        float, typer.Option(help="Minutes that training may take; slow machines make fewer steps.", min=0.01)
    ] = 3.5,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the training, as run.precision=fp32."),
    ] = None,
    device: Device = "auto",
    as_json: ReportAsJson = False,
) -> None:
    """Draw scenes, tile them, train a small network, map a scene it has never seen, and score the mask.

    Needs no data and no network. A second call keeps what is done and takes seconds.

    \b
    Examples:
      aerialseg demo
      aerialseg demo -o /tmp/demo --minutes 10 --set schedule.epochs=10
    """
    from aerialseg.cli.console import console_progress, print_json, print_table
    from aerialseg.workflows.demo import run_demo

    with console_progress() as progress:
        report = run_demo(out, minutes=minutes, device=device, overrides=assignments or (), progress=progress)
    if as_json:
        print_json(report.to_json())
        return
    print_table(
        f"Held-out scene {report.scene.name}", ["model", "IoU", "precision", "recall", "accuracy"], _rows(report)
    )
    for line in _paths(report):
        typer.echo(line)


def _rows(report: DemoReport) -> list[list[str]]:
    both = (("trained", report.held_out), ("untrained", report.untrained))
    names = ("iou", "precision", "recall", "accuracy")
    return [[label, *(f"{getattr(counts, name):.3f}" for name in names)] for label, counts in both]


def _paths(report: DemoReport) -> list[str]:
    from aerialseg.errors import one_line

    seconds = report.seconds
    places = (("picture", report.picture), ("model", report.training.model), ("mask", report.mask),
              ("report", report.out / "report.json"))  # fmt: skip
    return [
        f"{seconds['total']:.0f} s in all, {seconds['train']:.0f} s of it training on {report.training.device}",
        *(f"{label + ':':9}{one_line(path)}" for label, path in places),
        f"in QGIS: drag {one_line(report.scene.image)}, then {one_line(report.mask)}, onto the map;"
        " buildings appear coloured over the scene",
    ]
