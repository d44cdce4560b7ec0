"""mmseg is optional: where it is absent everything else works, and what needs it says what to install."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_WITHOUT = """
import importlib
import pkgutil
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'mmseg':
            raise ModuleNotFoundError("No module named 'mmseg'", name='mmseg')

sys.meta_path.insert(0, Absent())

import torch
import mmrepmtl
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.registry import MODELS
from tests.models.toy import build_model, make_images, make_sample

model = build_model(('semseg', 'depth', 'normal'))
wrapper = MultiTaskOptimWrapper(
    torch.optim.SGD(model.parameters(), lr=0.1), shared='encoder', regularizers=[dict(type='RepMTL')]
)
samples = [make_sample(index) for index in range(4)]
log = model.train_step(dict(inputs=list(make_images(range(4))), data_samples=samples), wrapper)
print('trained:', sorted(key for key in log if key.startswith('raw/')), 'mmseg' in sys.modules)

needs = []
for module in pkgutil.walk_packages(mmrepmtl.__path__, 'mmrepmtl.', onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        if 'mmseg' in str(error):  # others may lack a package that is optional too
            needs.append(module.name)
print('needs:', needs)

for build in (
    lambda: MODELS.build(dict(type='MMSegDecoder', head=dict(type='FCNHead'), in_channels=[8], out_channels=2)),
    lambda: importlib.import_module('mmrepmtl.mmseg'),
):
    try:
        build()
    except ImportError as error:
        print('error:', error)
"""


def python(code: str) -> list[str]:
    """The output of a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture(scope='module')
def without() -> list[str]:
    return python(_WITHOUT)


def test_a_model_trains_without_mmseg(without):
    assert "trained: ['raw/depth', 'raw/normal', 'raw/semseg'] False" in without


def test_one_subpackage_alone_needs_mmseg_to_be_imported(without):
    assert "needs: ['mmrepmtl.mmseg']" in without


def test_what_needs_mmseg_says_what_to_install(without):
    assert [line for line in without if line.startswith('error: ')] == [
        "error: MMSegDecoder needs mmseg, which is not installed: pip install 'mmrepmtl[mm]'",
        "error: mmrepmtl.mmseg needs mmseg, which is not installed: pip install 'mmrepmtl[mm]'",
    ]


def test_importing_this_package_imports_mmseg_where_it_is_asked_for_only_and_quietly():
    printed = python(
        """
        import sys
        import mmrepmtl
        print('mmseg' in sys.modules)
        try:
            import mmrepmtl.mmseg
        except ImportError:
            pass
        """
    )
    assert printed == ['False']
