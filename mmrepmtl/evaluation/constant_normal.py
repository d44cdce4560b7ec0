"""Search for the constant direction that is best for each measure of angular error."""

from collections.abc import Callable

import numpy as np

from mmrepmtl.evaluation.histograms import SphereHistogram
from mmrepmtl.evaluation.normal_metric import THRESHOLDS

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(C, M) cosines and (M,) weights that sum to 1 -> (C,), smaller is better."""

# (side of the histogram's map, step of the local grid in degrees, candidates that survive): each local grid reaches
# beyond the spacing of the one before it.
_LEVELS = ((128, 1.5, 12), (256, 0.5, 8), (512, 0.15, 4), (512, 0.05, 2), (512, 0.015, 1))
_SPHERE_DIRECTIONS = 4096  # about 3 degrees apart
_CHUNK = 1 << 22  # cosines at a time, 32 MiB


def _mean_angle(cosines_CM: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(cosines_CM)) @ weights_M


def _median_angle(cosines_CM: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    order = np.argsort(-cosines_CM, axis=1)
    below = np.cumsum(weights_M[order], axis=1)
    middle = order[np.arange(len(order)), (below < 0.5 * below[:, -1:]).sum(1)]
    return np.degrees(np.arccos(cosines_CM[np.arange(len(order)), middle]))


def _share_outside(degrees: float) -> Score:
    limit = np.cos(np.radians(degrees))
    return lambda cosines_CM, weights_M: 1 - (cosines_CM > limit) @ weights_M


SCORES: dict[str, Score] = {'mean': _mean_angle, 'median': _median_angle} | {
    name: _share_outside(degrees) for name, degrees in THRESHOLDS.items()
}


def best_direction(histogram: SphereHistogram, score: Score) -> np.ndarray:
    """The unit vector (3,) with the smallest score, found on a grid of directions and ever finer grids around the best.

    A grid of 3 degrees over the whole sphere finds the neighbourhood; there the scores are smooth for data that fill
    the histogram, and the last grid is finer than the histogram's cells.
    """
    weighted = {side: histogram.points(side) for side in {64, *(side for side, _, _ in _LEVELS)}}
    weighted = {side: (points, counts / counts.sum()) for side, (points, counts) in weighted.items()}
    candidates = _fibonacci_sphere(_SPHERE_DIRECTIONS)
    scores = _evaluate(score, candidates, *weighted[64])
    for side, step, survivors in _LEVELS:
        best = candidates[np.argsort(scores, kind='stable')[:survivors]]
        candidates = np.concatenate([_local_grid(direction, step) for direction in best])
        scores = _evaluate(score, candidates, *weighted[side])
    return candidates[scores.argmin()]


def _evaluate(score: Score, candidates_C3: np.ndarray, points_3M: np.ndarray, weights_M: np.ndarray) -> np.ndarray:
    rows = max(_CHUNK // len(weights_M), 1)
    return np.concatenate(
        [
            score(np.clip(candidates_C3[start : start + rows] @ points_3M, -1, 1), weights_M)
            for start in range(0, len(candidates_C3), rows)
        ]
    )


def _fibonacci_sphere(size: int) -> np.ndarray:
    """Nearly evenly spaced unit vectors, (size, 3)."""
    index = np.arange(size) + 0.5
    z, azimuth = 1 - 2 * index / size, np.pi * (1 + 5**0.5) * index
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)


def _local_grid(direction: np.ndarray, step: float, reach: int = 2) -> np.ndarray:
    """Unit vectors around ``direction``, itself first, ``step`` degrees apart: ((2 reach + 1)^2, 3)."""
    across = np.cross(direction, np.eye(3)[np.abs(direction).argmin()])
    across /= np.linalg.norm(across)
    along = np.cross(direction, across)
    offsets = np.tan(np.radians(step)) * np.arange(-reach, reach + 1)
    a, b = (grid.reshape(-1, 1) for grid in np.meshgrid(offsets, offsets))
    grid = direction + a * across + b * along
    # The centre first: of equal scores, as on a plateau, the one in the middle is kept.
    grid = grid[np.argsort(a.ravel() ** 2 + b.ravel() ** 2, kind='stable')]
    return grid / np.linalg.norm(grid, axis=1, keepdims=True)
