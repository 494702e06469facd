"""Run by Debian's own Python beside QGIS: load rasters and vectors as a person would, report what QGIS makes of them.

Usage: look.py PATH... prints one JSON line per path: validity, CRS, extent, classes, and the colours of a rendering at
the layer's own resolution, whose picture is written as DIR/NAME.png with `--pictures DIR`. Of a project (.qgz): its
CRS, extent, tree and each layer, and the rendering of what is switched on at `--width` pixels; `--save` saves it as a
person would who had changed its title.
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
    QgsLayerTreeGroup,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsPalettedRasterRenderer,
    QgsProject,
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
    seen["extent"] = corners(extent)
    renderer = layer.renderer()
    seen["renderer"] = renderer.type()
    if isinstance(renderer, QgsPalettedRasterRenderer):
        seen["classes"] = [[item.value, item.label, list(item.color.getRgb())] for item in renderer.classes()]
    elif vector and hasattr(renderer, "categories"):
        seen["classes"] = [[item.value(), item.label()] for item in renderer.categories()]
    size = (512, 512) if vector else (layer.width(), layer.height())
    picture = render([layer], layer.crs(), extent, *size)
    seen["colours"] = colours(picture)
    if pictures is not None:
        picture.save(str(pictures / f"{path.name}.png"))
    return seen


def look_at_project(path: Path, pictures: Path | None, width: int, save: bool) -> dict:
    project = QgsProject.instance()
    seen: dict = {"path": str(path), "valid": project.read(str(path)), "error": project.error()}
    extent = project.viewSettings().defaultViewExtent()
    seen |= {"crs": project.crs().authid(), "extent": corners(extent), "title": project.title()}
    root = project.layerTreeRoot()
    seen["tree"] = tree_of(root)
    seen["layers"] = [layer_of(node.layer()) for node in root.findLayers()]
    height = round(width * extent.height() / extent.width())
    picture = render(root.checkedLayers(), project.crs(), extent, width, height)
    seen["colours"] = colours(picture)
    if pictures is not None:
        picture.save(str(pictures / f"{path.name}.png"))
    if save:
        project.setTitle("mine")
        seen["saved"] = project.write()
    project.clear()
    return seen


def tree_of(group) -> list:
    """Return the tree from the top down: names of layers, and [name, visible, tree] of groups."""
    return [
        [node.name(), node.isVisible(), tree_of(node)] if isinstance(node, QgsLayerTreeGroup) else node.name()
        for node in group.children()
    ]


def layer_of(layer) -> dict:
    return {
        "name": layer.name(),
        "valid": layer.isValid(),
        "crs": layer.crs().authid(),
        "source": layer.source(),
        "renderer": layer.renderer().type(),
        "legend": [item.label for item in layer.renderer().classes()] if hasattr(layer.renderer(), "classes") else [],
    }


def corners(extent) -> list:
    return [extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum()]


def colours(picture) -> dict:
    pixels = (picture.pixelColor(col, row).name() for row in range(picture.height()) for col in range(picture.width()))
    return dict(Counter(pixels))


def render(layers, crs, extent, width: int, height: int):
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setBackgroundColor(MAGENTA)
    settings.setOutputSize(QSize(width, height))
    settings.setDestinationCrs(crs)
    settings.setExtent(extent)
    settings.setFlag(QgsMapSettings.Antialiasing, False)
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    return job.renderedImage()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    QgsApplication.setAttribute(Qt.AA_ShareOpenGLContexts)
    application = QgsApplication([], False)
    application.initQgis()
    for path in arguments.paths:
        if path.suffix == ".qgz":
            seen = look_at_project(path, arguments.pictures, arguments.width, arguments.save)
        else:
            seen = look(path, arguments.pictures)
        print(json.dumps(seen), flush=True)
    sys.stdout.flush()
    os._exit(0)  # QGIS's own teardown may end in a segmentation fault after all is done


if __name__ == "__main__":
    main()
