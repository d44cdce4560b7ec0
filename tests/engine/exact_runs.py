"""Small runs that are cut and resumed: a network with dropout and BatchNorm, a data set that draws random numbers."""

import gc
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.engine.toy import ToyModel, make_batch


@DATASETS.register_module()
class NoisyToys(Dataset):
    """Samples of the toy model with noise from NumPy's global generator, as transforms of mmcv draw it."""

    metainfo = dict(name='toys')

    def __init__(self, size: int = 12, noise: float = 0.1) -> None:
        self.batch, self.size, self.noise = make_batch(size, seed=5), size, noise

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        sample = {key: value[index] for key, value in self.batch.items()}
        noise = self.noise * np.random.randn(*sample['inputs'].shape)
        return sample | dict(inputs=sample['inputs'] + torch.from_numpy(noise))


@MODELS.register_module()
class DropoutToy(ToyModel):
    """The toy model with dropout in the encoder and in a head, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.insert(1, nn.BatchNorm2d(5))
        self.encoder.insert(2, nn.Dropout(0.3))
        self.heads['b'].insert(2, nn.Dropout(0.3))
        self.double()

    def forward(self, inputs, a, b, c, mode='loss'):
        if mode == 'predict':
            losses = self.losses(inputs, a, b, c)
            return [{key: value.detach().clone() for key, value in losses.items()} for _ in inputs]
        return super().forward(inputs, a, b, c, mode)


@METRICS.register_module()
class MeanLoss(BaseMetric):
    """The mean loss of each task."""

    default_prefix = None

    def process(self, data_batch, data_samples) -> None:
        self.results += [{key: value.item() for key, value in sample.items()} for sample in data_samples]

    def compute_metrics(self, results) -> dict:
        return {f'{task}/abs_err': sum(result[task] for result in results) / len(results) for task in results[0]}


def toy_config(work_dir, loop: str = 'epoch', workers: int = 0, persistent: bool = False, **changes) -> dict:
    """3 epochs of 4 batches, or 12 iterations."""
    loader = dict(num_workers=workers, persistent_workers=persistent, collate_fn=dict(type='default_collate'))
    by_epoch = loop == 'epoch'
    val = dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='NoisyToys', size=8),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    config = dict(
        work_dir=str(work_dir),
        default_scope='mmengine',
        launcher='none',
        model=dict(type='DropoutToy'),
        train_dataloader=dict(
            batch_size=3,
            dataset=dict(type='NoisyToys'),
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True),
            **loader,
        ),
        train_cfg=dict(by_epoch=True, max_epochs=3)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=12, val_interval=4),
        optim_wrapper=dict(
            type='MultiTaskOptimWrapper', optimizer=dict(type='Adam', lr=1e-2), shared='encoder', diagnostics_interval=1
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
            dict(type='MultiStepLR', milestones=[2], by_epoch=True),
        ],
        val_dataloader=val,
        val_cfg=dict(),
        val_evaluator=[dict(type='MeanLoss')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1), logger=None, timer=None),
        custom_hooks=[dict(type='ResumeHook'), dict(type='MetricsFileHook')],
        randomness=dict(seed=3),
        log_level='ERROR',
    )
    return merged(config, changes)


def merged(config: dict, changes: dict) -> dict:
    """A copy of nested dicts with changes in them; a list is replaced."""
    result = dict(config)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if inside else value
    return result


class Stop(BaseException):
    """Ends a run in the middle, as a kill does."""


class StopHook(Hook):
    """Raises :class:`Stop` at the beginning of an iteration, or of a validation after so many iterations."""

    priority = 'LOWEST'

    def __init__(self, before: int | None = None, in_validation: int | None = None) -> None:
        self.before, self.in_validation = before, in_validation

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.before:
            raise Stop

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == self.in_validation:
            raise Stop


def run(config: dict, stop: StopHook | None = None, distract: bool = True) -> Runner:
    """Trains; the random states of the process are others than those of the run before."""
    run.count += 1
    if distract:
        torch.rand(run.count)
        np.random.rand(run.count)
    name = f'exact_{run.count}_{abs(hash(config["work_dir"]))}'
    if 'model_wrapper_cfg' in config:  # which only a config file can say
        runner = Runner.from_cfg(Config(dict(config, experiment_name=name)))
    else:
        runner = Runner(experiment_name=name, **config)
    if stop is not None:
        runner.register_hook(stop)
    try:
        runner.train()
    except Stop:
        pass
    if runner.train_dataloader.num_workers:  # end them now, and not when another run's have inherited what they hold
        runner.train_loop.dataloader_iterator = runner.train_dataloader._iterator = None
        gc.collect()
    return runner


run.count = 0


def differences(path: Path, other: Path) -> list[str]:
    """The places where two checkpoints differ, times and configs left out."""
    one, two = load_checkpoint(path), load_checkpoint(other)
    for checkpoint in (one, two):
        meta = checkpoint.pop('meta')
        checkpoint['meta'] = {key: meta[key] for key in ('epoch', 'iter', 'seed')}
        hub = checkpoint.pop('message_hub')
        checkpoint['scalars'] = {key: value for key, value in hub['log_scalars'].items() if 'time' not in key}
    return list(_differences('', one, two))


def _differences(name: str, one, two):
    if isinstance(one, dict) and isinstance(two, dict):
        if one.keys() != two.keys():
            yield f'{name}: keys {one.keys() ^ two.keys()}'
        for key in one.keys() & two.keys():
            yield from _differences(f'{name}.{key}', one[key], two[key])
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) != len(two):
            yield f'{name}: lengths {len(one)}, {len(two)}'
        for index, (a, b) in enumerate(zip(one, two, strict=False)):
            yield from _differences(f'{name}.{index}', a, b)
    elif isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.dtype != two.dtype or one.shape != two.shape or not torch.equal(one.nan_to_num(), two.nan_to_num()):
            yield name
    elif type(one) is not type(two) or one != two and not (one != one and two != two):
        yield f'{name}: {one!r}, {two!r}'


def weighting(name, **settings):
    return dict(optim_wrapper=dict(weighting=dict(type=name, **settings)))


def aggregator(name, **settings):
    return dict(optim_wrapper=dict(aggregator=dict(type=name, **settings)))


REP_MTL = dict(optim_wrapper=dict(loss_transform='log', regularizers=[dict(type='RepMTL', warmup_iters=3, interval=2)]))
METHODS = {
    'rlw': weighting('RLW'),
    'dwa': weighting('DWA', interval=2),
    'uw': weighting('UncertaintyWeighting'),
    'igbv2': weighting('IGBv2', interval=2, random_epochs=1, learn_after=1, update_every=2),
    'gradnorm': aggregator('GradNorm'),
    'sdmgrad': aggregator('SDMGrad'),
    'moco': aggregator('MoCo'),
    'db-mtl': aggregator('DBMTL'),
    'pcgrad-z': aggregator('PCGrad', level='representation'),
    'graddrop': aggregator('GradDrop'),
    'rep-mtl': REP_MTL,
    'target': dict(optim_wrapper=dict(loss_transform='log', regularizers=[dict(type='RepMTL', target_ratio=0.1)])),
    'target-z': dict(
        optim_wrapper=dict(
            loss_transform='log',
            regularizers=[dict(type='RepMTL', target_ratio=0.1, through='representation', warmup_iters=3, interval=2)],
        )
    ),
    'pcgrad-rep-mtl': merged(REP_MTL, aggregator('PCGrad')),
    'fp16': merged(REP_MTL, dict(optim_wrapper=dict(precision='bf16'))),
    'skip': dict(optim_wrapper=dict(on_nonfinite='skip', aggregator=dict(type='PCGrad'))),
}
