import itertools
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset.sampler import DefaultSampler
from mmengine.runner import Runner

from mmrepmtl.datasets import DomainBatchSampler, EpochIndex, EpochSampler, MultiDomainDataset, MultiTaskDataset
from tests.datasets.office_files import write_office31


class Numbers(MultiTaskDataset):
    """Images of one colour; ``first`` tells data sets apart, ``unlabelled`` indices have no target."""

    METAINFO = dict(
        targets=dict(
            number=dict(kind='regression', names=('n',)), kind=dict(kind='classification', classes=('even', 'odd'))
        )
    )

    def __init__(self, size, first=0, unlabelled=(), targets=('number',), **kwargs):
        self.size, self.first, self.unlabelled = size, first, unlabelled
        # mmengine's serialisation collects garbage each time, which takes longer than a test.
        super().__init__(targets=targets, serialize_data=False, **kwargs)

    def load_data_list(self):
        return [dict(number=self.first + i) for i in range(self.size)]

    def load_sample(self, data_info):
        number = data_info['number']
        gt = {} if number in self.unlabelled else dict(number=np.float32([number]), kind=number % 2)
        return dict(img=np.full((2, 3, 3), number / 1000, np.float32), gt=gt, img_path=f'{number}.jpg')


def domains(sizes=(5, 3, 4), **kwargs):
    sets = {f'task{i}': Numbers(size, 100 * i) for i, size in enumerate(sizes)}
    return MultiDomainDataset(sets, serialize_data=False, **kwargs)


def draw_noise(results):
    return results | dict(noise=np.random.rand())


# The data set.


def test_each_sample_has_the_target_of_its_own_task():
    dataset = domains(pipeline=[dict(type='PackMultiTaskInputs')])
    assert len(dataset) == 12
    assert dataset.domains == dict(task0=range(0, 5), task1=range(5, 8), task2=range(8, 12))
    assert {name: meta['kind'] for name, meta in dataset.metainfo['targets'].items()} == dict.fromkeys(
        ('task0', 'task1', 'task2'), 'regression'
    )
    expected = [('task0', i) for i in range(5)] + [('task1', 100 + i) for i in range(3)]
    expected += [('task2', 200 + i) for i in range(4)]
    for index, (item, (task, number)) in enumerate(zip(dataset, expected, strict=True)):
        sample = item['data_samples']
        assert {name: target.tolist() for name, target in sample.targets.items()} == {task: [number]}
        assert sample.sample_idx == index and sample.img_path == f'{number}.jpg'
        assert torch.allclose(item['inputs'], torch.tensor(number / 1000))


def test_a_sample_without_its_target_stays_unlabelled():
    dataset = MultiDomainDataset(dict(a=Numbers(2, unlabelled=[1]), b=Numbers(2)))
    assert [dict(results['gt']) for results in dataset] == [dict(a=[0]), {}, dict(b=[0]), dict(b=[1])]


def test_a_domains_own_pipeline_runs_first():
    def add(text):
        return lambda results: results | dict(seen=[*results.get('seen', ()), f'{text}{list(results["gt"])}'])

    sets = dict(a=Numbers(2, pipeline=[add('own')]), b=Numbers(2))
    dataset = MultiDomainDataset(sets, pipeline=[add('common')])
    assert [results['seen'] for results in dataset] == [["own['a']", "common['a']"]] * 2 + [["common['b']"]] * 2


def test_asking_for_a_task_loads_its_domain_only(tmp_path):
    write_office31(tmp_path)
    configs = {d: dict(type='Office31Dataset', domain=d) for d in ('amazon', 'dslr')}
    configs['caltech'] = dict(type='Office31Dataset', domain='caltech')
    dataset = MultiDomainDataset(configs, ['dslr', 'amazon'], data_root=tmp_path)
    assert list(dataset.domains) == list(dataset.targets) == ['amazon', 'dslr']
    assert len(MultiDomainDataset(configs, 'dslr', data_root=tmp_path)) == 5
    with pytest.raises(ValueError, match=r"targets \['webcam'\] are not among the domains \['amazon', 'dslr', 'calt"):
        MultiDomainDataset(configs, ['webcam', 'dslr'], data_root=tmp_path)


def test_data_roots(tmp_path, monkeypatch):
    write_office31(tmp_path / 'office')
    own = dict(type='Office31Dataset', domain='dslr')
    relative = own | dict(data_root='office')
    absolute = own | dict(data_root=str(tmp_path / 'office'))
    assert len(MultiDomainDataset(dict(a=own), data_root=tmp_path / 'office')) == 5
    assert len(MultiDomainDataset(dict(a=relative, b=absolute), data_root=tmp_path)) == 10
    monkeypatch.setenv('MMREPMTL_DATA', str(tmp_path))
    assert len(MultiDomainDataset(dict(a=relative, b=absolute))) == 10
    (tmp_path / 'office').rename(tmp_path / 'office31')
    assert len(MultiDomainDataset(dict(a=own))) == 5
    monkeypatch.delenv('MMREPMTL_DATA')
    with pytest.raises(ValueError, match='MultiDomainDataset: pass data_root, or set'):
        MultiDomainDataset(dict(a=relative))


