"""The tables of the methods: made from the classes, found where they are out of date, and true of the step's length."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import torch

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.weighting import Weighting

ROOT = Path(__file__).resolve().parents[2]
NUM_TASKS = 4
GRADIENT = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)


@pytest.fixture(scope='module')
def tool():
    """The tool, as a module."""
    spec = importlib.util.spec_from_file_location('methods_table', ROOT / 'tools/misc/methods_table.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def methods(tool):
    return {method.name: method for method in tool.load()}


@pytest.fixture
def pages(tool, methods, tmp_path, monkeypatch):
    """A folder with copies of the pages, which the tool takes for the repository."""
    for page in (*tool.PAGES, *tool.COUNTS):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    monkeypatch.setattr(tool, 'load', lambda: list(methods.values()))
    return tmp_path


def test_the_pages_are_up_to_date(tool, methods):
    """Else run tools/misc/methods_table.py."""
    for page in (*tool.PAGES, *tool.COUNTS):
        text = (ROOT / page).read_text(encoding='utf-8')
        assert tool.fill(page, text, list(methods.values())) == text, page


@pytest.mark.parametrize(
    'page, old, new',
    [
        ('docs/methods.md', 'learned variance', 'learned number'),
        ('docs/methods.md', '| `GLS` |', '| `GSL` |'),
        ('docs/methods.md', '| unweighted, always |', '| weighted |'),
        ('docs/methods.md', '| norm 1 at most |', '| norm 2 at most |'),
        ('docs/methods.md', '`dwa igbv2 stch`', '`dwa stch`'),
        ('docs/training.md', 'pcgrad sdmgrad', 'sdmgrad'),
        ('README.md', ' ways to train', '0 ways to train'),
    ],
)
def test_a_page_that_is_out_of_date_is_found_and_written(tool, pages, capsys, page, old, new):
    text = (pages / page).read_text(encoding='utf-8')
    assert old in text
    (pages / page).write_text(text.replace(old, new), encoding='utf-8')
    assert tool.main(['--check']) == 1
    assert capsys.readouterr().err == f'{page}: out of date, run python tools/misc/methods_table.py\n'
    assert tool.main([]) == 0 and (pages / page).read_text(encoding='utf-8') == text
    assert tool.main(['--check']) == 0


@pytest.mark.parametrize(
    'page, old, message',
    [
        ('docs/methods.md', '<!-- end of rules', 'docs/methods.md: expected one block <!-- begin of rules'),
        ('README.md', ' ways to train', 'README.md: expected one "NUMBER ways to train", found 0'),
    ],
)
def test_a_page_without_a_place_for_it_is_refused(tool, pages, page, old, message):
    text = (pages / page).read_text(encoding='utf-8')
    (pages / page).write_text(text.replace(old, '?'), encoding='utf-8')
    with pytest.raises(ValueError, match=re.escape(message)):
        tool.main([])


class Cube(Weighting):
    """A method that is new."""

    facts = Facts('A paper', '$\\sum_t L_t^3$', 'no choice', 'left out', 'three times as long', equal_parts=False)
    per_epoch = True


@pytest.fixture
def new_method(tool, methods, tmp_path, monkeypatch):
    """The overlay of a new class beside ``ew``."""
    shutil.copy(ROOT / 'configs/_base_/methods/ew.py', tmp_path)
    (tmp_path / 'cube.py').write_text("_base_ = './ew.py'\noptim_wrapper = dict(weighting=dict(type='Cube'))\n")
    build = tool.build_method
    monkeypatch.setattr(tool, 'FOLDER', tmp_path)
    monkeypatch.setattr(tool, 'describe_methods', lambda: {'cube': 'Cubes.', 'ew': 'The sum.'})
    monkeypatch.setattr(
        tool, 'build_method', lambda cfg, registry: Cube() if cfg and cfg['type'] == 'Cube' else build(cfg, registry)
    )


def test_a_new_method_is_in_every_table_by_its_class(tool, new_method):
    methods = tool.load()
    blocks = tool.blocks(methods)
    assert blocks['rules'].splitlines()[-1] == '| `cube` | Cubes. | $\\sum_t L_t^3$ | A paper |'
    assert blocks['needs'].splitlines()[-1] == '| `cube` | `Cube` | loss | 1 + 1 | none |'
    assert blocks['behaviour'].splitlines()[-1] == '| `cube` | no choice | with the loss | each | losses | left out |'
    assert blocks['steps'].splitlines()[-1] == '| three times as long | `cube` |'
    assert blocks['groups'].splitlines()[-1] == '| loss weightings | `ew cube` |' and blocks['epochs'] == '`cube`'
    assert tool.count(methods, 'all') == 2


def test_a_method_without_facts_is_named(tool, new_method, monkeypatch):
    monkeypatch.setattr(Cube, 'facts', None)
    with pytest.raises(ValueError, match='cube: a class of it has no `facts`'):
        tool.blocks(tool.load())


def length(method, loss: float) -> float:
    """The first step over that of ``ew``, where all tasks have one gradient and one loss."""
    losses = torch.full((NUM_TASKS,), loss, dtype=torch.float64, requires_grad=True)
    method.weighting.setup(NUM_TASKS)
    (weights,) = torch.autograd.grad(method.weighting(losses.log() if method.log else losses), losses)
    rows, plain = weights[:, None] * GRADIENT, NUM_TASKS * GRADIENT
    if method.aggregator is None:
        return float(rows.sum(0).norm() / plain.norm())
    rows = rows.expand(method.aggregator.num_batches, -1, -1) if method.aggregator.num_batches > 1 else rows
    combined = method.aggregator(rows, losses.detach())[0]
    return float(combined.norm() / plain.norm())


STEPS = {
    'that of `ew`': 1,
    'that of `ew` at the start': 1,
    '1/T of that of `ew`': 1 / NUM_TASKS,
    'half of that of `ew` at the start': 0.5,
    '(1 + c) / (1 + c²) of that of `ew`: 1.2 times with c = 0.4': 1.4 / 1.16,
}


def test_the_length_of_the_step_is_as_stated(tool):
    lengths = {}
    for method in tool.load():  # new objects: they have taken no step
        lengths[method.name] = method.step(), length(method, 5.0)
    halves = {method.name: length(method, 2.5) for method in tool.load()}
    plain = float(NUM_TASKS * GRADIENT.norm())
    for name, (words, found) in lengths.items():
        if words in STEPS:
            assert found == pytest.approx(STEPS[words], rel=1e-6), name
        elif words == 'in units of log losses':
            assert halves[name] == pytest.approx(2 * found, rel=1e-6), name
        elif words == 'norm 1':
            assert found * plain == pytest.approx(1), name
        elif words == 'norm 1 at most':
            assert found * plain <= 1 + 1e-9, name
        else:
            assert words == 'in units of the learning rate, like Adam' and halves[name] == pytest.approx(found), name
