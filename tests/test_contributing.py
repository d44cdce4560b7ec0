"""The examples of CONTRIBUTING.md, run as a repository of a user's own; the kind of target is in test_new_kind.py."""

import copy
import importlib
import math
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from mmrepmtl.apis import available_methods, describe_methods, load_config
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.registry import AGGREGATORS, DATASETS, MODELS, REGULARIZERS, WEIGHTINGS
from tests.engine.toy import make_batch, make_model, max_difference
from tests.harness import CONTRIBUTING, ROOT, examples, number_of_blocks
from tests.tools.harness import TINY

FILES = examples()
OWN = [file.removesuffix('.py') for file in FILES if file.removesuffix('.py').isidentifier() and file != 'height.py']
NAMES = {
    WEIGHTINGS: ('GeometricMean',),
    AGGREGATORS: ('EqualLengths',),
    REGULARIZERS: ('SmallZ', 'SteepLosses'),
    MODELS: ('BerHuDepthHead', 'GatedDecoder'),
    DATASETS: ('MyRooms',),
}
SIZE = (24, 32)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the files of the page, on Python's path; what they register is taken back."""
    for file, code in FILES.items():
        folder = tmp_path if file.removesuffix('.py').isidentifier() else tmp_path / '_base_' / 'methods'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in OWN:
        sys.modules.pop(name, None)
    for registry, names in NAMES.items():
        for name in names:
            registry.module_dict.pop(name, None)


@pytest.fixture
def parts(project):
    """The modules of the page, imported as a config does it."""
    return {name: importlib.import_module(name) for name in OWN}


