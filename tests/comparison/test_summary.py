"""The summary of a comparison: Delta p of each seed, what counts, what is missing."""

import math
import statistics

import pytest

from mmrepmtl.comparison.summary import summarize
from tests.comparison.numbers import METRICS, make_row, make_rows


def slow_delta(rows, label, seed, baseline, mode):
    """Delta p as the formula is written, without rmse."""
    by_task = {}
    for metric, (_, up) in METRICS.items():
        if metric == 'depth/rmse':
            continue
        ours, theirs = (
            next(row.value for row in rows if (row.label, row.seed, row.metric) == (name, seed, metric))
            for name in (label, baseline)
        )
        by_task.setdefault(metric.split('/')[0], []).append(100 * (1 if up else -1) * (ours - theirs) / theirs)
    if mode == 'task':
        return statistics.fmean(statistics.fmean(changes) for changes in by_task.values())
    return statistics.fmean(change for changes in by_task.values() for change in changes)


@pytest.mark.parametrize('mode', ['task', 'metric'])
def test_delta_p_is_that_of_each_seed_against_the_baseline_of_the_same_seed(mode):
    rows = make_rows()
    found = summarize(rows)
    assert found.baseline == 'stl' and not found.notes and found.seeds == [0, 1, 2]
    for label in ('ew', 'rep-mtl'):
        own = getattr(found.methods[label], f'delta_{mode}')
        assert own == pytest.approx({s: slow_delta(rows, label, s, 'stl', mode) for s in (0, 1, 2)})
    assert set(getattr(found.methods['stl'], f'delta_{mode}').values()) == {0.0}
    assert not found.methods['constant'].delta_task


def test_metrics_are_means_with_sample_deviations():
    rows = make_rows()
    own = summarize(rows).methods['uw'].metrics['depth/abs_err']
    values = [row.value for row in rows if row.label == 'uw' and row.metric == 'depth/abs_err']
    assert (own.mean, own.deviation) == pytest.approx((statistics.fmean(values), statistics.stdev(values)))
    assert own.count == 3


def test_without_single_task_runs_equal_weighting_is_the_baseline():
    rows = make_rows({'ew': -2, 'rep-mtl': 1})
    found = summarize(rows)
    assert found.baseline == 'ew'
    expected = {s: slow_delta(rows, 'rep-mtl', s, 'ew', 'task') for s in (0, 1, 2)}
    assert found.methods['rep-mtl'].delta_task == pytest.approx(expected)
    assert list(found.differences()) == ['ew']
    nothing = summarize(make_rows({'uw': 0, 'rep-mtl': 1}))
    assert nothing.baseline is None and 'Delta p: neither stl nor ew has a finished run' in nothing.notes[0]
    assert not nothing.methods['rep-mtl'].delta_task


def test_references_are_the_baseline_and_equal_weighting_with_and_without_the_log():
    found = summarize(make_rows())
    differences = found.differences()
    assert list(differences) == ['stl', 'ew-log', 'ew']
    assert [entry.label for entry in differences['stl']] == ['ew', 'ew-log', 'uw', 'db-mtl', 'cagrad', 'rep-mtl']
    own, log = (found.methods[label].delta_task for label in ('rep-mtl', 'ew-log'))
    entry = next(entry for entry in differences['ew-log'] if entry.label == 'rep-mtl')
    assert entry.values == pytest.approx({seed: own[seed] - log[seed] for seed in (0, 1, 2)})
    assert found.differences('metric')['ew-log'][-1].mean != entry.mean


def test_missing_runs_and_numbers_are_said():
    rows = make_rows()
    rows = [row for row in rows if (row.label, row.seed) not in (('uw', 1), ('stl', 2))]
    rows = [row for row in rows if (row.label, row.seed, row.metric) != ('ew', 0, 'semseg/mIoU')]
    rows += [make_row('odd', 0, metric, math.nan) for metric in METRICS]
    found = summarize(rows, order=['stl', 'ew', 'later', 'rep-mtl'], seeds=[0, 1, 2, 3])
    assert 'uw: no finished run of seed 1, 3' in found.notes and 'stl: no finished run of seed 2, 3' in found.notes
    assert 'later: no finished run of all seeds' in found.notes
    assert 'ew: no Delta p for seed 2, of which stl has no finished run' in found.notes
    assert any(note.startswith("ew: no Delta p for seed 0: delta_p: 'semseg/mIoU' is missing") for note in found.notes)
    assert (
        'odd: seed 0 has no number for semseg/mIoU, semseg/pixAcc, depth/abs_err, depth/rel_err, depth/rmse, '
        in next(note for note in found.notes if note.startswith('odd: seed 0 has'))
    )
    assert list(found.methods['ew'].delta_task) == [1] and found.methods['odd'].rank is None
    assert not found.methods['odd'].metrics


