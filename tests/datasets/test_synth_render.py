"""The renderer of SynthRooms against closed forms and against a distance field."""

from dataclasses import replace

import numpy as np
import pytest

from mmrepmtl.datasets.synth import CLASSES, Camera, Light, Material, Panel, Part, Room, render_room
from mmrepmtl.datasets.synth.texture import lines, square
from mmrepmtl.datasets.synth_rooms import SynthRoomsDataset
from tests.datasets.geometry_reference import distance_to_surface, unproject

GREY = Material((0.5, 0.5, 0.5))
EMPTY = Room((4.0, 5.0, 2.5), Camera((2.0, 1.0, 1.2)), (GREY,) * 4, GREY, GREY)
WALL, FLOOR, CEILING, BALL, BIN, CABINET = (
    CLASSES.index(name) for name in ('wall', 'floor', 'ceiling', 'ball', 'bin', 'cabinet')
)


def _expect(values: np.ndarray, expected: object, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(values, np.broadcast_to(np.array(expected, float), values.shape), atol=atol)


def test_a_wall_straight_ahead_has_one_depth_and_faces_the_camera() -> None:
    picture = render_room(EMPTY, (15, 21))
    middle = picture.label == WALL
    ahead = middle & (np.abs(picture.normal[..., 0]) < 0.5)
    assert ahead.sum() > 40
    _expect(picture.depth[ahead], 4.0)  # along the axis: the same in the middle and at the side
    _expect(picture.normal[ahead], (0, -1, 0))


@pytest.mark.parametrize('yaw, distance', [(0.0, 4.0), (np.pi / 2, 2.0), (-np.pi / 2, 2.0), (np.pi, 1.0)])
def test_yaw_turns_to_the_left(yaw: float, distance: float) -> None:
    room = replace(EMPTY, size=(4.0, 5.0, 2.5), camera=Camera((2.0, 1.0, 1.2), yaw=yaw))
    picture = render_room(room, (15, 21))
    assert picture.depth[7, 10] == pytest.approx(distance, abs=1e-4)
    _expect(picture.normal[7, 10], (0, -1, 0))
    left = render_room(replace(EMPTY, camera=Camera((0.5, 1.0, 1.2), yaw=np.pi / 2)), (15, 21))
    assert left.depth[7, 10] == pytest.approx(0.5, abs=1e-4)


def test_a_level_camera_sees_the_axes_of_the_room() -> None:
    picture = render_room(EMPTY, (40, 60))
    focal = EMPTY.camera.focal((40, 60))
    assert picture.label[39, 30] == FLOOR and picture.label[0, 30] == CEILING
    _expect(picture.normal[picture.label == FLOOR], (0, 0, 1))
    _expect(picture.normal[picture.label == CEILING], (0, 0, -1))
    _expect(picture.normal[20, 0], (1, 0, 0))  # the wall on the left looks to the right
    _expect(picture.normal[20, 59], (-1, 0, 0))
    assert picture.depth[39, 30] == pytest.approx(1.2 * focal / 19.5, rel=1e-5)  # camera height over the ray's slope
    assert picture.depth[20, 0] == pytest.approx(2.0 * focal / 29.5, rel=1e-5)


def test_pitch_looks_up_and_roll_turns_about_the_axis() -> None:
    down = render_room(replace(EMPTY, camera=Camera((2.0, 1.0, 1.2), pitch=-0.3)), (40, 60))
    _expect(down.normal[down.label == FLOOR], (0, -np.sin(0.3), np.cos(0.3)))
    rolled = render_room(replace(EMPTY, camera=Camera((2.0, 1.0, 1.2), roll=0.2)), (40, 60))
    _expect(rolled.normal[rolled.label == FLOOR], (-np.sin(0.2), 0, np.cos(0.2)))


@pytest.mark.parametrize(
    'shape, half, label, depth',
    [
        ('sphere', (0.4, 0.4, 0.4), BALL, 2.6),
        ('cylinder', (0.3, 0.3, 0.5), BIN, 2.7),
        ('box', (0.6, 0.2, 0.5), CABINET, 2.8),
    ],
)
def test_a_solid_on_the_axis(shape: str, half: tuple, label: int, depth: float) -> None:
    part = Part(shape, (2.0, 4.0, 1.2), half, label, GREY)
    picture = render_room(replace(EMPTY, parts=(part,)), (31, 41))
    assert picture.label[15, 20] == label
    assert picture.depth[15, 20] == pytest.approx(depth, abs=1e-4)
    _expect(picture.normal[15, 20], (0, -1, 0))
    # Seen from above and from below by a camera that looks straight at it: the end of a cylinder or box is flat.
    for pitch, height in ((-np.pi / 2, 2.4), (np.pi / 2, 0.1)):
        picture = render_room(replace(EMPTY, parts=(part,), camera=Camera((2.0, 4.0, height), pitch=pitch)), (31, 41))
        assert picture.depth[15, 20] == pytest.approx(abs(1.2 - height) - half[2], abs=1e-4)
        _expect(picture.normal[15, 20], (0, -1, 0))


def test_normals_of_a_ball_point_away_from_its_centre() -> None:
    camera = Camera((1.4, 0.7, 1.5), yaw=-0.2, pitch=-0.25, roll=0.05)
    part = Part('sphere', (2.2, 2.6, 0.5), (0.5, 0.5, 0.5), BALL, GREY, yaw=1.0)
    picture = render_room(replace(EMPTY, camera=camera, parts=(part,)), (90, 120))
    on = picture.label == BALL
    assert on.sum() > 300
    focal = camera.focal((90, 120))
    world = unproject(picture.depth, focal, focal, 60, 45) @ camera.rotation.T + camera.position
    expected = (world[on] - part.centre) / 0.5 @ camera.rotation
    assert np.abs(picture.normal[on] - expected).max() < 2e-3  # float32 near the silhouette
    assert np.median(np.abs(picture.normal[on] - expected)) < 1e-5


def test_yaw_of_a_solid_is_counter_clockwise_from_above() -> None:
    part = Part('box', (2.0, 4.0, 1.2), (0.6, 0.2, 0.5), CABINET, GREY, yaw=0.4)
    picture = render_room(replace(EMPTY, parts=(part,)), (31, 41))
    # The front (0, -1) turned by 0.4 looks to (sin 0.4, -cos 0.4).
    _expect(picture.normal[15, 20], (np.sin(0.4), -np.cos(0.4), 0))
    assert picture.depth[15, 20] == pytest.approx(3.0 - 0.2 / np.cos(0.4), abs=1e-4)


def test_the_nearer_solid_hides_the_farther_whatever_their_order() -> None:
    near = Part('sphere', (2.0, 2.5, 1.2), (0.3, 0.3, 0.3), BALL, GREY)
    far = Part('box', (2.0, 4.0, 1.2), (0.9, 0.3, 0.9), CABINET, GREY)
    one = render_room(replace(EMPTY, parts=(near, far)), (41, 41))
    other = render_room(replace(EMPTY, parts=(far, near)), (41, 41))
    assert one.label[20, 20] == BALL and (one.label == CABINET).any()
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)


