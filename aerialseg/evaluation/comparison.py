"""Two runs over the same scenes: the difference of each score, how sure it is, and which scenes each one wins.

Both runs are scored on the same pixels, those that both know, and in the same draws of scenes (a paired bootstrap):
scenes that are hard for both do not blur the difference. It is B minus A throughout. The HTML page of a comparison is
made like the report's: nothing to load, light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aerialseg.errors import BadDataError, UsageError, one_line
from aerialseg.evaluation.report import check_report_path, number, render
from aerialseg.evaluation.results import FEW, EvaluationReport, Interval, SceneScore, percentiles, resampled
from aerialseg.evaluation.scores import EvaluateOptions, evaluate_pairs
from aerialseg.files import refuse_input_as_output
from aerialseg.values import to_values

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.evaluation.pairs import Pair
    from aerialseg.progress import Progress

NAMED = 5


@dataclass(frozen=True, slots=True)
class Difference:
    """One score of two runs; nan where a run has none."""

    score: str
    a: float
    b: float
    interval: Interval | None
    """95 % of B - A over scenes drawn anew; None for a single scene, or a score that is often undefined."""
    better_a: int
    """Scenes in which A scores higher; `better_b` likewise, the others are equal or have no score."""
    better_b: int

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.b - self.a

    @property
    def verdict(self) -> str:
        """Return who is better, as far as the interval tells: A, B, or undecided."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "undecided"
        return "B" if self.interval[0] > 0 else "A"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, None where undefined."""
        scores = {"a": self.a, "b": self.b, "difference": self.difference, "interval": self.interval}
        counts = {"better": self.verdict, "scenes_a": self.better_a, "scenes_b": self.better_b}
        plain: dict[str, Any] = to_values({**scores, **counts})
        return plain


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, score by score, and scene by scene."""

    a: EvaluationReport
    b: EvaluationReport
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values: overall.iou.difference, scenes.NAME.iou.a and so on."""
        both = zip(self.a.results, self.b.results, strict=True)
        scenes = {one.name: {"iou": {"a": one.confusion.iou, "b": two.confusion.iou}} for one, two in both}
        overall = {difference.score: difference.to_json() for difference in self.differences}
        plain: dict[str, Any] = to_values({"overall": overall, "scenes": scenes, "warnings": self.warnings})
        return plain


def compare_runs(a: Sequence[Pair], b: Sequence[Pair], options: EvaluateOptions, progress: Progress) -> Comparison:
    """Score the scenes that both runs predicted, where both have data; raises what `evaluate_pairs` does."""
    pairs_a, pairs_b, warnings = common_pairs(a, b)
    found = [evaluate_pairs(pairs, options, progress) for pairs in (pairs_a, pairs_b)]
    compared = compare_reports(found[0], found[1], warnings)
    for warning in compared.warnings:
        progress.say(f"warning: {warning}")
    return compared


def common_pairs(a: Sequence[Pair], b: Sequence[Pair]) -> tuple[list[Pair], list[Pair], list[str]]:
    """Return the pairs of scenes that both runs predicted, each the other's rival, and warnings about the others.

    One prediction on each side makes a pair whatever the names. Raises BadDataError when there is no pair.
    """
    if len(a) == len(b) == 1 and a[0].truth == b[0].truth:
        b = [replace(b[0], name=a[0].name)]
    by_name = {pair.name: pair for pair in b}
    shared = [pair for pair in a if pair.name in by_name]
    if not shared:
        raise BadDataError(
            f"{one_line(a[0].prediction)}: no scene of this run is in the other; give two runs of one set"
        )
    warnings = []
    names = {pair.name for pair in shared}
    for label, run in (("A", a), ("B", b)):
        alone = [one_line(pair.name) for pair in run if pair.name not in names]
        if alone:
            more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
            warnings.append(f"only {label} has {', '.join(alone[:NAMED])}{more}; left out of the comparison")
    others = [by_name[pair.name] for pair in shared]
    first = [replace(one, rival=two.prediction) for one, two in zip(shared, others, strict=True)]
    second = [replace(two, rival=one.prediction) for one, two in zip(shared, others, strict=True)]
    return first, second, warnings


def compare_reports(a: EvaluationReport, b: EvaluationReport, warnings: Sequence[str] = ()) -> Comparison:
    """Compare two evaluations of the same scenes in the same order; raises ValueError for others."""
    if [r.name for r in a.results] != [r.name for r in b.results]:
        raise ValueError("two evaluations of the same scenes are needed")
    pairs = list(zip(a.results, b.results, strict=True))
    doubts = _uneven_ground(pairs)
    if 2 <= len(pairs) < FEW:
        doubts.append(f"{len(pairs)} scenes are few: the intervals are too narrow, so take small differences for none")
    intervals = {}
    if len(pairs) > 1:  # both runs in the same draws
        draws = (resampled([result.counts for result in run.results]) for run in (a, b))
        drawn = [(first.scores(), second.scores()) for first, second in zip(*draws, strict=True)]
        intervals = percentiles([{score: second[score] - first[score] for score in first} for first, second in drawn])
    one, two = a.everything.scores(), b.everything.scores()
    by_scene = [(first.counts.scores(), second.counts.scores()) for first, second in pairs]
    differences = [
        Difference(
            score, one[score], two[score], intervals.get(score),
            sum(first[score] > second[score] for first, second in by_scene),
            sum(second[score] > first[score] for first, second in by_scene),
        )
        for score in one if score != "building_fraction"
    ]  # fmt: skip
    return Comparison(a, b, tuple(differences), (*warnings, *doubts))


def _uneven_ground(pairs: Sequence[tuple[SceneScore, SceneScore]]) -> list[str]:
    """Return a warning when one run has data where the other has none."""
    uneven = [one_line(one.name) for one, two in pairs if one.hidden or two.hidden]
    if not uneven:
        return []
    only_a, only_b = (sum(pair[side].hidden for pair in pairs) for side in (0, 1))
    more = f" and {len(uneven) - NAMED} more" if len(uneven) > NAMED else ""
    return [
        f"{', '.join(uneven[:NAMED])}{more}: A and B have data on different ground ({only_a:,} pixels A alone,"
        f" {only_b:,} pixels B alone); only what both have is judged"
    ]


def check_comparison(path: Path | None, pairs: Sequence[Pair], read: Sequence[Path], *, overwrite: bool) -> None:
    """Raise before any counting when the page cannot be written, or would replace what is read or a foreign file."""
    if path is not None:
        refuse_input_as_output(read, [path])
        check_report_path(path, pairs, overwrite=overwrite)
    elif overwrite:
        raise UsageError("--overwrite says how --report is made; give --report FILE.html too")


def render_comparison(compared: Comparison, names: tuple[str, str], command: str = "") -> str:
    """Return the page as HTML5; `names` are what A and B are called. Scenes go from A's greatest lead to B's."""
    many, both = len(compared.a.results), zip(compared.a.results, compared.b.results, strict=True)
    scenes = [(one.name, one.confusion.iou, two.confusion.iou) for one, two in both]
    known = [scene for scene in scenes if scene[1] == scene[1] and scene[2] == scene[2]]
    rows = []
    for found in compared.differences:
        interval = number(float("nan")) if found.interval is None else "{:+.4f} to {:+.4f}".format(*found.interval)
        cells = [number(found.a), number(found.b), number(found.difference, sign="+"), interval, found.verdict,
                 f"{found.better_a:,}", f"{found.better_b:,}"]  # fmt: skip
        rows.append((found.score.replace("_", " ").replace("iou", "IoU"), cells))
    return render(
        "comparison.html.j2",
        title=f"Two runs over {many} {'scene' if many == 1 else 'scenes'}, compared",
        a=names[0],
        b=names[1],
        warnings=compared.warnings,
        scores=rows,
        scenes=sorted(known, key=lambda scene: scene[2] - scene[1]),
        command=command,
    )
