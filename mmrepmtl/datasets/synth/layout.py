"""Draws up rooms at random: their size, the camera, the walls, the furniture and the lights."""

import math
from collections.abc import Mapping

import numpy as np

from mmrepmtl.datasets.synth import furniture
from mmrepmtl.datasets.synth.materials import between, pick, random_colour, random_material, scaled
from mmrepmtl.datasets.synth.scene import (
    DOOR,
    PICTURE,
    WALLS,
    WINDOW,
    Camera,
    Light,
    Material,
    Panel,
    Part,
    Pattern,
    Room,
    Rug,
)

WALLPAPER: Mapping[Pattern, float] = {'plain': 5.0, 'stripes': 1.5, 'bricks': 1.0, 'tiles': 0.5, 'planks': 0.5}
FLOORING: Mapping[Pattern, float] = {'planks': 4.0, 'tiles': 2.0, 'checker': 1.5, 'plain': 2.0}
RUGS: Mapping[Pattern, float] = {'plain': 1.0, 'stripes': 1.0, 'checker': 1.0}
OBJECTS = {'cabinet': 0.3, 'table': 0.25, 'ball': 0.2, 'bin': 0.13, 'lamp': 0.12}
ON_WALLS = {DOOR: 0.28, WINDOW: 0.34, PICTURE: 0.38}
ALONG_WALLS = {0: 0.25, 1: 0.25, 2: 0.05, 3: 0.45}  # which wall a piece of furniture stands at, see WALLS
CLEARANCE = 0.5  # metres between the camera and the nearest solid, seen from above; what is tall stands farther off
TRIES = 8  # places that are tried for an object before it is left out


def sample_room(rng: np.random.Generator) -> Room:
    """A random room, seen from near one of its ends.

    Args:
        rng: Every choice is drawn from it, in a fixed order.

    Returns:
        A room whose depths lie between about 0.5 and 8 metres.
    """
    size = (between(rng, 3.0, 5.5), between(rng, 3.5, 7.0), between(rng, 2.3, 3.0))
    camera = _camera(rng, size)
    wall = random_material(rng, WALLPAPER, (0.08, 0.35), low=0.35, high=0.95, vivid=0.35)
    walls = [wall] * 4
    if rng.random() < 0.35:  # one wall of another make
        walls[int(rng.integers(4))] = random_material(rng, WALLPAPER, (0.08, 0.35), low=0.2, high=0.95)
    board = between(rng, 0.06, 0.14) if rng.random() < 0.7 else 0.0
    return Room(
        size=size,
        camera=camera,
        walls=(walls[0], walls[1], walls[2], walls[3]),
        floor=random_material(rng, FLOORING, (0.12, 0.5), low=0.2, high=0.85, vivid=0.25, gloss=0.3),
        ceiling=random_material(
            rng, {'plain': 4.0, 'tiles': 1.0, 'planks': 1.0}, (0.3, 0.6), low=0.55, high=0.98, vivid=0.2
        ),
        parts=tuple(_furnish(rng, size, camera)),
        panels=tuple(_hang(rng, size)),
        rug=_rug(rng, size) if rng.random() < 0.4 else None,
        lights=tuple(_lights(rng, size)),
        skirting=(random_colour(rng, 0.2, 0.95, 0.2), board),
        ambient=_tint(rng, between(rng, 0.25, 0.6)),
        exposure=between(rng, 0.45, 0.65),
        noise=between(rng, 0.0, 0.02),
    )


def _tint(rng: np.random.Generator, power: float) -> tuple[float, float, float]:
    """White light, somewhat warmer or cooler."""
    warmth = between(rng, -0.2, 0.25)
    return power * (1 + warmth), power, power * (1 - warmth)


def _camera(rng: np.random.Generator, size: tuple[float, float, float]) -> Camera:
    """A camera held by hand near the wall y = 0 that looks at somewhere on the opposite side."""
    width, length, _ = size
    position = (between(rng, 0.2 * width, 0.8 * width), between(rng, 0.5, 0.25 * length), between(rng, 0.9, 1.8))
    towards = between(rng, 0.1 * width, 0.9 * width) - position[0]
    yaw = -math.atan2(towards, length - position[1]) + between(rng, -0.15, 0.15)
    return Camera(position, yaw, between(rng, -0.42, 0.1), between(rng, -0.05, 0.05), between(rng, 0.96, 1.2))


