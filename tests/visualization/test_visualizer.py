"""The sheet of one sample, its errors, and mmengine's visualiser and hook that draw it during a run."""

import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from mmengine.visualization import LocalVisBackend
from PIL import Image

from mmrepmtl.apis import evaluate, load_config, train
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.visualization import (
    MultiTaskVisualizationHook,
    MultiTaskVisualizer,
    colour_normals,
    make_error,
    task_sheet,
)
from mmrepmtl.visualization.colours import DEPTH_COLOURS_K3
from mmrepmtl.visualization.errors import ERROR_COLOURS_K3, RIGHT_COLOUR, WRONG_COLOUR
from mmrepmtl.visualization.panels import fit, make_pair, unlabelled_panel
from mmrepmtl.visualization.sheet import normal_sphere

ROOT = Path(__file__).resolve().parents[2]
SIZE = (24, 32)
PANEL = (120, 160)  # magnified by a whole factor to 160 pixels
TARGETS = dict(
    semseg=dict(
        kind='segmentation',
        classes=('wall', 'floor', 'lamp'),
        palette=[[10, 20, 30], [200, 100, 50], [0, 250, 120]],
    ),
    edge=dict(kind='binary'),
    depth=dict(kind='depth'),
    normal=dict(kind='normals'),
    scene=dict(kind='classification', classes=('kitchen', 'office')),
    pose=dict(kind='regression', names=('yaw', 'pitch')),
)
HEADS = {task: task for task in sorted(TARGETS)}


def random_values(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(3, *SIZE, generator=generator)
    return dict(
        semseg=torch.randint(0, 3, SIZE, generator=generator),
        edge=torch.randint(0, 2, SIZE, generator=generator),
        depth=1 + torch.rand(1, *SIZE, generator=generator),
        normal=normal / normal.norm(dim=0),
        scene=torch.tensor(seed % 2),
        pose=torch.randn(2, generator=generator),
    )


def make_sample(missing=()) -> MultiTaskDataSample:
    sample = MultiTaskDataSample(metainfo=dict(img_shape=SIZE))
    for name, value in random_values(0).items():
        if name not in missing:
            sample.set_target(name, value)
    other = random_values(1)
    for name, value in (other | dict(scene=torch.tensor([0.25, 0.75]), edge=other['edge'] * 0.5)).items():
        sample.set_prediction(name, value)
    return sample


def make_image() -> torch.Tensor:
    return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))


def locate(sheet: np.ndarray, panel: np.ndarray) -> tuple[int, int] | None:
    """(top, left) of the exact copy of ``panel``, or None."""
    differences = cv2.matchTemplate(sheet, np.ascontiguousarray(panel), cv2.TM_SQDIFF)
    top, left = (int(i) for i in np.unravel_index(differences.argmin(), differences.shape))
    found = sheet[top : top + panel.shape[0], left : left + panel.shape[1]]
    return (top, left) if np.array_equal(found, panel) else None


def arrays(sample: MultiTaskDataSample, task: str) -> tuple[np.ndarray, np.ndarray]:
    return sample.targets[task].numpy(), sample.predictions[task].numpy()


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_classes_are_red_right_ones_pale_and_void_black():
    truth, prediction = np.array([[0, 1, 2, 255]]), np.array([[0, 2, 1, 1]])
    error = make_error('segmentation', truth, prediction, TARGETS['semseg'], (1, 4))
    assert error.panel[0].tolist() == [list(RIGHT_COLOUR), list(WRONG_COLOUR), list(WRONG_COLOUR), [0, 0, 0]]
    assert error.summary == '66.7 % wrong'


def test_depth_error_is_in_metres_over_the_valid_pixels():
    truth, prediction = np.array([[[2.0, 1.0, 0.0, 3.0]]]), np.array([[[2.0, 1.5, 9.0, 1.0]]])
    error = make_error('depth', truth, prediction, TARGETS['depth'], (1, 4))
    assert error.scale == (0.0, 2.0, 'm') and error.summary == 'mean 0.833 m'
    expected = [ERROR_COLOURS_K3[0], ERROR_COLOURS_K3[64], (0, 0, 0), ERROR_COLOURS_K3[255]]
    assert error.panel[0].tolist() == [list(map(int, colour)) for colour in expected]
    assert make_error('depth', truth, prediction, dict(kind='depth', inverse=True), (1, 4)).scale == (0.0, 2.0, '')
    bad = make_error('depth', truth, np.array([[[np.nan, 1.5, 9.0, 1.0]]]), TARGETS['depth'], (1, 4))
    assert bad.panel[0, 0].tolist() == ERROR_COLOURS_K3[255].tolist() and 'nan' in bad.summary
    assert make_error('depth', 0 * truth, prediction, TARGETS['depth'], (1, 4)).summary == 'no valid pixel'


