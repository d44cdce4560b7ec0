import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as tf

from mmrepmtl.datasets.checks import check_target
from mmrepmtl.datasets.transforms import (
    PackMultiTaskInputs,
    PadMultiTask,
    PhotometricJitter,
    RandomFlip,
    RandomZoom,
    ResizeMultiTask,
)
from mmrepmtl.datasets.transforms import functional as F
from mmrepmtl.datasets.transforms.photometric import LUMA, jitter
from mmrepmtl.registry import TRANSFORMS

HEIGHT, WIDTH, FOCAL = 288, 384, 311.0
TARGETS = dict(
    semseg=dict(kind='segmentation', classes=tuple('abcdefghijklm')),
    depth=dict(kind='depth'),
    disparity=dict(kind='depth', inverse=True),
    normal=dict(kind='normals'),
    scene=dict(kind='classification', classes=('kitchen', 'office')),
    pose=dict(kind='regression', names=('x', 'y')),
)


def make_results(height=HEIGHT, width=WIDTH, seed=0, **gt):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(height, width, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    depth = rng.uniform(1, 5, size=(height, width)).astype(np.float32)
    full = dict(
        semseg=rng.integers(0, 13, size=(height, width)),
        depth=depth,
        disparity=1 / depth,
        normal=normals,
        scene=1,
        pose=np.array([0.5, np.nan], np.float32),
    )
    return dict(
        img=rng.uniform(size=(height, width, 3)).astype(np.float32),
        gt=full | gt,
        targets=TARGETS,
        sample_idx=3,
        img_path='room.jpg',
        ori_shape=(height, width),
        img_shape=(height, width),
    )


def rays(height, width, cx, cy):
    """Directions (right, into the scene, up) of length 1 in depth, through the pixels' centres."""
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([(cols - cx) / FOCAL, np.ones_like(cols), -(rows - cy) / FOCAL], axis=-1)


def plane_results(normal, cx, cy):
    """A plane that fills the picture, seen by a pinhole camera with principal point (cx, cy)."""
    normal = np.array(normal) / np.linalg.norm(normal)
    depth = -2.0 / (rays(HEIGHT, WIDTH, cx, cy) @ normal)
    assert depth.min() > 0
    normals = np.broadcast_to(normal, (HEIGHT, WIDTH, 3)).astype(np.float32).copy()
    return make_results(depth=depth.astype(np.float32), normal=normals)


def fitted_normal(depth, cx, cy):
    """The normal of the plane that passes best through the points of a depth map, facing the camera."""
    points = (rays(*depth.shape, cx, cy) * depth[..., None]).reshape(-1, 3).astype(np.float64)
    normal = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][2]
    return -normal if points.mean(0) @ normal > 0 else normal


def angle(one, other):
    """Largest angle in degrees between vectors (..., 3) and one vector."""
    cosine = one @ other / np.linalg.norm(one, axis=-1) / np.linalg.norm(other)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).max())


PLANES = [(0.0, -1.0, 0.0), (0.5, -0.8, 0.1), (-0.3, -0.6, 0.6), (0.7, -0.7, 0.0), (0.0, -0.7, -0.6)]


@pytest.mark.parametrize('normal', PLANES)
@pytest.mark.parametrize('scale, top, left', [(1.5, 48, 64), (1.2, 24, 32), (1.5, 96, 0), (1.37, 10, 90)])
def test_zoomed_normals_are_those_of_zoomed_depth(normal, scale, top, left):
    cx, cy = WIDTH / 2, HEIGHT / 2
    results = plane_results(normal, cx, cy)
    RandomZoom(normal_zoom='geometric').zoom(results, scale, top, left)
    # The window's principal point; for the central windows it is where it was.
    expected = fitted_normal(results['gt']['depth'], scale * (cx - left), scale * (cy - top))
    assert angle(results['gt']['normal'], expected) < 0.1
    if (top, left) in ((48, 64), (24, 32)):
        np.testing.assert_allclose((scale * (cx - left), scale * (cy - top)), (cx, cy))


