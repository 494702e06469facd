"""Multiply-adds of the pyramid encoder with each token mixer in all four stages: the column of docs/mixers.md.

Counted from shapes alone (torch's meta device), for one tile; Fourier transforms and pooling are not counted.

    python benchmarks/mixers.py [--sizes 512,2048] [--mixers window linear]
"""

from __future__ import annotations

import argparse

import torch
from record import table
from torch.utils.flop_counter import FlopCounterMode

from aerialseg.models.mixers import MIXERS
from aerialseg.models.pyramid import PyramidEncoder, parse_design


def giga_multiply_adds(mixers: str, size: int) -> float:
    """Return how many the encoder alone takes at its default width and depths for one tile of three bands."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder = PyramidEncoder(3, parse_design({"mixers": mixers})).eval()
        encoder(torch.zeros(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sizes", default="512,2048")
    parser.add_argument("--mixers", nargs="+", default=[*MIXERS, "conv,conv,window,full"])
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    rows = [
        {"mixer": name, **{f"side{size}": giga_multiply_adds(name, size) for size in sizes}} for name in given.mixers
    ]
    print(table({"mixer": "{mixer}", **{f"{size} px": f"{{side{size}:.1f}}" for size in sizes}}, rows))


if __name__ == "__main__":
    main()
