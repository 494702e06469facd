"""What the report's page always says and how it looks: its style sheet, its legend, and what each number means."""

from __future__ import annotations

from aerialseg.evaluation.pictures import FOUND, INVENTED, MISSED, UNKNOWN

STYLE = """
:root{--ink:#1c2024;--soft:#5d6670;--paper:#fbfbfa;--card:#fff;--line:#dfe2e5;--a:#0b62a8;--b:#b35900;--c:#0a7a5a}
@media (prefers-color-scheme:dark){:root{--ink:#e7e9eb;--soft:#a2abb4;--paper:#15181b;--card:#1e2226;--line:#343a40;
--a:#62b0f0;--b:#f0a04b;--c:#4ecda6}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:1.2rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:.4rem 0 1rem}
h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p,li,dd,figcaption,footer{color:var(--soft)}
p,dd,figcaption{max-width:70ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.7rem}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem}
.tile span,.tile small{display:block;color:var(--soft);font-size:.85rem}
.tile b{font-size:1.5rem;font-variant-numeric:tabular-nums}
.first{border-left:5px solid var(--a)}
.first b{font-size:2.2rem;line-height:1.2}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:500;white-space:normal;vertical-align:bottom}
tbody th,.card th,.bars th{text-align:left;font-weight:500}
.card td{text-align:left;white-space:normal;overflow-wrap:anywhere}
.bars .wide{width:60%}
.bar{display:block;background:var(--line);border-radius:4px;overflow:hidden}
.bar i{display:block;height:.8rem;background:var(--a)}
.views{display:grid;gap:1.4rem}
figure{margin:0}
.views figure{display:grid;grid-template-columns:1fr 1fr;gap:.4rem;align-items:start;max-width:900px}
.views figcaption{grid-column:1/-1;font-size:.9rem;overflow-wrap:anywhere}
.views b{color:var(--ink)}
img{width:100%;height:auto;display:block;border-radius:4px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:1.2rem}
svg{width:100%;max-width:460px;background:var(--card);border:1px solid var(--line);border-radius:8px}
svg text{font-size:3.6px;fill:var(--soft)}
svg polyline{fill:none;stroke-width:.9}
svg .a{stroke:var(--a)}
svg circle.a{fill:var(--a);stroke:none}
svg .b{stroke:var(--b);stroke-dasharray:3 1.2}
svg .c{stroke:var(--c);stroke-dasharray:1 1}
svg .grid{stroke:var(--line);stroke-width:.3}
svg .guide,svg .mark{stroke:var(--soft);stroke-width:.5;stroke-dasharray:1.5 1.5}
.key::before{content:"";display:inline-block;width:1.6em;vertical-align:.25em;margin-right:.3em;border-top:3px solid}
.key.a::before{border-color:var(--a)}
.key.b::before{border-color:var(--b);border-top-style:dashed}
.key.c::before{border-color:var(--c);border-top-style:dotted}
.swatch{display:inline-block;width:.9em;height:.9em;border-radius:2px;border:1px solid var(--soft);vertical-align:-.1em}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem;white-space:pre-wrap;
overflow-wrap:anywhere;font-size:.9rem}
dt{font-weight:600;margin-top:.6rem}
dd{margin:0}
summary{cursor:pointer;color:var(--soft);margin-bottom:.4rem}
footer{margin-top:2.5rem;font-size:.85rem}
@media(max-width:560px){.views figure{grid-template-columns:1fr}}
@media print{details>*{display:block}}
"""


def _swatch(colour: tuple[int, int, int], label: str) -> str:
    return f'<span class="swatch" style="background:rgb{colour}"></span> {label}'


LEGEND = ", ".join(
    (
        _swatch(FOUND, "found"),
        _swatch(MISSED, "missed"),
        _swatch(INVENTED, "invented"),
        _swatch(UNKNOWN, "not counted"),
    )
)

MEANINGS = (
    (
        "iou",
        "IoU",
        "Pixels that are building in both masks over those that are in either, summed over all scenes before dividing,"
        " as the Inria benchmark does it. Quote this one, with the scenes it was taken on.",
    ),
    (
        "accuracy",
        "accuracy",
        "Share of pixels classified rightly. An empty mask already reaches one minus the building share, so quote it"
        " beside IoU, never alone.",
    ),
    (
        "precision",
        "precision, recall, F1",
        "Of predicted building pixels the share that is right, of true ones the share that was found, and their"
        " harmonic mean. For pixels F1 is 2 IoU / (1 + IoU) and says nothing new.",
    ),
    (
        "mcc",
        "MCC",
        "Correlation of the two masks, -1 to 1; 0 is guessing, whatever the building share. Use it to compare places"
        " with few and with many buildings.",
    ),
    (
        "boundary_iou_3px",
        "boundary IoU and F1",
        "IoU of the bands of 3 pixels inside the outlines; and of either outline's pixels the share that has the other"
        " outline within 3 pixels, as harmonic mean. They see what large roofs hide in IoU: straight walls and right"
        " corners.",
    ),
    (
        "object_f1",
        "building F1, buildings found",
        "Connected buildings, matched one to one where they share IoU 0.5 or more. Houses that touch in a mask count as"
        " one, so dense towns score lower for either mask's sake.",
    ),
    (
        "polygons",
        "PoLiS, tangent angle, C-IoU, vertex ratio",
        "Means over matched polygons: the distance of corners to the other outline, the worst angle between walls, IoU"
        " lowered by needless corners; the ratio is of all corners. They judge drawing, not finding: quote them with"
        " the F1 of the polygons.",
    ),
    (
        "probabilities",
        "reliability, thresholds",
        "How often what is called 0.7 is building, and what every threshold would have scored. Choose a threshold on"
        " scenes that are not scored with it: aerialseg calibrate does.",
    ),
    (
        "intervals",
        "intervals",
        "Scenes are drawn anew from those given, 2,000 times; in 95 % of the draws the score lies between the two"
        " numbers. They say what other scenes of the same kind would do to it, not what other cities would.",
    ),
)
"""A score the page must show for the entry to be shown, a heading, and two sentences."""
