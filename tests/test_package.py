"""The package outside its repository: what wheel and source distribution hold, and how the wheel works elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ('mmrepmtl', 'configs', 'requirements', 'tests', 'tools', 'docs', 'projects')
FILES = ('mmrepmtl_cli.py', 'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE')

pytestmark = pytest.mark.slow


def build(tree: Path, kind: str, out: Path) -> Path:
    """Builds a 'wheel' or 'sdist' as pip does, with the setuptools that is installed here."""
    code = f'import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))'
    out.mkdir(parents=True, exist_ok=True)
    result = subprocess.run([sys.executable, '-c', code, str(out)], cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return out / result.stdout.splitlines()[-1]


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and source distribution of a copy of the tree: a build leaves files in it."""
    folder = tmp_path_factory.mktemp('built')
    tree = folder / 'tree'
    for name in BUILT_FROM:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    return build(tree, 'wheel', folder / 'dist'), build(tree, 'sdist', folder / 'dist')


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith('RECORD')}


def test_the_wheel_holds_the_package_and_its_configs_and_nothing_else(built):
    found = content(built[0])
    package = [name for name in found if '.dist-info/' not in name]
    code = {str(path.relative_to(ROOT)) for path in (ROOT / 'mmrepmtl').rglob('*.py') if 'configs' not in path.parts}
    configs = {str(path.relative_to(ROOT / 'configs')) for path in (ROOT / 'configs').rglob('*.py')}
    assert len(configs) > 60
    published = {str(path.relative_to(ROOT)) for path in (ROOT / 'mmrepmtl/comparison/paper').glob('*.csv')}
    assert len(published) == 7
    expected = code | published | {'mmrepmtl_cli.py', 'mmrepmtl/py.typed', 'mmrepmtl/.mim/model-index.yml'}
    expected |= {f'mmrepmtl/{folder}/{name}' for folder in ('.mim/configs', 'configs') for name in configs}
    assert set(package) == expected
    for name in configs:
        assert found[f'mmrepmtl/.mim/configs/{name}'] == (ROOT / 'configs' / name).read_bytes()


