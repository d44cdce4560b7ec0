"""``mmrepmtl COMMAND``: what it says without torch, and that each command is the function of its tool."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mmrepmtl import cli
from mmrepmtl.apis import available_methods
from mmrepmtl.version import __version__

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    'train': 'train.py',
    'test': 'test.py',
    'infer': 'infer.py',
    'check': 'misc/check_dataset.py',
    'browse': 'misc/browse_dataset.py',
    'saliency': 'analysis_tools/show_saliency.py',
    'analyse': 'analysis_tools/analyse.py',
    'export': 'deployment/export.py',
    'compare': 'compare.py',
    'quickstart': 'quickstart.py',
}


def test_help_and_version_need_no_torch():
    code = (
        'import sys, mmrepmtl_cli\n'
        'statuses = []\n'
        "for argument in ('--help', '--version', 'trian'):\n"
        "    sys.argv = ['mmrepmtl', argument]\n"
        '    statuses.append(mmrepmtl_cli.main())\n'
        "print(statuses, [name for name in ('torch', 'mmengine', 'mmrepmtl', 'numpy') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == '[0, 0, 2] []'
    assert f'mmrepmtl {__version__}' in result.stdout.splitlines()
    for name in cli.COMMANDS:
        assert f'\n  {name} ' in result.stdout
    assert result.stderr == "mmrepmtl: there is no command 'trian'; did you mean train?\n"


def test_without_a_command_it_says_how_and_fails(capsys):
    assert cli.main([]) == 2 and 'usage: mmrepmtl COMMAND' in capsys.readouterr().out
    assert cli.main(['zzz']) == 2 and 'there are train, test, infer' in capsys.readouterr().err


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_each_command_has_its_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, '--help'])
    assert stopped.value.code == 0 and f'usage: mmrepmtl {name}' in capsys.readouterr().out


@pytest.mark.parametrize('name', TOOLS)
def test_a_tool_is_its_command(name):
    assert (
        runpy.run_path(str(ROOT / 'tools' / TOOLS[name]))['main']
        is importlib.import_module(f'mmrepmtl.cli.{name}').main
    )


def test_the_arguments_and_the_exit_status_are_passed_on(monkeypatch):
    given = []
    module = importlib.import_module('mmrepmtl.cli.check')
    monkeypatch.setattr(module, 'main', lambda argv, prog: given.append((argv, prog)) or 1)
    assert cli.main(['check', 'a.py', '--workers', '0']) == 1
    assert given == [(['a.py', '--workers', '0'], 'mmrepmtl check')]


def test_methods_lists_each_overlay_with_its_line(tmp_path, capsys):
    assert cli.main(['methods']) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert sorted(lines) == available_methods() and lines['uw'].startswith('UW, CVPR 2018')
    (tmp_path / '_base_' / 'methods').mkdir(parents=True)
    (tmp_path / '_base_' / 'methods' / 'mine.py').write_text('# What I made.\noptim_wrapper = dict()\n')
    (tmp_path / 'config.py').write_text('')
    assert cli.main(['methods', str(tmp_path / 'config.py')]) == 0
    assert capsys.readouterr().out == 'mine  What I made.\n'
