"""Predictions at the input's own size, in physical units, and as files that the readers read back."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.apis.inputs import find_inputs
from mmrepmtl.apis.result_files import ResultWriter
from mmrepmtl.datasets import readers
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.visualization import task_sheet
from tests.apis.harness import read_frames, write_video
from tests.apis.toy import NETWORK_SIZE, ROOT, TARGETS, picture, same


@pytest.fixture(scope='module')
def inferencer(run) -> MultiTaskInferencer:
    return MultiTaskInferencer(*run, device='cpu')


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


# ---- the arrays ------------------------------------------------------------------------------------------------------


def test_predictions_have_the_size_of_the_input_and_the_formats_of_the_data_sample(inferencer):
    (result,) = inferencer(picture())
    assert result.size == (60, 90) and result.network_size == NETWORK_SIZE and result.error is None
    found = {task: (value.shape, value.dtype.name) for task, value in result.predictions.items()}
    assert found == dict(
        semseg=((60, 90), 'int64'),
        edge=((60, 90), 'float32'),
        depth=((1, 60, 90), 'float32'),
        normal=((3, 60, 90), 'float32'),
        kind=((4,), 'float32'),
        pose=((3,), 'float32'),
    )
    assert len(np.unique(result.predictions['semseg'])) > 1
    assert np.allclose(np.linalg.norm(result.predictions['normal'], axis=0), 1, atol=1e-5)
    assert result.predictions['kind'].sum() == pytest.approx(1, abs=1e-6)
    assert 0 <= result.predictions['edge'].min() < result.predictions['edge'].max() <= 1


def test_logits_and_not_labels_are_resized_about_pixel_centres(inferencer):
    """Against the pieces put together by hand, without the inferencer's pipeline."""
    array = picture((60, 90))
    small = cv2.resize(array.astype(np.float32) / 255, NETWORK_SIZE[::-1], interpolation=cv2.INTER_AREA)
    inputs = (torch.from_numpy(small.transpose(2, 0, 1)) - 0.5) / 0.25
    model = inferencer.model
    with torch.no_grad():
        z = model.encoder(inputs[None])
        raw = {task: head(z, NETWORK_SIZE) for task, head in model.heads.items()}
    large = {
        task: F.interpolate(raw[task], (60, 90), mode='bilinear', align_corners=False)[0]
        for task in ('semseg', 'edge', 'depth', 'normal')
    }
    found = inferencer(array)[0].predictions
    assert np.array_equal(found['semseg'], large['semseg'].argmax(0))
    assert np.allclose(found['edge'], large['edge'][0].sigmoid(), atol=1e-5)
    assert np.allclose(found['depth'], large['depth'], atol=1e-5)
    assert np.allclose(found['normal'], F.normalize(large['normal'], dim=0), atol=1e-5)
    assert np.allclose(found['kind'], raw['kind'][0].softmax(0), atol=1e-6)
    assert np.allclose(found['pose'], raw['pose'][0], atol=1e-6)


def test_at_the_networks_own_size_it_is_what_the_model_predicts(inferencer):
    array = picture(NETWORK_SIZE)
    inputs = torch.from_numpy(array.astype(np.float32).transpose(2, 0, 1) / 255)
    with torch.no_grad():
        (sample,) = inferencer.model.test_step(dict(inputs=[inputs], data_samples=[MultiTaskDataSample()]))
    expected = {task: value.numpy() for task, value in sample.predictions.items()}
    found = inferencer(array)[0].predictions
    assert all(np.allclose(found[task], expected[task], atol=1e-6) for task in expected)
    assert np.array_equal(found['semseg'], expected['semseg'])


def test_a_prediction_does_not_depend_on_its_batch(inferencer, run):
    arrays = [picture(size, seed) for seed, size in enumerate([(60, 90), (40, 30), (24, 32), (90, 60), (50, 50)])]
    alone = [inferencer(array)[0] for array in arrays]
    together = inferencer(arrays, batch_size=3)
    assert [result.size for result in together] == [array.shape[:2] for array in arrays]
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.predictions['semseg'], other.predictions['semseg'])
        assert np.allclose(one.predictions['depth'], other.predictions['depth'], atol=1e-5)
    # Without a size of the network, unequal pictures would have to be padded to share a batch.
    free = MultiTaskInferencer(*run, device='cpu')
    free.pipeline.size = None
    mixed = free([arrays[0], arrays[1], arrays[1]], batch_size=3)
    assert [result.network_size for result in mixed] == [(60, 90), (40, 30), (40, 30)]
    assert np.allclose(mixed[1].predictions['depth'], free(arrays[1])[0].predictions['depth'], atol=1e-5)


def test_arrays_files_and_floats_are_the_same_input(inferencer, tmp_path):
    array = picture()
    path = write(tmp_path / 'room.png', array)
    results = inferencer([array, path, str(path), array.astype(np.float64) / 255])
    assert all(same(results[0].predictions, result.predictions) for result in results[1:])
    assert [result.name for result in results] == ['image_000000', 'room', 'room_2', 'image_000003']
    assert np.array_equal(results[1].image, array)