def test_public_zoom_leaves_directions_as_they_are():
    results = plane_results((0.7, -0.7, 0.0), WIDTH / 2, HEIGHT / 2)
    before = results['gt']['normal'].copy()
    RandomZoom().zoom(results, 1.5, 48, 64)
    np.testing.assert_allclose(results['gt']['normal'], before, atol=1e-6)
    # The discrepancy that PROTOCOLS names: 11 degrees at 45 degrees and 1.5.
    fitted = fitted_normal(results['gt']['depth'], WIDTH / 2, HEIGHT / 2)
    assert angle(results['gt']['normal'], fitted) == pytest.approx(11.3, abs=0.1)


@pytest.mark.parametrize('normal', PLANES)
def test_flipped_normals_are_those_of_flipped_depth(normal):
    cx, cy = 200.0, 140.0
    results = plane_results(normal, cx, cy)
    RandomFlip(prob=1.0)(results)
    assert angle(results['gt']['normal'], fitted_normal(results['gt']['depth'], WIDTH - cx, cy)) < 0.1


@pytest.mark.parametrize('normal', PLANES)
def test_resized_normals_are_those_of_resized_depth(normal):
    cx, cy = WIDTH / 2, HEIGHT / 2
    results = plane_results(normal, cx, cy)
    results['gt']['depth'] = F.sample_nearest(results['gt']['depth'], (96, 128))
    results['gt']['normal'] = F.resize_normals(results['gt']['normal'], (96, 128))
    # A third of the pixels: the focal length in pixels is a third too, depth is unchanged.
    directions = rays(HEIGHT, WIDTH, cx, cy)[1::3, 1::3]
    points = (directions * results['gt']['depth'][..., None]).reshape(-1, 3)
    fitted = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][2]
    assert min(angle(results['gt']['normal'], fitted), angle(results['gt']['normal'], -fitted)) < 0.1


def test_depth_is_divided_and_inverse_depth_multiplied():
    results = make_results()
    depth = results['gt']['depth'].copy()
    depth[100:120, 100:120] = 0
    results['gt']['depth'] = depth
    RandomZoom().zoom(results, 1.5, 30, 40)
    scaled, inverse = results['gt']['depth'], results['gt']['disparity']
    np.testing.assert_allclose(scaled, F.sample_nearest(depth, depth.shape, 30, 40, (1.5, 1.5)) / 1.5, rtol=1e-6)
    valid = scaled > 0
    assert 0 < (~valid).sum() < 2000
    np.testing.assert_allclose(scaled[valid] * inverse[valid], 1, rtol=1e-5)
    assert scaled.dtype == inverse.dtype == np.float32


def edge_position(row):
    """The position at which a row of values rises through 0.5, between pixel centres."""
    first = int(np.argmax(row > 0.5))
    low, high = row[first - 1], row[first]
    return first - 0.5 + (0.5 - low) / (high - low)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('scale, origin', [(1.2, 0), (1.2, 17), (1.5, 31), (1.5, 32), (1.37, 20)])
@pytest.mark.parametrize('edge', [83, 84, 85, 100])
def test_zoom_keeps_image_and_labels_together(axis, scale, origin, edge):
    step = (np.arange(144) >= edge).astype(np.float32)
    step = np.tile(step, (144, 1)) if axis == 1 else np.tile(step[:, None], (1, 144))
    results = make_results(144, 144, semseg=step.astype(np.int64), depth=1 + step)
    results['img'] = np.repeat(step[..., None], 3, axis=-1)
    RandomZoom().zoom(results, scale, *((0, origin) if axis == 1 else (origin, 0)))
    pick = (lambda array: array[70]) if axis == 1 else (lambda array: array[:, 70])
    true_edge = scale * (edge - origin)
    found_image = edge_position(pick(results['img'])[:, 0])
    label, depth = pick(results['gt']['semseg']), pick(results['gt']['depth'])
    assert abs(found_image - true_edge) < 0.05
    # The label's edge lies on a pixel border, the nearest to the true edge.
    assert abs(int(np.argmax(label)) - true_edge) <= 0.5 + 1e-6
    np.testing.assert_array_equal(label == 1, depth * scale > 1.5)


