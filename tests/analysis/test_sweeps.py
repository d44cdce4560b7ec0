"""From the rows of a comparison to Delta p and times, by hand; and the figures of them."""

import json
import math
from types import SimpleNamespace

import pytest

from mmrepmtl.analysis.sweep_figures import ablation_figure, sensitivity_figure, time_figure
from mmrepmtl.analysis.sweeps import (
    Score,
    ablation,
    ablation_entries,
    counting_metrics,
    epoch_times,
    paired_delta_p,
    sweep,
)


def rows(label, values, sweep=None, split='test', seconds=None, method=None):
    """Two tasks, one metric each; ``values`` are {seed: (mIoU, abs_err)}."""
    return [
        SimpleNamespace(
            label=label,
            method=method or label.partition(':')[0],
            seed=seed,
            split=split,
            metric=metric,
            value=value,
            higher_is_better=better,
            train_seconds=seconds,
            step_seconds=None,
            sweep=json.dumps(sweep or {}),
        )
        for seed, own in values.items()
        for metric, value, better in zip(('a/mIoU', 'b/abs_err'), own, (True, False), strict=True)
    ]


BASE = rows('ew-log', {0: (50.0, 2.0), 1: (40.0, 1.0)})


def test_delta_p_is_paired_by_seed():
    found = paired_delta_p([*BASE, *rows('rep-mtl', {1: (44.0, 1.0), 0: (50.0, 1.8), 2: (1.0, 9.0)})], 'rep-mtl')
    # (0 + 10) / 2 and (10 + 0) / 2; the third seed has no partner.
    assert found == {0: pytest.approx(5.0), 1: pytest.approx(5.0)}


def test_the_direction_of_a_metric_is_that_of_the_results():
    changed = [SimpleNamespace(**{**vars(row), 'metric': row.metric.replace('mIoU', 'odd')}) for row in BASE]
    other = rows('rep-mtl', {0: (55.0, 2.0)})
    other = [SimpleNamespace(**{**vars(row), 'metric': row.metric.replace('mIoU', 'odd')}) for row in other]
    assert paired_delta_p([*changed, *other], 'rep-mtl') == {0: pytest.approx(5.0)}


def test_numbers_on_validation_data_and_constants_do_not_count():
    others = [*rows('rep-mtl', {0: (99.0, 0.1)}, split='val'), *rows('constant', {None: (1.0, 9.0)})]
    with pytest.raises(ValueError, match='no tested run of rep-mtl, only of ew-log; add it'):
        paired_delta_p([*BASE, *others], 'rep-mtl')


def test_a_metric_whose_yardstick_is_zero_with_one_seed_counts_with_none():
    base = [*rows('ew-log', {0: (50.0, 2.0), 1: (0.0, 1.0)}), *rows('rep-mtl', {0: (99.0, 1.8), 1: (40.0, 0.9)})]
    assert counting_metrics(base) == (['b/abs_err'], ['a/mIoU'])
    assert paired_delta_p(base, 'rep-mtl') == {0: pytest.approx(10.0), 1: pytest.approx(10.0)}
    with pytest.raises(ValueError, match='no metric of ew-log is above 0 with every seed'):
        counting_metrics(rows('ew-log', {0: (0.0, 0.0)}))


def test_runs_without_a_common_seed_are_refused():
    with pytest.raises(ValueError, match='rep-mtl and ew-log have no seed in common'):
        paired_delta_p([*BASE, *rows('rep-mtl', {7: (50.0, 2.0)})], 'rep-mtl')


def test_the_entries_of_the_ablation():
    assert ablation_entries('rep-mtl-paper') == {
        'none': 'ew-log',
        'TSR': 'rep-mtl-paper-tsr',
        'CSA': 'rep-mtl-paper-csa',
        'both': 'rep-mtl-paper',
    }
    assert list(ablation_entries('rep-mtl').values())[1:] == ['rep-mtl-tsr', 'rep-mtl-csa', 'rep-mtl']
    assert ablation_entries('rep-mtl:temperature=0.3')['TSR'] == 'rep-mtl:temperature=0.3,lambda_csa=0'
    assert ablation_entries('pcgrad+rep-mtl')['CSA'] == 'pcgrad+rep-mtl:lambda_tsr=0'


