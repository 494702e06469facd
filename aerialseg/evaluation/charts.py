"""Small charts as SVG text for a page that must show them without any script, in light and dark alike.

Colours come from the page's style sheet by class; coordinates are in a 100 x 100 square, y upwards in the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aerialseg.counts import Confusion
    from aerialseg.evaluation.probability import Bin

Points = list[tuple[float, float]]
LEFT, TOP, SIDE = 13.0, 3.0, 84.0


def reliability_chart(bins: Sequence[Bin]) -> str:
    """Return the share of building against the probability; on the diagonal a model says what it means."""
    known = [(part.probability, part.building, part.pixels) for part in bins if part.pixels]
    pixels = sum(part[2] for part in known)
    dots = "".join(
        f'<circle class="a" cx="{_x(p):.2f}" cy="{_y(b):.2f}" r="{0.9 + 1.3 * (n / pixels) ** 0.25:.2f}">'
        f"<title>probability {p:.2f}: {b:.2f} of {n:,} pixels are building</title></circle>"
        for p, b, n in known
    )
    lines = _line([(0, 0), (1, 1)], "guide") + _line([(p, b) for p, b, _ in known], "a")
    return _chart("probability", "share that is building", lines + dots, "Reliability curve")


def threshold_chart(curve: Sequence[tuple[float, Confusion]], best: float) -> str:
    """Return IoU, precision and recall against the threshold, with a mark at the best one."""
    parts = []
    for name, kind in (("iou", "a"), ("precision", "b"), ("recall", "c")):
        points = [(threshold, getattr(counts, name)) for threshold, counts in curve]
        parts.append(_line([(x, y) for x, y in points if y == y], kind))
    mark = f'<line class="mark" x1="{_x(best):.2f}" x2="{_x(best):.2f}" y1="{_y(0):.2f}" y2="{_y(1):.2f}"/>'
    return _chart("threshold", "score", mark + "".join(parts), "IoU, precision and recall by threshold")


def versus_chart(points: Iterable[tuple[float, float, str]]) -> str:
    """Return one score of two runs against each other, a dot a scene; labels are HTML."""
    dots = "".join(
        f'<circle class="a" cx="{_x(a):.2f}" cy="{_y(b):.2f}" r="1.3"><title>{label}: {a:.3f}, {b:.3f}</title></circle>'
        for a, b, label in points
    )
    return _chart("IoU of A", "IoU of B", _line([(0, 0), (1, 1)], "guide") + dots, "IoU of both runs by scene")


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """Return a table of bars: label, a share of 0 to 1 (nan: no bar), and what to write behind it; plain HTML."""
    lines = []
    for label, share, text in rows:
        width = 0.0 if share != share else 100 * share
        bar = f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'
        lines.append(f'<tr><th scope="row">{label}</th><td class="wide">{bar}</td><td>{text}</td></tr>')
    return f'<table class="bars">{"".join(lines)}</table>'


def _chart(x_label: str, y_label: str, inside: str, title: str) -> str:
    ticks = "".join(
        f'<line class="grid" x1="{_x(0)}" x2="{_x(1)}" y1="{_y(v):.2f}" y2="{_y(v):.2f}"/>'
        f'<line class="grid" x1="{_x(v):.2f}" x2="{_x(v):.2f}" y1="{_y(0)}" y2="{_y(1)}"/>'
        f'<text x="{LEFT - 1.5}" y="{_y(v) + 1.3:.2f}" text-anchor="end">{v:g}</text>'
        f'<text x="{_x(v):.2f}" y="{TOP + SIDE + 5}" text-anchor="middle">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    labels = (
        f'<text x="{LEFT + SIDE / 2}" y="98.5" text-anchor="middle">{x_label}</text>'
        f'<text transform="translate(3.2 {TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">{y_label}</text>'
    )
    return f'<svg viewBox="0 0 100 100" role="img" aria-label="{title}">{ticks}{labels}{inside}</svg>'


def _line(points: Points, kind: str) -> str:
    path = " ".join(f"{_x(x):.2f},{_y(y):.2f}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _x(value: float) -> float:
    return LEFT + SIDE * value


def _y(value: float) -> float:
    return TOP + SIDE * (1 - value)
