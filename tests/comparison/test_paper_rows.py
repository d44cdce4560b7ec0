"""The published numbers: as in the files, told apart from ours by their set-up."""

import csv

import pytest

from mmrepmtl.apis import get_config
from mmrepmtl.comparison import paper_rows as paper
from mmrepmtl.comparison.paper_rows import benchmark_of, published_row, published_rows, setup_facts
from mmrepmtl.evaluation import delta_p

NYUV2 = 'nyuv2/rep-mtl_resnet50-d8_deeplab_b8-200e_nyuv2-288x384'
KEYS = ('semseg/mIoU', 'semseg/pixAcc', 'depth/abs_err', 'depth/rel_err', 'normal/mean', 'normal/median')
WITHIN = tuple(f'normal/within_{angle}' for angle in ('11.25', '22.5', '30'))


@pytest.mark.parametrize(
    'config, benchmark',
    [
        (NYUV2, 'nyuv2'),
        ('cityscapes/rep-mtl_resnet18-d16_conv_b16-20e_cityscapes-64x128', 'cityscapes'),
        ('office31/rep-mtl_resnet18-per-task_b32-5e_office31-64', 'office31'),
        ('office_home/rep-mtl_resnet18-concat_b32-5e_office-home-64', 'office_home'),
        ('synth_rooms/quickstart', None),
    ],
)
def test_the_benchmark_is_that_of_the_data_set(config, benchmark):
    assert benchmark_of(get_config(config)) == benchmark


def test_rows_hold_the_numbers_of_the_file_under_our_names():
    rows = published_rows('nyuv2', [*KEYS, *WITHIN, 'depth/rmse'])
    own = rows['db-mtl']
    assert own.name == 'DB-MTL' and (own.delta_task, own.deviation, own.delta_metric) == (1.15, 0.16, 0.56)
    values = (53.92, 75.60, 0.3768, 0.1557, 21.97, 15.37, 38.43, 64.81, 75.24)
    assert own.metrics == dict(zip([*KEYS, *WITHIN], values, strict=True))
    assert rows['ew-log'].delta_task == 0.06 and 'DB-MTL' in rows['ew-log'].source and not rows['ew-log'].metrics
    assert rows['rep-mtl-tsr'].delta_task == 0.23 and rows['rep-mtl-csa'].delta_task == 1.06
    office = published_rows('office31', ['amazon/top1', 'webcam/top1', 'avg/top1'])['rep-mtl']
    assert office.metrics == {'amazon/top1': 85.93, 'webcam/top1': 98.67, 'avg/top1': 94.38}
    home = published_rows('office_home', ['Real_World/top1'])
    assert home['moco'].metrics == {'Real_World/top1': 78.70} and home['moco'].delta_task is None
    with pytest.raises(ValueError, match="no numbers of 'mars', only of nyuv2"):
        published_rows('mars', KEYS)


# Cityscapes' depth error is printed with three digits.
@pytest.mark.parametrize(
    'benchmark, keys, tolerance', [('nyuv2', [*KEYS, *WITHIN], 0.01), ('cityscapes', KEYS[:4], 0.15)]
)
def test_delta_p_of_the_rows_is_the_printed_one(benchmark, keys, tolerance):
    rows = published_rows(benchmark, keys)
    for label in ('ew', 'rep-mtl', 'db-mtl'):
        found = delta_p(rows[label].metrics, rows['stl'].metrics, keys=keys)
        assert found == pytest.approx(rows[label].delta_task, abs=tolerance)


def test_every_file_names_its_source_and_reads_as_numbers():
    files = sorted(paper.FOLDER.glob('*.csv'))
    assert {file.stem for file in files} == {*paper.BENCHMARKS.values(), 'ew_log', 'ablation', 'setup'}
    for file in files:
        lines = file.read_text(encoding='utf-8').splitlines()
        assert lines[0].startswith('# ') and 'source: ' in lines[0] and 'arXiv' in lines[0]
        entries = list(csv.DictReader(lines[1:]))
        assert entries and all(None not in entry and None not in entry.values() for entry in entries)


def test_overlays_of_rep_mtl_are_compared_with_the_published_one():
    rows = published_rows('nyuv2', KEYS)
    assert published_row(rows, 'rep-mtl-paper') is rows['rep-mtl'] is published_row(rows, 'rep-mtl')
    assert published_row(rows, 'rep-mtl-csa').name == 'Rep-MTL, CSA alone'
    assert published_row(rows, 'upgrad') is None
    assert published_row(published_rows('office31', KEYS), 'rep-mtl-tsr') is None


def test_differences_of_the_set_up_are_those_of_the_config():
    facts = {fact.what: fact for fact in setup_facts('nyuv2', get_config(NYUV2), seeds=3)}
    assert [what for what, fact in facts.items() if fact.differs] == ['weights']
    assert facts['weights'].ours == 'none, from scratch' and facts['training images'].ours is None
    small = get_config('nyuv2/rep-mtl_resnet18-d16_conv_b8-20e_nyuv2-96x128')
    small.merge_from_dict({'train_dataloader.dataset.indices': 200, 'model.encoder.pretrained': True})
    facts = {fact.what: fact for fact in setup_facts('nyuv2', small, seeds=2)}
    assert [what for what, fact in facts.items() if not fact.differs] == [
        'weights', 'batch size', 'optimizer', 'weight decay',
    ]  # fmt: skip
    assert (facts['image size'].ours, facts['training images'].ours, facts['seeds'].ours) == ('96 x 128', '200', '2')
    assert facts['augmentation'].ours == 'RandomZoom, RandomFlip' and facts['heads'].ours == 'Conv'
    office = get_config('office31/rep-mtl_resnet18-concat_b32-5e_office31-64')
    office.model.encoder.checkpoint = '/home/me/weights.pth'
    facts = {fact.what: fact for fact in setup_facts('office31', office, seeds=3)}
    assert facts['weights'].ours == 'of the file weights.pth' and facts['encoder forward'].ours == 'concat'
