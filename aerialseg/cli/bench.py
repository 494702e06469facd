"""`aerialseg bench`: what networks cost on this machine, and whether training waits for its data."""

from __future__ import annotations

from typing import Annotated

import typer

bench = typer.Typer(help="Measure on this machine what networks cost, and whether training waits for its data.")

Only = Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="Measure this one; may be repeated.")]
Sizes = Annotated[str, typer.Option(help="Sides of the tiles in pixels.")]


@bench.command()
def mixers(only: Only = None, sizes: Sizes = "256,512,1024,2048") -> None:
    """Measure the token mixers of our own encoder."""


@bench.command()
def presets(only: Only = None, sizes: Sizes = "256,512,1024,2048") -> None:
    """Measure the networks that have a name."""
