import copy
import gc
import json
import math

import pytest
import torch
from mmengine.config import Config

from mmrepmtl.models import MultiTaskModel
from tests.flops import flops

TINY = '--model test_resnet --size 32 32 --batch 2 --heads conv --rounds 2 --warmup 0 --threads 1'.split()

pytestmark = pytest.mark.filterwarnings('ignore:RepMTL. CSA on 2 samples')


@pytest.fixture
def run(tool, tmp_path):
    threads = torch.get_num_threads()

    def run(*arguments: str) -> dict:
        tool.main([*TINY, *arguments, '--json', str(tmp_path / 'made' / 'steps.json')])
        return json.loads((tmp_path / 'made' / 'steps.json').read_text())

    yield run
    torch.set_num_threads(threads)


def variant(steps, folder, method: str, **settings) -> str:
    """Path of a method's file with other settings of the optim wrapper."""
    config = Config.fromfile(steps.METHODS_FOLDER / f'{method}.py')
    config.optim_wrapper.update(settings)
    config.dump(folder / 'variant.py')
    return str(folder / 'variant.py')


def numbers(tree) -> list[float]:
    """All numbers in nested dicts."""
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    return [tree] if isinstance(tree, (int, float)) else []


def test_table_and_file_have_a_row_per_contestant(run, capsys):
    report = run('--methods', 'plain', 'ew', 'rep-mtl', 'pcgrad', 'graddrop', '--autojac', '--group', '3')

    names = 'ew plain rep-mtl pcgrad autojac:pcgrad graddrop graddrop@parameter autojac:graddrop@parameter'.split()
    assert list(report['methods']) == names
    found = numbers(report['methods']) + numbers(report['forward_ms'])
    assert len(found) > 8 * 15 and all(math.isfinite(number) for number in found)
    assert report['methods']['ew']['to_ew'] == dict(q1=1, median=1, q3=1)
    rows = report['methods'].items()
    assert [name for name, row in rows if 'to_autojac' in row] == ['pcgrad', 'graddrop@parameter']
    assert list(report['without_autojac']) == ['graddrop']
    assert [group['methods'][0] for group in report['groups']] == ['ew', 'ew', 'ew']
    table = capsys.readouterr().out
    for name in names:
        assert sum(line.startswith(f'{name} ') and '|' in line for line in table.splitlines()) == 1
    assert 'autojac:graddrop is not available: ' in table
    assert "ew over mmengine's OptimWrapper" in table and 'load average' in table


def test_the_reference_is_always_measured_and_bf16_works_on_a_cpu(run):
    report = run('--methods', 'plain', 'mgda', '--precision', 'bf16', '--clock', 'process', '--autojac', 'lean')
    assert list(report['methods']) == ['ew', 'plain', 'mgda', 'autojac:mgda']


def test_ratios_are_made_within_rounds_and_groups(steps, modules):
    """A machine that becomes ten times slower halfway, and twice as fast for another group, changes no ratio."""

    def contestant(seconds, counted=None, memory=None):
        times = [seconds, seconds, 10 * seconds, 10 * seconds]
        return steps.Contestant(run=None, counted=counted, seconds=times, memory=memory and steps.Memory(*memory))

    def group(speed, **others):
        return dict(
            encoder=contestant(1.0 / speed),
            heads=contestant(2.0 / speed),
            ew=contestant(10.0 / speed, (3, 3), (800, 0)),
            **others,
        )

    method = contestant(12.0, (6, 3), (1000, 600))
    rows = modules['step_report'].evaluate(
        [
            group(1, plain=contestant(9.0, (3, 3), (800, 0))),
            group(2, method=method, **{'autojac:method': contestant(48.0, (6, 3), (1600, 0))}),
        ],
        shared_bytes=200,
    )
    same = dict.fromkeys(('q1', 'median', 'q3'))
    assert rows['method']['to_ew'] == pytest.approx(same | dict.fromkeys(same, 2.4))
    assert rows['method']['counted_to_ew'] == pytest.approx(15 / 9)
    assert rows['method']['to_counted_by_ew']['median'] == pytest.approx(2.4 / (15 / 9))
    assert rows['method']['to_counted_by_f'] == pytest.approx(dict.fromkeys(same, 24 / 15))
    assert rows['method']['to_autojac'] == pytest.approx(dict.fromkeys(same, 0.25))
    assert rows['ew']['to_plain'] == pytest.approx(dict.fromkeys(same, 10 / 9))
    assert rows['ew']['least_to_plain'] == pytest.approx(10 / 9)  # ew was faster elsewhere
    assert rows['method']['least_ms'] == pytest.approx(12000) and rows['ew']['least_ms'] == pytest.approx(5000)
    assert rows['method']['memory_to_ew'] == pytest.approx(2) and rows['method']['memory_to_autojac'] == 1
    assert (rows['method']['copies'], rows['method']['kept_copies']) == (4, 3)


