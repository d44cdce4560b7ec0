"""docs/methods.md against the code: its rows, what they state of each class, its commands, the loop that it shows."""

import copy
import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import DictAction
from torch import nn

from mmrepmtl.apis import available_methods, describe_methods, load_config
from mmrepmtl.cli.methods import main as methods_command
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.engine.methods import build_method
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.registry import AGGREGATORS, WEIGHTINGS
from tests.engine.harness import run
from tests.engine.overlays import ready, settings_of
from tests.engine.toy import make_batch, make_model, max_difference, split

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / 'docs/methods.md').read_text(encoding='utf-8')
QUICKSTART = ROOT / 'configs/synth_rooms/quickstart.py'
NAMES = available_methods(QUICKSTART)
NUM_TASKS, SIZE = 3, 1000


def section(title: str) -> str:
    return re.search(rf'^## {re.escape(title)}\n(.*?)(?=^## |\Z)', TEXT, re.M | re.S)[1]


def table(title: str) -> list[dict[str, str]]:
    """The first table of a section: one {column: cell} for each row."""
    lines = [line for line in section(title).splitlines() if line.startswith('|')]
    header, _, *rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    assert all(len(row) == len(header) for row in rows)
    return [dict(zip(header, row, strict=True)) for row in rows]


RULES, NEEDS, BEHAVIOUR = table('What each is'), table('What each needs'), table('How each behaves')
WHAT = {row['name'].strip('`'): row for row in NEEDS}
HOW = {row['name'].strip('`'): row for row in BEHAVIOUR}


class Method:
    """An overlay's parts, built."""

    def __init__(self, name: str) -> None:
        self.settings = settings_of(name)
        self.weighting = build_method(self.settings['weighting'], WEIGHTINGS)
        self.aggregator: Aggregator | None = build_method(self.settings['aggregator'], AGGREGATORS)
        self.regularizers = [regularizer['type'] for regularizer in self.settings['regularizers']]

    @property
    def weighs_losses(self) -> bool:
        return self.aggregator is None or type(self.weighting).__name__ != 'EqualWeighting'


@pytest.fixture(params=NAMES)
def name(request) -> str:
    """The name of each overlay; one without a row fails."""
    if request.param not in WHAT or request.param not in HOW:
        pytest.fail(f'docs/methods.md has no row for {request.param}')
    return request.param


def test_the_lines_are_those_of_the_command(capsys):
    lines = describe_methods()
    assert {row['name'].strip('`'): row['in words'] for row in RULES} == lines
    assert all(line.endswith('.') for line in lines.values()), 'a first line that is half a sentence'
    methods_command([])
    printed = capsys.readouterr().out
    assert all(line in printed for line in lines.values())


EQUATIONS = sorted(set(re.findall(r'\$(.*?)\$', re.sub(r'```.*?```', '', TEXT, flags=re.S), re.S)))


def test_most_rules_are_equations():
    assert sum('$' in row['rule'] for row in RULES) > 0.9 * len(RULES)
    assert all(row['rule'].count('$') % 2 == 0 for row in RULES)


@pytest.mark.parametrize('equation', EQUATIONS)
def test_an_equation_is_the_same_on_github_and_on_the_site(equation):
    """Markdown takes a backslash before punctuation, an underscore behind it, a star and a bar for its own."""
    assert not re.search(r'\\[^a-zA-Z]|(?<![a-zA-Z0-9])_|[*|<>`]', equation)
    assert equation == equation.strip() and equation.count('{') == equation.count('}')


def test_a_dollar_is_at_the_edge_of_a_word():
    """Else GitHub takes it for a dollar."""
    for line in re.sub(r'```.*?```', '', TEXT, flags=re.S).splitlines():
        for opening, closing in re.findall(r'(\S?)\$[^$]*\$(\S?)', line):
            assert opening in ('', '(') and closing in ('', ',', '.', ';', ':', ')'), line


@pytest.mark.parametrize('rows', [RULES, NEEDS, BEHAVIOUR], ids=['rules', 'needs', 'how'])
def test_every_overlay_has_one_row_and_every_row_an_overlay(rows):
    assert sorted(row['name'] for row in rows) == sorted(f'`{name}`' for name in NAMES)


def test_the_class_is_that_of_the_overlay(name):
    method = Method(name)
    classes = [type(method.weighting).__name__] * method.weighs_losses
    classes += [type(method.aggregator).__name__] if method.aggregator else []
    cell = WHAT[name]['class']
    assert re.findall(r'`(\w+)`', cell) == classes + method.regularizers
    assert ('log losses' in cell) == (method.settings['loss_transform'] == 'log')


