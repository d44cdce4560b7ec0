"""No input ends a run, none is overwritten, and what could not be done is named."""

import importlib.util
import json
import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.apis.inputs import LONGEST_NAME, find_inputs, result_name
from mmrepmtl.apis.result_files import ResultWriter
from mmrepmtl.utils.device import resolve_device
from mmrepmtl.utils.text import one_line
from tests.apis.odd_files import encode, make_odd_files
from tests.apis.test_inferencer import read_frames, write_video
from tests.apis.toy import ROOT, picture

TASKS = ('semseg', 'edge', 'depth', 'normal')


@pytest.fixture(scope='module')
def inferencer(run) -> MultiTaskInferencer:
    return MultiTaskInferencer(*run, device='cpu')


@pytest.fixture(scope='module')
def tool(run) -> Callable[..., int]:
    """``tools/infer.py`` in this process, with the model of the tests."""
    spec = importlib.util.spec_from_file_location('infer_tool', ROOT / 'tools/infer.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments, device: str | None = 'cpu') -> int:
        device = ['--device', device] if device else []
        command = [run[0], '--checkpoint', run[1], *device, *arguments]
        return module.main([str(part) for part in command])

    return call


def save(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture() if array is None else array, {'.jpg': 'JPEG'}.get(path.suffix.lower(), 'PNG')))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# ---- a folder of everything ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_of_a_hundred_odd_files(tool, tmp_path, capfd):
    good, reasons = make_odd_files(tmp_path / 'in')
    assert len(good) + len(reasons) > 100
    status = tool(tmp_path / 'in', '--out-dir', tmp_path / 'out')
    out, err = capfd.readouterr()
    assert status == 1
    assert f'{len(good)} predicted, {len(reasons)} failed' in out
    failed = dict(re.findall(rf'^failed: {re.escape(str(tmp_path / "in"))}/([^:]*?): (.*)$', out, re.MULTILINE))
    assert failed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in failed[name], name
    # One line for each in the log and none loose from a decoder; no control characters on a terminal.
    assert not re.search(r'^(Corrupt|libpng|TIFF|\[)', err, re.MULTILINE) and '\x1b[31m' not in out + err
    told = [json.loads(path.read_text()) for path in (tmp_path / 'out').glob('*.json')]
    told += [json.loads(path.read_text()) for path in (tmp_path / 'out').glob('.*.json')]
    assert {os.path.basename(os.fsencode(summary['source'])) for summary in told} == good
    files = {summary['tasks'][task]['file'] for summary in told for task in TASKS}
    assert len(files) == len(TASKS) * len(good) and all((tmp_path / 'out' / file).is_file() for file in files)
    for summary in told:
        with Image.open(tmp_path / 'out' / summary['tasks']['depth']['file']) as depth:
            assert [depth.height, depth.width] == summary['size']
    turned = {s['source'][-5]: s['size'] for s in told if 'turned' in s['source']}
    assert turned == {str(number): [40, 30] if number > 4 else [30, 40] for number in range(1, 9)}
    notes = {os.path.basename(s['source']): s.get('notes') for s in told}
    assert '8-bit' in notes['16 bit small.png'][0] and '12-bit' in notes['16 bit of 12.png'][0]
    assert 'first of the 2' in notes['animated.png'][0] and notes['16 bit.png'] is None
    assert list((tmp_path / 'out').rglob('*.tmp*')) == []


def test_a_16_bit_picture_with_small_values_is_predicted_as_its_8_bit_twin(inferencer, tmp_path):
    array = np.repeat(picture()[..., :1], 3, 2)
    twin = save(tmp_path / 'twin.png', array)
    wide = tmp_path / 'wide.png'
    wide.write_bytes(cv2.imencode('.png', array.astype(np.uint16))[1].tobytes())
    one, other = inferencer([twin, wide])
    assert np.array_equal(one.image, other.image) and other.notes and not one.notes
    assert np.allclose(one.predictions['depth'], other.predictions['depth'], atol=1e-5)


