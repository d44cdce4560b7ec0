"""Several runs at once, through submitit itself. The runs are small scripts, so that nothing is trained."""

import fcntl
import io
import json
import os
import signal
import stat
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from mmrepmtl.comparison.entries import Entry
from mmrepmtl.comparison.execution import Execution, Resources
from mmrepmtl.comparison.locks import FolderLock
from mmrepmtl.comparison.plan import Contestant
from mmrepmtl.comparison.run_progress import Progress
from mmrepmtl.comparison.runs import Run
from tests.comparison.harness import TRAINING, wait_for


def make_run(folder, label, code):
    contestant = Contestant(Entry(label, label, None, 'config'), {}, 'hash', 'config.py', ('a',))
    step = ('train', (sys.executable, '-c', code))
    return Run(contestant, 0, folder / 'runs' / label / 'seed_0', (step,), (('test', 'metrics.json'),))


def execute(folder, runs, resources=None, **more):
    """Executes runs; gives what was said, the labels that finished and those that did not."""
    stream, finished, lock = io.StringIO(), [], FolderLock(folder)
    progress = Progress(runs, 0, 1, list, stream)
    try:
        given = resources or Resources(2, ('',), 1)
        execution = Execution(folder, lock, given, lambda run: None, finished.append, progress, **more)
        execution.run(runs)
    finally:
        lock.release()
    labels = [[run.contestant.entry.label for run in some] for some in (finished, execution.failed)]
    return SimpleNamespace(said=stream.getvalue(), finished=labels[0], failed=labels[1], stopped=execution.stopped)


def records(runs):
    return [run.record()['state'] for run in runs]


def test_a_failed_run_is_reported_with_its_last_lines_and_the_others_go_on(tmp_path):
    # The first two are at work at the same time: each waits for a file of the other.
    meet = "import os, time\nopen({0!r}, 'w').close()\nwhile not os.path.exists({1!r}): time.sleep(0.05)\n"
    one, two = str(tmp_path / 'one'), str(tmp_path / 'two')
    environment = "print('THREADS', os.environ['OMP_NUM_THREADS'], 'GPU', os.environ['CUDA_VISIBLE_DEVICES'])"
    runs = [
        make_run(tmp_path, 'a', meet.format(one, two) + environment),
        make_run(tmp_path, 'b', meet.format(two, one) + environment),
        make_run(tmp_path, 'bad', "print('first'); raise ValueError('no such thing')"),
        make_run(tmp_path, 'c', 'pass'),
    ]
    outcome = execute(tmp_path, runs, Resources(2, ('4', '6'), 3))
    assert sorted(outcome.finished) == ['a', 'b', 'c'] and outcome.failed == ['bad']
    assert records(runs) == ['done', 'done', 'failed', 'done'] and outcome.stopped == 0
    assert 'failed: bad, seed 0; the last lines of' in outcome.said and 'ValueError: no such thing' in outcome.said
    said = [(run.folder / 'run.log').read_text() for run in runs[:2]]
    assert [text.rpartition('THREADS')[2].strip() for text in said] == ['3 GPU 4', '3 GPU 6']
    assert execute(tmp_path, runs[:2]).finished == ['a', 'b'] and len(runs[0].record()['attempts']) == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs_and_what_waits_is_not_started(tmp_path, number):
    runs = [make_run(tmp_path, 'long', TRAINING), make_run(tmp_path, 'next', 'pass')]

    def send():
        wait_for(lambda: (runs[0].folder / 'run.log').is_file() and 'begun' in (runs[0].folder / 'run.log').read_text())
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    before = signal.getsignal(number)
    outcome = execute(tmp_path, runs, Resources(1, ('',), 1))
    assert signal.getsignal(number) == before and outcome.stopped == number
    assert outcome.finished == outcome.failed == [] and not runs[1].folder.exists()
    assert runs[0].record()['state'] == 'interrupted' and runs[0].state == 'partial'
    assert (runs[0].folder / 'run.log').read_text().endswith('checkpoint written\n')
    assert 'stopping: 1 runs' in outcome.said and 'stopped: long, seed 0' in outcome.said


