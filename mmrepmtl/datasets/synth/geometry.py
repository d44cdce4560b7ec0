"""Ray casting: which solid each ray meets first, and where. All solids are convex and all formulas closed."""

import numpy as np

from mmrepmtl.datasets.synth.scene import Part, Room

AXES = ((1, 2), (2, 0), (0, 1))
NEAREST = 0.05  # metres; also the depth from which on a corner can be projected
CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


def cast(room: Room, rays: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """The first hit of every ray.

    Args:
        room: The scene.
        rays: (3, H, W) float32 world directions whose parameter is the z-depth.
        focal: Pixels.

    Returns:
        Depth along the optical axis, (H, W) float32 metres, and the index of the part that was hit, (H, W) int16, or
        `face - 6` for the room's faces 0 to 5 (x = 0, x = width, y = 0, y = length, floor, ceiling). The room is closed
        and the camera in it, so that no ray misses.
    """
    origin = np.array(room.camera.position, np.float32)
    extent = np.array(room.size, np.float32)
    depth = np.full(rays.shape[1:], np.inf, np.float32)
    owner = np.empty(rays.shape[1:], np.int16)
    for axis in range(3):
        ray = nonzero(rays[axis])
        ahead = ray > 0
        exit_ = (np.where(ahead, extent[axis], np.float32(0)) - origin[axis]) / ray
        owner = np.where(exit_ < depth, (2 * axis - 6 + ahead).astype(np.int16), owner)
        np.minimum(depth, exit_, out=depth)
    for index, window in _windows(room, focal, rays.shape[1:]):
        part = room.parts[index]
        start = to_local(part, origin - np.array(part.centre, np.float32))
        near, far = _interval(part, start, to_local(part, rays[(slice(None), *window)]))
        hit = (near < far) & (near > NEAREST) & (near < depth[window])
        depth[window][hit] = near[hit]
        owner[window][hit] = index
    return depth, owner


def dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The inner products of vectors (3, ...); three products are faster than a sum over so short an axis."""
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def nonzero(values: np.ndarray) -> np.ndarray:
    """Values whose inverse is finite."""
    return np.where(np.abs(values) < 1e-9, np.float32(1e-9), values)


def to_local(part: Part, vectors: np.ndarray) -> np.ndarray:
    """World vectors (3, ...) in the axes of a part."""
    if part.yaw == 0:
        return vectors
    sine, cosine = float(np.sin(part.yaw)), float(np.cos(part.yaw))
    x, y, z = vectors
    return np.stack([cosine * x + sine * y, cosine * y - sine * x, z])


def to_world(part: Part, vectors: np.ndarray) -> np.ndarray:
    """Vectors (3, N) in the axes of a part, in the world's."""
    if part.yaw == 0:
        return vectors
    sine, cosine = float(np.sin(part.yaw)), float(np.cos(part.yaw))
    x, y, z = vectors
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z])


