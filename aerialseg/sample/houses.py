"""Buildings: outlines of touching wings (bars, L, T, U, courtyards), roofs, and what stands on them."""

from __future__ import annotations

from typing import Literal

from aerialseg.sample.values import Box, Building, Cover, Dice, Paint, Patch, Roof, Spot, Wing

Style = Literal["austin", "vienna"]

WHITE, PALE, TAN = Paint((198, 199, 198)), Paint((168, 171, 172)), Paint((160, 142, 116))
GREY, SLATE, DARK = Paint((118, 119, 120)), Paint((92, 95, 99)), Paint((66, 67, 70))
BROWN, RUST, CLAY = Paint((112, 94, 76)), Paint((126, 84, 66)), Paint((146, 96, 74))
MOSS = Paint((98, 104, 84))

PITCHED = {
    "austin": (PALE, TAN, GREY, GREY, SLATE, SLATE, DARK, BROWN, BROWN, RUST, MOSS, WHITE),
    "vienna": (CLAY, CLAY, RUST, RUST, BROWN, BROWN, SLATE, GREY, DARK, MOSS),
}
FLAT = {
    "austin": (WHITE, PALE, TAN, TAN, GREY, SLATE, Paint((138, 130, 118)), DARK),
    "vienna": (PALE, GREY, GREY, SLATE, DARK, MOSS, Paint((142, 136, 124)), Paint((128, 112, 98))),
}
METAL = Paint((190, 192, 192))


def house(spot: Spot, across: float, deep: float, style: Style, dice: Dice) -> Building:
    """Return a detached house of about `across` by `deep` metres, its middle at `spot`: a bar, an L, a T or a U."""
    flat = dice.chance(0.12)
    roof: Roof = "flat" if flat else dice.pick(("gable", "gable", "hip"))
    slope = 0.0 if flat else dice.between(0.3, 0.55) if style == "austin" else dice.between(0.55, 0.8)
    eave = dice.between(2.8, 4.2) if style == "austin" else dice.between(3.5, 7.0)
    shapes = outline(dice.pick(("bar", "bar", "bar", "L", "L", "T", "U")), across, deep, dice)
    wings = tuple(Wing(Box(spot.at(a, b), half_a, half_b), roof, eave, slope) for a, b, half_a, half_b in shapes)
    cover: Cover = "gravel" if flat else "tile" if style == "vienna" else dice.pick(("shingle", "shingle", "seam"))
    paint = vary(dice.pick(FLAT[style] if flat else PITCHED[style]), dice)
    return Building(wings, paint, cover, _small_fittings(wings[0], dice))


def shed(spot: Spot, style: Style, dice: Dice) -> Building:
    """Return a garden shed of 9 to 30 square metres."""
    box = Box(spot.turned(dice.between(-4, 4)), dice.between(1.5, 2.9), dice.between(1.5, 2.6))
    wing = Wing(box, dice.pick(("gable", "shed", "flat")), dice.between(2.0, 2.6), 0.25)
    return Building(
        (wing,), vary(dice.pick(PITCHED[style] + (METAL, BROWN, MOSS)), dice), dice.pick(("seam", "shingle"))
    )


def hall(spot: Spot, across: float, deep: float, style: Style, dice: Dice) -> Building:
    """Return a shop, office or works hall: a flat roof with its plant, or a low gable; up to 3500 square metres."""
    shapes = outline(dice.pick(("bar", "bar", "L", "T", "U")), across, deep, dice)
    deck = dice.chance(0.12)
    pitched = not deck and min(across, deep) < 32 and dice.chance(0.35)
    eave = dice.between(4.5, 9.0)
    roof: Roof = "gable" if pitched else "flat"
    wings = tuple(
        Wing(Box(spot.at(a, b), half_a, half_b), roof, eave + 0.4 * n, 0.15 if pitched else 0.0)
        for n, (a, b, half_a, half_b) in enumerate(shapes)
    )
    cover: Cover = "deck" if deck else "seam" if pitched else "gravel"
    paint = vary(dice.pick(FLAT[style]), dice)
    return Building(wings, paint, cover, () if deck else _plant(wings, paint, dice))


