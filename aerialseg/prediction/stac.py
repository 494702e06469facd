"""The STAC catalogue of a run: an item for each scene, one for the model, and the collection that lists them.

STAC 1.1 with the extensions projection, classification, raster and MLM, whose fields stand as their specifications have
them: pystac's own classes follow the version that is installed, and take one scaling for all of a model's bands. All
links are relative and percent-encoded. Equal runs give equal bytes: an item's time is when its scene was taken, UTC; a
day, or a range of days, is an interval without a datetime, and a scene of which nothing is known has `UNKNOWN`.
https://github.com/radiantearth/stac-spec, https://github.com/stac-extensions
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aerialseg.errors import one_line
from aerialseg.files import PLACEHOLDER
from aerialseg.geo.outputs import ITEMS, identifier_of
from aerialseg.geo.project import around, crs_code, footprint, relative_to, rounded
from aerialseg.geo.styles import MASK_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aerialseg.geo.dates import Taken
    from aerialseg.geo.geobox import GeoBox
    from aerialseg.geo.project import MapLayer
    from aerialseg.geo.vrt import MosaicPart
    from aerialseg.models.package import ModelCard

UNKNOWN = (datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
"""Start and end where a scene does not say when it was taken."""
COLLECTION = "buildings"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
MEDIA = {
    ".tif": "image/tiff; application=geotiff",
    ".tiff": "image/tiff; application=geotiff",
    ".jp2": "image/jp2",
    ".j2k": "image/jp2",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gpkg": "application/geopackage+sqlite3",
    ".fgb": "application/vnd.flatgeobuf",
    ".geojson": "application/geo+json",
    ".vrt": "application/xml",
    ".parquet": "application/vnd.apache.parquet",
}
GRID = {"nodata": 255, "data_type": "uint8"}
EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
PROJECTION, CLASSIFICATION, RASTER, MLM = map(
    EXTENSION.format, ("projection/v2.0.0", "classification/v2.0.0", "raster/v2.0.0", "mlm/v1.4.0")
)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A scene and its outputs, as an item, a mosaic and a map describe them."""

    name: str
    scene: Path
    mask: MosaicPart
    probability: MosaicPart | None
    box: GeoBox
    """The scene's grid."""
    taken: Taken
    picture: MapLayer
    """The scene as a map shows it."""

    @property
    def identifier(self) -> str:
        """What the scene's item is called."""
        return identifier_of(self.name)


def describe(
    folder: Path, sheets: Sequence[Sheet], *, card: ModelCard, model_hash: str, extras: Mapping[str, Path]
) -> dict[Path, bytes]:
    """Return what belongs into `folder`: items/ID.json, model.json and collection.json, each with room for a digest.

    `extras` are files over all scenes, which the collection names.
    """
    values = {folder / ITEMS / f"{sheet.identifier}.json": _item(folder / ITEMS, sheet) for sheet in sheets}
    values[folder / "model.json"] = _model(card, model_hash)
    values[folder / "collection.json"] = _collection(folder, sheets, extras)
    sealed = {path: {**value, "aerialseg:seal": PLACEHOLDER} for path, value in values.items()}
    return {path: (json.dumps(value, indent=2, allow_nan=False) + "\n").encode() for path, value in sealed.items()}


def _item(folder: Path, sheet: Sheet) -> dict[str, Any]:
    import pystac

    geometry, bounds = footprint(sheet.box)
    moment, interval = sheet.taken.moment, _interval(sheet.taken)
    day = sheet.taken.day
    told = {} if day is None else {"aerialseg:taken": day.isoformat(), "aerialseg:taken_from": sheet.taken.origin}
    item = pystac.Item(
        sheet.identifier,
        geometry,
        None if bounds is None else rounded(bounds),
        moment,
        {"title": one_line(sheet.name), **told, **_projection(sheet.box)},
        start_datetime=None if moment else interval[0],
        end_datetime=None if moment else interval[1],
        stac_extensions=[PROJECTION, CLASSIFICATION, *([] if sheet.probability is None else [RASTER])],
        collection=COLLECTION,
    )
    item.add_asset(
        "mask", _asset(folder, sheet.mask.path, "Building mask", "0 background, 1 building, 255 nodata", COG)
    )
    item.assets["mask"].extra_fields |= {**GRID, "classification:classes": _classes(coloured=True)}
    if sheet.probability is not None:
        what = "Probability of building; stored as 0 to 254, 255 nodata"
        item.add_asset("probability", _asset(folder, sheet.probability.path, "Probability", what, COG))
        item.assets["probability"].extra_fields |= {**GRID, "raster:scale": sheet.probability.scale, "raster:offset": 0}
    source = MEDIA.get(sheet.scene.suffix.lower(), "image/tiff")
    item.add_asset("scene", _asset(folder, sheet.scene, "Scene", "What the mask was made from", source, "source"))
    _link_collection(item, "../collection.json")
    item.add_link(pystac.Link("derived_from", "../model.json", "application/json", "Model"))
    return _plain(item)


def _interval(taken: Taken) -> tuple[datetime, datetime]:
    return UNKNOWN if taken.start is None or taken.end is None else (taken.start, taken.end)