def test_the_limit_of_pixels_is_a_setting(run, inferencer, tmp_path, tool, capsys):
    path = save(tmp_path / 'a.png')
    small = MultiTaskInferencer(*run, device='cpu', max_pixels=60 * 90 - 1)
    assert small(path)[0].error.startswith('90 x 60 pixels, at most 5399 pixels are taken')
    assert inferencer(path)[0].error is None
    assert tool(path, '--out-dir', tmp_path / 'out', '--max-pixels', 5399) == 1
    assert '0 predicted, 1 failed' in capsys.readouterr().out
    assert tool(path, '--out-dir', tmp_path / 'out', '--max-pixels', 0) == 2


def test_a_picture_that_the_network_refuses_fails_alone(run, tmp_path, monkeypatch, lines):
    fragile = MultiTaskInferencer(*run, device='cpu')
    usual = fragile.model.raw_outputs

    def raw_outputs(inputs):
        if (inputs.flatten(1).std(1) == 0).any():
            raise AssertionError('an even picture\nand more')
        return usual(inputs)

    monkeypatch.setattr(fragile.model, 'raw_outputs', raw_outputs)
    arrays = [picture(seed=1), picture() * 0, picture(seed=2)]
    results = fragile(arrays, batch_size=3, out_dir=tmp_path)
    assert [result.error for result in results] == [
        None,
        'cannot be predicted on: AssertionError: an even picture',
        None,
    ]
    assert lines[0] == f'array 1: {results[1].error}' and not results[1].predictions
    for index in (0, 2):
        alone = MultiTaskInferencer(*run, device='cpu')(arrays[index])[0]
        assert np.allclose(alone.predictions['depth'], results[index].predictions['depth'], atol=1e-5)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'names, expected',
    [
        (['x', 'x', 'X', 'x_2'], ['x', 'x_2', 'X_3', 'x_2_2']),
        (['e\u0301', '\xe9'], ['e\u0301', '\xe9_2']),  # one name for some file systems
        (['a\nb', 'a\tb', 'a\udcffb'], ['a_b', 'a_b_2', 'a_b_3']),
        (['.', '..', ''], ['_', '__', '']),
    ],
)
def test_names_of_results_are_unlike_each_other(names, expected):
    taken: set[str] = set()
    assert [result_name(name, taken) for name in names] == expected


def test_long_names_are_cut_but_stay_apart():
    taken: set[str] = set()
    long = [result_name('漢' * 80 + ending, taken) for ending in 'ab']
    assert len(set(long)) == 2 and all(len(name.encode()) <= LONGEST_NAME + 9 for name in long)
    assert result_name('n' * LONGEST_NAME, taken) == 'n' * LONGEST_NAME


def test_pictures_of_one_name_keep_their_own_results(inferencer, tmp_path):
    paths = [save(tmp_path / name, picture(seed=seed)) for seed, name in enumerate(['a/x.jpg', 'b/x.jpg', 'c/x.png'])]
    paths.append(save(tmp_path / 'd/X.PNG', picture(seed=9)))
    results = inferencer(paths, out_dir=tmp_path / 'out')
    for path, result in zip(paths, results, strict=True):
        summary = json.loads(result.files['json'].read_text())
        assert summary['source'] == str(path)
        with Image.open(result.files['semseg']) as labels:
            assert np.array_equal(np.asarray(labels), result.predictions['semseg'])
    assert len({str(result.files['json']).casefold() for result in results}) == 4


def test_a_video_named_like_a_file_of_results(inferencer, tmp_path):
    save(tmp_path / 'in/a.jpg')
    write_video(tmp_path / 'in/a.png.avi', [picture((48, 64))])
    results = inferencer(tmp_path / 'in', out_dir=tmp_path / 'out')
    assert [result.error for result in results] == [None, None]


def test_one_line():
    assert one_line('a b.png é 漢') == 'a b.png é 漢'
    assert one_line('a\nb\x1b\udcff\u202e') == 'a\\nb\\x1b\\udcff\\u202e'


# ---- inputs are not overwritten --------------------------------------------------------------------------------------


