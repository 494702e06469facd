"""project.qgz: everything a run made, opened in QGIS with one double click, in the right order, style and place.

The XML is the part of QGIS's own project format that versions 3.22 and later need. All paths are relative, so a folder
of results can be moved with its scenes. Equal layers give equal bytes. Where grids lie is said here too, in the words
that other programs use: CRS codes, outlines and bounds in another CRS, GeoJSON. Styles and files are other modules'.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import shapely
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform as reproject_points

from aerialseg.errors import one_line
from aerialseg.files import PLACEHOLDER, resolved
from aerialseg.geo.styles import DOCTYPE, QGIS_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aerialseg.geo.geobox import GeoBox

TITLE = "Buildings"
INSIDE = "project.qgs"
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_ILLEGAL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, however it is escaped."""
Bounds = tuple[float, float, float, float]
"""West, south, east, north."""
WGS84 = CRS.from_epsg(4326)
DIGITS, CENTIMETRE = 8, 1e-7
"""Of degrees."""
EDGE_STEPS = 8
"""An edge that is straight on the scene's own grid is a curve on another; this many pieces follow it."""


@dataclass(frozen=True, slots=True)
class MapLayer:
    """One entry in QGIS's list of layers."""

    name: str
    path: Path
    crs: CRS | None
    """None lets QGIS take the file's own."""
    body: str
    """The style: a `<pipe>` for a raster, a `<renderer-v2>` for polygons."""
    table: str | None = None
    """The table of a file that holds several."""
    vector: bool = False


@dataclass(frozen=True, slots=True)
class MapGroup:
    """Layers that are switched on and off together; a name of "" leaves them at the top level."""

    name: str
    layers: tuple[MapLayer, ...]
    visible: bool = True


def compose_project(
    path: Path, groups: Sequence[MapGroup], frame: Sequence[GeoBox], say: Callable[[str], None]
) -> bytes:
    """Return a QGIS project of the groups, from the top down, that opens on all of `frame`, to be written at `path`.

    The project's CRS is the one in which most of the frame's pixels lie. `say` is told of layers whose names no project
    can hold.
    """
    fitting = [MapGroup(group.name, _nameable(group.layers, say), group.visible) for group in groups]
    return _zipped(_project(path, [group for group in fitting if group.layers], frame))


def relative_to(path: Path, folder: Path) -> str:
    """Return the way from the folder itself, links followed, to a path whose own links are kept."""
    absolute = os.path.abspath(path)  # noqa: PTH100  (resolve() would follow links and lose side files)
    return os.path.relpath(absolute, resolved(folder)).replace(os.sep, "/")


def _nameable(layers: Sequence[MapLayer], say: Callable[[str], None]) -> tuple[MapLayer, ...]:
    bad = [layer for layer in layers if _ILLEGAL.search(str(layer.path))]
    for layer in bad:
        say(f"{one_line(layer.path)}: a QGIS project cannot hold this name; the layer is left out")
    return tuple(layer for layer in layers if layer not in bad)


