"""How QGIS and GDAL show an error raster: four classes by name, in the colours of the report's pictures."""

from __future__ import annotations

from aerialseg.evaluation.pictures import INVENTED, MISSED

NODATA = 255
CLASSES = (
    (0, "background, rightly", (0, 0, 0, 0)),
    (1, "found", (232, 232, 226, 255)),
    (2, "missed", (*MISSED, 255)),
    (3, "invented", (*INVENTED, 255)),
)
"""Value, name, and red, green, blue, alpha."""


def error_style() -> str:
    """Return a QGIS layer style (.qml) with an entry for each class."""
    entries = "".join(
        f'<paletteEntry value="{value}" label="{label}" color="#{red:02x}{green:02x}{blue:02x}" alpha="{alpha}"/>'
        for value, label, (red, green, blue, alpha) in CLASSES
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22" styleCategories="Symbology"><pipe><rasterrenderer type="paletted" band="1" opacity="1"'
        f' alphaBand="-1" nodataColor=""><rasterTransparency/><colorPalette>{entries}</colorPalette></rasterrenderer>'
        "</pipe><blendMode>0</blendMode></qgis>\n"
    )


def error_auxiliary() -> str:
    """Return GDAL's auxiliary metadata (.aux.xml): a palette and the classes' names."""
    colours = "".join('<Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(*colour) for _, _, colour in CLASSES)
    names = "".join(f"<Category>{label}</Category>" for _, label, _ in CLASSES)
    return (
        '<PAMDataset><PAMRasterBand band="1"><Description>errors</Description><ColorInterp>Palette</ColorInterp>'
        f"<ColorTable>{colours}</ColorTable><CategoryNames>{names}</CategoryNames></PAMRasterBand></PAMDataset>\n"
    )
