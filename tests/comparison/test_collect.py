"""Facts read off the folder of a run: its numbers, its times, its memory."""

import json
import subprocess

import pytest

from mmrepmtl.comparison import collect
from mmrepmtl.comparison.plan import Options, load_contestants
from mmrepmtl.comparison.runs import make_runs
from tests.cli.harness import TINY


def make_run(folder, entry='cagrad:c=0.4'):
    (run,) = make_runs(folder, load_contestants(str(TINY), [entry], Options()), [5], Options())
    run.folder.mkdir(parents=True)
    return run


def write(run, metrics=None, meta=None, attempts=(), **record):
    (_, name), *_ = run.results
    content = dict(metrics=metrics or {'depth/abs_err': 0.5, 'semseg/mIoU': None}, meta=meta or {})
    (run.folder / name).write_text(json.dumps(content))
    about = dict(attempts=attempts, commit='abc', versions=dict(torch='2'), finished='2026-11-27T20:00:00+00:00')
    (run.folder / 'run.json').write_text(json.dumps(about | record))


def log(folder, *lines):
    file = folder / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text('\n'.join(json.dumps(line) if isinstance(line, dict) else line for line in lines))


def steps(*times, **more):
    return [dict(lr=0.1, time=time, **more) for time in times]


def test_the_rows_of_a_run_and_of_the_constants(tmp_path):
    run = make_run(tmp_path)
    log(run.folder / '1', *steps(9.0, 0.2, 0.3), dict(time=7.0, step=1), '{"lr": 0.1, "ti')
    log(run.folder / '2', *steps(0.4, 0.5))
    attempts = [
        dict(step='train', seconds=10.0, max_rss_mib=700.0),
        dict(step='train', seconds=5.0, max_rss_mib=800.0),
        dict(step='test', seconds=99.0, max_rss_mib=900.0),
    ]
    write(run, meta=dict(selection='the checkpoint given', constant={'depth/abs_err': 0.9}), attempts=attempts)
    depth, semseg, constant = sorted(
        collect.rows_of(run, 'tiny'), key=lambda row: (row.label == 'constant', row.metric)
    )
    assert (depth.label, depth.method, depth.seed, depth.sweep) == ('cagrad:c=0.4', 'cagrad', 5, '{"c": 0.4}')
    assert depth.value == 0.5 and not depth.higher_is_better and depth.task == 'depth' and depth.split == 'test'
    assert semseg.value != semseg.value and semseg.higher_is_better
    # The first of 5 is left out, as is the validation; the line that a kill has cut is none.
    assert depth.step_seconds == pytest.approx(0.35) and depth.train_seconds == 15.0
    assert depth.peak_memory_mib == 800.0 and depth.commit == 'abc' and json.loads(depth.versions) == dict(torch='2')
    assert depth.selection == 'last checkpoint, no selection' and depth.config_hash == run.contestant.config_hash
    assert (constant.seed, constant.value, constant.train_seconds, constant.sweep) == (None, 0.9, None, '{}')


def test_commits_and_versions_are_those_of_all_that_the_numbers_come_from(tmp_path):
    run = make_run(tmp_path)
    attempts = [
        dict(step='train', state='failed', commit='a', versions=dict(torch='1', threads='2')),
        dict(step='train', state='done', commit='b', versions=dict(torch='1', threads='4')),
        dict(step='test', state='failed', commit='c', versions=dict(torch='3')),
        dict(step='test', state='done', commit='a', versions=dict(torch='1', threads='2')),
    ]
    write(run, attempts=attempts)
    for row in collect.rows_of(run, 'tiny'):
        assert row.commit == 'a and b' and json.loads(row.versions) == dict(torch='1', threads='2 and 4')


def test_the_memory_is_that_of_the_gpu_where_there_is_one(tmp_path):
    run = make_run(tmp_path)
    log(run.folder / '1', *steps(0.1, memory=300), *steps(0.1, memory=400))
    write(run, attempts=[dict(step='train', seconds=1.0, max_rss_mib=9000.0)])
    assert {row.peak_memory_mib for row in collect.rows_of(run, 'tiny')} == {400.0}


def test_a_step_of_the_baseline_is_one_of_each_task(tmp_path):
    run = make_run(tmp_path, 'stl')
    for task, seconds in dict(semseg=0.1, depth=0.2, normal=0.3).items():
        log(run.folder / task / '1', *steps(seconds, seconds))
    write(run)
    rows = collect.rows_of(run, 'tiny')
    assert {row.step_seconds for row in rows} == {0.6} and {row.label for row in rows} == {'stl'}


def test_a_run_without_its_numbers_is_an_error_that_names_the_file(tmp_path):
    run = make_run(tmp_path)
    write(run)
    (run.folder / 'test_metrics.json').write_text('{')
    with pytest.raises(ValueError, match='test_metrics.json is not a results file'):
        collect.rows_of(run, 'tiny')


def test_the_commit_is_that_of_the_checkout_or_unknown(tmp_path, monkeypatch):
    package = tmp_path / 'checkout' / 'mmrepmtl'
    package.mkdir(parents=True)
    monkeypatch.setattr(collect, 'PACKAGE', package)
    assert collect.commit() == 'unknown'

    def git(*arguments):
        names = ('-c', 'user.name=x', '-c', 'user.email=x@y')
        command = ['git', '-C', str(package.parent), *names, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git('init')
    (package / 'file').write_text('1')
    git('add', '.')
    git('commit', '-m', 'one')
    assert collect.commit() == git('rev-parse', 'HEAD')[:12]
    (package / 'file').write_text('2')
    assert collect.commit() == git('rev-parse', 'HEAD')[:12] + '-dirty'