def test_normal_error_is_the_angle_in_degrees():
    angles = np.radians([0.0, 60.0, 90.0, 180.0])
    truth = np.tile(np.array([0.0, 0.0, 1.0])[:, None, None], (1, 1, 4))
    prediction = 2.0 * np.stack([np.sin(angles), 0 * angles, np.cos(angles)])[:, None]  # vectors of any length
    error = make_error('normals', truth, prediction, TARGETS['normal'], (1, 4))
    assert error.scale == (0.0, 90.0, 'degrees') and error.summary == 'mean 82.5°'
    expected = [ERROR_COLOURS_K3[index].tolist() for index in (0, 170, 255, 255)]
    assert error.panel[0].tolist() == expected
    truth[..., 0] = 0
    assert make_error('normals', truth, prediction, TARGETS['normal'], (1, 4)).panel[0, 0].tolist() == [0, 0, 0]


def test_binary_error_is_the_distance_from_the_label():
    error = make_error('binary', np.array([[1, 0, 255]]), np.array([[0.75, 0.5, 0.1]]), TARGETS['edge'], (1, 3))
    assert error.summary == 'mean 0.375' and error.panel[0, 2].tolist() == [0, 0, 0]
    assert error.panel[0, 0].tolist() == ERROR_COLOURS_K3[64].tolist()


def test_classification_and_regression_errors_are_text():
    right = make_error('classification', np.array(1), np.array([0.25, 0.75]), TARGETS['scene'], PANEL)
    wrong = make_error('classification', np.array(0), np.array([0.25, 0.75]), TARGETS['scene'], PANEL)
    assert (right.summary, wrong.summary) == ('right', 'wrong')
    values = make_error('regression', np.array([1.0, np.nan]), np.array([3.0, 0.0]), TARGETS['pose'], PANEL)
    assert values.panel.shape == (*PANEL, 3) and values.panel.std() > 0


# ---- the sheet -------------------------------------------------------------------------------------------------------


def test_truth_prediction_and_error_stand_side_by_side_in_the_order_of_the_tasks():
    sample = make_sample()
    sheet = task_sheet(make_image(), sample, TARGETS, HEADS, title='room')
    tops = []
    for task in HEADS:
        meta = TARGETS[task]
        truth, prediction = arrays(sample, task)
        pair = make_pair(meta['kind'], truth, prediction, meta, PANEL)
        error = make_error(meta['kind'], truth, prediction, meta, PANEL)
        places = [locate(sheet, panel) for panel in (pair.truth, pair.prediction, error.panel)]
        assert None not in places, task
        assert len({top for top, _ in places}) == 1 and np.all(np.diff([left for _, left in places]) == 168)
        tops.append(places[0][0])
    assert tops == sorted(set(tops))


def test_without_truth_only_predictions_are_drawn():
    sample = make_sample(missing=TARGETS)
    sheet = task_sheet(make_image(), sample, TARGETS, HEADS)
    assert np.array_equal(sheet, task_sheet(make_image(), make_sample(), TARGETS, HEADS, draw_gt=False))
    for task, meta in TARGETS.items():
        panel = make_pair(meta['kind'], None, arrays(make_sample(), task)[1], meta, PANEL).prediction
        assert locate(sheet, panel) is not None, task
    assert locate(sheet, unlabelled_panel(PANEL)) is None


def test_a_task_without_truth_among_others_says_so():
    sheet = task_sheet(make_image(), make_sample(missing=['depth']), TARGETS, dict(semseg='semseg', depth='depth'))
    prediction = make_pair('depth', None, random_values(1)['depth'].numpy(), TARGETS['depth'], PANEL).prediction
    top, left = locate(sheet, prediction)
    for column in (left - 168, left + 168):
        panel = sheet[top : top + PANEL[0], column : column + PANEL[1]]
        assert np.array_equal(panel, unlabelled_panel(PANEL))


