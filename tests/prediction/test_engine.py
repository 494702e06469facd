"""The engine against networks whose answer is known: exact pixel by pixel, and a whole-array reference in float64."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from known_networks import Counting, Neighbourhood, PixelRule, certain, plain, reference, standardised
from torch import nn

from aerialseg.errors import AerialsegError, ModelError, ResourceError, Stopped
from aerialseg.geo.inspection import BandRule, inspect_scene
from aerialseg.prediction import engine, reading
from aerialseg.prediction.engine import Accumulator, Arrival, Strip, predict_scene
from aerialseg.prediction.lattice import ScenePlacement
from aerialseg.prediction.network import EngineSettings, Forward
from aerialseg.prediction.reading import WindowBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

SIZES = [(200, 150), (40, 50), (1, 1), (31, 700), (97, 61), (64, 64), (65, 64), (1, 130), (130, 1), (112, 113)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_exact_model_comes_back_without_one_wrong_pixel(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, *size), dtype=np.uint8)
    path = scene_file(tmp_path / "scene.tif", pixels)
    np.testing.assert_array_equal(stream(path, plain(PixelRule())), certain(pixels))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 150), width=st.integers(1, 150), overlap=st.floats(0, 0.75), batch=st.integers(1, 7),
    window=st.sampled_from([32, 64, 96]), blend=st.sampled_from(["hann", "linear", "crop"]),
)  # fmt: skip
def test_no_pixel_is_wrong_on_any_grid(
    tmp_path_factory: pytest.TempPathFactory, scene_file: Callable[..., Path], stream: Callable[..., Any],
    height: int, width: int, overlap: float, batch: int, window: int, blend: str,
) -> None:  # fmt: skip
    pixels = np.random.default_rng(height * 151 + width).integers(0, 256, (3, height, width), dtype=np.uint8)
    path = scene_file(tmp_path_factory.mktemp("any") / "scene.tif", pixels)
    quanta = stream(path, plain(PixelRule()), size=window, overlap=overlap, batch=batch, blend=blend)
    np.testing.assert_array_equal(quanta, certain(pixels))


@pytest.mark.parametrize("size", [(200, 150), (40, 50), (31, 300), (1, 1), (97, 61)], ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_blended_probabilities_agree_with_the_whole_array_reference(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], size: tuple[int, int], overlap: float
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, *size), dtype=np.uint8)
    path = scene_file(tmp_path / "scene.tif", pixels)
    segmenter = standardised(Neighbourhood())
    quanta = stream(path, segmenter, overlap=overlap)
    expected = reference(pixels, segmenter, 64, overlap) * 254
    assert expected.std() > 20 or size == (1, 1)
    assert np.abs(quanta - expected).max() <= 0.51


def test_temperature_divides_the_logits(tmp_path: Path, scene_file: Callable[..., Path], stream: Callable) -> None:
    path = scene_file(tmp_path / "scene.tif", size=(50, 40))
    sure, unsure = (
        stream(path, standardised(Neighbourhood()), temperature=value).astype(float) / 254 for value in (1.0, 2.0)
    )
    middle = (sure > 0.05) & (sure < 0.95)
    halved = 1 / (1 + np.exp(-np.log(sure[middle] / (1 - sure[middle])) / 2))
    assert np.abs(halved - unsure[middle]).max() < 0.02


def test_batches_of_any_size_give_the_same(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    path = scene_file(tmp_path / "scene.tif", size=(200, 150))
    first = stream(path, standardised(Neighbourhood()), batch=1)
    for batch in (2, 5, 100):
        assert np.abs(first.astype(int) - stream(path, standardised(Neighbourhood()), batch=batch)).max() <= 1


def test_a_rerun_gives_equal_bytes(tmp_path: Path, scene_file: Callable[..., Path], stream: Callable) -> None:
    path = scene_file(tmp_path / "scene.tif", size=(200, 150))
    first, second = (stream(path, standardised(Neighbourhood())) for _ in range(2))
    np.testing.assert_array_equal(first, second)


KINDS: dict[str, dict[str, Any]] = {
    "tiled": {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"},
    "planar": {"interleave": "band"},
    "south-up": {"transform": (0.3, 0.0, 616000.0, 0.0, 0.3, 3347000.0)},
    "rotated": {"transform": (0.2, 0.2, 616000.0, 0.2, -0.2, 3347000.0)},
    "degrees": {"crs": "EPSG:4326", "transform": (3e-6, 0.0, 16.0, 0.0, -3e-6, 48.0)},
    "no CRS": {"crs": None, "transform": None},
    "big": {"BIGTIFF": "YES"},
}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_s_layout_does_not_matter(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], kind: str
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 150, 110), dtype=np.uint8)
    path = scene_file(tmp_path / "scene.tif", pixels, **KINDS[kind])
    np.testing.assert_array_equal(stream(path, plain(PixelRule())), certain(pixels))


def test_a_jpeg_in_ycbcr_is_read_as_rgb(tmp_path: Path, scene_file: Callable[..., Path], stream: Callable) -> None:
    path = scene_file(tmp_path / "scene.tif", size=(150, 110), photometric="YCBCR", compress="JPEG", tiled=True,
                      blockxsize=64, blockysize=64)  # fmt: skip
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(stream(path, plain(PixelRule())), certain(dataset.read()))


def test_a_scene_with_blank_blocks(tmp_path: Path, scene_file: Callable[..., Path], stream: Callable) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 300, 200), dtype=np.uint8)
    pixels[:, 64:256, 32:160] = 0
    path = scene_file(tmp_path / "scene.tif", pixels, tiled=True, blockxsize=32, blockysize=32, sparse_ok=True)
    np.testing.assert_array_equal(stream(path, plain(PixelRule())), certain(pixels))


def test_alpha_is_the_valid_mask_and_not_a_band(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (4, 150, 110), dtype=np.uint8)
    pixels[3] = 255
    pixels[3, 20:100, 30:90] = 0
    path = scene_file(tmp_path / "scene.tif", pixels, photometric="RGB", alpha="YES")
    expected = np.where(pixels[3] == 0, 255, certain(pixels[:3]))
    np.testing.assert_array_equal(stream(path, plain(PixelRule())), expected)


def test_sixteen_bits_with_a_scale(tmp_path: Path, scene_file: Callable[..., Path], stream: Callable) -> None:
    pixels = np.random.default_rng(3).integers(0, 4096, (3, 150, 110)).astype(np.uint16)
    path = scene_file(tmp_path / "scene.tif", pixels)
    shown = np.rint(pixels.astype(np.float32) * np.float32(255 / 4095)).astype(np.uint8)
    quanta = stream(path, plain(PixelRule()), rule=BandRule(scale=(0, 4095)))
    np.testing.assert_array_equal(quanta, certain(shown))


def test_four_bands_and_a_choice_of_bands(tmp_path: Path, scene_file: Callable[..., Path], stream: Callable) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (4, 80, 110), dtype=np.uint8)
    path = scene_file(tmp_path / "scene.tif", pixels, photometric="MINISBLACK", alpha="NO")
    np.testing.assert_array_equal(stream(path, plain(PixelRule(), 4)), certain(pixels))
    chosen = stream(path, plain(PixelRule(), 2), rule=BandRule(bands=(4, 2)))
    np.testing.assert_array_equal(chosen, certain(pixels[[3, 1]]))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_values_under_the_mask_change_no_valid_byte(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], dtype: str
) -> None:
    rng = np.random.default_rng(4)
    valid = np.ones((260, 180), bool)
    valid[40:90, 100:] = valid[150:, :120] = valid[7, 7] = False
    base = rng.integers(1, 256, (3, *valid.shape)).astype(dtype)
    results = []
    for seed in range(2):
        pixels = base.copy()
        if dtype == "float32":
            pixels[:, ~valid] = (np.nan, np.inf)[seed]
            profile = {}
        else:
            pixels[:, ~valid] = np.random.default_rng(seed).integers(0, 256, (3, int((~valid).sum())))
            profile = {"mask": valid}
        path = masked_scene(scene_file, tmp_path / f"{seed}.tif", pixels, **profile)
        results.append(stream(path, standardised(Neighbourhood()), rule=BandRule(scale=(0, 255))))
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0][~valid] == 255).all()
    assert (results[0][valid] != 255).all()


def masked_scene(scene_file: Callable[..., Path], path: Path, pixels: Any, mask: Any = None) -> Path:
    scene_file(path, pixels)
    if mask is not None:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
            target.write_mask(mask)
    return path


def test_nodata_pixels_are_invalid(tmp_path: Path, scene_file: Callable[..., Path], stream: Callable) -> None:
    pixels = np.random.default_rng(3).integers(1, 256, (3, 150, 110), dtype=np.uint8)
    pixels[:, 100:, :50] = 0
    path = scene_file(tmp_path / "scene.tif", pixels, nodata=0)
    expected = certain(pixels)
    expected[100:, :50] = 255
    np.testing.assert_array_equal(stream(path, plain(PixelRule())), expected)


def test_batches_are_equal_and_empty_windows_are_not_run(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    pixels = np.random.default_rng(3).integers(1, 256, (3, 400, 208), dtype=np.uint8)
    pixels[:, 48:300] = 0  # rows 1 to 4 of the lattice see nothing but nodata
    path = scene_file(tmp_path / "scene.tif", pixels, nodata=0)
    network = Counting()
    quanta = stream(path, plain(network), batch=4)
    assert (quanta[48:300] == 255).all()
    np.testing.assert_array_equal(quanta[300:], certain(pixels)[300:])
    assert network.sizes == [4] * 4  # 5 of 8 rows hold 4 windows each; the fifth begins inside the blank


def test_an_empty_scene_is_all_nodata_and_runs_nothing(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    path = scene_file(tmp_path / "scene.tif", np.zeros((3, 200, 150), np.uint8), nodata=0)
    network = Counting()
    assert (stream(path, plain(network)) == 255).all()
    assert network.sizes == []


def test_out_of_memory_halves_the_batch_for_good(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 200, 150), dtype=np.uint8)
    path = scene_file(tmp_path / "scene.tif", pixels)
    network, heard = Counting(fail_above=2), Listener()
    np.testing.assert_array_equal(stream(path, plain(network), batch=8, progress=heard), certain(pixels))
    assert network.sizes[:3] == [8, 4, 2]
    assert set(network.sizes[3:]) == {2}


def test_out_of_memory_with_one_window_names_a_way_out(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    path = scene_file(tmp_path / "scene.tif")
    with pytest.raises(ResourceError, match="64 px window; use --precision bf16"):
        stream(path, plain(Counting(fail_above=0)))


ALLOCATIONS = {
    "buffers": (WindowBatch, "empty", RuntimeError("CUDA error: out of memory")),
    "rows": (reading, "_bands", MemoryError("Unable to allocate 9 TiB")),
    "sums": (engine, "Accumulator", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")),
    "strips": (engine, "StripMaker", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB")),
}


@pytest.mark.parametrize("place", ALLOCATIONS)
def test_out_of_memory_for_a_scene_s_own_arrays_names_it_and_a_way_out(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:  # fmt: skip
    owner, name, refusal = ALLOCATIONS[place]

    def refuse(*arguments: Any, **named: Any) -> None:
        raise refusal

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(ResourceError, match=r"scene\.tif: out of memory .*150 px.*; use a smaller --window") as caught:
        stream(scene_file(tmp_path / "scene.tif", size=(200, 150)), plain(PixelRule()))
    assert caught.value.exit_code == 71
    assert not arrays_alive()


def arrays_alive() -> list[Any]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) in (Accumulator, WindowBatch)]


def test_other_failures_of_a_scene_s_arrays_are_not_hidden(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(engine, "Accumulator", fail)
    with pytest.raises(RuntimeError, match="scalar type"):
        stream(scene_file(tmp_path / "scene.tif"), plain(PixelRule()))


class Listener:
    """A Progress that adds up, and stops the run after so many calls."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.done, self.calls, self.stop_after = 0.0, 0, stop_after
        self.lines: list[str] = []

    def start(self, label: str, total: float, unit: str) -> None:
        raise AssertionError("the engine does not begin the work, the job does")

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.calls += 1
        if self.calls == self.stop_after:
            raise Stopped(15)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def finish(self) -> None: ...


