"""A picture of cost against tile size: multiply-adds, time and memory, one line for each network.

Shown per million pixels: what grows with the area is level and can be told apart, what grows faster rises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.files import staged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.workflows.cost_table import Row

PANELS = (
    ("gmacs", "forward: billions of multiply-adds per megapixel"),
    ("train_s", "forward and backward: seconds per megapixel"),
    ("train_bytes", "forward and backward: GB at the peak per megapixel"),
)
MARKERS = "osD^v<>P*X"


def draw_costs(path: Path, rows: Sequence[Row], machine: dict[str, str | int]) -> None:
    """Write a PNG of three panels, all axes logarithmic; what was not measured is missing from its line."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    sizes = sorted({row.size for row in rows})
    dearest = {row.name: row.gmacs or 0.0 for row in sorted(rows, key=lambda row: row.size)}
    figure = Figure(figsize=(17, 6.5), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever MPLBACKEND says
    panels = figure.subplots(1, len(PANELS))
    for axes, (field, label) in zip(panels, PANELS, strict=True):
        for index, name in enumerate(sorted(dearest, key=lambda name: -dearest[name])):  # the legend, as the lines end
            shown = [row for row in rows if row.name == name and getattr(row, field)]
            values = [_per_megapixel(row, field, int(machine["batch"])) for row in shown]
            axes.plot(
                [row.size for row in shown], values, label=name, markersize=5,
                color=colormaps["tab10"](index % 10), marker=MARKERS[index % 10], linestyle="-" if index < 10 else "--",
            )  # fmt: skip
        axes.set(xscale="log", xlabel="side of the tile, pixels", ylabel=label)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        if any(getattr(row, field) for row in rows):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    what = "{name}, {precision}, {batch} tiles per pass".format(**machine)
    figure.suptitle(f"Cost against tile size: {what}")
    with staged(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def _per_megapixel(row: Row, field: str, batch: int) -> float:
    """Return a cost over the pixels it is of: memory is that of a whole batch, in GB."""
    share = 1e-9 / batch if field == "train_bytes" else 1.0
    return float(getattr(row, field)) * share / (row.size**2 / 1e6)
