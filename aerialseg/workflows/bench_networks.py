"""`bench mixers` and `bench presets`: what networks cost and, given tiles, what they learn in equal time.

A row of costs for each network and size; what would take too much is left out and says so. The picture shows costs per
million pixels: what grows with the area is level, what grows faster rises. In equal time each network takes the steps
that fit into so many minutes on this device; reading, validation and start-up are not counted, so that a slow disk does
not decide between networks. All start from random weights, and train by one configuration.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from aerialseg.config import TrainConfig
from aerialseg.config.sections import ModelSection
from aerialseg.errors import BadDataError, ConfigError, Diverged, ResourceError, UsageError, one_line
from aerialseg.files import available_memory, locked, prepare_output_folder, refuse_input_as_output, staged, write_json
from aerialseg.geo.ownership import BENCH, check_overwrite, owner_of
from aerialseg.geo.tiles.tileset import load_tileset
from aerialseg.models.build import check_network, count_network, outline
from aerialseg.models.device import cpu_name, is_out_of_memory, pick_device, pick_precision
from aerialseg.models.mixers import MIXERS
from aerialseg.models.presets import NVIDIA, PRESETS, SIZE_MULTIPLE, ModelSpec, resolve
from aerialseg.models.pyramid import parse_design
from aerialseg.workflows.network_cost import Trial, build, measure_apart, measure_here

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from aerialseg.progress import Progress

ALL_MIXERS = (*MIXERS, "conv,conv,window,full")
COSTS, PICTURE, RUNS = "costs.json", "costs.png", "runs"
GB = 1e9
COMMAND = tuple(BENCH.split())
"""In run.json: by this a run is known to be a bench's."""
EPOCHS = 8
"""Validations of a training; the best one counts."""
PANELS = (
    ("gmacs", "forward: billions of multiply-adds per megapixel"),
    ("train_s", "forward and backward: seconds per megapixel"),
    ("train_bytes", "forward and backward: GB at the peak per megapixel"),
)
MARKERS = "osD^v<>P*X"


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a bench found, and on what."""

    machine: dict[str, str | int]
    """What the numbers depend on."""
    rows: list[Row] = field(default_factory=list)
    accuracy: list[Accuracy] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"made_by": BENCH, **asdict(self)}


def mixer_candidates(names: Sequence[str] = ()) -> list[Candidate]:
    """Return our encoder, under UNet's decoder, with each of these mixers in all stages; no names: with every one.

    Four mixers with commas between, one for each stage, are a name too. Raises ConfigError for an unknown one.
    """
    specs = {name: resolve(None, "unet", "pyramid", encoder_arguments={"mixers": name}) for name in names or ALL_MIXERS}
    for spec in specs.values():
        parse_design(spec.encoder_arguments)
    return [Candidate(name, spec, encoder_only=True) for name, spec in specs.items()]


def preset_candidates(names: Sequence[str] = (), *, accept_licence: bool = False) -> list[Candidate]:
    """Return these presets; no names: all whose licence allows any use, or with `accept_licence` all.

    Raises ConfigError for an unknown one, or one whose licence was not accepted.
    """
    chosen = names or [name for name, preset in PRESETS.items() if accept_licence or preset.licence != NVIDIA]
    specs = {name: resolve(name, accept_licence=accept_licence) for name in chosen}
    for name in specs:
        if PRESETS[name].licence == NVIDIA and not accept_licence:
            raise ConfigError(f"{name} is under NVIDIA's non-commercial licence; to accept that say --accept-licence")
    return [Candidate(name, spec, size_multiple=PRESETS[name].size_multiple) for name, spec in specs.items()]


def bench_networks(
    candidates: Sequence[Candidate],
    options: BenchOptions,
    progress: Progress,
    *,
    budget: Budget | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Findings:
    """Measure costs and, with a `budget`, train; `out` gets costs.json, costs.png and runs/NAME, also after a stop.

    Raises UsageError for a budget without a folder, or whose tiles lie in it, OutputError when names in it are taken by
    others, also by trainings that no bench began, and what `measure_costs` and `train` raise.
    """
    if budget is not None and out is None:
        raise UsageError("--tiles needs --out FOLDER: the trainings write their runs there")
    device = pick_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    precision = pick_precision(options.precision, device)
    findings = Findings({
        "device": str(device), "name": name, "precision": precision, "batch": options.batch,
        "threads": torch.get_num_threads(), "torch": str(torch.__version__),
    })  # fmt: skip
    with ExitStack() as ending:
        if out is not None:
            prepare_output_folder(out)
            ending.enter_context(locked(out))
            if budget is not None:
                refuse_input_as_output([budget.tiles], [out])
            for name in (COSTS, PICTURE):
                check_overwrite(out / name, "bench report", overwrite=overwrite, marked=out / COSTS)
            ending.callback(_write, out, findings)
        for row in measure_costs(candidates, options, progress):
            findings.rows.append(row)
        if budget is not None and out is not None:
            for candidate in candidates:
                run = out / RUNS / candidate.name.replace(",", "-")
                findings.accuracy.append(
                    train_in_time(candidate, budget, run, options.device, progress, overwrite=overwrite)
                )
    return findings


def _write(out: Path, findings: Findings) -> None:
    """Keep what was found, also after a stop; as long as that is nothing, what a bench before this one found stays."""
    if not findings.rows:
        return
    write_json(out / COSTS, findings.to_json())
    draw_costs(out / PICTURE, findings.rows, findings.machine)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network under the name of its row."""

    name: str
    spec: ModelSpec
    encoder_only: bool = False
    """Measure our own encoder without the spec's decoder, for mixers differ in nothing else."""
    size_multiple: int = SIZE_MULTIPLE


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """On what the networks are measured."""

    sizes: tuple[int, ...]
    batch: int = 2
    """Tiles per pass; some networks cannot learn from a single one."""
    device: str = "auto"
    precision: str = "auto"
    limit_s: float = 60.0
    """A size is left out when a pass, forward and backward, would probably take longer."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            if not 32 <= size <= 8192 or size % SIZE_MULTIPLE:
                raise UsageError(f"--sizes has {size}, expected multiples of {SIZE_MULTIPLE} from 32 to 8192")
        if not 1 <= self.batch <= 4096:
            raise UsageError(f"--batch is {self.batch}, expected 1 to 4096")
        if not self.limit_s > 0:
            raise UsageError(f"--limit is {self.limit_s:g}, expected seconds above 0")


@dataclass(frozen=True, slots=True)
class Row:
    """One network at one size; times and memory are None where `note` says why (see Cost for what they are)."""

    name: str
    size: int
    parameters: int
    gmacs: float | None
    """Billions of multiply-adds of one tile, forward; of the encoder alone where only that is measured."""
    forward_s: float | None = None
    forward_bytes: int | None = None
    train_s: float | None = None
    train_bytes: int | None = None
    note: str = ""


def measure_costs(candidates: Sequence[Candidate], options: BenchOptions, progress: Progress) -> Iterator[Row]:
    """Yield a row for every network and size, small tiles first.

    On a processor each is measured in a process of its own. Raises DeviceError before anything is measured.
    """
    device = pick_device(options.device)
    options = replace(options, device=str(device), precision=pick_precision(options.precision, device))
    sizes = sorted(set(options.sizes))
    progress.start("measuring", len(candidates) * len(sizes), "measurement")
    for candidate in candidates:
        if candidate.encoder_only:
            with torch.device("meta"):
                network = build(candidate.spec, encoder_only=True)
        else:
            network = outline(candidate.spec)
        before = None
        for size in sizes:
            if size % candidate.size_multiple:
                parameters = sum(parameter.numel() for parameter in network.parameters())
                note = f"takes multiples of {candidate.size_multiple}"
                row = Row(candidate.name, size, parameters, None, note=note)
            else:
                parameters, macs = count_network(network, candidate.spec.bands, size)
                row = Row(candidate.name, size, parameters, macs / 1e9)
                note = _why_not(row, before, options)
                row = replace(row, note=note) if note else _measured(candidate, row, options, progress)
            before = before if row.note else row
            progress.advance(1, f"{candidate.name} at {size} px")
            yield row
    progress.finish()


def _why_not(row: Row, before: Row | None, options: BenchOptions) -> str:
    """Say why a size is not measured, as far as the size `before` it tells."""
    if before is None or before.train_s is None or not before.gmacs or row.gmacs is None:
        return ""
    seconds = before.train_s * options.batch * row.gmacs / before.gmacs
    if seconds > options.limit_s:
        return f"left out: about {seconds:,.0f} s a pass, the limit is {options.limit_s:g} s"
    needed, free = (before.train_bytes or 0) * (row.size / before.size) ** 2, _free_memory(options.device)
    if free is not None and needed > free:
        return f"left out: about {needed / GB:,.0f} GB, {free / GB:,.0f} GB are free"
    return ""


def _measured(candidate: Candidate, row: Row, options: BenchOptions, progress: Progress) -> Row:
    free = _free_memory(options.device)
    where = (options.device, options.precision)
    trial = Trial(candidate.spec, row.size, options.batch, *where, options.limit_s, candidate.encoder_only, free)
    cost = measure_apart(trial, progress) if options.device == "cpu" else measure_here(trial)
    return replace(row, note=cost) if isinstance(cost, str) else replace(row, **asdict(cost))


def _free_memory(device: str) -> int | None:
    """Return the bytes that a pass may take; torch's own reserve on a card is free too."""
    if device == "cpu":
        return available_memory()
    if not device.startswith("cuda"):
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


