"""Random furniture: each function returns the solids of one object that stands at a place on the floor."""

from collections.abc import Mapping

import numpy as np

from mmrepmtl.datasets.synth.materials import between, random_material, with_period
from mmrepmtl.datasets.synth.scene import BALL, BIN, CABINET, LAMP, TABLE, Material, Part, Pattern

WOODEN: Mapping[Pattern, float] = {'plain': 4.0, 'planks': 1.0, 'stripes': 0.6, 'checker': 0.3}
ROUND: Mapping[Pattern, float] = {'plain': 2.0, 'stripes': 1.2, 'checker': 0.8}


def cabinet(rng: np.random.Generator, x: float, y: float, yaw: float, half: tuple[float, float, float]) -> list[Part]:
    """A box with drawer fronts, or a plain chest."""
    material = random_material(rng, WOODEN, (0.08, 0.3), gloss=0.3)
    fronts = (0, 0)
    if rng.random() < 0.8:
        fronts = (int(rng.integers(1, 3)), max(1, round(2 * half[2] / between(rng, 0.25, 0.7))))
    return [Part('box', (x, y, half[2]), half, CABINET, material, yaw, fronts)]


def table(rng: np.random.Generator, x: float, y: float, yaw: float, half: tuple[float, float, float]) -> list[Part]:
    """A slab on four legs, or a round one on a column."""
    top = random_material(rng, WOODEN, (0.08, 0.25), gloss=0.4)
    legs = top if rng.random() < 0.6 else random_material(rng, {'plain': 1.0}, gloss=0.3)
    thick, height = between(rng, 0.02, 0.04), 2 * half[2]
    under = (height - 2 * thick) / 2
    if rng.random() < 0.25:
        radius = min(half[0], half[1])
        return [
            Part('cylinder', (x, y, height - thick), (radius, radius, thick), TABLE, top, yaw),
            Part('cylinder', (x, y, under), (0.05, 0.05, under), TABLE, legs, yaw),
            Part('cylinder', (x, y, 0.015), (0.6 * radius, 0.6 * radius, 0.015), TABLE, legs, yaw),
        ]
    parts = [Part('box', (x, y, height - thick), (half[0], half[1], thick), TABLE, top, yaw)]
    leg = between(rng, 0.02, 0.04)
    sine, cosine = float(np.sin(yaw)), float(np.cos(yaw))
    for sign_x in (-1, 1):
        for sign_y in (-1, 1):
            u, v = sign_x * (half[0] - leg - 0.02), sign_y * (half[1] - leg - 0.02)
            at = (x + cosine * u - sine * v, y + sine * u + cosine * v, under)
            parts.append(Part('box', at, (leg, leg, under), TABLE, legs, yaw))
    return parts


def lamp(rng: np.random.Generator, x: float, y: float, height: float) -> list[Part]:
    """A floor lamp: foot, pole and a shade that may be lit."""
    metal = random_material(rng, {'plain': 1.0}, low=0.1, high=0.7, vivid=0.2, gloss=0.6)
    radius, half = between(rng, 0.15, 0.28), between(rng, 0.12, 0.22)
    shade = random_material(rng, ROUND, low=0.4, high=0.95, vivid=0.4)
    shade = _seamless(shade, radius, int(rng.integers(6, 16)))
    if rng.random() < 0.6:
        shade = Material(
            shade.colour,
            shade.second,
            shade.pattern,
            shade.period,
            shade.noise,
            shade.grain,
            0.0,
            between(rng, 0.5, 1.5),
        )
    pole = (height - half) / 2
    return [
        Part('cylinder', (x, y, 0.015), (0.15, 0.15, 0.015), LAMP, metal),
        Part('cylinder', (x, y, pole), (0.02, 0.02, pole), LAMP, metal),
        Part('cylinder', (x, y, height - half), (radius, radius, half), LAMP, shade),
    ]


def ball(rng: np.random.Generator, x: float, y: float, base: float, radius: float) -> list[Part]:
    """A ball on the floor or on a table."""
    material = _seamless(random_material(rng, ROUND, gloss=0.8), radius, int(rng.integers(2, 7)))
    return [Part('sphere', (x, y, base + radius), (radius, radius, radius), BALL, material, _random_angle(rng))]


def bin_(rng: np.random.Generator, x: float, y: float, base: float, radius: float, height: float) -> list[Part]:
    """A cylinder: a bin on the floor, a vase on a table."""
    material = _seamless(random_material(rng, ROUND, gloss=0.5), radius, int(rng.integers(3, 10)))
    size = (radius, radius, height / 2)
    return [Part('cylinder', (x, y, base + height / 2), size, BIN, material, _random_angle(rng))]


def _random_angle(rng: np.random.Generator) -> float:
    """An angle about the vertical axis, in radians."""
    return between(rng, -np.pi, np.pi)


def _seamless(material: Material, radius: float, count: int) -> Material:
    """Whole repetitions around the object: a pair of stripes is two periods long."""
    return with_period(material, float(np.pi * radius / count))