def test_test_mode_is_that_of_the_domains():
    train, test = Numbers(1), Numbers(1, test_mode=True)
    assert not MultiDomainDataset(dict(a=train, b=test)).test_mode
    assert MultiDomainDataset(dict(a=test, b=test)).test_mode
    assert MultiDomainDataset(dict(a=train), test_mode=True).test_mode


def test_wrong_declarations_are_refused():
    with pytest.raises(ValueError, match='datasets is empty'):
        MultiDomainDataset({})
    with pytest.raises(ValueError, match=r"domain 'b' has the targets \['number', 'kind'\], expected exactly one"):
        MultiDomainDataset(dict(a=Numbers(1), b=Numbers(1, targets=None)))
    with pytest.raises(ValueError, match='indices would cut the domains at random'):
        domains(indices=3)


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    dataset = domains(pipeline=[draw_noise])

    def noise(index, epoch, seed=0):
        return dataset[EpochIndex(index, epoch, seed)]['noise']

    assert noise(6, 2) == noise(6, 2) == domains(pipeline=[draw_noise])[EpochIndex(6, 2, 0)]['noise']
    # Index 6 is the second sample of its domain; it is not augmented like the second one of another.
    assert len({noise(6, 2), noise(1, 2), noise(6, 3), noise(6, 2, 1)}) == 4


def test_it_travels_to_worker_processes():
    dataset = domains(pipeline=[draw_noise])
    assert pickle.loads(pickle.dumps(dataset))[EpochIndex(6, 2, 0)]['noise'] == dataset[EpochIndex(6, 2, 0)]['noise']


# The sampler.


def as_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, world_size))


class Sizes:
    """Stands for a data set where only the number of samples of each domain matters."""

    def __init__(self, *sizes):
        ends = list(itertools.accumulate(sizes, initial=0))
        self.domains = {f'task{i}': range(*ends[i : i + 2]) for i in range(len(sizes))}

    def __len__(self):
        return max(rows.stop for rows in self.domains.values())


def sampler_of(sizes, batch_size, epoch=0, seed=0, shuffle=True, **kwargs):
    sampler = EpochSampler(Sizes(*sizes), shuffle=shuffle, seed=seed)
    sampler.set_epoch(epoch)
    return DomainBatchSampler(sampler, batch_size, **kwargs)


def carried(batches):
    return [[(int(index), index.epoch, index.seed, index.origin) for index in batch] for batch in batches]


def by_domain(sampler, batches):
    """{task: its part of each batch}; checks that the parts are in the order of the tasks."""
    parts = {task: [[i for i in batch if i in rows] for batch in batches] for task, rows in sampler.domains.items()}
    for number, batch in enumerate(batches):
        assert batch == [index for part in parts.values() for index in part[number]]
    return parts


@pytest.mark.parametrize(
    'sizes, iterations', [((1680, 287, 466), 26), ((1435, 2596, 2635, 2586), 41)], ids=['office31', 'office_home']
)
def test_iterations_per_epoch_of_the_paper(sizes, iterations):
    sampler = sampler_of(sizes, 64)
    batches = list(sampler)
    assert len(sampler) == len(batches) == iterations
    for part in by_domain(sampler, batches).values():
        assert {len(batch) for batch in part} == {64}


@pytest.mark.parametrize('batch_size', [3, dict(task0=4, task1=2, task2=1)])
def test_every_batch_has_the_batch_size_of_every_task(batch_size):
    sampler = sampler_of((21, 5, 9), batch_size)
    sizes = dict.fromkeys(sampler.domains, batch_size) if isinstance(batch_size, int) else batch_size
    for task, part in by_domain(sampler, list(sampler)).items():
        assert {len(batch) for batch in part} == {sizes[task]}


def test_a_shorter_domain_begins_again_in_a_new_order():
    sampler = sampler_of((40, 7), 2, epoch=3)
    parts = by_domain(sampler, list(sampler))
    assert len(sampler) == 20
    assert sorted(sum(parts['task0'], [])) == list(range(40))
    # Three batches are a pass of the second; one sample is left out of each.
    passes = [sum(parts['task1'][start : start + 3], []) for start in range(0, 18, 3)]
    assert all(len(set(drawn)) == 6 for drawn in passes)
    assert len({tuple(drawn) for drawn in passes}) == 6
    assert set(sum(passes, [])) == set(range(40, 47))


