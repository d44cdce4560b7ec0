"""The line that says how far a comparison is."""

import dataclasses
import io
import json
import time

import pytest

from mmrepmtl.comparison import run_progress as progress_module
from mmrepmtl.comparison.entries import Entry
from mmrepmtl.comparison.plan import Contestant
from mmrepmtl.comparison.run_progress import Progress, duration, fraction
from mmrepmtl.comparison.runs import Run
from tests.comparison.harness import ROW


def make_run(folder, label='ew', seed=0, log='', epochs=10, tasks=('a', 'b'), record=None):
    contestant = Contestant(Entry(label, label, None, 'c'), dict(train_cfg=dict(max_epochs=epochs)), 'h', 'c.py', tasks)
    run = Run(contestant, seed, folder / label / str(seed), (('train', ()),), (('test', 'm.json'),))
    run.folder.mkdir(parents=True)
    (run.folder / 'run.log').write_text(log)
    if record is not None:
        (run.folder / 'run.json').write_text(json.dumps(record))
    return run


def test_the_share_of_a_training_is_read_off_its_log(tmp_path):
    epochs = 'Epoch(train)  [3][20/40]  lr: 1\nEpoch(val) [3][2/2]\nEpoch(train)  [4][10/40]  lr: 1\n'
    assert fraction(make_run(tmp_path, log=epochs)) == pytest.approx((3 + 0.25) / 10)
    assert fraction(make_run(tmp_path, 'uw', log='Iter(train) [ 30/120]  lr: 1')) == 0.25
    assert fraction(make_run(tmp_path, 'dwa', log='starts')) == 0
    assert fraction(make_run(tmp_path, 'gls', record=dict(steps_done=['train']))) == 1
    stl = make_run(tmp_path, 'stl', log=epochs)
    for task in ('a', 'b'):
        (stl.folder / task).mkdir()
    assert fraction(stl) == pytest.approx((1 + 0.325) / 2)


def test_the_time_left_is_that_of_other_seeds_less_what_is_done(tmp_path):
    done = make_run(tmp_path, record=dict(steps_done=['train']))
    half = make_run(tmp_path, seed=1, log='Epoch(train) [5][40/40]')
    waiting = [make_run(tmp_path, seed=2), make_run(tmp_path, 'uw', seed=0)]
    half.folder.joinpath('run.json').write_text(
        json.dumps(dict(attempts=[dict(step='train', started=time.time() - 600)]))
    )
    row = dataclasses.replace(ROW, label='ew', seed=0, train_seconds=1200.0)
    stream = io.StringIO()
    shown = Progress([done, half, *waiting], 1, 2, lambda: [row, row], stream)
    # Each lasts 20 minutes; a half, two that wait and one that is not known yet are 70, by two at once.
    assert shown.line([half]) == '1 of 5 runs done; ew, seed 1 50 %; about 35 min left'
    assert '5 runs, 1 of them are done' in stream.getvalue()


def test_a_file_gets_a_line_now_and_then_and_a_terminal_one_that_changes(tmp_path, monkeypatch):
    run = make_run(tmp_path, log='Epoch(train) [5][40/40]')
    stream = io.StringIO()
    shown = Progress([run], 0, 1, list, stream)
    shown.show([run])
    assert '50 %' not in stream.getvalue()
    monkeypatch.setattr(progress_module, 'LINE_SECONDS', 0.0)
    shown.show([run])
    assert stream.getvalue().count('50 %') == 1
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(progress_module, 'LIVE_SECONDS', 0.0)
    shown = Progress([run], 0, 1, list, terminal)
    shown.show([run])
    shown.show([run])
    shown.say('done')
    assert terminal.getvalue().count('50 %') == 1
    assert terminal.getvalue().rpartition('\r')[2].endswith(' done\n')


@pytest.mark.parametrize(('seconds', 'text'), [(40, '40 s'), (725, '12 min'), (12000, '3 h 20 min')])
def test_times_for_a_person(seconds, text):
    assert duration(seconds) == text
