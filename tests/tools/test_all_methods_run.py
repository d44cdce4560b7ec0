"""Every method of the command line through mmengine's Runner: two epochs, and the second resumed from the first."""

import math

import pytest
import torch
from mmengine.registry import DefaultScope

from mmrepmtl.apis import available_methods, load_config, train
from mmrepmtl.engine.checkpoint import load_checkpoint
from tests.tools.test_tools import TINY

METHODS = [name for name in available_methods(TINY) if name != 'stl']


def run(folder, method: str, name: str, regularizer: str | None = None, **changes) -> dict:
    cfg = load_config(TINY, method=method, regularizer=regularizer, work_dir=str(folder), seed=1, **changes)
    cfg.experiment_name = f'{method}_{name}_{folder.name}'
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.train_dataloader.dataset.num_samples = 12  # three batches: a window of sdmgrad's
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    return train(cfg)


@pytest.fixture(autouse=True)
def _scope():
    yield
    DefaultScope._instance_dict.clear()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('method', METHODS)
def test_a_run_and_its_resumption(method, tmp_path):
    regularizer = None if method.startswith('rep-mtl') else 'rep-mtl'
    metrics = run(tmp_path / 'whole', method, 'whole', regularizer)
    assert metrics and all(math.isfinite(value) for value in metrics.values())
    first, last = tmp_path / 'whole' / 'epoch_1.pth', tmp_path / 'whole' / 'epoch_2.pth'
    run(tmp_path / 'resumed', method, 'resumed', regularizer, resume=str(first))
    whole, resumed = (load_checkpoint(path)['state_dict'] for path in (last, tmp_path / 'resumed' / 'epoch_2.pth'))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
