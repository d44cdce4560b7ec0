"""The step benchmark, imported as the script that it is."""

import copy
import gc
import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools'
MODULES = ('benchmark_step', 'step_contestants', 'step_report')


@pytest.fixture(scope='module')
def modules():
    """The tool and what lies beside it, found as a script finds it."""
    sys.path.insert(0, str(FOLDER))
    found = {name: importlib.import_module(name) for name in MODULES}
    gc.freeze()  # the tool collects before whatever it measures, and need not go through all that was imported
    yield found
    gc.unfreeze()
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope='module')
def tool(modules):
    return modules['benchmark_step']


@pytest.fixture(scope='module')
def steps(modules):
    return modules['step_contestants']


@pytest.fixture
def make(steps):
    """A contestant on a tiny model."""
    model, data = steps.build_model('test_resnet', 'conv', 8, 'cpu'), steps.make_batch(2, (32, 32), 'cpu')

    def make(method: str, lean: bool = False):
        own = copy.deepcopy(model)
        make.model = own
        if method.startswith(steps.AUTOJAC):
            return steps.make_autojac(method.removeprefix(steps.AUTOJAC), own, data, 'fp32', lean)
        return steps.make_contestant(method, own, data, 'fp32')

    make.passes = lambda: steps.forward_passes(copy.deepcopy(model), data, 'fp32')
    make.data = data
    return make
