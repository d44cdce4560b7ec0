"""A checkpoint that holds code, at each place where a tool takes one: nothing runs, and one line says why."""

import importlib.util
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.utils.payloads import config_text, hostile

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / 'tests/tools/tiny.py'
_numbers = itertools.count()


def call(monkeypatch, tool: str, *arguments) -> object:
    """Runs a tool in this process; returns what it exits with."""
    spec = importlib.util.spec_from_file_location('tool', ROOT / 'tools' / tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
    monkeypatch.setattr('mmrepmtl.cli.demo.serve', lambda *_: None)
    try:
        return module.main()
    except SystemExit as exit_:
        return exit_.code


def options(*more: str) -> list[str]:
    """A name of its own for each run of this process, and one epoch."""
    name = f'experiment_name=hostile_{next(_numbers)}'
    return ['--cfg-options', name, 'train_cfg.max_epochs=1', 'train_dataloader.dataset.num_samples=4', *more]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """The work directory of a run of one epoch."""
    work_dir = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, 'train.py', TINY, '--work-dir', work_dir, *options()) is None
    return work_dir


@pytest.fixture
def evil(trained, tmp_path) -> tuple[Path, Path]:
    """A whole checkpoint of the run with a payload, and the file that the payload writes."""
    content = load_checkpoint(trained / 'epoch_1.pth')
    marker = tmp_path / 'marker'
    encoder = {key[14:]: value for key, value in content['state_dict'].items() if key.startswith('encoder.model.')}
    hostile(tmp_path / 'encoder.pth', marker, state_dict=encoder)
    cv2.imwrite(str(tmp_path / 'picture.png'), np.full((24, 32, 3), 90, np.uint8))
    return hostile(tmp_path / 'evil.pth', marker, **content), marker


def _resume_last(file: Path) -> list:
    work_dir = file.parent / 'work'
    work_dir.mkdir()
    shutil.copy(file, work_dir / 'epoch_1.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_1.pth'))
    return ['train.py', TINY, '--work-dir', work_dir, '--resume', *options()]


def _train(*more: str, **settings: str) -> Callable[[Path], list]:
    def command(file: Path) -> list:
        own = [f'{key}={value.format(file=file)}' for key, value in settings.items()]
        return ['train.py', TINY, '--work-dir', file.parent / 'run', *more, *options(*own)]

    return command


def _init_cfg(**more: str) -> Callable[[Path], list]:
    prefix = {'model.init_cfg.type': 'Pretrained', 'model.init_cfg.checkpoint': '{file}'}
    return _train(**prefix, **{f'model.init_cfg.{key}': value for key, value in more.items()})


COMMANDS: dict[str, Callable[[Path], list]] = {
    'train, load_from': _train(load_from='{file}'),
    'train, resume a path': lambda file: _train('--resume', str(file))(file),
    'train, resume last_checkpoint': _resume_last,
    'train, init_cfg': _init_cfg(),
    'train, init_cfg of a part': _init_cfg(prefix='encoder'),
    'train, encoder': lambda file: _train(**{'model.encoder.checkpoint': str(file.with_name('encoder.pth'))})(file),
    'train, file of timm': lambda file: _train(
        **{
            'model.encoder.pretrained': 'True',
            'model.encoder.model_args.pretrained_cfg_overlay.file': str(file.with_name('encoder.pth')),
        }
    )(file),
    'train, single tasks': lambda file: _train('--method', 'stl', load_from='{file}')(file),
    'test': lambda file: [
        *('test.py', TINY, file, '--work-dir', file.parent / 'run', '--no-constant', *options()),
    ],
    'infer': lambda file: [
        *('infer.py', TINY, file.with_name('picture.png'), '--checkpoint', file, '--out-dir', file.parent / 'out'),
        *('--device', 'cpu'),
    ],
    'demo': lambda file: ['demo.py', TINY, '--checkpoint', file, '--device', 'cpu'],
    'export': lambda file: ['deployment/export.py', TINY, '--checkpoint', file],
    'saliency': lambda file: [
        *('analysis_tools/show_saliency.py', TINY, file, 'val:0,1', '--out', file.parent / 's.png', '--device', 'cpu')
    ],
}


@pytest.mark.parametrize('place', COMMANDS)
def test_a_tool_refuses_code_in_one_line_and_runs_it_only_if_trusted(monkeypatch, capsys, evil, place):
    file, marker = evil
    refusal = call(monkeypatch, *COMMANDS[place](file))
    assert not marker.exists()
    if place == 'export':  # prints its own line
        assert refusal == 1
    else:
        if place == 'infer':
            assert refusal == 2  # nothing was begun
            refusal = capsys.readouterr().err.removesuffix('\n')
        other = {
            'train, encoder': 'encoder.pth',
            'train, file of timm': 'encoder.pth',
            'train, resume last_checkpoint': 'epoch_1.pth',
        }
        named = other.get(place, 'evil.pth')
        assert isinstance(refusal, str) and f'{named} is refused: it holds os.makedirs,' in refusal
        assert '\n' not in refusal and '--trust-checkpoint' in refusal


@pytest.mark.slow
@pytest.mark.parametrize('place', [place for place in COMMANDS if place != 'train, single tasks'])
def test_a_tool_loads_code_if_it_is_trusted(monkeypatch, evil, place):
    file, marker = evil
    command = COMMANDS[place](file)
    command.insert(2, '--trust-checkpoint')
    assert call(monkeypatch, *command) in (None, 0)
    assert marker.exists()


def test_a_last_checkpoint_that_names_another_place_runs_nothing(monkeypatch, evil):
    """Whether it is refused or passed over; the run has no checkpoint of its own."""
    file, marker = evil
    work_dir = file.parent / 'work'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(file))
    call(monkeypatch, 'train.py', TINY, '--work-dir', work_dir, '--resume', *options())
    assert not marker.exists()


def test_the_second_checkpoint_of_show_saliency_is_read_as_the_first(monkeypatch, evil, trained):
    file, marker = evil
    tool = ['analysis_tools/show_saliency.py', TINY, trained / 'epoch_1.pth', 'val:0,1', '--compare', file]
    refusal = call(monkeypatch, *tool, '--out', file.parent / 's.png', '--device', 'cpu')
    assert 'evil.pth is refused: it holds os.makedirs,' in refusal and not marker.exists()


def test_resuming_evaluates_no_config_text_of_the_checkpoint(monkeypatch, trained, tmp_path):
    content, marker = load_checkpoint(trained / 'epoch_1.pth'), tmp_path / 'marker'
    text = config_text(marker)
    content['meta'] |= dict(config=text, cfg=text)
    content['message_hub']['runtime_info']['cfg'] = text
    torch.save(content, tmp_path / 'epoch_1.pth')
    more = options('train_cfg.max_epochs=2')
    outcome = call(
        monkeypatch, 'train.py', TINY, '--work-dir', tmp_path / 'run', '--resume', tmp_path / 'epoch_1.pth', *more
    )
    assert outcome is None and not marker.exists()
    assert (tmp_path / 'run/epoch_2.pth').is_file()
    later = load_checkpoint(tmp_path / 'run/epoch_2.pth')
    assert text not in repr(later['meta']) + repr(later['message_hub']['runtime_info'])