def place(kind: str, tmp_path: Path) -> tuple[list[Path], Path]:
    """Inputs and an out_dir whose results would meet them."""
    out = tmp_path / 'out'
    if kind == 'in TASK':
        return [save(out / 'depth/x.png')], out
    if kind == 'in visualization':
        return [save(out / 'visualization/x.png')], out
    if kind == 'in OUT':
        return [save(out / 'x.png')], out
    if kind == 'a folder':
        return [save(out / 'normal/x.png').parent], out
    if kind == 'a relative path':
        return [Path(os.path.relpath(save(out / 'depth/x.jpg')))], out / 'depth' / '..'
    if kind == 'OUT is a link':
        save(tmp_path / 'real/depth/x.png')
        out.symlink_to(tmp_path / 'real')
        return [tmp_path / 'real/depth/x.png'], out
    if kind == 'TASK is a link':
        path = save(tmp_path / 'in/x.png')
        out.mkdir()
        (out / 'depth').symlink_to(tmp_path / 'in')
        return [path], out
    if kind == 'the input is a link into TASK':
        (tmp_path / 'in').mkdir()
        (tmp_path / 'in/x.png').symlink_to(save(out / 'depth/x.png'))
        return [tmp_path / 'in/x.png'], out
    if kind == 'the input is a link in TASK':
        path = save(tmp_path / 'in/x.png')
        (out / 'depth').mkdir(parents=True)
        (out / 'depth/x.png').symlink_to(path)
        return [out / 'depth/x.png'], out
    if kind == 'a result is a link to the input':
        path = save(tmp_path / 'in/x.png')
        (out / 'depth').mkdir(parents=True)
        (out / 'depth/x.png').symlink_to(path)
        return [path], out
    if kind == 'a result is a hard link of the input':
        path = save(tmp_path / 'in/x.png')
        (out / 'depth').mkdir(parents=True)
        os.link(path, out / 'depth/x.png')
        return [path], out
    if kind == 'a frame of a video':
        return [write_video(tmp_path / 'clip.avi', [picture((48, 64))]), save(out / 'depth/clip/000000.png')], out
    if kind == 'a video among the sheets':
        (out / 'visualization').mkdir(parents=True)
        return [write_video(out / 'visualization/clip.mp4', [picture((48, 64))], 'mp4v')], out
    raise AssertionError(kind)


@pytest.mark.parametrize(
    'kind',
    [
        'in TASK',
        'in visualization',
        'in OUT',
        'a folder',
        'a relative path',
        'OUT is a link',
        'TASK is a link',
        'the input is a link into TASK',
        'the input is a link in TASK',
        'a result is a link to the input',
        'a result is a hard link of the input',
        'a frame of a video',
        'a video among the sheets',
    ],
)
def test_inputs_among_the_results_are_refused_before_anything_is_written(inferencer, tmp_path, kind):
    inputs, out = place(kind, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match='give another out_dir, so that no input is overwritten'):
        inferencer(inputs, out_dir=out)
    assert contents(tmp_path) == before


def test_results_beside_and_below_the_inputs_are_allowed(inferencer, tmp_path):
    path = save(tmp_path / 'in/x.png')
    before = path.read_bytes()
    for _ in range(2):  # a second run replaces the results of the first
        (result,) = inferencer(path.parent, out_dir=path.parent / 'out')
        assert result.error is None and path.read_bytes() == before
    (result,) = inferencer(tmp_path / 'in/out/depth/x.png', out_dir=tmp_path / 'again')
    assert result.error is not None or result.files


# ---- videos ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_and_videos(tool, inferencer, tmp_path, capsys):
    folder = tmp_path / 'in'
    save(folder / 'a.png')
    save(folder / 'clip.png')
    write_video(folder / 'clip.avi', [picture((48, 64), seed) for seed in range(3)])
    write_video(folder / 'wide%03d.avi', [picture((32, 64), seed) for seed in range(2)])
    (folder / 'none.mp4').write_bytes(b'no video')
    (folder / 'empty.mkv').touch()
    assert [source.count for source in find_inputs(folder)] == [1, 3, 1, 1, 1, 2]
    assert tool(folder, '--out-dir', tmp_path / 'out', '--batch-size', 4) == 1
    out = capsys.readouterr().out
    assert '7 predicted, 2 failed' in out, out and out.count('cannot be read as a video') == 2
    sheets = sorted(path.name for path in (tmp_path / 'out/visualization').iterdir())
    assert sheets == ['a.png', 'clip.mp4', 'clip_2.png', 'wide%03d.mp4']
    assert len(read_frames(tmp_path / 'out/visualization/clip.mp4')) == 3


