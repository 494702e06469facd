"""What `aerialseg` offers, for type checkers and editors; __init__.py loads the same names when they are asked for."""

from aerialseg.config import TrainConfig, load_config
from aerialseg.errors import AerialsegError
from aerialseg.evaluation.results import EvaluationReport
from aerialseg.evaluation.scores import EvaluateOptions, evaluate_scenes
from aerialseg.geo.areas import AreaOptions
from aerialseg.geo.dates import DateOptions
from aerialseg.geo.inspection import Access, BandRule
from aerialseg.geo.masks import MaskRule
from aerialseg.geo.polygons.polygonize import PolygonOptions
from aerialseg.geo.scenes import Scene, find_scenes, pair_masks
from aerialseg.geo.tiles.build import TilingReport, tile_scenes
from aerialseg.geo.tiles.plan import TilingOptions
from aerialseg.models.package import ModelCard
from aerialseg.prediction.arrays import Model, load_model
from aerialseg.prediction.options import PredictOptions
from aerialseg.prediction.report import PredictReport, SceneResult
from aerialseg.prediction.run import predict_scenes
from aerialseg.progress import Progress
from aerialseg.training.loop import train
from aerialseg.training.report import TrainReport
from aerialseg.training.run_folder import TrainOptions

__version__: str

__all__ = [
    "Access",
    "AerialsegError",
    "AreaOptions",
    "BandRule",
    "DateOptions",
    "EvaluateOptions",
    "EvaluationReport",
    "MaskRule",
    "Model",
    "ModelCard",
    "PolygonOptions",
    "PredictOptions",
    "PredictReport",
    "Progress",
    "Scene",
    "SceneResult",
    "TilingOptions",
    "TilingReport",
    "TrainConfig",
    "TrainOptions",
    "TrainReport",
    "__version__",
    "evaluate_scenes",
    "find_scenes",
    "load_config",
    "load_model",
    "pair_masks",
    "predict_scenes",
    "tile_scenes",
    "train",
]