def test_the_levels_are_those_of_the_class_and_the_default_is_first(name):
    aggregator = Method(name).aggregator
    levels = WHAT[name]['level'].split(', ')
    if aggregator is None:
        assert levels == ['loss']
        return
    assert sorted(levels) == sorted(aggregator.levels)
    assert levels[0] == aggregator.level == type(aggregator)().level


def test_the_passes_follow_from_what_the_method_declares(name):
    method, cell = Method(name), WHAT[name]['passes']
    if method.aggregator is None:
        expected = '3 + 1' if method.regularizers else '1 + 1'
    elif method.aggregator.level == 'representation':
        expected = '1 + 1; at parameters 1 + T'
    else:
        batches = method.aggregator.num_batches
        expected = '1 + T' if batches == 1 else f'{batches} x (1 + T)'
        assert method.settings.get('accumulative_counts', 1) == batches
    assert cell == expected or re.match(re.escape(expected) + '(,| of )', cell)
    assert ('one more forward pass' in cell) == method.weighting.second_look


def test_the_state_has_as_many_copies_of_the_gradient_as_stated(name):
    method, cell = Method(name), WHAT[name]['state']
    stated = re.search(r'(?:(\d+) )?T copies', cell)
    copies = int(stated[1] or 1) if stated else 0
    method.weighting.setup(NUM_TASKS)
    found, entries = 0, list(method.weighting.state_dict())
    if method.aggregator is not None:
        aggregator = method.aggregator
        aggregator.setup(NUM_TASKS, (SIZE - 5, 5))
        batches = (aggregator.num_batches,) if aggregator.num_batches > 1 else ()
        if aggregator.level == 'parameter':
            aggregator(torch.randn(*batches, NUM_TASKS, SIZE), torch.ones(NUM_TASKS))
        buffers = dict(aggregator.named_buffers())
        found = sum(b.numel() for b in buffers.values() if b.shape[-1:] == (SIZE,)) / (NUM_TASKS * SIZE)
        entries += buffers
    assert found == copies
    assert (cell == 'none') == (not entries and not method.regularizers)
    assert ('epoch' in cell) == method.weighting.per_epoch


def heads_of(aggregator: Aggregator) -> str:
    if type(aggregator).head_weights is not Aggregator.head_weights and not aggregator.has_weights:
        return 'log loss'
    if not aggregator.has_weights:
        return 'unweighted, always'
    return 'weighted' if aggregator.weight_heads else 'unweighted'


def test_the_convention_for_heads_is_that_of_the_class(name):
    method = Method(name)
    expected = ['with the loss'] if method.weighs_losses else []
    expected += [heads_of(method.aggregator)] if method.aggregator else []
    assert HOW[name]['heads'].split(':')[0] == '; '.join(expected)
    if method.aggregator is not None:
        assert method.aggregator.weight_heads == type(method.aggregator).weights_heads_by_default


def test_what_is_reduced_and_drawn_is_what_the_class_declares(name):
    method, cell = Method(name), HOW[name]['DDP']
    parts = [method.weighting] + ([method.aggregator] if method.aggregator else [])
    assert ('draws' in cell) == any('seed' in inspect.signature(type(part)).parameters for part in parts)
    assert ('rows' in cell) == (method.aggregator is not None)
    at_z = isinstance(method.aggregator, GramianAggregator) and 'representation' in method.aggregator.levels
    assert ('Gramian' in cell) == at_z
    assert cell.startswith('losses') == method.weighs_losses
    csa = any(regularizer.get('lambda_csa', 1) for regularizer in method.settings['regularizers'])
    assert ('anchors' in cell) == csa


def train(name: str, batches, accumulation: int):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', accumulative_counts=accumulation, **ready(name))
    run(model, wrapper, batches)
    return model


@pytest.mark.filterwarnings('ignore:RepMTL')
def test_accumulation_is_as_stated(name):
    """Whether two half batches equal one whole; of aggregators the level decides, which other tests hold them to."""
    cell, aggregator = HOW[name]['accumulation'], Method(name).aggregator
    if aggregator is not None:
        if aggregator.level == 'representation':
            assert cell == 'each; at parameters window'
        else:
            assert cell.split(':')[0] == ('window; at Z each' if 'representation' in aggregator.levels else 'window')
        return
    wholes = [make_batch(4, seed) for seed in range(5)]
    halves = [half for whole in wholes for half in split(whole, [2, 2])]
    difference = max_difference(train(name, wholes, 1), train(name, halves, 2))
    equal, _, _ = cell.partition(':')
    assert equal in ('equal', 'each') and (difference < 1e-6 if equal == 'equal' else difference > 1e-5), difference