@pytest.mark.parametrize('code, ending', [('mp4v', 'mp4'), ('MJPG', 'avi'), ('FFV1', 'avi'), ('mp4v', 'mkv')])
def test_a_video_that_is_damaged_inside_is_named(inferencer, tmp_path, capfd, code, ending):
    path = write_video(tmp_path / f'clip.{ending}', [picture((48, 64), seed) for seed in range(40)], code)
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 300] = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    *frames, last = inferencer(path)
    assert frames and all(result.error is None for result in frames)
    assert re.match('the video (is damaged near frame|ends after) ', last.error)
    assert ' @ 0x' not in capfd.readouterr().err


def test_a_video_turned_by_its_header(inferencer, tmp_path):
    path = write_video(tmp_path / 'clip.mp4', [picture((48, 64), seed) for seed in range(3)], 'mp4v')
    content = bytearray(path.read_bytes())
    place = content.index(b'tkhd') + 4 + 40  # the matrix of a version 0 header
    turn = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    content[place : place + 36] = b''.join(number.to_bytes(4, 'big', signed=True) for number in turn)
    path.write_bytes(content)
    assert [result.size for result in inferencer(path)] == [(64, 48)] * 3


def test_a_video_whose_name_is_no_text(inferencer, tmp_path):
    path = write_video(tmp_path / 'clip.avi', [picture((48, 64))])
    odd = os.path.join(os.fsencode(tmp_path), b'cl\xffip\n.avi')
    os.rename(path, odd)
    (result,) = inferencer(os.fsdecode(odd), out_dir=tmp_path / 'out')
    assert result.error is None and result.files['visualization'].name == 'cl_ip_.mp4'


def test_frames_that_are_too_large(run, tmp_path):
    path = write_video(tmp_path / 'clip.avi', [picture((48, 64))])
    (result,) = MultiTaskInferencer(*run, device='cpu', max_pixels=3000)(path)
    assert result.error == 'frames of 64 x 48 pixels, at most 3000 pixels are taken'


def test_a_long_video_holds_one_batch(inferencer, tmp_path):
    """All frames but those of the batch that is worked on are gone: nothing refers to them any more."""
    import gc
    import weakref

    path = write_video(tmp_path / 'clip.avi', [picture((48, 64), seed % 5) for seed in range(30)], 'MJPG')
    alive = []
    for result in inferencer.stream(path, batch_size=4, out_dir=tmp_path / 'out'):
        alive.append(weakref.ref(result.image))
        gc.collect()
        assert sum(reference() is not None for reference in alive) <= 9
    assert len(alive) == 30


def test_sheets_go_into_pictures_where_opencv_writes_no_video(inferencer, tmp_path, monkeypatch):
    path = write_video(tmp_path / 'clip.avi', [picture((48, 64), seed) for seed in range(2)])

    class NoWriter:
        def __init__(self, *_):
            pass

        def isOpened(self):
            return False

    monkeypatch.setattr('mmrepmtl.apis.sheet_video.cv2.VideoWriter', NoWriter)
    results = inferencer(path, out_dir=tmp_path / 'out')
    assert all(result.error is None and result.files['visualization'].is_file() for result in results)


# ---- the output folder -----------------------------------------------------------------------------------------------


def test_an_output_folder_that_cannot_be_is_refused_in_one_line(tool, tmp_path, capsys):
    path = save(tmp_path / 'in/x.png')
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere/at/all')
    (tmp_path / 'part').mkdir()
    (tmp_path / 'part/depth').write_text('mine')
    outs = [tmp_path / 'file', tmp_path / 'file/below', tmp_path / 'part', '/proc/none', tmp_path / ('x' * 300)]
    for out in outs:
        assert tool(path, '--out-dir', out) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith('infer: error: ') and printed.err.count('\n') == 1, printed.err
        assert 'cannot be written to' in printed.err and str(out) in printed.err
    assert (tmp_path / 'file').read_text() == (tmp_path / 'part/depth').read_text() == 'mine'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_output_folder(tool, tmp_path, capsys):
    path = save(tmp_path / 'in/x.png')
    (tmp_path / 'out').mkdir(mode=0o555)
    assert tool(path, '--out-dir', tmp_path / 'out') == 2
    assert 'cannot be written to: Permission denied' in capsys.readouterr().err