@pytest.mark.parametrize(
    'array, message',
    [
        (np.zeros((4, 4), np.uint8), r'input 0: an array \(4, 4\) uint8, expected'),
        (np.zeros((4, 4, 3), np.int64), 'expected .* uint8 or float'),
        (np.full((4, 4, 3), 200.0), r'float values must be in \[0, 1\]'),
        (np.full((4, 4, 3), np.nan), r'float values must be in \[0, 1\]'),
    ],
)
def test_an_array_that_is_no_picture_is_refused(inferencer, array, message):
    with pytest.raises(ValueError, match=message):
        inferencer(array)


def test_an_output_that_is_not_finite_is_named(run, lines):
    broken = MultiTaskInferencer(*run, device='cpu')
    with torch.no_grad():
        broken.model.heads['depth'].decoder.layers[-1].bias.fill_(float('nan'))
    broken(picture())
    assert lines == ["array 0: the network output of task 'depth' is not finite"]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_are_read_back_by_the_readers_of_the_data_sets(inferencer, tmp_path):
    array, out = picture(), tmp_path / 'out'
    (result,) = inferencer(write(tmp_path / 'room.v1.png', array), out_dir=out)
    assert {name: str(path.relative_to(out)) for name, path in result.files.items()} == dict(
        semseg='semseg/room.v1.png',
        edge='edge/room.v1.png',
        depth='depth/room.v1.png',
        normal='normal/room.v1.png',
        json='room.v1.json',
        visualization='visualization/room.v1.png',
    )
    files = {name: str(path) for name, path in result.files.items()}
    labels = result.predictions['semseg']
    assert np.array_equal(readers.read_picture_indices(files['semseg']), labels)
    colours = np.array(TARGETS['semseg']['palette'], np.uint8)[labels]
    assert np.array_equal(np.asarray(Image.open(files['semseg']).convert('RGB')), colours)
    header = Path(files['semseg']).read_bytes()
    assert (header[24], header[25]) == (8, 3), 'bits of a pixel and colour type (palette) of a PNG'
    assert np.abs(readers.read_picture_depth(files['depth']) - result.predictions['depth'][0]).max() < 0.00051
    normal = readers.read_picture_normal(files['normal']).transpose(2, 0, 1)
    assert (normal * result.predictions['normal']).sum(0).min() > np.cos(np.radians(1))
    grey = np.asarray(Image.open(files['edge']))
    assert grey.dtype == np.uint8 and np.abs(grey / 255 - result.predictions['edge']).max() <= 0.5 / 255 + 1e-6
    told = json.loads(result.files['json'].read_text())
    assert told['size'] == [60, 90] and told['network_size'] == [24, 32] and told['source'].endswith('room.v1.png')
    kinds = told['tasks']['kind']
    best = int(result.predictions['kind'].argmax())
    assert kinds['class'] == TARGETS['kind']['classes'][best]
    assert kinds['probabilities']['bath'] == pytest.approx(float(result.predictions['kind'][2]))
    assert told['tasks']['pose']['values']['roll'] == pytest.approx(float(result.predictions['pose'][2]))
    assert sum(told['tasks']['semseg']['share_of_pixels'].values()) == pytest.approx(1)
    sample = MultiTaskDataSample()
    for task, value in result.predictions.items():
        sample.set_prediction(task, torch.from_numpy(value))
    sheet = task_sheet(array, sample, inferencer.targets_meta, inferencer.head_targets, title=result.source)
    assert np.array_equal(np.asarray(Image.open(files['visualization'])), sheet)


def written(tmp_path, inferencer, value, **meta) -> tuple[Path, dict]:
    """The file of a depth prediction and what the JSON file says of it."""
    (result,) = inferencer(picture(NETWORK_SIZE))
    result.predictions = dict(depth=np.asarray(value, np.float32))
    writer = ResultWriter(tmp_path, dict(depth=dict(kind='depth', **meta)), dict(depth='depth'), 'x.pth')
    files = writer.write(result)
    return files['depth'], json.loads(files['json'].read_text())['tasks']['depth']


def test_depth_that_millimetres_of_16_bits_cannot_hold_is_invalid_and_counted(inferencer, tmp_path):
    values = [[[-1.0, 0.0, 0.0004, 0.001], [65.535, 65.536, np.nan, np.inf]]]
    path, told = written(tmp_path, inferencer, values)
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tolist() == [[0, 0, 0, 1], [65535, 0, 0, 0]]
    assert told['pixels_without_depth'] == 6


def test_inverse_depth_stays_in_its_own_unit(inferencer, tmp_path):
    path, told = written(tmp_path, inferencer, [[[0.25, 0.5]]], inverse=True)
    assert path.suffix == '.npy' and np.load(path).tolist() == [[0.25, 0.5]]
    assert 'millimetres' not in told['holds']


