import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mmrepmtl.datasets.synth_rooms import SynthRoomsDataset
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.visualization import (
    colour_binary,
    colour_depth,
    colour_normals,
    colour_segmentation,
    default_palette,
    depth_range,
    prediction_grid,
    write_grid,
)
from mmrepmtl.visualization.panels import fit, text_panel, unlabelled_panel

PALETTE = [[10, 20, 30], [200, 100, 50], [0, 250, 120]]
TARGETS = dict(
    semseg=dict(kind='segmentation', classes=('wall', 'floor', 'lamp'), palette=PALETTE),
    depth=dict(kind='depth'),
    normal=dict(kind='normals'),
    scene=dict(kind='classification', classes=('kitchen', 'office', 'bath', 'hall')),
    pose=dict(kind='regression', names=('yaw', 'pitch')),
)
DENSE = dict(semseg='semseg', depth='depth', normal='normal')
SIZE = (24, 32)
SCALE = 5  # 32 pixels are magnified to 160
PANEL = (SIZE[0] * SCALE, SIZE[1] * SCALE)


def make_targets(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(3, *SIZE, generator=generator)
    return dict(
        semseg=torch.randint(0, 3, SIZE, generator=generator),
        depth=1 + torch.rand(1, *SIZE, generator=generator),
        normal=normal / normal.norm(dim=0),
        scene=torch.tensor(seed % 4),
        pose=torch.randn(2, generator=generator),
    )


def make_sample(index: int = 0, missing=()) -> MultiTaskDataSample:
    sample = MultiTaskDataSample(metainfo=dict(img_shape=SIZE))
    for name, value in make_targets(index).items():
        if name not in missing:
            sample.set_target(name, value)
    predictions = make_targets(100 + index) | dict(scene=torch.tensor([0.1, 0.2, 0.6, 0.1]))
    for name, value in predictions.items():
        sample.set_prediction(name, value)
    return sample


def make_image(index: int = 0) -> torch.Tensor:
    return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(index))


def draw(samples, tasks=DENSE, **kwargs) -> np.ndarray:
    return prediction_grid([make_image(index) for index in range(len(samples))], samples, TARGETS, tasks, **kwargs)


def locate(grid: np.ndarray, panel: np.ndarray) -> tuple[int, int] | None:
    """(top, left) of the exact copy of ``panel`` in the grid, or None."""
    differences = cv2.matchTemplate(grid, np.ascontiguousarray(panel), cv2.TM_SQDIFF)
    top, left = (int(i) for i in np.unravel_index(differences.argmin(), differences.shape))
    found = grid[top : top + panel.shape[0], left : left + panel.shape[1]]
    return (top, left) if np.array_equal(found, panel) else None


def magnified(colours: np.ndarray) -> np.ndarray:
    return colours.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


# ---- colours ---------------------------------------------------------------------------------------------------------


def test_yes_is_white_no_nearly_black_void_dark_red():
    colours = colour_binary(np.array([[0, 1], [255, 1]]))
    assert colours.tolist() == [[[24, 24, 24], [255, 255, 255]], [[120, 30, 30], [255, 255, 255]]]
    grey = colour_binary(np.array([[0.5, np.nan]], dtype=np.float32))
    assert grey.tolist() == [[[140, 140, 140], [120, 30, 30]]]
    with pytest.raises(ValueError, match=r'values \[2\], expected 0 to 1'):
        colour_binary(np.array([[2]]))


def test_yes_or_no_maps_are_drawn_beside_their_probabilities():
    generator = torch.Generator().manual_seed(5)
    target = (torch.rand(SIZE, generator=generator) > 0.7).long()
    sample = MultiTaskDataSample(metainfo=dict(img_shape=SIZE))
    sample.set_target('edge', target)
    sample.set_prediction('edge', torch.rand(SIZE, generator=generator))
    grid = prediction_grid([make_image()], [sample], dict(edge=dict(kind='binary')), dict(edge='edge'))
    truth = locate(grid, magnified(colour_binary(target.numpy())))
    prediction = locate(grid, magnified(colour_binary(sample.predictions['edge'].numpy())))
    assert truth is not None and prediction is not None and truth[0] == prediction[0] and truth[1] < prediction[1]


def test_segmentation_has_the_colours_of_the_palette_and_black_void():
    colours = colour_segmentation(np.array([[0, 1], [2, 255]]), PALETTE)
    assert colours.dtype == np.uint8
    assert colours.tolist() == [[PALETTE[0], PALETTE[1]], [PALETTE[2], [0, 0, 0]]]


@pytest.mark.parametrize('label', [3, 254, 256, -1])
def test_a_label_without_a_colour_is_named(label):
    with pytest.raises(ValueError, match=rf'labels \[{label}\] have no colour'):
        colour_segmentation(np.array([[0, label]]), PALETTE)


