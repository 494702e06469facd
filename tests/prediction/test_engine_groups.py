"""A raster cut in pieces and predicted as scenes is the raster predicted whole, byte for byte; so is a run resumed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from known_networks import Counting, Neighbourhood, PixelRule, certain, plain, standardised

from aerialseg.errors import BadDataError
from aerialseg.geo.inspection import inspect_scene
from aerialseg.prediction.engine import predict_scene
from aerialseg.prediction.lattice import Lattice, ScenePlacement, place_scenes
from aerialseg.prediction.network import EngineSettings, Forward

if TYPE_CHECKING:
    from collections.abc import Callable

    Place = tuple[slice, slice]

GRIDS: dict[str, dict[str, Any]] = {
    "metres": {"transform": (0.3, 0.0, 616000.0, 0.0, -0.3, 3347000.0)},
    "south-up": {"transform": (0.3, 0.0, 616000.0, 0.0, 0.3, 3347000.0)},
    "rotated": {"transform": (0.2, 0.2, 616000.0, 0.2, -0.2, 3347000.0)},
    "degrees": {"crs": "EPSG:4326", "transform": (3e-6, 0.0, 16.0, 0.0, -3e-6, 48.0)},
}


def moved(transform: tuple[float, ...], row: int, col: int) -> tuple[float, ...]:
    a, b, c, d, e, f = transform
    return a, b, c + a * col + b * row, d, e, f + d * col + e * row


def cut(
    write: Callable[..., Path],
    folder: Path,
    pixels: np.ndarray,
    rows: list[int],
    cols: list[int],
    gsd_m: float | None = None,
    **profile: Any,
) -> list[tuple[Place, ScenePlacement]]:
    """Write the pieces between the cuts as scenes and return each one's place and canvas."""
    profile = {**GRIDS["metres"], **profile}
    transform = profile.pop("transform")
    places = {}
    for top, bottom in itertools.pairwise([0, *rows, pixels.shape[1]]):
        for left, right in itertools.pairwise([0, *cols, pixels.shape[2]]):
            path = folder / f"{top}-{left}.tif"
            write(path, pixels[:, top:bottom, left:right], transform=moved(transform, top, left), **profile)
            places[path] = slice(top, bottom), slice(left, right)
    canvases = place_scenes([inspect_scene(path) for path in places], neighbours=True, gsd_m=gsd_m, reach=128)
    return [(place, canvases[path]) for path, place in places.items()]


def joined(
    stream: Callable[..., np.ndarray],
    pieces: list[tuple[Place, ScenePlacement]],
    shape: tuple[int, ...],
    **options: Any,
) -> np.ndarray:
    whole = np.full(shape, 99, np.uint8)
    for place, canvas in pieces:
        whole[place] = stream(canvas.source.path, options["segmenter"](), canvas=canvas, **options["settings"])
    return whole


@pytest.mark.parametrize("grid", GRIDS)
def test_a_raster_cut_in_four_equals_the_whole(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray], grid: str
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, 230, 190), dtype=np.uint8)
    whole = stream(scene_file(tmp_path / "whole.tif", pixels, **GRIDS[grid]), standardised(Neighbourhood()))
    pieces = cut(scene_file, tmp_path / "cut", pixels, [100], [77], **GRIDS[grid])
    options = {"segmenter": lambda: standardised(Neighbourhood()), "settings": {}}
    np.testing.assert_array_equal(joined(stream, pieces, whole.shape, **options), whole)
    alone = stream(pieces[0][1].source.path, standardised(Neighbourhood()))
    assert (alone != whole[:100, :77]).any()  # without its neighbours a piece has a seam