def surface(part: Part, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Normals and surface coordinates of points on a part.

    Args:
        part: The solid.
        point: (3, N) float32 hits in its axes, metres.

    Returns:
        Outward unit normals in its axes (3, N); surface coordinates u and v in metres (N,); whether the point is on the
        face that looks along -y (N,), the front.
    """
    x, y, z = point
    radius = part.half[0]
    if part.shape == 'box':
        axis, side = box_face(point, part.half)
        normal = np.zeros_like(point)
        np.put_along_axis(normal, axis[None], side[None], 0)
        return normal, np.where(axis == 0, y, x), np.where(axis == 2, y, z), (axis == 1) & (side < 0)
    if part.shape == 'sphere':
        normal = point / np.sqrt(dot(point, point))
        azimuth, elevation = np.arctan2(y, x), np.arcsin(np.clip(normal[2], -1, 1))
        return normal, azimuth * radius, elevation * radius, np.zeros(x.shape, bool)
    distance = np.maximum(np.sqrt(x * x + y * y), np.float32(1e-9))  # the axis runs through the middle of a cap
    cap = np.abs(z) * radius > distance * part.half[2]
    normal = np.stack([np.where(cap, 0, x / distance), np.where(cap, 0, y / distance), np.where(cap, np.sign(z), 0)])
    return normal, np.where(cap, x, np.arctan2(y, x) * radius), np.where(cap, y, z), np.zeros(x.shape, bool)


def box_face(point: np.ndarray, half: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The axis (N,) int and the sign (N,) float32 of the face of a centred box on which the points (3, N) lie."""
    share = point / np.array(half, np.float32)[:, None]
    axis = np.abs(share).argmax(0)
    return axis, np.sign(np.take_along_axis(share, axis[None], 0)[0])


def _windows(room: Room, focal: float, shape: tuple[int, int]) -> list[tuple[int, tuple[slice, slice]]]:
    """The parts that may be in view, by index, with the rows and columns that bound their projected bounding box."""
    if not room.parts:
        return []
    half = np.array([part.half for part in room.parts])
    corners = half[:, None] * CORNERS
    yaw = np.array([part.yaw for part in room.parts])[:, None]
    sine, cosine = np.sin(yaw), np.cos(yaw)
    x, y = cosine * corners[..., 0] - sine * corners[..., 1], sine * corners[..., 0] + cosine * corners[..., 1]
    middle = np.array([part.centre for part in room.parts]) - np.array(room.camera.position)
    seen = (np.stack([x, y, corners[..., 2]], -1) + middle[:, None]) @ room.camera.rotation
    nearest, farthest = seen[..., 1].min(1), seen[..., 1].max(1)
    ahead = np.maximum(seen[..., 1], NEAREST)
    columns = seen[..., 0] / ahead * focal + shape[1] / 2
    rows = shape[0] / 2 - seen[..., 2] / ahead * focal
    low = np.floor(np.stack([rows.min(1), columns.min(1)], 1)).clip(0, shape).astype(int)
    high = np.ceil(np.stack([rows.max(1), columns.max(1)], 1)).clip(0, shape).astype(int)
    # A part that reaches behind the camera projects to no bounded window: look for it everywhere.
    low[nearest < NEAREST], high[nearest < NEAREST] = 0, shape
    visible = (farthest > NEAREST) & (low < high).all(1)
    return [
        (index, (slice(low[index, 0], high[index, 0]), slice(low[index, 1], high[index, 1])))
        for index in np.flatnonzero(visible).tolist()
    ]


def _interval(part: Part, start: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ray parameters between which rays (3, h, w) from `start` (3,) are inside a part; near > far where they miss.

    The discriminants of the round solids are written with the cross product: b^2 - ac cancels in float32.
    """
    if part.shape == 'sphere':
        first, second, third = (_cross(start, ray, *axes) ** 2 for axes in AXES)
        return _round(dot(ray, ray), dot(start, ray), first + second + third, part.half[0])
    slabs = range(3) if part.shape == 'box' else (2,)
    near, far = np.array(-np.inf, np.float32), np.array(np.inf, np.float32)
    for axis in slabs:
        inverse = 1 / nonzero(ray[axis])
        middle, reach = -start[axis] * inverse, part.half[axis] * np.abs(inverse)
        near, far = np.maximum(near, middle - reach), np.minimum(far, middle + reach)
    if part.shape == 'cylinder':
        x, y = ray[0], ray[1]
        first, last = _round(x * x + y * y, start[0] * x + start[1] * y, _cross(start, ray, 0, 1) ** 2, part.half[0])
        near, far = np.maximum(near, first), np.minimum(far, last)
    return near, far


def _cross(start: np.ndarray, ray: np.ndarray, first: int, second: int) -> np.ndarray:
    """One component of the cross product of `start` (3,) and rays (3, ...)."""
    return start[first] * ray[second] - start[second] * ray[first]


def _round(ray: np.ndarray, along: np.ndarray, cross: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Both crossings of a sphere or of an endless cylinder; inf, -inf where there are none.

    All in the space or the plane in which it is round: the squared length of the rays, their inner product with the
    start, the squared length of their cross product with it, and the radius.
    """
    ray = np.maximum(ray, np.float32(1e-12))
    discriminant = ray * (radius * radius) - cross
    root = np.sqrt(np.maximum(discriminant, 0))
    hit = discriminant > 0
    return (
        np.where(hit, (-along - root) / ray, np.float32(np.inf)),
        np.where(hit, (-along + root) / ray, np.float32(-np.inf)),
    )