def test_the_passes_are_counted_so_that_no_sample_is_augmented_twice_alike():
    drawn = []
    for epoch in range(4):
        sampler = sampler_of((40, 7), 2, epoch=epoch, seed=5)
        drawn += sum(carried(sampler), [])
        epochs = [index.epoch for batch in sampler for index in batch if index >= 40]
        # Seven passes are begun in each epoch, the last of which ends after two of its three batches.
        assert epochs == [7 * epoch + n // 6 for n in range(40)]
    assert len(set(drawn)) == len(drawn) and {seed for _, _, seed, _ in drawn} == {5}


def test_the_last_batch_may_be_smaller():
    sampler = sampler_of((11, 3), 4, drop_last=False)
    parts = by_domain(sampler, list(sampler))
    assert len(sampler) == 3
    assert [len(batch) for batch in parts['task0']] == [4, 4, 3]
    assert sorted(sum(parts['task0'], [])) == list(range(11))
    assert [sorted(batch) for batch in parts['task1']] == [[11, 12, 13]] * 3


@pytest.mark.parametrize('drop_last', [True, False])
@pytest.mark.parametrize('world_size', [2, 3])
def test_the_ranks_share_out_what_one_process_would_draw(monkeypatch, world_size, drop_last):
    sizes = (50, 13, 20)
    ranks = []
    for rank in range(world_size):
        as_rank(monkeypatch, rank, world_size)
        sampler = sampler_of(sizes, 3, epoch=2, drop_last=drop_last)
        ranks.append(by_domain(sampler, list(sampler)))
    as_rank(monkeypatch, 0, 1)
    single = sampler_of(sizes, 3 * world_size, epoch=2, drop_last=drop_last)
    whole = by_domain(single, list(single))
    for task, batches in whole.items():
        per_rank = [part[task] for part in ranks]
        assert {len(part) for part in per_rank} == {len(single)}
        for number, batch in enumerate(batches):
            shares = [part[number] for part in per_rank]
            assert len({len(share) for share in shares}) == 1 and shares[0]
            drawn = sum(shares, [])
            # Only what fills up an uneven batch is drawn twice.
            padding = -len(batch) % world_size
            assert set(drawn) >= set(batch) and len(drawn) == len(batch) + padding
            if not padding:
                assert sorted(drawn) == sorted(batch) and len(set(drawn)) == len(drawn)
    assert drop_last or any(len(batch) % world_size for batches in whole.values() for batch in batches)


def test_the_order_depends_on_seed_epoch_and_domain():
    first = carried(sampler_of((30, 30), 3))
    assert carried(sampler_of((30, 30), 3)) == first
    orders = [
        [i for i, *_ in sum(carried(sampler_of((30, 30), 3, **kwargs)), [])]
        for kwargs in (dict(), dict(epoch=1), dict(seed=1))
    ]
    assert len({tuple(order) for order in orders}) == 3
    one, other = by_domain(sampler_of((30, 30), 3), list(sampler_of((30, 30), 3))).values()
    assert sum(one, []) != [index - 30 for index in sum(other, [])]


def test_without_shuffling_the_order_is_that_of_the_data():
    sampler = sampler_of((4, 2), 2, shuffle=False)
    assert list(sampler) == [[0, 1, 4, 5], [2, 3, 4, 5]]


def test_a_pass_that_has_begun_keeps_its_epoch():
    sampler = sampler_of((6, 4), 2, epoch=1)
    expected = carried(sampler)
    batches = iter(sampler)
    sampler.sampler.set_epoch(2)
    assert carried(batches) == expected
    assert carried(sampler) == carried(sampler_of((6, 4), 2, epoch=2)) != expected


def test_wrong_use_of_the_sampler_is_named():
    with pytest.raises(ValueError, match='needs an EpochSampler of a MultiDomainDataset, got EpochSampler of Numbers'):
        DomainBatchSampler(EpochSampler(Numbers(3)), 1)
    with pytest.raises(ValueError, match='got DefaultSampler of Sizes'):
        DomainBatchSampler(DefaultSampler(Sizes(3)), 1)
    with pytest.raises(ValueError, match="batch size of 'task1' is None"):
        sampler_of((4, 4), dict(task0=2))
    with pytest.raises(ValueError, match="batch size of 'task0' is 0"):
        sampler_of((4, 4), 0)
    with pytest.raises(ValueError, match="'task1' has 3 samples, fewer than one batch of 4 on 1 .* or set drop_last"):
        sampler_of((8, 3), 4)


def test_a_domain_with_fewer_samples_than_processes_is_refused(monkeypatch):
    as_rank(monkeypatch, 0, 4)
    with pytest.raises(ValueError, match=r"'task1' has 3 samples, fewer than one batch of 1 on 4 process\(es\)"):
        sampler_of((8, 3), 1, drop_last=False)


def loader(num_workers=0):
    return Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            sampler=dict(type='mmrepmtl.EpochSampler', shuffle=True),
            batch_sampler=dict(type='mmrepmtl.DomainBatchSampler'),
            dataset=domains(pipeline=[lambda results: dict(index=results['sample_idx'], noise=np.random.rand())]),
        ),
        seed=3,
    )


def test_mmengine_builds_it_and_workers_change_nothing():
    drawn = []
    for num_workers in (0, 2):
        built = loader(num_workers)
        assert len(built) == 2 and built.batch_sampler.sampler.seed == 3
        for epoch in (0, 1):
            # As mmengine's DistSamplerSeedHook does.
            assert not hasattr(built.sampler, 'set_epoch')
            built.batch_sampler.sampler.set_epoch(epoch)
            drawn.append([(batch['index'], batch['noise']) for batch in built])
    assert drawn[:2] == drawn[2:] and drawn[0] != drawn[1]