def test_every_method_comes_first_and_follows_different_ones(tool):
    names = ['a', 'b', 'c', 'd']
    orders = [tool.order_of_round(names, number) for number in range(-3, 8)]
    assert all(sorted(order) == names for order in orders)
    for place in range(4):
        assert sorted(order[place] for order in orders[3:7]) == names
    followers = {(one, other) for order in orders for one, other in zip(order, order[1:], strict=False)}
    assert {('a', 'b'), ('b', 'a')} <= followers


def test_groups_have_their_own_reference_and_keep_partners_together(tool):
    methods = tool.expand(['ew-log', 'pcgrad', 'mgda', 'graddrop'], autojac=True)
    assert methods == ['ew-log', 'pcgrad', 'mgda', 'graddrop', 'graddrop@parameter', 'ew']
    groups, reasons = tool.plan(methods, autojac=True, size=3)
    assert groups == [
        ['ew', 'ew-log', 'pcgrad', 'autojac:pcgrad'],
        ['ew', 'mgda', 'autojac:mgda', 'graddrop'],
        ['ew', 'graddrop@parameter', 'autojac:graddrop@parameter'],
    ]
    assert list(reasons) == ['graddrop'] and 'compare graddrop@parameter' in reasons['graddrop']
    assert tool.plan(['ew', 'pcgrad'], autojac=True, size=1)[0] == [['ew', 'pcgrad', 'autojac:pcgrad']]
    assert tool.plan(['ew'], autojac=False, size=1)[0] == [['ew']]


def test_the_models_of_a_group_are_freed_before_the_next_is_built(run, tool, monkeypatch):
    alive = []

    def count(*args):
        gc.collect()
        alive.append(sum(isinstance(thing, MultiTaskModel) for thing in gc.get_objects()))
        measure(*args)

    measure = tool.measure
    monkeypatch.setattr(tool, 'measure', count)
    run('--methods', 'uw', 'rlw', 'gls', '--group', '1')
    assert len(alive) == 3 and alive[0] == alive[1] == alive[2]


#: At Z by default; compared with autojac where that is.
LOWERED = {'graddrop@parameter', 'imtl-g@parameter'}


def test_all_is_every_overlay_but_stl_and_each_makes_a_step(tool, steps, make):
    methods = tool.expand(['all'], autojac=True)
    overlays = {file.stem for file in steps.METHODS_FOLDER.glob('*.py')}
    assert set(methods) == overlays - {'stl'} | LOWERED
    contestants = [name for group in tool.plan(methods, autojac=True, size=99)[0] for name in group]
    by_autojac = {name for name in methods if f'autojac:{name}' in contestants}
    without_solver = {'mgda', 'pcgrad', 'gradvac', 'aligned-mtl', 'fairgrad', 'config', 'excess-mtl'}
    assert by_autojac >= without_solver | LOWERED
    for name in contestants:
        contestant = make(name)
        ends = [next(make.model.encoder.parameters()), *make.model.heads.parameters()]
        before = [p.detach().clone() for p in ends]
        contestant.run()
        assert all(not torch.equal(p, old) for p, old in zip(ends, before, strict=True)), name
        assert all(torch.isfinite(p).all() for p in make.model.parameters()), name