def _furnish(rng: np.random.Generator, size: tuple[float, float, float], camera: Camera) -> list[Part]:
    """Three to eight objects that the camera may see and that keep out of each other's way, some with one on top."""
    parts: list[Part] = []
    taken: list[tuple[float, float, float]] = []  # x, y and radius of what stands on the floor
    for _ in range(int(rng.integers(3, 9))):
        kind = pick(rng, OBJECTS)
        half, at_wall = _extent(rng, kind)
        radius = 0.85 * math.hypot(half[0], half[1]) if kind in ('cabinet', 'table') else half[0]
        place = _place(rng, size, camera, half, radius, at_wall, CLEARANCE + 0.8 * (half[2] > 0.6), taken)
        if place is None:
            continue
        x, y, yaw = place
        taken.append((x, y, radius))
        if kind == 'cabinet':
            parts += furniture.cabinet(rng, x, y, yaw, half)
        elif kind == 'table':
            parts += furniture.table(rng, x, y, yaw, half)
        elif kind == 'ball':
            parts += furniture.ball(rng, x, y, 0.0, half[0])
        elif kind == 'bin':
            parts += furniture.bin_(rng, x, y, 0.0, half[0], 2 * half[2])
        else:
            parts += furniture.lamp(rng, x, y, min(2 * half[2], size[2] - 0.3))
        if kind in ('cabinet', 'table') and 2 * half[2] < 1.1 and rng.random() < 0.6:
            parts += _on_top(rng, x, y, half)
    return parts


def _extent(rng: np.random.Generator, kind: str) -> tuple[tuple[float, float, float], bool]:
    """Half extents of an object and whether it stands along a wall."""
    if kind == 'cabinet':
        tall = between(rng, 0.2, 0.55) if rng.random() < 0.7 else between(rng, 0.7, 1.05)
        return (between(rng, 0.25, 0.8), between(rng, 0.2, 0.4), tall), bool(rng.random() < 0.65)
    if kind == 'table':
        return (between(rng, 0.4, 0.9), between(rng, 0.3, 0.5), between(rng, 0.2, 0.4)), bool(rng.random() < 0.3)
    if kind == 'ball':
        radius = between(rng, 0.12, 0.4)
        return (radius, radius, radius), False
    if kind == 'bin':
        radius = between(rng, 0.12, 0.3)
        return (radius, radius, between(rng, 0.15, 0.5)), False
    return (0.28, 0.28, between(rng, 0.6, 0.95)), bool(rng.random() < 0.3)


def _place(
    rng: np.random.Generator,
    size: tuple[float, float, float],
    camera: Camera,
    half: tuple[float, float, float],
    radius: float,
    at_wall: bool,
    clearance: float,
    taken: list[tuple[float, float, float]],
) -> tuple[float, float, float] | None:
    """A free place (x, y, yaw) in front of the camera, or None."""
    width, length, _ = size
    for _ in range(TRIES):
        if at_wall:
            wall = pick(rng, ALONG_WALLS)
            axis, far = WALLS[wall]
            spot = between(rng, half[0], (length if axis == 0 else width) - half[0])
            depth = half[1] + between(rng, 0.0, 0.05)
            depth = (width if axis == 0 else length) - depth if far else depth
            x, y = (depth, spot) if axis == 0 else (spot, depth)
            yaw = (math.pi / 2, -math.pi / 2, math.pi, 0.0)[wall]  # the front looks into the room
        else:
            x, y = between(rng, radius, width - radius), between(rng, radius, length - radius)
            yaw = between(rng, -math.pi, math.pi)
        right, forward = x - camera.position[0], y - camera.position[1]
        if math.hypot(right, forward) < clearance + math.hypot(half[0], half[1]):
            continue
        bearing = (-math.atan2(right, forward) - camera.yaw + math.pi) % (2 * math.pi) - math.pi
        if abs(bearing) < 0.55 * camera.fov and all(
            math.hypot(x - other_x, y - other_y) > radius + other for other_x, other_y, other in taken
        ):
            return x, y, yaw
    return None


def _on_top(rng: np.random.Generator, x: float, y: float, half: tuple[float, float, float]) -> list[Part]:
    """A ball or a vase on a piece of furniture; the top is at twice its half height."""
    x, y = x + between(rng, -0.1, 0.1), y + between(rng, -0.1, 0.1)
    if rng.random() < 0.5:
        return furniture.ball(rng, x, y, 2 * half[2], between(rng, 0.07, 0.16))
    return furniture.bin_(rng, x, y, 2 * half[2], between(rng, 0.05, 0.12), between(rng, 0.15, 0.4))