@dataclass(frozen=True, slots=True)
class Budget:
    """What every network trains on, and how long; the configuration's network and schedule are replaced."""

    tiles: Path
    minutes: float
    config: TrainConfig

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise UsageError(f"--minutes is {self.minutes:g}, expected minutes above 0")
        if not load_tileset(self.tiles).of_split("val"):
            raise BadDataError(
                f"{one_line(self.tiles)}: has no validation tiles, so accuracy cannot be told; cut tiles with --split"
            )


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a network learned, or why it did not."""

    name: str
    iou: float | None = None
    """Of buildings on the validation tiles, at the best threshold of the best epoch."""
    steps: int = 0
    seconds: float | None = None
    """Of the whole training, reading and validation included."""
    note: str = ""


def train_in_time(
    candidate: Candidate, budget: Budget, run: Path, device: str, progress: Progress, *, overwrite: bool = False
) -> Accuracy:
    """Train one network into the folder `run`; what cannot be trained so, for its size or its memory, has a note.

    A run that a bench began is begun anew; raises OutputError for one of another origin, unless `overwrite`.
    """
    from aerialseg.training.history import RUN
    from aerialseg.training.loop import train
    from aerialseg.training.run_folder import TrainOptions
    from aerialseg.workflows.bench_train import seconds_per_step

    spec = candidate.spec
    named = {"architecture": spec.architecture, "encoder": spec.encoder, "weights": "none"}
    section = ModelSection(**named, encoder_arguments=dict(spec.encoder_arguments), accept_licence=spec.accept_licence)
    try:
        check_network(spec, budget.config.data.crop)
        config = budget.config.model_copy(update={"model": section})
        steps = max(1, int(60 * budget.minutes / seconds_per_step(config, device)))
        epochs = min(EPOCHS, steps)
        changes = {"epochs": epochs, "steps_per_epoch": steps // epochs, "patience": 0}
        config = config.model_copy(update={"schedule": config.schedule.model_copy(update=changes)})
        ours = owner_of(run / RUN, "bench run") == "ours"
        options = TrainOptions(device, overwrite=ours or overwrite, command=COMMAND)
        report = train(budget.tiles, config, run, options=options, progress=progress)
    except (ConfigError, ResourceError, Diverged) as error:
        return Accuracy(candidate.name, note=str(error))
    except RuntimeError as error:  # of the trial: `train` gives advice instead
        if not is_out_of_memory(error):
            raise
        return Accuracy(candidate.name, note="out of memory")
    return Accuracy(candidate.name, report.best_iou, report.steps, report.seconds)


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
    for axes, (cost, label) in zip(panels, PANELS, strict=True):
        for index, name in enumerate(sorted(dearest, key=lambda name: -dearest[name])):  # the legend, as the lines end
            shown = [row for row in rows if row.name == name and getattr(row, cost)]
            share = 1e-9 / int(machine["batch"]) if cost == "train_bytes" else 1.0  # memory is that of a whole batch
            values = [float(getattr(row, cost)) * share / (row.size**2 / 1e6) for row in shown]
            axes.plot(
                [row.size for row in shown], values, label=name, markersize=5,
                color=colormaps["tab10"](index % 10), marker=MARKERS[index % 10], linestyle="-" if index < 10 else "--",
            )  # fmt: skip
        axes.set(xscale="log", xlabel="side of the tile, pixels", ylabel=label)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        if any(getattr(row, cost) for row in rows):
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
