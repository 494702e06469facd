"""What the shell of another GIS tells GDAL and PROJ, taken out before rasterio, pyogrio or pyproj is imported.

conda, OSGeo4W and QGIS set variables that point at data and plugins of their own builds. Wheels bring data that fit
them; with a proj.db of another layout, or none, no CRS is known any more, and rasterio reads the variables when it is
imported. Grids are the exception: those of another installation fit, and stay findable.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

PROJ, GDAL = ("PROJ_DATA", "PROJ_LIB"), ("GDAL_DATA", "GDAL_DRIVER_PATH", "OGR_DRIVER_PATH")
GRIDS = "AERIALSEG_GRIDS"
"""Folders of grids, for processes started from this one, which no longer find the variables taken out."""


def take_out(wheel: Path | None) -> dict[str, str]:
    """Take the variables out of the process environment and return them with their values.

    `wheel` is where rasterio is installed. Without data of its own there it was built against the system's, or
    conda's, and then the variables are left alone.
    """
    if wheel is None or not (wheel / "proj_data" / "proj.db").is_file():
        return {}
    taken = {name: os.environ.pop(name) for name in (*PROJ, *GDAL) if name in os.environ}
    given = [taken.get(name, "") for name in PROJ] + [os.environ.get(GRIDS, "")]
    known = dict.fromkeys(folder for value in given for folder in value.split(os.pathsep))
    folders = [folder for folder in known if os.path.isdir(folder)]  # noqa: PTH112 (Path("") is a folder)
    if folders:
        os.environ[GRIDS] = os.pathsep.join(folders)
    if "rasterio.env" in sys.modules and any(name in taken for name in PROJ):  # too late, it has read them
        sys.modules["rasterio.env"].set_proj_data_search_path(str(wheel / "proj_data"))
    return taken


def tell(taken: dict[str, str]) -> None:
    """Log one line about what was taken out; without a handler of the caller's it goes to stderr, as it is."""
    if taken and os.environ.get("RANK", "0") == "0":
        import logging

        from aerialseg.errors import one_line

        listed = ", ".join(f"{name}={value}" for name, value in taken.items())
        logging.getLogger("aerialseg").warning(
            "%s: of another installation, not used: the installed packages bring their own data; unset %s here to be"
            " rid of this line",
            one_line(listed),
            "it" if len(taken) == 1 else "them",
        )


def find_grids() -> None:
    """Let pyproj look for grids where the variables pointed, after its own folder."""
    given = os.environ.get(GRIDS)
    if given:
        from pyproj.datadir import append_data_dir

        append_data_dir(given)


def _wheel() -> Path | None:
    if not any(name in os.environ for name in (*PROJ, *GDAL)):
        return None  # 1 ms for everybody else
    spec = find_spec("rasterio")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


TAKEN_OUT = take_out(_wheel())
"""Variable -> value, as they were when `aerialseg` was imported."""
