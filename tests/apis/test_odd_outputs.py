"""Output folders, devices and options that cannot be, in infer and in the other tools."""

import os
import runpy

import numpy as np
import pytest
import torch

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.apis.result_files import ResultWriter
from mmrepmtl.apis.sheet_video import SheetVideo
from mmrepmtl.utils.device import resolve_device
from mmrepmtl.utils.files import TEMPORARY
from tests.apis.harness import read_frames
from tests.apis.odd_files import contents, make_odd_files, save
from tests.apis.toy import ROOT, picture

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
        # Before the model is looked for, let alone run.
        (
            [path, '--size', 10**6, 10**6, '--checkpoint', tmp_path / 'missing.pth'],
            'size=(1000000, 1000000) are 1000000000000 pixels, at most max_pixels=50000000 are taken',
        ),
        ([path, '--size', 24, 32, '--max-pixels', 767], 'size=(24, 32) are 768 pixels'),
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


def test_what_a_killed_run_left_is_swept_and_what_a_living_one_writes_is_not(inferencer, tmp_path):
    left = [
        tmp_path / f'visualization/.video.{"0" * 32}{TEMPORARY}.mp4',
        tmp_path / f'visualization/.{"1" * 32}{TEMPORARY}.mp4',
        tmp_path / f'visualization/clip/.000001.png.{"2" * 32}{TEMPORARY}',
        tmp_path / f'depth/.x.png.{"3" * 32}{TEMPORARY}',
        tmp_path / f'.x.json.{"4" * 32}{TEMPORARY}',
    ]
    others = [tmp_path / f'visualization/.mine{TEMPORARY}.mp4', tmp_path / 'visualization/old.mp4']
    for path in (*left, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    video = SheetVideo(tmp_path / 'visualization', 'living', fps=5)
    assert video.write(np.zeros((32, 48, 3), np.uint8))
    writer = ResultWriter(tmp_path, inferencer.targets_meta, inferencer.head_targets, 'x.pth')
    writer.prepare([], videos=['clip'])
    assert [path for path in left if path.exists()] == [] and all(path.exists() for path in others)
    assert video.write(np.zeros((32, 48, 3), np.uint8))
    video.close()
    assert len(read_frames(tmp_path / 'visualization/living.mp4')) == 2
    assert sorted(os.listdir(tmp_path / 'visualization')) == [f'.mine{TEMPORARY}.mp4', 'clip', 'living.mp4', 'old.mp4']


# ---- the other tools -------------------------------------------------------------------------------------------------


def test_the_demo_takes_and_refuses_the_same_files(tmp_path):
    from mmrepmtl.demo.page import read_upload

    good, reasons = make_odd_files(tmp_path / 'in')
    for name in good:
        picture, _ = read_upload(os.fsdecode(os.path.join(os.fsencode(tmp_path / 'in'), name)), 'mine')
        assert picture.dtype == np.uint8 and picture.ndim == 3 and max(picture.shape) <= 1024
    for name in reasons:
        with pytest.raises(ValueError, match='^mine( cannot be read as an image|: .* pixels; at most 50 million)'):
            read_upload(tmp_path / 'in' / name, 'mine')


@pytest.mark.parametrize('shape', [(3000, 1, 3), (1, 3000, 3), (1, 1, 3)])
def test_the_demo_shows_extreme_shapes(inferencer, tmp_path, shape):
    from mmrepmtl.demo.page import Demo

    path = save(tmp_path / 'x.png', np.full(shape, 99, np.uint8))
    answer = Demo(inferencer)(path, 'x.png')
    assert all(max(panel.picture.shape) <= 4096 for panel in answer.predictions.values())


def test_an_export_that_cannot_be_written_is_refused_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    from mmrepmtl.deployment import export

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
    from mmrepmtl.inspection.browse import browse_dataset

    cfg = load_config(ROOT / 'tests/tools/tiny.py')
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='cannot be written to, since .*file is a file'):
        browse_dataset(cfg, tmp_path / 'file/x.png')
    with pytest.raises(ValueError, match='does not end like a picture'):
        browse_dataset(cfg, tmp_path / 'x.txt')
