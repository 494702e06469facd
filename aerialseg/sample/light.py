"""Sun, shadows and sensor: from a drawn canvas to the numbers a camera delivers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aerialseg.sample.values import cosine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aerialseg.sample.canvas import Canvas
    from aerialseg.sample.values import Dice

SKYLIGHT = (0.34, 0.37, 0.43)
"""What is left of the light where the sun does not reach, per band: the sky is blue."""
SOFT = 1.6
"""Shadow per metre of depth below its edge: 0.6 m take a surface from full sun to full shadow."""


@dataclass(frozen=True, slots=True)
class Sun:
    """Where the light comes from: a unit heading in east and south, and the sun's rise per metre towards it."""

    east: float
    south: float
    rise: float

    @classmethod
    def of(cls, dice: Dice) -> Sun:
        """Return a sun between south-east and south-west, 36 to 54 degrees high."""
        azimuth, elevation = dice.between(135, 225), dice.between(36, 54)
        return cls(cosine(azimuth - 90), -cosine(azimuth), round(cosine(elevation - 90) / cosine(elevation), 9))


def cast_shadows(canvas: Canvas, sun: Sun) -> NDArray[np.float32]:
    """Return 1 where the sun reaches a pixel's surface, 0 where something that stands between hides it."""
    size = canvas.height.shape[0]
    major = max(abs(sun.east), abs(sun.south))
    drop = canvas.gsd / major * sun.rise
    blocked = np.zeros_like(canvas.height)
    for step in range(1, min(int(float(canvas.height.max()) / drop) + 2, size)):
        here_rows, there_rows = _shift(round(step * sun.south / major), size)
        here_cols, there_cols = _shift(round(step * sun.east / major), size)
        target = blocked[here_rows, here_cols]
        np.maximum(target, canvas.height[there_rows, there_cols] - np.float32(drop * step), out=target)
    blocked -= canvas.height
    lit: NDArray[np.float32] = 1 - np.clip(blocked * np.float32(SOFT), 0, 1)
    return lit


def expose(canvas: Canvas, lit: NDArray[np.float32], dice: Dice) -> NDArray[np.uint8]:
    """Return what the sensor makes of it, uint8 (3, rows, cols): optics, exposure, haze, coarse chroma, noise."""
    size = lit.shape[0]
    across = np.arange(size, dtype=np.float32) / np.float32(size) - np.float32(0.5)
    exposure = np.float32(dice.between(0.9, 1.12)) + across * np.float32(dice.between(-0.1, 0.1))
    exposure = exposure + (across * np.float32(dice.between(-0.1, 0.1)))[:, np.newaxis]
    haze, strength = dice.between(2, 14), np.float32(dice.between(4, 9))
    noise = (dice.noise(size, size) + dice.noise(size, size)) * strength
    soft = _smooth(lit)
    bands = []
    for band, sky in enumerate(SKYLIGHT):
        light = np.float32(sky) + np.float32(1 - sky) * soft
        tint = np.float32(dice.between(0.96, 1.04))
        bands.append(
            _smooth(canvas.colour[..., band] * light) * (exposure * tint) + np.float32(haze * (0.9 + 0.1 * band))
        )
    luma = (bands[0] + bands[1] + bands[1] + bands[2]) * np.float32(0.25)
    vivid = np.float32(dice.between(0.7, 1.0))
    picture = [luma + _halved(band - luma) * vivid + noise for band in bands]
    return np.stack([np.clip(band + np.float32(0.5), 0, 255).astype(np.uint8) for band in picture])


def _shift(by: int, size: int) -> tuple[slice, slice]:
    """Return where a raster moved by `by` lands, and what of it lands there."""
    return (slice(0, size - by), slice(by, size)) if by >= 0 else (slice(-by, size), slice(0, size + by))


def _smooth(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weighted mean over three pixels each way: the optics' point spread."""
    wide = np.pad(values, 1, mode="edge")
    rows = wide[1:-1] * np.float32(0.72) + (wide[:-2] + wide[2:]) * np.float32(0.14)
    return np.asarray(rows[:, 1:-1] * np.float32(0.72) + (rows[:, :-2] + rows[:, 2:]) * np.float32(0.14), np.float32)


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values at half resolution, spread again: what JPEG keeps of colour."""
    height, width = values.shape
    wide = np.pad(values, ((0, height % 2), (0, width % 2)), mode="edge")
    quarter = (wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]) * np.float32(0.25)
    return np.repeat(np.repeat(quarter, 2, axis=0), 2, axis=1)[:height, :width]