@pytest.mark.parametrize("factor", [2.0, 1.37, 0.6])
@pytest.mark.parametrize("grid", GRIDS)
def test_pieces_of_a_resampled_raster_equal_the_whole_resampled(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray], grid: str, factor: float
) -> None:
    pixels = np.random.default_rng(2).integers(1, 256, (3, 211, 190), dtype=np.uint8)
    pixels[:, 90:120, 30:] = 0
    source = inspect_scene(scene_file(tmp_path / "whole.tif", pixels, nodata=0, **GRIDS[grid]))
    gsd_m = source.box.gsd_m * factor
    whole = stream(source.path, standardised(Neighbourhood()), canvas=ScenePlacement.alone(source, gsd_m))
    pieces = cut(scene_file, tmp_path / "cut", pixels, [101], [77], gsd_m, nodata=0, **GRIDS[grid])
    assert all(canvas.halo and canvas.gsd_m == gsd_m for _, canvas in pieces)
    options = {"segmenter": lambda: standardised(Neighbourhood()), "settings": {}}
    np.testing.assert_array_equal(joined(stream, pieces, whole.shape, **options), whole)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 300), width=st.integers(1, 300), rows=st.sets(st.integers(1, 299), max_size=3),
    cols=st.sets(st.integers(1, 299), max_size=3), overlap=st.sampled_from([0, 0.25, 0.5, 0.75, 0.6]),
    blend=st.sampled_from(["hann", "linear", "crop"]), nodata=st.booleans(),
    gsd_m=st.sampled_from([None, None, 0.2, 0.41, 0.77]),
)  # fmt: skip
def test_ragged_pieces_equal_the_whole_at_any_settings(
    tmp_path_factory: pytest.TempPathFactory, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray],
    height: int, width: int, rows: set[int], cols: set[int], overlap: float, blend: str, nodata: bool,
    gsd_m: float | None,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("ragged")
    pixels = np.random.default_rng(height + width).integers(1, 256, (3, height, width), dtype=np.uint8)
    if nodata:
        pixels[:, height // 4 : height // 2, width // 3 :] = 0
    profile = {"nodata": 0} if nodata else {}
    chosen = {"overlap": overlap, "blend": blend, "planes": 2}
    kept: list[Any] = []
    source = inspect_scene(scene_file(folder / "whole.tif", pixels, **profile))
    whole = stream(
        source.path, standardised(Neighbourhood()), canvas=ScenePlacement.alone(source, gsd_m), strips=kept, **chosen
    )
    spread = np.concatenate([disagreement for _, _, disagreement in kept])
    cuts = sorted(row for row in rows if row < height), sorted(col for col in cols if col < width)
    for place, canvas in cut(scene_file, folder / "cut", pixels, *cuts, gsd_m, **profile):
        found: list[Any] = []
        quanta = stream(canvas.source.path, standardised(Neighbourhood()), canvas=canvas, strips=found, **chosen)
        np.testing.assert_array_equal(quanta, whole[place])
        np.testing.assert_array_equal(np.concatenate([disagreement for _, _, disagreement in found]), spread[place])


def test_a_piece_runs_the_windows_that_touch_it_alone(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray]
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, 230, 190), dtype=np.uint8)
    for (rows, cols), canvas in cut(scene_file, tmp_path, pixels, [100], [77]):
        network = Counting()
        stream(canvas.source.path, plain(network), canvas=canvas, batch=1)
        starts = [range(0, count * 48, 48) for count in (5, 4)]
        touching = [
            sum(start < side.stop and start + 64 > side.start for start in axis)
            for side, axis in zip((rows, cols), starts, strict=True)
        ]
        assert len(network.sizes) == touching[0] * touching[1]
        assert Lattice.of(canvas, 64, 0.25).count == len(network.sizes)
        network.sizes.clear()
        stream(canvas.source.path, plain(network), canvas=canvas, batch=100)
        assert network.sizes == [20]  # the group's windows: a network answers to its batch's size


def test_missing_ground_inside_the_group_is_invalid_to_the_network(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray]
) -> None:
    pixels = np.random.default_rng(2).integers(1, 256, (3, 200, 200), dtype=np.uint8)
    pieces = cut(scene_file, tmp_path / "cut", pixels, [90], [110])
    gone = (slice(90, 200), slice(0, 110))
    sources = [canvas.source for place, canvas in pieces if place != gone]
    canvases = place_scenes(sources, neighbours=True, gsd_m=None, reach=128)
    pixels[(slice(None), *gone)] = 0
    whole = stream(scene_file(tmp_path / "whole.tif", pixels, nodata=0), standardised(Neighbourhood()))
    for place, canvas in pieces:
        if place != gone:
            path = canvas.source.path
            found = stream(path, standardised(Neighbourhood()), canvas=canvases[path])
            np.testing.assert_array_equal(found, whole[place])


