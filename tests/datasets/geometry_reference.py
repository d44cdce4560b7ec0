"""Slow, independent geometry to hold labels against."""

import numpy as np

from mmrepmtl.datasets.synth import Part, Room


def unproject(depth: np.ndarray, fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """(H, W, 3) points in the axes (right, into the scene, up) from z-depth; (cx, cy) counts from the corner."""
    rows, columns = np.indices(depth.shape) + 0.5
    return np.stack([(columns - cx) / fx, np.ones(depth.shape), (cy - rows) / fy], -1) * depth[..., None].astype(float)


def fitted_normals(points: np.ndarray, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Normals (H, W, 3) from differences over `step` pixels to both sides, turned to the camera, NaN at the border;
    and where (H, W) the inverse depth is linear along rows and columns, as it is on planes."""
    normals = np.full(points.shape, np.nan)
    planar = np.zeros(points.shape[:2], bool)
    inner = (slice(step, -step), slice(step, -step))
    across = points[inner[0], 2 * step :] - points[inner[0], : -2 * step]
    down = points[2 * step :, inner[1]] - points[: -2 * step, inner[1]]
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normals[inner] = normal * -np.sign((normal * points[inner]).sum(-1, keepdims=True))
    inverse = 1 / points[..., 1]
    bend = np.maximum(
        np.abs(inverse[inner[0], 2 * step :] + inverse[inner[0], : -2 * step] - 2 * inverse[inner]),
        np.abs(inverse[2 * step :, inner[1]] + inverse[: -2 * step, inner[1]] - 2 * inverse[inner]),
    )
    planar[inner] = bend < 1e-5
    return normals, planar


def distance_to_surface(room: Room, points: np.ndarray) -> np.ndarray:
    """The distance of points (N, 3) in the free space of a room from the nearest surface; negative inside solids."""
    distance = np.minimum(points, np.array(room.size) - points).min(1)
    for part in room.parts:
        distance = np.minimum(distance, _distance_to_part(part, points))
    return distance


def _distance_to_part(part: Part, points: np.ndarray) -> np.ndarray:
    x, y, z = (points - part.centre).T
    x, y = np.cos(part.yaw) * x + np.sin(part.yaw) * y, np.cos(part.yaw) * y - np.sin(part.yaw) * x
    if part.shape == 'sphere':
        return np.sqrt(x**2 + y**2 + z**2) - part.half[0]
    if part.shape == 'cylinder':
        beyond = np.stack([np.hypot(x, y) - part.half[0], np.abs(z) - part.half[2]])
    else:
        beyond = np.abs(np.stack([x, y, z])) - np.array(part.half)[:, None]
    return np.linalg.norm(np.maximum(beyond, 0), axis=0) + np.minimum(beyond.max(0), 0)
