"""A comparison of two runs as one HTML page, made like the report's: nothing to load, light and dark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerialseg.errors import UsageError
from aerialseg.evaluation.charts import versus_chart
from aerialseg.evaluation.page import escaped, frame, number
from aerialseg.evaluation.report import check_report_path
from aerialseg.files import refuse_input_as_output, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.evaluation.comparison import Comparison, Difference
    from aerialseg.evaluation.pairs import Pair


def check_comparison(path: Path | None, pairs: Sequence[Pair], read: Sequence[Path], *, overwrite: bool) -> None:
    """Raise before any counting when the page cannot be written, or would replace what is read or a stranger's file."""
    if path is not None:
        refuse_input_as_output(read, [path])
        check_report_path(path, pairs, overwrite=overwrite)
    elif overwrite:
        raise UsageError("--overwrite says how --report is made; give --report FILE.html too")


def write_comparison(path: Path, compared: Comparison, names: tuple[str, str], command: str) -> None:
    """Write the page; `names` are what A and B are called. Raises OutputError and StorageError."""
    write_text(path, render_comparison(compared, names, command))


def render_comparison(compared: Comparison, names: tuple[str, str], command: str = "") -> str:
    """Return the page as HTML5; `names` are what A and B are called."""
    many = len(compared.a.results)
    title = f"Two runs over {many} {'scene' if many == 1 else 'scenes'}, compared"
    a, b = (escaped(name) for name in names)
    intro = f"<p><b>A</b> is {a}, <b>B</b> is {b}. Differences are B minus A; both runs share every draw of scenes.</p>"
    warnings = "".join(f"<li>{escaped(line)}</li>" for line in compared.warnings)
    notes = f"<section><h2>Take note</h2><ul>{warnings}</ul></section>" if warnings else ""
    table = "".join(map(_row, compared.differences))
    columns = ("A", "B", "B &minus; A", "95 % of the draws", "better", "scenes A wins", "scenes B wins")
    heads = "".join(f'<th scope="col">{column}</th>' for column in columns)
    overall = f'<div class="scroll"><table><thead><tr><td></td>{heads}</tr></thead><tbody>{table}</tbody></table></div>'
    again = f"<section><h2>How to reproduce</h2><pre>{escaped(command)}</pre></section>" if command else ""
    return frame(title, f"{intro}{notes}<section><h2>Overall</h2>{overall}</section>{_scenes(compared)}{again}")


def _row(found: Difference) -> str:
    interval = "&ndash;" if found.interval is None else f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}"
    label = found.score.replace("_", " ").replace("iou", "IoU")
    cells = (number(found.a), number(found.b), number(found.difference, sign="+"), interval, found.verdict,
             f"{found.better_a:,}", f"{found.better_b:,}")  # fmt: skip
    return f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _scenes(compared: Comparison) -> str:
    """Return a chart of both IoUs, and the scenes from A's greatest lead to B's."""
    pairs = [(one.name, one.confusion.iou, two.confusion.iou)
             for one, two in zip(compared.a.results, compared.b.results, strict=True)]  # fmt: skip
    known = sorted((pair for pair in pairs if pair[1] == pair[1] and pair[2] == pair[2]), key=lambda p: p[2] - p[1])
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{a:.4f}</td><td>{b:.4f}</td><td>{b - a:+.4f}</td></tr>'
        for name, a, b in known
    )
    heads = "<td></td><th>IoU of A</th><th>IoU of B</th><th>B &minus; A</th>"
    table = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    chart = versus_chart([(a, b, escaped(name)) for name, a, b in known])
    caption = "<figcaption>A dot above the diagonal is a scene that B wins.</figcaption>"
    return (
        f'<section><h2>Scene by scene</h2><div class="charts"><figure>{chart}{caption}</figure>{table}</div></section>'
    )
