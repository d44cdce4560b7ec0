"""The published numbers: as in the files, told apart from ours by their set-up."""

import csv
import json

import pytest

from mmrepmtl.apis import get_config, load_config
from mmrepmtl.comparison import paper_rows as paper
from mmrepmtl.comparison.paper_rows import PENALTY, benchmark_of, penalty_of, published_row, published_rows, setup_facts
from mmrepmtl.comparison.report import write_reports
from mmrepmtl.comparison.settings import settings_of
from mmrepmtl.evaluation import delta_p
from tests.comparison.numbers import CONFIG, make_rows

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
    assert rows['rep-mtl-paper-tsr'].delta_task == 0.23 and rows['rep-mtl-paper-csa'].delta_task == 1.06
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
    assert published_row(rows, 'rep-mtl-paper-csa').name == 'Rep-MTL, CSA alone'
    assert published_row(rows, 'rep-mtl-paper-tsr').name == 'Rep-MTL, TSR alone'
    # Their strength is held, the published ones have fixed weights.
    assert published_row(rows, 'rep-mtl-csa') is published_row(rows, 'rep-mtl-tsr') is None
    assert published_row(rows, 'upgrad') is None
    assert published_row(published_rows('office31', KEYS), 'rep-mtl-paper-tsr') is None


def test_differences_of_the_set_up_are_those_of_the_config():
    facts = {fact.what: fact for fact in setup_facts('nyuv2', get_config(NYUV2), seeds=3)}
    assert [what for what, fact in facts.items() if fact.differs] == ['weights']
    assert facts['weights'].ours == 'none, from scratch' and facts['training images'].ours is None
    small = get_config('nyuv2/rep-mtl_resnet18-d16_conv_b8-20e_nyuv2-96x128')
    small.merge_from_dict({'train_dataloader.dataset.indices': 200, 'model.encoder.pretrained': True})
    facts = {fact.what: fact for fact in setup_facts('nyuv2', small, seeds=2)}
    assert [what for what, fact in facts.items() if not fact.differs] == [
        'weights', 'batch size', 'optimizer', 'weight decay', 'lambda_tsr', 'lambda_csa', 'temperature',
    ]  # fmt: skip
    assert (facts['image size'].ours, facts['training images'].ours, facts['seeds'].ours) == ('96 x 128', '200', '2')
    assert facts['augmentation'].ours == 'RandomZoom, RandomFlip' and facts['heads'].ours == 'Conv'
    office = get_config('office31/rep-mtl_resnet18-concat_b32-5e_office31-64')
    office.model.encoder.checkpoint = '/home/me/weights.pth'
    facts = {fact.what: fact for fact in setup_facts('office31', office, seeds=3)}
    assert facts['weights'].ours == 'of the file weights.pth' and facts['encoder forward'].ours == 'concat'


@pytest.mark.parametrize('benchmark', paper.BENCHMARKS.values())
def test_a_penalty_that_is_another_method_differs(benchmark):
    def facts(method, **options):
        options = {f'optim_wrapper.regularizers.0.{key}': value for key, value in options.items()}
        cfg = load_config(NYUV2, method=method, cfg_options=options)
        return {fact.what: fact for fact in setup_facts(benchmark, cfg, seeds=3) if fact.what in PENALTY}

    def different(*args, **options):
        return [what for what, fact in facts(*args, **options).items() if fact.differs]

    assert different('rep-mtl') == ['target_ratio', 'through']
    held = facts('rep-mtl')
    assert [(held[what].published, held[what].ours) for what in ('target_ratio', 'through', 'temperature')] == [
        ('none', '0.05'), ('all', 'representation'), ('not stated', '1'),
    ]  # fmt: skip
    assert list(facts('rep-mtl-paper')) == list(PENALTY) and different('rep-mtl-paper') == []
    # The grid of the paper, not one of its values alone.
    assert different('rep-mtl-paper', lambda_tsr=1.5) == [] and different('rep-mtl-paper', lambda_csa=1.6) == [
        'lambda_csa'
    ]
    assert facts('ew') == {} == penalty_of(load_config(NYUV2, method='ew'))


def test_facts_about_the_penalty_are_those_of_each_entry():
    cfg = load_config(NYUV2, method='ew')
    labels = ('ew', 'rep-mtl', 'rep-mtl-paper', 'rep-mtl-paper-tsr', 'rep-mtl-paper-csa')
    settings = {label: load_config(NYUV2, method=label) for label in labels}

    def facts(*names):
        found = setup_facts('nyuv2', cfg, 3, {name: settings.get(name) for name in names})
        return {fact.what: fact for fact in found if fact.what in PENALTY}

    both = facts('ew', 'rep-mtl', 'rep-mtl-paper')
    assert both['target_ratio'].ours == '0.05 (rep-mtl); none (rep-mtl-paper)' and both['target_ratio'].differs
    assert both['lambda_tsr'].ours == '0.9' and not both['lambda_tsr'].differs
    # The term that an ablation leaves out is no difference from the published ablation.
    terms = facts(*labels[2:])
    assert not any(fact.differs for fact in terms.values()) and terms['lambda_csa'].ours == '0.9'
    assert 'lambda_csa' not in facts('rep-mtl-paper-tsr') and 'lambda_csa' in facts('rep-mtl-paper-csa')
    some = facts('rep-mtl-paper', 'rep-mtl:a=1')['through']
    assert some.ours == 'all (rep-mtl-paper); not known (rep-mtl:a=1)' and not some.differs
    assert facts('rep-mtl:a=1')['through'].ours is None and facts('ew', 'uw') == {}


def test_the_table_says_how_the_penalty_of_each_entry_differs(tmp_path):
    labels = ('stl', 'ew', 'rep-mtl', 'rep-mtl-paper')
    entries = {label: dict(settings=settings_of(load_config(CONFIG, method=label))) for label in labels}
    (tmp_path / 'comparison.json').write_text(json.dumps(dict(methods=labels, seeds=[0, 1, 2], entries=entries)))
    write_reports(tmp_path, make_rows(dict.fromkeys(labels, 0)))
    text = (tmp_path / 'table.md').read_text(encoding='utf-8').replace('\\_', '_')
    told = next(line for line in text.splitlines() if line.startswith('The set-ups differ in '))
    assert 'target_ratio, through' in told.partition(':')[0] and 'lambda' not in told
    assert '| target_ratio | none | 0.05 (rep-mtl); none (rep-mtl-paper) | yes |' in text
    assert '| temperature | not stated | 1 |  |' in text
    (tmp_path / 'comparison.json').unlink()
    write_reports(tmp_path, make_rows(dict.fromkeys(labels, 0)))
    alone = (tmp_path / 'table.md').read_text(encoding='utf-8').replace('\\_', '_')
    assert '| target_ratio | none | not told by the config |  |' in alone
