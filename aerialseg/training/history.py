"""What a run leaves: the names of its files, and metrics.csv, curves.png and TensorBoard events, one row per epoch."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from aerialseg.files import staged, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONFIG, RUN = "config.toml", "run.json"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
METRICS = "metrics.csv"
CURVES = "curves.png"
EVENTS = "events.out.tfevents.*"
SCORES = ("iou", "iou_at_half", "accuracy", "precision", "recall", "f1", "threshold")
"""The fields of a record that come from validation."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch; scores are of the averaged weights at the best threshold, nan without validation."""

    epoch: int
    """Counted from 1."""
    step: int
    """Steps taken since the beginning of the run."""
    lr: float
    loss: float
    """Mean over the epoch's steps."""
    skipped: int = 0
    """Steps that float16's loss scaling left out."""
    iou: float = math.nan
    iou_at_half: float = math.nan
    """IoU at a threshold of 0.5."""
    accuracy: float = math.nan
    precision: float = math.nan
    recall: float = math.nan
    f1: float = math.nan
    threshold: float = math.nan
    images_per_s: float = math.nan
    """Crops per second of training, without validation."""
    seconds: float = math.nan
    """Wall time of the epoch, with validation."""


def write_metrics(run: Path, records: Sequence[EpochRecord]) -> None:
    """Write metrics.csv anew as a whole; a score that does not exist is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(EpochRecord)])
    writer.writerows([_cell(value) for value in asdict(record).values()] for record in records)
    write_text(run / METRICS, text.getvalue())


def draw_curves(run: Path, records: Sequence[EpochRecord]) -> None:
    """Draw loss and validation scores by epoch into curves.png."""
    if not records:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever MPLBACKEND says
    epochs = [record.epoch for record in records]
    marker = "o" if len(records) < 20 else None
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [record.loss for record in records], marker=marker, color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss")
    for name, colour in (("iou", "tab:red"), ("precision", "tab:green"), ("recall", "tab:purple")):
        right.plot(epochs, [getattr(record, name) for record in records], marker=marker, color=colour, label=name)
    right.set(xlabel="epoch", ylabel="validation score at the best threshold", ylim=(0, 1))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with staged(run / CURVES) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def scalars(record: EpochRecord) -> dict[str, float]:
    """Return what a logger shows of an epoch, by names of two parts: training/loss, validation/iou; nan is left out."""
    shown = {name: value for name, value in asdict(record).items() if name not in ("epoch", "step")}
    groups = {name: "validation" if name in SCORES else "training" for name in shown}
    return {f"{groups[name]}/{name}": value for name, value in shown.items() if not math.isnan(value)}


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6g}"
