"""Photographs a room: casts the rays, paints what they hit, and lights it without shadows."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmrepmtl.datasets.synth.geometry import cast, dot, surface, to_local, to_world
from mmrepmtl.datasets.synth.panels import paint_panel
from mmrepmtl.datasets.synth.scene import CEILING, FLOOR, WALL, Part, Room, Rug
from mmrepmtl.datasets.synth.texture import lines, mix, paint

LIGHT_DISC = 0.16  # metres, radius of the glowing disc on the ceiling below which a light hangs


class RoomImage(NamedTuple):
    """A rendered room.

    `image` (H, W, 3) float32 RGB in [0, 1]; `label` (H, W) int64 indices into `CLASSES`; `depth` (H, W) float32, metres
    along the optical axis (not along the ray), as in NYUv2; `normal` (H, W, 3) float32 unit vectors in the camera's
    axes (right, into the scene, up), turned to the camera. All pixels are valid.
    """

    image: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    normal: np.ndarray


@dataclass
class Surfaces:
    """Surfaces that N rays hit: world points and normals (3, N), linear albedo (3, N), gloss, emission, class (N,)."""

    point: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray
    gloss: np.ndarray
    emission: np.ndarray
    label: np.ndarray


def render_room(room: Room, size: tuple[int, int], rng: np.random.Generator | None = None) -> RoomImage:
    """Renders a room.

    Args:
        room: The room to render.
        size: Height and width of the image, any positive numbers.
        rng: Draws the sensor noise; None leaves it out.

    Returns:
        The picture and its ground truth.
    """
    camera = room.camera
    rotation, focal = camera.rotation.astype(np.float32), camera.focal(size)
    rays = (rotation @ camera.rays(size).reshape(3, -1)).reshape(3, *size)
    depth, owner = cast(room, rays, focal)
    # Pixels are sorted by what they show: then each surface is a slice, and no step below needs a mask of the image.
    order = owner.reshape(-1).argsort(kind='stable')
    rays = rays.reshape(3, -1).take(order, 1)
    surfaces = _surfaces(room, rays, depth.reshape(-1).take(order), owner.reshape(-1).take(order), focal)
    light = _shade(room, surfaces, rays)
    # Exposed for the mean, rolled off in the highlights, square root for the display's gamma.
    gain = -np.log(1 - room.exposure**2) / max(float(light.mean()), 1e-6)
    image = _unsorted(np.sqrt(1 - np.exp(light * -np.float32(gain))), order, size)
    if rng is not None and room.noise > 0:
        image = np.clip(image + room.noise * rng.standard_normal(image.shape, np.float32), 0, 1)
    normal = _unsorted(rotation.T @ surfaces.normal, order, size)
    return RoomImage(image, _unsorted(surfaces.label[None], order, size)[..., 0], depth, normal)


def _unsorted(values: np.ndarray, order: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values (C, N) of the sorted pixels as an image (H, W, C)."""
    image = np.empty((order.size, len(values)), values.dtype)
    image[order] = values.T
    return image.reshape(*size, -1)


