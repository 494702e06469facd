"""What `polygonize` costs: seconds and memory for a large mask, beside gdal_polygonize.py where that is installed.

Every measurement is a command in a process of its own, start-up included, in turn; the least disturbed of `--times`
runs counts for time, the largest for memory. The mask is drawn: rectangles, L shapes and slanted blocks, some with a
courtyard, one to a cell of a lattice, as a tiled and compressed GeoTIFF such as predict writes. gdal_polygonize.py is
given the mask as its own -mask, so that it too leaves the background out; it writes no attribute but the value.

    python benchmarks/polygons.py [--size 20000] [--buildings 100000] [--times 1] [--write]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from record import RESULTS, SCRATCH, Row, machine, merge, table, versions

COLUMNS = {
    "mask": "{size}x{size}",
    "buildings": "{buildings:,}",
    "command": "{kind}",
    "wall, s": "{wall_s:.1f}",
    "processor, s": "{cpu_s:.1f}",
    "peak memory, MB": "{peak_mb:.0f}",
    "runs": "{times}",
    "load average": "{load:.1f}",
    "machine": "{machine}",
}
BLOCK = 512


def draw_mask(size: int, buildings: int) -> tuple[Path, Path]:
    """Write a mask with about so many buildings and a probability raster for it, once."""
    import rasterio
    from rasterio.windows import Window

    import aerialseg.geo  # noqa: F401  (before rasterio)

    folder = SCRATCH / "polygons"
    mask, probability = folder / f"mask{size}-{buildings}.tif", folder / f"probability{size}-{buildings}.tif"
    if mask.exists() and probability.exists():
        return mask, probability
    folder.mkdir(parents=True, exist_ok=True)
    cell = int(size / np.sqrt(buildings))
    grid = rasterio.Affine(0.3, 0, 616000, 0, -0.3, 3347000)
    profile = {"driver": "GTiff", "height": size, "width": size, "count": 1, "dtype": "uint8", "nodata": 255,
               "crs": "EPSG:26914", "transform": grid, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK,
               "compress": "deflate"}  # fmt: skip
    stamps = [stamp(cell, seed) for seed in range(64)]
    with rasterio.open(mask, "w", **profile) as target, rasterio.open(probability, "w", **profile) as quanta:
        for number, row in enumerate(range(0, size, cell)):
            rng = np.random.default_rng(number)
            strip = np.zeros((cell, size), dtype=np.uint8)
            for col in range(0, size - cell + 1, cell):
                strip[:, col : col + cell] = stamps[rng.integers(64)]
            strip = strip[: size - row]
            target.write(strip, 1, window=Window(0, row, size, len(strip)))
            sure = np.where(strip, 230 + 8 * (number % 3), 4).astype(np.uint8)
            quanta.write(sure, 1, window=Window(0, row, size, len(strip)))
    return mask, probability


def stamp(cell: int, seed: int) -> np.ndarray:
    """Return one building in a cell, clear of its edges."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:cell, :cell] - (cell - 1) / 2
    turn = rng.choice([0, 0, 0.2, 0.5, 0.9])
    along, across = cols * np.cos(turn) + rows * np.sin(turn), rows * np.cos(turn) - cols * np.sin(turn)
    length, width = cell * rng.uniform(0.2, 0.32), cell * rng.uniform(0.12, 0.3)
    inside = (np.abs(along) < length) & (np.abs(across) < width)
    kind = seed % 4
    if kind == 1:
        inside &= ~((along > 0) & (across > 0))
    if kind == 2:
        inside &= ~((np.abs(along) < length / 3) & (np.abs(across) < width / 3))
    return inside.astype(np.uint8)


def commands(mask: Path, probability: Path, out: Path) -> dict[str, list[str]]:
    """Return what is measured, by name."""
    ours = [sys.executable, "-m", "aerialseg", "polygonize", str(mask), "-f"]
    found = {
        "aerialseg polygonize": [*ours, "-o", str(out / "ours.gpkg")],
        "... --probability": [*ours, "--probability", str(probability), "-o", str(out / "mean.gpkg")],
        "... --simplify 0.5": [*ours, "--simplify", "0.5", "-o", str(out / "simplified.gpkg")],
        "... -o .fgb": [*ours, "-o", str(out / "ours.fgb")],
        "... -o .geojson": [*ours, "-o", str(out / "ours.geojson")],
    }
    gdal = shutil.which("gdal_polygonize.py")
    if gdal is not None:
        theirs = ["/usr/bin/env", "PYTHONPATH=", "/usr/bin/python3", gdal, "-q", str(mask), "-mask", str(mask)]
        found["gdal_polygonize.py"] = [*theirs, str(out / "theirs.gpkg")]
    return found


def measured(command: list[str]) -> Row:
    """Run a command, whose last word is the file it writes; return its wall and processor time and peak memory."""
    Path(command[-1]).unlink(missing_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    wall = time.monotonic() - began
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def rows_of(target: Path) -> int:
    """Return how many buildings a GeoPackage holds."""
    import pyogrio

    layer = "buildings" if target.name == "ours.gpkg" else None
    return int(pyogrio.read_info(target, layer=layer, force_feature_count=True)["features"])


def compare(size: int, buildings: int, times: int) -> list[Row]:
    """Measure every command in turn, and check that all agree on the number of buildings."""
    mask, probability = draw_mask(size, buildings)
    out = mask.with_name("out")
    out.mkdir(exist_ok=True)
    wanted = commands(mask, probability, out)
    runs: dict[str, list[Row]] = {kind: [] for kind in wanted}
    for _ in range(times):
        for kind, command in wanted.items():
            runs[kind].append(measured(command))
    count = rows_of(out / "ours.gpkg")
    if (out / "theirs.gpkg").exists() and rows_of(out / "theirs.gpkg") != count:
        sys.exit(f"error: {count} buildings, but gdal_polygonize.py finds {rows_of(out / 'theirs.gpkg')}")
    about = {"size": size, "buildings": count, "times": times, "load": os.getloadavg()[0], "machine": machine("cpu")}
    best = {kind: min(found, key=lambda row: row["wall_s"]) for kind, found in runs.items()}
    peaks = {kind: max(row["peak_mb"] for row in found) for kind, found in runs.items()}
    return [{**best[kind], **about, "kind": kind, "peak_mb": peaks[kind], "versions": versions()} for kind in wanted]


def main() -> None:
    """Read the options, measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--buildings", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results")
    given = parser.parse_args()
    rows = compare(given.size, given.buildings, given.times)
    if given.write:
        rows = merge(RESULTS / "polygons.json", rows, ("size", "kind", "machine"))
        page = f"# polygonize\n\n{(__doc__ or '').strip()}\n\n{table(COLUMNS, rows)}\n"
        (RESULTS / "polygons.md").write_text(page)
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
