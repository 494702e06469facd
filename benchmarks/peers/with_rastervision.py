"""raster-vision's sliding-window prediction, in the steps of its tutorial: windows, scores of both classes, labels."""

import numpy as np
from compete import compete
from rastervision.core.data import ClassConfig, SemanticSegmentationLabels
from rastervision.pytorch_learner import (
    SemanticSegmentationGeoDataConfig,
    SemanticSegmentationLearner,
    SemanticSegmentationLearnerConfig,
    SemanticSegmentationSlidingWindowGeoDataset,
    SolverConfig,
)


def predict(scene, network, given):
    """Average the scores of overlapping windows; the class with the higher one wins."""
    classes = ClassConfig(names=["background", "building"], null_class="background")
    data = SemanticSegmentationGeoDataConfig(class_config=classes, num_workers=0)
    config = SemanticSegmentationLearnerConfig(data=data, solver=SolverConfig(batch_sz=given.batch))
    learner = SemanticSegmentationLearner(config, model=network, training=False)
    windows = SemanticSegmentationSlidingWindowGeoDataset.from_uris(
        class_config=classes, image_uri=str(scene), size=given.window, stride=given.step, out_size=given.window
    )
    shape = {"out_shape": (given.window, given.window)}
    predictions = learner.predict_dataset(windows, raw_out=True, numpy_out=True, predict_kw=shape, progress_bar=False)
    extent = windows.scene.extent
    labels = SemanticSegmentationLabels.from_predictions(
        windows.windows, predictions, smooth=True, extent=extent, num_classes=len(classes)
    )
    return labels.get_label_arr(extent).astype(np.uint8)


if __name__ == "__main__":
    compete(predict, "rastervision-core", classes=2, white=1.0)
