"""The fields of STAC's extensions, held to what their specifications ask for; nothing is fetched.

The rules are ours, written from https://github.com/stac-extensions: projection 2.0, classification 2.0, MLM 1.4.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import pytest
from small_run import CARD, write_entry
from test_stac import CUSTOM, stac_of

from aerialseg.prediction.stac import CLASSIFICATION, MLM, PROJECTION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUMBER = (int, float)
TASKS = {"segmentation", "semantic-segmentation", "instance-segmentation", "panoptic-segmentation", "classification"}
DATA_TYPES = {"uint8", "uint16", "int8", "int16", "int32", "float16", "float32", "float64"}
DIMENSIONS = {"batch", "channel", "time", "height", "width", "depth", "token", "class", "score", "confidence"}
PROJECTION_FIELDS = {"code", "wkt2", "projjson", "geometry", "bbox", "centroid", "shape", "transform"}


def numbers(value: Any, *counts: int, kind: Any = NUMBER) -> bool:
    return isinstance(value, list) and len(value) in counts and all(isinstance(number, kind) for number in value)


def projection_faults(fields: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the projection fields of an item's properties or of an asset."""
    said = {name.removeprefix("proj:"): value for name, value in fields.items() if name.startswith("proj:")}
    yield from (f"proj:{name} is no field" for name in said.keys() - PROJECTION_FIELDS)
    code = said.get("code")
    if not (code is None or (isinstance(code, str) and re.fullmatch(r"[A-Za-z]+:[\w.]+", code))):
        yield f"proj:code {code!r} is not AUTHORITY:CODE"
    if not (said.get("wkt2") is None or isinstance(said["wkt2"], str)):
        yield "proj:wkt2 is no text"
    if "transform" in said and code is None and said.get("wkt2") is None:
        yield "a transform in no CRS"
    for name, counts, kind in (("bbox", (4, 6), NUMBER), ("shape", (2,), int), ("transform", (6, 9), NUMBER)):
        if name in said and not numbers(said[name], *counts, kind=kind):
            yield f"proj:{name} {said[name]!r}"


def class_faults(classes: Any) -> Iterator[str]:
    if not isinstance(classes, list) or not classes:
        yield "no classes"
        return
    for item in classes:
        if not isinstance(item.get("value"), int) or not re.fullmatch(r"[0-9A-Za-z_-]+", item.get("name", "")):
            yield f"class {item}"
        if not re.fullmatch(r"[0-9A-F]{6}", item.get("color_hint", "000000")):
            yield f"colour of {item}"


def array_faults(array: Any) -> Iterator[str]:
    """Yield what is wrong with how an input or a result is laid out."""
    shape, order = array.get("shape"), array.get("dim_order")
    if not numbers(shape, len(order), kind=int) or min(shape) < -1 or 0 in shape:
        yield f"shape {shape} for {order}"
    if len(set(order)) != len(order) or not set(order) <= DIMENSIONS:
        yield f"dim_order {order}"
    if array.get("data_type") not in DATA_TYPES:
        yield f"data_type {array.get('data_type')}"


