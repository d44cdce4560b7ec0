"""Which pixels of two boundary maps correspond."""

from functools import cache

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow


def count_matches(predicted: np.ndarray, true: np.ndarray, max_distance: float) -> int:
    """The largest number of pairs of a predicted and a true boundary pixel, each in one pair at most.

    A pair's pixels are at most ``max_distance`` apart. That number is the maximum flow of a bipartite graph, which is
    exact. The official program (BSDS, ``correspondPixels``) minimises the sum of the pairs' distances and of a cost of
    100 times the largest distance for each pixel without partner. That also pairs as many as possible, unless one more
    pair made the others longer by more than that cost in sum, so its count is the same or, in contrived maps, smaller;
    besides, it offers each pixel a few random ways only to stay without a partner, which makes it an approximation.
    Which pixels are paired may differ, but no metric here depends on that.

    Args:
        predicted: (H, W) bool, thin lines.
        true: (H, W) bool.
        max_distance: Pixels.

    Source: Martin, Fowlkes and Malik, Learning to detect natural image boundaries, PAMI 26(5), 2004, appendix B.
    """
    rows, columns = np.nonzero(predicted)
    size, true_size = len(rows), np.count_nonzero(true)
    if size == 0 or true_size == 0:
        return 0
    reach = int(max_distance)
    index = np.full((true.shape[0] + 2 * reach, true.shape[1] + 2 * reach), -1, dtype=np.int32)
    index[reach : reach + true.shape[0], reach : reach + true.shape[1]][true] = np.arange(true_size)
    offsets = np.array([dy * index.shape[1] + dx for dy, dx in _disc(max_distance)])
    places = (rows + reach) * index.shape[1] + columns + reach
    neighbours = index.ravel()[places[:, None] + offsets]
    pixels, which = np.nonzero(neighbours >= 0)
    partners = neighbours[pixels, which]
    # Source -> predicted pixels -> true pixels -> sink, all of capacity 1.
    source, sink = size + true_size, size + true_size + 1
    tails = np.concatenate([np.full(size, source), pixels, size + np.arange(true_size)])
    heads = np.concatenate([np.arange(size), size + partners, np.full(true_size, sink)])
    capacity = np.ones(len(tails), dtype=np.int32)
    graph = csr_matrix((capacity, (tails, heads)), shape=(sink + 1, sink + 1))
    return int(maximum_flow(graph, source, sink, method='dinic').flow_value)


@cache
def _disc(radius: float) -> list[tuple[int, int]]:
    """Offsets (dy, dx) of at most ``radius``."""
    reach = range(-int(radius), int(radius) + 1)
    return [(dy, dx) for dy in reach for dx in reach if dy * dy + dx * dx <= radius * radius]
