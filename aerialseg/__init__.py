"""Building segmentation of aerial scenes: tiles, training, and georeferenced masks that open in QGIS.

The public surface is what `__all__` names. Each name is loaded when it is first asked for, so that neither
`import aerialseg` nor `aerialseg --help` loads numpy or torch; type checkers read the same names in __init__.pyi.
"""

from __future__ import annotations

from importlib import import_module

from aerialseg import environment as _environment  # noqa: F401  (before any module of ours can import rasterio)

__version__ = "0.1.0"

_HOMES = {
    "Access": "geo.inspection",
    "AerialsegError": "errors",
    "AreaOptions": "geo.areas",
    "BandRule": "geo.inspection",
    "DateOptions": "geo.dates",
    "EvaluateOptions": "evaluation.scores",
    "EvaluationReport": "evaluation.results",
    "MaskRule": "geo.masks",
    "Model": "prediction.arrays",
    "ModelCard": "models.package",
    "PolygonOptions": "geo.polygons.polygonize",
    "PredictOptions": "prediction.options",
    "PredictReport": "prediction.report",
    "Progress": "progress",
    "Scene": "geo.scenes",
    "SceneResult": "prediction.report",
    "TilingOptions": "geo.tiles.plan",
    "TilingReport": "geo.tiles.build",
    "TrainConfig": "config",
    "TrainOptions": "training.run_folder",
    "TrainReport": "training.report",
    "evaluate_scenes": "evaluation.scores",
    "find_scenes": "geo.scenes",
    "load_config": "config",
    "load_model": "prediction.arrays",
    "pair_masks": "geo.scenes",
    "predict_scenes": "prediction.run",
    "tile_scenes": "geo.tiles.build",
    "train": "training.loop",
}
"""The module of each public name."""
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """Load a public name from its module, https://peps.python.org/pep-0562/."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return what completion offers: what is public and what has been imported."""
    return sorted({*globals(), *__all__})
