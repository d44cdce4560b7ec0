"""Surface normals of a depth map, by planes fitted to each pixel's neighbourhood.

A plane is linear in inverse depth: with the ray (x, 1, y) of a pixel, x to the right and y up, the points n . P = d of
a plane have 1 / Z = (n . ray) / d. So a linear least squares of 1 / Z over x and y gives the direction of n, whatever
the slant of the surface.
"""

import numpy as np

# Which neighbours take part, as a fraction of the inverse depth: at first those at nearly the centre's depth, then
# those that lie near the plane found so far, which leaves out what is behind an edge and keeps slanted surfaces whole.
GATES = (0.1, 0.05, 0.03)
# Half the width of the neighbourhood in image widths: 15 pixels at 640, enough to average the steps of 8-bit depth.
RADIUS = 15 / 640
MIN_NEIGHBOURS = 6
# Neighbours nearly on one line leave a plane open: least ratio of the determinant of their covariance to its squared
# trace, which is 0.25 for a disc and 0 for a line.
MIN_SPREAD = 1e-3


def normals_from_depth(
    depth: np.ndarray, fx: float, fy: float, cx: float, cy: float, radius: int | None = None
) -> np.ndarray:
    """Fits a plane around each pixel.

    Args:
        depth: (H, W) along the optical axis, in any unit; what is not a finite number above 0 is a hole, which neither
            gets a normal nor counts as a neighbour.
        fx, fy: Focal lengths in pixels.
        cx, cy: Principal point in pixels from the image's corner (a pixel's centre is at + 0.5).
        radius: Half the width of the neighbourhood in pixels; None takes 15 at a width of 640 and in proportion.

    Returns:
        ndarray: (H, W, 3) float32 unit normals turned to the camera, axes (right, into the scene, up); 0 0 0 in holes
        and where too few neighbours are near the plane.

    Raises:
        ValueError: If ``depth`` is not (H, W) or ``radius`` is below 1.
    """
    if depth.ndim != 2:
        raise ValueError(f'normals_from_depth: found depth of shape {depth.shape}, expected (H, W)')
    radius = max(2, round(RADIUS * depth.shape[1])) if radius is None else radius
    if radius < 1:
        raise ValueError(f'normals_from_depth: radius is {radius}, expected 1 or more')
    valid = np.isfinite(depth) & (depth > 0)
    inverse = np.where(valid, 1 / np.where(valid, depth, 1), 0).astype(np.float32)
    pitch, offsets = (1 / fx, 1 / fy), _offsets(radius)
    plane, solved = _fit_planes(inverse, valid, None, GATES[0], pitch, offsets)
    for gate in GATES[1:]:
        plane, solved = _fit_planes(inverse, valid, plane, gate, pitch, offsets)
    slope_x, slope_y, centre = plane
    x = (np.arange(depth.shape[1], dtype=np.float32) + 0.5 - cx) / fx
    y = (cy - np.arange(depth.shape[0], dtype=np.float32) - 0.5) / fy
    # 1 / Z = centre + slope_x (x' - x) + slope_y (y' - y) = (n . ray') / d, and d < 0 for a normal to the camera.
    normal = -np.stack([slope_x, centre - slope_x * x - slope_y * y[:, None], slope_y], axis=-1)
    length = np.linalg.norm(normal, axis=-1)
    solved &= valid & (centre > 0)
    return np.where(solved[..., None], normal / np.where(solved, length, 1)[..., None], 0).astype(np.float32)


def _offsets(radius: int) -> list[tuple[int, int]]:
    """Rows and columns of the neighbours: a disc, thinned to at most 81 so that wide ones stay affordable."""
    step = max(1, radius // 4)
    steps = range(-(radius // step) * step, radius + 1, step)
    return [(row, col) for row in steps for col in steps if row * row + col * col <= radius * radius + 1]


def _fit_planes(
    inverse: np.ndarray,
    valid: np.ndarray,
    plane: np.ndarray | None,
    gate: float,
    pitch: tuple[float, float],
    offsets: list[tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """One least squares over the neighbours within ``gate`` of ``plane`` (None: of the centre's own inverse depth).

    Returns (3, H, W): slopes along x and y and the value at the centre; and where they are determined (H, W).
    """
    height, width = inverse.shape
    reach = max(abs(row) for row, _ in offsets)
    padded = np.pad(inverse, reach)
    padded_valid = np.pad(valid, reach)
    # Sums over neighbours of 1, x, y, xx, xy, yy, w, xw, yw, with w relative to the centre for precision.
    sums = np.zeros((9, height, width), np.float32)
    for row, col in offsets:
        window = (slice(reach + row, reach + row + height), slice(reach + col, reach + col + width))
        x, y = col * pitch[0], -row * pitch[1]
        expected = inverse if plane is None else plane[0] * x + plane[1] * y + plane[2]
        neighbour = padded[window]
        near = (padded_valid[window] & (np.abs(neighbour - expected) < gate * inverse)).astype(np.float32)
        weighted = near * (neighbour - inverse)
        for index, (values, factor) in enumerate([
            (near, 1), (near, x), (near, y), (near, x * x), (near, x * y), (near, y * y),
            (weighted, 1), (weighted, x), (weighted, y)]):  # fmt: skip
            if factor:
                sums[index] += values * np.float32(factor)
    count = sums[0]
    mean_x, mean_y, xx, xy, yy, mean_w, xw, yw = sums[1:] / np.maximum(count, 1)
    xx, xy, yy = xx - mean_x * mean_x, xy - mean_x * mean_y, yy - mean_y * mean_y
    xw, yw = xw - mean_x * mean_w, yw - mean_y * mean_w
    determinant = xx * yy - xy * xy
    solved = (count >= MIN_NEIGHBOURS) & (determinant > MIN_SPREAD * (xx + yy) ** 2)
    scale = np.where(solved, 1 / np.where(solved, determinant, 1), 0)
    slope_x, slope_y = (yy * xw - xy * yw) * scale, (xx * yw - xy * xw) * scale
    return np.stack([slope_x, slope_y, inverse + mean_w - slope_x * mean_x - slope_y * mean_y]), solved