def _zipped(text: str) -> bytes:
    """Return a .qgz: a zip of the project whose bytes depend on the text alone, with room for a digest."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo(INSIDE, ZIP_EPOCH)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.create_system = 3
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, text.encode())
        archive.comment = PLACEHOLDER.encode()
    return stream.getvalue()


def _project(path: Path, groups: Sequence[MapGroup], frame: Sequence[GeoBox]) -> str:
    crs = _main_crs(frame)
    layers = [layer for group in groups for layer in group.layers]
    # Longer than ten characters: without that, rasters vanish from QGIS's tree.
    identifiers = ["layer_" + hashlib.sha256(_source(path, layer).encode()).hexdigest()[:16] for layer in layers]
    named = dict(zip(layers, identifiers, strict=True))
    order = "".join(f'<layer id="{identifier}"/>\n' for identifier in identifiers)
    return "".join(
        (
            f'{DOCTYPE}<qgis projectname="{TITLE}" version="{QGIS_VERSION}.0">\n<homePath path=""/>\n',
            f"<title>{TITLE}</title>\n",
            f"<projectCrs>{_crs(crs)}</projectCrs>\n",
            "<layer-tree-group>\n<customproperties/>\n",
            *(_tree_group(path, group, named) for group in groups),
            "</layer-tree-group>\n",
            _view(crs, frame),
            "<projectlayers>\n",
            *(_map_layer(path, layer, identifier) for layer, identifier in named.items()),
            f"</projectlayers>\n<layerorder>\n{order}</layerorder>\n",
            '<properties>\n<Paths><Absolute type="bool">false</Absolute></Paths>\n<SpatialRefSys>'
            '<ProjectionsEnabled type="int">1</ProjectionsEnabled></SpatialRefSys>\n'
            '<aerialseg><format type="int">1</format></aerialseg>\n</properties>\n</qgis>\n',
        )
    )


def _main_crs(frame: Sequence[GeoBox]) -> CRS | None:
    """Return the CRS of most pixels; of equals the first."""
    pixels: list[tuple[CRS, int]] = []
    for box in frame:
        if box.georeferenced:
            known = next((index for index, (crs, _) in enumerate(pixels) if crs == box.crs), None)
            if known is None:
                pixels.append((box.crs, box.height * box.width))
            else:
                pixels[known] = (box.crs, pixels[known][1] + box.height * box.width)
    return max(pixels, key=lambda item: item[1])[0] if pixels else None


def _view(crs: CRS | None, frame: Sequence[GeoBox]) -> str:
    """Return where the map opens: on everything."""
    found = [] if crs is None else [bounds_in(box, crs) for box in frame]
    whole = around([bounds for bounds in found if bounds is not None])
    if crs is None or whole is None:
        return ""
    west, south, east, north = (repr(value) for value in whole)
    return (
        '<mapcanvas name="theMapCanvas" annotationsVisible="1">\n'
        f"<extent><xmin>{west}</xmin><ymin>{south}</ymin><xmax>{east}</xmax><ymax>{north}</ymax></extent>\n"
        f"<rotation>0</rotation>\n<destinationsrs>{_crs(crs)}</destinationsrs>\n</mapcanvas>\n"
        '<ProjectViewSettings UseProjectScales="0" rotation="0">\n<Scales/>\n'
        f'<DefaultViewExtent xmin="{west}" ymin="{south}" xmax="{east}" ymax="{north}">{_crs(crs)}'
        "</DefaultViewExtent>\n</ProjectViewSettings>\n"
    )


def _crs(crs: CRS | None) -> str:
    if crs is None:
        return "<spatialrefsys><wkt></wkt></spatialrefsys>"
    code = crs_code(crs)
    known = "" if code is None else f"<authid>{code}</authid>"
    return f"<spatialrefsys><wkt>{escape(crs.to_wkt(version='WKT2_2019'))}</wkt>{known}</spatialrefsys>"


def _tree_group(path: Path, group: MapGroup, named: dict[MapLayer, str]) -> str:
    checked = "Qt::Checked" if group.visible else "Qt::Unchecked"
    layers = "".join(
        f'<layer-tree-layer id="{named[layer]}" name={quoteattr(one_line(layer.name))} checked="Qt::Checked"'
        f' source={quoteattr(_source(path, layer))} providerKey="{_provider(layer)}" expanded="0">'
        "<customproperties/></layer-tree-layer>\n"
        for layer in group.layers
    )
    if not group.name:
        return layers
    few = int(len(group.layers) == 1)
    return (
        f'<layer-tree-group name={quoteattr(group.name)} checked="{checked}" expanded="{few}">\n<customproperties/>\n'
        f"{layers}</layer-tree-group>\n"
    )


def _map_layer(path: Path, layer: MapLayer, identifier: str) -> str:
    kind = 'type="vector" geometry="Polygon"' if layer.vector else 'type="raster"'
    srs = "" if layer.crs is None else f"<srs>{_crs(layer.crs)}</srs>\n"
    encoding = ' encoding="UTF-8"' if layer.vector else ""
    return (
        f'<maplayer {kind} autoRefreshEnabled="0" hasScaleBasedVisibilityFlag="0" styleCategories="AllStyleCategories">'
        f"\n<id>{identifier}</id>\n<datasource>{_text(_source(path, layer))}</datasource>\n"
        f"<layername>{_text(one_line(layer.name))}</layername>\n{srs}<provider{encoding}>{_provider(layer)}</provider>\n"
        f"{layer.body}<blendMode>0</blendMode>\n</maplayer>\n"
    )


def _provider(layer: MapLayer) -> str:
    return "ogr" if layer.vector else "gdal"


def _source(path: Path, layer: MapLayer) -> str:
    """Return the layer's source as a project holds it: from the project's real folder, which is what QGIS resolves."""
    relative = relative_to(layer.path, path.parent)
    dotted = relative if relative.startswith("../") else f"./{relative}"
    return dotted if layer.table is None else f"{dotted}|layername={layer.table}"


def _text(text: str) -> str:
    return escape(text, {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def crs_code(crs: CRS) -> str | None:
    """Return a CRS's code, as EPSG:26914; None when it has none or is not quite what the code stands for."""
    try:
        authority = crs.to_authority(confidence_threshold=90)
        if authority is None or CRS.from_authority(*authority) != crs:
            return None
    except (CRSError, CPLE_BaseError):
        return None
    return ":".join(authority)


