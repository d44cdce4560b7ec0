"""Configs, rows and stand-ins of trainings for the tests of comparisons."""

import time
from pathlib import Path

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
