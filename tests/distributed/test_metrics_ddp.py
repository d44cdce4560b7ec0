"""Two and three gloo processes give the numbers of one, whatever the sampler does."""

import json
import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator

from mmrepmtl.evaluation import SegmentationMetric
from mmrepmtl.registry import METRICS
from mmrepmtl.structures import MultiTaskDataSample

CONFIGS = [
    dict(type='SegmentationMetric', task='semseg', num_classes=4),
    dict(type='DepthMetric', task='depth'),
    dict(type='NormalMetric', task='normal'),
    dict(type='ClassificationMetric', task='scene'),
    dict(type='RegressionMetric', task='pose'),
    dict(type='SaliencyMetric', task='saliency'),
    dict(type='EdgeMetric', task='edge', thresholds=5, max_distance=0.2),
    dict(type='DepthMetric', task='never'),
]
# name: (samples, DefaultSampler's arguments)
SCENARIOS = {
    'padded': (7, dict(shuffle=False, round_up=True)),
    'padded_shuffled': (7, dict(shuffle=True, seed=3, round_up=True)),
    'even': (6, dict(shuffle=False, round_up=True)),
    'uneven': (7, dict(shuffle=False, round_up=False)),
    'rank_without_samples': (1, dict(shuffle=False, round_up=False)),
    'one_sample_padded': (1, dict(shuffle=False, round_up=True)),
}


def make_sample(index):
    """Labels are missing in some samples; sample 0, which samplers repeat, is far off all others."""
    generator = torch.Generator().manual_seed(index)

    def rand(*shape):
        return torch.rand(shape, generator=generator) * (3 if index == 0 else 1)

    normal = torch.nn.functional.normalize(rand(3, 4, 5) - 0.5, dim=0)
    values = {
        'semseg': ((rand(4, 5) * 4).long() % 4, (rand(4, 5) * 4).long() % 4),
        'depth': (rand(1, 4, 5), rand(1, 4, 5)),
        'normal': (normal, normal + rand(3, 4, 5) - 0.2),
        'scene': ((rand(1) * 2).long()[0] % 2, rand(2)),
        'pose': (rand(3), rand(3)),
        'saliency': ((rand(4, 5) > 0.6).long(), rand(4, 5).clamp(max=1)),
        'edge': ((rand(4, 5) > 0.6).long(), rand(4, 5).clamp(max=1)),
    }
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=index, img_path=f'{index}.png'))
    for number, (task, (target, prediction)) in enumerate(values.items()):
        if index == 0 or (index + number) % 3:
            sample.set_target(task, target)
        sample.set_prediction(task, prediction)
    return sample


def evaluate(indices, size, batch_size=2):
    evaluator = Evaluator([METRICS.build(config) for config in CONFIGS])
    for start in range(0, len(indices), batch_size):
        evaluator.process([make_sample(index) for index in indices[start : start + batch_size]])
    return evaluator.evaluate(size)


def error_of(indices, size):
    try:
        evaluate(indices, size)
    except ValueError as error:
        return str(error)
    return None


def work(rank, world_size, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world_size)
    results = {
        name: evaluate(list(DefaultSampler(range(size), **arguments)), size)
        for name, (size, arguments) in SCENARIOS.items()
    }
    errors = {
        # All ranks must refuse these, none may hang.
        'repeated': error_of([rank, 10, 20 + rank], 5),
        'too few': error_of([rank], world_size + 1),
    }
    # A rank that never learns the number of classes from its own samples.
    metric = SegmentationMetric('semseg')
    metric.dataset_meta = dict(targets=dict(semseg=dict(kind='segmentation', classes=('a', 'b', 'c', 'd'))))
    if rank == 0:
        metric.process(None, [make_sample(0).to_dict()])
    results['meta'] = metric.evaluate(1)
    with open(f'{folder}/{rank}.json', 'w', encoding='utf-8') as file:
        json.dump([results, errors], file)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module', params=[2, pytest.param(3, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('gloo')
    mp.spawn(work, args=(request.param, str(folder)), nprocs=request.param)
    return [json.loads((folder / f'{rank}.json').read_text()) for rank in range(request.param)]


@pytest.mark.parametrize('name', SCENARIOS)
def test_equals_one_process(ranks, name):
    size, _ = SCENARIOS[name]
    expected = evaluate(list(range(size)), size, batch_size=3)
    assert sum(math.isnan(value) for value in expected.values()) == 3  # 'never' is labelled nowhere
    for results, _ in ranks:
        assert results[name].keys() == expected.keys()
        for key, value in expected.items():
            assert results[name][key] == pytest.approx(value, rel=1e-13, nan_ok=True), key


@pytest.mark.parametrize('name', [*SCENARIOS, 'meta'])
def test_all_ranks_get_identical_numbers(ranks, name):
    assert len({json.dumps(results[name]) for results, _ in ranks}) == 1


def test_padding_would_change_the_numbers():
    """So that the comparison with one process proves something."""
    once = evaluate(list(range(7)), 7)
    evaluator = Evaluator([METRICS.build(config) for config in CONFIGS])
    copy = make_sample(0)
    copy.set_metainfo(dict(sample_idx=7))
    evaluator.process([*map(make_sample, range(7)), copy])
    twice = evaluator.evaluate(8)
    assert all(twice[key] != pytest.approx(value, rel=1e-4) for key, value in once.items() if not math.isnan(value))


def test_all_ranks_refuse_repeated_and_missing_samples(ranks):
    for _, errors in ranks:
        assert 'evaluated more than once, e.g. 10 (10.png)' in errors['repeated']
        assert f'{len(ranks)} distinct samples were evaluated' in errors['too few']
        assert f'the data set has {len(ranks) + 1}' in errors['too few']