def test_default_palette_is_distinct_and_stable():
    palette = default_palette(60)
    assert len({tuple(colour) for colour in palette}) == 60
    assert default_palette(10) == palette[:10]
    assert [0, 0, 0] not in palette and all(0 <= channel <= 255 for colour in palette for channel in colour)


def test_depth_ends_and_middle_are_viridis():
    depth = np.array([[[1.0, 3.0, 2.0, 0.5, 9.0]]])
    # Published values of the map at 0, 1 and 128 / 255.
    ends = [[68, 1, 84], [253, 231, 37], [33, 145, 140], [68, 1, 84], [253, 231, 37]]
    assert np.abs(colour_depth(depth, 1.0, 3.0)[0].astype(int) - ends).max() <= 1


@pytest.mark.parametrize('invalid', [0.0, -1.0, np.nan, np.inf])
def test_invalid_depth_is_black(invalid):
    depth = np.array([[invalid, 2.0]], dtype=np.float32)
    colours = colour_depth(depth, 1.0, 3.0)
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert colours[0, 1].sum() > 0
    assert depth_range(depth) == (2.0, 2.0)


def test_depth_shows_what_is_declared_valid_but_never_nan():
    depth = np.array([[-1.0, np.nan]])
    colours = colour_depth(depth, 1.0, 3.0, valid=np.array([[True, True]]))
    assert colours[0, 0].tolist() == colour_depth(np.array([[1.0]]), 1.0, 3.0)[0, 0].tolist()
    assert colours[0, 1].tolist() == [0, 0, 0]


def test_depth_of_an_empty_range_or_without_a_valid_pixel():
    with pytest.raises(ValueError, match='vmin=2 must be less than vmax=2'):
        colour_depth(np.ones((2, 2)), 2.0, 2.0)
    assert depth_range(np.zeros((1, 2, 2))) is None


@pytest.mark.parametrize(
    ('normal', 'colour'),
    [
        ((0, -1, 0), (128, 128, 255)),  # a wall that faces the camera
        ((0, 0, 1), (128, 255, 128)),  # a floor
        ((0, 0, -1), (128, 0, 128)),  # a ceiling
        ((1, 0, 0), (255, 128, 128)),  # a wall on the left, which faces right
        ((-3, 0, 0), (0, 128, 128)),  # not of unit length
        ((0, 0, 0), (0, 0, 0)),
        ((np.nan, 0, 1), (0, 0, 0)),
    ],
)
def test_normals_look_like_a_normal_map(normal, colour):
    assert colour_normals(np.array(normal, dtype=np.float32)[:, None, None])[0, 0].tolist() == list(colour)


def test_shapes_are_height_width_three():
    assert colour_normals(np.ones((3, 4, 5))).shape == (4, 5, 3)
    assert colour_depth(np.ones((1, 4, 5)), 0, 2).shape == colour_depth(np.ones((4, 5)), 0, 2).shape == (4, 5, 3)
    with pytest.raises(ValueError, match=r'shape \(4, 5, 3\), expected \(3, H, W\)'):
        colour_normals(np.ones((4, 5, 3)))
    with pytest.raises(ValueError, match=r'shape \(3, 4, 5\)'):
        colour_depth(np.ones((3, 4, 5)), 0, 2)


# ---- the grid --------------------------------------------------------------------------------------------------------


def test_truth_and_prediction_lie_side_by_side_in_the_right_columns():
    sample = make_sample()
    grid = draw([sample])
    assert grid.dtype == np.uint8 and grid.ndim == 3 and grid.shape[2] == 3
    truth, prediction = sample.targets, sample.predictions
    limits = depth_range(truth['depth'].numpy())
    panels = [
        colour_segmentation(truth['semseg'].numpy(), PALETTE),
        colour_segmentation(prediction['semseg'].numpy(), PALETTE),
        colour_depth(truth['depth'].numpy(), *limits),
        colour_depth(prediction['depth'].numpy(), *limits),  # the truth's range, not its own
        colour_normals(truth['normal'].numpy()),
        colour_normals(prediction['normal'].numpy()),
    ]
    places = [locate(grid, magnified(panel)) for panel in panels]
    assert None not in places
    tops, lefts = zip(*places, strict=True)
    assert len(set(tops)) == 1
    assert all(right - left >= PANEL[1] for left, right in zip(lefts, lefts[1:], strict=False))


def test_a_negative_depth_prediction_is_shown_as_the_nearest():
    sample = make_sample()
    sample.set_prediction('depth', torch.full((1, *SIZE), -1.0))
    nearest = np.full((*PANEL, 3), colour_depth(np.ones((1, 1)), 1.0, 2.0)[0, 0])
    assert locate(draw([sample], dict(depth='depth')), nearest) is not None


