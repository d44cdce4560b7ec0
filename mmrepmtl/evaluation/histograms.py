"""Fine histograms of bounded memory, from which the best constants are taken after one pass over the data."""

import numpy as np

_DROPPED_BITS = 10


class PositiveHistogram:
    """Counts and sums of positive float32 values in bins of constant relative width (1.2e-4 or less).

    The bits of a positive float, read as an integer, are ordered like the floats. Its upper 21 bits (exponent and 13
    bits of the mantissa) are the bin, so any unit and range fits into 32 MiB.
    """

    def __init__(self) -> None:
        size = 1 << (31 - _DROPPED_BITS)
        self._counts = np.zeros(size, np.int64)
        self._sums = np.zeros(size, np.float64)

    def add(self, values: np.ndarray) -> None:
        """Adds positive finite values of any shape."""
        values = np.ascontiguousarray(values, np.float32).ravel()
        if not values.size:
            return
        bins = values.view(np.int32) >> _DROPPED_BITS
        low, high = int(bins.min()), int(bins.max()) + 1
        # Only the span of this image: the whole array is much larger than what one image touches.
        self._counts[low:high] += np.bincount(bins - low, minlength=high - low)
        self._sums[low:high] += np.bincount(bins - low, weights=values, minlength=high - low)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean value of each bin that is not empty, ascending, and its count."""
        full = self._counts.nonzero()[0]
        return self._sums[full] / self._counts[full], self._counts[full]


class SphereHistogram:
    """Counts and sums of directions in the cells of an octahedral map of the sphere.

    Args:
        resolution: Cells along each side of the map, a power of 2; 512 gives cells of about 0.4 degree and 8 MiB.
    """

    def __init__(self, resolution: int = 512) -> None:
        self.resolution = resolution
        self._counts = np.zeros(resolution**2, np.int64)
        self._sums = np.zeros((3, resolution**2), np.float64)

    def add(self, normals_3N: np.ndarray) -> None:
        """Adds vectors (3, N) that are not zero, of any length."""
        if not normals_3N.shape[1]:
            return
        unit = normals_3N / np.linalg.norm(normals_3N, axis=0)
        cells = self._cells(unit)
        size = self.resolution**2
        self._counts += np.bincount(cells, minlength=size)
        for sums, component in zip(self._sums, unit, strict=True):
            sums += np.bincount(cells, weights=component, minlength=size)

    def points(self, resolution: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The mean directions (3, M) of the cells that are not empty, as unit vectors, and their counts (M,).

        Args:
            resolution: A coarser map's side, a divisor of the own one. Default: the own one.
        """
        coarse = min(resolution or self.resolution, self.resolution)
        blocks = (coarse, self.resolution // coarse) * 2
        counts = self._counts.reshape(blocks).sum((1, 3)).ravel()
        sums = self._sums.reshape(3, *blocks).sum((2, 4)).reshape(3, -1)
        # Directions that cancel have no mean direction; no cell is wide enough for that, but a sum could underflow.
        full = (counts > 0) & (np.abs(sums).sum(0) > 0)
        return sums[:, full] / np.linalg.norm(sums[:, full], axis=0), counts[full]

    def _cells(self, unit_3N: np.ndarray) -> np.ndarray:
        x, y, z = unit_3N / np.abs(unit_3N).sum(0)
        # The lower half of the octahedron is folded outwards into the corners of the square.
        u = np.where(z >= 0, x, (1 - np.abs(y)) * np.copysign(1, x))
        v = np.where(z >= 0, y, (1 - np.abs(x)) * np.copysign(1, y))
        row, column = (
            np.clip(((axis + 1) / 2 * self.resolution).astype(np.int64), 0, self.resolution - 1) for axis in (u, v)
        )
        return row * self.resolution + column


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """A minimiser of ``sum(weights * |values - c|)`` over c.

    Args:
        values: (N,) ascending.
        weights: (N,) not negative, of a positive sum.
    """
    below = np.cumsum(weights, dtype=np.float64)
    return float(values[np.searchsorted(below, below[-1] / 2)])