@pytest.mark.parametrize(
    ('method', 'counted'),
    [
        ('plain', (3, 3)),
        ('ew', (3, 3)),
        ('rep-mtl', (7, 3)),
        ('rep-mtl-paper', (6, 3)),
        ('pcgrad', (3, 7)),
        ('pcgrad@representation', (3, 3)),
        ('graddrop', (3, 3)),
        ('famo', (4, 4)),
        ('sdmgrad', (9, 21)),
        ('autojac:pcgrad', (3, 7)),
        ('pcgrad + RepMTL', (8, 9)),
        ('ew + RepMTL through Z', (7, 3)),
        ('pcgrad + RepMTL through Z', (7, 9)),
    ],
)
def test_the_counted_cost_is_that_of_the_operations_made(steps, make, tmp_path, method, counted):
    name, plus, regularizer = method.partition(' + ')
    if plus:
        through = 'representation' if regularizer.endswith('Z') else 'all'
        method = variant(steps, tmp_path, name, regularizers=[dict(type='RepMTL', through=through)])
    contestant = make(method)
    contestant.run()
    passes = {name: flops(run) for name, run in make.passes().items()}
    assert contestant.counted == counted
    assert flops(contestant.run) == pytest.approx(
        counted[0] * passes['heads'] + counted[1] * passes['encoder'], rel=0.02
    )


def test_a_step_of_sdmgrad_is_three_micro_batches_and_says_so(make):
    contestant = make('sdmgrad')
    contestant.run()
    (count,) = {int(state['step']) for state in contestant.optimizer.state.values()}
    assert count == 1 and '3 micro-batches' in contestant.note
    assert 'one more forward' in make('famo').note and 'epochs of 2 steps' in make('dwa').note


@pytest.mark.parametrize(
    ('method', 'message'),
    [
        ('rep-mlt', r"no method 'rep-mlt'; there are plain, .*rep-mtl"),
        ('stl', "'stl' trains one model per task"),
        ('ew@parameter', "'ew@parameter' asks for a level, and ew has no aggregator"),
        ('moco@representation', 'MoCo: level must be one of'),
    ],
)
def test_a_method_without_a_comparable_step_is_named(run, method, message):
    with pytest.raises(ValueError, match=message):
        run('--methods', method)


def test_a_regulariser_of_unknown_cost_is_refused(steps, make, tmp_path):
    path = variant(steps, tmp_path, 'rep-mtl', regularizers=[dict(type='RepMTL', interval=2)])
    with pytest.raises(ValueError, match='only that of RepMTL with interval=1'):
        make(path)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--clock', 'process', '--threads', '2'], '--clock process needs --threads 1'),
        (['--autojac', '--precision', 'fp16'], '--autojac has no gradient scaler'),
        (['--group', '0'], '--group must be at least 1'),
    ],
)
def test_arguments_that_cannot_be_are_refused(tool, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('lean', [False, True])
@pytest.mark.parametrize('method', ['mgda', 'imtl-g@parameter', 'config', 'aligned-mtl', 'fairgrad'])
def test_autojac_steps_along_torchjds_combination_of_the_rows(steps, make, method, lean):
    contestant = make(f'autojac:{method}', lean=lean)
    model, seen = make.model, []
    apart = copy.deepcopy(model)
    contestant.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.extend(p.grad.clone() for p in model.parameters())
    )
    contestant.run()

    terms = apart(**apart.data_preprocessor(make.data, training=True), mode='loss')
    losses = [sum(value for key, value in terms.items() if f'{task}.loss' in key) for task in apart.tasks]
    shared = list(apart.encoder.parameters())
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    combined = steps.partner_of(method, 3)(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]))
    heads = torch.autograd.grad(sum(losses), list(apart.heads.parameters()))
    for grad, wanted in zip(seen, [*combined.split([p.numel() for p in shared]), *heads], strict=True):
        assert torch.allclose(grad.flatten(), wanted.flatten(), rtol=1e-3, atol=1e-5 * float(wanted.abs().max()) + 1e-9)


def test_what_torchjd_cannot_do_is_said(tool, steps, tmp_path, monkeypatch):
    def missing(ours, num_tasks):
        raise ImportError('UPGrad requires a package')

    monkeypatch.setitem(steps.PARTNERS, 'UPGrad', missing)
    in_log = variant(steps, tmp_path, 'mgda', loss_transform='log')
    groups, reasons = tool.plan(['upgrad', 'imtl', in_log, 'moco', 'ew', 'mgda'], autojac=True, size=9)
    assert groups == [['ew', 'upgrad', 'imtl', in_log, 'moco', 'mgda', 'autojac:mgda']]
    assert reasons['upgrad'] == 'UPGrad requires a package'
    assert all('only the aggregator' in reasons[name] for name in ('imtl', in_log)) and len(reasons) == 3
    assert tool.expand(['upgrad'], autojac=True) == ['upgrad', 'ew']
