"""What a GDAL `.aux.xml` says of a raster, without what looking at the raster in a GIS adds to it."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING
from xml.parsers import expat

from aerialseg.files import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 1 << 24
"""Bytes; GDAL's own files have a few thousand, and no larger one is parsed."""
DEEPEST = 64
"""Levels of elements; GDAL needs six."""


def pam_digest(path: Path) -> str | None:
    """Return a digest of an `.aux.xml` that is blind to statistics, histograms and layout; None when nothing is left.

    Of a file that does not parse, is too large or declares a document type, that of its bytes.
    """
    root = _parse(path)
    if root is None:
        return sha256_of(path)
    said = _said(root)
    return None if said is None else hashlib.sha256(repr(said).encode()).hexdigest()


def _parse(path: Path) -> ET.Element | None:
    """Return the root element; a document type, without which there are no entities, is refused before it is read."""
    parser, builder = expat.ParserCreate(), ET.TreeBuilder()
    depth = 0

    def begin(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise ValueError("too deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError("a document type")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            return None
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError):
        return None
    return builder.close()


def _said(element: ET.Element) -> tuple[object, ...] | None:
    """Return what an element says, however it is laid out, or None where it says only what a GIS leaves by looking."""
    if element.tag == "Histograms" or (element.tag == "MDI" and element.get("key", "").startswith("STATISTICS_")):
        return None
    inner = [said for said in map(_said, element) if said is not None]
    text = " ".join((element.text or "").split())
    if not inner and not text and element.tag in ("PAMDataset", "PAMRasterBand", "Metadata"):
        return None
    return element.tag, sorted(element.attrib.items()), text, inner
