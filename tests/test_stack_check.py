"""The stack check: what cannot work is named in one line, with a command; what works is left alone."""

import importlib.util
import os
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmrepmtl.utils import stack
from mmrepmtl.utils.stack import Installed, find_problem

FORKS = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmsegmentation': '1.4.2'}
FORKS_REQUIRE = {'onedl-mmcv': ['onedl-mmengine>=0.10.8rc1', 'numpy', 'regex; sys_platform == "win32"']}
UPSTREAM = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmsegmentation': '1.2.2'}
UPSTREAM_REQUIRE = {'mmcv': ['mmengine>=0.3.0', 'addict']}
PAIR = {'torch': '2.14.1', 'torchvision': '0.29.1'}
PAIR_REQUIRES = {'torchvision': ['numpy', 'torch (>=2.14.0)', "gdown (>=4.7.3) ; extra == 'gdown'"]}
OLD_PAIR = {'torch': '2.5.1', 'torchvision': '0.20.1'}
OLD_PAIR_REQUIRES = {'torchvision': ['torch (==2.5.1)']}
INSTALL_PAIR = 'pip install --upgrade torch torchvision'


@pytest.mark.parametrize(
    'installed',
    [
        Installed({}),
        Installed(PAIR, PAIR_REQUIRES),
        Installed(PAIR | FORKS, PAIR_REQUIRES | FORKS_REQUIRE),
        Installed(PAIR | {'torch': '2.15.0'} | FORKS, PAIR_REQUIRES | FORKS_REQUIRE),
        Installed(OLD_PAIR | UPSTREAM, OLD_PAIR_REQUIRES | UPSTREAM_REQUIRE),
        Installed({'torch': '2.5.1+cu124', 'torchvision': '0.20.1+cu124'} | UPSTREAM, OLD_PAIR_REQUIRES),
        Installed({'torch': '2.5.1+cpu', 'torchvision': '0.20.1+cpu'}, OLD_PAIR_REQUIRES),
        Installed({'torch': '2.5.1+cpu', 'torchvision': '0.20.1'}, OLD_PAIR_REQUIRES, ('linux', 'aarch64')),
        Installed({'torch': '2.16.0a0+git1234', 'torchvision': '0.30.0a0'}, {'torchvision': ['torch>=2.14.0']}),
    ],
    ids=['nothing', 'torch-only', 'forks', 'newer-torch', 'upstream', 'cuda-labels', 'cpu-pair', 'arm', 'self-built'],
)
def test_a_stack_that_works_is_left_alone(installed: Installed) -> None:
    assert find_problem(installed) is None