def test_without_a_truth_the_depth_has_the_range_of_the_prediction():
    sample = make_sample(missing=['depth'])
    prediction = sample.predictions['depth'].numpy()
    panel = colour_depth(prediction, *depth_range(prediction))
    assert locate(draw([sample], dict(depth='depth')), magnified(panel)) is not None


def test_the_size_follows_rows_and_tasks():
    samples = [make_sample(index) for index in range(5)]
    heights = [draw(samples[:count]).shape[0] for count in (1, 2, 3)]
    assert heights[2] - heights[1] == heights[1] - heights[0] >= PANEL[0]
    assert draw(samples, max_rows=3).shape == draw(samples[:3]).shape
    assert np.array_equal(draw(samples, max_rows=3), draw(samples[:3]))
    widths = [draw(samples[:1], dict(list(DENSE.items())[:count])).shape[1] for count in (1, 2, 3)]
    assert widths[2] - widths[1] == widths[1] - widths[0]
    assert 2 * PANEL[1] <= widths[1] - widths[0] <= 2 * PANEL[1] + 40


@pytest.mark.parametrize(('size', 'panel'), [((96, 128), (192, 256)), ((40, 160), (40, 160)), ((100, 1000), (40, 400))])
def test_small_images_are_magnified_by_whole_factors_and_large_ones_shrunk(size, panel):
    sample = MultiTaskDataSample(metainfo=dict(img_shape=size))
    labels = torch.zeros(size, dtype=torch.int64)
    sample.set_target('semseg', labels)
    sample.set_prediction('semseg', labels + 1)
    grid = prediction_grid(torch.zeros(1, 3, *size), [sample], TARGETS, dict(semseg='semseg'))
    assert locate(grid, np.full((*panel, 3), PALETTE[0], dtype=np.uint8)) is not None
    # One row or column more is not found: the panel is exactly as large.
    assert locate(grid, np.full((panel[0] + 1, panel[1], 3), PALETTE[0], dtype=np.uint8)) is None
    assert locate(grid, np.full((panel[0], panel[1] + 1, 3), PALETTE[0], dtype=np.uint8)) is None


def test_a_missing_target_is_a_hatched_panel_and_nothing_else_is():
    hatched = unlabelled_panel(PANEL)
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) > 2  # paper, hatching, letters
    assert locate(draw([make_sample()]), hatched) is None
    grid = draw([make_sample(missing=['normal'])])
    place = locate(grid, hatched)
    normal = magnified(colour_normals(make_sample().predictions['normal'].numpy()))
    assert place is not None and locate(grid, normal)[1] > place[1]


