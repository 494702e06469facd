"""What networks cost as tiles grow: `aerialseg bench mixers` and `bench presets`, kept as tables and pictures.

Mixers are those of our own encoder, in all four stages of its default width and depths, without a decoder; presets are
whole networks. Memory is the peak of a process of its own on a CPU, above what it held before, and that of tensors on a
GPU. A time is the median of up to five passes of a batch; rows that differ by a few per cent are equal.

    python benchmarks/costs.py [--sizes 256,512] [--device cpu] [--write]
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from record import RESULTS, SCRATCH, Row, aerialseg, machine, merge, table, versions

TABLES = {"mixers": "Token mixers of our own encoder", "presets": "Networks"}
COLUMNS = {
    "what": "{name}",
    "tile, px": "{size}",
    "parameters, million": "{parameters_m:.1f}",
    "multiply-adds, billion": "{gmacs:.1f}",
    "forward, s": "{forward_s:.3f}",
    "forward, MB": "{forward_mb:.0f}",
    "forward and backward, s": "{train_s:.3f}",
    "forward and backward, MB": "{train_mb:.0f}",
    "left out": "{note}",
}


def measure(what: str, given: argparse.Namespace) -> list[Row]:
    """Run one of the two commands; returns its rows, and leaves its picture beside the tables when they are kept."""
    folder = given.work / what
    options = ("--sizes", given.sizes, "--batch", given.batch, "--device", given.device, "--precision", given.precision)
    only = [word for name in given.only for word in ("--only", name)]
    found, _ = aerialseg("bench", what, *options, *only, "-o", folder)
    if given.write:
        given.results.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "costs.png", given.results / f"costs-{what}.png")
    about = {"what": what, "batch": given.batch, "precision": found["machine"]["precision"], "versions": versions(),
             "machine": machine(found["machine"]["device"]), "measured": time.strftime("%Y-%m-%d")}  # fmt: skip
    return [{**row, **about, **_in_common_units(row)} for row in found["rows"]]


def _in_common_units(row: Row) -> Row:
    memory = {f"{kind}_mb": None if row[f"{kind}_bytes"] is None else row[f"{kind}_bytes"] / 1e6
              for kind in ("forward", "train")}  # fmt: skip
    return {"parameters_m": row["parameters"] / 1e6, **memory}


def page(rows: list[Row]) -> str:
    """Return the results as Markdown, machine by machine."""
    text = [f"# What networks cost\n\n{(__doc__ or '').strip()}\n"]
    for where in sorted({row["machine"] for row in rows}):
        text.append(f"## {where}\n")
        for what, title in TABLES.items():
            chosen = [row for row in rows if (row["machine"], row["what"]) == (where, what)]
            if chosen := sorted(chosen, key=lambda row: (row["size"], row["gmacs"] or 0.0)):
                first = chosen[0]
                about = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
                text.append(f"### {title}: batches of {first['batch']}, {first['precision']}\n")
                text.append(f"![cost against tile size](costs-{what}.png)\n\n{table(COLUMNS, chosen)}\n")
                text.append(f"{about}; {first['measured']}\n")
    return "\n".join(text)


def main() -> None:
    """Read the options, measure, print, and keep the tables when asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--only", nargs="+", default=[], help="names of mixers or presets; default: all")
    parser.add_argument("--sizes", default="256,512")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--work", type=Path, default=SCRATCH / "costs")
    parser.add_argument("--write", action="store_true", help="keep the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where; default: benchmarks/results")
    given = parser.parse_args()
    rows = [row for what in given.tables for row in measure(what, given)]
    if given.write:
        rows = merge(given.results / "costs.json", rows, ("machine", "what", "batch", "precision", "name", "size"))
        (given.results / "costs.md").write_text(page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
