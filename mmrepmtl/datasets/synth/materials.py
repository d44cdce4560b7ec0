"""Random colours and materials. Every class draws from the same broad range, so that no colour gives a class away."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from mmrepmtl.datasets.synth.scene import Material, Pattern, Vector

Choice = TypeVar('Choice')


def pick(rng: np.random.Generator, weights: Mapping[Choice, float]) -> Choice:
    """One of the keys, by relative probability; ten times as fast as `Generator.choice`, whose time shows here."""
    left = rng.random() * sum(weights.values())
    for choice, weight in weights.items():
        left -= weight
        if left < 0:
            return choice
    return choice  # rounding


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform number; several times as fast as `Generator.uniform` for one number."""
    return low + (high - low) * rng.random()


def random_colour(rng: np.random.Generator, low: float = 0.15, high: float = 0.9, vivid: float = 0.5) -> Vector:
    """A linear RGB colour.

    Args:
        rng: Source of randomness.
        low: Least brightness on the display, fraction.
        high: Greatest one.
        vivid: Probability of a saturated colour; the others are greyish or wooden.
    """
    value = between(rng, low, high)
    if rng.random() < vivid:
        hue, saturation = rng.random(), between(rng, 0.25, 0.75)
    else:
        hue, saturation = between(rng, 0.02, 0.15), between(rng, 0.0, 0.55)
    # The piecewise linear HSV formula: each channel is a clipped triangle of the hue.
    channels = (
        value * (1 - saturation * (1 - min(max(abs((hue * 6 + shift) % 6 - 3) - 1, 0), 1))) for shift in (0, 4, 2)
    )
    red, green, blue = (float(channel) ** 2 for channel in channels)  # the renderer's gamma is a square root
    return red, green, blue


def scaled(colour: Vector, factor: float, most: float = math.inf) -> Vector:
    """A linear RGB colour, brighter or darker by a factor; no channel above ``most``."""
    red, green, blue = (float(min(channel * factor, most)) for channel in colour)
    return red, green, blue


def random_material(
    rng: np.random.Generator,
    patterns: Mapping[Pattern, float],
    period: tuple[float, float] = (0.1, 0.4),
    low: float = 0.15,
    high: float = 0.9,
    vivid: float = 0.5,
    gloss: float = 0.0,
) -> Material:
    """A material.

    Args:
        rng: Source of randomness.
        patterns: Relative probability of each pattern.
        period: Range of the pattern's period, metres.
        low: Least brightness, see `random_colour`.
        high: Greatest one.
        vivid: Probability of a saturated colour.
        gloss: Upper bound of the gloss; 0 is always matt.
    """
    pattern = pick(rng, patterns)
    colour = random_colour(rng, low, high, vivid)
    if pattern in ('tiles', 'bricks', 'planks') or rng.random() < 0.5:
        # Joints, and tone-on-tone patterns: a darker or lighter version of the same colour.
        factor = between(rng, 0.25, 0.6) if rng.random() < 0.5 else between(rng, 1.3, 1.9)
        second = scaled(colour, factor, most=0.95)
    else:
        second = random_colour(rng, low, high, vivid)
    fine = between(rng, 0.3, 1.5)
    grain = (fine, fine)
    if pattern == 'planks' or (pattern == 'plain' and rng.random() < 0.4):
        grain = (3.0 * fine, 0.3 * fine)
    return Material(
        colour,
        second,
        pattern,
        between(rng, *period),
        between(rng, 0.1, 0.4),
        grain,
        between(rng, 0.2, 1) * gloss if gloss and rng.random() < 0.6 else 0.0,
    )


def with_period(material: Material, period: float) -> Material:
    """The material with another period: whole repetitions around a ball or a bin leave no seam."""
    return replace(material, period=period)