def test_a_disk_that_fills_up_ends_the_run_in_one_line_with_whole_results(tool, tmp_path, capsys, monkeypatch):
    for number in range(4):
        save(tmp_path / f'in/{number}.png', picture(seed=number))
    writes = []

    def full(path, picture):
        writes.append(path)
        if len(writes) == 8:  # in the middle of the second picture
            raise OSError(28, 'No space left on device')
        return usual(path, picture)

    import mmrepmtl.apis.result_files as module

    usual = module.write_picture
    monkeypatch.setattr(module, 'write_picture', full)
    assert tool(tmp_path / 'in', '--out-dir', tmp_path / 'out') == 1
    printed = capsys.readouterr()
    assert printed.err.count('\n') == 1 and 'No space left on device' in printed.err
    assert 'stopped after 1 of 4, whose files are whole' in printed.err and '1 predicted, 0 failed' in printed.out
    left = sorted(str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*') if path.is_file())
    assert left == ['0.json', *(f'{name}/0.png' for name in ('depth', 'edge', 'normal', 'semseg', 'visualization'))]


def test_an_interrupted_run_says_how_far_it_came(tool, tmp_path, capsys, monkeypatch):
    usual = MultiTaskInferencer._prepare

    def interrupted(self, picture):
        if picture.name == '2':
            raise KeyboardInterrupt
        return usual(self, picture)

    monkeypatch.setattr(MultiTaskInferencer, '_prepare', interrupted)
    for number in range(4):
        save(tmp_path / f'in/{number}.png')
    assert tool(tmp_path / 'in', '--out-dir', tmp_path / 'out') == 130
    assert 'stopped after 1 of 4, whose files are whole: interrupted' in capsys.readouterr().err
    assert not [path for path in contents(tmp_path / 'out') if '.tmp' in path]


def test_a_result_that_cannot_be_written_fails_alone(inferencer, tmp_path):
    (tmp_path / 'out/depth/x.png').mkdir(parents=True)
    paths = [save(tmp_path / f'{name}.png') for name in 'axz']
    results = inferencer(paths, out_dir=tmp_path / 'out')
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].error.startswith('its results cannot be written: ')
    assert not (tmp_path / 'out/x.json').exists() and not (tmp_path / 'out/semseg/x.png').exists()


# ---- usage -----------------------------------------------------------------------------------------------------------


def test_wrong_usage_is_one_line_and_status_2(tool, tmp_path, capsys):
    (tmp_path / 'none').mkdir()
    path = save(tmp_path / 'in/x.png')
    for arguments, message in [
        ([tmp_path / 'none'], 'there is no image in this folder'),
        ([path, '--batch-size', 0], 'batch_size=0 must be at least 1'),
        ([path, '--size', 0, 5], ''),
        ([path, '--out-dir', path.parent], 'is the folder of the inputs'),
        ([path, '--checkpoint', tmp_path / 'missing.pth'], 'missing.pth'),
    ]:
        assert tool('--out-dir', tmp_path / 'out', *arguments) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count('\n') == 1 and printed.err.startswith('infer: error: ')
    assert not (tmp_path / 'out').exists()


def test_a_missing_input_is_a_failure_and_the_rest_goes_on(tool, tmp_path, capsys):
    assert (
        tool(save(tmp_path / 'x.png'), tmp_path / 'gone.png', tmp_path / 'gone.mp4', '--out-dir', tmp_path / 'o') == 1
    )
    out = capsys.readouterr().out
    assert '1 predicted, 2 failed' in out and out.count('there is no such file') == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason='the machine has a GPU')
