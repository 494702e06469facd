"""What fills a block: house lots, closed fronts around a yard, slabs, halls with car parks, parks, woods.

Buildings are outlines of touching wings (bars, L, T, U, courtyards), with roofs and what stands on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aerialseg.sample.plan import Box, Building, Cover, Dice, Paint, Patch, Plan, Roof, Spot, Tree, Wing

if TYPE_CHECKING:
    from collections.abc import Callable

    from aerialseg.sample.plan import CityBlock, Frame, Street

GRASS, DRY, LITTER = Paint((84, 96, 64), 8, 18), Paint((126, 117, 94), 8, 18), Paint((106, 97, 82), 11, 18)
SOIL, RED_SOIL, SAND = Paint((146, 129, 106), 6, 16), Paint((142, 104, 84), 6, 12), Paint((174, 162, 140), 5, 10)
ASPHALT, OLD_ASPHALT, CONCRETE = Paint((92, 93, 96), 3, 7), Paint((122, 121, 119), 3, 9), Paint((190, 187, 178), 3, 9)
WATER, POOL, MARKING = Paint((48, 62, 62), 1, 4), Paint((92, 164, 178), 2, 2), Paint((206, 205, 198), 2, 4)
GLASS = Paint((40, 44, 48), 1, 0)
CAR_PAINTS = tuple(
    Paint(colour, 2, 0)
    for colour in ((212, 213, 214), (190, 192, 194), (150, 152, 155), (92, 94, 98), (44, 45, 48), (38, 40, 46),
                   (128, 40, 38), (48, 66, 104), (98, 92, 78))
)  # fmt: skip
CROWNS = {
    "austin": (((58, 66, 46), 1.0), ((70, 76, 54), 1.0), ((112, 107, 98), 0.45), ((104, 98, 90), 0.45),
               ((100, 100, 68), 0.85), ((108, 96, 82), 0.55)),
    "vienna": (((62, 82, 50), 1.0), ((74, 94, 56), 1.0), ((56, 72, 48), 1.0), ((88, 100, 62), 0.9),
               ((108, 103, 94), 0.5)),
}  # fmt: skip
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


def fill_block(block: CityBlock, frame: Frame, style: Style, plan: Plan, dice: Dice) -> None:
    """Choose a use for the block by the city's style and put it into the plan."""
    du, dv = block.size
    small = min(du, dv) < 30
    uses: tuple[Callable[[CityBlock, Frame, Style, Plan, Dice], None], ...]
    if style == "austin":
        uses = (lots, lots, lots, lots, lots, lots, halls, halls, park, woods) if not small else (woods, park)
    else:
        uses = (front, front, front, lots, lots, slabs, slabs, halls, park, woods) if not small else (park, woods)
    dice.pick(uses)(block, frame, style, plan, dice)


def lots(block: CityBlock, frame: Frame, style: Style, plan: Plan, dice: Dice) -> None:
    """Two rows of lots back to back, each facing its street; one row where the block is shallow."""
    dv = block.size[1]
    rows = ((block.v0, 1.0, dv / 2), (block.v1, -1.0, dv / 2)) if dv > 44 else ((block.v0, 1.0, dv),)
    for front_v, inward, deep in rows:
        u = block.u0 + 3.0
        while u < block.u1 - 14.0:
            width = min(dice.between(14, 22), block.u1 - 3.0 - u)
            front_spot = frame.spot(u + width / 2, front_v)
            lot(front_spot if inward > 0 else front_spot.turned(180), width, deep, style, plan, dice)
            u += width


def lot(spot: Spot, width: float, deep: float, style: Style, plan: Plan, dice: Dice) -> None:
    """A house with drive, garden, fence, trees and sheds; `spot` is the middle of the front, +b leads into the lot."""
    ground = vary(dice.pick((GRASS, GRASS, DRY, DRY, LITTER, SOIL if style == "austin" else GRASS)), dice)
    plan.patches.append(Patch(Box(spot.at(0, deep / 2), width / 2, deep / 2), ground, dice.between(0.5, 0.9)))
    scatter(Box(spot.at(0, deep / 2), width / 2, deep / 2), dice.between(40, 130), style, plan, dice)
    if dice.chance(0.07):
        return
    across, long = width - dice.between(2.5, 5.5), dice.between(8.5, 14)
    setback = dice.between(5, 8.5)
    middle = spot.at(dice.between(-0.8, 0.8), setback + long / 2)
    plan.buildings.append(house(middle.turned(dice.pick((0.0, 180.0))), across, long, style, dice))
    for corner_a, corner_b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):  # crowns that hang over the eaves
        if dice.chance(0.2):
            a, b = corner_a * (across / 2 + dice.between(0, 2)), corner_b * (long / 2 + dice.between(0, 2))
            plan.trees.append(tree(middle.at(a, b), style, dice))
    side = dice.pick((-1.0, 1.0))
    drive = Box(spot.at(side * (width / 2 - 2.0), setback * 0.6), 1.6, setback * 0.6 + 1)
    plan.patches.append(Patch(drive, vary(dice.pick((CONCRETE, CONCRETE, OLD_ASPHALT, SOIL, SAND)), dice)))
    if dice.chance(0.6):
        plan.cars.extend(car(drive.spot.at(0, dice.between(-1, 1)).turned(90), dice))
    back = setback + long + 3.0
    for _ in range(int(dice.between(0, 2.6))):
        if deep - back > 5:
            place = spot.at(dice.between(-0.5, 0.5) * (width - 6), dice.between(back + 1, deep - 3))
            plan.buildings.append(shed(place, style, dice))
    if dice.chance(0.1) and deep - back > 8:
        plan.patches.append(Patch(Box(spot.at(0, back + 4), 3.6, 2.0, 1.6), POOL))
    garden_clutter(spot, width, (back, deep), plan, dice)