def test_a_run_that_a_killed_comparison_left_at_work_is_waited_for(tmp_path):
    run = make_run(tmp_path, 'a', 'pass')
    run.folder.mkdir(parents=True)
    claim = open(run.folder / '.claim', 'w')  # noqa: SIM115
    fcntl.flock(claim, fcntl.LOCK_EX)
    assert run.state == 'running'
    started = time.monotonic()
    threading.Timer(4, claim.close).start()
    assert execute(tmp_path, [run]).finished == ['a'] and time.monotonic() - started > 3.9


def test_a_job_that_loses_its_node_writes_a_checkpoint_and_goes_on_with_another(tmp_path):
    # Here submitit itself starts it again, as Slurm does with a job that is put back into the queue.
    again = str(tmp_path / 'again')
    run = make_run(tmp_path, 'a', f'import os\nif os.path.exists({again!r}): raise SystemExit\n{TRAINING}')

    def send():
        wait_for(lambda: (run.folder / 'run.log').is_file() and 'begun' in (run.folder / 'run.log').read_text())
        open(again, 'w').close()
        os.kill(run.record()['attempts'][0]['pid'], signal.SIGUSR2)

    threading.Thread(target=send).start()
    assert execute(tmp_path, [run]).finished == ['a']
    assert 'checkpoint written' in (run.folder / 'run.log').read_text()
    assert [attempt['state'] for attempt in run.record()['attempts']] == ['killed', 'done']


SBATCH = """#!{python}
import re, subprocess, sys, os
text = open(sys.argv[1]).read()
open({log!r}, 'a').write(text)
job = str(100 + len(os.listdir({queue!r})))
out = re.search(r'--output=(\\S+)', text).group(1).replace('%j', job)
env = dict(os.environ, SLURM_JOB_ID=job, SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_JOB_NUM_NODES='1')
streams = dict(stdout=open(out, 'a'), stderr=subprocess.STDOUT)
process = subprocess.Popen(['bash', sys.argv[1]], env=env, start_new_session=True, **streams)
open(os.path.join({queue!r}, job), 'w').write(str(process.pid))
print('Submitted batch job', job)
"""
SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do [[ "$1" == --output ]] && shift; shift; done\nexec "$@"\n'
SACCT = """#!{python}
import os
print('JobID|State|NodeList')
for job in os.listdir({queue!r}):
    pid = open(os.path.join({queue!r}, job)).read()
    state = open(f'/proc/{{pid}}/stat').read().split()[2] if os.path.exists(f'/proc/{{pid}}') else 'Z'
    print(job + '|' + ('COMPLETED' if state == 'Z' else 'RUNNING') + '|here')
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands by the names of Slurm's that run jobs here; gives the file of what was submitted."""
    folder, queue, log = tmp_path / 'bin', tmp_path / 'queue', tmp_path / 'submitted'
    folder.mkdir()
    queue.mkdir()
    names = dict(python=sys.executable, queue=str(queue), log=str(log))
    for name, text in dict(sbatch=SBATCH.format(**names), srun=SRUN, sacct=SACCT.format(**names)).items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
    return log


def test_slurm_gets_one_job_per_run_and_keeps_them_when_the_comparison_stops(tmp_path, cluster):
    go = str(tmp_path / 'go')
    waits = f"import os, time\nprint('begun', flush=True)\nwhile not os.path.exists({go!r}): time.sleep(0.1)"
    runs = [make_run(tmp_path, 'a', 'pass'), make_run(tmp_path, 'long', waits)]
    resources = Resources(2, (), 1, 'short', dict(cpus_per_task=1))

    def send():
        wait_for(lambda: (runs[1].folder / 'run.log').is_file() and 'begun' in (runs[1].folder / 'run.log').read_text())
        wait_for(lambda: runs[0].state == 'done')
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()
    outcome = execute(tmp_path, runs, resources)
    assert outcome.stopped == signal.SIGINT and 'jobs stay in the queue' in outcome.said
    assert runs[1].state == 'running'
    text = cluster.read_text()
    assert text.count('#SBATCH --partition=short') == 2 and '--cpus-per-task=1' in text
    open(go, 'w').close()
    outcome = execute(tmp_path, runs, resources)
    assert sorted(outcome.finished) == ['a', 'long'] and cluster.read_text() == text
    assert 'started' not in outcome.said and len(json.loads((runs[1].folder / 'run.json').read_text())['attempts']) == 1


def test_without_a_cluster_slurm_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    with pytest.raises(ValueError, match='--slurm: Could not detect "srun"'):
        execute(tmp_path, [], Resources(1, (), 1, 'short', {}))