def test_the_source_distribution_builds_the_same_wheel(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter='data')
        names = [name.partition('/')[2] for name in archive.getnames()]
    assert {'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'requirements/runtime.txt'} <= set(names)
    assert not [name for name in names if name.split('/')[0] in ('tests', 'tools', 'docs', 'projects')]
    (tree,) = tmp_path.iterdir()
    assert content(build(tree, 'wheel', tmp_path / 'dist')) == content(wheel)


@pytest.fixture(scope='module')
def environment(built, tmp_path_factory) -> Path:
    """The ``bin`` of an environment with the wheel; the packages that it needs are those of this interpreter."""
    folder = tmp_path_factory.mktemp('env')
    venv.create(folder, with_pip=False)
    python = folder / 'bin' / 'python'
    ask = 'import sysconfig; print(sysconfig.get_paths()["purelib"])'
    own = subprocess.run([python, '-c', ask], capture_output=True, text=True, check=True).stdout.strip()
    # A plain path: files .pth in that folder, such as that of an editable mmrepmtl, are not followed.
    (Path(own) / 'packages.pth').write_text(sysconfig.get_paths()['purelib'] + '\n')
    command = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index']
    subprocess.run([*command, '--force-reinstall', built[0]], check=True)
    return folder / 'bin'


def run(command: list, folder: Path) -> str:
    """The output of a command in a folder outside the repository."""
    settings = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'} | dict(OMP_NUM_THREADS='1')
    result = subprocess.run([str(part) for part in command], cwd=folder, env=settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


TRIAL = """
import json
import sys
from pathlib import Path

import mmrepmtl
import torch
from mmrepmtl.apis import available_configs, load_config
from mmrepmtl.cli import main

torch.set_num_threads(1)
tiny = ['model.encoder.name=test_resnet', 'model.encoder.pretrained=False', 'model.encoder.model_args=None']
tiny += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
for split in ('train', 'val', 'test'):
    tiny += [f'{split}_dataloader.dataset.size=(24,32)', f'{split}_dataloader.dataset.num_samples=4']
    tiny += [f'{split}_dataloader.{key}' for key in ('batch_size=2', 'num_workers=0', 'persistent_workers=False')]
train = ['--cfg-options', *tiny]
assert main(['train', 'synth_rooms/quickstart', '--method', 'ew', '--work-dir', 'ew', *train]) == 0
assert main(['train', 'own.py', '--method', 'uw', '--regularizer', 'rep-mtl', '--work-dir', 'own', *train]) == 0
pictures = ['--split', 'train', '--num', '2', '--out', 'sheet.png', '--cfg-options', *tiny]
assert main(['browse', 'own.py', *pictures]) == 0
assert main(['infer', 'ew', 'sheet.png', '--out-dir', 'predictions']) == 0
options = ['--no-constant', '--work-dir', 'test', '--cfg-options', *tiny, 'experiment_name=test']
assert main(['test', 'synth_rooms/quickstart', 'ew/epoch_1.pth', *options]) == 0
cfg = mmrepmtl.get_config('synth_rooms/quickstart')
new = load_config('new_style.py')
print('RESULT', json.dumps(dict(
    package=mmrepmtl.__file__,
    names=available_configs(),
    own=json.loads(Path('own/metrics.json').read_text())['meta']['objective'],
    encoder=cfg.model.encoder.name,
    new=[new.train_dataloader.dataset.type, new.default_hooks.logger.type, new.train_dataloader.batch_size],
)))
"""


def test_train_infer_and_test_work_outside_the_repository(environment, tmp_path):
    (tmp_path / 'trial.py').write_text(TRIAL)
    (tmp_path / 'own.py').write_text(
        "_base_ = 'mmrepmtl::synth_rooms/quickstart.py'\ntrain_dataloader = dict(batch_size=2)"
    )
    (tmp_path / 'new_style.py').write_text(
        'from mmengine.config import read_base\n\nwith read_base():\n'
        '    from mmrepmtl.configs._base_.datasets.synth_rooms_96x128 import *\n'
        '    from mmrepmtl.configs._base_.default_runtime import *\n\n'
        'from mmrepmtl.models import MultiTaskModel\n\nmodel = dict(type=MultiTaskModel)\n'
        'train_dataloader.update(batch_size=3)\noptim_wrapper = dict()\n'
    )
    printed = run([environment / 'python', 'trial.py'], tmp_path)
    found = json.loads(next(line for line in printed.splitlines() if line.startswith('RESULT')).partition(' ')[2])
    assert Path(found['package']).is_relative_to(environment.parent)
    assert 'synth_rooms/quickstart' in found['names'] and not any('_base_' in name for name in found['names'])
    assert 'UncertaintyWeighting' in found['own'] and 'RepMTL' in found['own']
    assert found['encoder'] == 'tf_efficientnet_lite0' and found['new'] == ['SynthRoomsDataset', 'LoggerHook', 3]
    assert (tmp_path / 'predictions' / 'sheet.json').is_file() and (tmp_path / 'test' / 'test_metrics.json').is_file()


def test_the_console_command_and_the_module_are_one(environment, tmp_path):
    help_text = run([environment / 'mmrepmtl', '--help'], tmp_path)
    assert 'quickstart' in help_text and 'usage: mmrepmtl COMMAND' in help_text
    listed = run([environment / 'mmrepmtl', 'methods'], tmp_path)
    names = {path.stem for path in (ROOT / 'configs/_base_/methods').glob('*.py')}
    assert {line.split()[0] for line in listed.splitlines()} == names
    assert run([environment / 'python', '-m', 'mmrepmtl', 'methods'], tmp_path) == listed
