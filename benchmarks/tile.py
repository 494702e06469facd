"""How fast `aerialseg tile` cuts scenes, against the floor: the same bytes read and written with nothing in between.

Three things are timed in turn, several rounds of them in one run, and their best times compared as ratios, so that a
busy machine slows all of them alike:

tile    `tile_scenes` from checked scenes to a finished set: hashing, counting, reading back, index, manifest
codec   the same windows read and the same GeoTIFFs written by bare rasterio in as many threads
bytes   the scenes' files read and the tiles' files written as plain bytes

    python benchmarks/tile.py [--scenes 4] [--side 5000] [--size 1024] [--threads N] [--rounds 3] [--write]
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from record import RESULTS, SCRATCH, Row, machine, merge, table

COLUMNS = {
    "machine": "{machine}",
    "threads": "{threads}",
    "tile": "{tile:.1f} Mpx/s",
    "codec floor": "{codec:.1f} Mpx/s",
    "bytes floor": "{bytes:.1f} Mpx/s",
    "tile's time / codec's": "{over_codec:.2f}",
    "tile's time / bytes'": "{over_bytes:.2f}",
    "a rerun that finds nothing to do": "{rerun:.2f} s",
}


def draw(folder: Path, scenes: int, side: int) -> Path:
    """Write scenes and masks as Inria's are stored (striped, not compressed), repeated from drawn ones, once."""
    import rasterio

    from aerialseg.sample import write_sample

    drawn = folder / "drawn"
    if not drawn.exists():
        write_sample(drawn, 2, 1024)
    for part, bands in (("images", 3), ("gt", 1)):
        (folder / "train" / part).mkdir(parents=True, exist_ok=True)
        sources = sorted(drawn.rglob(f"{part}/*.tif"))
        for number in range(1, scenes + 1):
            path = folder / "train" / part / f"austin{number}.tif"
            if path.exists():
                continue
            with rasterio.open(sources[number % len(sources)]) as source:
                pixels = np.tile(source.read(), (1, side // 1024 + 1, side // 1024 + 1))[:, :side, :side]
            grid = rasterio.transform.from_origin(616000 + 0.3 * side * number, 3347000, 0.3, 0.3)
            profile = {"driver": "GTiff", "height": side, "width": side, "count": bands, "dtype": "uint8"}
            with rasterio.open(path, "w", crs="EPSG:26914", transform=grid, interleave="pixel", **profile) as target:
                target.write(pixels)
    return folder


def floor_of_codec(jobs: Sequence, out: Path, threads: int) -> None:
    """Read every window and write every tile with rasterio alone, a row of tiles a task as `tile` does it."""
    import rasterio

    from aerialseg.geo.tiles.cut import rows_of

    def cut(job: object, row: Sequence) -> None:
        for part, path in (("images", job.scene.image), ("masks", job.scene.mask)):
            with rasterio.open(path) as source:
                for planned in row:
                    pixels = source.read(window=planned.tile.window)
                    profile = {
                        "driver": "GTiff", "height": pixels.shape[1], "width": pixels.shape[2], "count": len(pixels),
                        "dtype": "uint8", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "zstd",
                        "zstd_level": 1, "interleave": "pixel", "crs": source.crs,
                        "transform": source.window_transform(planned.tile.window),
                    }  # fmt: skip
                    with rasterio.open(out / part / f"{planned.name}.tif", "w", **profile) as target:
                        target.write(pixels)

    for part in ("images", "masks"):
        (out / part).mkdir(parents=True)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda piece: cut(*piece), [(job, row) for job in jobs for row in rows_of(job)]))


def floor_of_bytes(jobs: Sequence, tiles: Path, out: Path) -> None:
    """Read the scenes' and masks' files and write files of the tiles' sizes."""
    out.mkdir(parents=True)
    for job in jobs:
        for path in job.inputs:
            path.read_bytes()
    for number, path in enumerate(sorted(tiles.glob("*/*.tif"))):
        (out / str(number)).write_bytes(bytes(path.stat().st_size))


def timed(call: Callable[[], object], *folders: Path) -> float:
    """Return the seconds of a call, after removing what it will write and settling the disk."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(work: Path, scenes: int, side: int, size: int, threads: int, rounds: int) -> Row:
    """Return the best of some rounds, in which all contestants take turns."""
    from aerialseg.geo.scenes import find_scenes
    from aerialseg.geo.tiles.build import tile_scenes
    from aerialseg.geo.tiles.plan import TilingOptions, plan_tiles
    from aerialseg.progress import Silent

    given = find_scenes([draw(work / f"scenes{side}", scenes, side)])[:scenes]
    options = TilingOptions(size=size, split="0", threads=threads)
    jobs = plan_tiles(given, options, Silent()).jobs
    out, plain, raw = work / "out", work / "plain", work / "raw"
    best = {"tile": np.inf, "rerun": np.inf, "codec": np.inf, "bytes": np.inf}
    for _ in range(rounds):
        best["tile"] = min(best["tile"], timed(lambda: tile_scenes(given, out, options), out))
        best["rerun"] = min(best["rerun"], timed(lambda: tile_scenes(given, out, options)))
        best["codec"] = min(best["codec"], timed(lambda: floor_of_codec(jobs, plain, threads), plain))
        best["bytes"] = min(best["bytes"], timed(lambda: floor_of_bytes(jobs, out, raw), raw))
    mpx = sum(job.box.height * job.box.width for job in jobs) / 1e6
    return {
        "machine": machine("cpu"), "threads": threads, "scenes": scenes, "side": side, "size": size, "mpx": mpx,
        **{name: mpx / best[name] for name in ("tile", "codec", "bytes")}, "rerun": best["rerun"],
        "over_codec": best["tile"] / best["codec"], "over_bytes": best["tile"] / best["bytes"],
    }  # fmt: skip


def page(rows: list[Row]) -> str:
    """Return the results as Markdown."""
    first = rows[0]
    what = (
        f"{first['scenes']} scenes of {first['side']} x {first['side']} px (uint8 RGB, striped, as Inria's) with masks,"
        f" cut into tiles of {first['size']} px. Best of several rounds; `benchmarks/tile.py` describes the floors."
    )
    made = "Made by `python benchmarks/tile.py --write`."
    return f"# Cutting scenes into tiles\n\n{what}\n\n{table(COLUMNS, rows)}\n\n{made}\n"


def main() -> None:
    """Measure, print, and write when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--side", type=int, default=5000, help="of a scene, in pixels")
    parser.add_argument("--size", type=int, default=1024, help="of a tile, in pixels")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) + 2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="add the result to benchmarks/results/tile.md")
    given = parser.parse_args()
    row = measure(SCRATCH / "tile", given.scenes, given.side, given.size, given.threads, given.rounds)
    keys = ("machine", "threads", "scenes", "side", "size")
    rows = merge(RESULTS / "tile.json", [row], keys) if given.write else [row]
    text = page(rows)
    print(text)
    if given.write:
        (RESULTS / "tile.md").write_text(text)


if __name__ == "__main__":
    main()