def test_those_that_refuse_a_second_logarithm_are_all_listed():
    listed = re.search(r"refuse `loss_transform='log'`:\s*<!--.*?-->\s*`([^`]+)`", TEXT)[1].split()
    methods = {name: Method(name) for name in NAMES}
    refusing = [
        name
        for name, method in methods.items()
        if 'own' in (method.weighting.loss_transform, getattr(method.aggregator, 'loss_transform', 'any'))
    ]
    assert sorted(listed) == sorted(refusing)


def test_those_that_average_over_epochs_are_all_listed():
    listed = re.search(r'average over epochs.*?-->\s*`([^`]+)`', TEXT, re.S)[1].split()
    assert sorted(listed) == [name for name in NAMES if Method(name).weighting.per_epoch]


PATTERN = 'configs/_base_/methods/NAME.py'  # no file of its own
COMMANDS = re.findall(r'^    python tools/train.py CONFIG (.*)$', TEXT, re.M)


@pytest.mark.parametrize('command', COMMANDS)
def test_the_commands_do_what_they_say(command):
    words = shlex.split(command)
    options = dict(zip(words[::2], words[1::2], strict=True))
    given = dict([pair.split('=') for pair in [options.pop('--cfg-options')]] if '--cfg-options' in options else [])
    given = {key: DictAction._parse_int_float_bool(value) for key, value in given.items()}
    arguments = {option.removeprefix('--'): value for option, value in options.items()}
    settings = load_config(QUICKSTART, cfg_options=given, **arguments).optim_wrapper
    aggregator = build_method(settings.aggregator, AGGREGATORS)
    for key, value in given.items():
        assert getattr(aggregator, key.removeprefix('optim_wrapper.aggregator.')) == value
    assert [r.type for r in settings.regularizers] == ['RepMTL'] * ('regularizer' in arguments)


def test_the_loop_outside_a_trainer_is_the_trainers():
    """Three steps of it and of the engine, with the weights of Nash-MTL in the heads too."""
    model, other = make_model(), make_model()
    batches = [make_batch(seed=seed) for seed in range(3)]
    losses = dict(
        a=nn.functional.cross_entropy,
        b=lambda out, target: (out - target).abs().mean(),
        c=lambda out, target: ((out - target) ** 2).mean(),
    )
    (block,) = re.findall(r'```python\n(.*?)```', TEXT, re.S)
    loader = [(batch['inputs'], {task: batch[task] for task in 'abc'}) for batch in copy.deepcopy(batches)]
    exec(block, dict(encoder=model.encoder, heads=model.heads, loss_functions=losses, loader=loader))
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    run(other, MultiTaskOptimWrapper(optimizer, shared='encoder', **ready('nash-mtl')), batches)
    assert max_difference(model, other) < 1e-9
    assert max_difference(model, make_model()) > 1e-4


PATHS = set(re.findall(r'`((?:tests|tools|configs|mmrepmtl)/[\w/.]+)`', TEXT)) - {PATTERN}


@pytest.mark.parametrize('path', sorted(PATHS))
def test_files_that_it_names_exist(path):
    assert (ROOT / path).exists()


def test_the_tests_that_it_names_exist():
    file = (ROOT / 'tests/methods/test_against_torchjd.py').read_text()
    named = re.findall(r'`(test_\w+)`', section("torchjd's solvers"))
    assert named and all(f'def {test}(' in file for test in named)
    rows = table("torchjd's solvers")
    assert all(row['in the test'].startswith('`test_') for row in rows if row['verdict'].startswith('own'))


def test_the_solver_is_whose_it_says():
    """torchjd's where the class has one of its."""
    for row in table("torchjd's solvers"):
        aggregator = Method(re.match('`(.*?)`', row['method'])[1]).aggregator
        assert ('called' in row['verdict']) == hasattr(aggregator, 'solver'), row['method']


CONFIGS = re.findall(r'^    aggregator=(.*)$', section("torchjd's solvers"), re.M)


@pytest.mark.parametrize('config', CONFIGS)
def test_the_configs_of_the_adapter_run(config):
    aggregator = build_method(eval(config), AGGREGATORS)
    assert torch.isfinite(aggregator(torch.randn(NUM_TASKS, SIZE), torch.ones(NUM_TASKS))[0]).all()


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r'^#+ (.*)$', text, re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


LINKS = re.findall(r'\]\(((?!http)[^)]+)\)', re.sub(r'```.*?```', '', TEXT, flags=re.S))


@pytest.mark.parametrize('link', sorted(set(LINKS)))
def test_links_lead_somewhere(link):
    file, _, anchor = link.partition('#')
    text = (ROOT / 'docs' / file).read_text(encoding='utf-8') if file else TEXT
    assert not anchor or anchor in anchors(text)
