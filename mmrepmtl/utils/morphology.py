"""Thinning of binary maps to lines of one pixel."""

import cv2
import numpy as np

# Bit k of a neighbourhood's code is x_(k+1): neighbours counted from the east, counter-clockwise.
_WEIGHTS_33 = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], dtype=np.float32)


def thin(mask: np.ndarray) -> np.ndarray:
    """Thins a binary map until nothing changes: lines of one pixel, with the same connected parts and holes.

    The parallel algorithm with two sub-iterations that MATLAB's ``bwmorph(mask, 'thin', Inf)`` and scikit-image's
    ``thin`` are documented to use; what lies beyond the border is background.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool, a subset of ``mask``.

    Source: Guo and Hall, Parallel thinning with two-subiteration algorithms, CACM 32(3), 1989 (conditions G1, G2, G3).
    """
    pixels = np.ascontiguousarray(mask, dtype=np.uint8)
    remaining = np.count_nonzero(pixels)
    while True:
        before = remaining
        for keeps in _KEEPS:
            codes = cv2.filter2D(pixels, -1, _WEIGHTS_33, borderType=cv2.BORDER_CONSTANT)
            np.bitwise_and(pixels, cv2.LUT(codes, keeps), out=pixels)
        remaining = np.count_nonzero(pixels)
        if remaining == before:
            return pixels.astype(bool)


def _keep_tables() -> tuple[np.ndarray, np.ndarray]:
    """For each code of a neighbourhood and both sub-iterations: whether its middle stays, (256,) uint8 each."""
    codes = np.arange(256)
    # x[1] to x[8] as in the paper; x[9] is x[1] again.
    x = {number: (codes >> (number - 1) & 1).astype(bool) for number in range(1, 9)}
    x[9] = x[1]
    crossings = sum((~x[2 * i - 1] & (x[2 * i] | x[2 * i + 1])).astype(int) for i in range(1, 5))
    pairs_1 = sum((x[2 * i - 1] | x[2 * i]).astype(int) for i in range(1, 5))
    pairs_2 = sum((x[2 * i] | x[2 * i + 1]).astype(int) for i in range(1, 5))
    pairs = np.minimum(pairs_1, pairs_2)
    removable = (crossings == 1) & (pairs >= 2) & (pairs <= 3)
    first = removable & ~((x[2] | x[3] | ~x[8]) & x[1])
    second = removable & ~((x[6] | x[7] | ~x[4]) & x[5])
    return (~first).astype(np.uint8), (~second).astype(np.uint8)


_KEEPS = _keep_tables()
