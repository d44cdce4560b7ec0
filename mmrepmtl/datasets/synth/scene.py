"""The parts of a synthetic room, as plain data.

World axes: x right, y into the room, z up, in metres. The room is the box [0, width] x [0, length] x [0, height].
A camera's own axes have the same meaning (right, into the scene, up), which are the axes of NYUv2's normals, so the
rotation of a level camera that looks along y is the identity.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Vector = tuple[float, float, float]
Pattern = Literal['plain', 'checker', 'stripes', 'tiles', 'bricks', 'planks']

CLASSES = ('wall', 'floor', 'ceiling', 'door', 'window', 'picture', 'cabinet', 'table', 'ball', 'bin', 'lamp')
WALL, FLOOR, CEILING, DOOR, WINDOW, PICTURE, CABINET, TABLE, BALL, BIN, LAMP = range(len(CLASSES))
PALETTE = [
    [190, 153, 112],
    [96, 96, 150],
    [214, 214, 190],
    [130, 70, 40],
    [120, 200, 240],
    [230, 120, 180],
    [200, 90, 40],
    [150, 170, 60],
    [220, 40, 60],
    [60, 150, 120],
    [250, 210, 50],
]

# The walls x = 0, x = width, y = 0, y = length, as (axis, at its far end): the order of `Room.walls`, `Panel.wall`.
WALLS = ((0, False), (0, True), (1, False), (1, True))


@dataclass(frozen=True)
class Material:
    """The look of a surface; colours are linear RGB in [0, 1].

    Args:
        colour: Main colour.
        second: Colour of the pattern.
        pattern: How the two colours alternate over the surface.
        period: Length of one repetition of the pattern, metres.
        noise: Amplitude of the brightness noise, fraction of the colour.
        grain: Frequency of that noise along both surface coordinates; unequal values give wood or brushed metal.
        gloss: Strength of the highlight, 0 is matt.
        emission: Light given off, as a multiple of the colour.
    """

    colour: Vector
    second: Vector = (0.0, 0.0, 0.0)
    pattern: Pattern = 'plain'
    period: float = 0.3
    noise: float = 0.0
    grain: tuple[float, float] = (1.0, 1.0)
    gloss: float = 0.0
    emission: float = 0.0


@dataclass(frozen=True)
class Part:
    """A convex solid that stands in the room; furniture is made of several.

    Args:
        shape: `cylinder` is upright, with caps.
        centre: The solid's centre, metres.
        half: Half extents along its own axes, metres; (r, r, r) of a sphere, (r, r, half height) of a cylinder.
        label: Index into `CLASSES`.
        material: The material of all its faces.
        yaw: Turn about the vertical, radians, counter-clockwise seen from above.
        fronts: Columns and rows of drawer fronts on the face that looks along -y at yaw 0; (0, 0) for none.
    """

    shape: Literal['box', 'sphere', 'cylinder']
    centre: Vector
    half: Vector
    label: int
    material: Material
    yaw: float = 0.0
    fronts: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Panel:
    """A door, window or picture: a rectangle in the plane of a wall.

    Args:
        label: `DOOR`, `WINDOW` or `PICTURE`.
        wall: Index into `WALLS`.
        span: First and last coordinate along the wall (y of an x wall, x of a y wall), metres.
        rise: Lower and upper height, metres.
        material: The material of the leaf, the view or the painting.
        frame: Linear RGB of the frame.
        border: Width of the frame, metres.
        cells: Columns and rows of window panes or door fields.
    """

    label: int
    wall: int
    span: tuple[float, float]
    rise: tuple[float, float]
    material: Material
    frame: Vector = (0.5, 0.5, 0.5)
    border: float = 0.05
    cells: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Rug:
    """A carpet painted onto the floor: centre and half extents in metres, yaw in radians. Its class is floor."""

    centre: tuple[float, float]
    half: tuple[float, float]
    yaw: float
    material: Material


@dataclass(frozen=True)
class Light:
    """A point light without shadows: position in metres, linear RGB power."""

    position: Vector
    colour: Vector


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels.

    Args:
        position: Metres, inside the room and outside every solid.
        yaw: Turn to the left, radians.
        pitch: Upward tilt, radians.
        roll: Turn about the optical axis, radians.
        fov: Field of view along the longer side of the image, radians.
    """

    position: Vector
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    fov: float = 1.0

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3) float64, world = rotation @ camera: the columns are the camera's right, forward and up."""
        (sy, cy), (sp, cp), (sr, cr) = ((np.sin(a), np.cos(a)) for a in (self.yaw, self.pitch, self.roll))
        yaw = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        roll = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
        return yaw @ pitch @ roll

    def focal(self, size: tuple[int, int]) -> float:
        """The focal length in pixels of an image of `size` (height, width)."""
        return max(size) / 2 / float(np.tan(self.fov / 2))

    def rays(self, size: tuple[int, int]) -> np.ndarray:
        """(3, H, W) float32 rays through the pixel centres, in camera axes, with forward component 1.

        A point at z-depth d on a ray is d times the ray: the ray parameter *is* the depth. The principal point is the
        middle of the image, (W / 2, H / 2).
        """
        height, width = size
        focal = self.focal(size)
        rays = np.empty((3, height, width), np.float32)
        rays[0] = ((np.arange(width) + 0.5 - width / 2) / focal)[None]
        rays[1] = 1
        rays[2] = -((np.arange(height) + 0.5 - height / 2) / focal)[:, None]
        return rays


@dataclass(frozen=True)
class Room:
    """All there is to photograph: the closed box of `size` (width, length, height) in metres and what it holds.

    `walls` holds one material per entry of `WALLS`; `skirting` is the linear RGB and the height in metres of the board
    along the foot of the walls; `ambient` the linear RGB light from everywhere; `exposure` the mean brightness of the
    picture, in (0, 1); `noise` the standard deviation of its sensor noise.
    """

    size: Vector
    camera: Camera
    walls: tuple[Material, Material, Material, Material]
    floor: Material
    ceiling: Material
    parts: tuple[Part, ...] = ()
    panels: tuple[Panel, ...] = ()
    rug: Rug | None = None
    lights: tuple[Light, ...] = ()
    skirting: tuple[Vector, float] = field(default=((0.5, 0.5, 0.5), 0.0))
    ambient: Vector = (1.0, 1.0, 1.0)
    exposure: float = 0.45
    noise: float = 0.0
