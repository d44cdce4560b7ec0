"""Slow versions of what the metrics compute."""

import numpy as np


def slow_thin(mask):
    """Guo and Hall's conditions, pixel by pixel."""
    pixels = np.pad(mask.astype(int), 1)
    while True:
        before = pixels.copy()
        for last in (False, True):
            doomed = []
            for y, x in zip(*np.nonzero(pixels), strict=True):
                around = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
                e, ne, n, nw, w, sw, s, se = (bool(pixels[y + dy, x + dx]) for dy, dx in around)
                starts = (not e and (ne or n)) + (not n and (nw or w)) + (not w and (sw or s)) + (not s and (se or e))
                pairs_1 = (e or ne) + (n or nw) + (w or sw) + (s or se)
                pairs_2 = (ne or n) + (nw or w) + (sw or s) + (se or e)
                blocked = ((sw or s or not nw) and w) if last else ((ne or n or not se) and e)
                if starts == 1 and 2 <= min(pairs_1, pairs_2) <= 3 and not blocked:
                    doomed.append((y, x))
            for place in doomed:
                pixels[place] = 0
        if (pixels == before).all():
            return pixels[1:-1, 1:-1].astype(bool)
