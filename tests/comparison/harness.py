"""Configs, rows and stand-ins of trainings for the tests of comparisons."""

import json
import time
from pathlib import Path

from mmrepmtl.comparison.comparison import Comparison
from mmrepmtl.comparison.plan import Options
from mmrepmtl.comparison.results_file import Row
from tests.cli.harness import TINY

ROW = Row(
    label='cagrad:c=0.4,"x"',
    method='cagrad',
    seed=0,
    split='test',
    metric='semseg/mIoU',
    value=54.590001,
    higher_is_better=True,
    task='semseg',
    selection='last',
    config='synth_rooms/quickstart',
    config_hash='abc',
    commit='unknown',
    versions='{"torch": "2.9"}',
    step_seconds=0.25,
    peak_memory_mib=None,
    train_seconds=12.0,
    finished='2026-11-27T20:00:00+00:00',
    sweep='{"c": 0.4}',
)

# Ends as a training does that a signal has stopped.
TRAINING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print('checkpoint written', flush=True), sys.exit(143)))
print('begun', flush=True)
time.sleep(60)
"""


def variant(folder: Path, text: str) -> Path:
    """A config in ``folder`` that inherits the tiny one."""
    file = folder / 'variant.py'
    file.write_text(f'_base_ = {str(TINY)!r}\n{text}\n')
    return file


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError('it did not happen within 30 s')


SHORT = Options(cfg_options=('train_cfg.max_epochs=1',))


def comparison(folder, *methods, seeds=(1,), options=SHORT, **more):
    return Comparison(str(TINY), methods or ['ew'], seeds, folder, options, **more)


def finish(made, value=1.0, **values):
    """Writes what the jobs of the runs would have left; ``values`` are {split: {label: value}}."""
    for run in made.runs:
        about = dict(config_hash=run.contestant.config_hash, settings=run.contestant.settings)
        done = [name for name, _ in run.steps]
        results = dict(run.results)
        label = run.contestant.entry.label
        if label in values.get('test', {}):  # a test that is not planned yet
            done, results = [*done, 'test'], results | dict(test='test_metrics.json')
        for split, name in results.items():
            (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
            number = values.get(split, {}).get(label, value)
            (run.folder / name).write_text(json.dumps(dict(metrics={'depth/abs_err': number}, meta={})))
        record = about | dict(state='done', steps_done=done, attempts=[])
        (run.folder / 'run.json').write_text(json.dumps(record))


def states(made):
    return [run.state for run in made.runs]