def test_legends_have_the_colours_that_are_used():
    seen = {tuple(colour) for colour in task_sheet(make_image(), make_sample(), TARGETS, HEADS).reshape(-1, 3).tolist()}
    for colour in TARGETS['semseg']['palette']:
        assert tuple(colour) in seen
    depth_only = task_sheet(make_image(), make_sample(), TARGETS, dict(depth='depth'), draw_gt=False)
    bar = {tuple(colour) for colour in depth_only[14 + 40 + 120 :].reshape(-1, 3).tolist()}
    assert tuple(DEPTH_COLOURS_K3[0].tolist()) in bar and tuple(DEPTH_COLOURS_K3[255].tolist()) in bar
    normal_only = task_sheet(make_image(), make_sample(), TARGETS, dict(normal='normal'))
    assert locate(normal_only, normal_sphere(64)) is not None


def test_the_sphere_faces_the_camera_in_the_middle_and_up_at_its_top():
    ball = normal_sphere(101)
    for (row, column), (right, into, up) in {(50, 50): (0, -1, 0), (0, 50): (0, 0, 1), (50, 100): (1, 0, 0)}.items():
        expected = colour_normals(np.array([right, into, up], float)[:, None, None])[0, 0]
        # The outermost pixel's centre is half a pixel inside, where the ball is already steep.
        assert np.abs(ball[row, column].astype(int) - expected).max() <= (0 if (row, column) == (50, 50) else 20)
    assert ball[0, 0].tolist() == [255, 255, 255]


def test_images_may_be_arrays_and_lose_their_padding():
    padded = torch.zeros(3, 32, 40)
    padded[:, : SIZE[0], : SIZE[1]] = make_image()
    array = np.rint(255 * make_image().numpy().transpose(1, 2, 0)).astype(np.uint8)
    sheets = [task_sheet(image, make_sample(), TARGETS, HEADS) for image in (make_image(), padded, array)]
    assert np.array_equal(sheets[0], sheets[1]) and np.array_equal(sheets[0], sheets[2])
    assert locate(sheets[0], fit(array, PANEL, smooth=True)) is not None


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(head_targets={}), 'nothing to draw'),
        (dict(head_targets=dict(depth='range')), "target 'range' of task 'depth' is not declared"),
        (dict(head_targets=dict(other='depth')), "no prediction of task 'other'"),
        (dict(image=np.zeros((4, 4), np.uint8)), r'an image \(4, 4\) uint8, expected'),
        (dict(image=2 + make_image()), r'expected \[0, 1\]'),
    ],
)
def test_what_cannot_be_drawn_is_named(change, message):
    arguments = dict(image=make_image(), sample=make_sample(), targets_meta=TARGETS, head_targets=HEADS)
    with pytest.raises(ValueError, match=message):
        task_sheet(**arguments | change)


# ---- mmengine --------------------------------------------------------------------------------------------------------


def make_visualizer(tmp_path, *backends, name: str) -> MultiTaskVisualizer:
    visualizer = MultiTaskVisualizer(name=name, vis_backends=list(backends), save_dir=str(tmp_path))
    visualizer.dataset_meta = dict(targets=TARGETS)
    return visualizer


def test_the_local_backend_gets_the_sheet(tmp_path):
    visualizer = make_visualizer(tmp_path, dict(type='LocalVisBackend'), name='local')
    visualizer.add_datasample('room', make_image(), make_sample(), step=7)
    sheet = task_sheet(make_image(), make_sample(), TARGETS, HEADS, title='room')
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'vis_data/vis_image/room_7.png')), sheet)
    visualizer.add_datasample('room', make_image(), make_sample(), draw_gt=False, out_file=tmp_path / 'one/alone.png')
    alone = task_sheet(make_image(), make_sample(), TARGETS, HEADS, title='room', draw_gt=False)
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'one/alone.png')), alone)
    assert len(list((tmp_path / 'vis_data/vis_image').iterdir())) == 1


def test_the_head_targets_say_what_a_task_is_drawn_against(tmp_path):
    sample = make_sample()
    sample.set_prediction('far', sample.predictions['depth'])
    visualizer = make_visualizer(tmp_path, name='renamed')
    visualizer.head_targets = dict(far='depth')
    visualizer.add_datasample('room', make_image(), sample, out_file=tmp_path / 'room.png')
    sheet = task_sheet(make_image(), sample, TARGETS, dict(far='depth'), title='room')
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'room.png')), sheet)


