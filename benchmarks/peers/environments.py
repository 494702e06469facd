"""An environment for every peer, made from its list of requirements; what cannot be installed is left out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PEERS = Path(__file__).resolve().parent
NAMES = {"monai": "MONAI", "toolbelt": "pytorch-toolbelt", "torchgeo": "torchgeo", "rastervision": "raster-vision"}


def environments(work: Path) -> Iterator[tuple[str, Path]]:
    """Yield the peers that can be installed, with their Python; says of the others why not."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}") or "uv"
    for name in NAMES:
        requirements, folder = PEERS / f"{name}.txt", work / "environments" / name
        python, stamp = folder / "bin" / "python", folder / "installed.txt"
        if not stamp.is_file() or stamp.read_text() != requirements.read_text():
            make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)]
            install = [uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", str(requirements)]
            try:
                for command in (make, install):
                    subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                print(f"skipped: {NAMES[name]}: cannot be installed: {told[0]}", file=sys.stderr)
                continue
            stamp.write_text(requirements.read_text())
        yield name, python
