"""No input ends a run, none is overwritten, and what could not be done is named."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.apis.inputs import LONGEST_NAME, result_name
from mmrepmtl.utils.text import one_line
from tests.apis.harness import write_video
from tests.apis.odd_files import contents, make_odd_files, save
from tests.apis.toy import picture

TASKS = ('semseg', 'edge', 'depth', 'normal')


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
