"""The logs of runs as curves: seeds together, resumed runs, damaged lines, the tasks of the baseline."""

import numpy as np
import pytest

from mmrepmtl.comparison.report.history import Curve, mean_curve, read_history
from tests.comparison.folder import write_log


def test_long_curves_are_thinned_to_means_of_neighbours_and_odd_values_left_out():
    run = {step: float(step % 7) for step in range(1000)}
    found = mean_curve([run, run])
    assert (
        len(found.steps) == 112
        and found.steps[0] == 4
        and found.values[1] == pytest.approx(np.mean([step % 7 for step in range(9, 18)]))
    )
    assert mean_curve([{1: 1.0, 2: float('nan'), 3: 5.0}, {1: 3.0, 2: 1.0, 4: 7.0}]) == Curve([1], [2.0])
    assert mean_curve([{}, {}]) == Curve([], [])


def test_a_resumed_run_overwrites_what_it_repeats_and_damaged_lines_are_counted(tmp_path):
    write_log(tmp_path, [dict(lr=1, step=1, a=1.0), dict(lr=1, step=2, a=2.0), '{"lr": 1, "st'], '20260101_000000')
    write_log(tmp_path, [dict(lr=1, step=2, a=5.0), '[1]', dict(lr=1, a=1.0)], '20260102_000000')
    found = read_history([tmp_path])
    assert found.train == {'a': {1: 1.0, 2: 5.0}} and found.unreadable == 3


def test_what_is_measured_now_and_then_is_a_point_where_it_was_measured(tmp_path):
    values = [0.5, 0.5, 0.5, 0.7, 0.7, 0.5]
    name = 'task_gradients/cos/a-b'
    write_log(tmp_path, [{'lr': 1, 'step': 10 * i, name: v, 'raw/a': 2.0} for i, v in enumerate(values, 1)])
    found = read_history([tmp_path]).train
    assert found[name] == {10: 0.5, 40: 0.7, 60: 0.5} and len(found['raw/a']) == 6


def test_what_the_tasks_of_the_baseline_log_by_one_name_is_kept_apart(tmp_path):
    for number, task in enumerate(('depth', 'semseg'), 1):
        write_log(tmp_path / task, [{'lr': 1, 'step': 1, 'loss': number, f'raw/{task}': number}, '{"lr'])
        write_log(tmp_path / task, [{'step': 1, f'{task}/a': number}], '20261128_000000')
    found = read_history([tmp_path / 'depth', tmp_path / 'semseg'])
    losses = {'depth/loss': {1: 1.0}, 'semseg/loss': {1: 2.0}}
    assert found.train == losses | {'raw/depth': {1: 1.0}, 'raw/semseg': {1: 2.0}}
    assert found.val == {'depth/a': {1: 1.0}, 'semseg/a': {1: 2.0}} and found.unreadable == 2