def garden_clutter(spot: Spot, width: float, backyard: tuple[float, float], plan: Plan, dice: Dice) -> None:
    """Fences, terraces, worn ground and tarpaulins: bright and dark rectangles that are no buildings."""
    back, deep = backyard
    if dice.chance(0.6):
        fence = Box(spot.at(width / 2, (back + deep) / 2), 0.12, max(deep - back, 1) / 2)
        plan.patches.append(Patch(fence, Paint((112, 98, 82)), height=1.7))
    if dice.chance(0.5):
        terrace = Box(spot.at(dice.between(-3, 3), back - 1.5), dice.between(1.5, 4), dice.between(1, 2.4))
        plan.patches.append(Patch(terrace, vary(dice.pick((CONCRETE, SAND, RED_SOIL, OLD_ASPHALT)), dice)))
    for _ in range(int(dice.between(0, 3))):
        place = spot.at(dice.between(-0.45, 0.45) * width, dice.between(min(back, deep - 1), deep))
        worn = Box(place, dice.between(1.5, 5), dice.between(1, 4), 1.0)
        plan.patches.append(Patch(worn, vary(dice.pick((SOIL, SAND, RED_SOIL, DRY)), dice), 0.8, ragged=1.6))
    for _ in range(int(dice.between(0, 2.5))):
        place = spot.at(dice.between(-0.45, 0.45) * width, dice.between(min(back, deep - 1), deep)).turned(
            dice.between(0, 90)
        )
        plan.patches.append(
            Patch(Box(place, dice.between(0.5, 1.6), dice.between(0.5, 1.3)), dice.pick(CAR_PAINTS), 0.9)
        )


def front(block: CityBlock, frame: Frame, style: Style, plan: Plan, dice: Dice) -> None:
    """A closed front of houses around a yard with trees, sheds and paving: the block of a European city."""
    du, dv = block.size
    deep, gap = dice.between(10.5, 13), dice.between(2.5, 4.0)
    middle = frame.bent((block.u0 + block.u1) / 2, (block.v0 + block.v1) / 2)
    half_a, half_b = du / 2 - gap - deep / 2, dv / 2 - gap - deep / 2
    yard = Box(middle, half_a - deep / 2, half_b - deep / 2)
    plan.patches.append(Patch(yard, vary(dice.pick((GRASS, GRASS, OLD_ASPHALT, LITTER, SOIL)), dice)))
    scatter(yard, dice.between(70, 130), style, plan, dice)
    for degrees, length, away in ((0, half_a + deep / 2, half_b), (180, half_a + deep / 2, half_b),
                                  (90, half_b - deep / 2, half_a), (270, half_b - deep / 2, half_a)):  # fmt: skip
        side = middle.turned(degrees).at(0, -away)
        a = -length
        while a < length - 1:
            width = dice.between(14, 24)
            width = length - a if length - a < width + 9 else width
            if not dice.chance(0.1):
                plan.buildings.append(row_house(side.at(a + width / 2, 0), width, deep, dice))
            a += width
    if min(yard.a, yard.b) > 9:
        for _ in range(int(dice.between(0, 4))):
            place = middle.at(dice.between(-0.7, 0.7) * yard.a, dice.between(-0.7, 0.7) * yard.b)
            plan.buildings.append(shed(place, style, dice))