@pytest.mark.parametrize("blank", [False, True])
def test_progress_adds_up_to_the_scene(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], blank: bool
) -> None:
    pixels = np.zeros((3, 200, 150), np.uint8) if blank else None
    path = scene_file(tmp_path / "scene.tif", pixels, size=(200, 150), nodata=0)
    heard = Listener()
    stream(path, plain(PixelRule()), progress=heard)
    assert heard.done == pytest.approx(200 * 150 / 1e6)


def test_stopping_ends_the_run_at_the_next_batch(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    network = Counting()
    with pytest.raises(Stopped):
        stream(scene_file(tmp_path / "scene.tif", size=(400, 400)), plain(network), progress=Listener(stop_after=2))
    assert len(network.sizes) == 2


class Silly(nn.Module):
    """Returns what it was made with, whatever it is asked."""

    def __init__(self, value: float, channels: int = 1) -> None:
        super().__init__()
        self.value, self.channels = value, channels

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.full((len(pixels), self.channels, *pixels.shape[2:]), self.value)


def test_nan_from_the_network_is_an_error_and_no_background(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    with pytest.raises(ModelError, match="NaN; use --precision fp32"):
        stream(scene_file(tmp_path / "scene.tif"), plain(Silly(float("nan"))))


class NanAt(PixelRule):
    """Gives one NaN, in the first window of its batch number `call`, counted from one."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = super().forward(pixels)
        self.left -= 1
        if not self.left:
            logits[0, 0, 20, 20] = torch.nan
        return logits


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("gsd_m", [None, 0.5])
@pytest.mark.parametrize("call", [1, 6, 20, 24])
def test_no_row_with_a_nan_is_handed_out(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], call: int, gsd_m: float | None
) -> None:
    size = (290, 190) if gsd_m is None else (483, 316)  # on the grid that is run
    path = scene_file(tmp_path / "scene.tif", size=size)
    canvas = ScenePlacement.alone(inspect_scene(path), gsd_m)
    strips: list[Any] = []
    clean = stream(path, plain(PixelRule()), canvas=canvas, batch=1, planes=2)
    with pytest.raises(ModelError, match="NaN; use --precision fp32"):
        stream(path, plain(NanAt(call)), canvas=canvas, batch=1, planes=2, strips=strips)
    for row, quanta, _ in strips:
        np.testing.assert_array_equal(quanta, clean[row : row + len(quanta)])
    assert (len(strips) > 0) == (call > 4), "rows above it are kept"


@pytest.mark.parametrize("network", [Silly(float("nan")), Silly(0.0, channels=2), Counting(fail_above=0)], ids=str)
def test_a_failure_that_is_kept_for_the_report_keeps_none_of_the_scene_s_arrays(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any], network: nn.Module
) -> None:
    with pytest.raises(AerialsegError) as caught:
        stream(scene_file(tmp_path / "scene.tif"), plain(network))
    assert caught.value.__traceback__ is not None
    assert not arrays_alive()


class Arrived:
    """A CUDA event, as far as a strip asks."""

    def synchronize(self) -> None: ...


def test_a_strip_from_a_card_tells_of_nan_once_it_has_arrived() -> None:
    planes = torch.zeros((2, 3, 4), dtype=torch.uint8)
    sound, rotten = (
        Strip(0, planes, None, Arrival(Arrived(), torch.tensor(total), "s.tif")) for total in (7.0, float("nan"))
    )
    assert sound.planes().shape == (2, 3, 4)
    with pytest.raises(ModelError, match=r"s\.tif: the model gave NaN"):
        rotten.planes()


def test_a_network_with_two_outputs_is_refused(
    tmp_path: Path, scene_file: Callable[..., Path], stream: Callable[..., Any]
) -> None:
    with pytest.raises(ModelError, match="expected one logit a pixel"):
        stream(scene_file(tmp_path / "scene.tif"), plain(Silly(0.0, channels=2)))


def test_row_33_each_file_is_opened_and_closed_in_the_one_thread_that_uses_it(
    tmp_path: Path, scene_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, str]] = []

    def watched(opener: Callable[..., Any], what: str) -> Callable[..., Any]:
        @contextmanager
        def call(*arguments: Any) -> Iterator[Any]:
            log.append((f"open {what}", threading.current_thread().name))
            with opener(*arguments) as opened:
                yield opened
            log.append((f"close {what}", threading.current_thread().name))

        return call

    monkeypatch.setattr(reading, "open_raster", watched(reading.open_raster, "scene"))
    source = inspect_scene(scene_file(tmp_path / "scene.tif"))

    def sink() -> Generator[None, Strip | None]:
        with watched(open, "mask")(tmp_path / "mask", "wb") as mask:
            while (strip := (yield)) is not None:
                mask.write(strip.planes().tobytes())

    forward = Forward(plain(PixelRule()), EngineSettings(64, 0.25, 2, torch.device("cpu")))
    predict_scene(forward, ScenePlacement.alone(source), sink())
    assert sorted(log) == [
        ("close mask", "writer_0"), ("close scene", "bands_0"), ("open mask", "writer_0"), ("open scene", "bands_0"),
    ]  # fmt: skip