def row_house(spot: Spot, across: float, deep: float, dice: Dice) -> Building:
    """Return one house of a closed street front, ridge along the street, sometimes with a wing into the yard (+b)."""
    flat = dice.chance(0.18)
    roof: Roof = "flat" if flat else "gable"
    eave = dice.between(8, 14)
    wings = [Wing(Box(spot, across / 2, deep / 2), roof, eave, 0.0 if flat else dice.between(0.45, 0.75))]
    if dice.chance(0.3):
        half_a, half_b = dice.between(2.5, 4.0), dice.between(3, 6)
        yard = Box(spot.at(dice.pick((-1.0, 1.0)) * (across / 2 - half_a), deep / 2 + half_b - 0.5), half_a, half_b)
        wings.append(Wing(yard, "shed" if not flat else "flat", eave - dice.between(1, 4), 0.2))
    paint = vary(dice.pick(FLAT["vienna"] if flat else PITCHED["vienna"]), dice)
    return Building(tuple(wings), paint, "gravel" if flat else "tile", _small_fittings(wings[0], dice))


def outline(
    shape: Literal["bar", "L", "T", "U"], across: float, deep: float, dice: Dice
) -> list[tuple[float, float, float, float]]:
    """Return wings (a, b, half a, half b) that together fill the outline of `across` by `deep` metres."""
    half_a, half_b = across / 2, deep / 2
    wing = min(across, deep) * dice.between(0.4, 0.6) / 2
    side = dice.pick((-1.0, 1.0))
    main = (0.0, -half_b + wing * 1.15, half_a, wing * 1.15)
    left, right = (half_a - wing) * side, -(half_a - wing) * side
    match shape:
        case "bar":
            return [(0.0, 0.0, half_a, half_b)]
        case "L":
            return [main, (left, 0.0, wing, half_b)]
        case "T":
            return [main, (left * dice.between(0.0, 0.5), 0.0, wing, half_b)]
        case "U":
            short = half_b * dice.between(0.75, 1.0)
            return [main, (left, 0.0, wing, half_b), (right, short - half_b, wing, short)]


def vary(paint: Paint, dice: Dice) -> Paint:
    """Return the paint a little lighter or darker, warmer or colder."""
    light, warm = dice.between(0.86, 1.14), dice.between(-5, 5)
    red, green, blue = paint.colour
    return Paint(
        (red * light + warm, green * light, blue * light - warm), paint.grain, paint.patches * dice.between(0.8, 1.8)
    )


def _small_fittings(wing: Wing, dice: Dice) -> tuple[Patch, ...]:
    """Return a chimney, roof windows or solar panels for one wing."""
    fittings = []
    spot, a, b = wing.box.spot, wing.box.a, wing.box.b
    if dice.chance(0.5):
        chimney = Box(spot.at(dice.between(-0.6, 0.6) * a, dice.between(-0.4, 0.4) * b), 0.45, 0.45)
        fittings.append(Patch(chimney, Paint((120, 100, 92)), height=1.0))
    if dice.chance(0.12):
        panels = Box(spot.at(dice.between(-0.3, 0.3) * a, 0.45 * b), 0.45 * a, 0.3 * b)
        fittings.append(Patch(panels, Paint((46, 54, 74), 2.0, 1.0), height=0.1))
    if dice.chance(0.3):
        window = Box(spot.at(dice.between(-0.7, 0.7) * a, -0.5 * b), 0.5, 0.6)
        fittings.append(Patch(window, Paint((150, 160, 172))))
    return tuple(fittings)


def _plant(wings: tuple[Wing, ...], paint: Paint, dice: Dice) -> tuple[Patch, ...]:
    """Return air handlers, skylights and seams of repair on a hall's roof."""
    fittings = []
    for wing in wings:
        spot, a, b = wing.box.spot, wing.box.a, wing.box.b
        for _ in range(int(a * b / 45 * dice.between(0.3, 1.3))):
            place = spot.at(dice.between(-0.85, 0.85) * a, dice.between(-0.85, 0.85) * b)
            if dice.chance(0.6):
                box = Box(place, dice.between(0.6, 1.8), dice.between(0.6, 1.3))
                fittings.append(Patch(box, Paint((172, 174, 174)), height=dice.between(0.8, 1.8)))
            else:
                stain = Box(place, dice.between(1, 5), dice.between(0.6, 3))
                fittings.append(Patch(stain, vary(paint, dice), alpha=0.7))
    return tuple(fittings)