# ---- folders, damaged images, videos ---------------------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    write(folder / 'a.png', picture(seed=1))
    write(folder / 'b.jpg', picture(seed=2))
    (folder / 'c.jpg').write_bytes((folder / 'b.jpg').read_bytes()[:300])
    (folder / 'd.png').write_bytes(b'no picture')
    (folder / 'notes.txt').write_text('not an image')
    write(folder / 'e.png', picture((30, 70), seed=3))
    write(folder / 'e.bmp', picture((20, 50), seed=4))
    return folder


def test_a_damaged_image_is_reported_and_the_rest_continue(inferencer, tmp_path, lines):
    folder = make_folder(tmp_path / 'in')
    results = inferencer(folder, batch_size=2, out_dir=tmp_path / 'out')
    assert [Path(result.source).name for result in results] == ['a.png', 'b.jpg', 'c.jpg', 'd.png', 'e.bmp', 'e.png']
    failed = [result for result in results if result.error]
    assert [result.name for result in failed] == ['c', 'd'] and not any(r.predictions or r.files for r in failed)
    assert len(lines) == 3 and lines[0].startswith(f'{folder / "c.jpg"}: ')
    assert lines[1].startswith(f'{folder / "d.png"}: cannot be read as an image')
    assert lines[2].endswith('2 of 6 inputs failed')
    alone = inferencer(folder / 'e.png')[0]
    assert np.allclose(alone.predictions['depth'], results[-1].predictions['depth'], atol=1e-5)
    names = sorted(path.name for path in (tmp_path / 'out/depth').iterdir())
    assert names == ['a.png', 'b.png', 'e.png', 'e_2.png']


def test_the_tool_ends_with_status_1_where_an_input_failed(run, tmp_path):
    folder = make_folder(tmp_path / 'in')
    command = [sys.executable, ROOT / 'tools/infer.py', run[0], folder, tmp_path / 'missing.png']
    command += ['--checkpoint', run[1], '--out-dir', tmp_path / 'out', '--batch-size', '2', '--device', 'cpu']
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1, result.stderr
    assert '4 predicted, 3 failed' in result.stdout and '7/7' in result.stdout
    assert f'failed: {tmp_path / "missing.png"}: there is no such file' in result.stdout
    assert len(list((tmp_path / 'out/visualization').iterdir())) == 4


def test_what_cannot_be_predicted_on_is_refused(inferencer, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    with pytest.raises(ValueError, match='there is no image in this folder'):
        inferencer(folder)
    with pytest.raises(ValueError, match='the list of inputs is empty'):
        inferencer([])
    write(folder / 'a.png', picture())
    with pytest.raises(ValueError, match='is the folder of the inputs'):
        inferencer(folder, out_dir=folder)
    with pytest.raises(ValueError, match='batch_size=0 must be at least 1'):
        inferencer(folder, batch_size=0)


def test_a_video_is_its_frames_and_its_result_is_a_video(inferencer, tmp_path):
    frames = [picture((48, 64), seed) for seed in range(5)]
    path = write_video(tmp_path / 'clip.avi', frames)
    results = inferencer(path, batch_size=2, out_dir=tmp_path / 'out')
    assert [result.name for result in results] == [f'clip/{number:06d}' for number in range(5)]
    read = [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in read_frames(path)]
    # Not equal, since the codec stores colours at half the size.
    assert all(np.abs(a.astype(int) - b).mean() < 3 for a, b in zip(frames, read, strict=True))
    for result, expected in zip(results, inferencer(read), strict=True):
        assert np.allclose(result.predictions['depth'], expected.predictions['depth'], atol=1e-5)
    assert readers.read_picture_depth(str(tmp_path / 'out/depth/clip/000003.png')).shape == (48, 64)
    assert results[0].files['visualization'] == tmp_path / 'out/visualization/clip.mp4'
    sheets = cv2.VideoCapture(str(results[0].files['visualization']))
    assert len(read_frames(results[0].files['visualization'])) == 5
    assert sheets.get(cv2.CAP_PROP_FPS) == pytest.approx(10)


def test_a_video_that_ends_early_is_a_failure(inferencer, tmp_path):
    whole = write_video(tmp_path / 'whole.avi', [picture((48, 64), seed) for seed in range(40)], 'MJPG')
    data = whole.read_bytes()
    (tmp_path / 'cut.avi').write_bytes(data[: len(data) // 2])
    results = inferencer(tmp_path / 'cut.avi')
    assert 5 < len(results) < 40 and results[-1].error.startswith('the video ends after ')
    assert all(result.error is None for result in results[:-1])
    (tmp_path / 'none.mp4').write_bytes(b'no video')
    (failed,) = inferencer(tmp_path / 'none.mp4')
    assert failed.error == 'cannot be read as a video'
    assert find_inputs(whole)[0].count == 40
