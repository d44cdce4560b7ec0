"""The panels of the walls: doors, windows and pictures, painted into the plane of the wall."""

import numpy as np

from mmrepmtl.datasets.synth.scene import DOOR, WINDOW, Panel
from mmrepmtl.datasets.synth.texture import lines, mix, noise, paint, stripe


def paint_panel(
    panel: Panel, along: np.ndarray, height: np.ndarray, pixel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The colours and the emission of a panel.

    Args:
        panel: The panel to paint.
        along: (N,) float32 coordinates along the wall within the panel, metres.
        height: (N,) float32 metres above the floor.
        pixel: (N,) float32 extent of a pixel on the wall, metres.

    Returns:
        Linear RGB (3, N) and emission (N,), a multiple of it.
    """
    u, v = along - panel.span[0], height - panel.rise[0]
    width, tall = panel.span[1] - panel.span[0], panel.rise[1] - panel.rise[0]
    edge = np.minimum(np.minimum(u, width - u), tall - v)
    if panel.label != DOOR:  # a door's frame has no lower side
        edge = np.minimum(edge, v)
    framed = np.clip((panel.border - edge) / pixel + 0.5, 0, 1)
    glow = np.zeros_like(u)
    if panel.label == DOOR:
        albedo = _door(panel, u, v, width, tall, pixel)
    elif panel.label == WINDOW:
        albedo = _view(panel, u, v, tall)
        framed = np.maximum(framed, lines(u, width / panel.cells[0], 0.04, pixel))
        framed = np.maximum(framed, lines(v, tall / panel.cells[1], 0.04, pixel))
        glow = panel.material.emission * (1 - framed)
    else:
        albedo = _painting(panel, u, v, edge, tall, pixel)
    # A thin dark line around the frame separates it from a wall of the same colour.
    framed_albedo = np.array(panel.frame, np.float32)[:, None] * (1 - 0.5 * stripe(edge, 0.0, 0.02, pixel))
    return albedo + (framed_albedo - albedo) * framed, glow


def _door(panel: Panel, u: np.ndarray, v: np.ndarray, width: float, tall: float, pixel: np.ndarray) -> np.ndarray:
    """A leaf with recessed fields and a knob."""
    albedo = paint(panel.material, u, v, pixel)
    columns, rows = panel.cells
    inner, high = width - 2 * panel.border, tall - panel.border
    across, up = (u - panel.border) % (inner / columns), v % (high / rows)
    gap = np.minimum(np.minimum(across, inner / columns - across), np.minimum(up, high / rows - up))
    albedo = albedo * (1 - 0.12 * np.clip((gap - 0.1) / pixel + 0.5, 0, 1) - 0.4 * stripe(gap, 0.1, 0.02, pixel))
    distance = np.hypot(u - (panel.border + 0.08), v - 1.0)
    return mix(albedo, (0.7, 0.6, 0.35), np.clip((0.035 - distance) / pixel + 0.5, 0, 1))


def _view(panel: Panel, u: np.ndarray, v: np.ndarray, tall: float) -> np.ndarray:
    """A sky with clouds above a hilly horizon."""
    material = panel.material
    horizon = material.period * tall * (1 + 0.5 * noise(u, 0 * u + material.period, (0.5, 0.5)))
    above = np.clip((v - horizon) / (0.03 * tall) + 0.5, 0, 1)
    sky = np.array(material.colour, np.float32)[:, None] * (1 + 0.5 * (1 - v / tall))
    sky = mix(sky, (0.95, 0.95, 0.95), np.clip(material.noise * noise(u, 2 * v, material.grain), 0, 1))
    ground = np.array(material.second, np.float32)[:, None] * (1 + 0.4 * noise(u, v, (2, 2)))
    return ground + (sky - ground) * above


def _painting(
    panel: Panel, u: np.ndarray, v: np.ndarray, edge: np.ndarray, tall: float, pixel: np.ndarray
) -> np.ndarray:
    """Abstract art: the material with broad waves of its second colour, within a white mount where `cells` says so."""
    material = panel.material
    albedo = paint(material, u, v, pixel)
    waves = noise(u, v + panel.span[0], (material.grain[0] * 0.7, material.grain[1] * 0.7))
    albedo = mix(albedo, material.second, np.clip(0.5 + 3 * waves + (v / tall - 0.5), 0, 1))
    if panel.cells[0] > 1:
        albedo = mix(albedo, (0.85, 0.84, 0.8), np.clip((2.2 * panel.border - edge) / pixel + 0.5, 0, 1))
    return albedo
