import os

import numpy as np
import pytest

from mmrepmtl.datasets import NYUv2Dataset
from mmrepmtl.datasets.normals_from_depth import normals_from_depth
from mmrepmtl.datasets.synth import render_room, sample_room

SIZE = (240, 320)
KINECT = (518.86, 519.47, 325.58, 253.74)

needs_data = pytest.mark.skipif(
    'MMREPMTL_DATA' not in os.environ, reason='needs the real NYUv2: set MMREPMTL_DATA to the folder that holds nyuv2'
)


def rays(size, fx, fy, cx, cy):
    """Directions (right, into the scene, up) of length 1 in depth, through the pixels' centres, float64."""
    rows, cols = np.indices(size) + 0.5
    return np.stack([(cols - cx) / fx, np.ones(size), (cy - rows) / fy], -1)


def degrees(normals, expected):
    """Angles (N,) where ``normals`` has one."""
    valid = np.abs(normals).sum(-1) > 0
    return np.degrees(np.arccos(np.clip((normals * expected).sum(-1)[valid], -1, 1)))


def room(seed):
    """Depth, analytic normals and intrinsics of a rendered room."""
    scene = sample_room(np.random.Generator(np.random.PCG64(seed)))
    picture = render_room(scene, SIZE)
    focal = scene.camera.focal(SIZE)
    return picture.depth, picture.normal, (focal, focal, SIZE[1] / 2, SIZE[0] / 2)


def in_8_bits(depth):
    low, high = depth.min(), depth.max()
    return (low + np.round((depth - low) / (high - low) * 255) / 255 * (high - low)).astype(np.float32)


def with_holes(depth, seed=0):
    """5 % single pixels and 30 rectangles without a measurement, about a tenth of the picture."""
    rng = np.random.default_rng(seed)
    depth = depth.copy()
    depth[rng.random(depth.shape) < 0.05] = 0
    for _ in range(30):
        row, col = rng.integers(0, SIZE[0] - 15), rng.integers(0, SIZE[1] - 20)
        depth[row : row + rng.integers(2, 15), col : col + rng.integers(2, 20)] = 0
    return depth


@pytest.mark.parametrize('holes', [False, True])
@pytest.mark.parametrize('stored, bound', [(lambda depth: depth, 3), (in_8_bits, 8)], ids=['float', '8-bit'])
def test_error_against_rendered_rooms(stored, bound, holes):
    errors = []
    for seed in range(4):
        depth, expected, camera = room(seed)
        depth = stored(depth)
        if holes:
            depth = with_holes(depth, seed)
        normals = normals_from_depth(depth, *camera)
        valid = np.abs(normals).sum(-1) > 0
        assert valid[depth > 0].mean() > 0.995 and not valid[depth == 0].any()
        np.testing.assert_allclose(np.linalg.norm(normals[valid], axis=-1), 1, atol=1e-5)
        errors.append(degrees(normals, expected))
    # Four times as exact as it has to be, so that it is seen when it gets worse.
    assert np.median(np.concatenate(errors)) < bound / 4
    assert max(np.median(error) for error in errors) < bound


@pytest.mark.parametrize('normal', [(0, -1, 0), (0.5, -0.8, 0.1), (-0.3, -0.6, 0.6), (0.8, -0.5, 0), (0, -0.3, 0.9)])
def test_a_plane_has_its_normal_everywhere(normal):
    """All pixels up to the corners, any slant, unequal focal lengths and a principal point off the centre."""
    camera = (260.0, 250.0, 170.0, 110.0)
    normal = np.array(normal) / np.linalg.norm(normal)
    ray = rays((96, 128), *camera)
    depth = -2.0 / (ray @ normal)
    seen = (depth > 0) & (depth < 20)
    normals = normals_from_depth(np.where(seen, depth, 0), *camera)
    assert (np.abs(normals).sum(-1) > 0)[seen].all() and seen.mean() > 0.2
    assert degrees(normals, normal).max() < 0.1


def test_units_do_not_matter():
    depth, _, camera = room(1)
    np.testing.assert_allclose(normals_from_depth(1024 * depth, *camera), normals_from_depth(depth, *camera), atol=1e-5)


def test_holes_have_no_influence():
    """Whatever stands for "no measurement": the normals are the same, and a plane stays exact beside holes."""
    depth, _, camera = room(2)
    holes = with_holes(depth)
    expected = normals_from_depth(holes, *camera)
    for value in (np.nan, np.inf, -1.0):
        np.testing.assert_array_equal(normals_from_depth(np.where(holes == 0, value, holes), *camera), expected)
    normal = np.array([0.6, -0.8, 0.0])
    plane = -2 / (rays(SIZE, *camera) @ normal)
    plane = np.where((plane > 0) & (holes > 0), plane, 0)
    assert degrees(normals_from_depth(plane, *camera), normal).max() < 0.1


def test_surfaces_behind_an_edge_have_no_influence():
    """A board 1 m in front of a wall: frontal on both sides of the edge."""
    depth = np.full(SIZE, 3.0)
    depth[60:180, 80:240] = 2.0
    assert degrees(normals_from_depth(depth, 300, 300, 160, 120), np.array([0, -1, 0])).max() < 1e-3


def test_too_few_neighbours_give_no_normal():
    depth = np.zeros((40, 40))
    depth[20, 20] = 2
    depth[5] = 3  # neighbours on one line leave the plane open
    with np.errstate(divide='raise', invalid='raise'):
        assert not normals_from_depth(depth, 50, 50, 20, 20, radius=8).any()


@pytest.mark.parametrize('arguments, message', [
    (dict(depth=np.ones((4, 4, 1))), r'found depth of shape \(4, 4, 1\), expected \(H, W\)'),
    (dict(depth=np.ones((4, 4)), radius=0), 'radius is 0, expected 1 or more'),
])  # fmt: skip
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        normals_from_depth(fx=1, fy=1, cx=2, cy=2, **arguments)


@needs_data
@pytest.mark.realdata
def test_real_normals_are_near():
    """Against the stored ones, which were themselves derived from depth by another program, at 384 x 288."""
    dataset = NYUv2Dataset(split='test')
    errors = []
    for index in range(0, len(dataset), 33):
        gt = dataset[index]['gt']
        normals = normals_from_depth(gt['depth'], *(0.6 * value for value in KINECT))
        known = np.abs(gt['normal']).sum(-1) > 0
        errors.append(degrees(normals * known[..., None], gt['normal']))
    assert len(errors) == 20 and np.median(np.concatenate(errors)) < 9