def test_a_mean_over_two_configs_is_refused():
    rows = make_rows()
    other = [make_row('uw', 3, metric, 1.0, config_hash='other') for metric in METRICS]
    with pytest.raises(ValueError, match='uw has rows of two configs, 0123456789abcdef and other'):
        summarize([*rows, *other])
    # Validation rows may come from parts of the training images.
    elsewhere = [make_row('uw', 0, metric, 1.0, config_hash='other', split='val') for metric in METRICS]
    assert summarize([*rows, *elsewhere]).seeds == [0, 1, 2]


@pytest.mark.parametrize('value', [math.nan, None])
def test_a_method_that_has_lost_a_seed_has_no_rank_and_its_differences_are_preliminary(value):
    # The seed in which it diverged would have been its worst.
    rows = [
        make_row(row.label, row.seed, row.metric, math.nan) if (row.label, row.seed) == ('uw', 2) else row
        for row in make_rows()
    ]
    rows = [row for row in rows if math.isfinite(row.value) or value is not None]
    found = summarize(rows)
    assert found.methods['uw'].rank is None and found.methods['uw'].metrics['depth/abs_err'].count == 2
    others = [found.methods[label].rank for label in found.competitors if label != 'uw']
    assert sum(others) / 5 == pytest.approx(3)  # the ranks 1 to 5 among themselves
    (entry,) = [entry for entry in found.differences()['stl'] if entry.label == 'uw']
    assert found.preliminary and 'preliminary; ' in entry.verdict and '2 of 3 seeds' in entry.verdict
    assert not summarize(make_rows()).preliminary


def test_differences_are_corrected_over_the_methods_that_are_planned():
    whole = summarize(make_rows()).differences()
    labels = ['stl', 'ew', 'ew-log', 'uw', 'db-mtl', 'cagrad', 'rep-mtl']
    early = summarize([row for row in make_rows() if row.label in labels[:4]], order=labels)
    assert early.preliminary and not summarize(make_rows(), order=labels).preliminary
    for reference, count in dict(stl=6, ew=5).items():
        assert {entry.family for entry in early.differences()[reference]} == {count}
        assert {entry.family for entry in whole[reference]} == {count}
    # The baseline is another one as long as the single-task runs are missing.
    waiting = summarize([row for row in make_rows() if row.label != 'stl'], order=labels)
    assert waiting.baseline == 'ew' and waiting.preliminary
    assert {entry.family for entry in waiting.differences()['ew']} == {5}


def test_order_is_that_of_the_command_after_the_baselines():
    rows = make_rows({'rep-mtl': 1, 'ew': 0, 'stl': 0})
    assert list(summarize(rows, order=['ew', 'stl', 'rep-mtl']).methods) == ['constant', 'stl', 'ew', 'rep-mtl']
    assert list(summarize(rows).methods) == ['constant', 'stl', 'rep-mtl', 'ew']


def test_rmse_and_averages_are_shown_but_do_not_count_and_validation_rows_do_not_either():
    rows = make_rows()
    rows += [make_row('ew', seed, 'avg/top1', 99.0) for seed in (0, 1, 2)]
    rows += [make_row('ew', 0, 'semseg/mIoU', 1000.0, split='val')]
    found = summarize(rows)
    assert found.keys[-1] == 'avg/top1' and 'depth/rmse' in found.keys
    assert not {'avg/top1', 'depth/rmse'} & set(found.counting)
    assert found.methods['ew'].metrics['semseg/mIoU'].mean < 100
    assert found.tasks['depth'] == ['depth/abs_err', 'depth/rel_err', 'depth/rmse']


def test_the_mean_rank_is_over_the_metrics_that_count_and_the_methods_without_baselines():
    rows = make_rows()
    found = summarize(rows)
    labels = ['ew', 'ew-log', 'uw', 'db-mtl', 'cagrad', 'rep-mtl']
    means = {
        (label, key): statistics.fmean(row.value for row in rows if (row.label, row.metric) == (label, key))
        for label in labels
        for key in found.counting
    }
    for label in labels:
        ranks = [
            1 + sum((means[o, key] > means[label, key]) == METRICS[key][1] for o in labels if o != label)
            for key in found.counting
        ]
        assert found.methods[label].rank == pytest.approx(statistics.fmean(ranks))
    assert found.methods['stl'].rank is None and found.methods['constant'].rank is None