def test_the_image_is_in_the_grid_without_its_padding():
    image = torch.zeros(3, *SIZE)
    image[0] = 1
    padded = torch.zeros(3, SIZE[0] + 4, SIZE[1] + 8)
    padded[2] = 1
    padded[:, : SIZE[0], : SIZE[1]] = image
    grid = prediction_grid([padded], [make_sample()], TARGETS, DENSE)
    red = np.zeros((*PANEL, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert locate(grid, red) is not None
    assert not (grid == (0, 0, 255)).all(axis=2).any()


def test_predictions_of_another_size_than_the_image_are_fitted():
    sample = make_sample()
    sample.set_prediction('semseg', torch.full((7, 9), 2))
    assert locate(draw([sample]), np.full((*PANEL, 3), PALETTE[2], dtype=np.uint8)) is not None


def test_classes_are_in_the_legend_and_void_where_it_occurs():
    def colours_below_panels(sample):
        grid = draw([sample], dict(semseg='semseg'))
        prediction = magnified(colour_segmentation(sample.predictions['semseg'].numpy(), PALETTE))
        below = grid[locate(grid, prediction)[0] + PANEL[0] :]
        return {tuple(colour) for colour in below.reshape(-1, 3).tolist()}

    sample = make_sample()
    sample.set_target('semseg', torch.zeros(SIZE, dtype=torch.int64))
    without = colours_below_panels(sample)
    assert {tuple(colour) for colour in PALETTE} <= without
    assert (0, 0, 0) not in without
    sample.targets['semseg'][0, 0] = 255
    assert (0, 0, 0) in colours_below_panels(sample)


def test_a_long_legend_wraps_instead_of_being_cut():
    classes = tuple(f'a class with number {index}' for index in range(40))
    meta = dict(semseg=dict(kind='segmentation', classes=classes))
    grid = prediction_grid([make_image()], [make_sample()], meta, dict(semseg='semseg'))
    colours = {tuple(colour) for colour in grid.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in default_palette(40)} <= colours
    assert (grid[:, -10:] == 255).all()


def test_classification_and_regression_are_text():
    sample = make_sample(missing=['pose'])
    grid = draw([sample], dict(scene='scene', pose='pose'))
    yaw, pitch = sample.predictions['pose'].tolist()
    for lines in (
        ['kitchen'],
        ['0.60  bath', '0.20  office', '0.10  kitchen'],
        [f'yaw  {yaw:.4g}', f'pitch  {pitch:.4g}'],
    ):
        assert locate(grid, text_panel(lines, PANEL)) is not None, lines
    assert locate(grid, unlabelled_panel(PANEL)) is not None
    sample.set_target('pose', torch.tensor([0.5, float('nan')]))
    assert locate(draw([sample], dict(pose='pose')), text_panel(['yaw  0.5', 'pitch  unlabelled'], PANEL)) is not None


def test_text_panels_say_how_much_they_leave_out():
    many = [f'value {index}' for index in range(50)]
    room = (PANEL[0] - 12) // 20
    assert np.array_equal(text_panel(many, PANEL), text_panel([*many[: room - 1], f'… {51 - room} more'], PANEL))
    wide = text_panel(['a very long line of text ' * 5], PANEL)
    assert (wide[:, -10:] == wide[0, 0]).all()


def test_fit_keeps_label_colours():
    panel = colour_segmentation(np.random.default_rng(0).integers(0, 3, (30, 40)), PALETTE)
    assert {tuple(c) for c in fit(panel, (17, 23)).reshape(-1, 3).tolist()} <= {tuple(c) for c in PALETTE}


def test_the_task_may_have_another_name_than_its_target():
    sample = make_sample()
    sample.set_prediction('depth_b', sample.predictions['depth'])
    one, two = draw([sample], dict(depth='depth')), draw([sample], dict(depth_b='depth'))
    assert one.shape == two.shape
    differing = np.argwhere((one != two).any(axis=2))
    assert differing[:, 0].max() < 40  # the caption only


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(images=[]), '0 images, but 1 samples'),
        (dict(images=[], samples=[]), 'nothing to draw'),
        (dict(head_targets={}), 'nothing to draw'),
        (dict(max_rows=0), 'max_rows=0'),
        (dict(head_targets=dict(edges='edges')), "target 'edges' of task 'edges' is not declared"),
        (dict(head_targets=dict(other='semseg')), "sample 0 has no prediction of task 'other'"),
        (dict(images=[make_image() * 2 - 1.5]), 'before the data preprocessor'),
        (dict(images=[(make_image() * 255).to(torch.uint8)]), 'torch.uint8; expected floating-point'),
    ],
)
def test_what_cannot_be_drawn_is_named(change, message):
    arguments = dict(images=[make_image()], samples=[make_sample()], targets_meta=TARGETS, head_targets=DENSE)
    with pytest.raises(ValueError, match=message):
        prediction_grid(**arguments | change)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_write_grid_writes_the_grid_and_nothing_beside_it(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'predictions.png'
    write_grid(path, [make_image()], [make_sample()], TARGETS, DENSE)
    assert np.array_equal(np.asarray(Image.open(path)), draw([make_sample()]))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'predictions.png'
    path.write_bytes(b'old')

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
        write_grid(path, [make_image()], [make_sample()], TARGETS, DENSE)
    assert path.read_bytes() == b'old'
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_ending_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(ValueError, match='use .png or .jpg'):
        write_grid(tmp_path / 'predictions.txt', [make_image()], [make_sample()], TARGETS, DENSE)


def test_a_grid_of_rooms_is_not_blank():
    dataset = SynthRoomsDataset(size=(48, 64), num_samples=2, test_mode=True)
    images, samples = [], []
    for index in range(2):
        room = dataset[index]
        sample = MultiTaskDataSample(metainfo=dict(img_shape=room['img_shape']))
        for name, value in room['gt'].items():
            value = torch.from_numpy(value)
            value = value if value.ndim == 2 else value.permute(2, 0, 1)
            value = value[None] if name == 'depth' else value
            sample.set_target(name, value)
            sample.set_prediction(name, value)
        images.append(torch.from_numpy(room['img']).permute(2, 0, 1))
        samples.append(sample)
    grid = prediction_grid(images, samples, dataset.metainfo['targets'], DENSE)
    assert len(np.unique(grid.reshape(-1, 3), axis=0)) > 1000
    # In each row the truth equals the prediction, and a room has a floor: green in the normals, in the lower half.
    assert ((grid[..., 1] > 220) & (grid[..., 0] < 180) & (grid[..., 2] < 180)).mean() > 0.01