def test_tensorboard_gets_the_sheet(tmp_path):
    pytest.importorskip('tensorboard', reason='tensorboard is not installed; it is no requirement of ours')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    visualizer = make_visualizer(tmp_path, dict(type='TensorboardVisBackend'), name='tensorboard')
    visualizer.add_datasample('room', make_image(), make_sample(), step=7)
    visualizer.close()
    events = EventAccumulator(str(tmp_path / 'vis_data'))
    events.Reload()
    (image,) = events.Images('room')
    decoded = cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert image.step == 7
    assert np.array_equal(decoded, task_sheet(make_image(), make_sample(), TARGETS, HEADS, title='room'))


def test_mlflow_gets_a_file_for_each_step_and_the_others_their_name(tmp_path, monkeypatch):
    """Its client takes file names only, and would write later steps over earlier ones."""
    written = {}
    client = ModuleType('mlflow')
    for name in ('set_tracking_uri', 'get_experiment_by_name', 'set_experiment', 'end_run'):
        setattr(client, name, lambda *args: 'there')
    client.MlflowException = RuntimeError
    client.log_image = lambda image, name: written.update({name: image})
    monkeypatch.setitem(sys.modules, 'mlflow', client)
    backends = dict(type='MLflowVisBackend'), dict(type='LocalVisBackend')
    visualizer = make_visualizer(tmp_path, *backends, name='mlflow')
    for step in (7, 8):
        visualizer.add_datasample('room', make_image(), make_sample(), step=step)
    sheet = task_sheet(make_image(), make_sample(), TARGETS, HEADS, title='room')
    assert list(written) == ['room_7.png', 'room_8.png'] and np.array_equal(written['room_8.png'], sheet)
    assert {path.name for path in (tmp_path / 'vis_data/vis_image').iterdir()} == set(written)


def test_a_visualizer_that_knows_no_targets_says_so(tmp_path):
    visualizer = MultiTaskVisualizer(name='ignorant')
    with pytest.raises(ValueError, match='dataset_meta names no targets'):
        visualizer.add_datasample('room', make_image(), make_sample())


def config(work_dir: Path, name: str, **options):
    options = {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.num_samples': 4, 'experiment_name': name} | options
    return load_config(ROOT / 'tests/tools/tiny.py', work_dir=str(work_dir), cfg_options=options)


def pictures(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob('*/vis_data/vis_image/*.png'))


def test_every_nth_image_of_validation_and_test_is_drawn(tmp_path):
    options = {'default_hooks.visualization.interval': 3}
    train(config(tmp_path / 'run', 'drawn', **options))
    # Seven images in batches of four; the one iteration of the training is the step.
    assert pictures(tmp_path / 'run') == ['val_000000_1.png', 'val_000003_1.png', 'val_000006_1.png']
    sheet = np.asarray(Image.open(next((tmp_path / 'run').glob('*/vis_data/vis_image/val_000003_1.png'))))
    assert sheet.shape[1] > 600 and sheet.std() > 20
    evaluate(config(tmp_path / 'test', 'tested', **options), tmp_path / 'run/epoch_1.pth', constant=False)
    assert pictures(tmp_path / 'test') == ['test_000000_0.png', 'test_000003_0.png', 'test_000006_0.png']


def test_by_default_nothing_is_drawn_and_settings_are_checked(tmp_path):
    train(config(tmp_path / 'run', 'undrawn'))
    assert pictures(tmp_path / 'run') == []
    with pytest.raises(ValueError, match=r'interval=-1 must be 0 \(off\) or more'):
        MultiTaskVisualizationHook(-1)
    options = {'default_hooks.visualization.interval': 1, 'visualizer.type': 'Visualizer'}
    with pytest.raises(ValueError, match='the config has Visualizer'):
        train(config(tmp_path / 'other', 'other', **options))


def test_the_local_backend_keeps_names_with_a_slash_from_us(tmp_path):
    """Why the hook's names have none: mmengine's backend would write nothing, and say nothing."""
    LocalVisBackend(save_dir=str(tmp_path)).add_image('val/1', np.zeros((4, 4, 3), np.uint8))
    assert not list(tmp_path.rglob('*.png'))
