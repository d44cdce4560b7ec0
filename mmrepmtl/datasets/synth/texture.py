"""Procedural textures: patterns with a box filter of about one pixel, and brightness noise from a fixed tile."""

from functools import lru_cache

import numpy as np

from mmrepmtl.datasets.synth.scene import Material

TILE = 256
TEXELS_PER_METRE = 32


@lru_cache(maxsize=1)
def noise_tile() -> np.ndarray:
    """(256, 256) float32 smooth noise that wraps around, mean about 0, in [-1, 1]; the same in every process."""
    rng = np.random.Generator(np.random.PCG64(2507))
    tile = np.zeros((TILE, TILE))
    for cell in (2, 4, 8, 16, 32, 64):
        grid = rng.random((TILE // cell, TILE // cell)) - 0.5
        at = np.arange(TILE) / cell
        low = at.astype(int)
        part = at - low
        part = part * part * (3 - 2 * part)
        high = (low + 1) % (TILE // cell)
        rows = grid[low] * (1 - part)[:, None] + grid[high] * part[:, None]
        tile += (rows[:, low] * (1 - part) + rows[:, high] * part) * cell**0.35
    tile -= tile.mean()
    return np.clip(tile / (3 * tile.std()), -1, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _bilinear_tile() -> np.ndarray:
    """(65536, 4): per texel the coefficients of 1, u, v and u v of the bilinear patch above and to the right of it."""
    tile = noise_tile()
    right, above = np.roll(tile, -1, 1), np.roll(tile, -1, 0)
    both = np.roll(right, -1, 0)
    return np.stack([tile, right - tile, above - tile, tile - right - above + both], -1).reshape(-1, 4)


def noise(u: np.ndarray, v: np.ndarray, grain: tuple[float, float]) -> np.ndarray:
    """The noise tile at surface coordinates in metres, bilinear."""
    u, v = u * (TEXELS_PER_METRE * grain[0]), v * (TEXELS_PER_METRE * grain[1])
    left, low = np.floor(u), np.floor(v)
    u, v = u - left, v - low
    texel = (left.astype(np.intp) & (TILE - 1)) + (low.astype(np.intp) & (TILE - 1)) * TILE
    one, by_u, by_v, by_both = _bilinear_tile().take(texel, 0).T
    return one + u * by_u + v * (by_v + u * by_both)


def square(x: np.ndarray, period: float, pixel: np.ndarray) -> np.ndarray:
    """A square wave in [-1, 1] that fades out where a period is no longer than a pixel (metres, all three)."""
    phase = x / period
    wave = 1 - 4 * np.abs(phase - np.floor(phase) - 0.5)
    ratio = pixel / period
    return np.clip(wave / (2 * ratio), -1, 1) * np.clip(2 - 2 * ratio, 0, 1)


def lines(x: np.ndarray, period: float, width: float, pixel: np.ndarray) -> np.ndarray:
    """The share of a pixel that is covered by lines of `width` at the multiples of `period` (metres)."""
    phase = x / period
    distance = np.abs(phase - np.rint(phase)) * period
    return np.clip((width / 2 - distance) / pixel + 0.5, 0, np.minimum(1, width / pixel))


def stripe(x: np.ndarray, at: float, width: float, pixel: np.ndarray) -> np.ndarray:
    """The share of a pixel that is covered by one line of `width` around `at` (metres)."""
    return np.clip((width / 2 - np.abs(x - at)) / pixel + 0.5, 0, np.minimum(1, width / pixel))


def mix(first: np.ndarray, second: tuple[float, float, float], share: np.ndarray) -> np.ndarray:
    """(3, N) colours moved towards the colour `second` by `share` (N)."""
    return first + (np.array(second, np.float32)[:, None] - first) * share


def paint(material: Material, u: np.ndarray, v: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """The linear RGB of a material.

    Args:
        material: The material to paint.
        u: (N,) float32 surface coordinate, metres.
        v: (N,) float32 the other one.
        pixel: (N,) float32 extent of a pixel on the surface, metres.

    Returns:
        (3, N) float32.
    """
    period = material.period
    brightness = 1 + material.noise * noise(u, v, material.grain)
    if material.pattern == 'checker':
        share = 0.5 + 0.5 * square(u, 2 * period, pixel) * square(v, 2 * period, pixel)
    elif material.pattern == 'stripes':
        share = 0.5 + 0.5 * square(u, 2 * period, pixel)
    elif material.pattern == 'tiles':
        joint = 0.04 * period + 0.004
        share = np.maximum(lines(u, period, joint, pixel), lines(v, period, joint, pixel))
        brightness += 0.4 * material.noise * _tone(np.floor(u / period) * 7 + np.floor(v / period) * 131)
    elif material.pattern in ('bricks', 'planks'):
        # Rows of `period` height, or boards of `period` width, each row shifted against the one before.
        aspect, joint = (2.5, 0.06 * period) if material.pattern == 'bricks' else (8, 0.03 * period + 0.003)
        along, across = (u, v) if material.pattern == 'bricks' else (v, u)
        row = np.floor(across / period)
        along = along + 0.5 * aspect * period * (row if material.pattern == 'bricks' else _tone(row))
        share = np.maximum(lines(across, period, joint, pixel), lines(along, aspect * period, joint, pixel))
        brightness += 0.8 * material.noise * _tone(row * 7 + np.floor(along / (aspect * period)) * 131)
    else:
        return np.array(material.colour, np.float32)[:, None] * np.maximum(brightness, 0)
    return mix(np.array(material.colour, np.float32)[:, None], material.second, share) * np.maximum(brightness, 0)


def _tone(cell: np.ndarray) -> np.ndarray:
    """A number within about [-1, 1] for each cell of a pattern, without order: read from the noise tile."""
    return 1.5 * noise_tile().ravel()[(cell.astype(np.int64) * 9973) % (TILE * TILE)]