def slabs(block: CityBlock, frame: Frame, style: Style, plan: Plan, dice: Dice) -> None:
    """Blocks of flats in rows on lawns, with paths and a strip of parking."""
    du, dv = block.size
    middle = frame.bent((block.u0 + block.u1) / 2, (block.v0 + block.v1) / 2)
    whole = Box(middle, du / 2 - 3, dv / 2 - 3)
    plan.patches.append(Patch(whole, vary(dice.pick((GRASS, GRASS, DRY)), dice), 0.9))
    parking(Box(middle.at(0, whole.b - 8), whole.a - 4, 8), plan, dice)
    a = -whole.a + dice.between(8, 12)
    while a < whole.a - 7:
        long = (2 * whole.b - 24) * dice.between(0.7, 0.95)
        if long > 18:
            place = middle.at(a, -8.0).turned(90)
            plan.buildings.append(row_house(place, long, dice.between(10, 13), dice))
            plan.patches.append(Patch(Box(middle.at(a + 8.5, -8.0), 0.8, long / 2), CONCRETE))
        a += dice.between(24, 34)
    scatter(whole, dice.between(110, 220), style, plan, dice)


def halls(block: CityBlock, frame: Frame, style: Style, plan: Plan, dice: Dice) -> None:
    """One or two large buildings in a sea of parked cars."""
    du, dv = block.size
    middle = frame.bent((block.u0 + block.u1) / 2, (block.v0 + block.v1) / 2)
    whole = Box(middle, du / 2 - 4, dv / 2 - 4)
    plan.patches.append(Patch(whole, vary(dice.pick((ASPHALT, OLD_ASPHALT, CONCRETE, CONCRETE)), dice)))
    count = 2 if du > 110 and dice.chance(0.7) else 1
    for n in range(count):
        half_a = whole.a / count
        spot = middle.at((2 * n + 1 - count) * half_a, 0)
        across = min((2 * half_a - 8) * dice.between(0.6, 0.9), 78)
        deep = min((2 * whole.b - 22) * dice.between(0.65, 0.95), 46)
        if min(across, deep) < 9:
            continue
        plan.buildings.append(hall(spot.at(0, -whole.b + deep / 2 + 2), across, deep, style, dice))
        parking(Box(spot.at(0, deep / 2 + 1), half_a - 3, whole.b - deep / 2 - 3), plan, dice)
    verge = Box(middle.at(0, whole.b + 1), whole.a, 1.6)
    plan.patches.append(Patch(verge, vary(GRASS, dice)))
    scatter(verge, 45, style, plan, dice)


def parking(box: Box, plan: Plan, dice: Dice) -> None:
    """Rows of marked stalls back to back with lanes between, more or less full."""
    plan.patches.append(Patch(box, vary(dice.pick((ASPHALT, OLD_ASPHALT, CONCRETE)), dice)))
    full, back_to_back = dice.between(0.15, 0.75), dice.chance(0.5)
    b = -box.b + 2.6
    while b < box.b - 2.4:
        row = Box(box.spot.at(0, b), box.a, 2.5)
        plan.patches.append(Patch(row, MARKING, 0.7, stalls=2.7))
        a = -box.a + 1.35
        while a < box.a - 1:
            if dice.chance(full):
                plan.cars.extend(car(row.spot.at(a, dice.between(-0.3, 0.3)).turned(dice.pick((90.0, 270.0))), dice))
            a += 2.7
        b += 5.2 if back_to_back else 11.0
        back_to_back = not back_to_back


def park(block: CityBlock, frame: Frame, style: Style, plan: Plan, dice: Dice) -> None:
    """Open ground: lawns, worn earth, a sports field, a pond, paths."""
    du, dv = block.size
    middle = frame.bent((block.u0 + block.u1) / 2, (block.v0 + block.v1) / 2)
    whole = Box(middle, du / 2 - 2, dv / 2 - 2)
    plan.patches.append(Patch(whole, vary(dice.pick((GRASS, DRY, DRY, SOIL)), dice), 0.9))
    for _ in range(int(dice.between(2, 7))):
        place = middle.at(dice.between(-0.8, 0.8) * whole.a, dice.between(-0.8, 0.8) * whole.b).turned(
            dice.between(0, 90)
        )
        worn = Box(place, dice.between(4, 16), dice.between(3, 10), 3)
        plan.patches.append(Patch(worn, vary(dice.pick((SOIL, SAND, RED_SOIL, DRY, GRASS)), dice), 0.8, ragged=4))
    path = Box(middle.turned(dice.between(-30, 30)), whole.a, 1.0)
    plan.patches.append(Patch(path, vary(dice.pick((SAND, CONCRETE)), dice), ragged=0.8))
    if dice.chance(0.5) and min(whole.a, whole.b) > 14:
        clear = Box(middle, min(whole.a - 3, 45), min(whole.b - 3, 26))
        # A pitch with its lines: grass, clay or a hard court, as bright and as straight as a roof.
        surfaces = (Paint((86, 112, 66), 4, 6), Paint((150, 96, 74), 3, 5), Paint((96, 118, 112), 3, 4))
        plan.patches.append(Patch(clear, vary(dice.pick(surfaces), dice)))
        a, b = clear.a - 1.5, clear.b - 1.5
        for line in (Box(middle.at(0, -b), a, 0.12), Box(middle.at(0, b), a, 0.12), Box(middle.at(-a, 0), 0.12, b),
                     Box(middle.at(a, 0), 0.12, b), Box(middle, 0.12, b)):  # fmt: skip
            plan.patches.append(Patch(line, MARKING, 0.9))
    else:
        clear = Box(middle, whole.a * 0.4, whole.b * 0.4, min(whole.a, whole.b) * 0.35)
        if dice.chance(0.5):
            plan.patches.append(Patch(clear, WATER, ragged=7))
    scatter(whole, dice.between(60, 240), style, plan, dice, clear)


