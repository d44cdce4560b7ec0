"""Two processes that are cut and resumed: every rank has its own random states, BatchNorm statistics and gradients."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.distributed.launch import run_processes
from tests.engine.exact_runs import differences, merged, run, toy_config
from tests.engine.test_exact_resume import METHODS

LAUNCH = dict(
    launcher='pytorch',
    model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False),
    train_dataloader=dict(batch_size=2),
)
HOOKS = [dict(type='ResumeHook'), dict(type='SyncBuffersHook'), dict(type='MetricsFileHook')]
WINDOW = dict(loop='iter', train_cfg=dict(max_iters=6), optim_wrapper=dict(accumulative_counts=3))
CASES = {
    'epoch': dict(loop='epoch', custom_hooks=HOOKS),
    'iter': dict(loop='iter', custom_hooks=HOOKS, train_cfg=dict(max_iters=6, val_interval=3)),
    'window': merged(METHODS['rep-mtl'], WINDOW),
    'aggregator window': merged(METHODS['sdmgrad'], WINDOW),
}


def cut_runs(rank: int, root: str) -> dict:
    """{case: where a resumed run and the whole one differ} on the first rank."""
    os.environ['LOCAL_RANK'] = str(rank)  # a launcher's; mmengine reads it
    found = {}
    for name, case in CASES.items():
        folder, config = Path(root, name), merged(case, LAUNCH)
        run(toy_config(folder / 'whole', **config), distract=rank == 0)
        last = case.get('train_cfg', {}).get('max_iters', 9)
        for cut in (2, 4):
            start = dict(resume=True, load_from=str(folder / f'whole/iter_{cut}.pth'))
            run(toy_config(folder / f'cut{cut}', **merged(config, start)), distract=rank == 1)
            if rank == 0:
                file = f'iter_{last}.pth'
                found[f'{name} {cut}'] = differences(folder / 'whole' / file, folder / f'cut{cut}' / file)
    return found


@pytest.fixture(scope='module')
def results():
    folder = tempfile.mkdtemp()
    yield run_processes(cut_runs, folder)[0]
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize('cut', [2, 4])
@pytest.mark.parametrize('name', CASES)
def test_two_processes_go_on_exactly(results, name, cut):
    assert results[f'{name} {cut}'] == []