def write_rooms(folder, count=5):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        cv2.imwrite(str(folder / f'{number}.jpg'), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        if number:
            depth = rng.uniform(1, 4, SIZE)
            depth[:2] = 0
            np.save(folder / f'{number}.npy', depth)


def test_every_block_is_a_file_that_is_tested():
    assert len(FILES) == number_of_blocks()
    assert set(FILES) == {f'{name}.py' for name in OWN} | {'height.py', 'geometric-mean.py'}


def test_the_weighting_is_the_geometric_mean_of_the_labelled(parts):
    weighting = WEIGHTINGS.build(dict(type='GeometricMean'))
    losses_T, labelled_T = torch.tensor([2.0, 50.0, 8.0]), torch.tensor([True, False, True])
    assert weighting(losses_T, labelled_T, advance=False).item() == pytest.approx(4)
    assert weighting(losses_T).item() == pytest.approx(800 ** (1 / 3))
    assert weighting(losses_T, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_the_aggregator_sums_gradients_of_one_length(parts):
    rows = torch.tensor([[3.0, 4.0], [0.0, 10.0], [0.0, 0.0]])
    combined, weights = AGGREGATORS.build(dict(type='EqualLengths'))(rows, torch.ones(3))
    assert combined.tolist() == pytest.approx([3.0, 9.0]) and weights.tolist() == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(
    'settings',
    [
        dict(weighting=dict(type='GeometricMean')),
        dict(aggregator=dict(type='EqualLengths', level='representation'), accumulative_counts=2),
        dict(aggregator=dict(type='EqualLengths'), regularizers=[dict(type='SmallZ')]),
    ],
)
def test_the_methods_train_in_the_engine(parts, settings):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', **settings)
    for seed in range(4):
        model.train_step(make_batch(seed=seed), wrapper)
    assert max_difference(model, make_model()) > 1e-4
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_regulariser_adds_the_gradient_of_its_square(parts):
    """One step with it against one that adds the square by hand."""
    (model, other), batch, rate, weight = (make_model(), make_model()), make_batch(), 0.1, 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    settings = dict(regularizers=[dict(type='SmallZ', weight=weight)], diagnostics_interval=1)
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', **settings)
    logs = model.train_step(batch, wrapper)
    z = other.encoder(batch['inputs'])
    (sum(other.losses(**batch).values()) + weight * z.float().square().mean()).backward()
    torch.optim.SGD(other.parameters(), lr=rate).step()
    assert max_difference(model, other) < 1e-7
    assert float(logs['small_z/square']) == pytest.approx(float(z.detach().square().mean()), rel=1e-5)


@pytest.mark.parametrize('as_levels', [lambda z: [z, 2 * z], lambda z: dict(a=z, b=2 * z)], ids=['levels', 'tasks'])
def test_the_regulariser_takes_every_form_of_the_representation(parts, as_levels):
    regularizer, z = REGULARIZERS.build(dict(type='SmallZ', weight=1.0)), torch.full((2, 3), 2.0)
    assert regularizer({}, as_levels(z))['square'].item() == 10
    assert regularizer({}, z)['square'].item() == 4


def test_the_head_has_the_reverse_huber_loss(parts):
    head = parts['berhu'].BerHuDepthHead(decoder=torch.nn.Identity())
    target = torch.tensor([[1.0, 1.0, 0.0, math.nan]])
    output = torch.tensor([[1.05, 2.0, 9.0, 9.0]], requires_grad=True)
    total, count = head.compute_terms(output, target)['berhu']
    assert total.item() == pytest.approx(0.05 + (1 + 0.01) / 0.2) and count.item() == 2
    total.backward()
    assert output.grad.tolist()[0] == pytest.approx([1, 10, 0, 0])


def test_the_data_set_reads_pictures_with_and_without_depth(parts, tmp_path):
    write_rooms(tmp_path / 'rooms')
    dataset = DATASETS.build(dict(type='MyRooms', data_root=str(tmp_path / 'rooms')))
    assert len(dataset) == 5 and dataset.load(0)['gt'] == {}
    loaded = dataset.load(1)
    assert loaded['img'].shape == (*SIZE, 3) and loaded['gt']['depth'].dtype == np.float32


def test_a_model_of_all_parts_trains_and_is_evaluated(project):
    write_rooms(project / 'rooms')
    (project / 'config.py').write_text(
        f"""
_base_ = {str(TINY)!r}
custom_imports = dict(imports={['mmrepmtl', *OWN]!r})
_data = dict(_delete_=True, type='MyRooms', data_root='rooms', pipeline=[dict(type='PackMultiTaskInputs')])
model = dict(heads=dict(_delete_=True,
    depth=dict(type='BerHuDepthHead', decoder=dict(type='GatedDecoder')),
    again=dict(type='DepthHead', target='depth', decoder=dict(type='GatedDecoder'))))
train_dataloader = dict(dataset=_data)
val_dataloader = dict(dataset=_data)
test_dataloader = dict(dataset=_data)
val_evaluator = [dict(type='DepthMetric', task='depth')]
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
optim_wrapper = dict(loss_transform=None, weighting=dict(type='GeometricMean'),
    regularizers=[dict(type='RepMTL'), dict(type='SmallZ', weight=0.1)])
"""
    )
    cfg = load_config(project / 'config.py', work_dir=str(project / 'run'))
    cfg.log_level = 'ERROR'
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.train()
    assert math.isfinite(runner.test()['depth/abs_err'])
    assert runner.message_hub.get_scalar('train/small_z/square').current() > 0

    assert available_methods(project / 'config.py') == ['geometric-mean']
    lines = describe_methods(project / 'config.py')
    assert lines == {'geometric-mean': 'GeometricMean: the geometric mean of the losses.'}
    chosen = load_config(project / 'config.py', method='geometric-mean').optim_wrapper
    assert chosen.weighting.type == 'GeometricMean' and chosen.regularizers == []


def test_the_places_that_it_names_exist():
    names = set(re.findall(r'`((?:mmrepmtl|configs|tests|tools|requirements)/[\w/.-]+)`', CONTRIBUTING))
    names |= set(re.findall(r'\b(docs/\w+\.md)\b', CONTRIBUTING))
    folders = {name.removesuffix('NAME.py') for name in names}
    assert len(folders) > 10
    for place in folders:
        assert (ROOT / place).exists(), place


def test_the_bases_that_it_names_exist():
    from mmrepmtl import datasets, evaluation
    from mmrepmtl.evaluation import streaming
    from mmrepmtl.methods import aggregation, regularizer, weighting
    from mmrepmtl.models import decoders, heads

    known = {
        name
        for room in (datasets, evaluation, streaming, aggregation, regularizer, weighting, decoders, heads)
        for name in dir(room)
    }
    rows = [line for line in CONTRIBUTING.splitlines() if re.match(r'\| .* \| `\w+`.*NAME\.py', line)]
    assert len(rows) == 7
    for row in rows:
        for name in re.findall(r'`(\w+)`', row.split('|')[2]):
            assert name in known, name