@pytest.mark.parametrize('length', [48, 96, 100, 160, 200, 288])
@pytest.mark.parametrize('edge', [61, 62, 63, 64])
def test_resize_keeps_image_and_labels_together(length, edge):
    step = np.tile((np.arange(144) >= edge).astype(np.float32), (10, 1))
    results = make_results(10, 144, semseg=step.astype(np.int64))
    results['img'] = np.repeat(step[..., None], 3, axis=-1)
    ResizeMultiTask((10, length))(results)
    true_edge = edge * length / 144
    assert abs(int(np.argmax(results['gt']['semseg'][5])) - true_edge) <= 0.5 + 1e-6
    if length >= 144:
        # Exact but for the kinks of the interpolant between two output pixels.
        assert abs(edge_position(results['img'][5, :, 0]) - true_edge) < 0.2
    differs = (results['img'][5, :, 0] > 0.5) != results['gt']['semseg'][5]
    assert differs.sum() <= 1


@pytest.mark.parametrize('size', [(96, 128), (144, 200), (400, 500)])
def test_resize_agrees_with_torch(size):
    results = make_results()
    before = {name: results['gt'][name] for name in ('semseg', 'depth', 'normal')} | dict(img=results['img'])
    ResizeMultiTask(size)(results)

    def by_torch(array, mode):
        tensor = torch.from_numpy(array.astype(np.float64)).reshape(*array.shape[:2], -1).permute(2, 0, 1)[None]
        options = dict(align_corners=False) if mode == 'bilinear' else {}
        return tf.interpolate(tensor, size=size, mode=mode, **options)[0].permute(1, 2, 0).numpy()

    np.testing.assert_allclose(results['img'], by_torch(before['img'], 'bilinear'), atol=1e-5)
    # Either pixel is right for a centre exactly between two.
    rows, cols = (np.arange(out) for out in size)
    clear = np.ix_((2 * rows + 1) * HEIGHT % (2 * size[0]) != 0, (2 * cols + 1) * WIDTH % (2 * size[1]) != 0)
    for name in ('semseg', 'depth'):
        expected = by_torch(before[name], 'nearest-exact')[..., 0]
        np.testing.assert_array_equal(results['gt'][name][clear], expected[clear])
    normals = by_torch(before['normal'], 'bilinear')
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    # Random directions nearly cancel in places, where rounding decides.
    assert np.median(np.abs(results['gt']['normal'] - normals)) < 1e-6
    assert results['img_shape'] == size and results['ori_shape'] == (HEIGHT, WIDTH)
    for name in ('semseg', 'depth', 'normal'):
        check_target(name, results['gt'][name], TARGETS[name], size, 'room.jpg')


def test_zoom_agrees_with_crop_and_resize_by_torch():
    results = make_results()
    results['img'] = cv2.GaussianBlur(results['img'], (0, 0), 3)
    img, label = results['img'], results['gt']['semseg']
    RandomZoom().zoom(results, 1.5, 37, 55)
    window = img[37 : 37 + 192, 55 : 55 + 256]
    expected = tf.interpolate(torch.from_numpy(window).permute(2, 0, 1)[None], size=(HEIGHT, WIDTH), mode='bilinear')
    # Inside: at its border the window's neighbours are used instead of a repeated border. Coordinates are rounded
    # to 1/32 pixel.
    inside = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(results['img'][inside], expected[0].permute(1, 2, 0).numpy()[inside], atol=3e-3)
    rows = [37 + int((i + 0.5) / 1.5) for i in range(HEIGHT)]
    cols = [55 + int((j + 0.5) / 1.5) for j in range(WIDTH)]
    np.testing.assert_array_equal(results['gt']['semseg'], label[np.ix_(rows, cols)])


