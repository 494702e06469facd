"""Run by Debian's own Python beside QGIS: load rasters and vectors as a person would, report what QGIS makes of them.

Usage: look.py PATH... prints one JSON line per path: validity, CRS, extent, classes, and the colours of a rendering at
the layer's own resolution, whose picture is written beside the path as PATH.png with `--pictures DIR`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

from qgis.core import (
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsPalettedRasterRenderer,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize, Qt
from qgis.PyQt.QtGui import QColor

MAGENTA = QColor(255, 0, 255)
"""The canvas: what shows through where a layer is transparent."""


def look(path: Path, pictures: Path | None) -> dict:
    vector = path.suffix == ".gpkg"
    layer = QgsVectorLayer(str(path), path.stem) if vector else QgsRasterLayer(str(path), path.stem)
    seen: dict = {"path": str(path), "valid": layer.isValid()}
    if not layer.isValid():
        return seen
    extent = layer.extent()
    seen["crs"] = layer.crs().authid()
    seen["extent"] = [extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum()]
    renderer = layer.renderer()
    seen["renderer"] = renderer.type()
    if isinstance(renderer, QgsPalettedRasterRenderer):
        seen["classes"] = [[item.value, item.label, list(item.color.getRgb())] for item in renderer.classes()]
    elif vector:
        seen["classes"] = [[item.value(), item.label()] for item in renderer.categories()]
    size = (512, 512) if vector else (layer.width(), layer.height())
    picture = render(layer, *size)
    pixels = (picture.pixelColor(col, row).name() for row in range(picture.height()) for col in range(picture.width()))
    seen["colours"] = dict(Counter(pixels))
    if pictures is not None:
        picture.save(str(pictures / f"{path.name}.png"))
    return seen


def render(layer, width: int, height: int):
    settings = QgsMapSettings()
    settings.setLayers([layer])
    settings.setBackgroundColor(MAGENTA)
    settings.setOutputSize(QSize(width, height))
    settings.setDestinationCrs(layer.crs())
    settings.setExtent(layer.extent())
    settings.setFlag(QgsMapSettings.Antialiasing, False)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    return job.renderedImage()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    QgsApplication.setAttribute(Qt.AA_ShareOpenGLContexts)
    application = QgsApplication([], False)
    application.initQgis()
    for path in arguments.paths:
        print(json.dumps(look(path, arguments.pictures)), flush=True)
    sys.stdout.flush()
    os._exit(0)  # QGIS's own teardown may end in a segmentation fault after all is done


if __name__ == "__main__":
    main()