def model_faults(item: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with an item of the MLM extension."""
    said = item["properties"]
    yield from (f"mlm:{name} is missing" for name in ("name", "architecture", "tasks", "input", "output", "framework")
                if not said.get(f"mlm:{name}"))  # fmt: skip
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]+[a-zA-Z0-9]", said["mlm:name"]):
        yield f"mlm:name {said['mlm:name']}"
    if not set(said["mlm:tasks"]) <= TASKS:
        yield f"mlm:tasks {said['mlm:tasks']}"
    if not all(re.fullmatch(r"[0-9a-zA-Z_.-]+", name) for name in said.get("mlm:hyperparameters", {"x": 0})):
        yield "mlm:hyperparameters"
    known = {band["name"] for band in said.get("bands", [])}
    for given in said["mlm:input"]:
        yield from array_faults(given["input"])
        if not given.get("name") or not set(given["bands"]) <= known:
            yield f"bands {given.get('bands')} of {known}"
        for scaling in given.get("value_scaling") or []:
            if scaling["type"] != "z-score" or not numbers([scaling.get("mean"), scaling.get("stddev")], 2):
                yield f"value_scaling {scaling}"
    for output in said["mlm:output"]:
        yield from array_faults(output["result"])
        yield from class_faults(output["classification:classes"])
        if not output.get("name") or not set(output["tasks"]) <= set(said["mlm:tasks"]):
            yield f"output {output.get('name')}"
    models = [asset for asset in item["assets"].values() if "mlm:model" in asset.get("roles", [])]
    if not models or not all(asset.get("mlm:artifact_type") and asset.get("type") for asset in models):
        yield "no asset is the model"


def faults(item: dict[str, Any]) -> list[str]:
    """Return what is wrong with the extension fields of an item, and with its list of extensions."""
    parts = [item["properties"], *item["assets"].values()]
    found = [fault for part in parts for fault in projection_faults(part)]
    found += [fault for part in parts if "classification:classes" in part
              for fault in class_faults(part["classification:classes"])]  # fmt: skip
    text = str(item)
    for prefix, uri in (("proj:", PROJECTION), ("classification:", CLASSIFICATION), ("mlm:", MLM)):
        if (f"'{prefix}" in text) != (uri in item["stac_extensions"]):
            found.append(f"{uri} and {prefix} do not go together")
    return found + (list(model_faults(item)) if MLM in item["stac_extensions"] else [])


@pytest.fixture
def items(tmp_path: Path) -> dict[str, dict[str, Any]]:
    entries = [
        write_entry(tmp_path, "a", 0),
        write_entry(tmp_path, "custom", 1, crs=CUSTOM, probability=False),
        write_entry(tmp_path, "nowhere", 2, crs=None),
    ]
    found = stac_of(tmp_path, entries, band_indexes=(4, 1, 1))
    return {name: value for name, value in found.items() if name != "collection.json"}


def test_items_and_model_are_what_the_extensions_ask_for(items: dict[str, dict[str, Any]]) -> None:
    assert len(items) == 4
    assert {name: faults(value) for name, value in items.items()} == {name: [] for name in items}


@pytest.mark.parametrize("preset", ["", "_odd name_"])
def test_any_name_of_a_preset_makes_a_name_of_a_model(tmp_path: Path, preset: str) -> None:
    value = stac_of(tmp_path, [write_entry(tmp_path, "a", 0)], preset=preset)["model.json"]
    assert faults(value) == [], CARD.preset


BREAKS = {
    "code": ("items/a.json", ("properties", "proj:code"), 26914),
    "old": ("items/a.json", ("properties", "proj:epsg"), 26914),
    "shape": ("items/a.json", ("properties", "proj:shape"), [1.5, 2]),
    "transform": ("items/a.json", ("properties", "proj:transform"), [1, 2, 3]),
    "uri": ("items/a.json", ("stac_extensions",), []),
    "class": ("items/a.json", ("assets", "mask", "classification:classes", 1, "name"), "a building"),
    "task": ("model.json", ("properties", "mlm:tasks"), ["guessing"]),
    "order": ("model.json", ("properties", "mlm:input", 0, "input", "dim_order"), ["batch", "bands"]),
    "band": ("model.json", ("properties", "mlm:input", 0, "bands"), ["infrared"]),
    "scaling": ("model.json", ("properties", "mlm:input", 0, "value_scaling", 0, "stddev"), None),
    "artifact": ("model.json", ("assets", "model", "mlm:artifact_type"), None),
    "framework": ("model.json", ("properties", "mlm:framework"), ""),
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_is_broken_is_found(items: dict[str, dict[str, Any]], case: str) -> None:
    name, (*way, last), value = BREAKS[case]
    broken = copy.deepcopy(items[name])
    place: Any = broken
    for key in way:
        place = place[key]
    place[last] = value
    assert faults(broken) != []
