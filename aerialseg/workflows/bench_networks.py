"""`bench mixers` and `bench presets`: what networks cost and, given tiles, what each learns in equal time.

Costs are in cost_table.py, trainings in equal_time.py, the picture in cost_plot.py.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from aerialseg.errors import ConfigError, UsageError
from aerialseg.files import locked, prepare_output_folder, refuse_foreign, refuse_input_as_output, write_json
from aerialseg.models.build import resolve
from aerialseg.models.device import cpu_name, pick_device, pick_precision
from aerialseg.models.mixers import MIXERS
from aerialseg.models.presets import NVIDIA, PRESETS
from aerialseg.models.pyramid import parse_design
from aerialseg.workflows.cost_plot import draw_costs
from aerialseg.workflows.cost_table import BenchOptions, Contestant, Row, measure_costs
from aerialseg.workflows.equal_time import Accuracy, Budget, train_in_time

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.progress import Progress

ALL_MIXERS = (*MIXERS, "conv,conv,window,full")
COSTS, PICTURE, RUNS = "costs.json", "costs.png", "runs"
MADE_BY = "aerialseg bench"


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a bench found, and on what."""

    machine: dict[str, str | int]
    rows: list[Row] = field(default_factory=list)
    accuracy: list[Accuracy] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"made_by": MADE_BY, **asdict(self)}


def mixer_contestants(names: Sequence[str] = ()) -> list[Contestant]:
    """Return our encoder, under UNet's decoder, with each of these mixers in all stages; no names: with every one.

    Four mixers with commas between, one for each stage, are a name too. Raises ConfigError for an unknown one.
    """
    specs = {name: resolve(None, "unet", "pyramid", encoder_arguments={"mixers": name}) for name in names or ALL_MIXERS}
    for spec in specs.values():
        parse_design(spec.encoder_arguments)
    return [Contestant(name, spec, encoder_only=True) for name, spec in specs.items()]


def preset_contestants(names: Sequence[str] = (), *, accept_licence: bool = False) -> list[Contestant]:
    """Return these presets; no names: all whose licence allows any use, or with `accept_licence` all.

    Raises ConfigError for an unknown one, or one whose licence was not accepted.
    """
    chosen = names or [name for name, preset in PRESETS.items() if accept_licence or preset.licence != NVIDIA]
    specs = {name: resolve(name, accept_licence=accept_licence) for name in chosen}
    for name in specs:
        if PRESETS[name].licence == NVIDIA and not accept_licence:
            raise ConfigError(f"{name} is under NVIDIA's non-commercial licence; to accept that say --accept-licence")
    return [Contestant(name, spec, size_multiple=PRESETS[name].size_multiple) for name, spec in specs.items()]


def bench_networks(
    contestants: Sequence[Contestant],
    options: BenchOptions,
    progress: Progress,
    *,
    budget: Budget | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Findings:
    """Measure costs and, with a `budget`, train; `out` gets costs.json, costs.png and runs/NAME, also after a stop.

    Raises UsageError for a budget without a folder, OutputError when names in it are taken by others, also by trainings
    that no bench began, and what
    `measure_costs` and `train` raise.
    """
    if budget is not None and out is None:
        raise UsageError("--tiles needs --out FOLDER: the trainings write their runs there")
    findings = Findings(_describe(options))
    with ExitStack() as ending:
        if out is not None:
            prepare_output_folder(out)
            ending.enter_context(locked(out))
            _claim(out, budget, overwrite=overwrite)
            ending.callback(_write, out, findings)
        for row in measure_costs(contestants, options, progress):
            findings.rows.append(row)
        if budget is not None and out is not None:
            for contestant in contestants:
                run = out / RUNS / contestant.name.replace(",", "-")
                findings.accuracy.append(
                    train_in_time(contestant, budget, run, options.device, progress, overwrite=overwrite)
                )
    return findings


def _claim(out: Path, budget: Budget | None, *, overwrite: bool) -> None:
    """Raise UsageError when the tiles would be written into, OutputError when files in the folder are others'."""
    if budget is not None:
        refuse_input_as_output([budget.tiles], [out])
    path = out / COSTS
    ours = path.is_file() and f'"made_by": "{MADE_BY}"' in path.read_text(errors="replace")[:200]
    for name in (COSTS, PICTURE):
        refuse_foreign(out / name, ours=ours, overwrite=overwrite)


def _write(out: Path, findings: Findings) -> None:
    """Keep what was found, also after a stop; as long as that is nothing, what a bench before this one found stays."""
    if not findings.rows:
        return
    write_json(out / COSTS, findings.to_json())
    draw_costs(out / PICTURE, findings.rows, findings.machine)


def _describe(options: BenchOptions) -> dict[str, str | int]:
    """Return what the numbers depend on."""
    device = pick_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    precision = pick_precision(options.precision, device)
    threads, version = torch.get_num_threads(), str(torch.__version__)
    return {
        "device": str(device), "name": name, "precision": precision, "batch": options.batch,
        "threads": threads, "torch": version,
    }  # fmt: skip