def test_random_rooms_against_their_distance_field() -> None:
    """Hits lie on a surface, and nothing lies before them: an independent check of every intersection."""
    size = (24, 32)
    data = SynthRoomsDataset(size=size, num_samples=15)
    for index in range(15):
        room = data.room(index)
        picture = render_room(room, size)
        focal = room.camera.focal(size)
        origin = np.array(room.camera.position)
        offset = (unproject(picture.depth, focal, focal, 16, 12) @ room.camera.rotation.T).reshape(-1, 3)
        assert np.abs(distance_to_surface(room, origin + offset)).max() < 2e-4
        for part in np.linspace(0.1, 0.99, 40):
            assert distance_to_surface(room, origin + part * offset).min() > -1e-4


def test_a_solid_that_reaches_behind_the_camera_is_seen_whole() -> None:
    """A long board beside the camera, turned so that some of its corners lie behind: they have no projection."""
    for yaw in np.linspace(0, np.pi, 12, endpoint=False):
        aside = 0.4 * np.array([-np.sin(yaw), np.cos(yaw)])
        part = Part('box', (2.0 + aside[0], 2.0 + aside[1], 1.2), (1.2, 0.05, 0.3), CABINET, GREY, yaw=yaw)
        room = replace(EMPTY, camera=Camera((2.0, 2.0, 1.2)), parts=(part,))
        depth = render_room(room, (24, 32)).depth
        focal = room.camera.focal((24, 32))
        offset = unproject(depth, focal, focal, 16, 12).reshape(-1, 3)
        for share in np.linspace(0, 0.99, 100):
            assert distance_to_surface(room, (2.0, 2.0, 1.2) + share * offset).min() > -1e-4


def test_panels_lie_in_the_plane_of_their_wall() -> None:
    label = CLASSES.index('picture')
    panel = Panel(label, 3, (1.5, 2.5), (0.9, 1.6), Material((0.9, 0.1, 0.1)))
    without, picture = render_room(EMPTY, (60, 80)), render_room(replace(EMPTY, panels=(panel,)), (60, 80))
    on = picture.label == label
    focal = EMPTY.camera.focal((60, 80))
    # One square metre 4 m away spans (focal / 4) ** 2 pixels.
    assert on.sum() == pytest.approx(0.7 * (focal / 4) ** 2, rel=0.1)
    np.testing.assert_array_equal(picture.depth, without.depth)
    np.testing.assert_array_equal(picture.normal, without.normal)
    assert (without.label[on] == WALL).all() and (np.abs(picture.image - without.image)[on].sum(-1) > 0).all()


def test_light_falls_off_and_falls_on_what_faces_it() -> None:
    lamp = Light((0.3, 3.5, 1.2), (3.0, 3.0, 3.0))
    lit = render_room(replace(EMPTY, lights=(lamp,), ambient=(0.1, 0.1, 0.1)), (60, 80)).image.mean(-1)
    assert lit[30, 10] > 1.3 * lit[30, 70]  # the lamp hangs at the left
    assert np.abs(np.diff(lit[30, 25:55])).max() < 0.05


def test_noise_needs_a_generator_and_has_the_stated_strength() -> None:
    room = replace(EMPTY, noise=0.02)
    clean = render_room(room, (60, 80)).image
    np.testing.assert_array_equal(clean, render_room(EMPTY, (60, 80)).image)
    noisy = render_room(room, (60, 80), np.random.default_rng(0)).image
    assert (noisy - clean).std() == pytest.approx(0.02, rel=0.05)


def test_patterns_are_filtered_over_a_pixel() -> None:
    x = np.linspace(0, 4, 4000, dtype=np.float32)
    sharp, coarse = np.full_like(x, 1e-3), np.full_like(x, 2.0)
    assert square(x, 0.5, sharp).min() == -1 and square(x, 0.5, sharp).max() == 1
    np.testing.assert_array_equal(square(x, 0.5, coarse), 0)
    assert lines(x, 0.5, 0.05, sharp).mean() == pytest.approx(0.1, rel=0.05)
    assert lines(x, 0.5, 0.05, coarse).max() <= 0.026
