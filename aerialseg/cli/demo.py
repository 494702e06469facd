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
    """Try everything on drawn scenes, in five minutes.

    Draws scenes, tiles them, trains a small network, maps a scene it has never seen, and scores the mask.

    Needs no data and no network. A second call keeps what is done and takes seconds.

    \b
    Examples:
      aerialseg demo
      aerialseg demo -o /tmp/demo --minutes 10 --set schedule.epochs=10
    """
    from aerialseg.cli.console import console_progress, print_json
    from aerialseg.workflows.demo import run_demo

    with console_progress() as progress:
        report = run_demo(out, minutes=minutes, device=device, overrides=assignments or (), progress=progress)
    print_json(report.to_json()) if as_json else _print(report)


def _print(report: DemoReport) -> None:
    from aerialseg.cli.console import print_table
    from aerialseg.errors import one_line

    names, seconds = ("iou", "precision", "recall", "accuracy"), report.seconds
    both = (("trained", report.held_out), ("untrained", report.untrained))
    rows = [[label, *(f"{getattr(counts, name):.3f}" for name in names)] for label, counts in both]
    print_table(f"Held-out scene {report.scene.name}", ["model", "IoU", "precision", "recall", "accuracy"], rows)
    typer.echo(f"{seconds['total']:.0f} s in all, {seconds['train']:.0f} s of it training on {report.training.device}")
    places = (("picture", report.picture), ("model", report.training.model), ("mask", report.mask),
              ("report", report.out / "report.json"))  # fmt: skip
    for label, path in places:
        typer.echo(f"{label + ':':9}{one_line(path)}")
    typer.echo(
        f"in QGIS: drag {one_line(report.scene.image)}, then {one_line(report.mask)}, onto the map;"
        " buildings appear coloured over the scene"
    )