def outline(box: GeoBox, target: CRS) -> tuple[tuple[float, float], ...] | None:
    """Return the corners and edges of a grid in `target`, as a closed counter-clockwise ring of (x, y).

    None when the grid has no place on the ground, or none that `target` can express.
    """
    if not box.georeferenced or not box.usable or box.crs is None:
        return None
    steps = EDGE_STEPS if box.crs != target else 1
    up = [index / steps for index in range(steps)]
    pixels = [(0.0, s) for s in up] + [(s, 1.0) for s in up] + [(1.0, 1 - s) for s in up] + [(1 - s, 0.0) for s in up]
    t, width, height = box.transform, box.width, box.height
    xs = [t.a * x * width + t.b * y * height + t.c for x, y in pixels]
    ys = [t.d * x * width + t.e * y * height + t.f for x, y in pixels]
    if box.crs != target:
        try:
            xs, ys = reproject_points(box.crs, target, xs, ys)
        except (CRSError, CPLE_BaseError):
            return None
    if not np.isfinite([xs, ys]).all():
        return None
    ring = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    following = [*ring[1:], ring[0]]
    if math.fsum(x * v - u * y for (x, y), (u, v) in zip(ring, following, strict=True)) < 0:  # it runs clockwise
        ring.reverse()
    return *ring, ring[0]


def bounds_in(box: GeoBox, target: CRS) -> Bounds | None:
    """Return the upright rectangle around a grid in `target`; None when it has no place there."""
    ring = outline(box, target)
    return None if ring is None else around([(x, y, x, y) for x, y in ring])


def footprint(box: GeoBox) -> tuple[dict[str, Any] | None, Bounds | None]:
    """Return a grid's outline in degrees as GeoJSON, and its bounds; (None, None) without a place on the ground.

    Points on the line between others, to a centimetre, are left out. Across the 180th meridian the outline is two
    polygons and the bounds' west is larger than their east (RFC 7946, 3.1.9 and 5.2). A grid around a pole, or one that
    goes more than once around the earth, has no outline in degrees: (None, None), too.
    """
    ring = outline(box, WGS84)
    if ring is None:
        return None, None
    xs, ys = np.array(ring).T
    if box.crs != WGS84:  # from point to point the short way round: also a grid wider than half the earth
        xs = np.unwrap(xs, period=360)
    if abs(xs[-1] - xs[0]) > 180 or np.ptp(xs) > 360:
        return None, None
    xs -= 360 * np.floor((xs.min() + 180) / 360) if xs.min() < -180 or xs.max() > 180 else 0
    whole = shapely.make_valid(shapely.Polygon(np.stack([xs, ys], axis=1)))
    west, south, east, north = (float(value) for value in (xs.min(), ys.min(), xs.max(), ys.max()))
    if east <= 180:
        return _geojson(_polygons(whole)), (west, south, east, north)
    before = whole.intersection(shapely.box(-180, -90, 180, 90))
    behind = shapely.transform(whole.intersection(shapely.box(180, -90, 540, 90)), lambda points: points - (360, 0))
    return _geojson([*_polygons(before), *_polygons(behind)]), (west, south, east - 360, north)


def _polygons(shape: shapely.Geometry) -> list[shapely.Polygon]:
    """Return the polygons with an area that a geometry of any kind is made of."""
    parts = shapely.get_parts(shapely.get_parts(shape))
    return [part for part in parts.tolist() if part.geom_type == "Polygon" and part.area > 0]


def rounded(degrees: Sequence[float]) -> list[float]:
    """Return degrees to the millimetre; behind that, PROJ's versions differ."""
    return [round(number, DIGITS) for number in degrees]


def around(rectangles: Sequence[Bounds]) -> Bounds | None:
    """Return the rectangle around rectangles; None around none."""
    if not rectangles:
        return None
    west, south, east, north = zip(*rectangles, strict=True)
    return min(west), min(south), max(east), max(north)


def _geojson(polygons: Sequence[Any]) -> dict[str, Any]:
    """Return polygons, whose outer rings GeoJSON wants counter-clockwise, simplified and rounded."""
    plain = [shapely.geometry.polygon.orient(polygon.simplify(CENTIMETRE)) for polygon in polygons]
    rings = [[rounded(point) for point in polygon.exterior.coords] for polygon in plain]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}