def _projection(box: GeoBox) -> dict[str, Any]:
    """Return the projection extension's fields; a code of null where only WKT says what the CRS is."""
    shape: dict[str, Any] = {"proj:shape": [box.height, box.width]}
    if not box.georeferenced or box.crs is None:
        return {"proj:code": None, **shape}
    code, t = crs_code(box.crs), box.transform
    wkt = {} if code is not None else {"proj:wkt2": box.crs.to_wkt(version="WKT2_2019")}
    grid = {"proj:transform": [t.a, t.b, t.c, t.d, t.e, t.f], "proj:bbox": list(box.bounds)}
    return {"proj:code": code, **wkt, **shape, **grid}


def _classes(*, coloured: bool = False) -> list[dict[str, Any]]:
    classes: list[dict[str, Any]] = []
    for item in MASK_CLASSES:
        colour = {"color_hint": item.hex[1:].upper()} if coloured else {}
        classes.append({"value": item.value, "name": item.label, "description": item.label, **colour})
    return classes


def _asset(folder: Path, path: Path, title: str, description: str, media: str, role: str = "data") -> Any:
    import pystac

    return pystac.Asset(quote(relative_to(path, folder)), title, description, media, [role])


def _link_collection(item: Any, collection: str) -> None:
    import pystac

    for rel in ("root", "parent", "collection"):
        item.add_link(pystac.Link(rel, collection, "application/json"))


def _model(card: ModelCard, model_hash: str) -> dict[str, Any]:
    """Return the model's item: what it is called, takes and gives.

    Its weights are named by their digest (RFC 6920), for the file itself stays where the user has it.
    """
    import pystac

    bands = [f"band{index}" for index in (card.band_indexes or range(1, card.bands + 1))]
    size = card.tile_size
    source = {
        "shape": [-1, card.bands, size, size],
        "dim_order": ["batch", "channel", "height", "width"],
        "data_type": "uint8",
    }
    scaling = [{"type": "z-score", "mean": m, "stddev": s} for m, s in zip(card.mean, card.std, strict=True)]
    result = {
        "shape": [-1, 1, size, size],
        "dim_order": ["batch", "class", "height", "width"],
        "data_type": "float32",
    }
    tasks = ["semantic-segmentation"]
    output = {"name": "building logit", "tasks": tasks, "result": result, "classification:classes": _classes()}
    properties = {
        "title": "Model",
        "mlm:name": re.sub(r"[^A-Za-z0-9_.-]+", "-", f"aerialseg-{card.preset or card.architecture}").strip("-_."),
        "mlm:architecture": f"{card.architecture} with {card.encoder}",
        "mlm:tasks": tasks,
        "mlm:framework": "PyTorch",
        "mlm:input": [{"name": "scene window", "bands": bands, "input": source, "value_scaling": scaling}],
        "mlm:output": [output],
        "mlm:hyperparameters": {"threshold": card.threshold, "temperature": card.temperature},
        "bands": [{"name": name} for name in dict.fromkeys(bands)],
        **({"gsd": card.gsd_m} if card.gsd_m else {}),
    }
    item = pystac.Item(
        "aerialseg-model", None, None, None, properties, *UNKNOWN,
        stac_extensions=[MLM, CLASSIFICATION], collection=COLLECTION,
    )  # fmt: skip
    digest = base64.urlsafe_b64encode(bytes.fromhex(model_hash)).decode().rstrip("=")
    what = f"The model file with SHA-256 {model_hash}"
    # STAC's own schema allows an item's bands only where an asset has some too; MLM wants the item's.
    fields = {"mlm:artifact_type": "safetensors.torch.save_file", "bands": properties["bands"]}
    item.add_asset(
        "model",
        pystac.Asset(
            f"ni:///sha-256;{digest}", "Weights and card", what, "application/octet-stream", ["mlm:model"], fields
        ),
    )
    _link_collection(item, "./collection.json")
    return _plain(item)


def _collection(folder: Path, sheets: Sequence[Sheet], extras: Mapping[str, Path]) -> dict[str, Any]:
    import pystac

    found = [bounds for _, bounds in (footprint(sheet.box) for sheet in sheets) if bounds is not None]
    whole = [(w, s, e, n) if w <= e else (-180.0, s, 180.0, n) for w, s, e, n in found]
    bounds = around(whole) or (-180.0, -90.0, 180.0, 90.0)
    times = [_interval(sheet.taken) for sheet in sheets]
    known = bool(times) and UNKNOWN not in times
    interval = [min(start for start, _ in times), max(end for _, end in times)] if known else [None, None]
    extent = pystac.Extent(pystac.SpatialExtent([rounded(bounds)]), pystac.TemporalExtent([interval]))
    collection = pystac.Collection(
        COLLECTION, "Building masks of aerial scenes, written by aerialseg", extent, "Buildings", license="other"
    )
    for name, path in extras.items():
        media = MEDIA.get(path.suffix.lower(), "application/octet-stream")
        collection.add_asset(name, _asset(folder, path, name.capitalize(), "Over all scenes", media))
    collection.clear_links()
    collection.add_link(pystac.Link("root", "./collection.json", "application/json"))
    collection.add_link(pystac.Link("item", "./model.json", "application/geo+json", "Model"))
    for sheet in sheets:
        target = f"./items/{quote(sheet.identifier)}.json"
        collection.add_link(pystac.Link("item", target, "application/geo+json", one_line(sheet.name)))
    return _plain(collection)


def _plain(thing: Any) -> dict[str, Any]:
    """Return an item or a collection as JSON has it, with links as they were given."""
    value: dict[str, Any] = thing.to_dict(include_self_link=False, transform_hrefs=False)
    return value