def woods(block: CityBlock, frame: Frame, style: Style, plan: Plan, dice: Dice) -> None:
    """Trees close together on leaf litter, sometimes with a hut."""
    du, dv = block.size
    middle = frame.bent((block.u0 + block.u1) / 2, (block.v0 + block.v1) / 2)
    whole = Box(middle, du / 2 - 1, dv / 2 - 1)
    plan.patches.append(Patch(whole, vary(LITTER, dice)))
    for _ in range(int(dice.between(0, 3))):
        place = middle.at(dice.between(-0.8, 0.8) * whole.a, dice.between(-0.8, 0.8) * whole.b)
        plan.buildings.append(shed(place.turned(dice.between(0, 90)), style, dice))
    scatter(whole, dice.between(13, 34), style, plan, dice)


def street_furniture(street: Street, frame: Frame, style: Style, plan: Plan, dice: Dice) -> None:
    """Cars in the lanes and at the kerb, a dashed middle line, mended asphalt, and trees along the pavement."""
    along, kerb = street.start, street.width / 2 - 1.2
    marked, planted = dice.chance(0.5), dice.chance(0.4)
    while along < street.end:
        spot = frame.spot(along, street.across) if street.straight else frame.bent(street.across, along).turned(90)
        if marked:
            plan.patches.append(Patch(Box(spot, 1.5, 0.1), MARKING, 0.8))
        if dice.chance(0.1):
            mended = Box(spot.at(0, dice.between(-1, 1) * kerb), dice.between(0.8, 4), dice.between(0.5, 1.4))
            plan.patches.append(Patch(mended, vary(ASPHALT, dice), 0.6))
        for side, turn in ((1.0, 0.0), (-1.0, 180.0)):
            if dice.chance(0.2):
                plan.cars.extend(car(spot.at(0, side * kerb).turned(turn), dice))
            if dice.chance(0.025):
                plan.cars.extend(car(spot.at(3, side * kerb / 2).turned(turn), dice))
            if planted and dice.chance(0.5):
                plan.trees.append(tree(spot.at(2, side * (street.width / 2 + 1.5)), style, dice))
        along += 7.5


def car(spot: Spot, dice: Dice) -> tuple[Patch, ...]:
    """Return a car with its windows, now and then a van or a lorry, pointing along +a."""
    if dice.chance(0.06):
        return (Patch(Box(spot, dice.between(3.0, 5.5), 1.2), dice.pick(CAR_PAINTS[:3]), height=2.8),)
    spot = spot.turned(dice.between(-3, 3))
    body = Patch(Box(spot, dice.between(2.1, 2.5), dice.between(0.85, 0.98), 0.5), dice.pick(CAR_PAINTS), height=1.5)
    return (
        body,
        Patch(Box(spot.at(0.75, 0), 0.35, 0.7), GLASS, 0.8),
        Patch(Box(spot.at(-1.4, 0), 0.3, 0.65), GLASS, 0.7),
    )


def scatter(box: Box, ground_m2: float, style: Style, plan: Plan, dice: Dice, clear: Box | None = None) -> None:
    """Plant trees over the box, one for every `ground_m2` square metres, none on `clear` ground of the same heading."""
    for _ in range(int(4 * box.a * box.b / ground_m2 + dice.between(0, 1))):
        a, b = dice.between(-1, 1) * box.a, dice.between(-1, 1) * box.b
        if clear is None or abs(a) > clear.a or abs(b) > clear.b:
            plan.trees.append(tree(box.spot.at(a, b), style, dice))


def tree(spot: Spot, style: Style, dice: Dice) -> Tree:
    """Return a tree of the city's kinds, from a bush to an old oak."""
    colour, density = dice.pick(CROWNS[style])
    size = dice.between(0.0, 1.0)
    radius = 1.0 + 4.5 * size * size + dice.between(0, 1.2)
    return Tree(
        spot.east, spot.south, radius, 1.5 + radius * dice.between(1.4, 2.1), vary(Paint(colour), dice), density
    )


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
