"""Every method of the command line through mmengine's Runner: two epochs, and the second resumed from the first."""

import gc
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmrepmtl.apis import available_methods, load_config, train
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.tools.harness import TINY

METHODS = [name for name in available_methods(TINY) if name != 'stl']


def run(folder, method: str, name: str, regularizer: str | None = None, **changes) -> dict:
    cfg = load_config(TINY, method=method, regularizer=regularizer, work_dir=str(folder), seed=1, **changes)
    cfg.experiment_name = f'{method}_{name}_{folder.name}'
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.train_dataloader.dataset.num_samples = 12  # three batches: a window of sdmgrad's
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    return train(Config(cfg.to_dict(), format_python_code=False))  # half of a run is laying out its config


@pytest.fixture(autouse=True, scope='module')
def _few_objects():
    """Every data set collects garbage, and need not go through all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _scope():
    yield
    DefaultScope._instance_dict.clear()


def test_each_batch_of_a_method_that_takes_several_is_as_large_as_the_configs(tmp_path):
    assert load_config(TINY, method='sdmgrad').optim_wrapper.accumulative_counts == 3
    accumulating = tmp_path / 'accumulating.py'
    accumulating.write_text(f'_base_ = [{str(TINY)!r}]\noptim_wrapper = dict(accumulative_counts=2)\n')
    assert load_config(accumulating, method='sdmgrad').optim_wrapper.accumulative_counts == 6
    assert load_config(accumulating, method='pcgrad').optim_wrapper.accumulative_counts == 2
    own = tmp_path / 'own.py'
    own.write_text(
        f'_base_ = [{str(TINY)!r}]\n'
        "optim_wrapper = dict(aggregator=dict(_delete_=True, type='SDMGrad'), accumulative_counts=6)\n"
    )
    assert load_config(own).optim_wrapper.accumulative_counts == 6
    assert load_config(own, method='ew').optim_wrapper.accumulative_counts == 2
    assert load_config(own, method='sdmgrad').optim_wrapper.accumulative_counts == 6
    own.write_text(own.read_text().replace('=6', '=4'))
    with pytest.raises(ValueError, match='own.py: optim_wrapper.accumulative_counts is 4.* multiple of 3'):
        load_config(own, method='ew')


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