def _hang(rng: np.random.Generator, size: tuple[float, float, float]) -> list[Panel]:
    """Doors, windows and pictures, side by side along the walls."""
    panels = []
    for wall, (axis, far) in enumerate(WALLS):
        if axis == 1 and not far:
            continue  # the wall behind the camera stays bare
        at, end = between(rng, 0.1, 0.8), (size[1] if axis == 0 else size[0]) - 0.1
        while True:
            panel = _panel(rng, wall, at, size[2])
            if panel.span[1] > end:
                break
            panels.append(panel)
            at = panel.span[1] + between(rng, 0.2, 1.2)
    return panels


def _panel(rng: np.random.Generator, wall: int, at: float, ceiling: float) -> Panel:
    """A door, a window or a picture that begins at the coordinate `at` along its wall."""
    label = pick(rng, ON_WALLS)
    frame = random_colour(rng, 0.15, 0.95, 0.25)
    if label == DOOR:
        material = random_material(rng, {'plain': 4.0, 'planks': 1.0}, (0.1, 0.25), low=0.25, high=0.95)
        return Panel(
            label,
            wall,
            (at, at + between(rng, 0.75, 1.0)),
            (0.0, between(rng, 1.9, 2.15)),
            material,
            frame,
            between(rng, 0.05, 0.09),
            (int(rng.integers(1, 3)), int(rng.integers(1, 4))),
        )
    if label == WINDOW:
        low = between(rng, 0.6, 1.1)
        rise = (low, min(low + between(rng, 0.8, 1.4), ceiling - 0.15))
        return Panel(
            label,
            wall,
            (at, at + between(rng, 0.7, 1.8)),
            rise,
            _view(rng),
            frame,
            between(rng, 0.04, 0.08),
            (int(rng.integers(1, 4)), int(rng.integers(1, 3))),
        )
    tall = between(rng, 0.4, 1.0)
    low = min(between(rng, 1.1, 1.5), ceiling - 0.1 - tall)
    material = random_material(rng, {'plain': 2.0, 'stripes': 1.0, 'checker': 0.7}, (0.05, 0.25), vivid=0.7)
    return Panel(
        label,
        wall,
        (at, at + between(rng, 0.4, 1.4)),
        (low, low + tall),
        material,
        frame,
        between(rng, 0.02, 0.05),
        (int(rng.integers(1, 3)), 1),
    )


def _view(rng: np.random.Generator) -> Material:
    """The view from a window, by day or by night: sky, ground, the height (share) at which they meet, clouds."""
    day = rng.random() < 0.75
    sky = (between(rng, 0.2, 0.6), between(rng, 0.4, 0.7), between(rng, 0.6, 0.95))
    ground = random_colour(rng, 0.25, 0.6, 0.6)
    if not day:
        sky, ground = scaled(sky, 0.08), scaled(ground, 0.15)
    return Material(
        sky,
        ground,
        'plain',
        between(rng, 0.05, 0.5),
        between(rng, 0.0, 2.5) * day,
        (0.5, 0.5),
        0.0,
        between(rng, 0.3, 1.2),
    )


def _rug(rng: np.random.Generator, size: tuple[float, float, float]) -> Rug:
    return Rug(
        (between(rng, 0.3, 0.7) * size[0], between(rng, 0.35, 0.75) * size[1]),
        (between(rng, 0.5, 1.1), between(rng, 0.4, 0.9)),
        between(rng, -0.6, 0.6),
        random_material(rng, RUGS, (0.08, 0.3)),
    )


def _lights(rng: np.random.Generator, size: tuple[float, float, float]) -> list[Light]:
    """One to three lamps below the ceiling; now and then one of them is lower and off-centre."""
    lights = []
    for _ in range(int(rng.integers(1, 4))):
        drop = 0.12 if rng.random() < 0.7 else between(rng, 0.6, 1.3)
        position = (between(rng, 0.15, 0.85) * size[0], between(rng, 0.1, 0.9) * size[1], size[2] - drop)
        lights.append(Light(position, _tint(rng, between(rng, 0.8, 3.0))))
    return lights