def _surfaces(room: Room, rays: np.ndarray, depth: np.ndarray, owner: np.ndarray, focal: float) -> Surfaces:
    """Normals and materials at the hits; rays (3, N), depth and owner (N,), sorted by owner."""
    origin = np.array(room.camera.position, np.float32)[:, None]
    point = origin + depth * rays
    count = depth.size
    out = Surfaces(
        point,
        np.empty_like(point),
        np.empty_like(point),
        np.zeros(count, np.float32),
        np.zeros(count, np.float32),
        np.empty(count, np.int64),
    )
    length = np.sqrt(dot(rays, rays))
    extent = depth * length / focal
    owners, starts = np.unique(owner, return_index=True)
    for number, start, stop in zip(owners.tolist(), starts.tolist(), [*starts[1:].tolist(), depth.size], strict=True):
        index = slice(start, stop)
        if number >= 0:
            part = room.parts[number]
            local = to_local(part, point[:, index] - np.array(part.centre, np.float32)[:, None])
            normal, u, v, front = surface(part, local)
            out.normal[:, index] = to_world(part, normal)
        else:
            out.normal[:, index] = 0
            out.normal[(number + 6) // 2, index] = -1 if number % 2 else 1
        # A texture is filtered over a pixel's extent on the surface, not across the ray.
        cosine = np.abs(dot(out.normal[:, index], rays[:, index])) / length[index]
        pixel = extent[index] / np.sqrt(np.maximum(cosine, 0.05))
        if number >= 0:
            _paint_part(part, u, v, front, index, pixel, out)
        elif number < -2:
            _paint_wall(room, number + 6, index, pixel, out)
        elif number == -2:
            _paint_floor(room, index, pixel, out)
        else:
            _paint_ceiling(room, index, pixel, out)
    return out


def _paint_wall(room: Room, wall: int, index: slice, pixel: np.ndarray, out: Surfaces) -> None:
    """The wall, its skirting board, and what hangs on it."""
    along, height = out.point[1 if wall < 2 else 0, index], out.point[2, index]
    albedo = paint(room.walls[wall], along, height, pixel)
    colour, top = room.skirting
    if top > 0:
        albedo = mix(albedo, colour, np.clip((top - height) / pixel + 0.5, 0, 1))
    out.label[index] = WALL
    out.gloss[index] = room.walls[wall].gloss
    for panel in room.panels:
        if panel.wall == wall:
            on = np.flatnonzero(
                (along > panel.span[0]) & (along < panel.span[1]) & (height > panel.rise[0]) & (height < panel.rise[1])
            )
            if on.size:
                albedo[:, on], out.emission[index][on] = paint_panel(panel, along[on], height[on], pixel[on])
                out.label[index][on] = panel.label
                out.gloss[index][on] = panel.material.gloss
    out.albedo[:, index] = albedo


def _paint_floor(room: Room, index: slice, pixel: np.ndarray, out: Surfaces) -> None:
    """The floor, the rug on it, and the darkness where solids touch it."""
    x, y = out.point[:2, index]
    albedo = paint(room.floor, x, y, pixel)
    out.label[index] = FLOOR
    out.gloss[index] = room.floor.gloss
    if room.rug is not None:
        on, colour = _paint_rug(room.rug, x, y, pixel)
        albedo[:, on] = colour
        out.gloss[index][on] = 0
    for part in room.parts:
        if part.centre[2] - part.half[2] < 0.02:
            _darken_around(part, x, y, albedo)
    out.albedo[:, index] = albedo


def _paint_rug(rug: Rug, x: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Marks the points (N,) on the rug and returns its colours there (3, n), with a border of the second colour."""
    sine, cosine = float(np.sin(rug.yaw)), float(np.cos(rug.yaw))
    x, y = x - rug.centre[0], y - rug.centre[1]
    u, v = cosine * x + sine * y, cosine * y - sine * x
    on = np.flatnonzero((np.abs(u) < rug.half[0]) & (np.abs(v) < rug.half[1]))
    u, v, pixel = u[on], v[on], pixel[on]
    edge = np.minimum(rug.half[0] - np.abs(u), rug.half[1] - np.abs(v))
    return on, mix(paint(rug.material, u, v, pixel), rug.material.second, np.clip((0.08 - edge) / pixel + 0.5, 0, 1))


def _darken_around(part: Part, x: np.ndarray, y: np.ndarray, albedo: np.ndarray) -> None:
    """Takes light away where a solid touches the floor: albedo (3, N) at x, y (N,) is changed in place."""
    reach = math.hypot(part.half[0], part.half[1]) + 0.4
    x, y = x - part.centre[0], y - part.centre[1]
    near = np.flatnonzero((np.abs(x) < reach) & (np.abs(y) < reach))
    if part.shape == 'box':
        local = to_local(part, np.stack([x[near], y[near], np.zeros_like(x[near])]))
        u, v = (np.maximum(np.abs(local[axis]) - part.half[axis], 0) for axis in (0, 1))
        outside = np.sqrt(u * u + v * v)
    else:
        outside = np.maximum(np.hypot(x[near], y[near]) - part.half[0] * 0.7, 0)
    albedo[:, near] *= 1 - 0.5 * np.exp(-outside / 0.1)


def _paint_ceiling(room: Room, index: slice, pixel: np.ndarray, out: Surfaces) -> None:
    """The ceiling and the discs that glow in it above the lights."""
    x, y = out.point[:2, index]
    albedo = paint(room.ceiling, x, y, pixel)
    glow = np.zeros_like(x)
    for light in room.lights:
        if light.position[2] > room.size[2] - 0.5:
            distance = np.hypot(x - light.position[0], y - light.position[1])
            glow = np.maximum(glow, np.clip((LIGHT_DISC - distance) / pixel + 0.5, 0, 1))
    out.albedo[:, index] = mix(albedo, (1.0, 0.97, 0.9), glow)
    out.emission[index] = 3 * glow
    out.label[index] = CEILING
    out.gloss[index] = 0


def _paint_part(
    part: Part, u: np.ndarray, v: np.ndarray, front: np.ndarray, index: slice, pixel: np.ndarray, out: Surfaces
) -> None:
    """A solid, with drawer fronts where it has them; u, v and front as `surface` gives them."""
    albedo = paint(part.material, u, v, pixel)
    if part.fronts[0] and len(front := np.flatnonzero(front)):
        width, height = 2 * part.half[0] / part.fronts[0], 2 * part.half[2] / part.fronts[1]
        u, v, near = u[front] + part.half[0], v[front] + part.half[2], pixel[front]
        gaps = np.maximum(lines(u, width, 0.02, near), lines(v, height, 0.02, near))
        # One handle in each front: a short bar, in the upper third.
        bar = np.clip((0.06 - np.abs(u % width - width / 2)) / near + 0.5, 0, 1)
        bar = bar * lines(v - 0.7 * height, height, 0.03, near)
        albedo[:, front] = mix(albedo[:, front], part.material.second, 0.7 * gaps) * (1 - 0.4 * gaps)
        albedo[:, front] = mix(albedo[:, front], (0.55, 0.53, 0.5), bar)
    out.albedo[:, index] = albedo
    out.label[index] = part.label
    out.gloss[index] = part.material.gloss
    out.emission[index] = part.material.emission


def _shade(room: Room, surfaces: Surfaces, rays: np.ndarray) -> np.ndarray:
    """The light that reaches the camera, (3, N) linear RGB: ambient, diffuse, highlights and what glows itself."""
    point, normal = surfaces.point, surfaces.normal
    # Ambient light: more from above than from below, less where two faces of the room meet.
    ambient = 0.8 + 0.2 * normal[2]
    for axis in range(3):
        gap = np.minimum(point[axis], room.size[axis] - point[axis])
        ambient *= 1 - 0.35 * np.exp(-gap / 0.2) * (np.abs(normal[axis]) < 0.9)
    total = np.array(room.ambient, np.float32)[:, None] * ambient
    shine = np.zeros_like(total)
    glossy = np.flatnonzero(surfaces.gloss > 0)
    to_eye = -rays[:, glossy]
    to_eye /= np.sqrt(dot(to_eye, to_eye))
    for light in room.lights:
        towards = np.array(light.position, np.float32)[:, None] - point
        squared = dot(towards, towards)
        towards /= np.sqrt(squared)
        colour = np.array(light.colour, np.float32)[:, None]
        # Half of the cosine is wrapped around: lamps in rooms are not points, and there are no shadows to soften.
        cosine = np.maximum(0.8 * dot(normal, towards) + 0.2, 0)
        fall = 1 / (squared + 0.5)
        total += colour * (cosine * fall)
        middle = towards[:, glossy] + to_eye
        peak = np.maximum(dot(normal[:, glossy], middle), 0) / (np.sqrt(dot(middle, middle)) + np.float32(1e-6))
        for _ in range(5):  # to the 32nd
            peak *= peak
        shine[:, glossy] += colour * (peak * fall[glossy] * surfaces.gloss[glossy])
    return surfaces.albedo * (total + surfaces.emission) + shine