@pytest.mark.parametrize(
    'transform',
    [
        lambda results: ResizeMultiTask((100, 150))(results),
        lambda results: ResizeMultiTask((400, 500))(results),
        lambda results: ResizeMultiTask((96, 128), interpolation='area')(results),
        lambda results: RandomZoom(normal_zoom='geometric').zoom(results, 1.5, 20, 20),
        lambda results: RandomZoom().zoom(results, 1.2, 20, 20),
    ],
)
def test_invalid_normals_neither_spread_nor_mix_in(transform):
    results = plane_results((0.3, -0.8, 0.4), WIDTH / 2, HEIGHT / 2)
    normals, depth = results['gt']['normal'], results['gt']['depth']
    expected = transform(plane_results((0.3, -0.8, 0.4), WIDTH / 2, HEIGHT / 2))['gt']['normal'][0, 0]
    holes = np.zeros((HEIGHT, WIDTH), dtype=bool)
    holes[50:90, 60:140] = holes[30:31, :] = holes[200, 300] = True
    holes |= np.random.default_rng(1).random(holes.shape) < 0.05
    normals[holes], depth[holes] = 0, 0
    transform(results)
    found = results['gt']['normal']
    invalid = (found == 0).all(-1)
    # Validity moves as depth's does, by the nearest pixel.
    np.testing.assert_array_equal(invalid, results['gt']['depth'] == 0)
    assert 0.05 < invalid.mean() < 0.2
    np.testing.assert_allclose(found[~invalid], np.broadcast_to(expected, found[~invalid].shape), atol=1e-5)


def test_normals_stay_unit_length():
    results = make_results()
    RandomZoom(normal_zoom='geometric').zoom(results, 1.5, 3, 4)
    length = np.linalg.norm(results['gt']['normal'], axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)


def test_flip_twice_is_the_identity_and_once_mirrors_all():
    before, results = make_results(), make_results()
    flip = RandomFlip(prob=1.0)
    flip(results)
    np.testing.assert_array_equal(results['img'], before['img'][:, ::-1])
    np.testing.assert_array_equal(results['gt']['semseg'], before['gt']['semseg'][:, ::-1])
    np.testing.assert_array_equal(results['gt']['depth'], before['gt']['depth'][:, ::-1])
    np.testing.assert_array_equal(results['gt']['normal'], before['gt']['normal'][:, ::-1] * [-1, 1, 1])
    flip(results)
    for name, value in before['gt'].items():
        np.testing.assert_array_equal(results['gt'][name], value)


def test_flip_and_zoom_happen_as_often_as_told():
    np.random.seed(0)
    img = make_results(8, 12)['img']
    flips = sum(not np.array_equal(RandomFlip(0.3)(make_results(8, 12))['img'], img) for _ in range(500))
    assert 110 < flips < 190
    depth = make_results(8, 12, depth=np.full((8, 12), 3, np.float32))
    factors = []
    for _ in range(300):
        depth['gt']['depth'] = np.full((8, 12), 3, np.float32)
        factors.append(round(float(3 / RandomZoom()(depth)['gt']['depth'][0, 0]), 3))
    assert {factor: 70 < factors.count(factor) < 130 for factor in factors} == {1.0: True, 1.2: True, 1.5: True}


def test_zoom_window_stays_inside():
    for seed in range(200):
        np.random.seed(seed)
        # The value of a pixel is its column, so the window that was read is seen in the result.
        ramp = np.tile(np.arange(37, dtype=np.int64) % 13, (23, 1))
        results = make_results(23, 37, semseg=ramp)
        RandomZoom((1.5, 1.9))(results)
        assert (np.diff(results['gt']['semseg'][0]) % 13 <= 1).all()
        assert results['img'].shape == (23, 37, 3)


def test_pad_by_size_and_divisor():
    results = make_results(10, 14)
    label, normals = results['gt']['semseg'].copy(), results['gt']['normal'].copy()
    PadMultiTask(divisor=8, fill=0.5)(results)
    assert results['img_shape'] == (16, 16) == results['img'].shape[:2]
    assert (results['img'][10:] == 0.5).all() and (results['img'][:, 14:] == 0.5).all()
    gt = results['gt']
    outside = np.ones((16, 16), dtype=bool)
    outside[:10, :14] = False
    assert (gt['semseg'][outside] == 255).all() and (gt['depth'][outside] == 0).all()
    assert (gt['normal'][outside] == 0).all() and (gt['disparity'][outside] == 0).all()
    np.testing.assert_array_equal(gt['semseg'][:10, :14], label)
    np.testing.assert_array_equal(gt['normal'][:10, :14], normals)
    assert gt['scene'] == 1
    assert PadMultiTask(size=(20, 30))(results)['img'].shape == (20, 30, 3)
    with pytest.raises(ValueError, match=r'room.jpg: image of \(20, 30\) cannot be padded to \(20, 20\)'):
        PadMultiTask(size=(20, 20))(results)


