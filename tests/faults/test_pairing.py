"""What belongs together is found to: CRSs that differ in heights only, labels of other places, notes of many files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.crs import CRS

from aerialseg.geo.geobox import same_horizontal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., tuple[int, str, str]]
    Write = Callable[..., Path]

SIZE = ("--size", 64, "--split", "0")
GERMAN = (0.3, 0.0, 500000.0, 0.0, -0.3, 5300000.0)
FLAT, HIGH = "EPSG:25832", "EPSG:25832+5783"
HEIGHTS = "its CRS, ETRS89 / UTM zone 32N + DHHN92 height, differs from ETRS89 / UTM zone 32N in heights only"


def beside(number: int) -> tuple[float, ...]:
    return (*GERMAN[:2], GERMAN[2] + number * 128 * 0.3, *GERMAN[3:])


def columns(folder: Path, write: Write, systems: tuple[Any, ...]) -> Path:
    """Write a raster for each CRS, side by side."""
    for number, crs in enumerate(systems):
        write(folder / f"s{number}.tif", crs=crs, transform=beside(number))
    return folder


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (FLAT, HIGH, True),
        ("EPSG:5555", HIGH, True),
        ("EPSG:4326", "EPSG:4979", True),
        ("EPSG:9518", "EPSG:4979", True),
        ("EPSG:25833", HIGH, False),
        (FLAT, "EPSG:32632", False),
    ],
)
def test_crs_are_one_where_they_differ_in_heights_only(one: str, other: str, same: bool) -> None:
    systems = CRS.from_user_input(one), CRS.from_user_input(other)
    assert same_horizontal(*systems) == same_horizontal(*systems[::-1]) == same
    assert same_horizontal(None, None) and not same_horizontal(None, systems[0])


def test_scenes_and_masks_pair_across_heights_with_one_line(
    tmp_path: Path, scene_file: Write, mask_file: Write, run: Run
) -> None:
    columns(tmp_path / "im", scene_file, (FLAT, FLAT))
    columns(tmp_path / "gt", mask_file, (HIGH, HIGH))
    code, _, err = run("tile", tmp_path / "im", "--masks", tmp_path / "gt", *SIZE, "-o", tmp_path / "t")
    assert code == 0, err
    assert err.count("heights only") == 1
    assert f"{tmp_path}/gt/s0.tif: {HEIGHTS}; taken as one (and 1 more like it)" in err
    with rasterio.open(tmp_path / "t/images/s0_00000_00000.tif") as tile:
        assert tile.crs == CRS.from_user_input(FLAT)
    columns(tmp_path / "out", mask_file, (FLAT, HIGH))
    code, out, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt")
    assert code == 0 and err.count("heights only") == 1 and "1.0000" in out, err


def test_masks_across_heights_are_one_layer_and_one_mosaic_of_buildings(
    tmp_path: Path, mask_file: Write, run: Run
) -> None:
    columns(tmp_path / "m", mask_file, (FLAT, HIGH))
    code, _, err = run("polygonize", tmp_path / "m", "-o", tmp_path / "b.fgb")
    assert code == 0 and f"{tmp_path}/m/s1.tif: {HEIGHTS}; taken as one" in err
    ground = np.concatenate([rasterio.open(tmp_path / f"m/s{number}.tif").read(1) for number in (0, 1)], axis=1)
    mask_file(tmp_path / "one.tif", ground, crs=FLAT, transform=GERMAN)
    assert run("polygonize", tmp_path / "one.tif", "-o", tmp_path / "one.fgb")[0] == 0
    areas = [sorted(pyogrio.read_dataframe(tmp_path / f"{name}.fgb")["area_m2"]) for name in ("b", "one")]
    assert areas[0] == areas[1]


def test_scenes_across_heights_are_one_raster_and_one_mosaic(
    tmp_path: Path, scene_file: Write, run: Run, tiny_model: Callable[..., Path]
) -> None:
    columns(tmp_path / "im", scene_file, (FLAT, HIGH))
    code, _, err = run("predict", tmp_path / "im", "-m", tiny_model(tmp_path / "m.safetensors"), "-o", tmp_path / "o")
    assert code == 0 and err.count("heights only") == 1, err
    assert 'rasterXSize="256" rasterYSize="128"' in (tmp_path / "o/mosaic.vrt").read_text()


@pytest.mark.parametrize(
    ("mask", "code", "line"),
    [
        ({"crs": "EPSG:25833"}, 65, "if only its label is wrong, gdal_edit.py -a_srs EPSG:25832 {mask}"),
        (
            {"crs": "EPSG:25833", "transform": (0.3, 0.0, 1.0, 0.0, -0.3, 2.0)},
            65,
            "EPSG:25833; gdalwarp it to the same grid",
        ),
        ({"crs": None}, 0, "has no CRS; taken pixel by pixel; gdal_edit.py -a_srs EPSG:25832 {mask} says where"),
    ],
)
def test_the_advice_for_a_mask_of_another_crs_fits_the_case(
    tmp_path: Path, scene_file: Write, mask_file: Write, run: Run, mask: dict[str, Any], code: int, line: str
) -> None:
    scene = scene_file(tmp_path / "s.tif", crs=FLAT, transform=GERMAN)
    true = mask_file(tmp_path / "gt/s.tif", **{"transform": GERMAN, **mask})
    found, _, err = run("tile", scene, "--masks", true, *SIZE, "-o", tmp_path / "t")
    assert found == code and line.format(mask=true) in err, err


def test_a_truth_with_a_transform_alone_is_told_how_to_get_its_crs(tmp_path: Path, mask_file: Write, run: Run) -> None:
    mask_file(tmp_path / "out/s.tif")
    true = mask_file(tmp_path / "gt/s.tif", crs=None)
    code, _, err = run("evaluate", tmp_path / "out", "--masks", tmp_path / "gt")
    assert code == 65 and f"{true}: has no CRS: gdal_edit.py -a_srs EPSG:... {true}, or compare" in err


def squares(path: Path, *places: tuple[float, float], crs: str = "EPSG:26914") -> Path:
    """Write squares of 12 m by their lower left corners."""
    wkb = np.array([shapely.to_wkb(shapely.box(x, y, x + 12, y + 12)) for x, y in places], dtype=object)
    pyogrio.raw.write(path, wkb, [], [], geometry_type="Polygon", crs=crs)
    return path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("profile", "line"),
    [
        ({"crs": None}, "has no CRS, so {labels} cannot be laid on it: gdal_edit.py -a_srs EPSG:..."),
        ({"crs": None, "transform": None}, "has no CRS and transform, so {labels} cannot be laid on it: add its world"),
        ({"transform": None}, "has no transform, so {labels} cannot be laid on it: add its world file"),
    ],
)
def test_a_scene_without_a_place_is_blamed_itself_and_costs_itself_only(
    tmp_path: Path, scene_file: Write, mask_file: Write, run: Run, profile: dict[str, Any], line: str
) -> None:
    labels = squares(tmp_path / "l.gpkg", (616010, 3346970))
    bare = scene_file(tmp_path / "im/bare.tif", **profile)
    scene_file(tmp_path / "im/good.tif")
    given = ("--masks", labels, *SIZE, "--allow-ungeoreferenced", "-o", tmp_path / "t")
    code, _, err = run("tile", tmp_path / "im", *given)
    assert code == 3 and f"error: {bare}: {line.format(labels=labels)}" in err, err
    code, _, err = run("tile", bare, *given[:-1], tmp_path / "t2")
    assert code == 65 and err.splitlines()[-1].startswith(f"error: {bare}: {line.format(labels=labels)}"), err
    mask = mask_file(tmp_path / "out/bare.tif", **profile)
    code, _, err = run("evaluate", mask, "--masks", labels, "--allow-ungeoreferenced")
    assert code == 65 and err.splitlines()[-1].startswith(f"error: {mask}: {line.format(labels=labels)}"), err


def test_notes_of_many_small_scenes_are_told_once_each_with_their_number(
    tmp_path: Path, scene_file: Write, mask_file: Write, run: Run
) -> None:
    """Every scene has blocks that were never written and look like a collar, every mask lies a third of a pixel off."""
    for number in range(12):
        x, shift = 616000 + 64 * 0.3 * number, 0.1 + 0.001 * number
        place = (0.3, 0.0, x, 0.0, -0.3, 3347000.0)
        path = scene_file(tmp_path / f"im/s{number}.tif", np.zeros((3, 64, 64), np.uint8), transform=place)
        with rasterio.open(path) as dataset:
            profile = dataset.profile | {"blockysize": 8}
        with rasterio.open(path, "w", **profile, SPARSE_OK=True) as dataset:
            dataset.write(np.full((3, 8, 64), 9, np.uint8), window=((0, 8), (0, 64)))
        mask_file(tmp_path / f"gt/s{number}.tif", size=(64, 64), transform=(*place[:2], x + shift, *place[3:]))
    code, _, err = run("tile", tmp_path / "im", "--masks", tmp_path / "gt", *SIZE, "-o", tmp_path / "t")
    said = [line for line in err.splitlines() if ".tif: " in line]
    for start in ("im/s0.tif: at least 7 blocks", "im/s0.tif: a large part", "gt/s0.tif: lies 0.33 px off"):
        assert sum(line.startswith(f"{tmp_path}/{start}") for line in said) == 1, err
    assert code == 0 and len(said) == 3, err
    assert all(line.endswith("(and 11 more like it)") for line in said)


def test_commands_pair_by_a_replaced_part_and_say_once_that_names_differ_in_case(
    tmp_path: Path, scene_file: Write, mask_file: Write, run: Run
) -> None:
    for number in range(3):
        scene_file(tmp_path / f"im/x{number}_sat.tif", transform=beside(number))
        mask_file(tmp_path / f"gt/X{number}_mask.tif", transform=beside(number))
        mask_file(tmp_path / f"out/x{number}_sat.tif", transform=beside(number))
    given = ("--masks", tmp_path / "gt", "--mask-pattern", "_sat:_mask")
    said = "3 masks by names that differ in case only, such as "
    for command in (
        ("tile", tmp_path / "im", *given, *SIZE, "-o", tmp_path / "t"),
        ("evaluate", tmp_path / "out", *given),
        ("compare", tmp_path / "out", tmp_path / "out", *given),
    ):
        code, _, err = run(*command)
        assert (code, err.count(said)) == (0, 1), err


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_no_option_is_advised_that_cannot_lay_polygons_on_a_raster_without_a_place(
    tmp_path: Path, scene_file: Write, mask_file: Write, run: Run
) -> None:
    labels = squares(tmp_path / "l.gpkg", (616010, 3346970))
    for command, raster in (
        ("tile", scene_file(tmp_path / "im/s.tif", crs=None, transform=None)),
        ("evaluate", mask_file(tmp_path / "out/s.tif", crs=None, transform=None)),
    ):
        more = (*SIZE, "-o", tmp_path / "t") if command == "tile" else ()
        code, _, err = run(command, raster, "--masks", labels, *more)
        assert code == 65 and f"{raster}: has no CRS and transform, so {labels} cannot be laid on it" in err, err
        assert "--allow-ungeoreferenced" not in err