def test_the_ablation_and_its_figure():
    values = {'rep-mtl-tsr': (51.0, 2.0), 'rep-mtl-csa': (50.0, 1.9), 'rep-mtl': (55.0, 1.8)}
    others = [row for label, own in values.items() for row in rows(label, {0: own, 1: (40.0, 1.0)})]
    scores = ablation([*BASE, *others], 'rep-mtl')
    assert [score.name for score in scores] == ['none', 'TSR', 'CSA', 'both']
    assert [score.mean for score in scores] == pytest.approx([0, 0.5, 1.25, 5.0])
    assert scores[3].std == pytest.approx(10 / math.sqrt(2))
    (axes,) = ablation_figure(scores, 'a config', 'ew-log').axes
    assert [text.get_text() for text in axes.texts] == ['+0.00', '+0.50', '+1.25', '+5.00']
    assert axes.get_xticklabels()[1].get_text() == 'TSR\n(2 seeds)'
    paper = dict(TSR=0.17, both=1.64)
    (drawn,) = ablation_figure(scores, 'a config', 'ew-log', paper).axes
    assert [line.get_ydata().tolist() for line in drawn.get_lines() if line.get_label() == 'the paper'] == [
        [0.17, 1.64]
    ]
    (bar,) = axes.collections[3].get_segments()
    assert bar[:, 1].tolist() == pytest.approx([5 - scores[3].std, 5 + scores[3].std])


def test_a_sweep_is_the_entries_that_set_one_key_in_the_order_of_values():
    others = [
        *rows('rep-mtl:lambda_tsr=1.5', {0: (50.0, 1.0)}, dict(lambda_tsr=1.5)),
        *rows('rep-mtl:lambda_tsr=0.1', {0: (50.0, 2.0)}, dict(lambda_tsr=0.1)),
        *rows('rep-mtl:lambda_tsr=0.3,lambda_csa=1', {0: (50.0, 3.0)}, dict(lambda_tsr=0.3, lambda_csa=1)),
        *rows('rep-mtl:lambda_tsr=0.9', {0: (99.0, 3.0)}, dict(lambda_tsr=0.9), split='val'),
        *rows('cagrad:lambda_tsr=0.2', {0: (50.0, 4.0)}, dict(lambda_tsr=0.2)),
    ]
    points = sweep([*BASE, *others], 'rep-mtl', 'lambda_tsr')
    assert [(point.x, point.mean) for point in points] == [(0.1, pytest.approx(0)), (1.5, pytest.approx(25))]
    assert sweep([*BASE, *others], 'rep-mtl', 'temperature') == []


def test_a_sweep_of_words_cannot_be_drawn():
    others = rows('rep-mtl:through=all', {0: (50.0, 1.0)}, dict(through='all'))
    with pytest.raises(ValueError, match="rep-mtl:through=all: through is 'all'; only the sweep of a number"):
        sweep([*BASE, *others], 'rep-mtl', 'through')


def test_the_figure_of_sweeps_has_a_panel_for_each_and_a_line_for_each_method():
    def points(*means):
        return [Score('', x, {0: mean - 1, 1: mean + 1}) for x, mean in enumerate(means, 1)]

    sweeps = dict(lambda_tsr={'rep-mtl': points(1, 2)}, lr={'rep-mtl': points(3, 4), 'ew-log': points(0, -1)})
    figure = sensitivity_figure(sweeps, dict(lr='learning rate'), 'ew-log')
    first, second = figure.axes
    drawn = [
        [
            line.get_ydata().tolist()
            for line in axes.get_lines()
            if line.get_linestyle() == '-' and line.get_marker() in 'os'
        ]
        for axes in figure.axes
    ]
    assert drawn == [[[1, 2]], [[3, 4], [0, -1]]]
    assert (first.get_xlabel(), second.get_xlabel()) == ('lambda_tsr', 'learning rate')
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ['rep-mtl', 'ew-log']


def test_times_are_per_epoch_fastest_first():
    found = epoch_times(
        [
            *rows('rep-mtl', {0: (1.0, 1.0), 1: (1.0, 1.0)}, seconds=30.0),
            *rows('ew', {0: (1.0, 1.0)}, seconds=10.0),
            *rows('by_iterations', {0: (1.0, 1.0)}, seconds=1.0),
            *rows('unknown', {0: (1.0, 1.0)}),
        ],
        {'rep-mtl': 10, 'ew': 10, 'unknown': 10},
    )
    assert [(score.name, score.mean, len(score.by_seed)) for score in found] == [('ew', 1.0, 1), ('rep-mtl', 3.0, 2)]
    (axes,) = time_figure(found, 'a config', 'ew').axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 3.0]
    assert [text.get_text() for text in axes.texts] == ['1 s  (1.00 x ew)', '3 s  (3.00 x ew)']
    with pytest.raises(ValueError, match='no training time'):
        epoch_times(BASE, {'ew-log': 3})
