"""Run the command line as `python -m aerialseg`."""

from __future__ import annotations

import sys

from aerialseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