@pytest.mark.parametrize('device', ['cuda', 'cuda:7', 'nonsense', 'mps', 'meta', 'cuda:x', '', 'xpu', 'cpu:3'])
def test_a_device_that_is_not_there_is_one_line(tool, tmp_path, capsys, device):
    assert tool(save(tmp_path / 'x.png'), '--out-dir', tmp_path / 'out', f'--device={device}', device=None) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"infer: error: device '{device}' is ") and printed.err.endswith('has cpu\n')
    with pytest.raises(ValueError, match='device'):
        resolve_device(device)


def test_devices():
    assert resolve_device('cpu') == resolve_device(torch.device('cpu')) == torch.device('cpu')
    assert resolve_device().type in ('cpu', 'cuda')


def test_a_writer_without_preparation_makes_its_folders(inferencer, tmp_path):
    (result,) = inferencer(picture())
    writer = ResultWriter(tmp_path / 'out', inferencer.targets_meta, inferencer.head_targets, 'x.pth')
    assert all(path.is_file() for path in writer.write(result).values())


# ---- the other tools -------------------------------------------------------------------------------------------------


def test_the_demo_takes_and_refuses_the_same_files(tmp_path):
    from mmrepmtl.apis.demo import read_upload

    good, reasons = make_odd_files(tmp_path / 'in')
    for name in good:
        picture, _ = read_upload(os.fsdecode(os.path.join(os.fsencode(tmp_path / 'in'), name)), 'mine')
        assert picture.dtype == np.uint8 and picture.ndim == 3 and max(picture.shape) <= 1024
    for name in reasons:
        with pytest.raises(ValueError, match='^mine( cannot be read as an image|: .* pixels; at most 50 million)'):
            read_upload(tmp_path / 'in' / name, 'mine')


@pytest.mark.parametrize('shape', [(3000, 1, 3), (1, 3000, 3), (1, 1, 3)])
def test_the_demo_shows_extreme_shapes(inferencer, tmp_path, shape):
    from mmrepmtl.apis.demo import Demo

    path = save(tmp_path / 'x.png', np.full(shape, 99, np.uint8))
    answer = Demo(inferencer)(path, 'x.png')
    assert all(max(panel.picture.shape) <= 4096 for panel in answer.predictions.values())


def test_an_export_that_cannot_be_written_is_refused_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    from mmrepmtl.apis import export

    monkeypatch.setattr(export, '_need_packages', lambda: None)
    monkeypatch.setattr(export, 'load_model', lambda *_: pytest.fail('the model was loaded'))
    (tmp_path / 'folder.onnx').mkdir()
    (tmp_path / 'file').write_text('mine')
    for out, message in [
        (tmp_path / 'folder.onnx', 'folder.onnx: is a folder'),
        (tmp_path / 'file/x.onnx', 'cannot be written to, since .*file is a file'),
        ('/proc/none/x.onnx', 'cannot be written to'),
    ]:
        with pytest.raises(ValueError, match=message):
            export.export_onnx(*run, out=out)
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('name', ['show_saliency', 'benchmark_step', 'benchmark_rep_mtl', 'demo'])
@pytest.mark.skipif(torch.cuda.is_available(), reason='the machine has a GPU')
def test_every_tool_refuses_a_device_that_is_not_there(name, run, monkeypatch, capsys):
    path = ROOT / 'tools' / (f'{name}.py' if name == 'demo' else f'analysis_tools/{name}.py')
    monkeypatch.syspath_prepend(path.parent)
    arguments = dict(show_saliency=[*run, 'x.png'], demo=[run[0], '--checkpoint', run[1]]).get(name, [])
    monkeypatch.setattr('sys.argv', [str(part) for part in (path, *arguments, '--device', 'cuda:7')])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name='__main__')
    said = capsys.readouterr().err + str(ended.value.code)
    assert "device 'cuda:7' is not on this machine, which has cpu" in said and 'Traceback' not in said


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    from mmrepmtl.apis import load_config
    from mmrepmtl.apis.browse import browse_dataset

    cfg = load_config(ROOT / 'tests/tools/tiny.py')
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='cannot be written to, since .*file is a file'):
        browse_dataset(cfg, tmp_path / 'file/x.png')
    with pytest.raises(ValueError, match='does not end like a picture'):
        browse_dataset(cfg, tmp_path / 'x.txt')