def test_jitter_factors():
    img = make_results(6, 7)['img']
    np.testing.assert_allclose(jitter(img, 1, 1, 1), img, atol=1e-6)
    np.testing.assert_allclose(jitter(img, 0.5, 1, 1), img / 2, atol=1e-6)
    np.testing.assert_allclose(jitter(img, 1, 0, 1), (img @ LUMA).mean(), atol=1e-6)
    np.testing.assert_allclose(jitter(img, 1, 1, 0), np.repeat((img @ LUMA)[..., None], 3, -1), atol=1e-6)
    wild = jitter(img, 2, 2, 2)
    assert wild.min() == 0 and wild.max() == 1
    assert wild.dtype == np.float32


def test_jitter_is_brightness_then_contrast_then_saturation():
    img = 0.3 + 0.4 * make_results(6, 7)['img'].astype(np.float64)
    step = img * 1.1
    step = 0.8 * step + 0.2 * (step @ LUMA).mean()
    step = 1.3 * step - 0.3 * (step @ LUMA)[..., None]
    np.testing.assert_allclose(jitter(img.astype(np.float32), 1.1, 0.8, 1.3), step, atol=1e-6)


def test_photometric_jitter_touches_the_image_only():
    np.random.seed(0)
    before, results = make_results(6, 7), make_results(6, 7)
    PhotometricJitter()(results)
    assert not np.array_equal(results['img'], before['img'])
    assert 0 <= results['img'].min() and results['img'].max() <= 1
    for name, value in before['gt'].items():
        np.testing.assert_array_equal(results['gt'][name], value)
    np.testing.assert_array_equal(PhotometricJitter(prob=0.0)(make_results(6, 7))['img'], before['img'])


def test_pack_formats_of_each_kind():
    results = make_results(6, 7)
    del results['gt']['disparity']
    packed = PackMultiTaskInputs()(results)
    assert packed['inputs'].shape == (3, 6, 7) and packed['inputs'].dtype == torch.float32
    np.testing.assert_array_equal(packed['inputs'].permute(1, 2, 0).numpy(), results['img'])
    sample = packed['data_samples']
    formats = {name: (tuple(value.shape), value.dtype) for name, value in sample.targets.items()}
    assert formats == dict(
        semseg=((6, 7), torch.int64),
        depth=((1, 6, 7), torch.float32),
        normal=((3, 6, 7), torch.float32),
        scene=((), torch.int64),
        pose=((2,), torch.float32),
    )
    np.testing.assert_array_equal(sample.targets['normal'][:, 2, 3].numpy(), results['gt']['normal'][2, 3])
    assert sample.metainfo == dict(sample_idx=3, img_path='room.jpg', ori_shape=(6, 7), img_shape=(6, 7))


def test_pack_refuses_byte_images():
    results = make_results(6, 7)
    results['img'] = (results['img'] * 255).astype(np.uint8)
    with pytest.raises(ValueError, match='uint8, expected .* float'):
        PackMultiTaskInputs()(results)


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(type='ResizeMultiTask', size=(0, 3)), 'size must be'),
        (dict(type='ResizeMultiTask', size=(8, 8), interpolation='cubic'), "interpolation is 'cubic'"),
        (dict(type='RandomZoom', scales=(0.5, 1)), 'scales must be 1 or more'),
        (dict(type='RandomZoom', normal_zoom='exact'), "normal_zoom is 'exact'"),
        (dict(type='RandomFlip', prob=2), r'prob must be in \[0, 1\]'),
        (dict(type='PadMultiTask'), 'either size or divisor'),
        (dict(type='PadMultiTask', divisor=0), 'divisor must be 1 or more'),
        (dict(type='PhotometricJitter', contrast=-1), 'contrast must be'),
    ],
)
def test_wrong_arguments_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)


def test_targets_of_another_size_are_refused_where_they_cannot_follow():
    results = make_results(20, 30, depth=np.ones((10, 15), np.float32))
    with pytest.raises(ValueError, match=r"RandomZoom needs targets of the size of the image \(20, 30\), 'depth'"):
        RandomZoom().zoom(results, 1.5, 0, 0)
    with pytest.raises(ValueError, match='PadMultiTask needs targets of the size of the image'):
        PadMultiTask(divisor=16)(results)