@pytest.mark.parametrize(
    ('installed', 'names', 'install'),
    [
        (
            Installed(PAIR | {'torch': '2.13.0'}, PAIR_REQUIRES),
            ['torchvision 0.29.1 needs torch>=2.14.0', 'torch 2.13.0 is installed'],
            INSTALL_PAIR,
        ),
        (Installed({'torchvision': '0.29.1'}, PAIR_REQUIRES), ['none is installed'], INSTALL_PAIR),
        (
            Installed({'torch': '2.13.0+cpu', 'torchvision': '0.28.0'}, {'torchvision': ['torch (==2.13.0)']}),
            ['torch 2.13.0+cpu is a CPU-only build', 'torchvision 0.28.0', 'torchvision::nms'],
            'pip uninstall -y torch torchvision && pip install',
        ),
        (
            Installed(PAIR | UPSTREAM, PAIR_REQUIRES | UPSTREAM_REQUIRE),
            ['mmengine 0.10.7', 'torch 2.14.1', 'resumed'],
            "pip uninstall -y mmengine mmcv mmcv-lite mmsegmentation && pip install 'mmrepmtl[mm]'",
        ),
        (
            Installed(OLD_PAIR | FORKS | {'mmengine': '0.10.7'}),
            ['onedl-mmengine and mmengine', 'overwrite'],
            'pip uninstall -y onedl-mmengine mmengine && pip install',
        ),
        (
            Installed(FORKS | {'mmcv-lite': '2.1.0'}),
            ['onedl-mmcv and mmcv-lite', 'overwrite'],
            'pip uninstall -y onedl-mmcv mmcv-lite',
        ),
        (Installed(OLD_PAIR | UPSTREAM | {'mmcv': '2.2.0'}), ['mmsegmentation 1.2.2', 'mmcv 2.2.0'], "'mmcv==2.1.0'"),
        (
            Installed({'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'mmsegmentation': '1.2.2'}),
            ['mmsegmentation 1.2.2', 'onedl-mmcv 2.3.6'],
            'pip uninstall -y mmsegmentation && pip install',
        ),
        (
            Installed({'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmsegmentation': '1.2.2'}),
            ['mmsegmentation 1.2.2', 'mmcv-lite 2.1.0', 'mmcv.ops'],
            "pip uninstall -y mmcv-lite && pip install 'mmcv==2.1.0'",
        ),
        (
            Installed({'mmengine': '0.10.7', 'mmcv-full': '1.7.2'}),
            ['mmcv-full 1.7.2', 'mmcv 2 is needed'],
            'pip uninstall -y mmcv-full',
        ),
        (
            Installed({'mmengine': '0.10.7', 'onedl-mmcv': '2.3.6'}, FORKS_REQUIRE),
            ['onedl-mmcv 2.3.6 needs onedl-mmengine>=0.10.8rc1', 'mmengine 0.10.7 is installed'],
            'mmrepmtl[mm]',
        ),
        (Installed({'onedl-mmcv': '2.3.6'}, FORKS_REQUIRE), ['onedl-mmengine', 'none is installed'], 'mmrepmtl[mm]'),
        (Installed({'onedl-mmengine': '0.10.12'}), ['onedl-mmengine 0.10.12 lacks mmcv'], 'mmrepmtl[mm]'),
        (Installed({'mmengine': '0.10.7'}), ['mmengine 0.10.7 lacks mmcv'], 'mmrepmtl[mm-upstream]'),
    ],
    ids=[
        'pair',
        'no-torch',
        'cpu-torch',
        'upstream-resume',
        'two-mmengine',
        'two-mmcv',
        'mmcv-too-new',
        'mixed-mmseg',
        'mmcv-lite',
        'mmcv-1',
        'mixed-mmengine',
        'no-mmengine',
        'no-mmcv',
        'no-mmcv-upstream',
    ],
)
def test_a_stack_that_cannot_work_is_named_in_one_line(installed: Installed, names: list[str], install: str) -> None:
    problem = find_problem(installed)
    assert problem is not None and '\n' not in problem
    for name in names:
        assert name in problem
    assert install in problem


def test_versions_come_from_the_metadata_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    faked = {
        'torch': SimpleNamespace(version='2.13.0', requires=None),
        'torchvision': SimpleNamespace(version='0.29.1', requires=PAIR_REQUIRES['torchvision']),
    }

    def distribution(name: str) -> SimpleNamespace:
        if name not in faked:
            raise metadata.PackageNotFoundError(name)
        return faked[name]

    monkeypatch.setattr(metadata, 'distribution', distribution)
    with pytest.raises(ImportError, match=r'^mmrepmtl: torchvision 0\.29\.1 needs torch>=2\.14\.0, but torch 2\.13\.0'):
        stack.check_versions()
    faked['torch'].version = '2.14.1'
    stack.check_versions()


def fail_import_of(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    def fake_import(wanted: str, package: str | None = None) -> object:
        if wanted == name:
            raise error
        return object()

    monkeypatch.setattr(stack, 'importlib', SimpleNamespace(import_module=fake_import, util=importlib.util))


@pytest.mark.parametrize(
    ('name', 'error', 'says'),
    [
        (
            'cv2',
            ImportError('libGL.so.1: cannot open shared object file: No such file or directory'),
            r'libGL\.so\.1.*pip uninstall -y opencv-python && pip install .*opencv-python-headless',
        ),
        ('cv2', ModuleNotFoundError("No module named 'cv2'"), "No module named 'cv2'.*opencv-python-headless"),
        (
            'torchvision',
            RuntimeError('operator torchvision::nms does not exist\nmore lines'),
            r'torchvision::nms does not exist\): pip install --upgrade torch torchvision',
        ),
    ],
)
def test_imports_that_metadata_cannot_foretell(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, says: str
) -> None:
    fail_import_of(monkeypatch, name, error)
    with pytest.raises(ImportError, match=says) as caught:
        stack.check_imports()
    assert '\n' not in str(caught.value)
    assert caught.value.__cause__ is error


REPOSITORY = Path(stack.__file__).parents[2]


def run_python(code: str, *options: str, path: list[Path]) -> subprocess.CompletedProcess:
    """Run ``code`` in a fresh Python that looks for packages in ``path`` first."""
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(map(str, path))}
    command = [sys.executable, *options, '-c', code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def run_isolated(code: str, path: list[Path]) -> subprocess.CompletedProcess:
    """Run ``code`` in a fresh Python that sees the standard library and ``path``, nothing else."""
    return run_python(code, '-S', path=path)  # no site-packages


@pytest.fixture(scope='module')
def without_openmmlab(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A search path with everything that is installed here but the OpenMMLab packages and their metadata."""
    folder = tmp_path_factory.mktemp('site')
    hidden = ('mmengine', 'mmcv', 'mmseg', 'onedl_mm')
    site_packages = Path(import_module('torch').__file__).parents[1]
    for entry in site_packages.iterdir():
        if not entry.name.startswith(hidden) and entry.suffix != '.pth':
            (folder / entry.name).symlink_to(entry)
    return [REPOSITORY, folder]


def test_without_mmengine_the_methods_work(without_openmmlab: list[Path]) -> None:
    done = run_isolated(
        'import sys, mmrepmtl.methods.rep_mtl; assert "mmengine" not in sys.modules; print("fine")', without_openmmlab
    )
    assert (done.stdout.strip(), done.returncode) == ('fine', 0), done.stderr


@pytest.mark.parametrize('module', ['mmrepmtl.registry', 'mmrepmtl.engine', 'mmrepmtl.datasets.transforms'])
def test_without_mmengine_the_rest_says_what_to_install(without_openmmlab: list[Path], module: str) -> None:
    done = run_isolated(f'import {module}', without_openmmlab)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ModuleNotFoundError: mmrepmtl.') and "pip install 'mmrepmtl[mm]'" in last


def test_a_broken_stack_stops_the_import_of_the_package(without_openmmlab: list[Path], tmp_path: Path) -> None:
    metadata_folder = tmp_path / 'mmengine-0.10.7.dist-info'
    metadata_folder.mkdir()
    (metadata_folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmengine\nVersion: 0.10.7\n')
    done = run_isolated('import mmrepmtl.methods', [*without_openmmlab, tmp_path])
    assert done.returncode == 1
    assert 'mmengine 0.10.7 lacks mmcv' in done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(not stack.has_mmengine(), reason='mmengine is not installed')
def test_importing_the_package_registers_everything() -> None:
    done = run_python(REGISTERED, path=[REPOSITORY])
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    for name in ('MultiTaskOptimWrapper', 'MultiTaskModel', 'SynthRoomsDataset', 'NYUv2Dataset', 'PackMultiTaskInputs'):
        assert name in names


REGISTERED = """
import mmrepmtl
from mmengine.registry import OPTIM_WRAPPERS
from mmrepmtl.registry import DATASETS, METRICS, MODELS, TRANSFORMS
assert METRICS.module_dict
for registry in (OPTIM_WRAPPERS, DATASETS, MODELS, TRANSFORMS):
    print(*registry.module_dict)
"""