def test_what_cannot_be_read_of_a_neighbour_is_missing_ground(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray]
) -> None:
    pixels = np.random.default_rng(2).integers(1, 256, (3, 300, 100), dtype=np.uint8)
    profile = {"compress": "deflate", "blockysize": 16, "nodata": 0}
    (_, broken), (place, canvas) = cut(scene_file, tmp_path / "cut", pixels, [100], [], **profile)
    path = broken.source.path
    with path.open("r+b") as file:  # in the middle of the noise: one block of 16 rows, 80 to 95
        file.seek(round(path.stat().st_size * 88 / 100))
        file.write(bytes(64))
    with pytest.raises(BadDataError, match=r"0-0\.tif: block row 5"):
        stream(path, plain(PixelRule()), canvas=broken)
    missing = pixels.copy()
    missing[:, 80:96] = 0
    expected = stream(scene_file(tmp_path / "whole.tif", missing, nodata=0), standardised(Neighbourhood()))[place]
    strips: list[Any] = []
    found = stream(canvas.source.path, standardised(Neighbourhood()), canvas=canvas, strips=strips)
    np.testing.assert_array_equal(found, expected)
    row = strips[1][0]
    rest = stream(canvas.source.path, standardised(Neighbourhood()), canvas=canvas, skip=row)
    np.testing.assert_array_equal(rest, found[row:])
    opened = {link.resolve() for link in Path("/proc/self/fd").iterdir() if link.exists()}
    assert not opened & {path, canvas.source.path}


def test_pieces_of_an_exact_model_have_no_wrong_pixel(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray]
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, 150, 131), dtype=np.uint8)
    pieces = cut(scene_file, tmp_path, pixels, [1, 60], [40, 41])
    whole = joined(stream, pieces, (150, 131), segmenter=lambda: plain(PixelRule()), settings={})
    np.testing.assert_array_equal(whole, certain(pixels))


@pytest.mark.parametrize("overlap", [0, 0.25, 0.75])
@pytest.mark.parametrize("chosen", [{}, {"gsd_m": 0.2}, {"gsd_m": 0.45}, {"row": 70}], ids=str)
def test_a_run_that_goes_on_at_any_strip_gives_the_same_bytes_and_runs_less(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., np.ndarray], overlap: float, chosen: Any
) -> None:
    pixels = np.random.default_rng(2).integers(1, 256, (3, 200, 60), dtype=np.uint8)
    pixels[:, 100:140, 20:] = 0
    if "row" in chosen:
        pieces = cut(scene_file, tmp_path, pixels, [chosen["row"]], [], nodata=0)
        canvas = pieces[1][1]
    else:
        source = inspect_scene(scene_file(tmp_path / "scene.tif", pixels, nodata=0))
        canvas = ScenePlacement.alone(source, chosen.get("gsd_m"))
    path, strips = canvas.source.path, []
    network = Counting()
    options = {"canvas": canvas, "overlap": overlap, "planes": 2, "batch": 1}
    whole = stream(path, standardised(Neighbourhood()), strips=strips, **options)
    stream(path, plain(network), **options)
    everything = len(network.sizes)
    for row in [row for row, _, _ in strips[1:]][:: max(1, len(strips) // 4)]:
        again: list[Any] = []
        rest = stream(path, standardised(Neighbourhood()), skip=row, strips=again, **options)
        np.testing.assert_array_equal(rest, whole[row:])
        np.testing.assert_array_equal(
            np.concatenate([disagreement for _, _, disagreement in again]),
            np.concatenate([disagreement for first, _, disagreement in strips if first >= row]),
        )
    network.sizes.clear()
    stream(path, plain(network), skip=strips[-1][0], **options)
    assert 0 < len(network.sizes) < everything


def test_nothing_is_run_when_every_strip_is_done(tmp_path: Path, scene_file: Callable[..., Path]) -> None:
    for gsd_m in (None, 0.5):
        canvas = ScenePlacement.alone(inspect_scene(scene_file(tmp_path / "scene.tif")), gsd_m)
        settings = EngineSettings(64, 0.25, 2, torch.device("cpu"))
        sent = []

        def sink() -> Any:
            while (strip := (yield)) is not None:
                sent.append(strip)  # noqa: B023

        streamed = predict_scene(Forward(plain(PixelRule()), settings), canvas, sink(), skip=128)
        assert (streamed.windows, streamed.run, sent) == (0, 0, [])
        assert Lattice.of(canvas, 64, 0.25).count == (9 if gsd_m is None else 4)
